/* cpu_peers: quern beside OpenBLAS and oneDNN on this machine, and the roof over all of them.
 *
 *     facts      what this machine and the peers are
 *     1. roof    multiply-adds in registers; bytes read from memory                 roof.h
 *     2. cores   which OPENBLAS_CORETYPE is fastest here, for many rows, few, one   blas_peer.h
 *     3. cases   each product by everyone in one process, interleaved               contest.h
 *     4. starts  first call, warm process, memory, dispatch, size                   startup.h
 *     table      one line a figure: ours, the peer's, the ratio, what is wanted     figures.h
 *
 * Every part is a forked process that adds to results in shared memory: OpenBLAS chooses its
 * kernels when it is loaded, no case inherits another's heap or thread teams, and a part that dies
 * is a line in the table. A peer that is not installed is said and skipped. Exit status 0 unless
 * the program itself could not run: a figure that falls short is the table's to say.
 *
 * Does not: pin threads, change clocks, need to be root. bench/README.md says how to read it.
 */
#include "bench/blas_peer.h"
#include "bench/dnnl_peer.h"
#include "bench/startup.h"
#include <getopt.h>
#include <sched.h>
#include <sys/utsname.h>

enum { ROWS_MANY, ROWS_FEW, ROWS_ONE, ROWS_CLASSES };

struct run {
    struct results results;
    int threads, is_quick, is_json;
    const char *only;
    char directory[64];
    double core_s[ROWS_CLASSES]; /* of the core types tried: the shortest call */
    char core[ROWS_CLASSES][32]; /* and its name; "": OpenBLAS's own choice */
    char trial[32];              /* the one being tried */
};

struct gemm_case {
    int64_t m, n, k;
    int is_bf16, is_extra;
    double onednn, openblas, stream; /* ratios wanted; 0: none */
};

static const struct gemm_case cases[] = {
    { 2048, 2048, 2048, 0, 0, 0.85, 0.85, 0 }, { 2048, 2048, 2048, 1, 0, 0.75, 0, 0 },
    { 1, 4096, 4096, 0, 0, 0, 0, 0.9 },        { 1, 4096, 4096, 1, 0, 0, 0, 0.9 },
    { 16, 4096, 4096, 0, 0, 0, 1.0, 0 },       { 16, 4096, 4096, 1, 0, 0, 0, 0 },
    { 128, 4096, 14336, 1, 1, 0, 0, 0 },       { 512, 14336, 4096, 1, 1, 0, 0, 0 },
    { 128, 14336, 4096, 0, 1, 0, 0, 0 },       { 1, 14336, 4096, 1, 1, 0, 0, 0 },
};

/* Bytes of weights between two uses of the same: beyond any private cache. */
static const int64_t ROTATION_BYTES = INT64_C(256) << 20;

/* ---- A part is a process ------------------------------------------------------------------- */

static void run_part(struct run *run, const char *name, unsigned limit_s,
                     void (*part)(struct run *run, const struct gemm_case *what),
                     const struct gemm_case *what)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) {
        alarm(limit_s);
        omp_set_num_threads(run->threads);
        part(run, what);
        fflush(NULL);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        add_fact(&run->results, "failed", "%s: could not be started", name);
    else if (WIFSIGNALED(status))
        add_fact(&run->results, "failed", "%s: %s", name,
                 WTERMSIG(status) == SIGALRM ? "took too long" : strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        add_fact(&run->results, "failed", "%s: exit status %d", name, WEXITSTATUS(status));
}

/* ---- Facts --------------------------------------------------------------------------------- */

static void cpu_model(char *model, size_t bytes)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(model, bytes, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10))
            continue;
        colon[1 + strcspn(colon + 1, "\n")] = 0;
        snprintf(model, bytes, "%s", colon + 2);
        break;
    }
    if (file)
        fclose(file);
}

