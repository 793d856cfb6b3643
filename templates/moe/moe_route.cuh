/* One warp chooses the experts of one token.
 *
 *     lane      0            1            ...         31
 *     holds     experts 0..  V..          ...                  V = ROUTE_VALUES, behind each other
 *               sorted by key, largest first; ties: the lower expert first
 *
 * A round takes the largest head of all lanes, the lowest such lane's on ties, which is the lowest
 * expert, since lanes hold experts in order; that lane moves its list up. Keys are compared as
 * unsigned images (moe_score.h), so that redux.sync finds their maximum; 0 is no key. With groups a
 * group has ROUTE_LANES lanes to itself, and the lanes of groups that are not kept have no head.
 *
 *     1. logits as f32, capped, and with bias       4. each lane sorts its values
 *     2. softmax: maximum and sum of the row        5. groups: the best ones are kept
 *     3. keys                                       6. rounds; then weights, one lane each
 *
 * Needs redux.sync: sm_80 and up. */
#ifndef MOE_ROUTE_CUH
#define MOE_ROUTE_CUH
#include "common/cuda/load.cuh"
#include "moe/moe_route_rules.h"
#include "moe/moe_score.h"

#ifndef ROUTE_ACCESS
#define ROUTE_ACCESS 16 /* bytes to which rows of logits are aligned */
#endif
#ifndef ROUTE_BIAS_ACCESS
#define ROUTE_BIAS_ACCESS 16 /* the same of bias */
#endif

static __device__ constexpr int route_power_above(int n)
{
    return n <= 1 ? 1 : 2 * route_power_above((n + 1) / 2);
}

enum {
    ROUTE_GROUP = ROUTE_EXPERTS / ROUTE_GROUPS, /* experts of a group */
    ROUTE_LANES = 32 / route_power_above(ROUTE_GROUPS),
    ROUTE_VALUES = (ROUTE_GROUP + ROUTE_LANES - 1) / ROUTE_LANES,
    ROUTE_SORTED = route_power_above(ROUTE_VALUES),
    ROUTE_IS_FULL = 32 * ROUTE_VALUES == ROUTE_EXPERTS /* no lane holds less */
};
static_assert(ROUTE_GROUPS <= 32 && ROUTE_TOPK <= 32, "a lane for each group and for each result");

/* Elements of an access: a power of two that divides a lane's values and a group. */
static __device__ constexpr int route_vector(int bytes, int size)
{
    return bytes <= size ? 1
           : ROUTE_VALUES % (bytes / size) == 0 && ROUTE_GROUP % (bytes / size) == 0
               ? bytes / size
               : route_vector(bytes / 2, size);
}

struct route_choice { /* of lane i < ROUTE_TOPK: expert number i of the token */
    int32_t id;
    float weight;
};

struct route_place {
    int group; /* of the lane */
    int rest;  /* its first expert, counted from the group's first */
    int first; /* its first expert */
};

static __device__ __forceinline__ struct route_place route_place_of(int lane)
{
    struct route_place place;
    place.group = lane / ROUTE_LANES;
    place.rest = lane % ROUTE_LANES * ROUTE_VALUES;
    place.first = place.group * ROUTE_GROUP + place.rest;
    return place;
}

static __device__ __forceinline__ bool route_holds(const struct route_place &place, int value)
{
    return ROUTE_IS_FULL || (place.group < ROUTE_GROUPS && place.rest + value < ROUTE_GROUP);
}

/* The lane's values of a row; those it does not hold are 0. */
template <int dtype, int access>
static __device__ __forceinline__ void route_load(const struct route_place &place, const void *row,
                                                  float (&values)[ROUTE_VALUES])
{
    constexpr int vector = route_vector(access, DT_SIZE(dtype)), bytes = vector * DT_SIZE(dtype);
#pragma unroll
    for (int i = 0; i < ROUTE_VALUES; i += vector) {
        uint32_t words[(bytes + 3) / 4] = {};
        if (route_holds(place, i))
            load_words(words, element(dtype, row, place.first + i), bytes);
#pragma unroll
        for (int j = 0; j < vector; j++)
            values[i + j] = word_as_f32(dtype, words, j);
    }
}

/* 2^((z - most) / ln 2), for weights: keys have score_exp(). Both are clean. */
static __device__ __forceinline__ float route_exp(float z, float most)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"((z - most) * 1.44269504f));
    return power;
}

/* The sum over the first `lanes` lanes, a power of two, in each of them. */
static __device__ __forceinline__ float route_sum(float value, int lanes)
{
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffff, value, step);
    return value;
}

static __device__ __forceinline__ float route_capped(float x, const struct moe_route_scalars &s)
{
    if (ROUTE_SCORING == ROUTE_BY_SIGMOID && !ROUTE_HAS_SOFTCAP)
        return x; /* which score_sigmoid() takes as it is */
    x = score_clean(x);
    return ROUTE_HAS_SOFTCAP ? score_cap(x, s.softcap, s.softcap_inverse) : x;
}

