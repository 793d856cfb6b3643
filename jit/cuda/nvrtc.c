/* Compiling with NVRTC, dlopen'ed when something has to be compiled.
 *
 *     find      the file given, else libnvrtc.so.MAJOR: the newest major that the driver takes,
 *               12.9 or newer (an older one is passed over), in
 *                 1. nvrtc/ beside this library, or beside the build that this program is of
 *                 2. LD_LIBRARY_PATH
 *                 3. CUDA_HOME, CUDA_PATH, /usr/local/cuda
 *                 4. the system's directories
 *                 5. wherever else the loader looks
 *     identity  fact "nvrtc PATH SIZE MTIME" -> "nvrtc 13.0.88"
 *                 known here? -> known to the store? -> load it and ask, tell the store
 *     compile   load, compile to a cubin, judge its log (ptxas_report.c)
 *
 * Invariants: nothing is loaded to find a file in 1 to 4 (but for one of CUDA 12 whose names do not
 * tell its version, which is asked), nor for an identity that is known; what was loaded is never
 * unloaded (its threads and static state outlive any one user). Nothing but the
 * library, the source and the options decides the cubin: the current directory is no include path,
 * the program has a fixed name. The lock is never held while a kernel compiles; it is held over
 * loading and asking, so that many threads at start do that once.
 *
 * NVRTC has no version call that tells builds of a release apart; the header of the PTX that it
 * writes does, so that is asked for an empty program.
 *
 * NVRTC opens libnvrtc-builtins.so.MAJOR.MINOR by its bare name, and not every build of it looks
 * beside itself: the one in its directory is opened first, which the bare name then finds.
 *
 * NVRTC runs in this process: a compilation cannot be killed, request->timeout_s is not honoured,
 * and what crashes the compiler crashes its host. */
#define _GNU_SOURCE
#include "jit/cuda/nvrtc.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jit/cuda/cuda_driver.h"
#include "jit/text.h"

enum {
    OLDEST_MAJOR = 12,
    OLDEST_MINOR = 9,  /* --no-cache; ptxas before it serializes the wgmma of gemm_sm90 (C7515) */
    NEWEST_MAJOR = 15, /* looked for where no driver sets a limit */
    WHEEL_MAJOR = 13,  /* what `make deps` gets */
    MAX_PLACES = 48,
    MAX_OPTIONS = 32,
    LINE_SHOWN = 300
};

/* nvrtcResult, as far as it is told apart here. */
enum { NVRTC_OUT_OF_MEMORY = 1, NVRTC_COMPILATION = 6 };

struct api {
#define X(type, name, parameters) type(*name) parameters;
#include "jit/cuda/nvrtc.def"
#undef X
};

struct qn_nvrtc {
    struct qn_backend_options options;
    int driver_major; /* 0: no driver */
    char *given;      /* absolute; NULL: search */
    char *places[MAX_PLACES];
    int place_count;

    pthread_mutex_t lock; /* of what follows; api does not change once is_loaded */
    bool is_loaded;
    struct api api;
    int major, minor;
    char *fact_name, *identity;
};

/* A formatted text, malloc'ed, or NULL. */
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

/* ---- Where to look ------------------------------------------------------------------------- */

/* Takes `path`. A relative one would make the compiler depend on where the host happens to be. */
static void place_add(struct qn_nvrtc *nvrtc, char *path)
{
    if (path && *path == '/' && nvrtc->place_count < MAX_PLACES)
        nvrtc->places[nvrtc->place_count++] = path;
    else
        free(path);
}

/* The file that this code was loaded from, absolute; malloc'ed. The loader's name for the program
 * itself is empty, and argv[0] may be anything. */
static char *own_file(void)
{
    struct link_map *map = NULL;
    Dl_info info;

    if (!dladdr1((const void *)(uintptr_t)qn_nvrtc_open, &info, (void **)&map, RTLD_DL_LINKMAP) ||
        !map || !map->l_name || !*map->l_name)
        return realpath("/proc/self/exe", NULL);
    return realpath(map->l_name, NULL);
}

