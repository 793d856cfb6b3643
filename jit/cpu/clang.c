/* Compiling with clang: `clang -x c - -c -o - OPTIONS`, source in, object out, messages beside.
 *
 *     find      the path given, or a name given on PATH, or clang-19, or clang
 *     identity  fact "clang PATH SIZE MTIME" -> "Debian clang version 19.1.7 (3+b1)"
 *                 known here? -> known to the store? -> run --version, tell the store
 *     compile   find, identity (is it new enough?), run, judge
 *
 * Invariants: no file is written; nothing but the compiler, the source and the options decides the
 * object: the child gets four variables of our environment and works in "/", and configuration
 * files are off. The lock is never held while a kernel compiles, so that compilations run side by
 * side; it is held over --version, so that many threads at start run it once.
 *
 * A subprocess and not libclang: the front end is not safe to call from many threads, leaks, and
 * takes the host with it when it crashes. This costs 10 ms a compilation.
 *
 * A wrapper script's identity is that of its own file: when what it calls changes, touch it. */
#define _GNU_SOURCE
#include "jit/cpu/clang.h"

#include <ctype.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jit/cpu/cpu.h"
#include "jit/process.h"

#define HOW_TO_GET "install clang-19 (apt-get install clang-19) or set QUERN_CLANG"

enum {
    OBJECT_LIMIT = 64 << 20,
    VERSION_LIMIT = 64 << 10,
    VERSION_TIMEOUT_S = 10,
    LINE_SHOWN = 300
};

/* A formatted text, malloc'ed, or NULL: asprintf leaves its pointer undefined when it fails. */
static __attribute__((format(printf, 1, 2))) char *text_make(const char *format, ...)
{
    va_list arguments;
    char *text;

    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        text = NULL;
    va_end(arguments);
    return text;
}

/* ---- Init ---------------------------------------------------------------------------------- */

/* What the child may see of our environment: where programs and their libraries are, and homes for
 * wrappers such as ccache. CPATH and the like would put the user's headers into kernels. */
static char **environment_make(void)
{
    static const char *const kept[] = { "PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR" };
    static const char *const set[] = { "LC_ALL=C", "CLANG_NO_DEFAULT_CONFIG=1" };
    char **environment =
        calloc(sizeof kept / sizeof *kept + sizeof set / sizeof *set + 1, sizeof *environment);
    size_t count = 0;

    for (size_t i = 0; environment && i < sizeof kept / sizeof *kept; i++) {
        const char *value = getenv(kept[i]);
        if (value && (environment[count] = text_make("%s=%s", kept[i], value)))
            count++;
    }
    for (size_t i = 0; environment && i < sizeof set / sizeof *set; i++)
        if ((environment[count] = strdup(set[i])))
            count++;
    return environment;
}

static void environment_destroy(char **environment)
{
    for (char **entry = environment; entry && *entry; entry++)
        free(*entry);
    free(environment);
}

/* A path is made absolute now: it means what it meant when it was given. */
static char *given_make(const char *text)
{
    char *directory, *given = NULL;

    if (text[0] == '/' || !strchr(text, '/'))
        return strdup(text);
    directory = getcwd(NULL, 0);
    if (directory)
        given = text_make("%s/%s", directory, text);
    free(directory);
    return given;
}

int qn_clang_init(struct qn_clang *clang, const struct qn_backend_options *options,
                  struct quern_message *why)
{
    const char *text = options->clang && *options->clang ? options->clang : NULL;
    const char *path = getenv("PATH");

    memset(clang, 0, sizeof *clang);
    clang->options = *options;
    clang->given = text ? given_make(text) : NULL;
    clang->search_path = strdup(path ? path : "/usr/local/bin:/usr/bin:/bin");
    clang->environment = environment_make();
    pthread_mutex_init(&clang->lock, NULL);
    if (!clang->search_path || !clang->environment || (text && !clang->given)) {
        qn_clang_fini(clang);
        return QN_CPU_FAIL(NO_MEMORY, why, "clang: out of memory");
    }
    return 0;
}

