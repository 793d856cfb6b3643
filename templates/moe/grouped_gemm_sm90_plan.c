/* grouped_gemm on Hopper, host side: which configs are legal, which is likely best, the plan and
 * the arguments of a launch. grouped_gemm_sm90.cu says what the kernel does.
 *
 *     plan        one step, no workspace
 *     workers     SMs x blocks; each works on tile after tile
 *
 * The model. How many rows an expert has is known on the device only. It takes them to be alike,
 * with some more tiles than that gives, since the last tile of an expert is seldom full; where a
 * router has chosen, to be spread about their mean by its root. A tile's step of 64 along k costs a
 * block the longest of
 *     tensor cores     bm bn / 32 cycles (4096 flop a cycle and SM)
 *     shared memory    what wgmma reads: 64 rows of P and all of Q for every 64 rows
 *     L2               both tiles: l2_gbps over all SMs
 *     latency          of a stage, by the others that are under way
 * A tile adds its epilogue. A call takes as many rounds of tiles as its workers need, or what its
 * bytes take from memory after the first has come; the shorter of the two hides in the longer but
 * for a tenth. Cycles are those of the clock at which the profile's tensor_tflops are sustained.
 * The constants are those of gemm's model. */
#define QUERN_DEF "moe/grouped_gemm.def"
#include <quern/family_def.h>

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "grouped_gemm_sm90_args.h"
#include "grouped_gemm_sm90_plan.h"

enum {
    BM = GROUPED_GEMM_SM90_BM,
    BN = GROUPED_GEMM_SM90_BN,
    STAGES = GROUPED_GEMM_SM90_STAGES,
    CONSUMERS = GROUPED_GEMM_SM90_CONSUMERS,
    PINGPONG = GROUPED_GEMM_SM90_PINGPONG,
    GROUP = GROUPED_GEMM_SM90_GROUP,
    SWAP = GROUPED_GEMM_SM90_SWAP,
    BLOCKS = GROUPED_GEMM_SM90_BLOCKS,
    KNOB_COUNT = GROUPED_GEMM_SM90_KNOBS
};

const struct quern_knob grouped_gemm_sm90_knobs[] = {
    [BM] = { "bm", 64, 256, "rows of a tile: of a, or with swap=1 of b" },
    [BN] = { "bn", 16, 256, "columns of a tile: rows of b, or with swap=1 of a" },
    [STAGES] = { "stages", 2, 16, "steps of 64 along k that are loaded ahead" },
    [CONSUMERS] = { "consumers", 1, 3, "warpgroups that multiply" },
    [PINGPONG] = { "pingpong", 0, 1, "each has a tile of its own; 0: they share one" },
    [GROUP] = { "group", 1, 64, "tiles along the rows that are worked on together, for L2" },
    [SWAP] = { "swap", 0, 1, "b on the side of the 64 rows: for few rows of a an expert" },
    [BLOCKS] = { "blocks", 1, 4, "blocks of an SM" },
};

#define SM_SHARED_BYTES 233472 /* of an SM; every block takes 1024 of its own */
#define SM_REGISTERS 65536
#define FLOPS_PER_CYCLE 4096.0 /* bf16 and f16, of an SM */

/* Of the model. */
#define BURST 1.013
#define TENSOR_COST 0.918
#define SHARED_COST 1.42
#define STEP_CYCLES 230.0
#define EPILOGUE_CYCLES 225.0
#define EPILOGUE_BYTES 41.0   /* of d a cycle */
#define ACTIVATION_CYCLES 0.2 /* an element of d */
#define FILL_CYCLES 50.0
#define LATENCY_CYCLES 1200.0 /* of a stage, from the request to its arrival */
#define FIRST_US 2.1          /* until the first bytes have come from memory */
#define PINGPONG_US 0.05      /* a tie goes to one consumer */
#define MOST_SPREAD 8         /* tiles an expert, above which half a tile more is taken */
#define HIDDEN 0.9            /* of the shorter of computing and reading */

/* ---- What a config needs ------------------------------------------------------------------- */

static int64_t round_up(int64_t x, int64_t to)
{
    return grouped_gemm_ceil_div(x, to) * to;
}

static int64_t stage_bytes(const int32_t *config)
{
    return (config[BM] + config[BN]) * 128;
}

