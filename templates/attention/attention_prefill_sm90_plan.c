/* The Hopper variant of attention_prefill, host side; attention_sm90.cu says what its blocks do.
 * Few queries and small windows are left to attention_prefill_sm80: its tiles are smaller, and an
 * SM has two of its blocks, one of which begins while the other ends. */
#define QUERN_DEF "attention/attention_prefill.def"
#include <quern/family_def.h>

#include <string.h>

#include "attention_prefill_cuda.h"
#include "attention_ref.h"

enum { CONSUMERS, BN, STAGES, PACK, TURNS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [CONSUMERS] = { "consumers", 1, 3, "warpgroups that multiply, 64 rows each" },
    [BN] = { "bn", 32, 192, "keys of a tile" },
    [STAGES] = { "stages", 1, 4, "tiles of keys and values in shared memory" },
    [PACK] = { "pack", 0, 1, "1: rows are all heads of a group, query by query" },
    [TURNS] = { "turns", 0, 1, "1: consumers issue products in turn" },
};

/* Configs by width, best first; pack is chosen apart. */
static const struct shape {
    int16_t d, dv, consumers, bn, stages, turns;
} shapes[] = {
    { 64, 64, 3, 128, 3, 1 },   { 64, 64, 3, 64, 4, 1 },    { 64, 64, 2, 128, 3, 1 },
    { 64, 64, 2, 128, 4, 1 },   { 64, 64, 2, 192, 2, 1 },   { 64, 64, 3, 128, 3, 0 },
    { 64, 64, 2, 128, 2, 1 },   { 64, 64, 2, 128, 3, 0 },   { 128, 128, 3, 64, 3, 1 },
    { 128, 128, 3, 80, 3, 1 },  { 128, 128, 3, 64, 4, 1 },  { 128, 128, 2, 128, 2, 1 },
    { 128, 128, 2, 96, 3, 1 },  { 128, 128, 2, 176, 2, 1 }, { 128, 128, 2, 144, 2, 1 },
    { 128, 128, 2, 112, 3, 1 }, { 128, 128, 3, 64, 3, 0 },  { 128, 128, 2, 128, 2, 0 },
    { 192, 128, 2, 128, 2, 1 }, { 192, 128, 2, 112, 2, 1 }, { 192, 128, 2, 96, 2, 1 },
    { 192, 128, 2, 80, 3, 1 },  { 192, 128, 2, 64, 3, 1 },  { 192, 128, 2, 128, 2, 0 },
    { 192, 192, 2, 96, 2, 1 },  { 192, 192, 2, 112, 2, 1 }, { 192, 192, 2, 80, 2, 1 },
    { 192, 192, 2, 64, 3, 1 },  { 192, 192, 2, 96, 2, 0 },  { 256, 256, 2, 80, 2, 1 },
    { 256, 256, 2, 64, 2, 1 },  { 256, 256, 2, 48, 3, 1 },  { 256, 256, 2, 80, 2, 0 },
    { 256, 256, 2, 64, 2, 0 },
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

enum { LEAST_QUERIES = 64, SMALL_WINDOW = 256 };

/* ---- Legality -------------------------------------------------------------------------------- */

static int64_t shared_bytes(const struct attention_work *work, const int32_t *config)
{
    int64_t tile = config[BN] * (work->d + work->dv);
    return 2 * (64 * config[CONSUMERS] * work->d + config[STAGES] * tile) + 512;
}

/* Registers of a consumer's thread: values, scores, and p while the next ones are computed. */
static int64_t registers_of(const struct attention_work *work, const int32_t *config)
{
    return work->dv / 2 + config[BN] * 3 / 4 + 36;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    const struct attention_work work = attention_prefill_work(problem->bucket);
    const int registers = config[CONSUMERS] == 3 ? 164 : 232;
    if (config[BN] % 16)
        return quern_refuse(why, "config bn=%d: must be a multiple of 16", config[BN]);
    if (config[TURNS] && config[CONSUMERS] == 1)
        return quern_refuse(why, "config turns=1: must be 0 with consumers=1");
    if (registers_of(&work, config) > registers)
        return quern_refuse(why, "config bn=%d: takes about %lld registers, there are %d",
                            config[BN], (long long)registers_of(&work, config), registers);
    if ((v->causal || v->window) && 64 * config[CONSUMERS] + config[BN] > ATTENTION_REACH)
        return quern_refuse(why,
                            "config consumers=%d bn=%d: must be at most %d keys where some are "
                            "not seen",
                            config[CONSUMERS], config[BN], ATTENTION_REACH);
    if (shared_bytes(&work, config) > problem->profile->l1_bytes)
        return quern_refuse(why,
                            "config stages=%d: takes %lld bytes of shared memory, at most %lld",
                            config[STAGES], (long long)shared_bytes(&work, config),
                            (long long)problem->profile->l1_bytes);
    if (attention_cuda_blocks(&work, 64 * config[CONSUMERS], config[PACK]) > INT32_MAX)
        return quern_refuse(why, "config consumers=%d: more than %d tiles", config[CONSUMERS],
                            INT32_MAX);
    if (config[PACK] && work.queries * (work.hq / work.hkv) > 1 << 30)
        return quern_refuse(why, "config pack=1: must be 0 with so many queries");
    return QUERN_OK;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    const struct attention_work work = attention_prefill_work(problem->bucket);
    struct quern_message why;
    int count = 0;
    for (int i = 0; i < SHAPES && count < max; i++) {
        const struct shape *shape = &shapes[i];
        if (shape->d != work.d || shape->dv != work.dv)
            continue;
        configs[count][CONSUMERS] = shape->consumers;
        configs[count][BN] = shape->bn;
        configs[count][STAGES] = shape->stages;
        configs[count][PACK] = attention_cuda_wants_pack(&work);
        configs[count][TURNS] = shape->turns;
        count += !legal(problem, configs[count], &why);
    }
    return count;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    int32_t configs[1][QUERN_MAX_KNOBS];
    candidates(problem, configs, 1);
    memcpy(config, configs[0], KNOB_COUNT * sizeof(*config));
}

static int supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    const struct attention_work work = attention_prefill_work(problem->bucket);
    const int64_t queries = v->varlen && v->b ? v->sq / v->b : v->sq;
    int32_t configs[1][QUERN_MAX_KNOBS];
    return problem->target->kind == QUERN_CUDA && problem->target->sm == 90 &&
           problem->target->sm_suffix == 'a' && v->dtype != QUERN_F32 &&
           queries * (work.hq / work.hkv) >= LEAST_QUERIES &&
           (!v->window || v->window > SMALL_WINDOW) && candidates(problem, configs, 1);
}

