/* moe: a mixture-of-experts layer in one call. The family, and what its variants share.
 *
 *     slot      token (topk + shared) + j: the j-th expert of a token, the shared ones last
 *     h         [slots][inter], in dtype: act(gate) up
 *
 * A unit of the reference is a token. h is rounded to dtype by definition, as it is in all that
 * compute the layer in separate calls; out is rounded once, so the bound of GEMM holds. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <math.h>

#include "moe.h"

/* ---- What the variants share ----------------------------------------------------------------- */

void moe_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "EXPERTS", v->experts);
    quern_step_define(step, "TOPK", v->topk);
    quern_step_define(step, "SHARED", v->shared);
    quern_step_define(step, "LOCAL", v->local);
    quern_step_define(step, "HIDDEN", v->hidden);
    quern_step_define(step, "INTER", v->inter);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "W_DTYPE", v->w_dtype);
    quern_step_define(step, "LOGITS_DTYPE", v->logits_dtype);
    quern_step_define(step, "SIGMOID", v->scoring);
    quern_step_define(step, "RENORMALIZE", v->renormalize);
    quern_step_define(step, "GROUPS", v->groups);
    quern_step_define(step, "TOPK_GROUP", v->topk_group);
    quern_step_define(step, "HAS_BIAS", v->bias);
    quern_step_define(step, "HAS_SOFTCAP", !isnan(v->softcap));
    quern_step_define(step, "HAS_LIMIT", !isnan(v->limit));
    quern_step_define(step, "MAPPED", v->mapped);
    quern_step_define(step, "ACTIVATION", v->activation);
}

struct moe_args moe_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    const struct quern_array *out = &arrays[v->inplace ? ARRAY_x : ARRAY_out];
    struct moe_args args = {
        .x = arrays[ARRAY_x].data,
        .logits = arrays[ARRAY_logits].data,
        .w13 = arrays[ARRAY_w13].data,
        .w2 = arrays[ARRAY_w2].data,
        .bias = arrays[ARRAY_bias].data,
        .expert_map = arrays[ARRAY_expert_map].data,
        .w13_scale = arrays[ARRAY_w13_scale].data,
        .w2_scale = arrays[ARRAY_w2_scale].data,
        .out = out->data,
        .x_row = arrays[ARRAY_x].strides[0],
        .logits_row = arrays[ARRAY_logits].strides[0],
        .out_row = out->strides[0],
        .w13_expert = arrays[ARRAY_w13].strides[0],
        .w13_row = arrays[ARRAY_w13].strides[1],
        .w2_expert = arrays[ARRAY_w2].strides[0],
        .w2_row = arrays[ARRAY_w2].strides[1],
        .tokens = v->tokens,
        .softcap = isnan(v->softcap) ? 0 : (float)v->softcap,
        .scaling = isnan(v->scaling) ? 1 : (float)v->scaling,
        .limit = !isnan(v->limit)                  ? (float)v->limit
                 : v->activation == MOE_SWIGLU_OAI ? 7
                                                   : INFINITY,
    };
    if (v->w_dtype == QUERN_I8) {
        args.w13_scale_expert = arrays[ARRAY_w13_scale].strides[0];
        args.w2_scale_expert = arrays[ARRAY_w2_scale].strides[0];
    }
    return args;
}

/* ---- Rules ----------------------------------------------------------------------------------- */

static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "tokens", v->tokens, 1 << 24 }, { "experts", v->experts, 1024 },
                  { "topk", v->topk, 32 },          { "hidden", v->hidden, 1 << 20 },
                  { "inter", v->inter, 1 << 20 },   { "shared", v->shared, 8 },
                  { "local", v->local, 1024 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    if (v->topk > v->experts)
        return quern_refuse(why, "topk=%lld: must be at most experts=%lld", (long long)v->topk,
                            (long long)v->experts);
    if (!v->mapped && v->local != v->experts)
        return quern_refuse(why, "local=%lld: must be experts=%lld unless mapped=1",
                            (long long)v->local, (long long)v->experts);
    if (v->w_dtype != v->dtype && v->w_dtype != QUERN_I8)
        return quern_refuse(why, "w_dtype=%s: must be %s, as dtype is, or i8",
                            quern_dtype_name((int)v->w_dtype), quern_dtype_name((int)v->dtype));
    return QUERN_OK;
}