/* Beside the stages. */
static int64_t other_bytes(const struct grouped_gemm_work *work, const int32_t *config)
{
    int64_t of_experts =
        work->form == GROUPED_GEMM_BLOCKS
            ? 0
            : GROUPED_GEMM_SM90_SCAN_BYTES + work->experts * GROUPED_GEMM_SM90_EXPERT_BYTES;
    return config[CONSUMERS] * 4 * GROUPED_GEMM_SM90_WARP_STAGING + 16 * config[STAGES] +
           round_up(of_experts, 16);
}

static int64_t shared_bytes(const struct grouped_gemm_work *work, const int32_t *config)
{
    return config[STAGES] * stage_bytes(config) + other_bytes(work, config);
}

/* Rows of P of a consumer. */
static int consumer_rows(const int32_t *config)
{
    return config[PINGPONG] ? config[BM] : config[BM] / config[CONSUMERS];
}

/* Whether a thread has totals beside its sums: what d=f32 is for, unless it is rounded later. */
static int has_totals(const struct grouped_gemm_work *work)
{
    return work->d == QUERN_F32 && !work->is_plain;
}

/* Of a consumer's thread. */
static int accumulators(const struct grouped_gemm_work *work, const int32_t *config)
{
    return consumer_rows(config) / 64 * config[BN] / 2 * (has_totals(work) ? 2 : 1);
}

/* What the kernel sets aside for a consumer's thread, less what addresses, the loop and the
 * epilogue need; erf in it needs many constants. */
static int accumulators_most(const struct grouped_gemm_work *work, const int32_t *config)
{
    static const int most[][4] = { { 0, 193, 177, 97 }, { 0, 161, 145, 97 }, { 0, 113, 81, 65 } };
    int is_gelu = work->activation == GROUPED_GEMM_GELU;
    if (config[BLOCKS] > 1)
        return SM_REGISTERS / (config[BLOCKS] * 128 * (config[CONSUMERS] + 1)) -
               (is_gelu ? 80 : 56);
    return most[is_gelu ? 2 : work->activation || work->gather][config[CONSUMERS]];
}

/* Of d. */
static int tile_rows(const int32_t *config)
{
    return config[SWAP] ? config[BN] : config[BM];
}

static int tile_columns(const struct grouped_gemm_work *work, const int32_t *config)
{
    return (config[SWAP] ? config[BM] : config[BN]) / (work->activation ? 2 : 1);
}

/* Tiles of rows, at most. */
static int64_t most_row_tiles(const struct grouped_gemm_work *work, const int32_t *config)
{
    int rows = tile_rows(config);
    if (work->form == GROUPED_GEMM_BLOCKS)
        return grouped_gemm_ceil_div(work->m, work->block) *
               grouped_gemm_ceil_div(work->block, rows);
    if (work->form == GROUPED_GEMM_MASKED)
        return work->experts * grouped_gemm_ceil_div(work->m, rows);
    return work->m / rows + (work->m < work->experts ? work->m : work->experts);
}

static int64_t column_tiles(const struct grouped_gemm_work *work, const int32_t *config)
{
    return grouped_gemm_ceil_div(work->n, tile_columns(work, config));
}

/* The kernel counts them, and steps beyond the last, in 32 bits. */
static int has_few_tiles(const struct grouped_gemm_work *work, const int32_t *config)
{
    return (most_row_tiles(work, config) + config[GROUP]) * column_tiles(work, config) <=
           UINT32_MAX - (1 << 16);
}

/* ---- supports, legal ----------------------------------------------------------------------- */

int grouped_gemm_sm90_supports(const struct quern_target *target,
                               const struct grouped_gemm_work *work)
{
    /* Legal, if that: two consumers have room for its sums. */
    const int32_t plain[KNOB_COUNT] = {
        [BM] = 128,
        [BN] = 256 / (has_totals(work) ? 2 : 1) / (work->activation == GROUPED_GEMM_GELU ? 2 : 1),
        [GROUP] = 64,
    };
    return target->kind == QUERN_CUDA && target->sm == 90 && target->sm_suffix == 'a' &&
           (work->dtype == QUERN_BF16 || work->dtype == QUERN_F16) && work->align_a == 16 &&
           work->align_b == 16 && has_few_tiles(work, plain);
}