static void add_machine_facts(struct run *run)
{
    char model[128], date[64];
    struct utsname system_name;
    time_t now = time(NULL);
    double load[3] = { 0 };
    cpu_model(model, sizeof model);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M %Z", localtime(&now));
    uname(&system_name);
    if (getloadavg(load, 3) < 1)
        load[0] = 0;
    add_fact(&run->results, "date", "%s%s", date, run->is_quick ? ", --quick" : "");
    add_fact(&run->results, "processor", "%s (%s), %ld online, L2 %ld KiB, L3 %ld KiB", model,
             system_name.machine, sysconf(_SC_NPROCESSORS_ONLN),
             sysconf(_SC_LEVEL2_CACHE_SIZE) >> 10, sysconf(_SC_LEVEL3_CACHE_SIZE) >> 10);
    add_fact(&run->results, "memory", "%.1f GB available",
             (double)proc_kilobytes("/proc/meminfo", "MemAvailable") / 1e6);
    add_fact(&run->results, "system", "%s %s, load %.2f", system_name.sysname, system_name.release,
             load[0]);
    add_fact(&run->results, "threads", "%d for everyone%s", run->threads,
             run->threads == 1 ? ", timed by its own clock" : "");
    add_fact(&run->results, "quern", "%s, this program by " __VERSION__, quern_version());
}

static void part_peer_facts(struct run *run, const struct gemm_case *what)
{
    struct blas blas;
    struct dnnl dnnl;
    (void)what;
    if (blas_open(&blas, run->threads))
        add_fact(&run->results, "OpenBLAS", "not here: skipped");
    else
        add_fact(&run->results, "OpenBLAS", "%s", blas.config());
    if (dnnl_open(&dnnl))
        add_fact(&run->results, "oneDNN", "not here: skipped");
    else
        add_fact(&run->results, "oneDNN", "%d.%d.%d", dnnl.version->major, dnnl.version->minor,
                 dnnl.version->patch);
}

/* ---- 1. The roof --------------------------------------------------------------------------- */

static void part_roof(struct run *run, const struct gemm_case *what)
{
    struct roof *roof = &run->results.roof;
    int64_t matrix = INT64_C(4096) * 4096 * 4;
    (void)what;
    roof_measure(roof, run->threads, ROTATION_BYTES + matrix, run->is_quick ? 0.1 : 0.3);
    fprintf(talk, "\nroof%29s%14s\n", "1 thread", "all threads");
    fprintf(talk, "  f32 multiply-add %12.0f %14.0f GFLOPS\n", roof->f32_gflops[0],
            roof->f32_gflops[1]);
    if (roof->bf16_gflops[0] > 0)
        fprintf(talk, "  bf16 vdpbf16ps   %12.0f %14.0f GFLOPS\n", roof->bf16_gflops[0],
                roof->bf16_gflops[1]);
    if (roof->amx_gflops[0] > 0)
        fprintf(talk, "  bf16 AMX         %12.0f %14.0f GFLOPS\n", roof->amx_gflops[0],
                roof->amx_gflops[1]);
    fprintf(talk, "  streaming read   %12.1f %14.1f GB/s of %.0f MB\n", roof->stream_gbps[0],
            roof->stream_gbps[1], (double)roof->stream_bytes * 1e-6);
    fprintf(talk, "    fastest with %d streams a thread, %lld KiB apart, prefetching %d bytes\n",
            roof->pattern.streams, (long long)roof->pattern.span >> 10, roof->pattern.ahead);
}

/* ---- 2. OpenBLAS's core types -------------------------------------------------------------- */

static void workload_init(struct workload *work, const struct run *run,
                          const struct gemm_case *what)
{
    memset(work, 0, sizeof *work);
    work->m = what->m;
    work->n = what->n;
    work->k = what->k;
    work->is_bf16 = what->is_bf16;
    work->threads = run->threads;
    if (what->m == what->n && what->n == what->k)
        snprintf(work->label, sizeof work->label, "%s %lld^3", what->is_bf16 ? "bf16" : "f32",
                 (long long)what->m);
    else
        snprintf(work->label, sizeof work->label, "%s m=%lld n=%lld k=%lld",
                 what->is_bf16 ? "bf16" : "f32", (long long)what->m, (long long)what->n,
                 (long long)what->k);
}