/* 1. Programs of a build lie in folders of it. No other parent is looked into: anyone might be able
 * to write there. */
static void add_beside(struct qn_nvrtc *nvrtc)
{
    static const char *const inner[] = { "tests", "gpu", "examples", "bench", "asan", "tsan" };
    char *directory = own_file(), *slash;
    bool is_inner = true;

    while (directory && is_inner && (slash = strrchr(directory, '/'))) {
        *slash = '\0'; /* first the file's name, then such folders */
        slash = strrchr(directory, '/');
        is_inner = false;
        for (size_t i = 0; slash && i < sizeof inner / sizeof *inner; i++)
            is_inner |= !strcmp(slash + 1, inner[i]);
    }
    if (directory)
        place_add(nvrtc, text_make("%s/nvrtc", directory));
    free(directory);
}

/* 2 */
static void add_library_path(struct qn_nvrtc *nvrtc)
{
    const char *directory = getenv("LD_LIBRARY_PATH");

    while (directory && *directory) {
        size_t length = strcspn(directory, ":");
        place_add(nvrtc, strndup(directory, length));
        directory += length + (directory[length] == ':');
    }
}

/* 3 */
static void add_toolkit(struct qn_nvrtc *nvrtc, const char *root)
{
    static const char *const folders[] = {
#ifdef __aarch64__
        "lib64", "lib", "targets/sbsa-linux/lib", "targets/aarch64-linux/lib"
#else
        "lib64", "lib", "targets/x86_64-linux/lib"
#endif
    };
    for (size_t i = 0; root && *root && i < sizeof folders / sizeof *folders; i++)
        place_add(nvrtc, text_make("%s/%s", root, folders[i]));
}

static void add_places(struct qn_nvrtc *nvrtc)
{
    static const char *const system[] = {
#ifdef __aarch64__
        "/usr/lib/aarch64-linux-gnu",
#else
        "/usr/lib/x86_64-linux-gnu",
#endif
        "/usr/lib64", "/usr/lib", "/usr/local/lib"
    };
    add_beside(nvrtc);
    add_library_path(nvrtc);
    add_toolkit(nvrtc, getenv("CUDA_HOME"));
    add_toolkit(nvrtc, getenv("CUDA_PATH"));
    add_toolkit(nvrtc, "/usr/local/cuda");
    for (size_t i = 0; i < sizeof system / sizeof *system; i++)
        place_add(nvrtc, strdup(system[i]));
}

int qn_nvrtc_open(const struct qn_backend_options *options, int driver_version,
                  struct qn_nvrtc **out, struct quern_message *why)
{
    const char *given = options->nvrtc && *options->nvrtc ? options->nvrtc : NULL;
    char *directory = given && *given != '/' ? getcwd(NULL, 0) : NULL;
    struct qn_nvrtc *nvrtc = calloc(1, sizeof *nvrtc);

    if (nvrtc && given) /* made absolute now: it means what it meant when it was given */
        nvrtc->given = directory ? text_make("%s/%s", directory, given) : strdup(given);
    free(directory);
    if (!nvrtc || (given && !nvrtc->given)) {
        free(nvrtc);
        return QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
    }
    nvrtc->options = *options;
    nvrtc->driver_major = driver_version / 1000;
    pthread_mutex_init(&nvrtc->lock, NULL);
    add_places(nvrtc);
    *out = nvrtc;
    return QUERN_OK;
}

void qn_nvrtc_close(struct qn_nvrtc *nvrtc)
{
    if (!nvrtc)
        return;
    for (int i = 0; i < nvrtc->place_count; i++)
        free(nvrtc->places[i]);
    pthread_mutex_destroy(&nvrtc->lock);
    free(nvrtc->given);
    free(nvrtc->fact_name);
    free(nvrtc->identity);
    free(nvrtc);
}

/* ---- Find ---------------------------------------------------------------------------------- */

static bool is_file(const char *path)
{
    struct stat status;
    return !stat(path, &status) && S_ISREG(status.st_mode) && !access(path, R_OK);
}