static int legal_tile(const struct grouped_gemm_work *work, const int32_t *c,
                      struct quern_message *why)
{
    if (c[BM] % 64 || (!c[PINGPONG] && c[BM] % (64 * c[CONSUMERS])))
        return quern_refuse(why, "config bm=%d: must be a multiple of 64 for every consumer",
                            c[BM]);
    if (c[BN] % 16)
        return quern_refuse(why, "config bn=%d: must be a multiple of 16", c[BN]);
    if (c[PINGPONG] && c[CONSUMERS] != 2)
        return quern_refuse(why, "config pingpong=1: consumers=%d must be 2", c[CONSUMERS]);
    if (work->activation && c[SWAP] && consumer_rows(c) % 128)
        return quern_refuse(why,
                            "config bm=%d: must be a multiple of 128 for every consumer, for "
                            "gate and up",
                            c[BM]);
    if (work->activation && !c[SWAP] && c[BN] % 32)
        return quern_refuse(why, "config bn=%d: must be a multiple of 32, for gate and up", c[BN]);
    if (work->gather && c[CONSUMERS] > 2)
        return quern_refuse(why, "config consumers=%d: must be at most 2 with gather=1",
                            c[CONSUMERS]);
    if (accumulators(work, c) >= accumulators_most(work, c))
        return quern_refuse(why, "config bm=%d bn=%d: %d sums a thread, fewer than %d fit", c[BM],
                            c[BN], accumulators(work, c), accumulators_most(work, c));
    return QUERN_OK;
}

int grouped_gemm_sm90_legal(const struct grouped_gemm_work *work, const int32_t *config,
                            struct quern_message *why)
{
    int status = legal_tile(work, config, why);
    int64_t bytes = shared_bytes(work, config);
    if (status)
        return status;
    if (config[BLOCKS] * (bytes + 1024) > SM_SHARED_BYTES)
        return quern_refuse(why, "config stages=%d: %lld bytes of shared memory, %d fit",
                            config[STAGES], (long long)bytes,
                            SM_SHARED_BYTES / config[BLOCKS] - 1024);
    if (!has_few_tiles(work, config))
        return quern_refuse(why, "config bm=%d bn=%d: more than 2^32 tiles", config[BM],
                            config[BN]);
    return QUERN_OK;
}

/* ---- The model ----------------------------------------------------------------------------- */

/* Values that a profile lacks are an H200's. */
static struct quern_profile known_profile(const struct quern_profile *given)
{
    struct quern_profile profile = *given;
    profile.cores = profile.cores > 0 ? profile.cores : 132;
    profile.memory_gbps = profile.memory_gbps > 0 ? profile.memory_gbps : 4000;
    profile.l2_gbps = profile.l2_gbps > 0 ? profile.l2_gbps : 7000;
    profile.tensor_tflops = profile.tensor_tflops > 0 ? profile.tensor_tflops : 750;
    profile.launch_us = profile.launch_us > 0 ? profile.launch_us : 1.5;
    return profile;
}

/* Experts, or blocks, that have rows. */
static double groups(const struct grouped_gemm_work *work)
{
    double experts = (double)work->experts, m = (double)work->m;
    if (work->form == GROUPED_GEMM_MASKED)
        return experts;
    if (work->form == GROUPED_GEMM_OFFSETS && work->is_routed)
        return fmax(1, experts * (1 - exp(-m / experts)));
    return fmax(1, fmin(m, work->form == GROUPED_GEMM_BLOCKS ? ceil(m / work->block) : experts));
}

/* Of an expert with `rows` rows, in tiles of `of`: of each tile the chance that it is needed. */
static double routed_tiles(double rows, int of)
{
    double tiles = 1;
    if (rows > MOST_SPREAD * of)
        return rows / of + 0.5;
    for (int i = 1; i <= 2 * MOST_SPREAD; i++)
        tiles += 0.5 * erfc((i * of - rows) / sqrt(2 * rows));
    return tiles;
}

static double expected_row_tiles(const struct grouped_gemm_work *work, const int32_t *c)
{
    double rows = (double)work->m / groups(work), tiles = rows / tile_rows(c);
    if (work->form != GROUPED_GEMM_OFFSETS)
        return (double)most_row_tiles(work, c);
    if (work->is_routed && rows > 0)
        return groups(work) * routed_tiles(rows, tile_rows(c));
    return groups(work) * fmax(1, (ceil(tiles) + tiles + 0.5) / 2);
}

