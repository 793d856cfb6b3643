/* cuda_peers: bf16 GEMM by quern beside cuBLASLt, on a GPU.
 *
 *     facts       device, driver, libraries
 *     starts      the first call with an empty cache; a warm launch's host time
 *     shapes      each product by ours and by what cuBLASLt proposes: checked against each other,
 *                 screened (its best of 8), then timed in turns
 *     table       a line a shape, then the geometric means and the worst
 *
 * Time is a CUDA graph's of many launches, replayed; the launches go through copies of all arrays
 * that together exceed twice the L2. A ratio is taken in each round, both sides one after the
 * other, and its median is printed: above 1, ours is faster. bench/README.md says how to read it.
 *
 * Without a GPU or without cuBLASLt it says so in one line and exits 0. Needs no CUDA header, no
 * toolkit, and links only libquern: it runs where it is carried.
 */
#pragma GCC diagnostic ignored "-Wunused-function" /* what the CPU's benchmark needs */
#include "bench/cuda_contest.h"
#include <getopt.h>

enum { MAX_SHAPES = 64 };

static const struct shape default_shapes[] = {
    { 8192, 8192, 8192 }, { 4096, 4096, 4096 },  { 4096, 2112, 7168 },  { 4096, 24576, 1536 },
    { 4096, 32768, 512 }, { 4096, 7168, 16384 }, { 4096, 4096, 7168 },  { 4096, 7168, 2048 },
    { 2048, 6144, 4096 }, { 2048, 28672, 4096 }, { 2048, 4096, 14336 }, { 512, 6144, 4096 },
    { 512, 28672, 4096 }, { 512, 4096, 14336 },  { 128, 6144, 4096 },   { 128, 28672, 4096 },
    { 128, 4096, 14336 }, { 64, 28672, 4096 },   { 64, 4096, 14336 },   { 16, 6144, 4096 },
    { 16, 28672, 4096 },  { 16, 2112, 7168 },    { 1, 6144, 4096 },     { 1, 4096, 14336 },
    { 1, 4096, 4096 },
};

/* ---- Starts -------------------------------------------------------------------------------- */

static int context_open(const struct run *run, const char *cache, struct quern_context **ctx)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    char device[32];
    snprintf(device, sizeof device, "cuda:%d", run->ordinal);
    options.cache = cache;
    options.device = device;
    return quern_context_create(&options, ctx) ? complain(*ctx, "no context") : 0;
}

/* Milliseconds from no quern context to the result of a call, which compiles or finds its kernel in
 * the cache; the CUDA context is up. */
static double first_call_ms(struct product *p, const char *cache)
{
    struct quern_context *ctx;
    struct quern_gemm_arrays arrays = arrays_of(p, 0);
    struct quern_call call = { .stream = p->run->gpu.stream };
    double begin = now_s(), ms = -1;
    if (!context_open(p->run, cache, &ctx)) {
        if (quern_gemm(ctx, &p->spec, &arrays, &call))
            complain(ctx, "first call");
        else {
            gpu_wait(&p->run->gpu);
            ms = (now_s() - begin) * 1e3;
        }
    }
    quern_context_destroy(ctx);
    return ms;
}

/* Host nanoseconds of one call in a stream that is kept busy: batches that the driver's queue
 * takes whole, the wait for them outside the time. */
static double launch_ns(struct product *p, struct quern_context *ctx)
{
    enum { BATCHES = 51, CALLS = 100 };
    struct quern_gemm_arrays arrays = arrays_of(p, 0);
    double samples[BATCHES];
    struct quern_kernel *kernel = NULL;
    struct quern_call call = { .stream = p->run->gpu.stream };
    int failed = quern_gemm_prepare(ctx, &p->spec, &arrays, &kernel);
    if (failed)
        return complain(ctx, "warm call");
    call.workspace_bytes = quern_kernel_workspace(kernel);
    call.workspace = gpu_alloc(&p->run->gpu, call.workspace_bytes);
    for (int s = 0; s < BATCHES && !failed; s++) {
        double begin = now_s();
        for (int i = 0; i < CALLS; i++)
            failed |= quern_gemm(ctx, &p->spec, &arrays, &call);
        samples[s] = (now_s() - begin) / CALLS * 1e9;
        gpu_wait(&p->run->gpu);
    }
    gpu_free(&p->run->gpu, call.workspace);
    return failed ? -1 : median_of(samples, BATCHES);
}

