#include "attention_cuda.h"

#include <math.h>
#include <string.h>

const struct quern_knob attention_cuda_knobs[ATTENTION_KNOBS] = {
    [ATTENTION_BM] = { "bm", 32, 128, "rows of scores that a block has" },
    [ATTENTION_BN] = { "bn", 32, 128, "keys of a tile" },
    [ATTENTION_WARPS] = { "warps", 2, 8, "warps, which share the rows" },
    [ATTENTION_STAGES] = { "stages", 1, 3, "tiles of keys and values in shared memory" },
    [ATTENTION_Q_REGS] = { "q_regs", 0, 1, "1: q is kept in registers" },
    [ATTENTION_PACK] = { "pack", 0, 1, "1: rows are all heads of a group, query by query" },
    [ATTENTION_BLOCKS] = { "blocks", 1, 4, "blocks that an SM has registers for" },
};

/* Configs by width, best first; pack is chosen apart. */
static const struct shape {
    int16_t d, dv, bm, bn, warps, stages, q_regs, blocks;
} shapes[] = {
    { 64, 64, 128, 128, 4, 2, 0, 2 },  { 64, 64, 128, 128, 4, 1, 0, 2 },
    { 64, 64, 128, 64, 4, 2, 1, 2 },   { 64, 64, 128, 64, 4, 2, 0, 2 },
    { 64, 64, 64, 128, 4, 2, 0, 2 },   { 64, 64, 64, 64, 4, 2, 1, 3 },
    { 96, 96, 128, 64, 4, 2, 0, 2 },   { 96, 96, 128, 64, 4, 1, 0, 2 },
    { 96, 96, 64, 64, 4, 2, 1, 2 },    { 96, 96, 128, 64, 8, 2, 1, 1 },
    { 128, 128, 128, 64, 4, 1, 0, 2 }, { 128, 128, 128, 64, 4, 2, 0, 2 },
    { 128, 128, 128, 32, 4, 2, 0, 2 }, { 128, 128, 64, 64, 2, 1, 0, 4 },
    { 128, 128, 64, 64, 4, 2, 1, 2 },  { 128, 128, 128, 64, 8, 2, 1, 1 },
    { 128, 128, 64, 64, 4, 1, 0, 3 },  { 192, 128, 128, 32, 4, 2, 0, 2 },
    { 192, 128, 128, 64, 4, 1, 0, 2 }, { 192, 128, 128, 64, 8, 2, 1, 1 },
    { 192, 128, 64, 64, 4, 1, 0, 2 },  { 192, 128, 64, 32, 4, 2, 0, 2 },
    { 192, 192, 128, 64, 8, 2, 0, 1 }, { 192, 192, 64, 64, 4, 1, 0, 2 },
    { 192, 192, 64, 32, 4, 2, 0, 2 },  { 256, 256, 64, 64, 4, 1, 0, 2 },
    { 256, 256, 128, 64, 8, 2, 0, 1 }, { 256, 256, 64, 64, 4, 2, 0, 1 },
    { 256, 256, 64, 32, 4, 2, 0, 2 },  { 256, 256, 64, 32, 4, 1, 0, 2 },
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t at_least(int64_t value, int64_t least)
{
    return value > least ? value : least;
}

/* ---- Legality -------------------------------------------------------------------------------- */

static int64_t group_of(const struct attention_work *work)
{
    return work->hq / work->hkv;
}

int64_t attention_cuda_blocks(const struct attention_work *work, int64_t bm, int is_packed)
{
    int64_t rows = work->queries * (is_packed ? group_of(work) : 1);
    int64_t heads = is_packed ? work->hkv : work->hq;
    return heads * (work->is_varlen ? rows / bm + work->b : work->b * ceil_div(rows, bm));
}

/* q and the stages, then the softmax's state and the block's place. */
static int64_t shared_bytes(const struct attention_work *work, const int32_t *config)
{
    int64_t tiles = config[ATTENTION_BM] * work->d +
                    config[ATTENTION_STAGES] * config[ATTENTION_BN] * (work->d + work->dv);
    return 2 * tiles + 32 * config[ATTENTION_BM] + 128 * config[ATTENTION_WARPS] + 256;
}

/* What the kernel declares beside that: ids of pages. */
static int64_t static_bytes(const struct attention_work *work, const int32_t *config)
{
    return work->has_prefix ? 8 * config[ATTENTION_BN] : 0;
}

/* Registers of a thread: sums, scores, what is kept of q and of a tile that is converted, and the
 * rest. */
static int64_t registers_of(const struct attention_work *work, const int32_t *config)
{
    int64_t rows = config[ATTENTION_BM] / config[ATTENTION_WARPS];
    int64_t sums = rows * (work->dv + config[ATTENTION_BN]) / 32;
    int64_t fetched = config[ATTENTION_BN] * (work->d + work->dv) / 128 / config[ATTENTION_WARPS];
    int64_t others = work->is_narrow || (work->has_prefix && config[ATTENTION_PACK]) ? 68 : 60;
    return sums + (config[ATTENTION_Q_REGS] ? rows * work->d / 64 : 0) +
           (work->is_converted ? fetched : 0) + others;
}

static int64_t register_limit(const int32_t *config)
{
    int64_t limit = 65536 / (32 * config[ATTENTION_WARPS] * config[ATTENTION_BLOCKS]) / 8 * 8;
    return limit < 255 ? limit : 255;
}

static int is_power_of_two(int value)
{
    return value > 0 && !(value & (value - 1));
}

int attention_cuda_legal(const struct attention_work *work, const int32_t *config,
                         struct quern_message *why)
{
    const int bm = config[ATTENTION_BM], warps = config[ATTENTION_WARPS];
    const int64_t most = work->l1_bytes ? work->l1_bytes : 48 * 1024;
    for (int i = ATTENTION_BM; i <= ATTENTION_WARPS; i++)
        if (!is_power_of_two(config[i]))
            return quern_refuse(why, "config %s=%d: must be a power of two",
                                attention_cuda_knobs[i].name, config[i]);
    if (bm % (16 * warps))
        return quern_refuse(why, "config bm=%d: must be a multiple of %d with warps=%d", bm,
                            16 * warps, warps);
    if (registers_of(work, config) > register_limit(config))
        return quern_refuse(why,
                            "config bm=%d bn=%d warps=%d blocks=%d: takes about %lld registers, "
                            "there are %lld",
                            bm, config[ATTENTION_BN], warps, config[ATTENTION_BLOCKS],
                            (long long)registers_of(work, config),
                            (long long)register_limit(config));
    if (shared_bytes(work, config) + static_bytes(work, config) > most)
        return quern_refuse(why,
                            "config stages=%d: takes %lld bytes of shared memory, at most %lld",
                            config[ATTENTION_STAGES], (long long)shared_bytes(work, config),
                            (long long)(most - static_bytes(work, config)));
    if (attention_cuda_blocks(work, bm, config[ATTENTION_PACK]) > INT32_MAX)
        return quern_refuse(why, "config bm=%d: more than %d tiles", bm, INT32_MAX);
    if (work->has_prefix && config[ATTENTION_STAGES] != 2)
        return quern_refuse(why, "config stages=%d: must be 2 with a cache",
                            config[ATTENTION_STAGES]);
    if (work->has_prefix && config[ATTENTION_BN] > 32 * warps)
        return quern_refuse(why, "config bn=%d: must be at most %d, a key a thread, with a cache",
                            config[ATTENTION_BN], 32 * warps);
    if (config[ATTENTION_PACK] && work->queries * group_of(work) > 1 << 30)
        return quern_refuse(why, "config pack=1: must be 0 with so many queries");
    return QUERN_OK;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

static void use(const struct shape *shape, int is_packed, int32_t *config)
{
    config[ATTENTION_BM] = shape->bm;
    config[ATTENTION_BN] = shape->bn;
    config[ATTENTION_WARPS] = shape->warps;
    config[ATTENTION_STAGES] = shape->stages;
    config[ATTENTION_Q_REGS] = shape->q_regs;
    config[ATTENTION_PACK] = is_packed;
    config[ATTENTION_BLOCKS] = shape->blocks;
}

/* Whether a group's heads fit one tile, more or less. */
int attention_cuda_wants_pack(const struct attention_work *work)
{
    int64_t queries =
        work->is_varlen ? ceil_div(work->queries, at_least(work->b, 1)) : work->queries;
    return group_of(work) > 1 && queries < 64;
}

int attention_cuda_candidates(const struct attention_work *work,
                              int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    struct quern_message why;
    int count = 0;
    for (int other = 0; other < (group_of(work) > 1 ? 2 : 1); other++)
        for (int i = 0; i < SHAPES && count < max; i++) {
            if (shapes[i].d != work->d || shapes[i].dv != work->dv)
                continue;
            use(&shapes[i], attention_cuda_wants_pack(work) ^ other, configs[count]);
            count += !attention_cuda_legal(work, configs[count], &why);
        }
    return count;
}

int attention_cuda_supports(const struct quern_problem *problem, const struct attention_work *work)
{
    int32_t configs[1][QUERN_MAX_KNOBS];
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           attention_cuda_candidates(work, configs, 1);
}

void attention_cuda_heuristic(const struct attention_work *work, int32_t *config)
{
    int32_t configs[1][QUERN_MAX_KNOBS];
    attention_cuda_candidates(work, configs, 1);
    memcpy(config, configs[0], ATTENTION_KNOBS * sizeof(*config));
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

struct quern_step *attention_cuda_plan(const struct attention_work *work, const int32_t *config,
                                       const struct quern_variant *variant, struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "attention", "attention/attention_sm80.cu", "attention_sm80");
    quern_step_define(step, "D", work->d);
    quern_step_define(step, "DV", work->dv);
    quern_step_define_config(step, variant, config);
    step->threads[0] = (uint32_t)(32 * config[ATTENTION_WARPS]);
    step->shared_bytes = (uint32_t)shared_bytes(work, config);
    return step;
}

struct attention_rows attention_cuda_rows(const struct quern_array *array, int has_sequences)
{
    const int64_t *strides = array->strides + has_sequences;
    return (struct attention_rows){ array->data, has_sequences ? array->strides[0] * 2 : 0,
                                    strides[0] * 2, strides[1] * 2 };
}

void attention_cuda_scale(struct attention_cuda_args *args, int64_t d, double scale, double softcap)
{
    double factor = isnan(scale) ? 1 / sqrt((double)d) : scale;
    int is_capped = softcap > 0;
    args->inner = is_capped ? (float)(factor / softcap) : 0;
    args->sign = is_capped ? args->inner != 0 : factor > 0 ? 1 : factor < 0 ? -1 : 0;
    factor = is_capped ? softcap : fabs(factor);
    args->factor = (float)(M_LOG2E * (factor > 1e-37 ? factor : 1e-37));
}

int64_t attention_cuda_grid(const struct attention_work *work, int64_t bm, int is_packed,
                            int64_t l2_bytes, struct attention_cuda_args *args)
{
    const int64_t rows = args->sq * (is_packed ? group_of(work) : 1);
    const int64_t head = at_least(args->sk * (work->d + work->dv) * 2, 1);
    const int64_t items = args->b * (is_packed ? work->hkv : work->hq);
    int64_t section = at_least((l2_bytes ? l2_bytes : 16 << 20) / 2 / head, 1);
    section *= is_packed ? 1 : group_of(work);
    args->tiles = (int32_t)ceil_div(rows, bm);
    args->section = (int32_t)(section < items ? section : items);
    return args->sq ? attention_cuda_blocks(work, bm, is_packed) : 0;
}