/* Cycles of one step of a tile, with all SMs at work. */
static double step_cycles(const struct quern_profile *profile, const int32_t *c, double clock_hz)
{
    double l2_bytes = profile->l2_gbps * 1e9 / clock_hz / profile->cores; /* of an SM, a cycle */
    double tensor = TENSOR_COST * c[BM] * c[BN] / 32;
    double shared = SHARED_COST * c[BM] / 64 * 4 * (2048 + 32.0 * c[BN]) / 128;
    return fmax(fmax(tensor, STEP_CYCLES), fmax(shared, (double)stage_bytes(c) / l2_bytes));
}

static double compute_us(const struct grouped_gemm_work *work, const struct quern_profile *profile,
                         const int32_t *c)
{
    double clock_hz = BURST * profile->tensor_tflops * 1e12 / (FLOPS_PER_CYCLE * profile->cores);
    double tiles = expected_row_tiles(work, c) * (double)column_tiles(work, c);
    double rounds = ceil(tiles / (profile->cores * c[BLOCKS]));
    double together = rounds > 1 ? c[BLOCKS] : ceil(tiles / profile->cores); /* on one SM */
    double elements = (double)tile_rows(c) * tile_columns(work, c);
    double epilogue = EPILOGUE_CYCLES +
                      elements * (double)quern_dtype_bytes(work->d) / EPILOGUE_BYTES +
                      (work->activation ? ACTIVATION_CYCLES * elements : 0);
    double step = step_cycles(profile, c, clock_hz) * together;
    double cycles = (double)work->k / 64 * fmax(step, LATENCY_CYCLES / (c[STAGES] - 1));
    if (!c[PINGPONG])
        cycles += epilogue;
    return (rounds * cycles + FILL_CYCLES + epilogue) / clock_hz * 1e6;
}

/* Microseconds of a call at the bucket's bound. */
static double model_us(const struct grouped_gemm_work *work, const struct quern_profile *profile,
                       const int32_t *c)
{
    double rows = (double)work->m * (work->form == GROUPED_GEMM_MASKED ? groups(work) : 1);
    double n = (double)work->n, k = (double)work->k, width = n * (work->activation ? 2 : 1);
    double experts = fmin((double)work->experts, groups(work));
    double bytes =
        2 * (rows * k + experts * width * k) + rows * n * (double)quern_dtype_bytes(work->d);
    double computing = compute_us(work, profile, c);
    double reading = bytes / (profile->memory_gbps * 1e3) + FIRST_US;
    return profile->launch_us + fmax(computing, reading) + (1 - HIDDEN) * fmin(computing, reading) +
           (c[PINGPONG] ? PINGPONG_US : 0);
}

/* ---- Candidates ---------------------------------------------------------------------------- */

/* The fastest so far, fastest first. */
struct ranking {
    int count, most;
    double times[GROUPED_GEMM_SM90_RANKED];
    int32_t (*configs)[QUERN_MAX_KNOBS];
};

static void rank(struct ranking *ranking, double time, const int32_t *config)
{
    int at = ranking->count;
    if (at == ranking->most && time >= ranking->times[at - 1])
        return;
    if (at < ranking->most)
        ranking->count++;
    else
        at--;
    for (; at > 0 && ranking->times[at - 1] > time; at--) {
        ranking->times[at] = ranking->times[at - 1];
        memcpy(ranking->configs[at], ranking->configs[at - 1], KNOB_COUNT * sizeof(*config));
    }
    ranking->times[at] = time;
    memcpy(ranking->configs[at], config, KNOB_COUNT * sizeof(*config));
}

/* As many stages as fit, and the group whose tiles, all SMs together, read the fewest bytes. */
static void complete(const struct grouped_gemm_work *work, const struct quern_profile *profile,
                     int32_t *c)
{
    int64_t room = SM_SHARED_BYTES / c[BLOCKS] - 1024;
    c[STAGES] = 0;
    int64_t stages = (room - other_bytes(work, c)) / (stage_bytes(c) + 16);
    c[STAGES] = stages > 12 ? 12 : (int32_t)stages;
    double best = INFINITY;
    for (int group = 1; group <= 32; group *= 2) {
        double bytes = (double)group * tile_rows(c) +
                       ceil((double)profile->cores / group) * (c[SWAP] ? c[BM] : c[BN]);
        if (bytes < best) {
            best = bytes;
            c[GROUP] = group;
        }
    }
}

static void rank_shape(const struct grouped_gemm_work *work, const struct quern_profile *profile,
                       const int32_t *shape, struct ranking *ranking)
{
    struct quern_message why;
    for (int blocks = 1; blocks <= 3; blocks++) {
        int32_t config[KNOB_COUNT];
        memcpy(config, shape, sizeof(config));
        config[BLOCKS] = blocks;
        complete(work, profile, config);
        if (config[STAGES] >= (blocks > 1 ? 4 : 3) && !grouped_gemm_sm90_legal(work, config, &why))
            rank(ranking, model_us(work, profile, config), config);
    }
}

