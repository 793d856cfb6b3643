/* What a process pays: the first call, a warm start, memory, dispatch, the library's size.
 *
 * A new process is this program started again as `cpu_peers --child=WHAT ARG...`, which does only
 * that and prints one line of numbers that the parent reads:
 *
 *     first CACHE SPEC    context, spec, one call: when the result was there
 *     llvm OBJECT         LLVM loaded and an empty object linked, no quern: LLVM's own memory
 *     dry CACHE           a context, a spec, its generated source: quern where LLVM is not needed
 *     bare                nothing at all
 */
#ifndef BENCH_STARTUP_H
#define BENCH_STARTUP_H

#include "bench/quern_side.h"
#include <dlfcn.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct child_report {
    double main_s, compile_ms; /* main_s: from main() to the result */
    double result_s, wall_s;   /* from outside: from fork to the result, to the end */
    double cpu_s;              /* of the whole process and its compilers */
    long long rss_kb;
    int artifact; /* enum quern_artifact_from; -1: there was none */
};

/* ---- In the child -------------------------------------------------------------------------- */

/* The result was there at end_s. */
static int child_print(double begin_s, double end_s, int artifact, double compile_ms)
{
    printf("%.9f %.9f %.6f %d %lld\n", end_s - begin_s, end_s, compile_ms, artifact,
           (long long)proc_kilobytes("/proc/self/status", "VmRSS"));
    return 0;
}

static int child_complain(struct quern_context *ctx)
{
    fprintf(stderr, "cpu_peers: %s\n", quern_errmsg(ctx));
    return 1;
}

/* Arrays filled with random data where the spec reads, all of them below 1 MB here. */
static int child_arrays(struct quern_context *ctx, const struct quern_spec *spec,
                        struct quern_array *arrays)
{
    struct quern_family_description description;
    quern_family_describe(spec->family, &description);
    for (int i = 0; i < description.array_count; i++) {
        struct quern_shape shape;
        size_t bytes;
        if (quern_spec_shape(ctx, spec, i, &shape))
            return -1;
        if (shape.role == QUERN_ABSENT)
            continue;
        bytes = quern_dtype_bytes(shape.dtype);
        for (int r = 0; r < shape.rank; r++)
            bytes *= (size_t)shape.dims[r];
        arrays[i].data = malloc(bytes);
        if (shape.role == QUERN_OUT)
            memset(arrays[i].data, 0xff, bytes);
        else
            fill_random(arrays[i].data, (int64_t)(bytes / quern_dtype_bytes(shape.dtype)),
                        shape.dtype == QUERN_BF16, 3);
    }
    return 0;
}

static int child_first(double begin_s, const char *cache, const char *text)
{
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } };
    struct quern_kernel *kernel;
    struct quern_report report;
    double end_s, compile_ms = 0;
    if (quern_open(&ctx, cache, 0) || quern_spec_parse(ctx, text, &spec) ||
        child_arrays(ctx, &spec, arrays) || quern_run(ctx, &spec, arrays, NULL))
        return child_complain(ctx);
    end_s = now_s();
    if (quern_dispatch(ctx, &spec, arrays, &kernel))
        return child_complain(ctx);
    quern_kernel_report(kernel, &report);
    for (int i = 0; i < report.step_count; i++)
        compile_ms += report.steps[i].compile_ms;
    child_print(begin_s, end_s, report.artifact, compile_ms);
    quern_context_destroy(ctx);
    return 0;
}

static int child_dry(double begin_s, const char *cache, const char *text)
{
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_request request = QUERN_REQUEST_INIT;
    char *source;
    request.spec = &spec;
    if (quern_open(&ctx, cache, 0) || quern_spec_parse(ctx, text, &spec) ||
        quern_generate(ctx, &request, &source))
        return child_complain(ctx);
    quern_text_free(source);
    child_print(begin_s, now_s(), -1, 0);
    quern_context_destroy(ctx);
    return 0;
}

