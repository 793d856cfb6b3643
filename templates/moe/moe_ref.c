/* The obvious reference of moe. A unit is a token. Experts are chosen by f32 scores that
 * moe_score.h defines to the bit; all else is float64, but for h, which is rounded to dtype. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <math.h>

#include "moe.h"
#include "moe_score.h"

struct routed {
    double z[1024], weights[32];
    float keys[1024];
    int experts[32];
};

/* The index of the largest key, the first of equals. It is taken out. */
static int take(float *keys, int64_t count)
{
    int best = 0;
    for (int i = 1; i < count; i++)
        if (keys[i] > keys[best])
            best = i;
    keys[best] = -INFINITY;
    return best;
}

/* Keys of experts in groups that are not among the best become -infinity. */
static void keep_groups(const struct values *v, float *keys)
{
    const int64_t size = v->experts / v->groups;
    float scores[1024], left[1024];
    for (int64_t g = 0; g < v->groups; g++) {
        for (int64_t i = 0; i < size; i++)
            left[i] = keys[g * size + i];
        scores[g] = keys[g * size + take(left, size)];
        if (size > 1)
            scores[g] = score_clean(score_add(scores[g], keys[g * size + take(left, size)]));
    }
    for (int64_t g = 0; g < v->topk_group; g++)
        take(scores, v->groups);
    for (int64_t e = 0; e < v->experts; e++)
        if (scores[e / size] != -INFINITY)
            keys[e] = -INFINITY;
}

/* As score_clean(). */
static double clean(double z)
{
    return z >= -SCORE_MOST ? fmin(z, SCORE_MOST) : -SCORE_MOST;
}

/* Scores that choose, and the values z of which weights are made. */
static void score(struct quern_ref *ref, const struct values *v, int64_t token, struct routed *r)
{
    const float cap = (float)v->softcap;
    double bias[1024] = { 0 };
    quern_ref_read(ref, ARRAY_logits, token * v->experts, v->experts, r->z);
    if (v->bias)
        quern_ref_read(ref, ARRAY_bias, 0, v->experts, bias);
    for (int64_t e = 0; e < v->experts; e++) {
        float key = score_clean((float)r->z[e]);
        r->z[e] = isnan(v->softcap) ? key : cap * tanh(key / cap);
        if (!isnan(v->softcap))
            key = score_cap(key, cap, 1 / cap);
        if (v->scoring == 0)
            r->z[e] = clean(r->z[e] + bias[e]);
        else
            key = score_sigmoid(key);
        r->keys[e] = v->bias ? score_clean(score_add(key, (float)bias[e])) : key;
    }
}

static void route(struct quern_ref *ref, const struct values *v, int64_t token, struct routed *r)
{
    double most = -INFINITY, sum = 0, chosen = 0;
    score(ref, v, token, r);
    keep_groups(v, r->keys);
    for (int64_t e = 0; e < v->experts; e++)
        most = fmax(most, r->z[e]);
    for (int64_t e = 0; e < v->experts; e++)
        sum += exp(r->z[e] - most);
    for (int64_t j = 0; j < v->topk; j++) {
        const int e = r->experts[j] = take(r->keys, v->experts);
        r->weights[j] = v->scoring == 0 ? exp(r->z[e] - most) / sum
                                        : 1 / (1 + exp(-fmax(r->z[e], -SCORE_RANGE)));
        chosen += r->weights[j];
    }
    for (int64_t j = 0; j < v->topk; j++)
        r->weights[j] *=
            (isnan(v->scaling) ? 1 : (float)v->scaling) / (v->renormalize ? chosen : 1);
}

/* Row `row` of an array of weights times `vector`. */
static double product(struct quern_ref *ref, int array, int64_t row, const double *vector,
                      double *weights, int64_t width)
{
    const int scales = array == ARRAY_w13 ? ARRAY_w13_scale : ARRAY_w2_scale;
    double sum = 0, scale = 1;
    quern_ref_read(ref, array, row * width, width, weights);
    if (values_of(quern_ref_spec(ref))->w_dtype == QUERN_I8)
        quern_ref_read(ref, scales, row, 1, &scale);
    for (int64_t i = 0; i < width; i++)
        sum += weights[i] * vector[i];
    return sum * scale;
}

/* To 8 or 11 bits, ties to even; f16 has no more than 24 below the point. */
static double rounded(int64_t dtype, double value)
{
    if (dtype == QUERN_F32 || value == 0 || !isfinite(value))
        return value;
    int exponent = ilogb(value) - (dtype == QUERN_F16 ? 10 : 7);
    if (dtype == QUERN_F16 && exponent < -24)
        exponent = -24;
    double nearest = ldexp(nearbyint(ldexp(value, -exponent)), exponent);
    return dtype == QUERN_F16 && fabs(nearest) > 65504 ? copysign(INFINITY, value) : nearest;
}

static double activate(const struct values *v, double gate, double up)
{
    const int is_oai = v->activation == MOE_SWIGLU_OAI;
    const double limit = !isnan(v->limit) ? (float)v->limit : is_oai ? 7 : INFINITY;
    gate = gate > limit ? limit : gate; /* NaN stays */
    up = up > limit ? limit : up < -limit ? -limit : up;
    if (v->activation == MOE_GELU)
        return gate / 2 * (1 + erf(gate / sqrt(2))) * up;
    if (v->activation == MOE_GELU_TANH)
        return gate / 2 * (1 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))) *
               up;
    return gate / (1 + exp((is_oai ? -1.702 : -1) * gate)) * (up + is_oai);
}

void moe_reference(struct quern_ref *ref, int64_t token)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    struct routed *r = (void *)quern_ref_scratch(ref, sizeof(*r) / sizeof(double) + 1);
    double *x = quern_ref_scratch(ref, v->hidden), *out = quern_ref_scratch(ref, v->hidden);
    double *h = quern_ref_scratch(ref, v->inter), norm = 0;
    double *row = quern_ref_scratch(ref, v->hidden + v->inter);

    quern_ref_read(ref, ARRAY_x, token * v->hidden, v->hidden, x);
    route(ref, v, token, r);
    for (int64_t j = 0; j < v->topk + v->shared; j++) {
        double e = j < v->topk ? r->experts[j] : (double)(v->local + j - v->topk);
        if (j < v->topk && v->mapped)
            quern_ref_read(ref, ARRAY_expert_map, r->experts[j], 1, &e);
        if (e < 0 || e >= (double)(v->local + (j < v->topk ? 0 : v->shared)))
            continue;
        for (int64_t i = 0; i < v->inter; i++) {
            int64_t first = (int64_t)e * 2 * v->inter + i;
            double gate = product(ref, ARRAY_w13, first, x, row, v->hidden);
            double up = product(ref, ARRAY_w13, first + v->inter, x, row, v->hidden);
            h[i] = rounded(v->dtype, activate(v, gate, up));
        }
        for (int64_t i = 0; i < v->hidden; i++) {
            double term = (j < v->topk ? r->weights[j] : 1) *
                          product(ref, ARRAY_w2, (int64_t)e * v->hidden + i, h, row, v->inter);
            out[i] += term;
            norm += term * term;
        }
    }
    quern_ref_expect_sums(ref, v->inplace ? ARRAY_x : ARRAY_out, token * v->hidden, v->hidden, out,
                          sqrt(norm));
}