/* The core type that is loaded, for many rows, few, and one: its shortest call on one thread, in
 * that thread's own time, which a busy machine hardly changes. */
static void part_core_trial(struct run *run, const struct gemm_case *what)
{
    static const struct gemm_case trials[ROWS_CLASSES] = { { .m = 1024, .n = 1024, .k = 1024 },
                                                           { .m = 16, .n = 4096, .k = 4096 },
                                                           { .m = 1, .n = 4096, .k = 4096 } };
    struct blas blas;
    (void)what;
    if (*run->trial)
        setenv("OPENBLAS_CORETYPE", run->trial, 1);
    if (blas_open(&blas, 1) || (*run->trial && strcasecmp(blas.core(), run->trial)))
        return; /* unknown to this OpenBLAS: it would be another one again */
    for (int i = 0; i < ROWS_CLASSES; i++) {
        struct contest contest = { .results = &run->results };
        double best = INFINITY;
        workload_init(&contest.work, run, &trials[i]);
        contest.work.threads = 1;
        workload_fill(&contest.work, i == ROWS_MANY ? 0 : ROTATION_BYTES / 4);
        blas_enter(&contest, &blas);
        for (int c = 0; c < 8; c++) /* the last to enter is sgemv where there is one row */
            best = fmin(best, timed_call(&contest.entries[contest.count - 1]));
        if (run->core_s[i] > 0 && run->core_s[i] <= best)
            continue;
        run->core_s[i] = best;
        snprintf(run->core[i], sizeof run->core[i], "%s", run->trial);
    }
}

static void choose_cores(struct run *run)
{
    static const char *const names[] = {
        "",
#if defined(__x86_64__)
        "SkylakeX",
        "Cooperlake",
        "SapphireRapids",
        "Zen",
        "Haswell",
#endif
    };
    const char *given = getenv("OPENBLAS_CORETYPE");
    for (size_t i = 0; i < sizeof names / sizeof *names && !given; i++) {
        if (i && !(run->core_s[0] > 0))
            return; /* there is no OpenBLAS */
        snprintf(run->trial, sizeof run->trial, "%s", names[i]);
        run_part(run, "OpenBLAS core types", 60, part_core_trial, NULL);
    }
    if (given)
        add_fact(&run->results, "core type", "%s, as OPENBLAS_CORETYPE has it", given);
    else if (run->core_s[0] > 0)
        add_fact(&run->results, "core type", "many rows: %s, few: %s, one: %s",
                 *run->core[0] ? run->core[0] : "its own", *run->core[1] ? run->core[1] : "its own",
                 *run->core[2] ? run->core[2] : "its own");
}

/* ---- 3. Cases ------------------------------------------------------------------------------ */

static struct roof stream_roof; /* of the process of one case */

static int stream_call(struct contestant *self, int set)
{
    const struct workload *w = self->work;
    uint64_t sum = stream_read(&stream_roof, w->b[set], weight_bytes(w), w->threads);
    __asm__ volatile("" ::"r"(sum)); /* keep the loads */
    return 0;
}

static void stream_enter(struct contest *contest)
{
    struct contestant *entry = contest_add(contest, "stream", 0);
    stream_roof = contest->results->roof;
    if (!entry || !stream_roof.pattern.streams)
        return;
    entry->call = stream_call;
    entry->is_reader = 1;
    snprintf(entry->name, sizeof entry->name, "reading b, nothing else");
}

static void figure_rate(const struct contest *contest, const struct contestant *entry, char *text,
                        size_t bytes)
{
    double rate = rate_of(entry, median_s(contest, entry));
    snprintf(text, bytes, "%.*f %s", rate < 100 ? 1 : 0, rate, rate_unit(entry));
}