/* Where the loader has it, by asking it to load it; malloc'ed or NULL. Places 1 to 4 do without, so
 * this is for a directory of ld.so.conf's. */
static char *ask_loader(const char *name)
{
    void *library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    struct link_map *map = NULL;
    char *path = NULL;

    if (library && !dlinfo(library, RTLD_DI_LINKMAP, &map) && map)
        path = realpath(map->l_name, NULL);
    if (library)
        dlclose(library);
    return path;
}

/* A library that the search passed over. */
struct older {
    char *path;
    int major, minor;
};

static bool is_older(int major, int minor)
{
    return major < OLDEST_MAJOR || (major == OLDEST_MAJOR && minor < OLDEST_MINOR);
}

/* What a library says of itself, -1 if it is none. It stays loaded. */
static int ask_minor(const char *path)
{
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    int (*version)(int *major, int *minor), major, minor = -1;
    void *address = library ? dlsym(library, "nvrtcVersion") : NULL;

    memcpy(&version, &address, sizeof address);
    if (address && version(&major, &minor))
        minor = -1;
    if (library)
        dlclose(library);
    return minor;
}

/* The minor version of the libnvrtc.so.12 at `path`, -1 if it cannot be told. It is in the name of
 * the file that a toolkit's link leads to, libnvrtc.so.12.4.127, or in that of the second library
 * beside it, libnvrtc-builtins.so.12.4, without which NVRTC compiles nothing. */
static int minor_of(const char *path)
{
    char *real = realpath(path, NULL), *slash = real ? strrchr(real, '/') : NULL;
    int minor = -1;

    if (slash)
        sscanf(slash, "/libnvrtc.so.12.%d", &minor);
    for (int beside = OLDEST_MINOR; slash && minor < 0 && beside >= 0; beside--) {
        char *builtins =
            text_make("%.*s/libnvrtc-builtins.so.12.%d", (int)(slash - real), real, beside);
        if (builtins && is_file(builtins))
            minor = beside;
        free(builtins);
    }
    free(real);
    return minor >= 0 ? minor : ask_minor(path);
}

/* True if the library is one to be passed over; *older is then the first such. One that cannot be
 * asked is not: loading it says what is wrong. */
static bool is_passed_over(int major, const char *path, struct older *older)
{
    int minor = major > OLDEST_MAJOR ? -1 : minor_of(path);

    if (minor < 0 || !is_older(major, minor))
        return false;
    if (!older->path)
        *older = (struct older){ strdup(path), major, minor };
    return true;
}

static char *find_major(const struct qn_nvrtc *nvrtc, int major, struct older *older)
{
    char name[32], *path;

    snprintf(name, sizeof name, "libnvrtc.so.%d", major);
    for (int i = 0; i < nvrtc->place_count; i++) {
        path = text_make("%s/%s", nvrtc->places[i], name);
        if (path && is_file(path) && !is_passed_over(major, path, older))
            return path;
        free(path);
    }
    path = ask_loader(name);
    if (path && is_passed_over(major, path, older)) {
        free(path);
        path = NULL;
    }
    return path;
}

static char *find_between(const struct qn_nvrtc *nvrtc, int newest, int oldest, struct older *older)
{
    char *path = NULL;
    for (int major = newest; major >= oldest && !path; major--)
        path = find_major(nvrtc, major, older);
    return path;
}

/* How to get one that the driver takes. */
static const char *how_to_get(const struct qn_nvrtc *nvrtc)
{
    if (nvrtc->driver_major == 12)
        return "`make deps` gets it, or pip install nvidia-cuda-nvrtc-cu12, or CUDA toolkit "
               "12.9; QUERN_NVRTC names its file (a pip install is not searched)";
    return "`make deps` gets it, or pip install nvidia-cuda-nvrtc, or the CUDA toolkit; "
           "QUERN_NVRTC names its file (a pip install is not searched)";
}

