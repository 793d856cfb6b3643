/* A CPU chooses the experts of one token, as moe_route.cuh does on a GPU: keys are the same bits.
 *
 *     1. logits as f32, capped, and with bias      4. groups: keys of those not kept are taken out
 *     2. softmax: maximum and sum of the row       5. rounds: the largest key, the first of equals
 *     3. keys                                      6. weights
 *
 * A key that was taken, and the places behind the last expert, hold -infinity, which no key is. */
#ifndef MOE_ROUTE_TOKEN_H
#define MOE_ROUTE_TOKEN_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "moe/moe_route_rules.h"
#include "moe/moe_score.h"

#define ROUTE_VECTORS ((ROUTE_EXPERTS + VW - 1) / VW)
#define ROUTE_GROUP (ROUTE_EXPERTS / ROUTE_GROUPS)
#define ROUTE_TAKEN (-__builtin_inff())

/* Of the row; the lanes of the last vectors are in bounds of every vector that starts at one of
 * ROUTE_EXPERTS. */
union route_row {
    vec_f32 vectors[ROUTE_VECTORS + 1];
    float one[(ROUTE_VECTORS + 1) * VW];
};

struct route_work {
    union route_row values; /* capped logits with bias (by logit), else scores without */
    union route_row keys;
    float most; /* of the capped logits, with bias by logit */
};