/* What share of the arithmetic that the machine can do. */
static void add_peak_figure(struct contest *contest, const char *key)
{
    const struct contestant *entry = contest_best(contest, key);
    const struct roof *roof = &contest->results->roof;
    double peak = contest->work.is_bf16 ? fmax(roof->amx_gflops[1], roof->bf16_gflops[1]) : 0;
    struct figure *figure;
    char name[96];
    peak = fmax(peak, roof->f32_gflops[1]);
    if (!entry || !(peak > 0))
        return;
    snprintf(name, sizeof name, "%s, %s", contest->work.label, key);
    figure = add_figure(contest->results, name);
    figure_rate(contest, entry, figure->ours, sizeof figure->ours);
    snprintf(figure->peer, sizeof figure->peer, "peak %.0f GFLOPS", peak);
    judge_ratio(figure, rate_of(entry, median_s(contest, entry)) / peak, 0);
}

/* ours against the best of the peer's entries; nothing if the peer is not there. */
static void add_speed_figure(struct contest *contest, const char *ours_key, const char *peer_key,
                             double wanted)
{
    const struct contestant *ours = contest_best(contest, ours_key);
    const struct contestant *peer = contest_best(contest, peer_key);
    struct figure *figure;
    char name[96], rate[32];
    if (!peer && !(wanted > 0))
        return;
    snprintf(name, sizeof name, "%s, %s", contest->work.label, ours_key);
    figure = add_figure(contest->results, name);
    if (ours)
        figure_rate(contest, ours, figure->ours, sizeof figure->ours);
    if (peer) {
        figure_rate(contest, peer, rate, sizeof rate);
        snprintf(figure->peer, sizeof figure->peer, "%s %s", peer_key, rate);
    } else
        snprintf(figure->peer, sizeof figure->peer, "%s not here", peer_key);
    judge_ratio(figure, speed_ratio(contest, ours, peer, NULL), wanted);
}

/* oneDNN may choose the format of b, so it meets our prepacked b where there is one; OpenBLAS and
 * the reader take b as it is, so they meet ours as it is. */
static void add_case_figures(struct contest *contest, const struct gemm_case *what)
{
    const char *packed = contest_best(contest, "prepacked") ? "prepacked" : "tuned";
    if (what->m == 1) {
        add_speed_figure(contest, "tuned", "stream", what->stream);
        if (contest_best(contest, "prepacked"))
            add_speed_figure(contest, "prepacked", "stream", 0);
    }
    if (!what->is_bf16)
        add_speed_figure(contest, "tuned", "openblas", what->openblas);
    add_speed_figure(contest, packed, "onednn", what->onednn);
    add_speed_figure(contest, "tuned", "onednn-as-is", 0);
    add_speed_figure(contest, "untuned", what->m == 1 ? "stream" : "onednn", 0);
    if (what->m >= 512) {
        add_peak_figure(contest, packed);
        add_peak_figure(contest, "onednn");
    }
}

static void part_case(struct run *run, const struct gemm_case *what)
{
    static const char *const ours[] = { "prepacked", "tuned", "untuned" };
    struct contest contest = { .results = &run->results };
    struct blas blas;
    struct dnnl dnnl;
    char cache[96];
    int first, rows = what->m == 1 ? ROWS_ONE : what->m <= 64 ? ROWS_FEW : ROWS_MANY;
    double tune_s = run->is_quick ? 1 : what->is_extra ? 4 : 7;
    double time_s = run->is_quick ? 1.2 : what->is_extra ? 4 : 6;
    workload_init(&contest.work, run, what);
    workload_fill(&contest.work, what->m <= 128 ? ROTATION_BYTES : 0);
    fprintf(talk, "\n%s: %d set%s of weights, %.0f MB\n", contest.work.label, contest.work.sets,
            contest.work.sets > 1 ? "s in turn" : "",
            (double)contest.work.sets * (double)weight_bytes(&contest.work) * 1e-6);
    for (int i = 0; i < 3; i++) {
        snprintf(cache, sizeof cache, "%s/%s%d.db", run->directory, ours[i], (int)(what - cases));
        quern_enter(&contest, ours[i], cache, i == 2 ? 0 : tune_s);
    }
    if (*run->core[rows])
        setenv("OPENBLAS_CORETYPE", run->core[rows], 1);
    if (!what->is_bf16 && !blas_open(&blas, run->threads))
        blas_enter(&contest, &blas);
    if (!dnnl_open(&dnnl))
        dnnl_enter(&contest, &dnnl);
    if (what->m <= 16)
        stream_enter(&contest);
    contest_run(&contest, time_s, 60);
    first = run->results.figure_count;
    add_case_figures(&contest, what);
    mark_noise(&run->results, first, contest_noise(&contest));
}

