/* silu_and_mul: the two halves of a gated layer's first product joined, and what comes of it
 * rounded or quantized. The family, and what its variants share:
 *
 *     x row   | gate | up |  --act(gate) up-->  | v |   f32
 *     none    v rounded to dtype
 *     else    factor = max |v| / most, at least 2^-126, NaN left out; codes of v times 1 / factor,
 *             to nearest even; beyond the largest code: that code. A NaN is e4m3's NaN, or 0. */
#define QUERN_DEF "activation/silu_and_mul.def"
#include <quern/family_def.h>

#include <math.h>

#include "silu_and_mul.h"

/* ---- What the variants share ----------------------------------------------------------------- */

float silu_and_mul_limit(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    if (!isnan(v->limit))
        return (float)v->limit;
    return v->activation == BY_SWIGLU_OAI ? 7.0f : INFINITY;
}

float silu_and_mul_alpha(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return isnan(v->alpha) ? 1.702f : (float)v->alpha;
}

void silu_and_mul_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "ACTIVATION", v->activation);
    quern_step_define(step, "QUANTIZE", v->quantize);
    quern_step_define(step, "GROUP", v->group);
}

struct silu_and_mul_args silu_and_mul_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct silu_and_mul_args args = {
        .x = arrays[ARRAY_x].data,
        .out = arrays[ARRAY_out].data,
        .scales = arrays[ARRAY_scales].data,
        .x_row = arrays[ARRAY_x].strides[0],
        .out_row = arrays[ARRAY_out].strides[0],
        .tokens = v->tokens,
        .width = v->width,
        .limit = silu_and_mul_limit(binding->spec),
        .alpha = silu_and_mul_alpha(binding->spec),
    };
    if (v->quantize)
        args.scales_row = arrays[ARRAY_scales].strides[0];
    return args;
}

/* ---- Rules ----------------------------------------------------------------------------------- */

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->tokens > 1 << 30)
        return quern_refuse(why, "tokens=%lld: must be at most 2^30", (long long)v->tokens);
    if (v->width > 1 << 24)
        return quern_refuse(why, "width=%lld: must be at most 2^24", (long long)v->width);
    if (v->group && (!v->quantize || v->group != SILU_MUL_GROUP))
        return quern_refuse(why, "group=%lld: must be 0, or 128 with quantize=e4m3 or i8",
                            (long long)v->group);
    if (v->group && v->width % v->group)
        return quern_refuse(why, "width=%lld: must be a multiple of group=128",
                            (long long)v->width);
    if (v->limit <= 0)
        return quern_refuse(why, "limit=%g: must be above 0", v->limit);
    if (!isnan(v->alpha) && v->activation != BY_SWIGLU_OAI)
        return quern_refuse(why, "alpha=%g: must not be given unless activation=swiglu_oai",
                            v->alpha);
    return QUERN_OK;
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->tokens;
}

/* A code that lies between two may become either: one step of the largest is 1/14 of its row at
 * most, or 1/127 of it, and a row may err by four times the bound. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_out && v->quantize)
        return v->quantize == TO_E4M3 ? 2e-2 : 2e-3;
    if (index == ARRAY_scales || v->dtype == QUERN_F32)
        return 1e-6;
    return v->dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double cells = (double)v->tokens * (double)v->width;
    const double size = (double)quern_dtype_bytes((int)v->dtype);
    cost->bytes = cells * (2 * size + (v->quantize ? 1 : size));
    if (v->quantize)
        cost->bytes += 4 * (v->group ? cells / (double)v->group : (double)v->tokens);
    cost->flops = 4 * cells;
}

static const struct quern_variant *const variants[] = { &silu_and_mul_cuda, &silu_and_mul_cpu,
                                                        NULL };

const struct quern_family quern_family_silu_and_mul = {
    QUERN_FAMILY_TABLES(silu_and_mul),
    .folder = "activation",
    .doc = "act(gate) up of the halves of each row, rounded or quantized",
    .variants = variants,
    .validate = validate,
    .inputs = silu_and_mul_inputs,
    .units = units,
    .reference = silu_and_mul_reference,
    .tolerance = tolerance,
    .cost = cost,
};
