/* One bf16 product by several contestants on a GPU: arrays, check, screening, timing.
 *
 *     product_open    copies of a, b and d that together exceed twice the L2, random contents
 *     ours_open       quern's kernel as a call would have it (or one that was never tuned)
 *     peers_open      each algorithm that cuBLASLt proposes
 *     screen          cuBLASLt's best, by a few replays of each
 *     time_all        ours, its best, its first, in turns: medians, and ratios round by round
 */
#ifndef BENCH_CUDA_CONTEST_H
#define BENCH_CUDA_CONTEST_H

#include "bench/cublaslt_peer.h"
#include "bench/cuda_graph.h"
#include "bench/sampling.h"
#include <quern.h>
#include <quern/gemm.h>
#include <quern/tune.h>

enum { MAX_SETS = 64, MAX_ROUNDS = 101, SCREEN_ROUNDS = 5 };

/* A replay lasts at least this long, so that its own start is lost in it. */
static const double REPLAY_S = 1e-3;
/* Both round f32 sums to bf16 once, so they differ only where sums of another order fall on the two
 * sides of a tie. Beyond this one of them is wrong. */
static const double MOST_DIFFERENT = 2.5e-3;

struct shape {
    int64_t m, n, k;
};

struct run {
    struct gpu gpu;
    struct lt lt;
    struct quern_context *ctx, *untuned; /* untuned: a memory-only cache, never tuned */
    const char *cache, *variant, *config;
    int ordinal, rounds, is_json;
    double tune_s, roof_flops, roof_bytes; /* a second, at most */
    void *pool, *workspace;                /* random bf16; cuBLASLt's workspace */
    double first_ms, first_warm_ms, launch_ns;
    char date[32];
};

/* One launch of a contestant on copy `set` of the arrays. */
struct contestant {
    int (*launch)(const struct contestant *self, int set);
    const struct product *product;
    int algorithm; /* cuBLASLt's */
    struct quern_kernel *kernel;
    struct quern_context *ctx;
    void *workspace;
    size_t workspace_bytes;
    struct graph graph;
    double samples[MAX_ROUNDS];
};

/* A shape's arrays, and who multiplies them. */
struct product {
    struct run *run;
    struct shape shape;
    struct quern_gemm_spec spec;
    int sets;
    void *a[MAX_SETS], *b[MAX_SETS], *d[MAX_SETS];
    struct lt_product lt;
    struct contestant ours, untuned, peers[LT_ALGORITHMS];
};

struct line {
    struct shape shape;
    double ours_s, mad, best_s, first_s, untuned_s; /* medians; mad: of ours, relative */
    double ratio, ratio_mad, first_ratio, untuned_ratio;
    double difference; /* from cuBLASLt's result, relative */
    int best, algorithms, sets, launches;
    struct clocks clocks;
    char from[16], variant[32], config[256];
    double tune_s;
    int tuned_candidates;
};

static FILE *talk;

static double flops_of(const struct shape *s)
{
    return 2.0 * (double)s->m * (double)s->n * (double)s->k;
}

static double bytes_of(const struct shape *s)
{
    return 2.0 * ((double)s->m * (double)s->k + (double)s->n * (double)s->k +
                  (double)s->m * (double)s->n);
}

static double roof_s(const struct run *run, const struct shape *s)
{
    return fmax(flops_of(s) / run->roof_flops, bytes_of(s) / run->roof_bytes);
}

static int complain(struct quern_context *ctx, const char *what)
{
    fprintf(stderr, "cuda_peers: %s: %s\n", what, quern_errmsg(ctx));
    return -1;
}

/* ---- Arrays -------------------------------------------------------------------------------- */

enum { POOL_ELEMENTS = 1 << 27 };

static void pool_open(struct run *run)
{
    uint16_t *host = malloc((size_t)POOL_ELEMENTS * 2);
    if (!host)
        exit(1);
    fill_random(host, POOL_ELEMENTS, 1, 20261121);
    run->pool = gpu_alloc(&run->gpu, (size_t)POOL_ELEMENTS * 2);
    GPU_MUST(&run->gpu,
             copy_in((device_pointer)(uintptr_t)run->pool, host, (size_t)POOL_ELEMENTS * 2));
    free(host);
}