/* Before anything else is compiled in this process: NVRTC is loaded here. */
static void measure_starts(struct run *run)
{
    const char *base = getenv("TMPDIR");
    char directory[1024], cache[1100], command[1100];
    struct product p;
    snprintf(directory, sizeof directory, "%s/cuda_peers_XXXXXX", base ? base : P_tmpdir);
    if (!mkdtemp(directory))
        return;
    snprintf(cache, sizeof cache, "%s/first.db", directory);
    product_open(&p, run, (struct shape){ 512, 4096, 4096 });
    run->first_ms = first_call_ms(&p, cache);
    run->first_warm_ms = first_call_ms(&p, cache);
    product_close(&p);
    product_open(&p, run, (struct shape){ 16, 64, 64 });
    run->launch_ns = launch_ns(&p, run->untuned);
    product_close(&p);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    if (system(command))
        fprintf(stderr, "cuda_peers: %s stays behind\n", directory);
    fprintf(talk,
            "first call, empty cache    %8.1f ms (context, compile, load, run; CUDA is up)\n"
            "the same, warm cache       %8.1f ms\n"
            "a warm call, host time     %8.0f ns\n\n",
            run->first_ms, run->first_warm_ms, run->launch_ns);
}

/* ---- Output -------------------------------------------------------------------------------- */

static void print_fact(void *user, const char *section, const char *name, const char *value)
{
    (void)user;
    if (!strcmp(section, "cuda"))
        fprintf(talk, "%-26s %s\n", name, value);
}

static void print_facts(const struct run *run)
{
    fprintf(talk, "%-26s %s\n%-26s %s, sm_%d, %d SMs, L2 %lld MiB\n", "date", run->date, "GPU",
            run->gpu.name, run->gpu.sm, run->gpu.cores, (long long)run->gpu.l2_bytes >> 20);
    fprintf(talk, "%-26s %d\n%-26s %zu, %s\n%-26s %s\n", "driver's CUDA", run->gpu.version,
            "cuBLASLt", run->lt.version, run->lt.path, "quern", quern_version());
    quern_doctor(run->ctx, print_fact, NULL);
    fprintf(talk, "%-26s %.0f TFLOPS, %.2f TB/s\n\n", "roof", run->roof_flops * 1e-12,
            run->roof_bytes * 1e-12);
}

static void print_head(const struct run *run)
{
    fprintf(talk,
            "| m n k | us | TFLOPS | GB/s | of roof | cuBLASLt best us | ratio | first us | ratio "
            "|%s config | MHz |\n|---|---|---|---|---|---|---|---|---|%s---|---|\n",
            run->tune_s > 0 ? " untuned us | tuned gains |" : "",
            run->tune_s > 0 ? "---|---|" : "");
}

static void print_line(const struct run *run, const struct line *l)
{
    fprintf(talk, "| %lld %lld %lld | %.1f +-%.1f%% | %.0f | %.0f | %.2f ", (long long)l->shape.m,
            (long long)l->shape.n, (long long)l->shape.k, l->ours_s * 1e6, l->mad * 100,
            flops_of(&l->shape) / l->ours_s * 1e-12, bytes_of(&l->shape) / l->ours_s * 1e-9,
            roof_s(run, &l->shape) / l->ours_s);
    fprintf(talk, "| %.1f (%d of %d) | %.3f +-%.3f | %.1f | %.3f |", l->best_s * 1e6, l->best + 1,
            l->algorithms, l->ratio, l->ratio_mad, l->first_s * 1e6, l->first_ratio);
    if (run->tune_s > 0)
        fprintf(talk, " %.1f | %.3f |", l->untuned_s * 1e6, l->untuned_ratio);
    fprintf(talk, " %s, %s %s | %u |\n", l->from, l->variant, l->config, l->clocks.sm_mhz);
    fflush(talk);
}

/* Geometric mean and worst of the ratios of the lines with m in [least, most]. */
static int mean_of(const struct line *lines, int count, int64_t least, int64_t most, double *mean,
                   double *worst)
{
    double sum = 0;
    int some = 0;
    *worst = INFINITY;
    for (int i = 0; i < count; i++) {
        if (lines[i].shape.m < least || lines[i].shape.m > most)
            continue;
        sum += log(lines[i].ratio);
        *worst = fmin(*worst, lines[i].ratio);
        some++;
    }
    *mean = some ? exp(sum / some) : 0;
    return some;
}

