/* Inputs of moe that mean something: values of x about 1, weights such that sums keep their size,
 * logits on a grid of sixteenths, so that there are ties. An even seed makes some experts sought
 * after and one in eight avoided, and a few logits NaN or -infinity. An expert_map keeps `local`
 * experts, in no order. */
#define QUERN_DEF "moe/moe.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "moe.h"

/* The finaliser of splitmix64. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t draw(uint64_t seed, int64_t i)
{
    return mix(mix(seed) + (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15));
}

/* In [-1, 1). */
static double uniform(uint64_t seed, int64_t i)
{
    return (double)(int64_t)(draw(seed, i) >> 40) * 0x1p-23 - 1;
}

static uint16_t bf16_from(double value)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    if (isnan(single))
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Of magnitude 65504 at most, infinite, or NaN. */
static uint16_t f16_from(double value)
{
    if (isnan(value) || isinf(value))
        return (uint16_t)(isnan(value) ? 0x7e00 : value < 0 ? 0xfc00 : 0x7c00);
    int exponent = value == 0 ? -14 : ilogb(value);
    exponent = exponent < -14 ? -14 : exponent;
    int code = (exponent + 14) * 1024 + (int)nearbyint(ldexp(fabs(value), 10 - exponent));
    return (uint16_t)(code | (value < 0) << 15);
}

static void put(int64_t dtype, void *data, int64_t i, double value)
{
    if (dtype == QUERN_F32)
        ((float *)data)[i] = (float)value;
    else
        ((uint16_t *)data)[i] = dtype == QUERN_F16 ? f16_from(value) : bf16_from(value);
}

static void fill(int64_t dtype, uint64_t seed, int64_t count, double scale, void *data)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        put(dtype, data, i, scale * uniform(seed, i));
}

static void fill_codes(uint64_t seed, int64_t count, int8_t *data)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        data[i] = (int8_t)(draw(seed, i) % 255 - 127);
}

/* Such that sums over `width` products of values about 1 are about 1. */
static double spread(int64_t width)
{
    return 2 / sqrt((double)width);
}

static void draw_logits(const struct values *v, uint64_t seed, void *data)
{
    const int is_skewed = !(seed & 1);
#pragma omp parallel for
    for (int64_t i = 0; i < v->tokens * v->experts; i++) {
        const int64_t e = i % v->experts;
        const uint64_t bits = draw(seed, i), liked = draw(seed + 1, e) % 8;
        double value = (double)(bits % 128) / 16 - 4;
        if (is_skewed)
            value += liked == 0 ? -8 : liked == 1 ? 2 : 0;
        if (is_skewed && (bits >> 8) % 401 < 2)
            value = (bits >> 8) % 401 ? -INFINITY : NAN;
        put(v->logits_dtype, data, i, value);
    }
}

/* e stands at `local` places of a permutation of the experts. */
static void draw_map(const struct values *v, uint64_t seed, int32_t *map)
{
    const int64_t step = v->experts % 7 ? 7 : v->experts % 11 ? 11 : v->experts % 13 ? 13 : 17;
    for (int64_t e = 0; e < v->experts; e++) {
        int64_t place = (e * step + (int64_t)(mix(seed) % 64)) % v->experts;
        map[e] = place < v->local ? (int32_t)place : -1;
    }
}

int moe_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    const int64_t taken = v->local + v->shared, w13 = taken * 2 * v->inter, w2 = taken * v->hidden;
    float *factors = data;
    if (index == ARRAY_logits)
        draw_logits(v, seed, data);
    else if (index == ARRAY_expert_map)
        draw_map(v, seed, data);
    else if (v->w_dtype == QUERN_I8 && (index == ARRAY_w13 || index == ARRAY_w2))
        fill_codes(seed, index == ARRAY_w13 ? w13 * v->hidden : w2 * v->inter, data);
    else if (index == ARRAY_w13)
        fill(v->w_dtype, seed, w13 * v->hidden, spread(v->hidden), data);
    else if (index == ARRAY_w2)
        fill(v->w_dtype, seed, w2 * v->inter, spread(v->inter), data);
    else if (index == ARRAY_w13_scale || index == ARRAY_w2_scale) {
        const double scale = spread(index == ARRAY_w13_scale ? v->hidden : v->inter) / 127;
        for (int64_t i = 0; i < (index == ARRAY_w13_scale ? w13 : w2); i++)
            factors[i] = (float)(scale * (1 + uniform(seed, i) / 2));
    } else
        return 0;
    return 1;
}