/* ---- Plan and bind --------------------------------------------------------------------------- */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct attention_work work = attention_prefill_work(problem->bucket);
    struct quern_step *step =
        quern_plan_kernel(plan, "attention", "attention/attention_sm90.cu", "attention_sm90");
    const int is_bf16 = values_of(problem->bucket)->dtype == QUERN_BF16;
    attention_prefill_define(problem, step);
    quern_step_define_text(step, "OPERAND_TYPE", is_bf16 ? "bf16" : "f16");
    quern_step_define(step, "D", work.d);
    quern_step_define(step, "DV", work.dv);
    quern_step_define_config(step, &attention_prefill_sm90, config);
    step->threads[0] = (uint32_t)(128 * (config[CONSUMERS] + 1));
    step->shared_bytes = (uint32_t)shared_bytes(&work, config);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct attention_work work = attention_prefill_work(binding->spec);
    const int32_t *config = binding->config;
    struct attention_cuda_args args = attention_prefill_arguments(binding);
    int64_t blocks = attention_cuda_grid(&work, 64 * config[CONSUMERS], config[PACK],
                                         binding->profile->l2_bytes, &args);
    QUERN_BIND(&launch->steps[0], args, blocks, 1, 1);
}

const struct quern_variant attention_prefill_sm90 = {
    .name = "attention_prefill_sm90",
    .doc = "flash attention by wgmma on Hopper, fed by cp.async; bf16, f16",
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
