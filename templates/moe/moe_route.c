/* What topk_softmax, topk_sigmoid and moe_fused_gate do: a token's experts and their weights.
 *
 *     CPU     a block of the grid is some tokens; their number is a launch argument
 *     CUDA    a warp is a token
 *
 * The parameters of the first two are the first ones of moe_fused_gate, in its order, so its list's
 * `values` serves all three. */
#define QUERN_DEF "moe/moe_fused_gate.def"
#include <quern/family_def.h>

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "moe_route.h"
#include "moe_route_args.h"

struct moe_route moe_route_of(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    const int is_gate = spec->family == &quern_family_moe_fused_gate;
    const double scaling = isnan(v->scaling) ? 1 : v->scaling;
    struct moe_route route = {
        .tokens = v->tokens,
        .experts = v->experts,
        .topk = v->topk,
        .groups = 1,
        .topk_group = 1,
        .scoring = spec->family == &quern_family_topk_softmax ? ROUTE_BY_LOGIT : ROUTE_BY_SIGMOID,
        .dtype = (int)v->dtype,
        .has_bias = (int)v->bias,
        .renormalize = (int)v->renormalize,
        .softcap = v->softcap,
        .scaling = scaling,
    };
    if (is_gate) {
        route.shared = v->shared;
        route.topk = v->topk - v->shared;
        route.groups = v->groups;
        route.topk_group = v->topk_group;
        route.scoring = v->scoring ? ROUTE_BY_SOFTMAX : ROUTE_BY_SIGMOID;
        route.scaling = v->apply_scaling ? scaling : 1;
        route.shared_weight = v->apply_scaling || !v->shared ? 1 : 1 / scaling;
    }
    return route;
}

void moe_route_define(struct quern_step *step, const struct moe_route *route)
{
    static const char *const dtypes[] = {
        [QUERN_F32] = "DT_F32", [QUERN_BF16] = "DT_BF16", [QUERN_F16] = "DT_F16"
    };
    quern_step_define(step, "ROUTE_SCORING", route->scoring);
    quern_step_define(step, "ROUTE_EXPERTS", route->experts);
    quern_step_define(step, "ROUTE_TOPK", route->topk);
    quern_step_define(step, "ROUTE_GROUPS", route->groups);
    quern_step_define(step, "ROUTE_TOPK_GROUP", route->topk_group);
    quern_step_define_text(step, "ROUTE_DTYPE", dtypes[route->dtype]);
    quern_step_define(step, "ROUTE_HAS_BIAS", route->has_bias);
    quern_step_define(step, "ROUTE_HAS_SOFTCAP", !isnan(route->softcap));
    quern_step_define(step, "ROUTE_RENORMALIZE", route->renormalize);
}

void moe_route_define_access(struct quern_step *step, int logits_alignment, int bias_alignment)
{
    quern_step_define(step, "ROUTE_ACCESS", logits_alignment);
    quern_step_define(step, "ROUTE_BIAS_ACCESS", bias_alignment < 4 ? 4 : bias_alignment);
}

struct moe_route_scalars moe_route_scalars_of(const struct moe_route *route)
{
    const float softcap = isnan(route->softcap) ? 0 : (float)route->softcap;
    return (struct moe_route_scalars){
        .softcap = softcap,
        .softcap_inverse = softcap > 0 ? 1 / softcap : 0,
        .scaling = (float)route->scaling,
    };
}

static struct moe_route_args arguments(const struct quern_binding *binding,
                                       const struct moe_route *route)
{
    const struct quern_array *arrays = binding->arrays;
    return (struct moe_route_args){
        .logits = arrays[MOE_ROUTE_LOGITS].data,
        .bias = arrays[MOE_ROUTE_BIAS].data,
        .weights = arrays[MOE_ROUTE_WEIGHTS].data,
        .ids = arrays[MOE_ROUTE_IDS].data,
        .logits_row = arrays[MOE_ROUTE_LOGITS].strides[0],
        .weights_row = arrays[MOE_ROUTE_WEIGHTS].strides[0],
        .ids_row = arrays[MOE_ROUTE_IDS].strides[0],
        .tokens = route->tokens,
        .scalars = moe_route_scalars_of(route),
        .shared_weight = (float)route->shared_weight,
    };
}

static struct quern_step *add_step(struct quern_plan *plan, const char *source, const char *entry,
                                   const struct moe_route *route)
{
    struct quern_step *step = quern_plan_kernel(plan, "route", source, entry);
    moe_route_define(step, route);
    quern_step_define(step, "SHARED", route->shared);
    return step;
}