int grouped_gemm_sm90_rank(const struct grouped_gemm_work *work, const struct quern_profile *given,
                           int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    static const int16_t rows[][3] = { /* bm, consumers, pingpong */
                                       { 64, 1, 0 },  { 128, 1, 0 }, { 128, 2, 0 }, { 192, 3, 0 },
                                       { 256, 2, 0 }, { 64, 2, 1 },  { 128, 2, 1 }
    };
    const struct quern_profile profile = known_profile(given);
    struct ranking ranking = { .most =
                                   max < GROUPED_GEMM_SM90_RANKED ? max : GROUPED_GEMM_SM90_RANKED,
                               .configs = configs };
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        for (int swap = 0; swap < 2; swap++) {
            int most = swap ? 160 : 256;
            for (int bn = 16; bn <= most; bn += bn < 64 || swap ? 16 : bn < 128 ? 32 : 64) {
                int32_t shape[KNOB_COUNT] = { [BM] = rows[r][0],
                                              [BN] = bn,
                                              [CONSUMERS] = rows[r][1],
                                              [PINGPONG] = rows[r][2],
                                              [SWAP] = swap };
                rank_shape(work, &profile, shape, &ranking);
            }
        }
    }
    return ranking.count;
}

/* ---- plan, bind ---------------------------------------------------------------------------- */

struct quern_step *grouped_gemm_sm90_plan(const struct grouped_gemm_work *work,
                                          const int32_t *config, const char *name,
                                          struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, name, "moe/grouped_gemm_sm90.cu", "grouped_gemm_sm90");
    quern_step_define(step, "BM", config[BM]);
    quern_step_define(step, "BN", config[BN]);
    quern_step_define(step, "STAGES", config[STAGES]);
    quern_step_define(step, "CONSUMERS", config[CONSUMERS]);
    quern_step_define(step, "PINGPONG", config[PINGPONG]);
    quern_step_define(step, "GROUP", config[GROUP]);
    quern_step_define(step, "SWAP", config[SWAP]);
    quern_step_define(step, "MIN_BLOCKS", config[BLOCKS]);
    quern_step_define(step, "FORM", work->form);
    quern_step_define(step, "BLOCK", work->form == GROUPED_GEMM_BLOCKS ? work->block : 1);
    quern_step_define(step, "GATHER", work->gather);
    quern_step_define(step, "ACTIVATION", work->activation);
    quern_step_define_text(step, "OPERAND_TYPE", work->dtype == QUERN_BF16 ? "bf16" : "f16");
    quern_step_define(step, "D_DTYPE", work->d);
    quern_step_define(step, "D_ALIGNED", work->align_d == 16);
    quern_step_define(step, "D_WHOLE", work->align_d == 16 && work->n % 8 == 0);
    quern_step_define(step, "HAS_TOTALS", has_totals(work));
    step->threads[0] = 128 * (uint32_t)(config[CONSUMERS] + 1);
    step->threads[1] = step->threads[2] = 1;
    step->shared_bytes = (uint32_t)shared_bytes(work, config);
    step->is_programmatic = 1;
    return step;
}

/* Boxes of `box` rows by 64 along k. Matrices that are the same one are one to the map. */
static void bind_map(struct quern_step_launch *step, const struct grouped_gemm_work *work,
                     const void *data, int64_t rows, int64_t matrices, const int64_t *strides,
                     uint32_t offset, int box)
{
    struct quern_tensor_map *map = quern_step_map(step, offset);
    map->data = data;
    map->dtype = work->dtype;
    map->rank = 3;
    map->swizzle = 128;
    map->dims[0] = work->k;
    map->dims[1] = rows;
    map->dims[2] = strides[1] ? matrices : 1;
    map->strides[0] = 1;
    map->strides[1] = strides[0];
    map->strides[2] = strides[1];
    map->box[0] = 64;
    map->box[1] = box;
    map->box[2] = 1;
}