/* What any program that links one object with ORC has to do, and nothing else. */
static int child_llvm(double begin_s, const char *object)
{
    static const char *const names[] = { "libLLVM.so.19.1", "libLLVM-19.so.1", "libLLVM-19.so",
                                         "/usr/lib/llvm-19/lib/libLLVM.so.1" };
#if defined(__aarch64__)
    static const char *const set_up[] = { "LLVMInitializeAArch64TargetInfo",
                                          "LLVMInitializeAArch64Target",
                                          "LLVMInitializeAArch64TargetMC" };
#else
    static const char *const set_up[] = { "LLVMInitializeX86TargetInfo", "LLVMInitializeX86Target",
                                          "LLVMInitializeX86TargetMC" };
#endif
    void *llvm = NULL, *jit = NULL, *buffer = NULL;
    uint64_t address = 0;
    char *why;
    for (int i = 0; i < 4 && !llvm; i++)
        llvm = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
    if (!llvm)
        return fprintf(stderr, "cpu_peers: %s\n", dlerror()), 1;
    void (*initialize)(void);
    void *(*create)(void **, void *), *(*main_dylib)(void *), *(*add)(void *, void *, void *);
    void *(*lookup)(void *, uint64_t *, const char *);
    int (*read)(const char *, void **, char **);
    for (int i = 0; i < 3; i++)
        if ((*(void **)&initialize = dlsym(llvm, set_up[i])))
            initialize();
    *(void **)&create = dlsym(llvm, "LLVMOrcCreateLLJIT");
    *(void **)&main_dylib = dlsym(llvm, "LLVMOrcLLJITGetMainJITDylib");
    *(void **)&add = dlsym(llvm, "LLVMOrcLLJITAddObjectFile");
    *(void **)&lookup = dlsym(llvm, "LLVMOrcLLJITLookup");
    *(void **)&read = dlsym(llvm, "LLVMCreateMemoryBufferWithContentsOfFile");
    if (!create || !main_dylib || !add || !lookup || !read || create(&jit, NULL) ||
        read(object, &buffer, &why) || add(jit, main_dylib(jit), buffer) ||
        lookup(jit, &address, "empty"))
        return fprintf(stderr, "cpu_peers: LLVM refuses an empty object\n"), 1;
    ((void (*)(void))(uintptr_t)address)();
    return child_print(begin_s, now_s(), -1, 0);
}

static int child_main(double begin_s, char **args)
{
    const char *what = strchr(args[0], '=') + 1;
    if (!strcmp(what, "first") && args[1] && args[2])
        return child_first(begin_s, args[1], args[2]);
    if (!strcmp(what, "dry") && args[1] && args[2])
        return child_dry(begin_s, args[1], args[2]);
    if (!strcmp(what, "llvm") && args[1])
        return child_llvm(begin_s, args[1]);
    return child_print(begin_s, now_s(), -1, 0);
}

/* ---- In the parent ------------------------------------------------------------------------- */

/* Start this program again; 0 when it succeeded and said its numbers. */
static int run_child(const char *what, const char *arg, const char *text,
                     struct child_report *report)
{
    char flag[32], line[256] = "";
    int ends[2], status = -1, fields;
    double begin = now_s();
    struct rusage usage;
    snprintf(flag, sizeof flag, "--child=%s", what);
    fflush(NULL);
    if (pipe(ends))
        return -1;
    pid_t pid = fork();
    if (!pid) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", "cpu_peers", flag, arg, text, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    for (size_t have = 0; pid > 0 && have < sizeof line - 1;) {
        ssize_t got = read(ends[0], line + have, sizeof line - 1 - have);
        if (got <= 0)
            break;
        have += (size_t)got;
    }
    close(ends[0]);
    if (pid < 0 || wait4(pid, &status, 0, &usage) < 0 || status)
        return -1;
    report->wall_s = now_s() - begin;
    report->cpu_s = seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
    fields = sscanf(line, "%lf %lf %lf %d %lld", &report->main_s, &report->result_s,
                    &report->compile_ms, &report->artifact, &report->rss_kb);
    report->result_s -= begin; /* one clock for all processes */
    return fields == 5 ? 0 : -1;
}

