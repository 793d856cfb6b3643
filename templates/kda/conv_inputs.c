#include "conv_inputs.h"

#include <string.h>

/* SplitMix64 of two numbers. */
static uint64_t hash(uint64_t seed, int64_t i)
{
    uint64_t z = seed + UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(i + 1);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* i -> (factor i + offset) mod capacity: one to one, as the factor has no divisor with capacity.
 * Sequences for which there is none have -1. */
void conv_draw_slots(uint64_t seed, int64_t n, int64_t capacity, int32_t *slots)
{
    int64_t most = capacity > 1 ? capacity : 1, factor = (int64_t)(hash(seed, -2) % (uint64_t)most);
    int64_t offset = (int64_t)(hash(seed, -3) % (uint64_t)most);
    while (common_divisor(factor, most) != 1)
        factor++;
    for (int64_t i = 0; i < n; i++) {
        int64_t turn = (i + offset) % n;
        slots[i] = turn < capacity ? (int32_t)((turn * factor + offset) % most) : -1;
    }
}

/* Sequence i has no token, one, or a share of what is left of that weight. */
static void draw_length(uint64_t seed, int64_t i, int64_t *ones, int64_t *weights)
{
    uint64_t drawn = hash(seed, i);
    *ones += drawn % 8 == 1;
    *weights += drawn % 8 > 1 ? 1 + (int64_t)(drawn >> 8) % 1000 : 0;
}

void conv_draw_cu_seqlens(uint64_t seed, int64_t n, int64_t t, int dtype, void *data)
{
    int64_t ones = 0, weights = 0, all_ones, all_weights;
    seed &= UINT64_MAX >> 1;
    for (int64_t i = 0; i < n; i++)
        draw_length(seed, i, &ones, &weights);
    all_ones = ones <= t ? ones : 0;
    all_weights = weights;
    ones = weights = 0;
    for (int64_t i = 0; i <= n; i++) {
        double share = all_weights ? (double)weights / (double)all_weights : 0;
        int64_t begin = (all_ones ? ones : 0) + (int64_t)((double)(t - all_ones) * share);
        begin = i == n ? t : i == 0 ? 0 : begin < t ? begin : t;
        if (dtype == QUERN_I64)
            ((int64_t *)data)[i] = begin;
        else
            ((int32_t *)data)[i] = (int32_t)begin;
        if (i < n)
            draw_length(seed, i, &ones, &weights);
    }
}

/* From least to most or as much below 0, rounded to nearest in the dtype; halves too small to be
 * normal become 0. */
static void draw_float(uint64_t bits, double least, double most, int64_t dtype, void *data,
                       int64_t i)
{
    float value = (float)(least + (most - least) * (double)(bits >> 11) * 0x1p-53);
    uint32_t code;
    value = bits & 1 ? -value : value;
    memcpy(&code, &value, sizeof(code));
    uint32_t magnitude = code & 0x7fffffff, sign = code >> 16 & 0x8000;
    if (dtype == QUERN_F32)
        ((float *)data)[i] = value;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)((code + 0x8000) >> 16);
    else
        ((uint16_t *)data)[i] =
            (uint16_t)(sign |
                       (magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000 + 0x1000) >> 13));
}

void conv_draw_rows(uint64_t seed, const struct quern_shape *shape, void *data)
{
    int64_t count = 1;
    for (int i = 0; i < shape->rank; i++)
        count *= shape->dims[i];
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        draw_float(hash(seed, i), 0.5, 1, shape->dtype, data, i);
}

void conv_draw_bias(uint64_t seed, int64_t count, int64_t dtype, void *data)
{
    for (int64_t i = 0; i < count; i++)
        draw_float(hash(seed, i), 0, 0.125, dtype, data, i);
}

void conv_draw_filters(uint64_t seed, int64_t d, int64_t w, int64_t dtype, void *data)
{
    for (int64_t i = 0; i < d * w; i++) {
        int is_own = i % w == w - 1;
        draw_float(hash(seed, i), is_own ? 1 : 0, is_own ? 1.5 : 0.125, dtype, data, i);
    }
}

void conv_touch_pool(const struct quern_array *pool, const struct quern_shape *shape,
                     const int32_t *slots, int64_t n, struct quern_ranges *ranges)
{
    int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t row = 0; row < shape->dims[1]; row++) {
            if (slots[i] < 0 || slots[i] >= shape->dims[0])
                break;
            int64_t begin = (slots[i] * pool->strides[0] + row * pool->strides[1]) * bytes;
            quern_ranges_add(ranges, begin, begin + shape->dims[2] * bytes);
        }
    }
}

int conv_is_product_small(int64_t a, int64_t b)
{
    return b == 0 || a <= QUERN_SIZE_MAX / b;
}

int conv_validate(int64_t d, int64_t w, int64_t n, int pool, int64_t capacity,
                  struct quern_message *why)
{
    if (w > 4)
        return quern_refuse(why, "w=%lld: must be 2, 3 or 4", (long long)w);
    if (capacity > INT32_MAX)
        return quern_refuse(why, "capacity=%lld: must be below 2^31", (long long)capacity);
    if (capacity && !pool)
        return quern_refuse(why, "capacity=%lld: must be 0 without pool=1", (long long)capacity);
    if (!conv_is_product_small(n, d))
        return quern_refuse(why, "n=%lld: n d must be at most 2^40", (long long)n);
    if (!conv_is_product_small(capacity, d))
        return quern_refuse(why, "capacity=%lld: capacity d must be at most 2^40",
                            (long long)capacity);
    return QUERN_OK;
}

double conv_tolerance(int64_t dtype)
{
    return dtype == QUERN_F32 ? 1e-6 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

int conv_require_power_of_two(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

int conv_access_bytes(const struct quern_problem *problem, const int *list, int count)
{
    int bytes = 16;
    for (int i = 0; i < count; i++)
        bytes = problem->alignment[list[i]] < bytes ? problem->alignment[list[i]] : bytes;
    return bytes;
}

int64_t conv_access_bound(const struct quern_array *arrays, const int *list, int count,
                          int64_t dtype)
{
    int64_t bits = 16, bytes = (int64_t)quern_dtype_bytes((int)dtype);
    for (int i = 0; i < count; i++) {
        const struct quern_array *array = &arrays[list[i]];
        bits |= (int64_t)(uintptr_t)array->data;
        for (int64_t d = 0; array->data && d + 1 < array->rank; d++)
            bits |= array->strides[d] * bytes;
    }
    bits &= -bits;
    return bits > bytes ? bits : bytes;
}

int64_t conv_weight_access(int64_t w, int64_t dtype, int alignment)
{
    int64_t bytes = w * (int64_t)quern_dtype_bytes((int)dtype);
    bytes &= -bytes;
    return bytes < alignment ? bytes : alignment;
}

void conv_touch_whole(const struct quern_array *array, const struct quern_shape *shape,
                      struct quern_ranges *ranges)
{
    int64_t span = 1;
    for (int d = 0; d < shape->rank; d++)
        span = shape->dims[d] && span ? span + (shape->dims[d] - 1) * array->strides[d] : 0;
    quern_ranges_add(ranges, 0, span * (int64_t)quern_dtype_bytes(shape->dtype));
}