static void print_means(const struct line *lines, int count)
{
    static const struct {
        const char *name, *wanted;
        int64_t least, most;
    } parts[] = { { "m >= 512", "0.88, worst 0.75", 512, INT64_MAX },
                  { "m <= 128", "1.00", 0, 128 },
                  { "all", "-", 0, INT64_MAX } };
    double mean, worst;
    fprintf(talk, "\n%-10s %6s %8s %8s  %s\n", "shapes", "count", "geomean", "worst",
            "wanted at least");
    for (int i = 0; i < 3; i++) {
        int some = mean_of(lines, count, parts[i].least, parts[i].most, &mean, &worst);
        if (some)
            fprintf(talk, "%-10s %6d %8.3f %8.3f  %s\n", parts[i].name, some, mean, worst,
                    parts[i].wanted);
    }
}

/* How much longer untuned calls take than tuned ones, and the longest tuning. */
static void print_tuning(const struct line *lines, int count)
{
    double sum = 0, worst = 0, seconds = 0;
    for (int i = 0; i < count; i++) {
        sum += log(lines[i].untuned_ratio);
        worst = fmax(worst, lines[i].untuned_ratio);
        seconds = fmax(seconds, lines[i].tune_s);
    }
    if (count)
        fprintf(talk,
                "\nuntuned over tuned: geomean %.3f, worst %.3f (wanted at most 1.15); the longest "
                "tuning %.1f s\n",
                exp(sum / count), worst, seconds);
}

static void print_json(const struct run *run, const struct line *lines, int count)
{
    printf("{\"date\": \"%s\", \"device\": \"%s\", \"driver\": %d, \"cublaslt\": %zu,\n"
           "\"first_call_ms\": %.2f, \"first_call_warm_ms\": %.2f, \"launch_ns\": %.0f,\n"
           "\"shapes\": [",
           run->date, run->gpu.name, run->gpu.version, run->lt.version, run->first_ms,
           run->first_warm_ms, run->launch_ns);
    for (int i = 0; i < count; i++) {
        const struct line *l = &lines[i];
        printf("%s\n{\"m\": %lld, \"n\": %lld, \"k\": %lld, \"us\": %.3f, \"mad\": %.4f, "
               "\"tflops\": %.1f, \"gbps\": %.0f, \"roof\": %.4f, ",
               i ? "," : "", (long long)l->shape.m, (long long)l->shape.n, (long long)l->shape.k,
               l->ours_s * 1e6, l->mad, flops_of(&l->shape) / l->ours_s * 1e-12,
               bytes_of(&l->shape) / l->ours_s * 1e-9, roof_s(run, &l->shape) / l->ours_s);
        printf("\"best_us\": %.3f, \"best\": %d, \"algorithms\": %d, \"ratio\": %.4f, "
               "\"ratio_mad\": %.4f, \"first_us\": %.3f, \"first_ratio\": %.4f, ",
               l->best_s * 1e6, l->best + 1, l->algorithms, l->ratio, l->ratio_mad,
               l->first_s * 1e6, l->first_ratio);
        printf("\"untuned_us\": %.3f, \"untuned_ratio\": %.4f, \"tune_s\": %.2f, "
               "\"candidates\": %d, \"difference\": %.3g, \"copies\": %d, \"launches\": %d, ",
               l->untuned_s * 1e6, l->untuned_ratio, l->tune_s, l->tuned_candidates, l->difference,
               l->sets, l->launches);
        printf("\"sm_mhz\": %u, \"memory_mhz\": %u, \"watts\": %.0f, \"config_from\": \"%s\", "
               "\"variant\": \"%s\", \"config\": \"%s\"}",
               l->clocks.sm_mhz, l->clocks.memory_mhz, l->clocks.milliwatts * 1e-3, l->from,
               l->variant, l->config);
    }
    printf("]}\n");
}

/* ---- Options ------------------------------------------------------------------------------- */

static const char usage[] =
    "cuda_peers [--shapes \"m,n,k;...\"] [--variant NAME] [--config k=v,...] [--tune SECONDS]\n"
    "           [--cache FILE] [--device N] [--rounds N] [--roof TFLOPS,GBPS] [--json]\n";

