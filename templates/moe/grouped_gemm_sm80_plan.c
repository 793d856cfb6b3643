/* The tensor-core variant of grouped_gemm for sm_80 and up, host side. grouped_gemm_sm80.cu says
 * what its one step does; a plan of another family may have such a step as well.
 *
 * Configs are all combinations of a tile from the list below, the bytes of a line of k and stages
 * that fit, ranked by a model. Blocks walk over tiles, so a launch takes the longest of
 *
 *     rounds x what an SM takes for as many tiles as it holds blocks; that is the longest of
 *         products / rate, bytes / the SM's share of L2, steps of k x latency / steps ahead
 *     all bytes / memory's rate
 *
 * where rounds are tiles / (SMs x resident blocks), rounded up while there are few. How many rows
 * an expert has is not known; the mean is, and that they differ: a tile of BM rows is the last
 * one of its expert, filled by half, as often as not. "The longest" is a fourth root of the sum
 * of fourth powers. The model ranks; it does not predict. */
#include <math.h>
#include <string.h>

#include "grouped_gemm_sm80.h"
#include "grouped_gemm_sm80_args.h"
#include "grouped_gemm_sm90_plan.h"

enum {
    BM = GROUPED_GEMM_SM80_BM,
    BN = GROUPED_GEMM_SM80_BN,
    BK = GROUPED_GEMM_SM80_BK,
    WARPS_M = GROUPED_GEMM_SM80_WARPS_M,
    WARPS_N = GROUPED_GEMM_SM80_WARPS_N,
    STAGES = GROUPED_GEMM_SM80_STAGES,
    GROUP = GROUPED_GEMM_SM80_GROUP,
    BLOCKS = GROUPED_GEMM_SM80_BLOCKS,
    KNOB_COUNT = GROUPED_GEMM_SM80_KNOBS
};

static const struct quern_knob knobs[] = {
    [BM] = { "bm", 16, 256, "rows of a tile" },
    [BN] = { "bn", 16, 256, "lines of b that a tile needs: twice its columns with an activation" },
    [BK] = { "bk", 32, 128, "k that a block copies at a time" },
    [WARPS_M] = { "warps_m", 1, 8, "warps along the rows" },
    [WARPS_N] = { "warps_n", 1, 8, "warps along the columns" },
    [STAGES] = { "stages", 2, 8, "steps of k in shared memory" },
    [GROUP] = { "group", 1, 64, "rows of tiles that share columns in L2" },
    [BLOCKS] = { "blocks", 1, 8, "blocks for each SM" },
};

/* Tile and warps, largest first. */
static const struct shape {
    int bm, bn, warps_m, warps_n;
} shapes[] = {
    { 256, 128, 4, 2 }, { 128, 256, 2, 4 }, { 128, 128, 2, 2 }, { 128, 128, 2, 4 },
    { 64, 256, 2, 4 },  { 128, 64, 2, 2 },  { 64, 128, 2, 2 },  { 64, 128, 1, 4 },
    { 64, 64, 2, 2 },   { 32, 256, 1, 4 },  { 32, 128, 1, 4 },  { 32, 64, 1, 2 },
    { 16, 256, 1, 4 },  { 16, 128, 1, 4 },  { 16, 64, 1, 2 },
};
static const int line_bytes[] = { 64, 128, 256 };
static const int stage_counts[] = { 2, 3, 4, 5, 6, 8 };
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

#define MOST_TILES 4294900000.0 /* numbered in 32 bits, with room for a step of the grid */
#define LATENCY_US 0.8          /* from asking for a step to having it, memory being busy */
#define TILE_US 0.5             /* to find a tile, and to store it */
#define SIZE 2                  /* bytes of an element of a and b */

/* ---- What is possible ---- */

static struct quern_profile profile_of(const struct grouped_gemm_sm80_problem *problem)
{
    struct quern_profile profile = *problem->profile;
    profile.cores = profile.cores > 0 ? profile.cores : 64;
    profile.l1_bytes = profile.l1_bytes > 0 ? profile.l1_bytes : 101376;
    profile.memory_gbps = profile.memory_gbps > 0 ? profile.memory_gbps : 500;
    profile.l2_gbps = profile.l2_gbps > 0 ? profile.l2_gbps : 2000;
    profile.tensor_tflops = profile.tensor_tflops > 0 ? profile.tensor_tflops : 80;
    profile.launch_us = profile.launch_us > 0 ? profile.launch_us : 1.5;
    return profile;
}

