/* The host side of set_kv_buffer_cpu. */
#define QUERN_DEF "kv_cache/set_kv_buffer.def"
#include <quern/family_def.h>

#include "set_kv_buffer.h"

static const struct quern_knob knobs[] = {
    { "block_kib", 16, 65536, "KiB of k, v and q that a block handles" },
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
    config[0] = 128;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t sizes[] = { 128, 512, 32, 2048, 16 };
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
    set_kv_buffer_define(
        quern_plan_kernel(plan, "set", "kv_cache/set_kv_buffer_cpu.c", "set_kv_buffer_main"),
        problem->bucket);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct set_kv_buffer_args args = set_kv_buffer_arguments(binding);
    int64_t token =
        (v->hkv * (v->d + v->dv) + v->hq * v->d) * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t tokens = (int64_t)binding->config[0] * 1024 / token;
    args.block = tokens ? tokens : 1;
    QUERN_BIND(&launch->steps[0], args, (v->t + args.block - 1) / args.block, 1, 1);
}

const struct quern_variant set_kv_buffer_cpu = {
    .name = "set_kv_buffer_cpu",
    .doc = "a block is some tokens, each read and written once",
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
