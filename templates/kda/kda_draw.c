#include "kda_draw.h"

#include <math.h>
#include <string.h>

/* The finaliser of splitmix64. */
uint64_t kda_mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

uint64_t kda_draw(uint64_t seed, int64_t i)
{
    return kda_mix(kda_mix(seed) + (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15));
}

static double between(uint64_t seed, int64_t i, double least, double most)
{
    return least + (most - least) * ((double)(kda_draw(seed, i) >> 11) * 0x1p-53);
}

/* Finite values; the code of a power of two follows that of the largest value below it. */
static uint16_t f16_from(double value)
{
    int exponent = value == 0 ? -14 : ilogb(value);
    exponent = exponent < -14 ? -14 : exponent;
    int code = (exponent + 14) * 1024 + (int)nearbyint(ldexp(fabs(value), 10 - exponent));
    return (uint16_t)(code | (value < 0) << 15);
}

static void put(int dtype, void *data, int64_t i, double value)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    if (dtype == QUERN_F32)
        ((float *)data)[i] = single;
    else if (dtype == QUERN_F16)
        ((uint16_t *)data)[i] = f16_from(value);
    else
        ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void kda_draw_floats(const struct quern_shape *shape, uint64_t seed, double least, double most,
                     int is_decay, void *data)
{
    int64_t count = 1;
    for (int i = 0; i < shape->rank; i++)
        count *= shape->dims[i];
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        double value = between(seed, i, least, most);
        put(shape->dtype, data, i, is_decay ? -exp(value) : value);
    }
}

/* Those of the pool, in no order, as far as they go; then none. */
void kda_draw_slots(uint64_t seed, int64_t n, int64_t capacity, int32_t *slots)
{
    const int64_t step = capacity % 7 && capacity > 7 ? 7 : 1;
    const int64_t first = capacity ? (int64_t)(kda_mix(seed) % (uint64_t)capacity) : 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t turn = (i + first) % n;
        slots[i] = turn < capacity ? (int32_t)((first + turn * step) % capacity) : -1;
    }
}

void kda_touch_slots(const struct quern_array *pool, const struct quern_shape *shape,
                     const int32_t *slots, int64_t n, struct quern_ranges *ranges)
{
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    const int64_t *dims = shape->dims, *strides = pool->strides;
    const int is_dense = strides[2] == dims[3];
    const int64_t runs = is_dense ? 1 : dims[2], run = is_dense ? dims[2] * dims[3] : dims[3];
    for (int64_t i = 0; i < n * dims[1] * runs; i++) {
        int64_t slot = slots[i / (dims[1] * runs)], head = i / runs % dims[1];
        if (slot < 0 || slot >= dims[0])
            continue;
        int64_t begin = slot * strides[0] + head * strides[1] + i % runs * strides[2];
        quern_ranges_add(ranges, begin * bytes, (begin + run) * bytes);
    }
}