static int check_groups(const struct values *v, struct quern_message *why)
{
    const long long groups = v->groups, topk_group = v->topk_group;
    if (v->groups > v->experts || v->experts % v->groups)
        return quern_refuse(why, "groups=%lld: must divide experts=%lld", groups,
                            (long long)v->experts);
    if (groups > 1 && v->scoring == 0)
        return quern_refuse(why, "groups=%lld: must be 1 with scoring=softmax", groups);
    if (v->topk_group > v->groups)
        return quern_refuse(why, "topk_group=%lld: must be at most groups=%lld", topk_group,
                            groups);
    if (v->topk_group * (v->experts / v->groups) < v->topk)
        return quern_refuse(why, "topk_group=%lld: must be groups of at least topk=%lld experts",
                            topk_group, (long long)v->topk);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why) || check_groups(v, why))
        return QUERN_INVALID;
    if (!isnan(v->softcap) && !(v->softcap >= 1e-30 && v->softcap <= 1e30))
        return quern_refuse(why, "softcap=%g: must be from 1e-30 to 1e30", v->softcap);
    if (v->limit <= 0)
        return quern_refuse(why, "limit=%g: must be above 0", v->limit);
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->w_dtype == QUERN_REQUIRED)
        v->w_dtype = v->dtype;
    if (v->local == QUERN_REQUIRED)
        v->local = v->experts;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int32_t *map = host[ARRAY_expert_map];
    for (int64_t e = 0; v->mapped && e < v->experts; e++) {
        if (map[e] < -1 || map[e] >= v->local)
            return quern_refuse(why,
                                "expert_map[%lld]=%d: must be -1, or from 0 to below local=%lld",
                                (long long)e, map[e], (long long)v->local);
    }
    return QUERN_OK;
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->tokens;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    const int64_t dtype = values_of(spec)->dtype;
    (void)index;
    return dtype == QUERN_F32 ? 1e-5 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

/* Of the weights those of the experts that random tokens are expected to take. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double tokens = (double)v->tokens, hidden = (double)v->hidden;
    const double product = 3 * (double)v->inter * hidden, here = (double)v->local;
    const double hit = here * (1 - pow(1 - (double)v->topk / (double)v->experts, tokens));
    const double slots = tokens * ((double)v->topk * here / (double)v->experts + (double)v->shared);
    const double taken = hit + (double)(v->tokens ? v->shared : 0);
    cost->flops = 2 * slots * product;
    cost->bytes = taken * product * (double)quern_dtype_bytes((int)v->w_dtype) +
                  2 * tokens * hidden * (double)quern_dtype_bytes((int)v->dtype) +
                  tokens * (double)v->experts * (double)quern_dtype_bytes((int)v->logits_dtype);
    if (v->w_dtype == QUERN_I8)
        cost->bytes += taken * 4 * (2 * (double)v->inter + hidden);
}

static const struct quern_variant *const variants[] = { &moe_stream,       &moe_grouped_sm90,
                                                        &moe_grouped_sm80, &moe_stream_more,
                                                        &moe_cpu,          NULL };

const struct quern_family quern_family_moe = {
    QUERN_FAMILY_TABLES(moe),
    .folder = "moe",
    .doc = "a mixture-of-experts layer: routing, two products for each expert, weighted sum",
    .variants = variants,
    .validate = validate,
    .check_indices = check_indices,
    .inputs = moe_inputs,
    .units = units,
    .reference = moe_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