INLINE vec_i32 route_numbers(void)
{
    static const int32_t numbers[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    return (vec_i32)load_u32(numbers);
}

/* Lanes 0 to count - 1. */
INLINE vec_i32 route_lanes(int64_t count)
{
    return route_numbers() < (vec_i32)splat_u32((uint32_t)count);
}

INLINE vec_f32 route_load(int dtype, const void *row, int64_t first)
{
    const int64_t left = ROUTE_EXPERTS - first;
    const void *p = element(dtype, row, first);
    return left >= VW ? load_as_f32(dtype, p) : load_part_as_f32(dtype, p, left);
}

INLINE float route_largest(vec_f32 v)
{
    float lane[VW];
    store_u32(lane, (vec_u32)v);
    UNROLL
    for (int width = VW / 2; width > 0; width /= 2) {
        UNROLL
        for (int i = 0; i < width; i++)
            lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    }
    return lane[0];
}

INLINE int32_t route_least(vec_i32 v)
{
    int32_t lane[VW];
    store_u32(lane, (vec_u32)v);
    UNROLL
    for (int width = VW / 2; width > 0; width /= 2) {
        UNROLL
        for (int i = 0; i < width; i++)
            lane[i] = lane[i] < lane[i + width] ? lane[i] : lane[i + width];
    }
    return lane[0];
}

INLINE vec_f32 route_maximum(vec_f32 a, vec_f32 b)
{
    return select_f32(a > b, a, b);
}

/* Number i of the row's vectors where it holds experts, else 0. */
INLINE vec_f32 route_held(vec_f32 v, int64_t i)
{
    return (vec_f32)((vec_i32)v & route_lanes(ROUTE_EXPERTS - i * VW));
}

/* ---- 1, 2, 3: keys ------------------------------------------------------------------------- */

static void route_logits(const void *logits, const float *bias,
                         const struct moe_route_scalars *scalars, struct route_work *work)
{
    vec_f32 most = splat_f32(-SCORE_MOST);
    for (int64_t i = 0; i < ROUTE_VECTORS; i++) {
        vec_f32 z = score_clean(route_load(ROUTE_DTYPE, logits, i * VW));
        if (ROUTE_HAS_SOFTCAP)
            z = score_cap(z, scalars->softcap, scalars->softcap_inverse);
        if (ROUTE_HAS_BIAS && ROUTE_SCORING == ROUTE_BY_LOGIT)
            z = score_clean(z + route_load(DT_F32, bias, i * VW));
        z = select_f32(route_lanes(ROUTE_EXPERTS - i * VW), z, splat_f32(-SCORE_MOST));
        work->values.vectors[i] = z;
        most = route_maximum(z, most);
    }
    work->most = route_largest(most);
}

/* 1 / sum of score_exp(); the sum in units of 2^-40. */
static vec_f32 route_softmax_inverse(const struct route_work *work)
{
    vec_u32 high = { 0 }, low = { 0 };
    uint32_t sum_high = 0, sum_low = 0;
    for (int64_t i = 0; i < ROUTE_VECTORS; i++) {
        vec_f32 scaled =
            score_mul(score_exp(work->values.vectors[i] - work->most), splat_f32(0x1p20f));
        scaled = route_held(scaled, i);
        vec_i32 whole = __builtin_convertvector(scaled, vec_i32);
        vec_f32 rest = scaled - __builtin_convertvector(whole, vec_f32);
        rest = score_mul(rest, splat_f32(0x1p20f));
        high += (vec_u32)whole;
        low += (vec_u32) __builtin_convertvector(rest, vec_i32);
    }
    for (int i = 0; i < VW; i++)
        sum_high += high[i], sum_low += low[i];
    return score_softmax_inverse(sum_high, sum_low);
}

static void route_keys(const float *bias, struct route_work *work)
{
    vec_f32 inverse = { 0 };
    if (ROUTE_SCORING == ROUTE_BY_SOFTMAX)
        inverse = route_softmax_inverse(work);
    for (int64_t i = 0; i < ROUTE_VECTORS; i++) {
        vec_f32 score = work->values.vectors[i];
        if (ROUTE_SCORING == ROUTE_BY_SIGMOID)
            score = score_sigmoid(score);
        if (ROUTE_SCORING == ROUTE_BY_SOFTMAX)
            score = score_mul(score_exp(score - work->most), inverse);
        vec_f32 key = score;
        if (ROUTE_HAS_BIAS && ROUTE_SCORING != ROUTE_BY_LOGIT)
            key = score_clean(score + route_load(DT_F32, bias, i * VW));
        work->values.vectors[i] = score;
        work->keys.vectors[i] =
            select_f32(route_lanes(ROUTE_EXPERTS - i * VW), key, splat_f32(ROUTE_TAKEN));
    }
    work->keys.vectors[ROUTE_VECTORS] = splat_f32(ROUTE_TAKEN);
}

/* ---- 4: groups ----------------------------------------------------------------------------- */

/* The sum of a group's two largest keys, or its only one. */
static float route_group_score(const float *keys)
{
    vec_f32 first = splat_f32(ROUTE_TAKEN), second = first;
    for (int64_t i = 0; i < ROUTE_GROUP; i += VW) {
        vec_f32 key = (vec_f32)load_u32(keys + i);
        key = select_f32(route_lanes(ROUTE_GROUP - i), key, splat_f32(ROUTE_TAKEN));
        second = route_maximum(second, select_f32(first < key, first, key));
        first = route_maximum(first, key);
    }
    float one[VW], two[VW];
    store_u32(one, (vec_u32)first);
    store_u32(two, (vec_u32)second);
    UNROLL
    for (int width = VW / 2; width > 0; width /= 2) {
        UNROLL
        for (int i = 0; i < width; i++) {
            float less = one[i] < one[i + width] ? one[i] : one[i + width];
            two[i] = two[i] > two[i + width] ? two[i] : two[i + width];
            two[i] = two[i] > less ? two[i] : less;
            one[i] = one[i] > one[i + width] ? one[i] : one[i + width];
        }
    }
    return ROUTE_GROUP == 1 ? one[0] : score_clean(splat_f32(one[0] + two[0]))[0];
}

static void route_drop_groups(struct route_work *work)
{
    float scores[ROUTE_GROUPS];
    uint8_t is_kept[ROUTE_GROUPS] = { 0 };
    for (int64_t g = 0; g < ROUTE_GROUPS; g++)
        scores[g] = route_group_score(work->keys.one + g * ROUTE_GROUP);
    for (int round = 0; round < ROUTE_TOPK_GROUP; round++) {
        int64_t best = 0;
        for (int64_t g = 1; g < ROUTE_GROUPS; g++)
            best = scores[g] > scores[best] ? g : best;
        is_kept[best] = 1;
        scores[best] = ROUTE_TAKEN;
    }
    for (int64_t g = 0; g < ROUTE_GROUPS; g++) {
        for (int64_t i = 0; i < ROUTE_GROUP && !is_kept[g]; i++)
            work->keys.one[g * ROUTE_GROUP + i] = ROUTE_TAKEN;
    }
}

/* ---- 5, 6: rounds and weights -------------------------------------------------------------- */

/* The expert of the largest key, the first of equals, which is taken out. */
static int32_t route_take(struct route_work *work)
{
    vec_f32 best = work->keys.vectors[0];
    vec_i32 at = route_numbers(), next = at; /* experts, of best and of the vector */
    for (int64_t i = 1; i < ROUTE_VECTORS; i++) {
        vec_i32 is_larger = work->keys.vectors[i] > best;
        next += VW;
        best = select_f32(is_larger, work->keys.vectors[i], best);
        at = (vec_i32)select_u32(is_larger, (vec_u32)next, (vec_u32)at);
    }
    vec_i32 is_largest = best == splat_f32(route_largest(best));
    int32_t id = route_least((vec_i32)select_u32(is_largest, (vec_u32)at, splat_u32(0x7fffffff)));
    work->keys.one[id] = ROUTE_TAKEN;
    return id;
}

/* Softmax of the values at the chosen experts, times the sum that the caller divides by. */
static float route_exponentials(const struct route_work *work, float *weights)
{
    enum { VECTORS = (ROUTE_TOPK + VW - 1) / VW };
    float chosen[VECTORS * VW] = { 0 };
    float sum = 0;
    __builtin_memcpy(chosen, weights, ROUTE_TOPK * 4);
    for (int64_t i = 0; i < VECTORS; i++)
        store_u32(chosen + i * VW,
                  (vec_u32)exp_f32((vec_f32)load_u32(chosen + i * VW) - work->most));
    __builtin_memcpy(weights, chosen, ROUTE_TOPK * 4);
    for (int64_t i = 0; i < ROUTE_VECTORS && !ROUTE_RENORMALIZE; i++)
        sum += sum_lanes(route_held(exp_f32(work->values.vectors[i] - work->most), i));
    return sum;
}

/* logits is the token's row; bias is not read without ROUTE_HAS_BIAS. */
static void route_token(const void *logits, const float *bias,
                        const struct moe_route_scalars *scalars, int32_t *ids, float *weights)
{
    struct route_work work;
    float sum = 1;
    route_logits(logits, bias, scalars, &work);
    route_keys(bias, &work);
    if (ROUTE_TOPK_GROUP < ROUTE_GROUPS)
        route_drop_groups(&work);
    for (int i = 0; i < ROUTE_TOPK; i++) {
        ids[i] = route_take(&work);
        weights[i] = work.values.one[ids[i]];
    }
    if (ROUTE_SCORING == ROUTE_BY_LOGIT)
        sum = route_exponentials(&work, weights);
    if (ROUTE_RENORMALIZE) {
        sum = 0;
        for (int i = 0; i < ROUTE_TOPK; i++)
            sum += weights[i];
    }
    for (int i = 0; i < ROUTE_TOPK; i++)
        weights[i] = weights[i] / sum * scalars->scaling;
}
#endif
