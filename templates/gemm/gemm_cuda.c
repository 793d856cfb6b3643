/* What the host sides of gemm_sm80 and gemm_ffma share. gemm_sm90 has a grid and a model of its
 * own; it takes from here the profile, the ranking and the list.
 *
 *     plan         main  ->  reduce (split_k > 1)
 *     grid         main: (tiles of all products, shares of k); reduce: vectors of four columns
 *     workspace    partial [split_k][batch][m][n up to a multiple of 4] f32, where split_k > 1
 *
 * The model. Blocks run in waves of (SMs x resident blocks); the last wave may leave SMs with fewer
 * blocks, or none. An SM with r blocks takes for one share of k the longest of
 *
 *     r x products / rate          tensor cores or FMA, less with few warps
 *     r x bytes / (L2 rate / SMs)  tiles of a and b
 *     r x bytes / shared memory's rate
 *     tiles of k x latency / tiles ahead      these two r does not change: blocks hide each other
 *     tiles of k x what one takes at least
 *
 * and, before and after, a latency to fill the pipeline and the time to store the tile. All waves
 * together take at least what memory needs for each input and output once. Shares cost a second
 * launch, and a trip of their sums through L2, or through memory where they do not fit.
 *
 * "The longest" is a fourth root of the sum of fourth powers: what is nearly as long as the longest
 * does get in its way, and of configs with the same bottleneck the more balanced one is better.
 *
 * The model ranks; it does not predict. What it gets right is the order of configs that differ by
 * more than a few percent: tiles that fill the SMs, enough bytes in flight for few rows, k split
 * when there are too few tiles.
 */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "gemm_cuda.h"
#include "gemm_cuda_args.h"

#define LATENCY_US 0.8          /* from asking for a tile to having it, memory being busy */
#define SHARED_GBPS_AN_SM 200.0 /* 128 bytes a cycle */
#define MOST_TILES INT32_MAX    /* of all products: a grid's x */
#define REDUCE_THREADS 128      /* gemm_tile.cuh */

/* ---- What is possible ---- */

/* With the largest tiles, so that there is always a legal config. */
static int is_grid_ok(const struct values *v, int64_t bm, int64_t bn)
{
    double tiles = (double)gemm_ceil_div(v->m, bm) * (double)gemm_ceil_div(v->n, bn);
    return tiles * (double)v->batch <= MOST_TILES;
}

int gemm_cuda_supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 && !v->packed &&
           is_grid_ok(v, 128, 128);
}

struct quern_profile gemm_cuda_profile(const struct quern_problem *problem)
{
    struct quern_profile profile = *problem->profile;
    profile.cores = profile.cores > 0 ? profile.cores : 64;
    profile.l1_bytes = profile.l1_bytes > 0 ? profile.l1_bytes : 101376;
    profile.l2_bytes = profile.l2_bytes > 0 ? profile.l2_bytes : 16 << 20;
    profile.memory_gbps = profile.memory_gbps > 0 ? profile.memory_gbps : 500;
    profile.l2_gbps = profile.l2_gbps > 0 ? profile.l2_gbps : 2000;
    profile.tensor_tflops = profile.tensor_tflops > 0 ? profile.tensor_tflops : 80;
    profile.f32_tflops = profile.f32_tflops > 0 ? profile.f32_tflops : 20;
    profile.launch_us = profile.launch_us > 0 ? profile.launch_us : 1.5;
    return profile;
}

static int64_t partial_pitch(const struct values *v)
{
    return gemm_round_up(v->n, 4);
}

int gemm_cuda_legal(const struct quern_problem *problem, int bm, int bn, int split_k,
                    struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    double vectors = (double)v->batch * (double)v->m * (double)partial_pitch(v) / 4;
    if (!is_grid_ok(v, bm, bn))
        return quern_refuse(why, "config bm=%d bn=%d: more than %d tiles", bm, bn, MOST_TILES);
    if (split_k > 1 && vectors > MOST_TILES)
        return quern_refuse(why, "config split_k=%d: must be 1 for so large a d", split_k);
    return QUERN_OK;
}

/* ---- The model ---- */

static double longest_of(const double *times, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += times[i] * times[i] * times[i] * times[i];
    return sqrt(sqrt(sum));
}

