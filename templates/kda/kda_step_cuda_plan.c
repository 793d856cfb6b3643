/* The CUDA variant of kda_step: what it runs on, its knobs, its launch. kda_step_cuda.cu draws the
 * kernel.
 *
 *     cluster  blocks that share a group: first its value heads, then the columns of those
 *     bv       columns of v that a block has in registers at a time
 *     warps    of a block; 16 to 64 elements of the state a thread
 *     blocks   of an SM, for which registers are capped
 *
 * A small batch wants many SMs to fetch a group; a large one wants few barriers. */
#define QUERN_DEF "kda/kda_step.def"
#include <quern/family_def.h>

#include "conv_inputs.h"
#include "kda_decode.h"
#include "kda_kinds.h"
#include "kda_step.h"

enum { CLUSTER, BV, WARPS, BLOCKS, KNOB_COUNT };
static const struct quern_knob knobs[] = {
    [CLUSTER] = { "cluster", 1, 8, "blocks that share a head of q and k; above 1 sm_90" },
    [BV] = { "bv", 8, 256, "columns of v that a block has in registers" },
    [WARPS] = { "warps", 4, 32, "warps of a block" },
    [BLOCKS] = { "blocks", 1, 8, "blocks an SM must have registers for" },
};

/* How many value heads a cluster has at a time: as many as divide both. */
static int32_t heads_at_a_time(const struct values *v, int32_t cluster)
{
    int32_t parallel = cluster;
    while (v->hv / v->h % parallel)
        parallel /= 2;
    return parallel;
}

/* Of a thread, so that on no target any is spilled: its part of a slab and what is on its way
 * beside it; with rows of v also the sums of all warps. */
static int64_t registers_needed(const struct values *v, const int32_t *config)
{
    int64_t elements = v->k * config[BV] / (32 * config[WARPS]);
    return 64 + elements + (v->layout == KDA_LAYOUT_VK ? 0 : 3 * config[WARPS]);
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    const struct kda_slab slab = { v->k, v->v, v->layout == KDA_LAYOUT_VK, (int)v->state,
                                   problem->alignment[ARRAY_states] };
    if (conv_require_power_of_two("cluster", config[CLUSTER], why))
        return QUERN_INVALID;
    if (config[CLUSTER] > 1 && problem->target->sm < 90)
        return quern_refuse(why, "config cluster=%d: must be 1 below sm_90", config[CLUSTER]);
    int64_t columns = v->v * heads_at_a_time(v, config[CLUSTER]) / config[CLUSTER];
    if (config[BV] > columns)
        return quern_refuse(why, "config bv=%d: must be at most %lld with cluster=%d", config[BV],
                            (long long)columns, config[CLUSTER]);
    if (kda_slab_legal(&slab, config[BV], config[WARPS], why))
        return QUERN_INVALID;
    int64_t needed = registers_needed(v, config);
    if (65536 / (32 * config[WARPS] * config[BLOCKS]) < needed)
        return quern_refuse(why, "config blocks=%d: must leave a thread %lld registers",
                            config[BLOCKS], (long long)needed);
    return QUERN_OK;
}

/* Of a list, most wanted first, what is legal. */
static void first_legal(const struct quern_problem *problem, const int32_t (*list)[KNOB_COUNT],
                        int count, int32_t *config)
{
    struct quern_message why;
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < KNOB_COUNT; k++)
            config[k] = list[i][k];
        if (!legal(problem, config, &why))
            return;
    }
}

