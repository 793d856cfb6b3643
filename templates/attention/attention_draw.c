#include "attention_draw.h"

#include <math.h>
#include <string.h>

/* The finaliser of splitmix64. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

uint64_t attention_draw(uint64_t seed, int64_t i)
{
    return mix(mix(seed) + (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15));
}

double attention_draw_unit(uint64_t seed, int64_t i)
{
    return (double)(attention_draw(seed, i) >> 11) * 0x1p-53;
}

/* The sum of four uniform numbers, of variance 1. */
static double normal(uint64_t seed, int64_t i)
{
    uint64_t bits = attention_draw(seed, i);
    double sum = 0;
    for (int part = 0; part < 4; part++)
        sum += (double)(bits >> 16 * part & 0xffff) / 65536;
    return (sum - 2) * 1.7320508;
}

/* A finite value in a format of `fraction` bits whose least normal exponent is `least`. The code of
 * a power of two follows that of the largest value below it. */
static uint32_t small_float(double value, int fraction, int least, int sign_bit)
{
    int exponent = value == 0 ? least : ilogb(value);
    exponent = exponent < least ? least : exponent;
    int code =
        ((exponent - least) << fraction) + (int)nearbyint(ldexp(fabs(value), fraction - exponent));
    return (uint32_t)code | (uint32_t)(value < 0) << sign_bit;
}

static void put(int dtype, void *data, int64_t i, double value)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    if (dtype == QUERN_F32)
        ((float *)data)[i] = single;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    else if (dtype == QUERN_F16)
        ((uint16_t *)data)[i] = (uint16_t)small_float(value, 10, -14, 15);
    else
        ((uint8_t *)data)[i] = (uint8_t)small_float(value, 3, -6, 7);
}

static int64_t count_of(const struct quern_shape *shape)
{
    int64_t count = 1;
    for (int i = 0; i < shape->rank; i++)
        count *= shape->dims[i];
    return count;
}

void attention_draw_normal(const struct quern_shape *shape, uint64_t seed, double deviation,
                           void *data)
{
    const int64_t count = count_of(shape);
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        put(shape->dtype, data, i, deviation * normal(seed, i));
}

void attention_draw_factors(const struct quern_shape *shape, uint64_t seed, float *data)
{
    for (int64_t i = 0; i < count_of(shape); i++)
        data[i] = (float)(0.5 + attention_draw_unit(seed, i));
}

/* One of three: none or one, the edge of a tile or beside it, any. */
static int64_t any_length(uint64_t seed, int64_t i, int64_t most)
{
    static const int64_t tiles[] = { 16, 32, 64, 128, 256 };
    uint64_t bits = attention_draw(seed, i);
    int64_t length = (int64_t)(bits >> 8 & 1);
    if (i % 3 == 1)
        length = tiles[(bits >> 8) % 5] * (int64_t)(1 + (bits >> 16) % 3) +
                 (int64_t)((bits >> 24) % 3) - 1;
    if (i % 3 == 2)
        length = (int64_t)((double)most * attention_draw_unit(seed, i));
    return length > most ? most : length;
}

void attention_draw_borders(uint64_t seed, int64_t b, int64_t total, int32_t *borders)
{
    int64_t at = 0;
    for (int64_t i = 0; i <= b; i++) {
        borders[i] = (int32_t)(i == b ? total : at);
        int64_t mean = (total - at) / (b - i + 1), left = total - at;
        int64_t length = any_length(seed, i, 2 * mean);
        at += length > left ? left : length;
    }
}

int64_t attention_draw_length(uint64_t seed, int64_t i, int64_t most)
{
    return i ? any_length(seed, i, most) : most;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* i -> (step i + first) mod limit, step prime to it. */
void attention_draw_ids(uint64_t seed, int64_t count, int64_t limit, int32_t *ids)
{
    int64_t first = limit ? (int64_t)(attention_draw(seed, 0) % (uint64_t)limit) : 0;
    int64_t step = limit ? 1 + (int64_t)(attention_draw(seed, 1) % (uint64_t)limit) : 0;
    while (limit && common_divisor(step, limit) != 1)
        step++;
    for (int64_t i = 0; i < count; i++)
        ids[i] = limit ? (int32_t)((step * (i % limit) + first) % limit) : -1;
}