/* An SM with `blocks` blocks of one share of k. */
static double block_time(const struct values *v, const struct quern_profile *profile,
                         const struct gemm_cuda_work *work, double blocks)
{
    double a_bytes = (double)quern_dtype_bytes((int)v->a) * work->bm;
    double b_bytes = (double)quern_dtype_bytes((int)v->b) * work->bn;
    int64_t tiles = gemm_ceil_div(gemm_ceil_div(v->k, work->bk), work->split_k);
    double k = (double)tiles * work->bk;
    double rate = work->tflops * 1e6 / profile->cores; /* per microsecond, as below */
    double l2_rate = profile->l2_gbps * 1e3 / profile->cores;
    const double times[] = {
        blocks * 2.0 * work->bm * work->bn * k / rate,
        blocks * (a_bytes + b_bytes) * k / l2_rate,
        blocks * work->shared_bytes_a_k * k / (SHARED_GBPS_AN_SM * 1e3),
        (double)tiles * LATENCY_US / work->tiles_ahead,
        (double)tiles * work->tile_us,
    };
    double d_bytes = work->split_k > 1 ? 4 : (double)quern_dtype_bytes((int)v->d);
    double store = blocks * work->bm * work->bn * d_bytes * (1 + v->accumulate) / l2_rate;
    return longest_of(times, 5) + LATENCY_US + store;
}

static double waves_time(const struct values *v, const struct quern_profile *profile,
                         const struct gemm_cuda_work *work)
{
    double blocks = (double)gemm_ceil_div(v->m, work->bm) * (double)gemm_ceil_div(v->n, work->bn) *
                    (double)v->batch * work->split_k;
    double slots = (double)profile->cores * work->resident;
    double full = (double)(int64_t)(blocks / slots), rest = blocks - full * slots;
    double time = full * block_time(v, profile, work, work->resident);
    if (rest > 0)
        time += block_time(v, profile, work, (double)gemm_ceil_div((int64_t)rest, profile->cores));
    return time;
}

double gemm_cuda_time(const struct quern_problem *problem, const struct gemm_cuda_work *work)
{
    const struct values *v = values_of(problem->bucket);
    const struct quern_profile profile = gemm_cuda_profile(problem);
    double batch = (double)v->batch, m = (double)v->m, n = (double)v->n, k = (double)v->k;
    double bytes =
        batch * (m * k * (double)quern_dtype_bytes((int)v->a) +
                 n * k * (double)quern_dtype_bytes((int)v->b) +
                 m * n * (double)quern_dtype_bytes((int)v->d) * (double)(1 + v->accumulate));
    const double times[] = { bytes / (profile.memory_gbps * 1e3), waves_time(v, &profile, work) };
    double time = longest_of(times, 2) + profile.launch_us;
    if (work->split_k > 1) {
        double partial = 4.0 * work->split_k * batch * m * n;
        double rate =
            partial < (double)profile.l2_bytes / 2 ? profile.l2_gbps / 2 : profile.memory_gbps;
        time += 2 * partial / (rate * 1e3) + profile.launch_us + LATENCY_US;
    }
    return time;
}

int gemm_cuda_splits(const struct quern_problem *problem, int bk, int splits[GEMM_CUDA_SPLITS])
{
    static const int known[GEMM_CUDA_SPLITS] = { 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 64 };
    int64_t tiles = gemm_ceil_div(values_of(problem->bucket)->k, bk);
    int count = 1;
    memcpy(splits, known, sizeof(known));
    while (count < GEMM_CUDA_SPLITS && 2 * known[count] <= tiles)
        count++;
    return count;
}

int gemm_cuda_group(const struct quern_problem *problem, const struct gemm_cuda_work *work)
{
    const struct values *v = values_of(problem->bucket);
    const struct quern_profile profile = gemm_cuda_profile(problem);
    int64_t a_row = (int64_t)quern_dtype_bytes((int)v->a) * work->bm;
    int64_t b_row = (int64_t)quern_dtype_bytes((int)v->b) * work->bn;
    int64_t blocks = (int64_t)profile.cores * work->resident, least = INT64_MAX;
    int best = 1;
    for (int group = 1; group <= GEMM_CUDA_MAX_GROUP; group *= 2) {
        int64_t rows =
            gemm_ceil_div(v->m, work->bm) < group ? gemm_ceil_div(v->m, work->bm) : group;
        rows = rows > 0 ? rows : 1;
        int64_t bytes = rows * a_row + gemm_ceil_div(blocks, rows) * b_row;
        if (bytes < least) {
            least = bytes;
            best = group;
        }
    }
    return best;
}