/* Where groups are fewer than SMs clusters fetch them; else blocks of their own. What any problem
 * bears stands last. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    static const int32_t few[][KNOB_COUNT] = { { 4, 32, 8, 1 },   { 4, 32, 4, 1 },  { 2, 64, 8, 1 },
                                               { 1, 128, 16, 1 }, { 1, 128, 8, 1 }, { 1, 64, 8, 1 },
                                               { 1, 32, 8, 1 },   { 1, 32, 4, 1 },  { 1, 16, 4, 1 },
                                               { 1, 8, 4, 1 } };
    static const int32_t many[][KNOB_COUNT] = { { 1, 32, 4, 1 },  { 1, 32, 8, 1 }, { 1, 64, 8, 1 },
                                                { 1, 64, 16, 1 }, { 1, 16, 4, 1 }, { 1, 8, 4, 1 } };
    const struct values *v = values_of(problem->bucket);
    if (v->n * v->h <= 2 * (int64_t)problem->profile->cores)
        first_legal(problem, few, sizeof(few) / sizeof(few[0]), config);
    else
        first_legal(problem, many, sizeof(many) / sizeof(many[0]), config);
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][KNOB_COUNT] = {
        { 1, 32, 4, 1 },  { 4, 32, 8, 1 },   { 1, 128, 16, 1 }, { 4, 32, 4, 1 },  { 1, 64, 8, 1 },
        { 2, 64, 8, 1 },  { 8, 16, 4, 1 },   { 1, 128, 8, 1 },  { 2, 32, 4, 1 },  { 2, 64, 16, 1 },
        { 1, 64, 4, 1 },  { 1, 32, 8, 1 },   { 1, 128, 16, 2 }, { 1, 128, 8, 2 }, { 4, 16, 4, 1 },
        { 1, 64, 16, 1 }, { 1, 128, 32, 1 }, { 2, 128, 16, 1 }, { 1, 16, 4, 1 },  { 1, 64, 8, 2 },
        { 8, 32, 8, 1 },  { 8, 32, 4, 1 },   { 1, 256, 32, 1 }, { 1, 8, 4, 1 },
    };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        for (int k = 0; k < KNOB_COUNT; k++)
            configs[count][k] = list[count][k];
    }
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const int channels[] = { ARRAY_x, ARRAY_conv_states };
    const struct values *v = values_of(problem->bucket);
    const int32_t parallel = heads_at_a_time(v, config[CLUSTER]);
    struct quern_step *step =
        quern_plan_kernel(plan, "step", "kda/kda_step_cuda.cu", "kda_step_cuda");
    int access = conv_access_bytes(problem, channels, 2);
    kda_step_define(step, problem->bucket);
    quern_step_define(step, "RAW_GATE", v->gate);
    quern_step_define(step, "RAW_BIAS", v->gate && v->dt_bias);
    quern_step_define(step, "RAW_G", v->g);
    quern_step_define(step, "RAW_BETA", v->beta);
    quern_step_define(step, "ACCESS", problem->alignment[ARRAY_states]);
    quern_step_define(step, "CONV_ACCESS", access < 4 ? access : 4); /* work for many threads */
    quern_step_define(step, "WEIGHT_ACCESS",
                      conv_weight_access(v->w, v->weight, problem->alignment[ARRAY_weight]));
    quern_step_define(step, "PARALLEL", parallel);
    quern_step_define(step, "PARTS", config[CLUSTER] / parallel);
    quern_step_define(step, "BV", config[BV]);
    quern_step_define(step, "WARPS", config[WARPS]);
    quern_step_define(step, "BLOCKS", config[BLOCKS]);
    step->threads[0] = 32 * (uint32_t)config[WARPS];
    if (config[CLUSTER] > 1)
        step->cluster[0] = (uint32_t)config[CLUSTER];
}

/* Whole clusters: the kernel walks over what a grid does not hold. */
static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct kda_step_args args = kda_step_arguments(binding);
    const int64_t cluster = binding->config[CLUSTER], most = INT32_MAX / cluster;
    int64_t groups = v->n * v->h;
    QUERN_BIND(&launch->steps[0], args, (groups < most ? groups : most) * cluster, 1, 1);
}

const struct quern_variant kda_step_cuda = {
    .name = "kda_step_cuda",
    .doc = "a head of q and k with its value heads a block or cluster",
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