/* `count` random elements in memory of their own, from the pool at `start` on, which wraps. */
static void *array_open(const struct run *run, int64_t count, int64_t start)
{
    const struct gpu *gpu = &run->gpu;
    char *data = gpu_alloc(gpu, (size_t)count * 2);
    for (int64_t done = 0; done < count;) {
        int64_t from = (start + done) % POOL_ELEMENTS, some = POOL_ELEMENTS - from;
        if (some > count - done)
            some = count - done;
        GPU_MUST(gpu, copy_within((device_pointer)(uintptr_t)(data + 2 * done),
                                  (device_pointer)(uintptr_t)((char *)run->pool + 2 * from),
                                  (size_t)some * 2, gpu->stream));
        done += some;
    }
    return data;
}

static void product_open(struct product *p, struct run *run, struct shape shape)
{
    int64_t l2 = run->gpu.l2_bytes, bytes = (int64_t)bytes_of(&shape);
    memset(p, 0, sizeof *p);
    p->run = run;
    p->shape = shape;
    p->spec = (struct quern_gemm_spec)QUERN_GEMM_SPEC_INIT;
    p->spec.m = shape.m, p->spec.n = shape.n, p->spec.k = shape.k;
    p->spec.a = p->spec.b = p->spec.d = QUERN_BF16;
    p->sets = (int)(2 * l2 / bytes + 2);
    if (p->sets > MAX_SETS)
        p->sets = MAX_SETS;
    for (int i = 0; i < p->sets; i++) {
        p->a[i] = array_open(run, shape.m * shape.k, i * INT64_C(15485863));
        p->b[i] = array_open(run, shape.n * shape.k, i * INT64_C(32452843) + 49979687);
        p->d[i] = gpu_alloc(&run->gpu, (size_t)(shape.m * shape.n) * 2);
    }
    gpu_wait(&run->gpu);
}

static struct quern_gemm_arrays arrays_of(const struct product *p, int set)
{
    return (struct quern_gemm_arrays){ .a = { .data = p->a[set] },
                                       .b = { .data = p->b[set] },
                                       .d = { .data = p->d[set] } };
}

static void contestant_close(const struct gpu *gpu, struct contestant *who)
{
    graph_free(gpu, &who->graph);
    if (who->ctx)
        gpu_free(gpu, who->workspace);
}

static void product_close(struct product *p)
{
    const struct gpu *gpu = &p->run->gpu;
    contestant_close(gpu, &p->ours);
    contestant_close(gpu, &p->untuned);
    for (int i = 0; i < LT_ALGORITHMS; i++)
        contestant_close(gpu, &p->peers[i]);
    lt_product_fini(&p->run->lt, &p->lt);
    for (int i = 0; i < p->sets; i++) {
        gpu_free(gpu, p->a[i]);
        gpu_free(gpu, p->b[i]);
        gpu_free(gpu, p->d[i]);
    }
}

/* ---- Contestants --------------------------------------------------------------------------- */

static int ours_launch(const struct contestant *self, int set)
{
    const struct product *p = self->product;
    struct quern_gemm_arrays arrays = arrays_of(p, set);
    struct quern_call call = { p->run->gpu.stream, self->workspace, self->workspace_bytes };
    return quern_gemm_launch(self->ctx, self->kernel, &p->spec, &arrays, &call)
               ? complain(self->ctx, "launch")
               : 0;
}

static int peer_launch(const struct contestant *self, int set)
{
    const struct product *p = self->product;
    return lt_call(&p->run->lt, &p->lt, self->algorithm, p->a[set], p->b[set], p->d[set],
                   p->run->workspace, p->run->gpu.stream);
}

static struct quern_request request_of(const struct product *p, const struct quern_gemm_arrays *a)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    request.spec = (const struct quern_spec *)(const void *)&p->spec;
    request.arrays = (const struct quern_array *)(const void *)a;
    request.variant = p->run->variant;
    return request;
}

/* The kernel that a call would use in `ctx`, and a workspace for it. */
static int ours_open(struct product *p, struct contestant *who, struct quern_context *ctx,
                     const char *config)
{
    struct quern_gemm_arrays arrays = arrays_of(p, 0);
    struct quern_request request = request_of(p, &arrays);
    request.config = config;
    if (quern_prepare(ctx, &request, &who->kernel))
        return complain(ctx, "no kernel");
    who->launch = ours_launch;
    who->product = p;
    who->ctx = ctx;
    who->workspace_bytes = quern_kernel_workspace(who->kernel);
    who->workspace = gpu_alloc(&p->run->gpu, who->workspace_bytes);
    return who->launch(who, 0);
}

