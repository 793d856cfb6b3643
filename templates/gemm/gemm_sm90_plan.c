/* gemm on Hopper, host side: which configs are legal, which is likely best, the plan and the
 * arguments of a launch. gemm_sm90.cu says what the kernel does.
 *
 *     plan        one step, no workspace: shares of k meet within a cluster
 *     workers     SMs x blocks; each works on tile after tile, unless split_k > 1: then a cluster
 *                 has one tile
 *
 * The model. A tile's step of 64 along k costs a block the longest of
 *     tensor cores     bm bn / 32 cycles (4096 flop a cycle and SM)
 *     shared memory    what wgmma reads: 64 rows of P and all of Q for every 64 rows
 *     L2               both tiles, a shared one by half, one of a factor that has few tiles by
 *                      less, since many SMs ask for it at once, shared or not: l2_gbps over all SMs
 * A tile adds its epilogue, and with split_k the gathering of sums. A call takes as many rounds of
 * tiles as its workers need, or what its bytes take from memory after the first has come; the
 * shorter of the two hides in the longer but for a tenth. Cycles are those of the clock at which
 * the profile's tensor_tflops are sustained. The constants are fitted to 2164 configs of 25 shapes,
 * m = 1 to 8192, measured on an H200: the model's choice was at most 7 % slower than the best of
 * those, in two of three shapes at most 1 %. Of 3331 other configs, of the 65 products of
 * Llama-3.1-8B, it chooses one that is 2 % slower than the best in the geometric mean, 10 % at
 * most.
 */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "gemm_cuda.h"
#include "gemm_sm90_args.h"

enum {
    BM,
    BN,
    STAGES,
    CONSUMERS,
    PINGPONG,
    SHARED_P,
    SHARED_Q,
    SPLIT_K,
    GROUP,
    SWAP,
    BLOCKS,
    KNOB_COUNT
};

static const struct quern_knob knobs[] = {
    [BM] = { "bm", 64, 256, "rows of a tile: of a, or with swap=1 of b" },
    [BN] = { "bn", 16, 256, "columns of a tile: rows of b, or with swap=1 of a" },
    [STAGES] = { "stages", 2, 16, "steps of 64 along k that are loaded ahead" },
    [CONSUMERS] = { "consumers", 1, 3, "warpgroups that multiply" },
    [PINGPONG] = { "pingpong", 0, 1, "each has a tile of its own; 0: they share one" },
    [SHARED_P] = { "shared_p", 1, 2, "blocks of a cluster that load a tile's rows together" },
    [SHARED_Q] = { "shared_q", 1, 2, "blocks of a cluster that load a tile's columns together" },
    [SPLIT_K] = { "split_k", 1, 8, "blocks of a cluster that have a share of k each" },
    [GROUP] = { "group", 1, 64, "tiles along bm that are worked on together, for L2" },
    [SWAP] = { "swap", 0, 1, "b on the side of the 64 rows: for few rows of a" },
    [BLOCKS] = { "blocks", 1, 4, "blocks of an SM" },
};

#define SM_SHARED_BYTES 233472 /* of an SM; every block takes 1024 of its own */
#define SM_REGISTERS 65536
#define FLOPS_PER_CYCLE 4096.0 /* bf16 and f16, of an SM */

/* Of the model, fitted. */
#define BURST 1.013       /* a short call's clock over the sustained one */
#define TENSOR_COST 0.918 /* cycles of wgmma over what they should be, at that clock */
#define SHARED_COST 1.42  /* likewise of shared memory at 128 bytes a cycle */
#define STEP_CYCLES 230.0 /* from barrier to barrier */
#define FEW_TILES 3.0     /* that one factor has, before L2 feels each of its readers */
#define EPILOGUE_CYCLES 225.0
#define EPILOGUE_BYTES 41.0 /* of d a cycle */
#define GATHER_CYCLES 130.0 /* shares of k: the cluster meets twice */
#define GATHER_COST 0.31    /* cycles of a sum of a share */
#define FILL_CYCLES 50.0
#define FIRST_US 2.1   /* until the first bytes have come from memory */
#define GATHER_US 0.6  /* what shares of k add to that */
#define CLUSTER_US 0.7 /* what starting clusters adds */
#define PLACED_4 0.91  /* share of the SMs that clusters of 4 find room on */
#define PLACED_8 0.85
#define PINGPONG_US 0.05 /* a tie goes to one consumer */
#define HIDDEN 0.9       /* of the shorter of computing and reading */

