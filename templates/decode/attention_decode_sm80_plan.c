/* The CUDA variant of attention_decode: what it runs on, its knobs, its two steps.
 * attention_decode_sm80.cu says what they do.
 *
 * A warp's stage is `tokens` rows of K and of V; warps, stages and blocks an SM decide how many
 * bytes are under way. With deterministic=1 warps and tokens are fixed, since they decide in which
 * order a sequence is summed. */
#define QUERN_DEF "decode/attention_decode.def"
#include <quern/family_def.h>

#include "attention_decode.h"
#include "decode/decode_cuda_args.h"

enum { WARPS, WARP_TOKENS, STAGES, BLOCKS, LEAST, CLUSTER, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [WARPS] = { "warps", 1, 8, "warps of a block, each with tokens of its own" },
    [WARP_TOKENS] = { "warp_tokens", 16, 32, "tokens that a warp has at a time" },
    [STAGES] = { "stages", 2, 6, "times as many in shared memory" },
    [BLOCKS] = { "blocks", 1, 8, "blocks of an SM" },
    [LEAST] = { "least", 1, 64, "tiles of a block, at least" },
    [CLUSTER] = { "cluster", 1, 8, "blocks that share a unit; 1: shares of all, and a combine" },
};

enum {
    SHARED_BYTES = 101376,
    CORES = 64,
    RESERVED = 1024,
    REGISTERS = 65536,
    ENOUGH_AHEAD = 90000
};

static int64_t round_up(int64_t value, int64_t to)
{
    return (value + to - 1) / to * to;
}

/* ---- What follows from the spec -------------------------------------------------------------- */

/* Tiles of 8 query rows: as many as there are, or as fit the registers of a warp. One where a
 * window begins in the prefix, which takes rows one by one. */
static int row_tiles(const struct values *v)
{
    const int64_t group = v->hq / v->hkv, most = 96 / ((v->d + 2 * v->dv) / 8);
    const int64_t wanted = !v->shared_pages ? (group + 7) / 8 : v->window ? 1 : most;
    return (int)(wanted < 1 ? 1 : wanted < most ? wanted : most < 1 ? 1 : most);
}

static int is_fixed(const struct values *v)
{
    return v->shared_pages || v->deterministic;
}

static int64_t units_of(const struct values *v)
{
    const int64_t rows = 8 * row_tiles(v);
    return v->hkv * ((v->hq / v->hkv + rows - 1) / rows);
}

static int64_t stage_bytes(const struct values *v, const int32_t *config)
{
    const int64_t size = (int64_t)quern_dtype_bytes((int)v->kv_dtype);
    return config[WARP_TOKENS] * ((v->d + v->dv) * size + 32);
}

/* The stages of all warps, and their sums where these do not fit into a stage; a cluster's sums. */
static int64_t shared_bytes(const struct values *v, const int32_t *config)
{
    const int64_t rows = 8 * row_tiles(v), sums = rows * (v->dv + 6) * 4;
    int64_t bytes = config[WARPS] * config[STAGES] * stage_bytes(v, config);
    bytes += sums > stage_bytes(v, config) ? config[WARPS] * sums : 0;
    return bytes + (config[CLUSTER] > 1 ? rows * (v->dv + 4) * 4 : 0);
}

static int64_t shared_of_block(const struct quern_problem *problem)
{
    return problem->profile->l1_bytes > 0 ? problem->profile->l1_bytes : SHARED_BYTES;
}

static int64_t cores_of(const struct quern_profile *profile)
{
    return profile->cores > 0 ? profile->cores : CORES;
}

/* What a thread needs, so that nothing spills: o, queries, scores and the rest. */
static int64_t registers(const struct values *v, const int32_t *config)
{
    return round_up(72 + row_tiles(v) * ((v->d + 2 * v->dv) / 8 + config[WARP_TOKENS] / 2), 8);
}

/* Two stages of so many warps fit the least shared memory that any target has. */
static int fixed_warps(const struct values *v)
{
    const int32_t config[KNOB_COUNT] = { [WARPS] = 4, [WARP_TOKENS] = 16, [STAGES] = 2 };
    return shared_bytes(v, config) <= SHARED_BYTES ? 4 : 2;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           values_of(problem->bucket)->dtype != QUERN_F32;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    if (config[WARPS] & (config[WARPS] - 1))
        return quern_refuse(why, "config warps=%d: must be a power of two", config[WARPS]);
    if (config[WARP_TOKENS] != 16 && config[WARP_TOKENS] != 32)
        return quern_refuse(why, "config warp_tokens=%d: must be 16 or 32", config[WARP_TOKENS]);
    if (v->deterministic && (config[WARPS] != fixed_warps(v) || config[WARP_TOKENS] != 16))
        return quern_refuse(why,
                            "config warps=%d warp_tokens=%d: must be %d and 16 with "
                            "deterministic=1",
                            config[WARPS], config[WARP_TOKENS], fixed_warps(v));
    if (config[CLUSTER] > 1 &&
        (problem->target->sm < 90 || is_fixed(v) || config[CLUSTER] & (config[CLUSTER] - 1)))
        return quern_refuse(why,
                            "config cluster=%d: must be 1, or from sm_90 up 2, 4 or 8 without a "
                            "prefix and deterministic=1",
                            config[CLUSTER]);
    if (config[CLUSTER] > 1 && v->b * units_of(v) * config[CLUSTER] > INT32_MAX)
        return quern_refuse(why, "config cluster=%d: too many blocks", config[CLUSTER]);
    int64_t bytes = shared_bytes(v, config), most = shared_of_block(problem);
    if (bytes > most || config[BLOCKS] * (bytes + RESERVED) > most + RESERVED)
        return quern_refuse(
            why,
            "config stages=%d blocks=%d: a block takes %lld bytes of shared memory, "
            "at most %lld are there",
            config[STAGES], config[BLOCKS], (long long)bytes, (long long)most);
    if (config[BLOCKS] * config[WARPS] * 32 * registers(v, config) > REGISTERS)
        return quern_refuse(why, "config warps=%d blocks=%d: %lld registers a thread do not fit",
                            config[WARPS], config[BLOCKS], (long long)registers(v, config));
    return QUERN_OK;
}