void qn_clang_fini(struct qn_clang *clang)
{
    free(clang->given);
    free(clang->search_path);
    environment_destroy(clang->environment);
    pthread_mutex_destroy(&clang->lock);
    free(clang->fact_name);
    free(clang->identity);
}

/* ---- Find ---------------------------------------------------------------------------------- */

static int is_program(const char *path)
{
    struct stat status;
    return !stat(path, &status) && S_ISREG(status.st_mode) && !access(path, X_OK);
}

/* `name` in a directory of the search path, malloc'ed; NULL if in none. Relative directories would
 * make the compiler depend on where the host happens to be: they are passed over. */
static char *search(const char *search_path, const char *name)
{
    const char *directory = search_path;

    while (*directory) {
        size_t length = strcspn(directory, ":");
        char *path = text_make("%.*s/%s", (int)length, directory, name);
        if (path && *path == '/' && length && is_program(path))
            return path;
        free(path);
        directory += length + (directory[length] == ':');
    }
    return NULL;
}

int qn_clang_find(const struct qn_clang *clang, char **path, struct quern_message *why)
{
    const char *given = clang->given;
    char *found;

    if (given && *given == '/')
        found = is_program(given) ? strdup(given) : NULL;
    else if (given)
        found = search(clang->search_path, given);
    else if (!(found = search(clang->search_path, "clang-19")))
        found = search(clang->search_path, "clang");
    if (found) {
        *path = found;
        return 0;
    }
    if (given && *given == '/' && !access(given, F_OK))
        return QN_CPU_FAIL(NO_COMPILER, why, "clang=%s: not an executable file; " HOW_TO_GET,
                           given);
    if (given)
        return QN_CPU_FAIL(NO_COMPILER, why, "clang=%s: not found%s; " HOW_TO_GET, given,
                           *given == '/' ? "" : " on PATH");
    return QN_CPU_FAIL(NO_COMPILER, why,
                       "clang=clang-19: not found on PATH, nor is clang; " HOW_TO_GET);
}

/* ---- Run ----------------------------------------------------------------------------------- */

static int run(const struct qn_clang *clang, const struct qn_process_request *request,
               struct qn_process_result *result, struct quern_message *why)
{
    struct qn_process_request full = *request;
    char text[128];

    full.environment = clang->environment;
    int error = qn_process_run(&full, result);
    if (!error)
        return 0;
    if (error == ENOMEM)
        return QN_CPU_FAIL(NO_MEMORY, why, "clang=%s: out of memory", request->path);
    if (error == ENOENT || error == EACCES || error == ENOEXEC)
        return QN_CPU_FAIL(NO_COMPILER, why, "clang=%s: cannot be run: %s; " HOW_TO_GET,
                           request->path, strerror_r(error, text, sizeof text));
    return QN_CPU_FAIL(COMPILE, why, "clang=%s: cannot be started: %s", request->path,
                       strerror_r(error, text, sizeof text));
}

/* Ways to end that are the same whatever it was run for. */
static int check_end(const struct qn_process_request *request,
                     const struct qn_process_result *result, struct quern_message *why)
{
    switch (result->end) {
    case QN_PROCESS_SIGNALLED:
        return QN_CPU_FAIL(COMPILE, why, "clang=%s: killed by signal %d", request->path,
                           result->code);
    case QN_PROCESS_TIMED_OUT:
        return QN_CPU_FAIL(COMPILE, why, "clang=%s: no result after %g s, killed", request->path,
                           request->timeout_s);
    case QN_PROCESS_TOO_LONG:
        return QN_CPU_FAIL(COMPILE, why, "clang=%s: wrote more than %zu MiB, killed", request->path,
                           request->output_limit >> 20);
    case QN_PROCESS_EXITED:
    case QN_PROCESS_REAPED:
        break;
    }
    return 0;
}

/* ---- Identity ------------------------------------------------------------------------------ */

