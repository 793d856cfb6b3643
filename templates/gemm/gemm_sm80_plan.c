/* The tensor-core variant of gemm for sm_80 and up, host side. gemm_sm80.cu says what the steps do,
 * gemm_cuda.c what is shared with gemm_ffma.
 *
 * Configs are all combinations of a tile from the list below, the bytes of a line of k, stages and
 * shares of k that fit; ranked by the model, the best two of each tile and line. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <string.h>

#include "gemm_cuda.h"

enum { BM, BN, BK, WARPS_M, WARPS_N, STAGES, SPLIT_K, GROUP, KNOB_COUNT };

static const struct quern_knob knobs[] = {
    [BM] = { "bm", 16, 256, "rows of a block" },
    [BN] = { "bn", 16, 256, "columns of a block" },
    [BK] = { "bk", 16, 128, "k that a block copies at a time" },
    [WARPS_M] = { "warps_m", 1, 8, "warps along the rows" },
    [WARPS_N] = { "warps_n", 1, 8, "warps along the columns" },
    [STAGES] = { "stages", 2, 8, "tiles of k in shared memory" },
    [SPLIT_K] = { "split_k", 1, GEMM_CUDA_MAX_SPLIT, "shares of k that are summed apart" },
    [GROUP] = { "group", 1, GEMM_CUDA_MAX_GROUP, "rows of tiles that share columns in L2" },
};

/* Tile and warps, largest first. */
static const struct shape {
    int bm, bn, warps_m, warps_n;
} shapes[] = {
    { 256, 128, 4, 2 }, { 128, 256, 2, 4 }, { 128, 128, 2, 2 }, { 128, 128, 2, 4 },
    { 256, 64, 4, 1 },  { 64, 256, 1, 4 },  { 128, 64, 2, 2 },  { 64, 128, 2, 2 },
    { 64, 64, 2, 2 },   { 128, 32, 4, 1 },  { 32, 256, 1, 4 },  { 32, 128, 1, 4 },
    { 32, 64, 1, 2 },   { 64, 32, 2, 1 },   { 64, 16, 4, 1 },   { 16, 256, 1, 4 },
    { 16, 128, 1, 4 },  { 16, 64, 1, 4 },   { 16, 64, 1, 2 },   { 16, 32, 1, 2 },
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static const int line_bytes[] = { 64, 128, 256 };
static const int stage_counts[] = { 2, 3, 4, 5, 6, 8 };
enum {
    LINES = sizeof(line_bytes) / sizeof(line_bytes[0]),
    STAGE_COUNTS = sizeof(stage_counts) / sizeof(stage_counts[0])
};

static int supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    int is_16_bit = v->a == QUERN_BF16 || v->a == QUERN_F16;
    return gemm_cuda_supports(problem) && v->a == v->b && (is_16_bit || v->math);
}

/* ---- Legality ---- */

static int is_power_of_two(int value)
{
    return value > 0 && !(value & (value - 1));
}

static int size_of(const struct quern_problem *problem)
{
    return (int)quern_dtype_bytes((int)values_of(problem->bucket)->a);
}

static int warps_of(const int32_t *config)
{
    return config[WARPS_M] * config[WARPS_N];
}

/* Stages, then the same memory for what a warp stores: 16 rows of its columns, 8 more as
 * padding. */
static int64_t shared_bytes(const struct quern_problem *problem, const int32_t *config)
{
    int64_t stages = (int64_t)config[STAGES] * (config[BM] + config[BN]) * config[BK];
    int64_t staging = 16 * 4 * (config[BN] / config[WARPS_N] + 8) * warps_of(config);
    stages *= size_of(problem);
    return stages > staging ? stages : staging;
}

/* k between additions to totals (gemm_sm80.cu). tf32 is less exact than what they would save. */
enum { TOTAL_K = 256 };

static int has_totals(const struct quern_problem *problem)
{
    return values_of(problem->bucket)->d == QUERN_F32 && size_of(problem) == 2;
}

/* Sums of a thread; what else it holds leaves it this many without spilling. */
static int most_sums(const struct quern_problem *problem)
{
    return has_totals(problem) || problem->alignment[ARRAY_a] < 8 || problem->alignment[ARRAY_b] < 8
               ? 64
               : 128;
}

static int legal_tile(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    for (int i = BM; i <= WARPS_N; i++)
        if (!is_power_of_two(config[i]))
            return quern_refuse(why, "config %s=%d: must be a power of two", knobs[i].name,
                                config[i]);
    int wm = config[BM] / config[WARPS_M], wn = config[BN] / config[WARPS_N];
    if (wm < 16 || wn < 16 || wm * wn / 32 > most_sums(problem))
        return quern_refuse(why,
                            "config bm=%d bn=%d warps_m=%d warps_n=%d: a warp's %dx%d must be at "
                            "least 16x16 and at most %d elements",
                            config[BM], config[BN], config[WARPS_M], config[WARPS_N], wm, wn,
                            32 * most_sums(problem));
    if (warps_of(config) > 8)
        return quern_refuse(why, "config warps_m=%d warps_n=%d: at most 8 warps", config[WARPS_M],
                            config[WARPS_N]);
    int line = config[BK] * size_of(problem);
    if (line < 64 || line > 256)
        return quern_refuse(why, "config bk=%d: must be 64 to 256 bytes", config[BK]);
    return QUERN_OK;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    struct quern_profile profile = gemm_cuda_profile(problem);
    int status = legal_tile(problem, config, why);
    if (status)
        return status;
    /* b as [k,n]: a line of it is BN wide. */
    int line = config[BN] * size_of(problem);
    if (values_of(problem->bucket)->layout && 32 * warps_of(config) % (line / 16))
        return quern_refuse(why, "config bn=%d: too wide for %d warps where layout=nn", config[BN],
                            warps_of(config));
    if (shared_bytes(problem, config) > profile.l1_bytes)
        return quern_refuse(
            why, "config stages=%d: takes %lld bytes of shared memory, at most %lld",
            config[STAGES], (long long)shared_bytes(problem, config), (long long)profile.l1_bytes);
    return gemm_cuda_legal(problem, config[BM], config[BN], config[SPLIT_K], why);
}