/* ---- What a config needs ------------------------------------------------------------------- */

static int64_t stage_bytes(const struct values *v, const int32_t *config)
{
    int is_q_along_n = v->layout && !config[SWAP];
    int64_t columns = is_q_along_n ? gemm_round_up(config[BN], 64) : config[BN];
    return (config[BM] + columns) * 128;
}

static int is_d_aligned(const struct quern_problem *problem)
{
    return problem->alignment[ARRAY_d] == 16;
}

/* Beside the stages. */
static int64_t other_bytes(const struct quern_problem *problem, const int32_t *config)
{
    int d_bytes = (int)quern_dtype_bytes((int)values_of(problem->bucket)->d);
    int64_t staging = GEMM_SM90_STAGING(config[SWAP], config[BN], d_bytes);
    return (is_d_aligned(problem) ? staging * config[CONSUMERS] : 0) + 16 * config[STAGES];
}

static int64_t shared_bytes(const struct quern_problem *problem, const int32_t *config)
{
    return config[STAGES] * stage_bytes(values_of(problem->bucket), config) +
           other_bytes(problem, config);
}

/* Sums of a consumer's thread. Where d is f32 it has totals beside them
 * (gemm_mainloop_sm90.cuh). */
static int sums(const int32_t *config)
{
    int rows = config[PINGPONG] ? config[BM] : config[BM] / config[CONSUMERS];
    return rows / 64 * config[BN] / 2;
}

static int accumulators(const struct values *v, const int32_t *config)
{
    return sums(config) * (v->d == QUERN_F32 ? 2 : 1);
}

/* Registers that a consumer's thread has for sums: what the kernel sets aside for it, less what
 * addresses, the loop and, in the epilogue, bias and old d need; more of them where rows of d are
 * not whole accesses. */
static int accumulators_most(const struct values *v, const int32_t *config)
{
    static const int most[][4] = { { 0, 193, 177, 97 }, { 0, 161, 129, 97 }, { 0, 81, 73, 57 } };
    int has_extras = v->bias || v->accumulate;
    has_extras += has_extras && v->n % 8;
    if (config[BLOCKS] > 1)
        return SM_REGISTERS / (config[BLOCKS] * 128 * (config[CONSUMERS] + 1)) -
               (has_extras ? 80 : 64);
    return most[has_extras][config[CONSUMERS]];
}

static int64_t rows_p(const struct values *v, const int32_t *config)
{
    return config[SWAP] ? v->n : v->m;
}

static int64_t rows_q(const struct values *v, const int32_t *config)
{
    return config[SWAP] ? v->m : v->n;
}

static int64_t tiles_p(const struct values *v, const int32_t *config)
{
    return gemm_round_up(gemm_ceil_div(rows_p(v, config), config[BM]), config[SHARED_Q]);
}

static int64_t tiles_q(const struct values *v, const int32_t *config)
{
    return gemm_round_up(gemm_ceil_div(rows_q(v, config), config[BN]), config[SHARED_P]);
}

/* ---- supports, legal ----------------------------------------------------------------------- */

static int supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    return problem->target->kind == QUERN_CUDA && problem->target->sm == 90 &&
           problem->target->sm_suffix == 'a' && v->a == v->b &&
           (v->a == QUERN_BF16 || v->a == QUERN_F16) && !v->packed &&
           problem->alignment[ARRAY_a] == 16 && problem->alignment[ARRAY_b] == 16;
}