/* What softmax needs of the row: with ROUTE_BY_LOGIT the sum of route_exp(), else 1 over that of
 * score_exp(), which is summed in units of 2^-40, exactly, in any order. */
struct route_softmax {
    float most, sum, inverse;
};

static __device__ __forceinline__ struct route_softmax
route_softmax_of(const struct route_place &place, const float (&z)[ROUTE_VALUES])
{
    struct route_softmax row = { 0, 0, 0 };
    float most = -SCORE_MOST;
#pragma unroll
    for (int i = 0; i < ROUTE_VALUES; i++)
        most = route_holds(place, i) ? fmaxf(most, z[i]) : most;
    row.most = score_from_image(__reduce_max_sync(0xffffffff, score_image(most)));
    if (ROUTE_SCORING == ROUTE_BY_LOGIT) {
#pragma unroll
        for (int i = 0; i < ROUTE_VALUES; i++)
            row.sum += route_holds(place, i) ? route_exp(z[i], row.most) : 0.0f;
        row.sum = route_sum(row.sum, 32);
        return row;
    }
    uint32_t high = 0, low = 0;
#pragma unroll
    for (int i = 0; i < ROUTE_VALUES; i++) {
        float scaled = score_mul(score_exp(score_add(z[i], -row.most)), 0x1p20f);
        uint32_t whole = (uint32_t)scaled;
        uint32_t rest = (uint32_t)score_mul(score_add(scaled, -(float)whole), 0x1p20f);
        high += route_holds(place, i) ? whole : 0;
        low += route_holds(place, i) ? rest : 0;
    }
    row.inverse = score_softmax_inverse(__reduce_add_sync(0xffffffff, high),
                                        __reduce_add_sync(0xffffffff, low));
    return row;
}

/* The score of a logit, without bias. */
static __device__ __forceinline__ float route_score(float z, const struct route_softmax &row)
{
    if (ROUTE_SCORING == ROUTE_BY_SIGMOID)
        return score_sigmoid(z);
    if (ROUTE_SCORING == ROUTE_BY_SOFTMAX)
        return score_mul(score_exp(score_add(z, -row.most)), row.inverse);
    return z;
}

/* A lane's values in order: Batcher's network, on keys with what is left of them to the lower
 * expert. What nothing reads of its end costs nothing. */
struct route_list {
    uint32_t keys[ROUTE_SORTED];
    int32_t values[ROUTE_SORTED];
};

static __device__ __forceinline__ void route_exchange(struct route_list &list, int a, int b)
{
    uint32_t key_a = list.keys[a], key_b = list.keys[b];
    int32_t value_a = list.values[a], value_b = list.values[b];
    bool swap = key_a < key_b || (key_a == key_b && value_a > value_b);
    list.keys[a] = swap ? key_b : key_a;
    list.keys[b] = swap ? key_a : key_b;
    list.values[a] = swap ? value_b : value_a;
    list.values[b] = swap ? value_a : value_b;
}

/* One column of the network: runs of `run` are merged, at a distance of `step`; then the next. */
template <int run, int step>
static __device__ __forceinline__ void route_sort(struct route_list &list)
{
    if constexpr (run < ROUTE_SORTED) {
#pragma unroll
        for (int a = step % run; a < ROUTE_SORTED - step; a++) {
            const bool is_low = (a - step % run) / step % 2 == 0;
            if (is_low && a / (2 * run) == (a + step) / (2 * run))
                route_exchange(list, a, a + step);
        }
        if constexpr (step > 1)
            route_sort<run, step / 2>(list);
        else
            route_sort<2 * run, 2 * run>(list);
    }
}

/* Whether the lane's group is among the best: by the sum of its two largest keys. */
static __device__ __forceinline__ bool route_keeps(const struct route_place &place,
                                                   const struct route_list &list)
{
    uint32_t first = list.keys[0], second = ROUTE_SORTED > 1 ? list.keys[ROUTE_SORTED > 1] : 0;
    bool is_kept = false;
#pragma unroll
    for (int step = 1; step < ROUTE_LANES; step *= 2) {
        uint32_t other_first = __shfl_xor_sync(0xffffffff, first, step);
        uint32_t other_second = __shfl_xor_sync(0xffffffff, second, step);
        second = max(min(first, other_first), max(second, other_second));
        first = max(first, other_first);
    }
    float sum = score_from_image(first);
    if (ROUTE_GROUP > 1)
        sum = score_clean(score_add(sum, score_from_image(second)));
    uint32_t image = place.group < ROUTE_GROUPS ? score_image(sum) : 0;
#pragma unroll
    for (int i = 0; i < ROUTE_TOPK_GROUP; i++) {
        uint32_t best = __reduce_max_sync(0xffffffff, image);
        int lane = __ffs(__ballot_sync(0xffffffff, image == best)) - 1;
        if (lane / ROUTE_LANES == place.group) {
            is_kept = true;
            image = 0;
        }
    }
    return is_kept;
}

