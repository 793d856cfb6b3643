/* The context: options and environment, the device, the store, error texts and the log.
 *
 * quern_context_create() runs in this order, and quern_context_destroy() in the reverse:
 *   1. options     the caller's, else the environment's (read here and nowhere else), copied
 *   2. store       the cache file; a file that must not be used is an error, a full disk is not
 *   3. device      the backend opens it; its compiler identity is remembered in the store
 *   4. families    the built-in ones
 *
 * Each thread that uses a context owns a struct qn_thread (error text, recent kernels), made at its
 * first call and freed when it ends or, for those still alive, with the context.
 */
#include "jit/context.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>
#include <time.h>

#include "jit/device.h"
#include "jit/winners.h"

double qn_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* ---- Threads and errors -------------------------------------------------------------------- */

/* A thread's part goes when the thread ends or when the context is destroyed, whichever is first,
 * and both may happen at once: pthread_key_delete() does not wait for a destructor that libc has
 * already fetched, with the part's address, for a thread that ends. How late that destructor comes
 * is not bounded, so nothing that destroy frees, and no count in it, can tell it whether its part
 * is still there. What can is the one thing that outlives contexts: a list of all parts of the
 * process, in which an address is looked up before it is looked into. */
struct thread_node {
    struct qn_thread thread; /* first: a qn_thread is its node */
    struct quern_context *ctx;
    pthread_t owner; /* an address may be reused, but not by a thread that is about to end */
    struct thread_node *next;
};

static pthread_mutex_t nodes_lock = PTHREAD_MUTEX_INITIALIZER;
static struct thread_node *nodes;

static void thread_end(void *data)
{
    struct thread_node **link = &nodes;
    pthread_mutex_lock(&nodes_lock);
    while (*link && (*link != data || !pthread_equal((*link)->owner, pthread_self())))
        link = &(*link)->next;
    struct thread_node *node = *link;
    if (node)
        *link = node->next;
    pthread_mutex_unlock(&nodes_lock);
    free(node);
}

/* Frees the parts of all threads. */
static void threads_fini(struct quern_context *ctx)
{
    pthread_key_delete(ctx->thread_key);
    pthread_mutex_lock(&nodes_lock);
    for (struct thread_node **link = &nodes; *link;) {
        struct thread_node *node = *link;
        if (node->ctx == ctx) {
            *link = node->next;
            free(node);
        } else {
            link = &node->next;
        }
    }
    pthread_mutex_unlock(&nodes_lock);
}

struct qn_thread *qn_thread_get(struct quern_context *ctx)
{
    struct thread_node *node = pthread_getspecific(ctx->thread_key);
    if (node)
        return &node->thread;
    node = calloc(1, sizeof(*node));
    if (!node)
        return NULL;
    node->ctx = ctx;
    node->owner = pthread_self();
    if (pthread_setspecific(ctx->thread_key, node)) {
        free(node);
        return NULL;
    }
    pthread_mutex_lock(&nodes_lock);
    node->next = nodes;
    nodes = node;
    pthread_mutex_unlock(&nodes_lock);
    return &node->thread;
}

int qn_require(struct quern_context *ctx, const char *name, const void *pointer)
{
    if (!ctx)
        return QUERN_INVALID;
    return pointer ? QUERN_OK : qn_fail(ctx, QUERN_INVALID, "%s=NULL: must be given", name);
}

int qn_fail(struct quern_context *ctx, int status, const char *format, ...)
{
    struct qn_thread *thread = qn_thread_get(ctx);
    if (thread) {
        char text[sizeof(thread->error)]; /* an argument may be the old text */
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        memcpy(thread->error, text, sizeof(text));
        if (qn_is_dumped(ctx, 'x'))
            qn_log(ctx, QUERN_LOG_DEBUG, "fail %s: %s", quern_status_name(status), text);
    }
    return status;
}

int qn_fail_why(struct quern_context *ctx, int status, const struct quern_message *why)
{
    return qn_fail(ctx, status, "%s", why->text);
}

const char *quern_errmsg(struct quern_context *ctx)
{
    if (!ctx)
        return quern_status_text(QUERN_NO_MEMORY);
    struct qn_thread *thread = qn_thread_get(ctx);
    return thread ? thread->error : quern_status_text(QUERN_NO_MEMORY);
}

/* ---- Log ----------------------------------------------------------------------------------- */

