/* The host side of fused_qk_norm_rope_cuda. */
#define QUERN_DEF "norm_rope/fused_qk_norm_rope.def"
#include <quern/family_def.h>

#include "fused_qk_norm_rope.h"

enum { KNOB_THREADS, KNOB_BLOCKS };
static const struct quern_knob knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 512, "threads of a block" },
    [KNOB_BLOCKS] = { "blocks", 1, 1024, "blocks in the grid for each SM, at most" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA && values_of(problem->bucket)->dtype != QUERN_F32;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[KNOB_THREADS] % 32)
        return quern_refuse(why, "config threads=%d: must be a multiple of 32",
                            config[KNOB_THREADS]);
    return QUERN_OK;
}

/* The least multiple of a warp whose blocks take a token's heads in as few turns as `most` threads
 * would. */
static int32_t even_threads(const struct quern_spec *bucket, int64_t most)
{
    const struct values *v = values_of(bucket);
    const int64_t lanes = v->d / NORM_ROPE_ITEM, slots = most / lanes;
    const int64_t heads = v->hq + v->hk ? v->hq + v->hk : 1, turns = (heads + slots - 1) / slots;
    const int64_t threads = (heads + turns - 1) / turns * lanes;
    return (int32_t)((threads + 31) / 32 * 32);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    config[KNOB_THREADS] = even_threads(problem->bucket, 256);
    config[KNOB_BLOCKS] = 64;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = { { 256, 64 }, { 128, 64 }, { 512, 64 },
                                       { 256, 8 },  { 128, 16 }, { 64, 64 } };
    int count = 0;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][KNOB_THREADS] = even_threads(problem->bucket, list[count][0]);
        configs[count][KNOB_BLOCKS] = list[count][1];
    }
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const int q = problem->alignment[ARRAY_q_weight], k = problem->alignment[ARRAY_k_weight];
    struct quern_step *step = quern_plan_kernel(
        plan, "norm_rope", "norm_rope/fused_qk_norm_rope_cuda.cu", "fused_qk_norm_rope");
    fused_qk_norm_rope_define(step, problem->bucket);
    quern_step_define(step, "QKV_ACCESS", problem->alignment[ARRAY_qkv]);
    quern_step_define(step, "WEIGHT_ACCESS", q < k ? q : k);
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

/* Where tokens are too few to occupy the device, blocks share their heads. */
static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct fused_qk_norm_rope_args args = fused_qk_norm_rope_arguments(binding);
    const int64_t slots = binding->config[KNOB_THREADS] / (v->d / NORM_ROPE_ITEM);
    const int64_t most = (int64_t)binding->profile->cores * binding->config[KNOB_BLOCKS];
    int64_t turns = (args.heads + slots - 1) / slots;
    turns = v->tokens < (int64_t)binding->profile->cores * 4 ? turns : turns > 0;
    QUERN_BIND(&launch->steps[0], args, v->tokens < most ? v->tokens : most, turns, 1);
}

const struct quern_variant fused_qk_norm_rope_cuda = {
    .name = "fused_qk_norm_rope_cuda",
    .doc = "a thread has 8 columns of a head; cosines and sines once a token",
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