/* The rounds: lane i gets the expert of round i and its key. */
static __device__ __forceinline__ int32_t route_rounds(const struct route_place &place,
                                                       struct route_list &list, int lane,
                                                       uint32_t *key)
{
    const uint32_t below = (1u << lane) - 1; /* lanes */
    int32_t id = 0;
#pragma unroll
    for (int i = 0; i < ROUTE_TOPK; i++) {
        uint32_t best = __reduce_max_sync(0xffffffff, list.keys[0]);
        uint32_t equal = __ballot_sync(0xffffffff, list.keys[0] == best);
        bool is_winner = list.keys[0] == best && (equal & below) == 0;
        int32_t chosen = __shfl_sync(0xffffffff, place.first + list.values[0], __ffs(equal) - 1);
        if (lane == i) {
            id = chosen;
            *key = best;
        }
        if (is_winner) {
            const int left = ROUTE_TOPK - 1 - i; /* rounds */
#pragma unroll
            for (int j = 0; j < ROUTE_SORTED && j < left; j++) {
                list.keys[j] = j + 1 < ROUTE_SORTED ? list.keys[j + 1] : 0;
                list.values[j] = j + 1 < ROUTE_SORTED ? list.values[j + 1] : 0;
            }
        }
    }
    return id;
}

/* The weight of lane i's expert, before renormalisation and scaling. */
static __device__ __forceinline__ float route_weight(const void *logits,
                                                     const struct moe_route_scalars &scalars,
                                                     const struct route_softmax &row, int32_t id,
                                                     float key)
{
    if (ROUTE_SCORING == ROUTE_BY_LOGIT) {
        float most = ROUTE_RENORMALIZE ? __shfl_sync(0xffffffff, key, 0) : row.most;
        return route_exp(key, most);
    }
    if (!ROUTE_HAS_BIAS)
        return key;
    float x = load_as_f32(ROUTE_DTYPE, element(ROUTE_DTYPE, logits, id));
    return route_score(route_capped(x, scalars), row);
}

/* By all lanes of a warp. logits is the token's row; bias is not read without ROUTE_HAS_BIAS. Lanes
 * from ROUTE_TOPK on get id 0 and weight 0. */
static __device__ __forceinline__ struct route_choice
route_token(const void *logits, const float *bias, const struct moe_route_scalars &scalars)
{
    const int lane = threadIdx.x % 32;
    const struct route_place place = route_place_of(lane);
    float z[ROUTE_VALUES], added[ROUTE_VALUES];
    struct route_softmax row = { 0, 1, 0 };
    struct route_list list;

    route_load<ROUTE_DTYPE, ROUTE_ACCESS>(place, logits, z);
    if (ROUTE_HAS_BIAS)
        route_load<DT_F32, ROUTE_BIAS_ACCESS>(place, bias, added);
#pragma unroll
    for (int i = 0; i < ROUTE_VALUES; i++) {
        z[i] = route_capped(z[i], scalars);
        if (ROUTE_HAS_BIAS && ROUTE_SCORING == ROUTE_BY_LOGIT)
            z[i] = score_clean(score_add(z[i], added[i]));
    }
    if (ROUTE_SCORING == ROUTE_BY_SOFTMAX ||
        (ROUTE_SCORING == ROUTE_BY_LOGIT && !ROUTE_RENORMALIZE))
        row = route_softmax_of(place, z);

#pragma unroll
    for (int i = 0; i < ROUTE_SORTED; i++) {
        list.values[i] = i;
        list.keys[i] = 0;
        if (i < ROUTE_VALUES) {
            float key = route_score(z[i], row);
            if (ROUTE_HAS_BIAS && ROUTE_SCORING != ROUTE_BY_LOGIT)
                key = score_clean(score_add(key, added[i]));
            list.keys[i] = route_holds(place, i) ? score_image(key) : 0;
        }
    }
    route_sort<1, 1>(list);
    if (ROUTE_TOPK_GROUP < ROUTE_GROUPS && !route_keeps(place, list))
        list.keys[0] = 0;

    constexpr int results = route_power_above(ROUTE_TOPK);
    uint32_t image = 0x80000000u;
    struct route_choice choice = { 0, 0 };
    choice.id = route_rounds(place, list, lane, &image);
    float weight = route_weight(logits, scalars, row, choice.id, score_from_image(image));
    weight = lane < ROUTE_TOPK ? weight : 0.0f;
    if (ROUTE_RENORMALIZE)
        row.sum = __shfl_sync(0xffffffff, route_sum(weight, results), 0);
    if (ROUTE_RENORMALIZE || ROUTE_SCORING == ROUTE_BY_LOGIT)
        weight = __fdividef(weight, row.sum);
    choice.weight = weight * scalars.scaling;
    return choice;
}
#endif