/* ---- 4. Starts ----------------------------------------------------------------------------- */

static const char *const start_specs[] = {
    "gemm m=64 n=256 k=256 a=f32 b=f32 d=f32",
    "gemm m=64 n=256 k=256 a=bf16 b=bf16 d=bf16",
    "gemm m=1 n=256 k=256 a=f32 b=f32 d=f32",
};
enum { START_SPECS = sizeof start_specs / sizeof *start_specs };

static void add_start_detail(struct run *run, const char *where, const char *who,
                             const double *values, int count)
{
    struct detail detail = { .rounds = count, .rel_err = -1 };
    snprintf(detail.where, sizeof detail.where, "%s", where);
    snprintf(detail.who, sizeof detail.who, "%s", who);
    detail.median_s = median_of(values, count);
    detail.mad_s = mad_of(values, count);
    add_detail(&run->results, &detail);
}

/* Both kinds of start for every spec; the figures are those of the slowest spec. */
static void measure_all_starts(struct run *run, double *warm_kb)
{
    static const char *const where[2] = { "new process, warm cache", "first call, empty cache" };
    char cache[96], who[96];
    double worst_s[2] = { -1, -1 }, worst_result_s = -1;
    struct starts starts;
    for (int i = 0; i < 2 * START_SPECS; i++) {
        const char *text = start_specs[i / 2];
        int is_cold = !(i % 2), count = is_cold ? 10 : 20;
        snprintf(cache, sizeof cache, "%s/start%d.db", run->directory, i / 2);
        if (measure_starts(&starts, cache, text, run->is_quick ? 5 : count, is_cold)) {
            worst_s[0] = worst_s[1] = worst_result_s = -1e-3;
            break;
        }
        snprintf(who, sizeof who, "%s, %s", is_cold ? "first" : "warm", text + 5);
        add_start_detail(run, where[is_cold], who, starts.main_s, starts.count);
        add_start_detail(run, where[is_cold], "  from fork and exec on, seen from outside",
                         starts.result_s, starts.count);
        add_start_detail(run, where[is_cold], "  until the process was gone", starts.wall_s,
                         starts.count);
        add_start_detail(run, where[is_cold], "  its processor time, all threads", starts.cpu_s,
                         starts.count);
        if (is_cold)
            fprintf(talk, "      of which compiling %.1f ms\n",
                    median_of(starts.compile_ms, starts.count));
        if (starts.wrong_artifact)
            add_fact(&run->results, "failed", "%s: %d of %d did not do what was measured",
                     where[is_cold], starts.wrong_artifact, starts.count);
        worst_s[is_cold] = fmax(worst_s[is_cold], median_of(starts.main_s, starts.count));
        if (!is_cold) {
            worst_result_s = fmax(worst_result_s, median_of(starts.result_s, starts.count));
            *warm_kb = fmax(*warm_kb, median_of(starts.rss_kb, starts.count));
        }
    }
    judge_most(add_figure(&run->results, where[1]), worst_s[1] * 1e3, 200, "ms");
    judge_most(add_figure(&run->results, where[0]), worst_s[0] * 1e3, 20, "ms");
    judge_most(add_figure(&run->results, "  the same, from fork and exec on"), worst_result_s * 1e3,
               20, "ms");
}