static int require_power_of_two(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

static const struct quern_knob cpu_knobs[] = {
    { "tokens", 1, 4096, "tokens that a block of the grid chooses for" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    (void)problem;
    return require_power_of_two("tokens", config[0], why);
}

static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const int64_t tokens = values_of(problem->bucket)->tokens;
    config[0] = tokens < 1024 ? 8 : 64;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t sizes[] = { 64, 8, 256, 16, 1024 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    const struct moe_route route = moe_route_of(problem->bucket);
    (void)config; /* a launch argument: every config shares one artifact */
    add_step(plan, "moe/moe_route_cpu.c", "moe_route_main", &route);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct moe_route route = moe_route_of(binding->spec);
    struct moe_route_args args = arguments(binding, &route);
    args.block = binding->config[0];
    QUERN_BIND(&launch->steps[0], args, (args.tokens + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant moe_route_cpu = {
    .name = "moe_route_cpu",
    .doc = "keys in vectors, a round for each expert chosen",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = sizeof(cpu_knobs) / sizeof(cpu_knobs[0]),
    .supports = cpu_supports,
    .legal = cpu_legal,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- The CUDA variant ------------------------------------------------------------------------ */

static const struct quern_knob cuda_knobs[] = {
    { "threads", 32, 256, "threads of a block, a warp for each token" },
};

/* sm_80 is the first to reduce over a warp in one instruction. */
static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    (void)problem;
    return require_power_of_two("threads", config[0], why);
}

/* Few tokens: a warp for each SM first. */
static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const int64_t tokens = values_of(problem->bucket)->tokens;
    config[0] = tokens <= problem->profile->cores ? 32 : 128;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t sizes[] = { 128, 32, 64, 256 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct moe_route route = moe_route_of(problem->bucket);
    struct quern_step *step = add_step(plan, "moe/moe_route_cuda.cu", "moe_route", &route);
    moe_route_define_access(step, problem->alignment[MOE_ROUTE_LOGITS],
                            problem->alignment[MOE_ROUTE_BIAS]);
    quern_step_define(step, "THREADS", config[0]);
    step->threads[0] = (uint32_t)config[0];
    step->is_programmatic = problem->target->sm >= 90;
}

static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct moe_route route = moe_route_of(binding->spec);
    const struct moe_route_args args = arguments(binding, &route);
    const int64_t warps = binding->config[0] / 32;
    QUERN_BIND(&launch->steps[0], args, (args.tokens + warps - 1) / warps, 1, 1);
}

static const struct quern_variant moe_route_cuda = {
    .name = "moe_route_cuda",
    .doc = "a warp for each token: sorted values in each lane, a round for each expert chosen",
    .device = QUERN_CUDA,
    .knobs = cuda_knobs,
    .knob_count = sizeof(cuda_knobs) / sizeof(cuda_knobs[0]),
    .supports = cuda_supports,
    .legal = cuda_legal,
    .heuristic = cuda_heuristic,
    .candidates = cuda_candidates,
    .plan = cuda_plan,
    .bind = cuda_bind,
};

const struct quern_variant *const moe_route_variants[] = { &moe_route_cuda, &moe_route_cpu, NULL };

/* ---- Rules, units, cost ---------------------------------------------------------------------- */

static int check_groups(const struct values *v, struct quern_message *why)
{
    if (v->groups > MOE_ROUTE_GROUPS_MOST || v->experts % v->groups)
        return quern_refuse(why, "groups=%lld: must divide experts and be at most %d",
                            (long long)v->groups, MOE_ROUTE_GROUPS_MOST);
    if (v->topk_group > v->groups)
        return quern_refuse(why, "topk_group=%lld: must be at most groups",
                            (long long)v->topk_group);
    if (v->shared >= v->topk)
        return quern_refuse(why, "shared=%lld: must be less than topk", (long long)v->shared);
    if (v->topk - v->shared > v->topk_group * (v->experts / v->groups))
        return quern_refuse(
            why, "topk=%lld: topk - shared must be at most the experts of topk_group groups",
            (long long)v->topk);
    if (v->shared && v->scaling == 0)
        return quern_refuse(why, "scaling=0: must not be 0 with shared experts");
    return QUERN_OK;
}

/* A warp for each token, in grids of 32 bits. */
int moe_route_validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int is_gate = spec->family == &quern_family_moe_fused_gate;
    if (v->tokens > INT64_C(1) << 30)
        return quern_refuse(why, "tokens=%lld: must be at most 2^30", (long long)v->tokens);
    if (v->experts > MOE_ROUTE_EXPERTS_MOST)
        return quern_refuse(why, "experts=%lld: must be at most %d", (long long)v->experts,
                            MOE_ROUTE_EXPERTS_MOST);
    if (v->topk > MOE_ROUTE_TOPK_MOST || (!is_gate && v->topk > v->experts))
        return quern_refuse(why, "topk=%lld: must be at most %d%s", (long long)v->topk,
                            MOE_ROUTE_TOPK_MOST, is_gate ? "" : " and at most experts");
    if (!isnan(v->softcap) && !(v->softcap >= 1e-30 && v->softcap <= 1e30))
        return quern_refuse(why, "softcap=%g: must be from 1e-30 to 1e30", v->softcap);
    return is_gate ? check_groups(v, why) : QUERN_OK;
}

int64_t moe_route_units(const struct quern_spec *spec)
{
    return values_of(spec)->tokens;
}

double moe_route_tolerance(const struct quern_spec *spec, int index)
{
    (void)spec;
    return index == MOE_ROUTE_IDS ? 0 : 1e-5;
}

/* An exponential is counted as one operation, and so is each comparison. */
void moe_route_cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct moe_route route = moe_route_of(spec);
    const double tokens = (double)route.tokens, experts = (double)route.experts;
    const double columns = (double)(route.topk + route.shared);
    cost->flops = tokens * experts * 2;
    cost->bytes = tokens * experts * (double)quern_dtype_bytes(route.dtype) + tokens * columns * 8 +
                  (route.has_bias ? experts * 4 : 0);
}