static int legal_tile(const struct values *v, const int32_t *c, struct quern_message *why)
{
    if (c[BM] % 64 || (!c[PINGPONG] && c[BM] % (64 * c[CONSUMERS])))
        return quern_refuse(why, "config bm=%d: must be a multiple of 64 for every consumer",
                            c[BM]);
    if (c[BN] % 16)
        return quern_refuse(why, "config bn=%d: must be a multiple of 16", c[BN]);
    if (c[PINGPONG] && c[CONSUMERS] != 2)
        return quern_refuse(why, "config pingpong=1: consumers=%d must be 2", c[CONSUMERS]);
    if (accumulators(v, c) >= accumulators_most(v, c))
        return quern_refuse(why, "config bm=%d bn=%d: %d sums a thread, fewer than %d fit", c[BM],
                            c[BN], accumulators(v, c), accumulators_most(v, c));
    return QUERN_OK;
}

static int legal_cluster(const int32_t *c, struct quern_message *why)
{
    if (c[SPLIT_K] & (c[SPLIT_K] - 1))
        return quern_refuse(why, "config split_k=%d: must be 1, 2, 4 or 8", c[SPLIT_K]);
    if ((c[SHARED_P] > 1) + (c[SHARED_Q] > 1) + (c[SPLIT_K] > 1) > 1)
        return quern_refuse(why, "config shared_p, shared_q, split_k: only one may exceed 1");
    if (c[SPLIT_K] > 1 && c[PINGPONG])
        return quern_refuse(why, "config split_k=%d: pingpong must be 0", c[SPLIT_K]);
    return QUERN_OK;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    int64_t bytes = shared_bytes(problem, config);
    int status = legal_tile(v, config, why);
    if (!status)
        status = legal_cluster(config, why);
    if (status)
        return status;
    if (config[BLOCKS] * (bytes + 1024) > SM_SHARED_BYTES)
        return quern_refuse(why, "config stages=%d: %lld bytes of shared memory, %d fit",
                            config[STAGES], (long long)bytes,
                            SM_SHARED_BYTES / config[BLOCKS] - 1024);
    if (config[SPLIT_K] > 1 &&
        config[CONSUMERS] * sums(config) * 512 > config[STAGES] * stage_bytes(v, config))
        return quern_refuse(why,
                            "config stages=%d split_k=%d: the sums of a tile do not fit the "
                            "stages",
                            config[STAGES], config[SPLIT_K]);
    if (config[GROUP] * tiles_q(v, config) > INT32_MAX)
        return quern_refuse(why, "config group=%d bn=%d: more than 2^31 tiles in a group",
                            config[GROUP], config[BN]);
    if (v->batch * tiles_p(v, config) * tiles_q(v, config) * config[SPLIT_K] > INT32_MAX)
        return quern_refuse(why, "config bm=%d bn=%d: more than 2^31 tiles", config[BM],
                            config[BN]);
    return QUERN_OK;
}

/* ---- The model ----------------------------------------------------------------------------- */

/* Of a tile's bytes along one factor, what L2 feels. */
static double l2_share(int64_t tiles, int32_t sharers)
{
    return (double)tiles > FEW_TILES ? 1.0 / sharers : (double)tiles / FEW_TILES;
}

/* Cycles of one step of a tile, with all SMs at work. */
static double step_cycles(const struct quern_profile *profile, const struct values *v,
                          const int32_t *c, double clock_hz)
{
    double l2_bytes = profile->l2_gbps * 1e9 / clock_hz / profile->cores; /* of an SM, a cycle */
    double tensor = TENSOR_COST * c[BM] * c[BN] / 32;
    double shared = SHARED_COST * c[BM] / 64 * 4 * (2048 + 32.0 * c[BN]) / 128;
    double p = l2_share(tiles_p(v, c), c[SHARED_P]);
    double q = l2_share(tiles_q(v, c), c[SHARED_Q]);
    double bytes = 128.0 * (c[BM] * p + c[BN] * q);
    return fmax(fmax(tensor, STEP_CYCLES), fmax(shared, bytes / l2_bytes));
}

