/* The f32 variant of gemm for CUDA, host side: any mix of dtypes. gemm_ffma.cu says what the steps
 * do, gemm_cuda.c what is shared with gemm_sm80. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <string.h>

#include "gemm_cuda.h"

enum { BM, BN, BK, TM, TN, SPLIT_K, GROUP, KNOB_COUNT };

static const struct quern_knob knobs[] = {
    [BM] = { "bm", 16, 128, "rows of a block" },
    [BN] = { "bn", 32, 256, "columns of a block" },
    [BK] = { "bk", 8, 32, "k that a block loads at a time" },
    [TM] = { "tm", 4, 8, "rows of a thread" },
    [TN] = { "tn", 4, 8, "columns of a thread" },
    [SPLIT_K] = { "split_k", 1, GEMM_CUDA_MAX_SPLIT, "shares of k that are summed apart" },
    [GROUP] = { "group", 1, GEMM_CUDA_MAX_GROUP, "rows of tiles that share columns in L2" },
};

/* Tile of a block and of a thread, largest first. */
static const struct shape {
    int bm, bn, tm, tn;
} shapes[] = {
    { 128, 128, 8, 8 }, { 64, 128, 8, 8 }, { 128, 64, 8, 8 }, { 64, 64, 4, 8 },
    { 64, 64, 4, 4 },   { 32, 128, 4, 8 }, { 32, 64, 4, 4 },  { 16, 256, 4, 8 },
    { 16, 128, 4, 8 },  { 16, 128, 4, 4 }, { 16, 64, 4, 4 },  { 16, 32, 4, 4 },
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static const int depths[] = { 8, 16, 32 };
enum { DEPTHS = sizeof(depths) / sizeof(depths[0]) };

/* Vectors of four that a thread loads ahead, beside its sums. */
enum { MOST_VECTORS_SMALL = 12, MOST_VECTORS_LARGE = 6 };

static int threads_of(const int32_t *config)
{
    return config[BM] / config[TM] * (config[BN] / config[TN]);
}

/* Two buffers, in f32. */
static int shared_bytes(const int32_t *config)
{
    return 2 * 4 * config[BK] * (config[BM] + config[BN]);
}

/* Whether 128 registers hold the sums of a large tile and the loads ahead: without conversions,
 * loads of single elements, a b whose vectors lie along n, bias or old d, and (gemm_ffma's unrolled
 * loop being what it is) at one depth. Other configs would spill on one target or another. */
static int is_plain(const struct quern_problem *problem, const int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int is_f32 = v->a == QUERN_F32 && v->b == QUERN_F32 && v->d == QUERN_F32;
    return is_f32 && !v->layout && !v->bias && !v->accumulate && config[BK] == 16 &&
           problem->alignment[ARRAY_a] >= 16 && problem->alignment[ARRAY_b] >= 16;
}

/* Blocks that an SM's registers must hold: two hide each other's loads. */
static int blocks_an_sm(const struct quern_problem *problem, const int32_t *config)
{
    return config[TM] * config[TN] <= 32 || is_plain(problem, config) ? 2 : 1;
}

static int is_power_of_two(int value)
{
    return value > 0 && !(value & (value - 1));
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    for (int i = BM; i <= TN; i++)
        if (!is_power_of_two(config[i]))
            return quern_refuse(why, "config %s=%d: must be a power of two", knobs[i].name,
                                config[i]);
    int across = config[BN] / config[TN], down = config[BM] / config[TM];
    if (across % 8 || down % 4 || across * down > 256)
        return quern_refuse(why,
                            "config bm=%d bn=%d tm=%d tn=%d: must give a multiple of 4 by a "
                            "multiple of 8 threads, at most 256",
                            config[BM], config[BN], config[TM], config[TN]);
    int vectors = (config[BM] + config[BN]) * config[BK] / 4 / threads_of(config);
    int most = config[TM] * config[TN] > 32 ? MOST_VECTORS_LARGE : MOST_VECTORS_SMALL;
    if (vectors > most)
        return quern_refuse(why, "config bk=%d: a thread would load %d vectors ahead, at most %d",
                            config[BK], vectors, most);
    int64_t most_shared = gemm_cuda_profile(problem).l1_bytes;
    if (shared_bytes(config) > most_shared)
        return quern_refuse(why, "config bk=%d: takes %d bytes of shared memory, at most %lld",
                            config[BK], shared_bytes(config), (long long)most_shared);
    return gemm_cuda_legal(problem, config[BM], config[BN], config[SPLIT_K], why);
}

/* ---- Choosing ---- */

static double time_of(const struct quern_problem *problem, int32_t *config)
{
    double sums = config[TM] * config[TN], reads = config[TM] + config[TN];
    int beside = blocks_an_sm(problem, config) > 1 ? 48 : 80;
    int threads = threads_of(config), registers = (int)(sums + reads) + beside;
    int64_t by_shared =
        (gemm_cuda_profile(problem).l1_bytes + 1024) / (shared_bytes(config) + 1024);
    int64_t resident = 65536 / ((int64_t)registers * threads);
    resident = by_shared < resident ? by_shared : resident;
    struct gemm_cuda_work work = {
        .bm = config[BM],
        .bn = config[BN],
        .bk = config[BK],
        .split_k = config[SPLIT_K],
        .resident = resident < 1    ? 1
                    : resident > 16 ? 16
                                    : (int)resident,
        .tiles_ahead = 1,
        .tile_us = 0.05 + 0.004 * config[BK],
        .tflops = gemm_cuda_profile(problem).f32_tflops * sums / (sums + reads),
        /* A warp's 8 x 4 threads read 8 TN and 4 TM elements; stores are scattered. */
        .shared_bytes_a_k = 4.0 * (threads / 32 * (8 * config[TN] + 4 * config[TM]) +
                                   2 * (config[BM] + config[BN])),
    };
    int warps = work.resident * threads / 32;
    work.tflops *= config[BK] / (config[BK] + 1.0); /* loads, stores and a barrier a tile */
    work.tflops *= warps >= 16 ? 1 : warps >= 8 ? 0.97 : 0.12 * warps;
    config[GROUP] = gemm_cuda_group(problem, &work);
    return gemm_cuda_time(problem, &work);
}

/* The best three of one tile and depth. */
static void rank_splits(const struct quern_problem *problem, int32_t *config,
                        struct gemm_cuda_ranking *ranking)
{
    struct gemm_cuda_ranking best = { .most = 3 };
    struct quern_message why;
    int splits[GEMM_CUDA_SPLITS], split_count = gemm_cuda_splits(problem, config[BK], splits);
    for (int i = 0; i < split_count; i++) {
        config[SPLIT_K] = splits[i];
        config[GROUP] = 1;
        if (!legal(problem, config, &why))
            gemm_cuda_rank(&best, time_of(problem, config), config, KNOB_COUNT);
    }
    for (int i = 0; i < best.count; i++)
        gemm_cuda_rank(ranking, best.times[i], best.configs[i], KNOB_COUNT);
}

static void rank_all(const struct quern_problem *problem, struct gemm_cuda_ranking *ranking)
{
    for (int i = 0; i < SHAPES; i++)
        for (int j = 0; j < DEPTHS; j++) {
            int32_t config[KNOB_COUNT] = {
                [BM] = shapes[i].bm, [BN] = shapes[i].bn, [BK] = depths[j],
                [TM] = shapes[i].tm, [TN] = shapes[i].tn,
            };
            rank_splits(problem, config, ranking);
        }
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct gemm_cuda_ranking ranking = { .most = 1 };
    rank_all(problem, &ranking);
    memcpy(config, ranking.configs[0], KNOB_COUNT * sizeof(*config));
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    struct gemm_cuda_ranking ranking = { .most = 30 };
    rank_all(problem, &ranking);
    if (gemm_sm80.supports(problem)) /* tensor cores are the likely winner */
        max = max < 2 ? max : 2;
    return gemm_cuda_list(&ranking, GROUP, KNOB_COUNT, configs, max);
}

/* ---- Plan and bind ---- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char source[] = "gemm/gemm_ffma.cu";
    struct quern_step *step = quern_plan_kernel(plan, "main", source, "gemm_ffma");
    quern_step_define(step, "A_DTYPE", values_of(problem->bucket)->a);
    quern_step_define(step, "B_DTYPE", values_of(problem->bucket)->b);
    gemm_cuda_define(problem, step);
    quern_step_define_config(step, &gemm_ffma, config);
    quern_step_define(step, "BLOCKS_AN_SM", blocks_an_sm(problem, config));
    step->threads[0] = (uint32_t)threads_of(config);
    step->threads[1] = step->threads[2] = 1;
    step->shared_bytes = (uint32_t)shared_bytes(config);
    gemm_cuda_add_reduce(problem, source, config[SPLIT_K], plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const int32_t *config = binding->config;
    gemm_cuda_bind(binding, config[BM], config[BN], config[SPLIT_K], launch);
}

const struct quern_variant gemm_ffma = {
    .name = "gemm_ffma",
    .doc = "f32 multiply-add; any mix of dtypes",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = gemm_cuda_supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