void qn_log(struct quern_context *ctx, int level, const char *format, ...)
{
    if (!ctx->options.log || level > ctx->options.log_level)
        return;
    char line[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    ctx->options.log(ctx->options.user, level, line);
}

bool qn_is_dumped(const struct quern_context *ctx, char letter)
{
    return ctx->options.dump && strchr(ctx->options.dump, letter);
}

/* The log hook in the form that the store and the backends take. */
static void log_line(void *user, int level, const char *line)
{
    qn_log(user, level, "%s", line);
}

/* ---- Options ------------------------------------------------------------------------------- */

static int options_read_texts(struct quern_context *ctx)
{
    struct {
        const char **text;
        const char *variable;
    } const list[] = {
        { &ctx->options.cache, "QUERN_CACHE" }, { &ctx->options.device, NULL },
        { &ctx->options.mode, "QUERN_MODE" },   { &ctx->options.clang, "QUERN_CLANG" },
        { &ctx->options.nvrtc, "QUERN_NVRTC" }, { &ctx->options.templates, "QUERN_TEMPLATES" },
        { &ctx->options.profile, NULL },        { &ctx->options.dump, NULL },
        { &ctx->options.base, "QUERN_BASE" },
    };
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        const char *text = *list[i].text;
        if (!text && list[i].variable)
            text = getenv(list[i].variable);
        *list[i].text = NULL; /* so that destroy frees copies only */
        if (text && !(*list[i].text = ctx->owned[i] = strdup(text)))
            return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    }
    return QUERN_OK;
}

static int options_read_cache(struct quern_context *ctx)
{
    if (ctx->options.cache)
        return QUERN_OK;
    const char *home = getenv("HOME"), *base = ctx->options.base;
    bool has_home = home && *home;
    if (!has_home && ctx->is_sealed && base && *base) { /* nothing would be written anyway */
        ctx->options.cache = ctx->owned_cache = strdup("");
        return ctx->options.cache ? QUERN_OK : qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    }
    if (!has_home)
        return qn_fail(ctx, QUERN_INVALID,
                       "cache: neither QUERN_CACHE nor HOME is set; name a file, or \"\" for none");
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/.cache/quern/quern.db", home) >= (int)sizeof(path))
        return qn_fail(ctx, QUERN_INVALID, "cache: HOME is too long");
    ctx->options.cache = ctx->owned_cache = strdup(path);
    return ctx->options.cache ? QUERN_OK : qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
}

static int options_read_words(struct quern_context *ctx)
{
    static const char *const levels[] = { "off", "warn", "info", "debug" };
    const char *mode = ctx->options.mode ? ctx->options.mode : "normal";
    const char *level = getenv("QUERN_LOG");

    if (strcmp(mode, "normal") && strcmp(mode, "sealed"))
        return qn_fail(ctx, QUERN_INVALID, "mode=%s: must be normal or sealed", mode);
    ctx->max_makers =
        ctx->options.makers ? ctx->options.makers : (int)sysconf(_SC_NPROCESSORS_ONLN);
    ctx->is_sealed = !strcmp(mode, "sealed");
    if (ctx->options.log_level)
        return QUERN_OK;
    ctx->options.log_level = QUERN_LOG_WARN;
    if (!level)
        return QUERN_OK;
    for (int i = 0; i < 4; i++) {
        if (!strcmp(level, levels[i])) {
            ctx->options.log_level = i;
            return QUERN_OK;
        }
    }
    return qn_fail(ctx, QUERN_INVALID, "QUERN_LOG=%s: must be off, warn, info or debug", level);
}

static int options_read_check(struct quern_context *ctx)
{
    const char *check = getenv("QUERN_CHECK");
    if (check && *check && strcmp(check, "0") && strcmp(check, "1"))
        return qn_fail(ctx, QUERN_INVALID, "QUERN_CHECK=%s: must be 0 or 1", check);
    ctx->is_checking = check && !strcmp(check, "1");
    return QUERN_OK;
}

static int options_check_dump(struct quern_context *ctx)
{
    static const char letters[] = "bcpekax";
    const char *dump = ctx->options.dump;
    if (dump && strspn(dump, letters) != strlen(dump))
        return qn_fail(ctx, QUERN_INVALID, "dump=%s: must be letters of %s", dump, letters);
    return QUERN_OK;
}