/* ---- Choosing ---- */

/* What mma.sync reaches of the rate that the profile has: all of it where there is nothing faster,
 * less beside wgmma and tcgen05. */
static double share_of_rate(int sm)
{
    return sm >= 100 && sm < 120 ? 0.3 : sm >= 90 && sm < 100 ? 0.6 : 0.9;
}

static int resident_blocks(const struct quern_problem *problem, const int32_t *config)
{
    int wm = config[BM] / config[WARPS_M], wn = config[BN] / config[WARPS_N];
    int sums = wm * wn / 32 * (has_totals(problem) ? 2 : 1),
        registers = sums + wm / 2 + wn / 2 + 56;
    int threads = 32 * warps_of(config);
    int64_t by_shared =
        (gemm_cuda_profile(problem).l1_bytes + 1024) / (shared_bytes(problem, config) + 1024);
    int64_t blocks = 65536 / ((int64_t)registers * threads);
    blocks = by_shared < blocks ? by_shared : blocks;
    return blocks < 1 ? 1 : blocks > 16 ? 16 : (int)blocks;
}

static double time_of(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int wm = config[BM] / config[WARPS_M], wn = config[BN] / config[WARPS_N];
    int size = size_of(problem), resident = resident_blocks(problem, config);
    struct gemm_cuda_work work = {
        .bm = config[BM],
        .bn = config[BN],
        .bk = config[BK],
        .split_k = config[SPLIT_K],
        .resident = resident,
        .tiles_ahead = config[STAGES] - 1,
        .tflops = gemm_cuda_profile(problem).tensor_tflops * share_of_rate(problem->target->sm),
        .shared_bytes_a_k = (double)size * (warps_of(config) * (wm + wn) + config[BM] + config[BN]),
    };
    if (v->math && size == 4)
        work.tflops /= 2;
    /* A scheduler with one warp waits for it; short lines cost a barrier more often. */
    int warps = resident * warps_of(config);
    work.tflops *= warps >= 8 ? 1 : warps >= 4 ? 0.85 : 0.2 * warps;
    work.tflops *= config[BK] * size >= 128 ? 1 : 0.96;
    config[GROUP] = gemm_cuda_group(problem, &work);
    return gemm_cuda_time(problem, &work);
}

/* The best two of one tile and line. */
static void rank_stages(const struct quern_problem *problem, int32_t *config,
                        struct gemm_cuda_ranking *ranking)
{
    struct gemm_cuda_ranking best = { .most = 2 };
    struct quern_message why;
    int splits[GEMM_CUDA_SPLITS], split_count = gemm_cuda_splits(problem, config[BK], splits);
    for (int i = 0; i < STAGE_COUNTS; i++)
        for (int j = 0; j < split_count; j++) {
            config[STAGES] = stage_counts[i];
            config[SPLIT_K] = splits[j];
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
        for (int j = 0; j < LINES; j++) {
            if (line_bytes[j] > 128 && shapes[i].bm * shapes[i].bn > 64 * 128)
                continue; /* too few stages would fit */
            int32_t config[KNOB_COUNT] = {
                [BM] = shapes[i].bm,
                [BN] = shapes[i].bn,
                [BK] = line_bytes[j] / size_of(problem),
                [WARPS_M] = shapes[i].warps_m,
                [WARPS_N] = shapes[i].warps_n,
            };
            rank_stages(problem, config, ranking);
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
    struct gemm_cuda_ranking ranking = { .most = 32 };
    rank_all(problem, &ranking);
    if (gemm_sm90.supports(problem)) /* the likely winner: a few to compare with */
        max = max < 8 ? max : 8;
    return gemm_cuda_list(&ranking, GROUP, KNOB_COUNT, configs, max);
}

/* ---- Plan and bind ---- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const char source[] = "gemm/gemm_sm80.cu";
    struct quern_step *step = quern_plan_kernel(plan, "main", source, "gemm_sm80");
    quern_step_define(step, "DTYPE", values_of(problem->bucket)->a);
    quern_step_define(step, "TOTAL_TILES", has_totals(problem) ? TOTAL_K / config[BK] : 0);
    gemm_cuda_define(problem, step);
    quern_step_define_config(step, &gemm_sm80, config);
    step->threads[0] = (uint32_t)(32 * warps_of(config));
    step->threads[1] = step->threads[2] = 1;
    step->shared_bytes = (uint32_t)shared_bytes(problem, config);
    gemm_cuda_add_reduce(problem, source, config[SPLIT_K], plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const int32_t *config = binding->config;
    gemm_cuda_bind(binding, config[BM], config[BN], config[SPLIT_K], launch);
}

const struct quern_variant gemm_sm80 = {
    .name = "gemm_sm80",
    .doc = "tensor cores by mma.sync, fed by cp.async; bf16, f16, tf32",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