static int fail_older(const struct qn_nvrtc *nvrtc, const struct older *older,
                      struct quern_message *why)
{
    return QN_CUDA_FAIL(NO_COMPILER, why,
                        "nvrtc=%s: is libnvrtc %d.%d: quern needs %d.%d or newer; %s", older->path,
                        older->major, older->minor, OLDEST_MAJOR, OLDEST_MINOR, how_to_get(nvrtc));
}

/* There is none that the driver takes, or only `older`. */
static int fail_missing(const struct qn_nvrtc *nvrtc, const struct older *older,
                        struct quern_message *why)
{
    struct older none = { 0 };
    int limit = nvrtc->driver_major, status;
    char *newer = NULL;

    if (older->path)
        return fail_older(nvrtc, older, why);
    if (limit)
        newer = find_between(nvrtc, NEWEST_MAJOR, limit + 1, &none);
    if (newer && limit < OLDEST_MAJOR)
        status = QN_CUDA_FAIL(NO_COMPILER, why,
                              "nvrtc=%s: is newer than the driver, which is CUDA %d's; update the "
                              "driver",
                              newer, limit);
    else if (newer)
        status = QN_CUDA_FAIL(NO_COMPILER, why,
                              "nvrtc=%s: is newer than the driver, which is CUDA %d's; update the "
                              "driver or get libnvrtc.so.%d: %s",
                              newer, limit, limit, how_to_get(nvrtc));
    else
        status = QN_CUDA_FAIL(NO_COMPILER, why,
                              "nvrtc=libnvrtc.so.%d: not found, nor an older one down to %d.%d, in "
                              "%s, on the loader's path, in CUDA_HOME or /usr/local/cuda; %s",
                              limit ? limit : WHEEL_MAJOR, OLDEST_MAJOR, OLDEST_MINOR,
                              nvrtc->place_count ? nvrtc->places[0] : "nvrtc/", how_to_get(nvrtc));
    free(none.path);
    free(newer);
    return status;
}

static int find_given(const struct qn_nvrtc *nvrtc, char **path, struct quern_message *why)
{
    char *given;

    if (!is_file(nvrtc->given))
        return QN_CUDA_FAIL(NO_COMPILER, why, "nvrtc=%s: %s; %s", nvrtc->given,
                            access(nvrtc->given, F_OK) ? "no such file"
                                                       : "not a file that can be read",
                            how_to_get(nvrtc));
    if (!(given = strdup(nvrtc->given)))
        return QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
    *path = given;
    return QUERN_OK;
}

int qn_nvrtc_find(struct qn_nvrtc *nvrtc, char **path, struct quern_message *why)
{
    struct older older = { 0 };
    char *found;
    int status = QUERN_OK;

    if (nvrtc->given)
        return find_given(nvrtc, path, why);
    found = find_between(nvrtc, nvrtc->driver_major ? nvrtc->driver_major : NEWEST_MAJOR,
                         OLDEST_MAJOR, &older);
    if (found)
        *path = found;
    else
        status = fail_missing(nvrtc, &older, why);
    free(older.path);
    return status;
}

/* ---- Load ---------------------------------------------------------------------------------- */

/* The first entry point that the library lacks, or NULL. */
static const char *resolve(void *library, struct api *api)
{
    static const struct {
        const char *name;
        size_t offset;
    } entries[] = {
#define X(type, name, parameters) { #name, offsetof(struct api, name) },
#include "jit/cuda/nvrtc.def"
#undef X
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        void *address = dlsym(library, entries[i].name);
        if (!address)
            return entries[i].name;
        memcpy((char *)api + entries[i].offset, &address, sizeof address);
    }
    return NULL;
}

