/* What the CUDA variants of moe share on the host side. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <math.h>

#include "moe_cuda.h"

int moe_cuda_supports(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    return problem->target->kind == QUERN_CUDA && problem->target->sm >= 80 &&
           v->dtype != QUERN_F32 && v->w_dtype == v->dtype && v->groups <= 32;
}

int moe_cuda_cores(const struct quern_profile *profile)
{
    return profile->cores > 0 ? profile->cores : 108;
}

int64_t moe_cuda_shared_bytes(const struct quern_problem *problem)
{
    return problem->profile->l1_bytes ? problem->profile->l1_bytes : 99 * 1024;
}

void moe_cuda_define_route(const struct quern_problem *problem, struct quern_step *step)
{
    const struct values *v = values_of(problem->bucket);
    quern_step_define(step, "EXPERTS", v->experts);
    quern_step_define(step, "TOPK", v->topk);
    quern_step_define(step, "SHARED", v->shared);
    quern_step_define(step, "LOCAL", v->local);
    quern_step_define(step, "MAPPED", v->mapped);
    quern_step_define(step, "ROUTE_SCORING", v->scoring == 0 ? ROUTE_BY_LOGIT : ROUTE_BY_SIGMOID);
    quern_step_define(step, "ROUTE_EXPERTS", v->experts);
    quern_step_define(step, "ROUTE_TOPK", v->topk);
    quern_step_define(step, "ROUTE_GROUPS", v->groups);
    quern_step_define(step, "ROUTE_TOPK_GROUP", v->topk_group);
    quern_step_define(step, "ROUTE_DTYPE", v->logits_dtype);
    quern_step_define(step, "ROUTE_HAS_BIAS", v->bias);
    quern_step_define(step, "ROUTE_HAS_SOFTCAP", !isnan(v->softcap));
    quern_step_define(step, "ROUTE_RENORMALIZE", v->renormalize);
    quern_step_define(step, "ROUTE_ACCESS", problem->alignment[ARRAY_logits]);
    quern_step_define(step, "ROUTE_BIAS_ACCESS", v->bias ? problem->alignment[ARRAY_bias] : 16);
}

struct moe_route_scalars moe_cuda_scalars(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    const float softcap = isnan(v->softcap) ? 0 : (float)v->softcap;
    return (struct moe_route_scalars){
        .softcap = softcap,
        .softcap_inverse = softcap > 0 ? 1 / softcap : 0,
        .scaling = isnan(v->scaling) ? 1 : (float)v->scaling,
    };
}

int64_t moe_cuda_slots(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->tokens * (v->topk + v->shared);
}