static int halves_of(const struct grouped_gemm_work *work)
{
    return work->activation ? 2 : 1;
}

/* At most; each expert may have one tile that is not full. */
static double most_row_tiles(const struct grouped_gemm_work *work, int bm)
{
    double experts = (double)work->experts, m = (double)work->m;
    if (work->form == GROUPED_GEMM_MASKED)
        return experts * (double)grouped_gemm_ceil_div(work->m, bm);
    if (work->form == GROUPED_GEMM_BLOCKS)
        return (double)grouped_gemm_ceil_div(work->m, work->block) *
               (double)grouped_gemm_ceil_div(work->block, bm);
    return m / bm + (experts < m ? experts : m);
}

static double most_tiles(const struct grouped_gemm_work *work, int bm, int bn)
{
    return most_row_tiles(work, bm) * (double)grouped_gemm_ceil_div(work->n, bn / halves_of(work));
}

int grouped_gemm_sm80_serves(const struct grouped_gemm_sm80_problem *problem)
{
    const struct grouped_gemm_work *work = &problem->work;
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           (work->dtype == QUERN_BF16 || work->dtype == QUERN_F16) &&
           most_tiles(work, 64, 64) <= MOST_TILES; /* a tile that is always legal */
}

/* ---- Legality ---- */

static int is_power_of_two(int value)
{
    return value > 0 && !(value & (value - 1));
}

static int warps_of(const int32_t *config)
{
    return config[WARPS_M] * config[WARPS_N];
}

enum { SCRATCH_BYTES = 128 }; /* that the kernel has besides, to scan the experts */

static int64_t shared_bytes(const struct grouped_gemm_work *work, const int32_t *config)
{
    int64_t list = work->form == GROUPED_GEMM_BLOCKS ? 0 : 8 * (work->experts + 1);
    return (list + 127) / 128 * 128 +
           (int64_t)config[STAGES] * (config[BM] + config[BN]) * config[BK] * SIZE;
}

enum { TOTAL_K = 256 }; /* k between additions to totals */

static int has_totals(const struct grouped_gemm_work *work)
{
    return work->d == QUERN_F32 && !work->is_plain;
}

/* Sums of a thread; what else it holds leaves it this many without spilling: totals are as many
 * again, chunks that are not copied whole need addresses. */
static int most_sums(const struct grouped_gemm_work *work)
{
    int most = work->align_a < 16 || work->align_b < 16 ? 64 : 128;
    return has_totals(work) ? most / 2 : most;
}

static int legal_tile(const struct grouped_gemm_work *work, const int32_t *config,
                      struct quern_message *why)
{
    for (int i = BM; i <= WARPS_N; i++)
        if (!is_power_of_two(config[i]))
            return quern_refuse(why, "config %s=%d: must be a power of two", knobs[i].name,
                                config[i]);
    int wm = config[BM] / config[WARPS_M], wn = config[BN] / config[WARPS_N];
    if (wm < 16 || wn < 16 || wm * wn / 32 > most_sums(work))
        return quern_refuse(why,
                            "config bm=%d bn=%d warps_m=%d warps_n=%d: a warp's %dx%d must be at "
                            "least 16x16 and at most %d elements",
                            config[BM], config[BN], config[WARPS_M], config[WARPS_N], wm, wn,
                            32 * most_sums(work));
    if (warps_of(config) > 8)
        return quern_refuse(why, "config warps_m=%d warps_n=%d: at most 8 warps", config[WARPS_M],
                            config[WARPS_N]);
    return QUERN_OK;
}