/* Whether few sequences, none long, are soonest done by a cluster for each unit: the combine would
 * take as long as the rest. */
static int choose_cluster(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_message why;
    config[WARPS] = 4;
    config[CLUSTER] = 8;
    config[LEAST] = 1;
    config[WARP_TOKENS] = 16;
    config[STAGES] = 2;
    config[BLOCKS] = 1;
    return v->b * units_of(v) * 8 <= 2 * cores_of(problem->profile) &&
           v->max_pages * v->page <= 2048 && !legal(problem, config, &why);
}

/* Bytes under way in an SM, up to what is enough. */
static int64_t bytes_ahead(const struct values *v, const int32_t *config)
{
    const int64_t enough = v->kv_dtype == QUERN_E4M3 ? ENOUGH_AHEAD * 3 / 4 : ENOUGH_AHEAD;
    int64_t bytes = config[WARPS] * config[BLOCKS] * (config[STAGES] - 1) * stage_bytes(v, config);
    return bytes < enough ? bytes : enough;
}

/* The first that has enough under way, with as few stages as that takes; or the most that there
 * is. Two blocks an SM: one computes while the other begins or ends; of e4m3, which takes more
 * instructions a byte, one of eight warps. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    static const int shapes[][2] = { { 8, 1 }, { 4, 2 }, { 4, 1 }, { 2, 2 }, { 2, 1 }, { 1, 1 } };
    const struct values *v = values_of(problem->bucket);
    int32_t some[KNOB_COUNT] = { [WARP_TOKENS] = 16, [LEAST] = 1, [CLUSTER] = 1 };
    int64_t most = 0;
    if (choose_cluster(problem, config))
        return;
    for (int i = v->kv_dtype != QUERN_E4M3; i < (int)(sizeof(shapes) / sizeof(shapes[0])); i++) {
        struct quern_message why;
        some[WARPS] = shapes[i][0];
        some[BLOCKS] = shapes[i][1];
        for (some[STAGES] = 2; some[STAGES] <= 6; some[STAGES]++) {
            if (bytes_ahead(v, some) <= most || legal(problem, some, &why))
                continue;
            most = bytes_ahead(v, some);
            for (int j = 0; j < KNOB_COUNT; j++)
                config[j] = some[j];
        }
    }
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][KNOB_COUNT] = {
        { 8, 16, 2, 1, 1, 1 }, { 4, 16, 3, 2, 1, 1 }, { 4, 16, 2, 3, 1, 1 }, { 4, 32, 3, 1, 1, 1 },
        { 4, 32, 2, 2, 1, 1 }, { 8, 16, 2, 1, 1, 8 }, { 4, 32, 3, 2, 1, 1 }, { 8, 16, 3, 1, 1, 1 },
        { 4, 16, 4, 2, 1, 1 }, { 4, 16, 2, 2, 1, 8 }, { 4, 16, 3, 3, 1, 1 }, { 2, 16, 3, 4, 1, 1 },
        { 2, 32, 3, 2, 1, 1 }, { 2, 32, 2, 3, 1, 1 }, { 8, 16, 2, 1, 1, 4 }, { 4, 16, 4, 1, 1, 1 },
        { 4, 16, 3, 1, 1, 1 }, { 4, 16, 3, 2, 2, 1 }, { 4, 16, 3, 2, 4, 1 }, { 8, 32, 2, 1, 1, 8 },
        { 2, 16, 4, 3, 1, 1 }, { 4, 32, 4, 2, 1, 1 }, { 8, 32, 3, 1, 1, 1 }, { 2, 16, 2, 2, 1, 1 },
        { 2, 16, 3, 1, 1, 1 }, { 1, 16, 4, 4, 1, 1 },
    };
    const struct values *v = values_of(problem->bucket);
    int count = 0;
    for (int i = 0; count < max && i < (int)(sizeof(list) / sizeof(list[0])); i++, count++) {
        for (int j = 0; j < KNOB_COUNT; j++)
            configs[count][j] = list[i][j];
        if (v->deterministic)
            configs[count][WARPS] = fixed_warps(v), configs[count][WARP_TOKENS] = 16;
    }
    return count;
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

static int64_t tiles_of(int64_t pages, const struct values *v, const int32_t *config)
{
    const int64_t tile = config[WARPS] * config[WARP_TOKENS];
    return (pages * v->page + tile - 1) / tile + (v->window > 0);
}

/* Blocks of the first step: as many as run at once; or groups of a block for each unit, at most
 * one for each tile. */