static int options_check_templates(struct quern_context *ctx)
{
    struct stat status;
    const char *path = ctx->options.templates;
    if (path && (stat(path, &status) || !S_ISDIR(status.st_mode)))
        return qn_fail(ctx, QUERN_INVALID, "templates=%s: must be a directory", path);
    return QUERN_OK;
}

static int options_read(struct quern_context *ctx, const struct quern_options *options)
{
    if (options && options->size != sizeof(*options))
        return qn_fail(ctx, QUERN_INVALID, "options.size=%zu: must be %zu (QUERN_OPTIONS_INIT)",
                       options->size, sizeof(*options));
    if (options)
        ctx->options = *options;
    QN_TRY(options_read_texts(ctx));
    QN_TRY(options_read_words(ctx));
    QN_TRY(options_read_cache(ctx));
    QN_TRY(options_read_check(ctx));
    QN_TRY(options_check_templates(ctx));
    QN_TRY(options_check_dump(ctx));
    if (!ctx->options.alloc != !ctx->options.free)
        return qn_fail(ctx, QUERN_INVALID, "options.alloc and options.free: give both or neither");
    if (ctx->options.threads < 0 || ctx->options.threads > QN_MOST_THREADS)
        return qn_fail(ctx, QUERN_INVALID, "threads=%d: must be from 0 (all) to %d",
                       ctx->options.threads, QN_MOST_THREADS);
    return QUERN_OK;
}

/* ---- Store and device ---------------------------------------------------------------------- */

static int store_open(struct quern_context *ctx)
{
    const struct qn_store_options options = {
        .path = ctx->options.cache, .base = ctx->options.base, .log = log_line, .user = ctx
    };
    char error[1024];
    if (qn_store_open(&options, &ctx->store, error, sizeof(error)))
        return qn_fail(ctx, QUERN_STORE, "%s", error);
    return QUERN_OK;
}

static char *fact_find(void *user, const char *name)
{
    struct quern_context *ctx = user;
    char *value = NULL;
    return qn_meta_find(ctx->store, name, &value) == QN_STORE_OK ? value : NULL;
}

static void fact_put(void *user, const char *name, const char *value)
{
    struct quern_context *ctx = user;
    qn_meta_put(ctx->store, name, value);
}

void qn_backend_options(struct quern_context *ctx, struct qn_backend_options *options)
{
    *options = (struct qn_backend_options){
        .clang = ctx->options.clang,
        .nvrtc = ctx->options.nvrtc,
        .threads = ctx->options.threads,
        .log = log_line,
        .user = ctx,
        .fact_find = ctx->store ? fact_find : NULL,
        .fact_put = ctx->store ? fact_put : NULL,
    };
}

int quern_context_create(const struct quern_options *options, struct quern_context **out)
{
    if (!out)
        return QUERN_INVALID;
    struct quern_context *ctx = *out = calloc(1, sizeof(*ctx));
    if (!ctx)
        return QUERN_NO_MEMORY;
    if (pthread_key_create(&ctx->thread_key, thread_end)) {
        free(ctx);
        *out = NULL;
        return QUERN_NO_MEMORY;
    }
    pthread_mutex_init(&ctx->lock, NULL);
    QN_TRY(options_read(ctx, options));
    QN_TRY(store_open(ctx));
    QN_TRY(qn_device_open(ctx));
    return qn_families_init(ctx);
}

void quern_context_destroy(struct quern_context *ctx)
{
    if (!ctx)
        return;
    qn_kernels_fini(ctx);
    qn_winners_fini(ctx);
    qn_devices_close(ctx);
    qn_store_close(ctx->store);
    qn_families_fini(ctx);
    threads_fini(ctx);
    for (size_t i = 0; i < sizeof(ctx->owned) / sizeof(ctx->owned[0]); i++)
        free(ctx->owned[i]);
    free(ctx->owned_cache);
    pthread_mutex_destroy(&ctx->lock);
    free(ctx);
}

/* ---- Memory -------------------------------------------------------------------------------- */

/* Nothing is asked of the device meanwhile: that would spoil the capture. */
static int refuse_captured(size_t bytes, const void *stream, struct quern_message *why)
{
    if (stream)
        return quern_refuse(why, "bytes=%zu: stream=%p is being captured: it gives no memory",
                            bytes, stream);
    return quern_refuse(why,
                        "bytes=%zu: the default stream gives no memory while a stream that "
                        "synchronises with it is being captured",
                        bytes);
}