static double compute_us(const struct quern_profile *profile, const struct values *v,
                         const int32_t *c)
{
    double clock_hz = BURST * profile->tensor_tflops * 1e12 / (FLOPS_PER_CYCLE * profile->cores);
    double tiles = (double)(v->batch * tiles_p(v, c) * tiles_q(v, c)) * c[SPLIT_K];
    double workers = profile->cores * c[BLOCKS] *
                     (c[SPLIT_K] > 4   ? PLACED_8
                      : c[SPLIT_K] > 2 ? PLACED_4
                                       : 1);
    double rounds = ceil(tiles / workers);
    double together = rounds > 1 ? c[BLOCKS] : ceil(tiles / profile->cores); /* on one SM */
    double steps = ceil((double)v->k / 64 / c[SPLIT_K]);
    double epilogue =
        EPILOGUE_CYCLES + c[BM] * c[BN] * (double)quern_dtype_bytes((int)v->d) / EPILOGUE_BYTES;
    double cycles = steps * step_cycles(profile, v, c, clock_hz) * together;
    if (!c[PINGPONG])
        cycles += epilogue;
    if (c[SPLIT_K] > 1)
        cycles += GATHER_CYCLES + GATHER_COST * c[BM] * c[BN] * (c[SPLIT_K] - 1);
    return (rounds * cycles + FILL_CYCLES + epilogue) / clock_hz * 1e6;
}

/* Microseconds of a call at the bucket's bound. */
static double model_us(const struct quern_problem *problem, const int32_t *c)
{
    const struct quern_profile profile = gemm_cuda_profile(problem);
    struct quern_cost cost;
    quern_family_gemm.cost(problem->bucket, &cost);
    double computing = compute_us(&profile, values_of(problem->bucket), c);
    double reading = cost.bytes / (profile.memory_gbps * 1e3) + FIRST_US;
    if (c[SPLIT_K] > 1)
        reading += GATHER_US;
    return profile.launch_us + fmax(computing, reading) + (1 - HIDDEN) * fmin(computing, reading) +
           (c[SHARED_P] * c[SHARED_Q] > 1 ? CLUSTER_US : 0) + (c[PINGPONG] ? PINGPONG_US : 0);
}

/* ---- Candidates ---------------------------------------------------------------------------- */

/* As many stages as fit, and the group whose tiles, all SMs together, read the fewest bytes. */
static void complete(const struct quern_problem *problem, int32_t *c)
{
    const struct values *v = values_of(problem->bucket);
    int64_t room = SM_SHARED_BYTES / c[BLOCKS] - 1024;
    c[STAGES] = 0;
    int64_t stages = (room - other_bytes(problem, c)) / (stage_bytes(v, c) + 16);
    c[STAGES] = stages > 12 ? 12 : (int32_t)stages;
    double best = INFINITY;
    for (int group = 1; group <= 32; group *= 2) {
        double along_p = (double)group * c[SHARED_Q];
        double along_q = ceil(gemm_cuda_profile(problem).cores / along_p);
        double bytes = along_p * c[BM] + along_q * c[BN];
        if (bytes < best) {
            best = bytes;
            c[GROUP] = group;
        }
    }
}

/* One tile shape, in every way that blocks can work on it. */
static void rank_shape(const struct quern_problem *problem, const int32_t *shape,
                       struct gemm_cuda_ranking *ranking)
{
    static const int8_t ways[][4] = {
        /* shared_p, shared_q, split_k, blocks */
        { 1, 1, 1, 1 }, { 1, 2, 1, 1 }, { 2, 1, 1, 1 }, { 1, 1, 2, 1 }, { 1, 1, 4, 1 },
        { 1, 1, 8, 1 }, { 1, 1, 1, 2 }, { 1, 1, 2, 2 }, { 1, 1, 4, 2 }, { 1, 1, 8, 2 },
        { 1, 1, 1, 3 }, { 1, 1, 2, 3 }, { 1, 1, 4, 3 }, { 1, 1, 8, 3 }
    };
    struct quern_message why;
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        int32_t config[KNOB_COUNT];
        memcpy(config, shape, sizeof(config));
        config[SHARED_P] = ways[i][0];
        config[SHARED_Q] = ways[i][1];
        config[SPLIT_K] = ways[i][2];
        config[BLOCKS] = ways[i][3];
        complete(problem, config);
        if (config[STAGES] >= 2 && !legal(problem, config, &why))
            gemm_cuda_rank(ranking, model_us(problem, config), config, KNOB_COUNT);
    }
}