static int64_t blocks_of(const struct values *v, const struct quern_profile *profile,
                         const int32_t *config)
{
    const int64_t blocks = cores_of(profile) * config[BLOCKS];
    const int64_t tiles = tiles_of(v->max_pages, v, config);
    if (is_fixed(v))
        return blocks;
    int64_t groups = blocks / units_of(v);
    groups = tiles < groups && v->b * tiles < groups ? v->b * tiles : groups;
    return groups > 1 ? groups : 1;
}

/* Pieces of a unit, at most, with deterministic=1. */
static int64_t most_pieces(int64_t pages, const struct values *v, const int32_t *config)
{
    const int64_t each = DECODE_PIECE_TOKENS / (config[WARPS] * config[WARP_TOKENS]);
    const int64_t pieces = (tiles_of(pages, v, config) + each - 1) / each;
    return pieces < DECODE_PIECES ? pieces : DECODE_PIECES;
}

/* Partial states: of cuts two a block; of fixed pieces one each. */
static int64_t slots_of(const struct values *v, const int32_t *config, int64_t blocks)
{
    const int64_t rows = 8 * row_tiles(v), units = v->b * units_of(v);
    if (!is_fixed(v))
        return 2 * blocks * units_of(v);
    int64_t shared = v->shared_pages ? (v->b * (v->hq / v->hkv) + rows - 1) / rows * v->hkv : 0;
    if (v->deterministic)
        return units * most_pieces(v->max_pages, v, config) +
               shared * most_pieces(v->shared_pages, v, config);
    return units + shared + DECODE_SHARED_PIECES * blocks;
}

static void define(const struct quern_problem *problem, const int32_t *config,
                   struct quern_step *step)
{
    const struct values *v = values_of(problem->bucket);
    attention_decode_define(step, problem->bucket);
    quern_step_define(step, "DETERMINISTIC", v->deterministic);
    quern_step_define(step, "ALIGN_Q", problem->alignment[ARRAY_q]);
    quern_step_define(step, "ALIGN_K", problem->alignment[ARRAY_k_cache]);
    quern_step_define(step, "ALIGN_V", problem->alignment[ARRAY_v_cache]);
    quern_step_define(step, "ALIGN_O", problem->alignment[ARRAY_o]);
    quern_step_define(step, "N_TILES", row_tiles(v));
    quern_step_define_config(step, &attention_decode_sm80, config);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    const char *source = "decode/attention_decode_sm80.cu";
    const int64_t blocks = blocks_of(v, problem->profile, config);
    const int is_cluster = config[CLUSTER] > 1;
    struct quern_step *step = quern_plan_kernel(
        plan, "decode", source, is_cluster ? "attention_decode_cluster" : "attention_decode_sm80");
    define(problem, config, step);
    step->is_programmatic = problem->target->sm >= 90;
    step->threads[0] = 32 * (uint32_t)config[WARPS];
    step->shared_bytes = (uint32_t)shared_bytes(v, config);
    if (is_cluster) {
        step->cluster[0] = (uint32_t)config[CLUSTER];
        return;
    }
    step = quern_plan_kernel(plan, "combine", source, "attention_decode_combine");
    define(problem, config, step);
    step->threads[0] = 128;
    step->is_programmatic = problem->target->sm >= 90;
    plan->workspace_bytes =
        split_kv_bytes(blocks, v->b, slots_of(v, config, blocks), 8 * row_tiles(v), v->dv);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int64_t blocks = blocks_of(v, binding->profile, binding->config);
    const int64_t rows = 8 * row_tiles(v), group = v->hq / v->hkv, units = v->b * units_of(v);
    const int32_t cluster = binding->config[CLUSTER];
    struct decode_cuda_args args = { .call = attention_decode_arguments(binding) };
    if (cluster > 1) {
        QUERN_BIND(&launch->steps[0], args, units * cluster, 1, 1);
        return;
    }
    args.space = split_kv_space(binding->workspace, blocks, v->b,
                                slots_of(v, binding->config, blocks), rows);
    const int64_t across = !v->b ? 0 : is_fixed(v) ? blocks : units_of(v);
    const int64_t groups = is_fixed(v) ? 1 : blocks;
    QUERN_BIND(&launch->steps[0], args, across, groups, 1);
    QUERN_BIND(&launch->steps[1], args,
               !is_fixed(v)        ? across
               : units < INT32_MAX ? units
                                   : INT32_MAX,
               groups, group < rows ? group : rows);
}

const struct quern_variant attention_decode_sm80 = {
    .name = "attention_decode_sm80",
    .doc = "sequences split over all SMs on the device; tensor cores by mma.sync; bf16, f16, e4m3",
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