/* A failure is no news: NVRTC says so itself if it does not find another. */
static void open_builtins(const char *path, int major, int minor)
{
    char *real = realpath(path, NULL), *builtins = NULL;
    if (real)
        builtins = text_make("%.*s/libnvrtc-builtins.so.%d.%d", (int)(strrchr(real, '/') - real),
                             real, major, minor);
    if (builtins)
        dlopen(builtins, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    free(builtins);
    free(real);
}

/* The lock is held. */
static int load_file(struct qn_nvrtc *nvrtc, const char *path, struct quern_message *why)
{
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    const char *missing;

    if (!library)
        return QN_CUDA_FAIL(NO_COMPILER, why, "nvrtc=%s: cannot be loaded: %.200s", path,
                            dlerror());
    missing = resolve(library, &nvrtc->api);
    if (missing || nvrtc->api.nvrtcVersion(&nvrtc->major, &nvrtc->minor)) {
        dlclose(library);
        return QN_CUDA_FAIL(NO_COMPILER, why, "nvrtc=%s: is no NVRTC %d.%d or newer: %s%s", path,
                            OLDEST_MAJOR, OLDEST_MINOR,
                            missing ? "it lacks " : "nvrtcVersion fails", missing ? missing : "");
    }
    if (is_older(nvrtc->major, nvrtc->minor)) {
        const struct older older = { (char *)path, nvrtc->major, nvrtc->minor };
        dlclose(library);
        return fail_older(nvrtc, &older, why);
    }
    open_builtins(path, nvrtc->major, nvrtc->minor);
    nvrtc->is_loaded = true;
    return QUERN_OK;
}

static int load(struct qn_nvrtc *nvrtc, struct quern_message *why)
{
    char *path;

    if (nvrtc->is_loaded)
        return QUERN_OK;
    int status = qn_nvrtc_find(nvrtc, &path, why);
    if (status)
        return status;
    status = load_file(nvrtc, path, why);
    free(path);
    return status;
}

/* ---- A program of NVRTC's ------------------------------------------------------------------ */

/* One of the texts or blobs that a program ends with, malloc'ed and terminated; NULL if there is
 * none. */
static char *take(void *program, int (*get_bytes)(void *, size_t *), int (*get)(void *, char *),
                  size_t *bytes)
{
    char *data;

    *bytes = 0;
    if (get_bytes(program, bytes) || !(data = malloc(*bytes + 1)))
        return NULL;
    data[*bytes] = '\0';
    if (!*bytes || get(program, data)) {
        free(data);
        return NULL;
    }
    return data;
}

/* nvrtcResult; *program is to be destroyed unless NULL. */
static int compile(const struct api *api, const char *source, int count, const char *const *options,
                   void **program)
{
    int result = api->nvrtcCreateProgram(program, source, "quern", 0, NULL, NULL);
    return result ? result : api->nvrtcCompileProgram(*program, count, options);
}

/* ---- Identity ------------------------------------------------------------------------------ */

/* What the identity is remembered under; NULL if the file has gone or memory ran out. */
static char *fact_name_make(const char *path)
{
    struct stat status;

    if (stat(path, &status))
        return NULL;
    return text_make("nvrtc %s %lld %lld.%09ld", path, (long long)status.st_size,
                     (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

/* "nvrtc 13.0.88": a fact may be damaged, or be of one that is too old. */
static bool is_identity(const char *text)
{
    int major, minor, end = 0;
    return text && sscanf(text, "nvrtc %d.%d.%*d%n", &major, &minor, &end) == 2 && end &&
           !text[end] && !is_older(major, minor);
}

/* PTX opens with comments, one of which is "Cuda compilation tools, release 13.0, V13.0.88". */
static int ask_version(const struct qn_nvrtc *nvrtc, char **identity, struct quern_message *why)
{
    static const char *const options[] = { "--gpu-architecture=compute_90" };
    const struct api *api = &nvrtc->api;
    void *program = NULL;
    size_t bytes;
    int result = compile(api, "", 1, options, &program), build = 0;
    char *ptx = result ? NULL : take(program, api->nvrtcGetPTXSize, api->nvrtcGetPTX, &bytes);
    char *log = program && result
                    ? take(program, api->nvrtcGetProgramLogSize, api->nvrtcGetProgramLog, &bytes)
                    : NULL;
    const char *version = ptx ? strstr(ptx, ", V") : NULL;

    if (version)
        sscanf(version, ", V%*d.%*d.%d", &build);
    if (result)
        quern_refuse(why, "nvrtc=%d.%d: cannot compile: %s: %.*s", nvrtc->major, nvrtc->minor,
                     api->nvrtcGetErrorString(result), log ? (int)strcspn(log, "\n") : 0,
                     log ? log : "");
    else
        *identity = text_make("nvrtc %d.%d.%d", nvrtc->major, nvrtc->minor, build);
    if (program)
        api->nvrtcDestroyProgram(&program);
    free(ptx);
    free(log);
    if (result)
        return QUERN_NO_COMPILER;
    return *identity ? QUERN_OK : QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
}

/* Makes nvrtc->identity that of the library at `path`, from the cheapest source that knows. The
 * lock is held. */
static int identify(struct qn_nvrtc *nvrtc, const char *path, struct quern_message *why)
{
    const struct qn_backend_options *facts = &nvrtc->options;
    char *name = fact_name_make(path), *identity = NULL;
    int status = QUERN_OK;

    if (!name)
        return QN_CUDA_FAIL(NO_COMPILER, why, "nvrtc=%s: cannot be looked at", path);
    if (nvrtc->fact_name && !strcmp(nvrtc->fact_name, name))
        goto out;
    if (facts->fact_find)
        identity = facts->fact_find(facts->user, name);
    if (!is_identity(identity)) {
        free(identity);
        identity = NULL;
        if ((status = load(nvrtc, why)) || (status = ask_version(nvrtc, &identity, why)))
            goto out;
        if (facts->fact_put)
            facts->fact_put(facts->user, name, identity);
    }
    free(nvrtc->fact_name);
    free(nvrtc->identity);
    nvrtc->fact_name = name;
    nvrtc->identity = identity;
    name = identity = NULL;
out:
    free(name);
    free(identity);
    return status;
}

/* What is loaded is what compiles, whatever has become of its file. */
int qn_nvrtc_identity(struct qn_nvrtc *nvrtc, char *identity, size_t bytes,
                      struct quern_message *why)
{
    int status = QUERN_OK;
    char *path = NULL;

    pthread_mutex_lock(&nvrtc->lock);
    if (!nvrtc->is_loaded || !nvrtc->identity) {
        status = qn_nvrtc_find(nvrtc, &path, why);
        if (!status)
            status = identify(nvrtc, path, why);
    }
    if (!status)
        snprintf(identity, bytes, "%s", nvrtc->identity);
    pthread_mutex_unlock(&nvrtc->lock);
    free(path);
    return status;
}

/* ---- Compile ------------------------------------------------------------------------------- */

/* The current directory is where the host happens to be: it is no place for headers. NVRTC's own
 * cache of results would leave out the report that ptxas gives. */
void qn_nvrtc_options(const struct quern_target *target, char *text, size_t bytes)
{
    snprintf(text, bytes,
             "--gpu-architecture=sm_%d%s --std=c++17 --no-source-include --no-cache "
             "--ptxas-options=-v",
             target->sm, target->sm_suffix ? "a" : "");
}

/* The line of the log that says what is wrong: the front end's first error, else ptxas', else the
 * first line. */
static void first_error(const char *log, char *line, size_t bytes)
{
    static const char *const marks[] = { "error: ", "error   : ", "fatal   : ", "error" };
    const char *start = NULL;

    for (size_t i = 0; log && !start && i < sizeof marks / sizeof *marks; i++)
        start = strstr(log, marks[i]);
    while (start && start > log && start[-1] != '\n')
        start--;
    if (!start)
        start = log ? log + strspn(log, " \t\r\n") : "";
    int length = (int)strcspn(start, "\r\n");
    snprintf(line, bytes, "%.*s", length < LINE_SHOWN ? length : LINE_SHOWN, start);
}

static int fail_target(const struct qn_nvrtc *nvrtc, const struct quern_target *target,
                       struct quern_message *why)
{
    char list[256] = "", name[16];
    int count = 0, archs[128];

    if (!nvrtc->api.nvrtcGetNumSupportedArchs(&count) && count <= 128 &&
        !nvrtc->api.nvrtcGetSupportedArchs(archs)) {
        for (int i = 0; i < count; i++) {
            snprintf(name, sizeof name, "sm_%d", archs[i]);
            qn_list_add(list, sizeof list, name);
        }
    }
    return QN_CUDA_FAIL(UNSUPPORTED, why,
                        "target=sm_%d%s: NVRTC %d.%d knows %s, with an a from sm_90 up", target->sm,
                        target->sm_suffix ? "a" : "", nvrtc->major, nvrtc->minor, list);
}

/* NVRTC's own line, or that of a stage behind it. A line of source is indented. */
static bool is_about_target(const char *log)
{
    return log && (!strncmp(log, "nvrtc: error: invalid value for --gpu-architecture", 50) ||
                   strstr(log, "invalid or no value specified with --nv_arch"));
}

/* What NVRTC's failure is called here. */
static int fail_compile(const struct qn_nvrtc *nvrtc, const struct qn_compile_request *request,
                        int result, const char *log, struct quern_message *why)
{
    char line[LINE_SHOWN + 1];

    if (result == NVRTC_OUT_OF_MEMORY)
        return QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
    if (is_about_target(log))
        return fail_target(nvrtc, request->target, why);
    first_error(log, line, sizeof line);
    if (result == NVRTC_COMPILATION)
        return QN_CUDA_FAIL(COMPILE, why, "nvrtc failed: %s", *line ? line : "it said nothing");
    return QN_CUDA_FAIL(COMPILE, why, "nvrtc failed (%s): %s",
                        nvrtc->api.nvrtcGetErrorString(result), *line ? line : "it said nothing");
}

/* The blank-separated options as a list; `text` is cut up. */
static int split(char *text, const char *options[MAX_OPTIONS])
{
    char *rest;
    int count = 0;

    for (char *word = strtok_r(text, " ", &rest); word && count < MAX_OPTIONS;
         word = strtok_r(NULL, " ", &rest))
        options[count++] = word;
    return count;
}

/* From a program that was compiled with `failure` as its nvrtcResult. */
static int collect(const struct qn_nvrtc *nvrtc, const struct qn_compile_request *request,
                   int failure, void *program, struct qn_compile_result *result,
                   struct quern_message *why)
{
    const struct api *api = &nvrtc->api;
    size_t bytes;

    result->log = program
                      ? take(program, api->nvrtcGetProgramLogSize, api->nvrtcGetProgramLog, &bytes)
                      : NULL;
    if (!result->log)
        result->log = strdup("");
    if (failure)
        return fail_compile(nvrtc, request, failure, result->log, why);
    int status = qn_ptxas_report(result->log ? result->log : "", &result->report, why);
    if (status)
        return status;
    result->blob = take(program, api->nvrtcGetCUBINSize, api->nvrtcGetCUBIN, &result->blob_bytes);
    if (!result->blob)
        return QN_CUDA_FAIL(COMPILE, why, "nvrtc failed: it gave no cubin");
    return result->log ? QUERN_OK : QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
}

int qn_nvrtc_compile(struct qn_nvrtc *nvrtc, const struct qn_compile_request *request,
                     struct qn_compile_result *result, struct quern_message *why)
{
    char *source = strndup(request->source, request->source_bytes);
    char *words = strdup(request->options);
    const char *options[MAX_OPTIONS];
    void *program = NULL;
    int status;

    memset(result, 0, sizeof *result);
    pthread_mutex_lock(&nvrtc->lock);
    status = load(nvrtc, why);
    pthread_mutex_unlock(&nvrtc->lock);
    if (!status && (!source || !words))
        status = QN_CUDA_FAIL(NO_MEMORY, why, "nvrtc: out of memory");
    if (!status) {
        int failure = compile(&nvrtc->api, source, split(words, options), options, &program);
        status = collect(nvrtc, request, failure, program, result, why);
    }
    if (program)
        nvrtc->api.nvrtcDestroyProgram(&program);
    free(source);
    free(words);
    return status;
}