static void measure_memory(struct run *run, double warm_kb)
{
    struct child_report llvm = { 0 }, dry = { 0 }, bare = { 0 };
    char object[96], cache[96];
    int has_llvm, has_dry;
    snprintf(object, sizeof object, "%s/empty.o", run->directory);
    snprintf(cache, sizeof cache, "%s/start0.db", run->directory);
    has_llvm = !make_empty_object(object) && !run_child("llvm", object, NULL, &llvm);
    has_dry = !run_child("dry", cache, start_specs[0], &dry);
    run_child("bare", NULL, NULL, &bare);
    fprintf(talk,
            "    resident: warm process %.1f MB, LLVM alone %.1f MB (%.1f ms to load and link), "
            "quern without LLVM %.1f MB, bare %.1f MB\n",
            warm_kb * 1.024e-3, (double)llvm.rss_kb * 1.024e-3, llvm.main_s * 1e3,
            (double)dry.rss_kb * 1.024e-3, (double)bare.rss_kb * 1.024e-3);
    judge_most(add_figure(&run->results, "resident, warm, beyond LLVM alone"),
               has_llvm && warm_kb > 0 ? (warm_kb - (double)llvm.rss_kb) * 1.024e-3 : -1, 12, "MB");
    judge_most(add_figure(&run->results, "resident where LLVM is not needed"),
               has_dry ? (double)dry.rss_kb * 1.024e-3 : -1, 12, "MB");
}

static void measure_dispatch(struct run *run)
{
    static const char *const names[] = { "dispatch, m the same", "dispatch, m within a bucket",
                                         "dispatch, m across 8 buckets" };
    static const int64_t rows[] = { 64, 33, 40, 51, 64, 60, 47, 39, 1, 2, 3, 8, 9, 17, 64, 128 };
    struct quern_context *ctx;
    struct quern_spec spec;
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } };
    char cache[96];
    snprintf(cache, sizeof cache, "%s/dispatch.db", run->directory);
    if (quern_open(&ctx, cache, run->threads) ||
        quern_spec_parse(ctx, "gemm m=128 n=256 k=256", &spec) ||
        child_arrays(ctx, &spec, arrays)) {
        add_fact(&run->results, "failed", "dispatch: %s", quern_errmsg(ctx));
        return;
    }
    for (int i = 0; i < 3; i++) {
        const int64_t *m = i == 0 ? rows : i == 1 ? rows : rows + 8;
        double ns = dispatch_ns(ctx, &spec, arrays, m, i ? 8 : 1);
        judge_most(add_figure(&run->results, names[i]), ns, 200, "ns");
    }
}

static void part_starts(struct run *run, const struct gemm_case *what)
{
    struct noise noise = noise_now();
    int first = run->results.figure_count;
    double warm_kb = -1, others;
    (void)what;
    fprintf(talk, "\nstarts\n");
    measure_all_starts(run, &warm_kb);
    others = noise_since(noise);
    fprintf(talk, "    others had %.0f%% of the machine%s\n", 100 * others,
            others > QUIET ? ": BUSY, distrust the times" : "");
    mark_noise(&run->results, first, others);
    measure_memory(run, warm_kb);
}

static void part_dispatch(struct run *run, const struct gemm_case *what)
{
    double bytes = stripped_bytes(run->directory);
    (void)what;
    measure_dispatch(run);
    judge_most(add_figure(&run->results, "libquern.so, stripped"), bytes < 0 ? -1 : bytes / 1e6, 2,
               "MB");
}

/* ---- All of it ----------------------------------------------------------------------------- */

/* Threads: OMP_NUM_THREADS, else 2, of those that this process may use. */
static int default_threads(void)
{
    cpu_set_t set;
    const char *given = getenv("OMP_NUM_THREADS");
    int allowed = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    if (given && atoi(given) > 0)
        return atoi(given);
    return allowed < 2 ? allowed : 2;
}

