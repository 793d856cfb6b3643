/* The host side of silu_and_mul_cpu. */
#define QUERN_DEF "activation/silu_and_mul.def"
#include <quern/family_def.h>

#include "silu_and_mul.h"

static const struct quern_knob knobs[] = {
    { "block_kib", 8, 65536, "KiB of x that a block handles, but for the rest of a row" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[0] & (config[0] - 1))
        return quern_refuse(why, "config block_kib=%d: must be a power of two", config[0]);
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[0] = 64;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t sizes[] = { 64, 256, 16, 1024 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    (void)config; /* a launch argument: every config shares one artifact */
    silu_and_mul_define(
        quern_plan_kernel(plan, "join", "activation/silu_and_mul_cpu.c", "silu_and_mul_main"),
        problem->bucket);
}

/* A block is some whole rows, or of rows that are longer than it whole groups of one. */
static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct silu_and_mul_args args = silu_and_mul_arguments(binding);
    const int64_t size = (int64_t)quern_dtype_bytes((int)v->dtype);
    const int64_t cells = (int64_t)binding->config[0] * 1024 / (2 * size); /* of out, in a block */
    args.rows = cells / v->width ? cells / v->width : 1;
    args.columns = cells / v->width || (v->quantize && !v->group)
                       ? v->width
                       : cells / SILU_MUL_GROUP * SILU_MUL_GROUP;
    QUERN_BIND(&launch->steps[0], args, (v->tokens + args.rows - 1) / args.rows,
               (v->width + args.columns - 1) / args.columns, 1);
}

const struct quern_variant silu_and_mul_cpu = {
    .name = "silu_and_mul_cpu",
    .doc = "a block is some rows, or a part of one",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