static void rank_all(const struct quern_problem *problem, struct gemm_cuda_ranking *ranking)
{
    static const int16_t rows[][3] = { /* bm, consumers, pingpong */
                                       { 64, 1, 0 },  { 128, 1, 0 }, { 128, 2, 0 }, { 192, 3, 0 },
                                       { 256, 2, 0 }, { 64, 2, 1 },  { 128, 2, 1 }
    };
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        for (int swap = 0; swap < 2; swap++) {
            for (int bn = 16; bn <= (swap ? 128 : 256); bn += bn < 64 ? 16 : bn < 128 ? 32 : 16) {
                int32_t shape[KNOB_COUNT] = { [BM] = rows[r][0],
                                              [BN] = bn,
                                              [CONSUMERS] = rows[r][1],
                                              [PINGPONG] = rows[r][2],
                                              [SWAP] = swap };
                rank_shape(problem, shape, ranking);
            }
        }
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
    return gemm_cuda_list(&ranking, GROUP, KNOB_COUNT, configs, max);
}

/* ---- plan, bind ---------------------------------------------------------------------------- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "main", "gemm/gemm_sm90.cu", "gemm_sm90");
    int cluster = config[SHARED_P] * config[SHARED_Q] * config[SPLIT_K];
    quern_step_define(step, "BM", config[BM]);
    quern_step_define(step, "BN", config[BN]);
    quern_step_define(step, "STAGES", config[STAGES]);
    quern_step_define(step, "CONSUMERS", config[CONSUMERS]);
    quern_step_define(step, "PINGPONG", config[PINGPONG]);
    quern_step_define(step, "SHARED_P", config[SHARED_P]);
    quern_step_define(step, "SHARED_Q", config[SHARED_Q]);
    quern_step_define(step, "SPLIT_K", config[SPLIT_K]);
    quern_step_define(step, "GROUP", config[GROUP]);
    quern_step_define(step, "SWAP", config[SWAP]);
    quern_step_define(step, "MIN_BLOCKS", config[BLOCKS]);
    quern_step_define(step, "B_ALONG_N", v->layout);
    quern_step_define_text(step, "OPERAND_TYPE", v->a == QUERN_BF16 ? "bf16" : "f16");
    quern_step_define(step, "D_DTYPE", v->d);
    quern_step_define(step, "D_TMA", is_d_aligned(problem));
    quern_step_define(step, "BIAS_DTYPE", v->bias);
    quern_step_define(step, "ACCUMULATE", v->accumulate);
    step->threads[0] = 128 * (uint32_t)(config[CONSUMERS] + 1);
    step->threads[1] = step->threads[2] = 1;
    if (cluster > 1) {
        step->cluster[0] = (uint32_t)cluster;
        step->cluster[1] = step->cluster[2] = 1;
    }
    step->shared_bytes = (uint32_t)shared_bytes(problem, config);
}

/* A factor's map: boxes of `rows` by 64 along k, or (along) of 64 by 64. A batch whose entries are
 * the same matrix is one matrix to the map. */
static void bind_factor(const struct quern_binding *binding, struct quern_step_launch *step,
                        int array, uint32_t offset, int rows)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *factor = &binding->arrays[array];
    struct quern_tensor_map *map = quern_step_map(step, offset);
    int along = array == ARRAY_b && v->layout;
    int64_t extent = array == ARRAY_a ? v->m : v->n;
    map->data = factor->data;
    map->dtype = (int)v->a;
    map->rank = 3;
    map->swizzle = 128;
    map->dims[0] = along ? extent : v->k;
    map->dims[1] = along ? v->k : extent;
    map->dims[2] = factor->strides[0] ? v->batch : 1;
    map->strides[0] = 1;
    map->strides[1] = factor->strides[1];
    map->strides[2] = factor->strides[0];
    map->box[0] = 64;
    map->box[1] = along ? 64 : rows;
    map->box[2] = 1;
}