static int ours_tune(struct product *p, struct line *line)
{
    struct quern_gemm_arrays arrays = arrays_of(p, 0);
    struct quern_request request = request_of(p, &arrays);
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result tuned;
    options.budget_s = p->run->tune_s;
    if (quern_tune(p->run->ctx, &request, &options, &tuned))
        return complain(p->run->ctx, "tuning");
    line->tune_s = tuned.seconds;
    line->tuned_candidates = tuned.candidates;
    return 0;
}

/* Those of cuBLASLt's proposals that run; what fails has no launch function. */
static void peers_open(struct product *p)
{
    const struct lt *lt = &p->run->lt;
    if (lt_product_init(lt, &p->lt, p->shape.m, p->shape.n, p->shape.k))
        p->lt.count = 0;
    for (int i = 0; i < p->lt.count; i++) {
        struct contestant *who = &p->peers[i];
        *who = (struct contestant){ .product = p, .algorithm = i };
        if (!p->lt.algorithms[i].state && !peer_launch(who, 0))
            who->launch = peer_launch;
    }
    gpu_wait(&p->run->gpu);
}

/* ---- Right first --------------------------------------------------------------------------- */

static void result_of(const struct contestant *who, uint16_t *host)
{
    const struct product *p = who->product;
    const struct gpu *gpu = &p->run->gpu;
    size_t bytes = (size_t)(p->shape.m * p->shape.n) * 2;
    device_pointer d = (device_pointer)(uintptr_t)p->d[0];
    GPU_MUST(gpu, fill(d, 0xff, bytes, gpu->stream)); /* NaN, unless every element is written */
    who->launch(who, 0);
    gpu_wait(gpu);
    GPU_MUST(gpu, copy_out(host, d, bytes));
}

/* ||ours - theirs|| / ||theirs||; NaN where one is there. */
static double difference_of(const struct contestant *ours, const struct contestant *theirs)
{
    int64_t count = ours->product->shape.m * ours->product->shape.n;
    uint16_t *one = malloc((size_t)count * 2), *other = malloc((size_t)count * 2);
    double above = 0, below = 0;
    if (!one || !other)
        exit(1);
    result_of(ours, one);
    result_of(theirs, other);
    for (int64_t i = 0; i < count; i++) {
        double mine = (double)load_element(one, i, 1), yours = (double)load_element(other, i, 1);
        above += (mine - yours) * (mine - yours);
        below += yours * yours;
    }
    free(one);
    free(other);
    return sqrt(above / below);
}

/* ---- Timing -------------------------------------------------------------------------------- */

static int record(struct contestant *who, int launches)
{
    const struct gpu *gpu = &who->product->run->gpu;
    int failed = 0;
    graph_begin(gpu);
    for (int i = 0; i < launches && !failed; i++)
        failed = who->launch(who, i % who->product->sets);
    return graph_end(gpu, &who->graph, launches) || failed;
}

/* As many launches as fill REPLAY_S, every copy as often as any other; 0: it cannot be recorded. */
static int launches_for(struct contestant *ours)
{
    const struct gpu *gpu = &ours->product->run->gpu;
    int sets = ours->product->sets, rounds;
    double once;
    if (record(ours, sets))
        return 0;
    once = graph_seconds(gpu, &ours->graph);
    graph_free(gpu, &ours->graph);
    rounds = (int)(REPLAY_S / (once * sets)) + 1;
    return sets * (rounds < 512 / sets + 1 ? rounds : 512 / sets + 1);
}

/* The fastest of cuBLASLt's; -1 if none can be timed. */
static int screen(struct product *p, int launches)
{
    const struct gpu *gpu = &p->run->gpu;
    int best = -1;
    double best_s = 0;
    for (int i = 0; i < p->lt.count; i++)
        if (p->peers[i].launch && record(&p->peers[i], launches))
            p->peers[i].launch = NULL;
    for (int r = 0; r < SCREEN_ROUNDS; r++)
        for (int i = 0; i < p->lt.count; i++)
            if (p->peers[i].launch)
                p->peers[i].samples[r] = graph_seconds(gpu, &p->peers[i].graph);
    for (int i = 0; i < p->lt.count; i++) {
        double median = median_of(p->peers[i].samples, SCREEN_ROUNDS);
        if (!p->peers[i].launch || (best >= 0 && median >= best_s))
            continue;
        best = i;
        best_s = median;
    }
    return best;
}