/* A cache is three files while SQLite has it open. */
static void remove_cache(const char *cache)
{
    static const char *const ends[] = { "", "-wal", "-shm", "-journal", "-lease", ".lock" };
    char path[PATH_MAX];
    for (int i = 0; i < 6; i++) {
        snprintf(path, sizeof path, "%s%s", cache, ends[i]);
        unlink(path);
    }
}

struct starts {
    int count, wrong_artifact;
    double main_s[MAX_SAMPLES], result_s[MAX_SAMPLES], wall_s[MAX_SAMPLES], cpu_s[MAX_SAMPLES];
    double compile_ms[MAX_SAMPLES], rss_kb[MAX_SAMPLES];
};

/* `count` processes that make one call, each with an empty cache or all with a warm one. */
static int measure_starts(struct starts *starts, const char *cache, const char *text, int count,
                          int is_cold)
{
    int expected = is_cold ? QUERN_FROM_COMPILER : QUERN_FROM_DISK;
    memset(starts, 0, sizeof *starts);
    for (int i = -1; i < count; i++) { /* the first one warms the page cache */
        struct child_report report;
        if (is_cold)
            remove_cache(cache);
        if (run_child("first", cache, text, &report))
            return -1;
        if (i < 0)
            continue;
        starts->wrong_artifact += report.artifact != expected;
        starts->main_s[i] = report.main_s;
        starts->result_s[i] = report.result_s;
        starts->wall_s[i] = report.wall_s;
        starts->compile_ms[i] = report.compile_ms;
        starts->rss_kb[i] = (double)report.rss_kb;
        starts->cpu_s[i] = report.cpu_s;
        starts->count = i + 1;
    }
    return 0;
}

/* An object with one function that does nothing, by the compiler that is there. */
static int make_empty_object(const char *path)
{
    char command[PATH_MAX + 128];
    FILE *file;
    snprintf(command, sizeof command,
             "for c in \"$QUERN_CLANG\" clang-19 clang cc; do command -v \"$c\" >/dev/null 2>&1 && "
             "exec \"$c\" -O1 -x c -c - -o '%s'; done",
             path);
    file = popen(command, "w");
    if (!file)
        return -1;
    fputs("void empty(void);\nvoid empty(void)\n{\n}\n", file);
    return pclose(file);
}

/* Size of libquern.so without symbols, in bytes; -1 if it cannot be found or stripped. */
static double stripped_bytes(const char *directory)
{
    char command[2 * PATH_MAX + 32], path[PATH_MAX];
    struct stat status;
    Dl_info info;
    if (!dladdr((void *)(uintptr_t)quern_version, &info) || !realpath(info.dli_fname, path))
        return -1;
    snprintf(command, sizeof command, "strip -o '%s/stripped.so' '%s' 2>/dev/null", directory,
             path);
    if (system(command))
        return -1;
    snprintf(path, sizeof path, "%s/stripped.so", directory);
    return stat(path, &status) ? -1 : (double)status.st_size;
}

/* ---- Dispatch ------------------------------------------------------------------------------ */

/* Nanoseconds from a spec to its kernel, m taken from `rows` (a power of two of them) in
 * turn; < 0: it failed. */
static double dispatch_ns(struct quern_context *ctx, struct quern_spec *spec,
                          const struct quern_array *arrays, const int64_t *rows, int row_count)
{
    enum { SAMPLES = 101, CALLS = 4096 };
    double samples[SAMPLES];
    struct quern_kernel *kernel;
    int m = param_index(spec, "m"), failed = 0;
    for (int i = 0; i < row_count; i++) { /* compiled and in memory */
        spec->values[m] = rows[i];
        if (quern_dispatch(ctx, spec, arrays, &kernel))
            return -1;
    }
    for (int s = -1; s < SAMPLES; s++) {
        double begin = now_s();
        for (int i = 0; i < CALLS; i++) {
            spec->values[m] = rows[i & (row_count - 1)];
            failed |= quern_dispatch(ctx, spec, arrays, &kernel);
        }
        if (s >= 0)
            samples[s] = (now_s() - begin) / CALLS * 1e9;
    }
    return failed ? -1 : median_of(samples, SAMPLES);
}
#endif
