/* The obvious reference of silu_and_mul, in float64. A unit is a row. */
#define QUERN_DEF "activation/silu_and_mul.def"
#include <quern/family_def.h>

#include <math.h>

#include "silu_and_mul.h"

static double act(const struct quern_spec *spec, double gate)
{
    switch (values_of(spec)->activation) {
    case BY_SILU:
        return gate / (1 + exp(-gate));
    case BY_GELU:
        return gate * erfc(-gate / sqrt(2)) / 2;
    case BY_GELU_TANH:
        return gate / (1 + exp(-2 * sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate)));
    default:
        return gate / (1 + exp(-gate * silu_and_mul_alpha(spec)));
    }
}

static double product(const struct quern_spec *spec, double gate, double up)
{
    const double limit = silu_and_mul_limit(spec);
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return act(spec, gate) * (values_of(spec)->activation == BY_SWIGLU_OAI ? up + 1 : up);
}

/* The nearest e4m3 of |value| <= 448: 3 bits below the leading one, the least exponent -6. */
static double round_e4m3(double value)
{
    const int exponent = value == 0 || ilogb(value) < -6 ? -6 : ilogb(value);
    return ldexp(nearbyint(ldexp(value, 3 - exponent)), exponent - 3);
}

static double round_i8(double value)
{
    return isnan(value) ? 0 : nearbyint(value);
}

/* In place to codes; returns their factor. */
static double quantize(int64_t to, double *values, int64_t count)
{
    const double most = to == TO_E4M3 ? (double)SILU_MUL_E4M3_MOST : (double)SILU_MUL_I8_MOST;
    double scale = (double)SILU_MUL_LEAST;
    for (int64_t i = 0; i < count; i++)
        scale = fmax(scale, fabs(values[i]) / most);
    for (int64_t i = 0; i < count; i++)
        values[i] = to == TO_E4M3 ? round_e4m3(values[i] / scale) : round_i8(values[i] / scale);
    return scale;
}

void silu_and_mul_reference(struct quern_ref *ref, int64_t unit)
{
    const struct quern_spec *spec = quern_ref_spec(ref);
    const struct values *v = values_of(spec);
    const int64_t group = v->group ? v->group : v->width, groups = v->width / group;
    double *x = quern_ref_scratch(ref, 2 * v->width), *scales = quern_ref_scratch(ref, groups);
    quern_ref_read(ref, ARRAY_x, unit * 2 * v->width, 2 * v->width, x);
    for (int64_t i = 0; i < v->width; i++)
        x[i] = product(spec, x[i], x[v->width + i]);
    for (int64_t g = 0; v->quantize && g < groups; g++)
        scales[g] = quantize(v->quantize, x + g * group, group);
    quern_ref_expect(ref, ARRAY_out, unit * v->width, v->width, x);
    if (v->quantize)
        quern_ref_expect(ref, ARRAY_scales, unit * groups, groups, scales);
}