/* A B C, C B A, ...: neighbours in time are what ratios are taken of. */
static void contest(const struct gpu *gpu, struct contestant *const *who, int count, int rounds)
{
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < count; i++) {
            struct contestant *next = who[r % 2 ? count - 1 - i : i];
            next->samples[r] = graph_seconds(gpu, &next->graph);
        }
}

static double ratio_of(const struct contestant *ours, const struct contestant *other, int rounds,
                       double *mad)
{
    double ratios[MAX_ROUNDS] = { 0 };
    for (int r = 0; r < rounds; r++)
        ratios[r] = other->samples[r] / ours->samples[r];
    if (mad)
        *mad = mad_of(ratios, rounds);
    return median_of(ratios, rounds);
}

/* Clocks while the device is at work. */
static void read_clocks(struct product *p, struct line *line)
{
    const struct gpu *gpu = &p->run->gpu;
    for (int i = 0; i < 8; i++)
        GPU_MUST(gpu, graph_launch(p->ours.graph.exec, gpu->stream));
    clocks_read(gpu, &line->clocks);
    gpu_wait(gpu);
}

static void time_all(struct product *p, struct line *line)
{
    struct contestant *who[4] = { &p->ours };
    int count = 1, rounds = p->run->rounds;
    struct contestant *best = &p->peers[line->best], *first = &p->peers[0];
    who[count++] = best;
    if (first->launch && first != best)
        who[count++] = first;
    if (p->untuned.launch)
        who[count++] = &p->untuned;
    contest(&p->run->gpu, who, count, rounds);
    line->ours_s = median_of(p->ours.samples, rounds);
    line->mad = mad_of(p->ours.samples, rounds) / line->ours_s;
    line->best_s = median_of(best->samples, rounds);
    line->ratio = ratio_of(&p->ours, best, rounds, &line->ratio_mad);
    if (first->launch) {
        line->first_s = median_of(first->samples, rounds);
        line->first_ratio = ratio_of(&p->ours, first, rounds, NULL);
    }
    if (p->untuned.launch) {
        line->untuned_s = median_of(p->untuned.samples, rounds);
        line->untuned_ratio = ratio_of(&p->ours, &p->untuned, rounds, NULL);
    }
    read_clocks(p, line);
}

static void describe(const struct product *p, struct line *line)
{
    static const char *const from[] = { "given", "tuned", "neighbour", "heuristic" };
    struct quern_report report;
    quern_kernel_report(p->ours.kernel, &report);
    snprintf(line->from, sizeof line->from, "%s", from[report.config_from]);
    snprintf(line->variant, sizeof line->variant, "%.31s", report.variant);
    snprintf(line->config, sizeof line->config, "%.255s", report.config);
}

/* 0 when the line is complete. */
static int measure(struct run *run, struct shape shape, struct line *line)
{
    struct product p;
    int launches, status = -1;
    memset(line, 0, sizeof *line);
    line->shape = shape;
    product_open(&p, run, shape);
    if ((run->tune_s > 0 && ours_tune(&p, line)) || ours_open(&p, &p.ours, run->ctx, run->config) ||
        (run->tune_s > 0 && ours_open(&p, &p.untuned, run->untuned, NULL)))
        goto out;
    describe(&p, line);
    peers_open(&p);
    line->algorithms = p.lt.count;
    launches = launches_for(&p.ours);
    if (!launches)
        goto out;
    line->best = screen(&p, launches);
    if (line->best < 0) {
        fprintf(stderr, "cuda_peers: cuBLASLt proposes nothing that runs\n");
        goto out;
    }
    line->difference = difference_of(&p.ours, &p.peers[line->best]);
    line->sets = p.sets;
    line->launches = launches;
    if (record(&p.ours, launches) || (p.untuned.launch && record(&p.untuned, launches)))
        goto out;
    time_all(&p, line);
    status = line->difference <= MOST_DIFFERENT ? 0 : -1;
    if (status)
        fprintf(stderr, "cuda_peers: m=%lld n=%lld k=%lld: results differ by %.1e\n",
                (long long)shape.m, (long long)shape.n, (long long)shape.k, line->difference);
out:
    product_close(&p);
    return status;
}
#endif