/* ---- Ranking ---- */

void gemm_cuda_rank(struct gemm_cuda_ranking *ranking, double time, const int32_t *config,
                    int knob_count)
{
    int at = ranking->count;
    while (at > 0 && time < ranking->times[at - 1])
        at--;
    if (at == ranking->most)
        return;
    if (ranking->count < ranking->most)
        ranking->count++;
    for (int i = ranking->count - 1; i > at; i--) {
        ranking->times[i] = ranking->times[i - 1];
        memcpy(ranking->configs[i], ranking->configs[i - 1], sizeof(ranking->configs[i]));
    }
    ranking->times[at] = time;
    memcpy(ranking->configs[at], config, (size_t)knob_count * sizeof(*config));
}

int gemm_cuda_list(const struct gemm_cuda_ranking *ranking, int group, int knob_count,
                   int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    size_t bytes = (size_t)knob_count * sizeof(configs[0][0]);
    int count = 0;
    for (; count < ranking->count && count < max; count++)
        memcpy(configs[count], ranking->configs[count], bytes);
    for (int i = 0; i < 3 && i < ranking->count; i++)
        for (int value = 1; value <= GEMM_CUDA_MAX_GROUP; value *= 2) {
            if (value == ranking->configs[i][group] || count == max)
                continue;
            memcpy(configs[count], ranking->configs[i], bytes);
            configs[count++][group] = value;
        }
    return count;
}

/* ---- Plan and bind ---- */

void gemm_cuda_define(const struct quern_problem *problem, struct quern_step *step)
{
    const struct values *v = values_of(problem->bucket);
    quern_step_define(step, "D_DTYPE", v->d);
    quern_step_define(step, "BIAS_DTYPE", v->bias);
    quern_step_define(step, "B_IS_NK", v->layout == 0);
    quern_step_define(step, "ACCUMULATE", v->accumulate);
    quern_step_define(step, "ALIGN_A", problem->alignment[ARRAY_a]);
    quern_step_define(step, "ALIGN_B", problem->alignment[ARRAY_b]);
    quern_step_define(step, "ALIGN_D", problem->alignment[ARRAY_d]);
}

void gemm_cuda_add_reduce(const struct quern_problem *problem, const char *source, int split_k,
                          struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    if (split_k == 1)
        return;
    const struct quern_step *main_step = &plan->steps[plan->step_count - 1];
    struct quern_step *step = quern_plan_kernel(plan, "reduce", source, "gemm_reduce");
    step->define_count = main_step->define_count;
    memcpy(step->defines, main_step->defines, sizeof(step->defines));
    step->is_programmatic = problem->target->sm >= 90;
    step->threads[0] = REDUCE_THREADS;
    step->threads[1] = step->threads[2] = 1;
    plan->workspace_bytes = 4 * split_k * v->batch * v->m * partial_pitch(v);
}

void gemm_cuda_bind(const struct quern_binding *binding, int bm, int bn, int split_k,
                    struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *a = &binding->arrays[ARRAY_a], *b = &binding->arrays[ARRAY_b];
    const struct quern_array *d = &binding->arrays[ARRAY_d];
    int64_t m_tiles = gemm_ceil_div(v->m, bm), n_tiles = gemm_ceil_div(v->n, bn);
    struct gemm_cuda_args args = {
        .a_row_stride = a->strides[1],
        .b_row_stride = b->strides[1],
        .d_row_stride = d->strides[1],
        .a_batch_stride = a->strides[0],
        .b_batch_stride = b->strides[0],
        .d_batch_stride = d->strides[0],
        .a = a->data,
        .b = b->data,
        .bias = binding->arrays[ARRAY_bias].data,
        .d = d->data,
        .partial = binding->workspace,
        .m = (int32_t)v->m,
        .n = (int32_t)v->n,
        .k = (int32_t)v->k,
        .batch = (int32_t)v->batch,
        .m_tiles = (int32_t)m_tiles,
        .n_tiles = (int32_t)n_tiles,
        .partial_pitch = (int32_t)partial_pitch(v),
    };
    QUERN_BIND(&launch->steps[0], args, m_tiles * n_tiles * v->batch, split_k, 1);
    if (split_k > 1) {
        int64_t vectors = v->batch * v->m * partial_pitch(v) / 4;
        QUERN_BIND(&launch->steps[1], args, gemm_ceil_div(vectors, REDUCE_THREADS), 1, 1);
    }
}
