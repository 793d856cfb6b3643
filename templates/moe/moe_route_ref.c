/* The obvious reference of topk_softmax, topk_sigmoid and moe_fused_gate. A unit is a token. What
 * chooses is f32, defined to the bit by moe_score.h; weights are float64. */
#include <math.h>

#include "moe_route.h"
#include "moe_score.h"

struct row {
    double z[MOE_ROUTE_EXPERTS_MOST], bias[MOE_ROUTE_EXPERTS_MOST]; /* z: capped; by logit + bias */
    float keys[MOE_ROUTE_EXPERTS_MOST];
    double most, sum; /* of z and of e^(z - most) */
};

static double clean(double x)
{
    return x > -SCORE_MOST ? fmin(x, SCORE_MOST) : -SCORE_MOST; /* NaN: the least */
}

/* 1 / sum of e^(key - most) over the row, and e^(key - most) of one, as the kernels have them. */
static float exponential(float key, float most)
{
    return score_exp(score_add(key, -most));
}

static float softmax_inverse(const float *keys, int64_t experts, float most)
{
    uint32_t high = 0, low = 0;
    for (int64_t e = 0; e < experts; e++) {
        double units = ldexp(exponential(keys[e], most), 40);
        high += (uint32_t)(units / 1048576);
        low += (uint32_t)fmod(units, 1048576);
    }
    return score_softmax_inverse(high, low);
}

static void read_row(struct quern_ref *ref, const struct moe_route *r, int64_t token,
                     struct row *row)
{
    const struct moe_route_scalars scalars = moe_route_scalars_of(r);
    float most = -SCORE_MOST, inverse = 1;
    quern_ref_read(ref, MOE_ROUTE_LOGITS, token * r->experts, r->experts, row->z);
    for (int64_t e = 0; e < r->experts; e++) {
        double x = clean(row->z[e]), cap = scalars.softcap;
        row->z[e] = cap > 0 ? cap * tanh(x / cap) : x;
        row->keys[e] =
            cap > 0 ? score_cap((float)x, scalars.softcap, scalars.softcap_inverse) : (float)x;
        most = fmaxf(most, row->keys[e]);
    }
    if (r->scoring == ROUTE_BY_SOFTMAX)
        inverse = softmax_inverse(row->keys, r->experts, most);
    for (int64_t e = 0; e < r->experts; e++) {
        if (r->scoring == ROUTE_BY_SIGMOID)
            row->keys[e] = score_sigmoid(row->keys[e]);
        if (r->scoring == ROUTE_BY_SOFTMAX)
            row->keys[e] = score_mul(exponential(row->keys[e], most), inverse);
    }
}

static void add_bias(struct quern_ref *ref, const struct moe_route *r, struct row *row)
{
    quern_ref_read(ref, MOE_ROUTE_BIAS, 0, r->experts, row->bias);
    for (int64_t e = 0; e < r->experts; e++) {
        row->keys[e] = score_clean(score_add(row->keys[e], (float)row->bias[e]));
        if (r->scoring == ROUTE_BY_LOGIT)
            row->z[e] = clean(row->z[e] + row->bias[e]);
    }
}

/* The index of the largest value, the first of equals. It is taken out. */
static int64_t take(float *values, int64_t count)
{
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        best = values[i] > values[best] ? i : best;
    values[best] = -INFINITY;
    return best;
}

static void keep_groups(const struct moe_route *r, float *keys)
{
    const int64_t size = r->experts / r->groups;
    float scores[MOE_ROUTE_GROUPS_MOST], left[MOE_ROUTE_EXPERTS_MOST];
    for (int64_t e = 0; e < r->experts; e++)
        left[e] = keys[e];
    for (int64_t g = 0; g < r->groups; g++) {
        scores[g] = keys[g * size + take(left + g * size, size)];
        if (size > 1)
            scores[g] =
                score_clean(score_add(scores[g], keys[g * size + take(left + g * size, size)]));
    }
    for (int64_t i = 0; i < r->topk_group; i++)
        take(scores, r->groups);
    for (int64_t e = 0; e < r->experts; e++)
        keys[e] = scores[e / size] == -INFINITY ? keys[e] : -INFINITY;
}

/* The weight of an expert, but for renormalisation and scaling. */
static double weight_of(const struct moe_route *r, const struct row *row, int64_t e)
{
    if (r->scoring == ROUTE_BY_SIGMOID)
        return 1 / (1 + exp(-fmax(row->z[e], -SCORE_RANGE)));
    return exp(row->z[e] - row->most) / row->sum;
}

void moe_route_reference(struct quern_ref *ref, int64_t unit)
{
    const struct moe_route r = moe_route_of(quern_ref_spec(ref));
    const int64_t columns = r.topk + r.shared;
    double ids[MOE_ROUTE_TOPK_MOST], weights[MOE_ROUTE_TOPK_MOST], sum = 0;
    struct row row = { .most = -INFINITY };

    read_row(ref, &r, unit, &row);
    if (r.has_bias)
        add_bias(ref, &r, &row);
    for (int64_t e = 0; e < r.experts; e++)
        row.most = fmax(row.most, row.z[e]);
    for (int64_t e = 0; e < r.experts; e++)
        row.sum += exp(row.z[e] - row.most);
    keep_groups(&r, row.keys);
    for (int64_t i = 0; i < r.topk; i++) {
        ids[i] = (double)take(row.keys, r.experts);
        weights[i] = weight_of(&r, &row, (int64_t)ids[i]);
        sum += weights[i];
    }
    for (int64_t i = 0; i < columns; i++) {
        weights[i] = i < r.topk ? weights[i] / (r.renormalize ? sum : 1) * (float)r.scaling
                                : r.shared_weight;
        ids[i] = i < r.topk ? ids[i] : (double)(r.experts + i - r.topk);
    }
    quern_ref_expect(ref, MOE_ROUTE_WEIGHTS, unit * columns, columns, weights);
    quern_ref_expect(ref, MOE_ROUTE_IDS, unit * columns, columns, ids);
}