int grouped_gemm_sm80_legal(const struct grouped_gemm_sm80_problem *problem, const int32_t *config,
                            struct quern_message *why)
{
    const struct grouped_gemm_work *work = &problem->work;
    struct quern_profile profile = profile_of(problem);
    if (legal_tile(work, config, why))
        return QUERN_INVALID;
    if (most_tiles(work, config[BM], config[BN]) > MOST_TILES)
        return quern_refuse(why, "config bm=%d bn=%d: more than %.0f tiles", config[BM], config[BN],
                            MOST_TILES);
    if (shared_bytes(work, config) + SCRATCH_BYTES > profile.l1_bytes)
        return quern_refuse(why,
                            "config stages=%d: takes %lld bytes of shared memory, at most %lld",
                            config[STAGES], (long long)shared_bytes(work, config),
                            (long long)profile.l1_bytes - SCRATCH_BYTES);
    if (config[GROUP] * grouped_gemm_ceil_div(work->n, config[BN] / halves_of(work)) > UINT32_MAX)
        return quern_refuse(why, "config group=%d: more than 2^32 tiles", config[GROUP]);
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

/* What mma.sync reaches of the rate that the profile has: all of it where there is nothing faster,
 * less beside wgmma and tcgen05. */
static double share_of_rate(int sm)
{
    return sm >= 100 && sm < 120 ? 0.3 : sm >= 90 && sm < 100 ? 0.6 : 0.9;
}

static int resident_blocks(const struct grouped_gemm_sm80_problem *problem, const int32_t *config)
{
    const struct grouped_gemm_work *work = &problem->work;
    int wm = config[BM] / config[WARPS_M], wn = config[BN] / config[WARPS_N];
    int sums = wm * wn / 32 * (has_totals(work) ? 2 : 1), registers = sums + wm / 2 + wn / 2 + 64;
    int64_t by_shared = (profile_of(problem).l1_bytes + 1024) / (shared_bytes(work, config) + 1024);
    int64_t blocks = 65536 / ((int64_t)registers * 32 * warps_of(config));
    blocks = by_shared < blocks ? by_shared : blocks;
    return blocks < 1 ? 1 : blocks > 8 ? 8 : (int)blocks;
}

/* Of an expert that has some, on average. */
static double rows_of_expert(const struct grouped_gemm_work *work)
{
    double rows = work->form == GROUPED_GEMM_BLOCKS   ? work->block
                  : work->form == GROUPED_GEMM_MASKED ? (double)work->m / 2
                                                      : (double)work->m / (double)work->experts;
    return rows > 1 ? rows : 1;
}

/* Rows of tiles of an expert. */
static double tiles_of_expert(const struct grouped_gemm_work *work, int bm)
{
    double rows = rows_of_expert(work);
    if (work->form == GROUPED_GEMM_BLOCKS)
        return (double)grouped_gemm_ceil_div(work->block, bm);
    return rows < bm ? 1 + rows / bm * 0.5 : rows / bm + 0.5;
}

static double experts_hit(const struct grouped_gemm_work *work)
{
    double experts = (double)work->experts, m = (double)work->m;
    if (work->form == GROUPED_GEMM_BLOCKS)
        return m / work->block > 1 ? m / work->block : 1;
    return experts < m || work->form == GROUPED_GEMM_MASKED ? experts : m > 1 ? m : 1;
}

/* An SM with `blocks` tiles at a time. */
static double tile_time(const struct grouped_gemm_sm80_problem *problem,
                        const struct quern_profile *profile, const int32_t *config, double blocks)
{
    double k = (double)grouped_gemm_ceil_div(problem->work.k, config[BK]) * config[BK];
    double rate = profile->tensor_tflops * share_of_rate(problem->target->sm) * 1e6;
    double bytes = (config[BM] + config[BN]) * k * SIZE;
    int warps = (int)blocks * warps_of(config);
    rate *= warps >= 8 ? 1 : warps >= 4 ? 0.85 : 0.2 * warps;
    rate *= config[BK] * SIZE >= 128 ? 1 : 0.96;
    const double times[] = {
        blocks * 2.0 * config[BM] * config[BN] * k / (rate / profile->cores),
        blocks * bytes / (profile->l2_gbps * 1e3 / profile->cores),
        k / config[BK] * LATENCY_US / (config[STAGES] - 1),
    };
    return longest_of(times, 3) + TILE_US;
}

/* Microseconds. */
static double time_of(const struct grouped_gemm_sm80_problem *problem, const int32_t *config)
{
    const struct grouped_gemm_work *work = &problem->work;
    struct quern_profile profile = profile_of(problem);
    double hit = experts_hit(work), width = (double)work->n * halves_of(work);
    double columns = (double)grouped_gemm_ceil_div(work->n, config[BN] / halves_of(work));
    double tiles = hit * tiles_of_expert(work, config[BM]) * columns;
    double rounds = tiles / ((double)profile.cores * config[BLOCKS]), whole = ceil(rounds);
    double matrices = work->form == GROUPED_GEMM_BLOCKS && hit > (double)work->experts
                          ? (double)work->experts
                          : hit;
    double bytes =
        SIZE * (matrices * width + rows_of_expert(work) * hit) * (double)work->k +
        rows_of_expert(work) * hit * (double)work->n * (double)quern_dtype_bytes(work->d);
    rounds = rounds < 1 ? 1 : (rounds + whole) / 2; /* blocks that are ahead take more */
    const double times[] = {
        rounds * tile_time(problem, &profile, config, config[BLOCKS]),
        bytes / (profile.memory_gbps * 1e3),
    };
    return longest_of(times, 2) + LATENCY_US + profile.launch_us;
}

/* ---- Ranking ---- */

enum { RANKED = 32 };

struct ranking {
    int count, most;
    double times[RANKED];
    int32_t configs[RANKED][KNOB_COUNT];
};

static void rank(struct ranking *ranking, double time, const int32_t *config)
{
    int at = ranking->count;
    while (at > 0 && time < ranking->times[at - 1])
        at--;
    if (at == ranking->most)
        return;
    ranking->count += ranking->count < ranking->most;
    for (int i = ranking->count - 1; i > at; i--) {
        ranking->times[i] = ranking->times[i - 1];
        memcpy(ranking->configs[i], ranking->configs[i - 1], sizeof(ranking->configs[i]));
    }
    ranking->times[at] = time;
    memcpy(ranking->configs[at], config, sizeof(ranking->configs[at]));
}

/* Rows of tiles that a group has: those of an expert, up to some that leave a's rows in L2. */
static int group_of(const struct grouped_gemm_work *work, int bm)
{
    double tiles = tiles_of_expert(work, bm);
    return tiles > 8 ? 16 : 8;
}

/* The best two of one tile and line. */
static void rank_stages(const struct grouped_gemm_sm80_problem *problem, int32_t *config,
                        struct ranking *ranking)
{
    struct ranking best = { .most = 2 };
    struct quern_message why;
    config[GROUP] = group_of(&problem->work, config[BM]);
    for (int i = 0; i < COUNT(stage_counts); i++) {
        config[STAGES] = stage_counts[i];
        config[BLOCKS] = 1;
        if (grouped_gemm_sm80_legal(problem, config, &why))
            continue;
        for (config[BLOCKS] = resident_blocks(problem, config); config[BLOCKS]; config[BLOCKS]--)
            rank(&best, time_of(problem, config), config);
    }
    for (int i = 0; i < best.count; i++)
        rank(ranking, best.times[i], best.configs[i]);
}

int grouped_gemm_sm80_rank(const struct grouped_gemm_sm80_problem *problem,
                           int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    struct ranking ranking = { .most = max < RANKED ? max : RANKED };
    for (int i = 0; i < COUNT(shapes); i++)
        for (int j = 0; j < COUNT(line_bytes); j++) {
            if (line_bytes[j] > 128 && shapes[i].bm * shapes[i].bn > 64 * 128)
                continue; /* too few stages would fit */
            int32_t config[KNOB_COUNT] = {
                [BM] = shapes[i].bm,           [BN] = shapes[i].bn,
                [BK] = line_bytes[j] / SIZE,   [WARPS_M] = shapes[i].warps_m,
                [WARPS_N] = shapes[i].warps_n,
            };
            rank_stages(problem, config, &ranking);
        }
    for (int i = 0; i < ranking.count; i++)
        memcpy(configs[i], ranking.configs[i], sizeof(ranking.configs[i]));
    return ranking.count;
}

/* ---- Plan and bind ---- */

void grouped_gemm_sm80_plan(const struct grouped_gemm_sm80_problem *problem, const int32_t *config,
                            const char *name, struct quern_plan *plan)
{
    const struct grouped_gemm_work *work = &problem->work;
    struct quern_step *step =
        quern_plan_kernel(plan, name, "moe/grouped_gemm_sm80.cu", "grouped_gemm_sm80");
    quern_step_define(step, "DTYPE", work->dtype);
    quern_step_define(step, "D_DTYPE", work->d);
    quern_step_define(step, "FORM", work->form);
    quern_step_define(step, "GATHER", work->gather);
    quern_step_define(step, "ACTIVATION", work->activation);
    quern_step_define(step, "ALIGN_A", work->align_a);
    quern_step_define(step, "ALIGN_B", work->align_b);
    quern_step_define(step, "ALIGN_D", work->align_d);
    quern_step_define(step, "TOTAL_STEPS", has_totals(work) ? TOTAL_K / config[BK] : 0);
    for (int i = 0; i < BLOCKS; i++) {
        char define[32];
        size_t length = strlen(knobs[i].name);
        for (size_t c = 0; c <= length; c++)
            define[c] = knobs[i].name[c] >= 'a' && knobs[i].name[c] <= 'z'
                            ? (char)(knobs[i].name[c] - 'a' + 'A')
                            : knobs[i].name[c];
        quern_step_define(step, define, config[i]);
    }
    step->threads[0] = (uint32_t)(32 * warps_of(config));
    step->threads[1] = step->threads[2] = 1;
    step->shared_bytes = (uint32_t)shared_bytes(work, config);
    step->is_programmatic = problem->target->sm >= 90;
}

void grouped_gemm_sm80_bind(const struct grouped_gemm_work *work,
                            const struct grouped_gemm_place *place, const int32_t *config,
                            const struct quern_profile *profile, struct quern_step_launch *step)
{
    double tiles = most_tiles(work, config[BM], config[BN]);
    double blocks = (double)(profile->cores > 0 ? profile->cores : 64) * config[BLOCKS];
    struct grouped_gemm_sm80_args args = {
        .a_row_stride = place->a_row_stride,
        .b_row_stride = place->b_row_stride,
        .d_row_stride = place->d_row_stride,
        .a_expert_stride = place->a_expert_stride,
        .b_expert_stride = place->b_expert_stride,
        .d_expert_stride = place->d_expert_stride,
        .a = place->a,
        .b = place->b,
        .d = place->d,
        .offsets = place->offsets,
        .expert_ids = place->expert_ids,
        .num_rows = place->num_rows,
        .counts = place->counts,
        .row_ids = place->row_ids,
        .experts = (int32_t)work->experts,
        .m = (int32_t)work->m,
        .n = (int32_t)work->n,
        .k = (int32_t)work->k,
        .source_rows = (int32_t)work->source_rows,
        .share = (int32_t)work->share,
        .block = work->block,
        .n_tiles = (int32_t)grouped_gemm_ceil_div(work->n, config[BN] / halves_of(work)),
        .limit = work->limit,
    };
    QUERN_BIND(step, args, tiles < blocks ? tiles : blocks, 1, 1);
}

/* ---- The variant ---- */

static struct grouped_gemm_sm80_problem problem_of(const struct quern_problem *problem)
{
    struct grouped_gemm_sm80_problem own = { .target = problem->target,
                                             .profile = problem->profile };
    grouped_gemm_work_of(problem->bucket, problem->alignment, &own.work);
    return own;
}

static int supports(const struct quern_problem *problem)
{
    const struct grouped_gemm_sm80_problem own = problem_of(problem);
    return grouped_gemm_sm80_serves(&own);
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct grouped_gemm_sm80_problem own = problem_of(problem);
    return grouped_gemm_sm80_legal(&own, config, why);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct grouped_gemm_sm80_problem own = problem_of(problem);
    int32_t best[1][QUERN_MAX_KNOBS];
    grouped_gemm_sm80_rank(&own, best, 1);
    memcpy(config, best[0], KNOB_COUNT * sizeof(*config));
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    const struct grouped_gemm_sm80_problem own = problem_of(problem);
    if (grouped_gemm_sm90.supports(problem)) /* the likely winner: a few to compare with */
        max = max < 6 ? max : 6;
    return grouped_gemm_sm80_rank(&own, configs, max);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct grouped_gemm_sm80_problem own = problem_of(problem);
    grouped_gemm_sm80_plan(&own, config, "main", plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct grouped_gemm_work work;
    struct grouped_gemm_place place;
    grouped_gemm_work_of(binding->spec, NULL, &work);
    grouped_gemm_place_of(binding, &place);
    grouped_gemm_sm80_bind(&work, &place, binding->config, binding->profile, &launch->steps[0]);
}

const struct quern_variant grouped_gemm_sm80 = {
    .name = "grouped_gemm_sm80",
    .doc = "tensor cores by mma.sync, fed by cp.async; blocks walk over the experts' tiles",
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