static int parse_shapes(const char *text, struct shape *shapes)
{
    int count = 0;
    for (const char *at = text; *at && count < MAX_SHAPES; count++) {
        long long m, n, k;
        int length = 0;
        if (sscanf(at, "%lld,%lld,%lld%n", &m, &n, &k, &length) != 3 || m < 1 || n < 1 || k < 1 ||
            !strchr(";", at[length]))
            return -1;
        shapes[count] = (struct shape){ m, n, k };
        at += length + (at[length] == ';');
    }
    return count;
}

/* What is sustained: the H200's profile unless told. */
static int parse_roof(const char *text, struct run *run)
{
    double tflops = 790, gbps = 4270;
    if (text && sscanf(text, "%lf,%lf", &tflops, &gbps) != 2)
        return -1;
    run->roof_flops = tflops * 1e12;
    run->roof_bytes = gbps * 1e9;
    return 0;
}

static int parse_options(int argc, char **argv, struct run *run, struct shape *shapes)
{
    static const struct option options[] = { { "shapes", 1, 0, 's' },
                                             { "variant", 1, 0, 'v' },
                                             { "config", 1, 0, 'c' },
                                             { "tune", 1, 0, 't' },
                                             { "cache", 1, 0, 'C' },
                                             { "device", 1, 0, 'd' },
                                             { "rounds", 1, 0, 'r' },
                                             { "roof", 1, 0, 'R' },
                                             { "json", 0, 0, 'j' },
                                             { "help", 0, 0, 'h' },
                                             { 0 } };
    int count = sizeof default_shapes / sizeof *default_shapes, is_bad = 0;
    const char *roof = NULL;
    memcpy(shapes, default_shapes, sizeof default_shapes);
    run->cache = "";
    run->rounds = 31;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        switch (c) {
        case 's':
            count = parse_shapes(optarg, shapes);
            break;
        case 'v':
            run->variant = optarg;
            break;
        case 'c':
            run->config = optarg;
            break;
        case 't':
            run->tune_s = atof(optarg);
            break;
        case 'C':
            run->cache = optarg;
            break;
        case 'd':
            run->ordinal = atoi(optarg);
            break;
        case 'r':
            run->rounds = atoi(optarg);
            break;
        case 'R':
            roof = optarg;
            break;
        case 'j':
            run->is_json = 1;
            break;
        default:
            is_bad = 1;
        }
    }
    is_bad |= optind < argc || run->rounds < 1 || run->rounds > MAX_ROUNDS || run->ordinal < 0 ||
              (run->config && run->tune_s > 0) || parse_roof(roof, run);
    return is_bad ? -1 : count;
}

int main(int argc, char **argv)
{
    static struct line lines[MAX_SHAPES];
    static struct shape shapes[MAX_SHAPES];
    static struct run run;
    const char *why;
    time_t now = time(NULL);
    int done = 0, failed = 0, count = parse_options(argc, argv, &run, shapes);
    talk = run.is_json ? stderr : stdout;
    if (count < 1)
        return fputs(usage, stderr), 2;
    strftime(run.date, sizeof run.date, "%Y-%m-%d %H:%M %Z", localtime(&now));
    if ((why = gpu_open(&run.gpu, run.ordinal)))
        return fprintf(talk, "cuda_peers: %s: skipped\n", why), 0;
    if (lt_open(&run.lt))
        return fprintf(talk, "cuda_peers: no cuBLASLt (QUERN_CUBLASLT=FILE says where): skipped\n"),
               0;
    if (context_open(&run, run.cache, &run.ctx) || context_open(&run, "", &run.untuned))
        return 1;
    pool_open(&run);
    run.workspace = gpu_alloc(&run.gpu, LT_WORKSPACE_BYTES);
    print_facts(&run);
    measure_starts(&run);
    print_head(&run);
    for (int i = 0; i < count; i++) {
        if (measure(&run, shapes[i], &lines[done]))
            failed = 1;
        else
            print_line(&run, &lines[done++]);
    }
    print_means(lines, done);
    if (run.tune_s > 0)
        print_tuning(lines, done);
    if (run.is_json)
        print_json(&run, lines, done);
    quern_context_destroy(run.untuned);
    quern_context_destroy(run.ctx);
    return failed;
}