/* Why there is no memory: a device that is past giving any says so when it is synchronised. */
static int refuse_memory(struct quern_context *ctx, size_t bytes, void *stream,
                         struct quern_message *why)
{
    bool is_captured = ctx->backend->is_capturing(ctx->device, stream);
    if (is_captured && !ctx->options.alloc)
        return refuse_captured(bytes, stream, why);
    if (!is_captured)
        QN_TRY(ctx->backend->synchronize(ctx->device, NULL, why));
    if (ctx->options.alloc)
        quern_refuse(why, "bytes=%zu: options.alloc has no such memory", bytes);
    else
        quern_refuse(why, "bytes=%zu: the device has no such memory, %zu bytes of it are free",
                     bytes, ctx->backend->free_bytes(ctx->device));
    return QUERN_NO_MEMORY;
}

int qn_memory_get(struct quern_context *ctx, size_t bytes, void *stream, void **data,
                  struct quern_message *why)
{
    const struct quern_options *options = &ctx->options;
    void *memory = options->alloc ? options->alloc(bytes, ctx->ordinal, stream, options->alloc_user)
                                  : ctx->backend->alloc(ctx->device, bytes, stream);
    if (!memory)
        return refuse_memory(ctx, bytes, stream, why);
    if ((uintptr_t)memory % QN_MEMORY_ALIGN) {
        qn_free(ctx, memory, bytes, stream);
        return quern_refuse(why, "options.alloc=%p for %zu bytes: must be a multiple of %d", memory,
                            bytes, QN_MEMORY_ALIGN);
    }
    *data = memory;
    return QUERN_OK;
}

void qn_free(struct quern_context *ctx, void *data, size_t bytes, void *stream)
{
    if (!data)
        return;
    if (ctx->options.free)
        ctx->options.free(data, bytes, ctx->ordinal, stream, ctx->options.alloc_user);
    else
        ctx->backend->free(ctx->device, data, bytes, stream);
}

/* A failed copy often is the first to hear of a kernel's fault, and synchronize() can name it. */
int qn_copy_ordered(struct quern_context *ctx, void *to, const void *from, size_t bytes,
                    void *stream, struct quern_message *why)
{
    int status = bytes ? ctx->backend->copy(ctx->device, to, from, bytes, stream) : QUERN_OK;
    if (status && !ctx->backend->synchronize(ctx->device, stream, why))
        quern_refuse(why, "bytes=%zu: the device cannot copy them from %p to %p", bytes, from, to);
    return status;
}

int qn_copy(struct quern_context *ctx, void *to, const void *from, size_t bytes,
            struct quern_message *why)
{
    return qn_copy_ordered(ctx, to, from, bytes, NULL, why);
}

int qn_fill(struct quern_context *ctx, void *data, int byte, size_t bytes,
            struct quern_message *why)
{
    int status = bytes ? ctx->backend->fill(ctx->device, data, byte, bytes, NULL) : QUERN_OK;
    if (status && !ctx->backend->synchronize(ctx->device, NULL, why))
        quern_refuse(why, "bytes=%zu: the device cannot fill them at %p", bytes, data);
    return status;
}

int quern_memory_alloc(struct quern_context *ctx, size_t bytes, void **data)
{
    struct quern_message why;
    QN_TRY(qn_require(ctx, "data", data));
    void *memory;
    int status = qn_memory_get(ctx, bytes ? bytes : 1, NULL, &memory, &why);
    if (status)
        return qn_fail_why(ctx, status, &why);
    status = ctx->backend->synchronize(ctx->device, NULL, &why); /* for use on any stream */
    if (status) {
        qn_free(ctx, memory, bytes ? bytes : 1, NULL);
        return qn_fail_why(ctx, status, &why);
    }
    *data = memory;
    return QUERN_OK;
}

void quern_memory_free(struct quern_context *ctx, void *data, size_t bytes)
{
    if (ctx)
        qn_free(ctx, data, bytes ? bytes : 1, NULL);
}

int quern_memory_copy(struct quern_context *ctx, void *to, const void *from, size_t bytes)
{
    if (!ctx)
        return QUERN_INVALID;
    if (bytes) {
        QN_TRY(qn_require(ctx, "to", to));
        QN_TRY(qn_require(ctx, "from", from));
    }
    struct quern_message why;
    int status = qn_copy(ctx, to, from, bytes, &why);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}
