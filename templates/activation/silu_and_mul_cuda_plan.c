/* The host side of silu_and_mul_cuda: one kernel for a factor a row, another for all else. */
#define QUERN_DEF "activation/silu_and_mul.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "silu_and_mul.h"

enum { KNOB_THREADS, KNOB_UNROLL, KNOB_BLOCKS };
static const struct quern_knob knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 512, "threads of a block" },
    [KNOB_UNROLL] = { "unroll", 1, 4, "items of 8 columns that a thread has in flight" },
    [KNOB_BLOCKS] = { "blocks", 1, 1024, "blocks in the grid for each SM, at most" },
};

static int is_by_row(const struct quern_spec *spec)
{
    return values_of(spec)->quantize && !values_of(spec)->group;
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    for (int i = 0; i < (int)(sizeof(knobs) / sizeof(knobs[0])); i++) {
        if (config[i] & (config[i] - 1))
            return quern_refuse(why, "config %s=%d: must be a power of two", knobs[i].name,
                                config[i]);
    }
    return QUERN_OK;
}

/* A factor a row: as many threads as hold the row in registers, few if it is short. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const int64_t width = quern_power_of_two_above(values_of(problem->bucket)->width);
    const int64_t items = width / SILU_MUL_ITEM;
    config[KNOB_THREADS] = 256;
    config[KNOB_UNROLL] = 2;
    config[KNOB_BLOCKS] = 64;
    if (!is_by_row(problem->bucket))
        return;
    config[KNOB_THREADS] = (int32_t)(items < 64 ? 32 : items > 1024 ? 512 : items / 2);
    config[KNOB_UNROLL] = items > 1024 ? 4 : 2;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][3] = { { 256, 2, 64 }, { 256, 1, 64 }, { 128, 4, 64 },
                                       { 512, 2, 16 }, { 128, 1, 32 }, { 512, 4, 16 },
                                       { 64, 2, 256 }, { 256, 4, 16 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const int by_row = is_by_row(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "join",
                                                by_row ? "activation/silu_and_mul_rows.cu"
                                                       : "activation/silu_and_mul_cuda.cu",
                                                by_row ? "silu_and_mul_rows" : "silu_and_mul");
    silu_and_mul_define(step, problem->bucket);
    quern_step_define(step, "HAS_LIMIT", isfinite(silu_and_mul_limit(problem->bucket)));
    quern_step_define(step, "X_ACCESS", problem->alignment[ARRAY_x]);
    quern_step_define(step, "OUT_ACCESS", problem->alignment[ARRAY_out]);
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, by_row ? "KEPT" : "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int64_t most = (int64_t)binding->profile->cores * binding->config[KNOB_BLOCKS];
    const int64_t tile = (int64_t)binding->config[KNOB_THREADS] * binding->config[KNOB_UNROLL];
    const int64_t items = (v->width + SILU_MUL_ITEM - 1) / SILU_MUL_ITEM;
    int64_t blocks = is_by_row(binding->spec) ? v->tokens : (v->tokens * items + tile - 1) / tile;
    blocks = blocks < most ? blocks : most;
    struct silu_and_mul_args args = silu_and_mul_arguments(binding);
    args.items = (uint32_t)items;
    args.step_rows = blocks * tile / items;
    args.step_items = (uint32_t)(blocks * tile % items);
    QUERN_BIND(&launch->steps[0], args, blocks, 1, 1);
}

const struct quern_variant silu_and_mul_cuda = {
    .name = "silu_and_mul_cuda",
    .doc = "a thread has items of 8 columns; with a factor a row a block has a row",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