/* Stores of `rows` by `columns`, rows of 128 bytes or less. */
static void bind_store(const struct quern_binding *binding, struct quern_step_launch *step,
                       uint32_t offset, int columns, int rows)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *d = &binding->arrays[ARRAY_d];
    struct quern_tensor_map *map = quern_step_map(step, offset);
    map->data = d->data;
    map->dtype = (int)v->d;
    map->rank = 3;
    map->swizzle = columns * (int)quern_dtype_bytes((int)v->d);
    map->dims[0] = v->n;
    map->dims[1] = v->m;
    map->dims[2] = v->batch;
    map->strides[0] = 1;
    map->strides[1] = d->strides[1];
    map->strides[2] = d->strides[0];
    map->box[0] = columns;
    map->box[1] = rows;
    map->box[2] = 1;
}

static void bind_d(const struct quern_binding *binding, struct quern_step_launch *step)
{
    const int32_t *c = binding->config;
    int bytes = (int)quern_dtype_bytes((int)values_of(binding->spec)->d);
    int piece = GEMM_SM90_PIECE(bytes);
    if (c[SWAP] || c[BN] >= piece)
        bind_store(binding, step, offsetof(struct gemm_sm90_args, map_d), piece,
                   c[SWAP] ? c[BN] : 64);
    if (!c[SWAP] && c[BN] % piece)
        bind_store(binding, step, offsetof(struct gemm_sm90_args, map_tail),
                   GEMM_SM90_TAIL(c[BN], bytes), 64);
}

/* Whether the kernel, made for this alignment or a lesser one, may store d by TMA. */
static int is_d_mapped(const struct quern_array *d, int bytes)
{
    return ((uintptr_t)d->data | (uintptr_t)(d->strides[0] * bytes) |
            (uintptr_t)(d->strides[1] * bytes)) %
               16 ==
           0;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *c = binding->config;
    const struct quern_array *arrays = binding->arrays;
    struct quern_step_launch *step = &launch->steps[0];
    int p = c[SWAP] ? ARRAY_b : ARRAY_a, q = c[SWAP] ? ARRAY_a : ARRAY_b;
    struct gemm_sm90_args args = {
        .bias = arrays[ARRAY_bias].data,
        .d = arrays[ARRAY_d].data,
        .d_row_stride = arrays[ARRAY_d].strides[1],
        .d_batch_stride = arrays[ARRAY_d].strides[0],
        .m = (int32_t)v->m,
        .n = (int32_t)v->n,
        .steps = (int32_t)gemm_ceil_div(v->k, 64),
        .batch = (int32_t)v->batch,
        .tiles_p = (int32_t)tiles_p(v, c),
        .tiles_q = (int32_t)tiles_q(v, c),
        .step_p = arrays[p].strides[0] != 0,
        .step_q = arrays[q].strides[0] != 0,
    };
    int cluster = c[SHARED_P] * c[SHARED_Q] * c[SPLIT_K];
    int64_t works = (int64_t)args.batch * args.tiles_p * args.tiles_q;
    int64_t clusters = works * c[SPLIT_K] / cluster, most = binding->profile->cores * c[BLOCKS];
    if (c[SPLIT_K] == 1 && clusters > most / cluster)
        clusters = most / cluster;
    QUERN_BIND(step, args, clusters * cluster, 1, 1);
    if (!clusters)
        return;
    if (v->k) {
        bind_factor(binding, step, p, offsetof(struct gemm_sm90_args, map_p), c[BM] / c[SHARED_P]);
        bind_factor(binding, step, q, offsetof(struct gemm_sm90_args, map_q), c[BN] / c[SHARED_Q]);
    }
    if (is_d_mapped(&arrays[ARRAY_d], (int)quern_dtype_bytes((int)v->d)))
        bind_d(binding, step);
}

const struct quern_variant gemm_sm90 = {
    .name = "gemm_sm90",
    .doc = "bf16 and f16 on Hopper: wgmma and TMA, persistent blocks",
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