static void bind_maps(const struct grouped_gemm_work *work, const struct grouped_gemm_place *place,
                      const int32_t *c, struct quern_step_launch *step)
{
    const int64_t a_strides[] = { place->a_row_stride, place->a_expert_stride };
    const int64_t b_strides[] = { place->b_row_stride, place->b_expert_stride };
    int b_rows = c[SWAP] ? c[BM] : c[BN];
    if (work->activation)
        b_rows /= c[SWAP] ? 2 * c[BM] / consumer_rows(c) : 2;
    bind_map(step, work, place->b, work->n * (work->activation ? 2 : 1), work->experts, b_strides,
             offsetof(struct grouped_gemm_sm90_args, map_b), b_rows);
    if (!work->gather)
        bind_map(step, work, place->a, work->m,
                 work->form == GROUPED_GEMM_MASKED ? work->experts : 1, a_strides,
                 offsetof(struct grouped_gemm_sm90_args, map_a), tile_rows(c));
}

void grouped_gemm_sm90_bind(const struct grouped_gemm_work *work,
                            const struct grouped_gemm_place *place,
                            const struct quern_profile *profile, const int32_t *config,
                            struct quern_step_launch *step)
{
    const struct grouped_gemm_sm90_args args = {
        .a = place->a,
        .d = place->d,
        .groups = work->form == GROUPED_GEMM_OFFSETS  ? place->offsets
                  : work->form == GROUPED_GEMM_BLOCKS ? place->expert_ids
                                                      : place->counts,
        .num_rows = place->num_rows,
        .row_ids = place->row_ids,
        .a_row_stride = place->a_row_stride,
        .d_row_stride = place->d_row_stride,
        .d_expert_stride = place->d_expert_stride,
        .experts = (int32_t)work->experts,
        .m = (int32_t)work->m,
        .n = (int32_t)work->n,
        .k = (int32_t)work->k,
        .source_rows = (int32_t)work->source_rows,
        .share = (int32_t)work->share,
        .step_a = place->a_expert_stride != 0,
        .step_b = place->b_expert_stride != 0,
        .tiles_n = (uint32_t)column_tiles(work, config),
        .limit = work->limit,
    };
    int64_t tiles = most_row_tiles(work, config) * args.tiles_n;
    int64_t workers = (int64_t)profile->cores * config[BLOCKS];
    QUERN_BIND(step, args, tiles < workers ? tiles : workers, 1, 1);
    if (tiles && work->k)
        bind_maps(work, place, config, step);
}

/* ---- The variant --------------------------------------------------------------------------- */

static struct grouped_gemm_work work_of(const struct quern_problem *problem)
{
    struct grouped_gemm_work work;
    grouped_gemm_work_of(problem->bucket, problem->alignment, &work);
    return work;
}

static int supports(const struct quern_problem *problem)
{
    const struct grouped_gemm_work work = work_of(problem);
    return grouped_gemm_sm90_supports(problem->target, &work);
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct grouped_gemm_work work = work_of(problem);
    return grouped_gemm_sm90_legal(&work, config, why);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct grouped_gemm_work work = work_of(problem);
    int32_t configs[1][QUERN_MAX_KNOBS];
    grouped_gemm_sm90_rank(&work, problem->profile, configs, 1);
    memcpy(config, configs[0], KNOB_COUNT * sizeof(*config));
}

/* Those of the rank, then the first with other groups. */
static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int8_t groups[] = { 1, 2, 4, 8, 16, 32 };
    const int group_count = (int)sizeof(groups);
    const struct grouped_gemm_work work = work_of(problem);
    int room = max > 2 * group_count ? max - group_count : max;
    int count = grouped_gemm_sm90_rank(&work, problem->profile, configs, room);
    for (int i = 0; i < group_count && count && count < max; i++) {
        memcpy(configs[count], configs[0], KNOB_COUNT * sizeof(**configs));
        configs[count++][GROUP] = groups[i];
    }
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct grouped_gemm_work work = work_of(problem);
    grouped_gemm_sm90_plan(&work, config, "main", plan);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct grouped_gemm_work work;
    struct grouped_gemm_place place;
    grouped_gemm_work_of(binding->spec, NULL, &work);
    grouped_gemm_place_of(binding, &place);
    grouped_gemm_sm90_bind(&work, &place, binding->profile, binding->config, &launch->steps[0]);
}

const struct quern_variant grouped_gemm_sm90 = {
    .name = "grouped_gemm_sm90",
    .doc = "bf16 and f16 on Hopper: wgmma and TMA, persistent blocks",
    .device = QUERN_CUDA,
    .knobs = grouped_gemm_sm90_knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
