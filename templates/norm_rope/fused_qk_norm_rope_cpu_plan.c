/* The host side of fused_qk_norm_rope_cpu. */
#define QUERN_DEF "norm_rope/fused_qk_norm_rope.def"
#include <quern/family_def.h>

#include "fused_qk_norm_rope.h"

static const struct quern_knob knobs[] = {
    { "block_kib", 8, 65536, "KiB of queries and keys that a block handles" },
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
    fused_qk_norm_rope_define(quern_plan_kernel(plan, "norm_rope",
                                                "norm_rope/fused_qk_norm_rope_cpu.c",
                                                "fused_qk_norm_rope_main"),
                              problem->bucket);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct fused_qk_norm_rope_args args = fused_qk_norm_rope_arguments(binding);
    const int64_t token = args.heads * v->d * (int64_t)quern_dtype_bytes((int)v->dtype);
    const int64_t tokens = token ? (int64_t)binding->config[0] * 1024 / token : 1;
    args.block = tokens ? tokens : 1;
    QUERN_BIND(&launch->steps[0], args, (v->tokens + args.block - 1) / args.block,
               args.heads ? 1 : 0, 1);
}

const struct quern_variant fused_qk_norm_rope_cpu = {
    .name = "fused_qk_norm_rope_cpu",
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