static void set_environment(const struct run *run)
{
    char threads[16];
    snprintf(threads, sizeof threads, "%d", run->threads);
    setenv("OMP_NUM_THREADS", threads, 1);
    setenv("OPENBLAS_NUM_THREADS", threads, 1);
    /* An idle team sleeps after 2^22 cycles rather than 2^28: within a turn it stays awake all the
     * same, and the next contestant need not wait 0.1 s for it. */
    setenv("OPENBLAS_THREAD_TIMEOUT", "22", 0);
    unsetenv("QUERN_CACHE");
    unsetenv("QUERN_MODE");
    unsetenv("QUERN_TEMPLATES");
}

static void run_everything(struct run *run)
{
    add_machine_facts(run);
    run_part(run, "peers", 60, part_peer_facts, NULL);
    run_part(run, "roof", 120, part_roof, NULL);
    choose_cores(run);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct workload named;
        workload_init(&named, run, &cases[i]);
        if ((cases[i].is_extra && run->is_quick) || (run->only && !strstr(named.label, run->only)))
            continue;
        run_part(run, named.label, 240, part_case, &cases[i]);
    }
    if (run->only && !strstr("starts", run->only))
        return;
    run_part(run, "starts", 120, part_starts, NULL);
    run_part(run, "dispatch", 60, part_dispatch, NULL);
}

static int usage(FILE *file, int status)
{
    fprintf(file,
            "cpu_peers [--quick] [--json] [--only TEXT]\n"
            "  --quick      under a minute: less tuning, fewer rounds, no further shapes\n"
            "  --json       one object on stdout, the talk on stderr\n"
            "  --only TEXT  the cases whose name has TEXT in it (\"bf16 m=1 \"), or starts\n"
            "Threads: OMP_NUM_THREADS, else 2. DNNL_LIBRARY and OPENBLAS_CORETYPE override what is "
            "found.\n");
    return status;
}

static int parse_options(struct run *run, int argc, char **argv)
{
    static const struct option options[] = { { "quick", no_argument, NULL, 'q' },
                                             { "json", no_argument, NULL, 'j' },
                                             { "only", required_argument, NULL, 'o' },
                                             { "help", no_argument, NULL, 'h' },
                                             { NULL, 0, NULL, 0 } };
    for (int letter; (letter = getopt_long(argc, argv, "qj", options, NULL)) != -1;) {
        if (letter == 'q')
            run->is_quick = 1;
        else if (letter == 'j')
            run->is_json = 1;
        else if (letter == 'o')
            run->only = optarg;
        else if (letter == 'h')
            exit(usage(stdout, 0));
        else
            return -1;
    }
    return optind == argc ? 0 : -1;
}

static void remove_directory(const char *directory)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf -- '%s'", directory);
    if (system(command))
        fprintf(stderr, "cpu_peers: %s is left behind\n", directory);
}

int main(int argc, char **argv)
{
    double begin = now_s();
    struct run *run;
    if (argc > 1 && !strncmp(argv[1], "--child=", 8))
        return child_main(begin, argv + 1);
    run = mmap(NULL, sizeof *run, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (run == MAP_FAILED)
        return 1;
    talk = stdout;
    if (parse_options(run, argc, argv))
        return usage(stderr, 2);
    talk = run->is_json ? stderr : stdout;
    run->threads = default_threads();
    const char *scratch = getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir;
    int length = snprintf(run->directory, sizeof run->directory, "%s/quern-bench-XXXXXX", scratch);
    if (length >= (int)sizeof run->directory || !mkdtemp(run->directory)) {
        fprintf(stderr, "cpu_peers: TMPDIR=%s: no folder can be made there\n", scratch);
        return 1;
    }
    set_environment(run);
    run_everything(run);
    remove_directory(run->directory);
    if (run->is_json)
        print_json(&run->results);
    else
        print_table(&run->results);
    fprintf(talk, "\n%.0f s\n", now_s() - begin);
    return 0;
}