/* What the identity is remembered under; NULL if the file has gone or memory ran out. */
static char *fact_name_make(const char *path)
{
    struct stat status;

    if (stat(path, &status))
        return NULL;
    return text_make("clang %s %lld %lld.%09ld", path, (long long)status.st_size,
                     (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

/* The first line, without blanks at its end; malloc'ed. The lines after it name directories. */
static char *first_line(const char *text)
{
    size_t length = strcspn(text, "\n");

    while (length && isspace((unsigned char)text[length - 1]))
        length--;
    return strndup(text, length);
}

static int ask_version(const struct qn_clang *clang, const char *path, char **identity,
                       struct quern_message *why)
{
    char *argv[] = { (char *)path, "--version", NULL };
    struct qn_process_request request = {
        .path = path, .argv = argv, .output_limit = VERSION_LIMIT, .timeout_s = VERSION_TIMEOUT_S
    };
    struct qn_process_result result;
    int status = run(clang, &request, &result, why);

    if (status)
        return status;
    status = check_end(&request, &result, why) ? QUERN_NO_COMPILER : 0;
    if (!status && !(*identity = first_line(result.output)))
        status = QN_CPU_FAIL(NO_MEMORY, why, "clang=%s: out of memory", path);
    qn_process_result_fini(&result);
    return status;
}

/* "Debian clang version 19.1.7 (...)" is new enough; "gcc 12" is not clang. */
static int check_version(const char *path, const char *identity, struct quern_message *why)
{
    const char *word = strstr(identity, "clang version ");

    if (!word)
        return QN_CPU_FAIL(NO_COMPILER, why,
                           "clang=%s: is not clang, --version says \"%.80s\"; " HOW_TO_GET, path,
                           identity);
    if (atoi(word + strlen("clang version ")) < QN_CLANG_OLDEST)
        return QN_CPU_FAIL(NO_COMPILER, why, "clang=%s: %.80s: must be %d or newer; " HOW_TO_GET,
                           path, identity, QN_CLANG_OLDEST);
    return 0;
}

/* Makes clang->identity that of `path`, which may be used, from the cheapest source that knows. The
 * lock is held. */
static int identify(struct qn_clang *clang, const char *path, struct quern_message *why)
{
    const struct qn_backend_options *facts = &clang->options;
    char *name = fact_name_make(path), *identity = NULL;
    int status = 0;

    if (!name)
        return QN_CPU_FAIL(NO_COMPILER, why, "clang=%s: cannot be looked at", path);
    if (clang->fact_name && !strcmp(clang->fact_name, name))
        goto out;
    if (facts->fact_find)
        identity = facts->fact_find(facts->user, name);
    if (!identity || check_version(path, identity, why)) { /* a damaged fact is no fact */
        free(identity);
        identity = NULL;
        if ((status = ask_version(clang, path, &identity, why)) ||
            (status = check_version(path, identity, why)))
            goto out;
        if (facts->fact_put)
            facts->fact_put(facts->user, name, identity);
    }
    free(clang->fact_name);
    free(clang->identity);
    clang->fact_name = name;
    clang->identity = identity;
    name = identity = NULL;
out:
    free(name);
    free(identity);
    return status;
}

/* The identity of `path`, if it may be used. */
static int identity_of(struct qn_clang *clang, const char *path, char *identity, size_t bytes,
                       struct quern_message *why)
{
    pthread_mutex_lock(&clang->lock);
    int status = identify(clang, path, why);
    if (!status)
        snprintf(identity, bytes, "%s", clang->identity);
    pthread_mutex_unlock(&clang->lock);
    return status;
}

int qn_clang_identity(struct qn_clang *clang, char *identity, size_t bytes,
                      struct quern_message *why)
{
    char *path;
    int status = qn_clang_find(clang, &path, why);

    if (status)
        return status;
    status = identity_of(clang, path, identity, bytes, why);
    free(path);
    return status;
}

/* ---- Compile ------------------------------------------------------------------------------- */

/* The command line: what is always there, then the blank-separated options. One allocation holds
 * the pointers and, behind them, the words. */
static char **argv_make(const char *path, const char *options)
{
    static const char *const always[] = {
        "-x", "c", "-", "-c", "-o", "-", "-fno-crash-diagnostics"
    };
    size_t words = 2 + sizeof always / sizeof *always, count = 0, length = strlen(options) + 1;
    char *rest, *word;

    for (const char *at = options; *at; at++)
        words += *at != ' ' && (at == options || at[-1] == ' ');
    char **argv = malloc(words * sizeof *argv + length);
    if (!argv)
        return NULL;
    argv[count++] = (char *)path;
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        argv[count++] = (char *)always[i];
    word = memcpy(argv + words, options, length);
    for (word = strtok_r(word, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        argv[count++] = word;
    argv[count] = NULL;
    return argv;
}

/* The line of the log that says what is wrong: the first error, else the first line. */
static void first_error(const char *log, char *line, size_t bytes)
{
    const char *start = strstr(log, "error: ");

    while (start && start > log && start[-1] != '\n')
        start--;
    if (!start)
        start = log + strspn(log, " \t\r\n");
    int length = (int)strcspn(start, "\r\n");
    snprintf(line, bytes, "%.*s", length < LINE_SHOWN ? length : LINE_SHOWN, start);
}

static int is_elf(const struct qn_process_result *result)
{
    return result->output_bytes > SELFMAG && !memcmp(result->output, ELFMAG, SELFMAG);
}

/* What came of it. With the exit status lost to the host, the object itself has to tell: clang
 * writes it last and in one go. */
static int judge(const struct qn_process_request *request, const struct qn_process_result *result,
                 struct quern_message *why)
{
    char line[LINE_SHOWN + 1];
    int status = check_end(request, result, why);

    if (status)
        return status;
    first_error(result->log, line, sizeof line);
    if (result->end == QN_PROCESS_EXITED && result->code)
        return QN_CPU_FAIL(COMPILE, why, "clang failed (exit %d): %s", result->code,
                           *line ? line : "it said nothing");
    if (is_elf(result))
        return 0;
    if (*line)
        return QN_CPU_FAIL(COMPILE, why, "clang failed (no object): %s", line);
    return QN_CPU_FAIL(COMPILE, why, "clang=%s: wrote %s, not an object", request->path,
                       result->output_bytes ? "something else" : "nothing");
}

static int compile_with(const struct qn_clang *clang, const char *path,
                        const struct qn_compile_request *request, struct qn_compile_result *result,
                        struct quern_message *why)
{
    char **argv = argv_make(path, request->options);
    struct qn_process_request command = { .path = path,
                                          .argv = argv,
                                          .input = request->source,
                                          .input_bytes = request->source_bytes,
                                          .output_limit = OBJECT_LIMIT,
                                          .timeout_s = request->timeout_s };
    struct qn_process_result ran = { 0 };
    char *report = strdup("");
    int status;

    if (!argv || !report)
        status = QN_CPU_FAIL(NO_MEMORY, why, "clang=%s: out of memory", path);
    else if (!(status = run(clang, &command, &ran, why)))
        status = judge(&command, &ran, why);
    if (ran.log) {
        *result = (struct qn_compile_result){ .log = ran.log, .report = report };
        report = ran.log = NULL;
    }
    if (!status) {
        result->blob = ran.output;
        result->blob_bytes = ran.output_bytes;
        ran.output = NULL;
    }
    qn_process_result_fini(&ran);
    free(report);
    free(argv);
    return status;
}

int qn_clang_compile(struct qn_clang *clang, const struct qn_compile_request *request,
                     struct qn_compile_result *result, struct quern_message *why)
{
    char *path, identity[256];

    memset(result, 0, sizeof *result);
    int status = qn_clang_find(clang, &path, why);
    if (status)
        return status;
    status = identity_of(clang, path, identity, sizeof identity, why);
    if (!status)
        status = compile_with(clang, path, request, result, why);
    free(path);
    return status;
}
