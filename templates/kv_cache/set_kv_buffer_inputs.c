/* Inputs of set_kv_buffer that mean something: rows of the caches in no order, all different as far
 * as they go, of every seventh token none; positions anywhere, the first and the last among them;
 * factors with which some values are beyond 448. Keys of layout=mla are of all magnitudes, a group
 * of every third token all zero. */
#define QUERN_DEF "kv_cache/set_kv_buffer.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "set_kv_buffer.h"

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

static void put_index(int64_t dtype, void *data, int64_t i, int64_t value)
{
    if (dtype == QUERN_I64)
        ((int64_t *)data)[i] = value;
    else
        ((int32_t *)data)[i] = (int32_t)value;
}

static void draw_loc(const struct values *v, uint64_t seed, void *loc)
{
    int64_t rows = v->pages * v->page, step = rows % 7919 ? 7919 : 1;
    rows = rows < INT32_MAX ? rows : INT32_MAX;
    for (int64_t i = 0; i < v->t; i++) {
        int64_t row = i < rows ? (i * step + (int64_t)(seed % 65536)) % rows : -1;
        put_index(v->index, loc, i, i % 7 == 5 ? -1 : row);
    }
}

static void draw_positions(const struct values *v, uint64_t seed, void *positions)
{
    for (int64_t i = 0; i < v->t; i++) {
        int64_t position = (int64_t)(draw(seed, i) % (uint64_t)v->max_position);
        position = i % 4 == 1 ? 0 : i % 4 == 2 ? v->max_position - 1 : position;
        put_index(v->index, positions, i, position);
    }
}

/* Values of 8 bits, which every dtype holds exactly. */
static void put(int64_t dtype, void *data, int64_t i, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == QUERN_F32)
        ((float *)data)[i] = value;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)data)[i] = value == 0 ? (uint16_t)(bits >> 16)
                                           : (uint16_t)(bits >> 16 & 0x8000) |
                                                 (uint16_t)((bits << 1 >> 14) - (112 << 10));
}

static void draw_mla(const struct values *v, uint64_t seed, void *k)
{
    for (int64_t i = 0; i < v->t * v->d; i++) {
        int64_t token = i / v->d, group = i % v->d / KV_MLA_GROUP;
        uint64_t bits = draw(seed, i);
        int exponent = (int)(draw(seed + 1, i / KV_MLA_GROUP) % 8) - 10;
        float value = ldexpf((float)(bits % 255) + 1, exponent) * (bits >> 32 & 1 ? -1 : 1);
        put(v->dtype, k, i, token % 3 == 1 && group == token % 4 ? value * 0 : value);
    }
}

static void draw_factors(const struct values *v, uint64_t seed, float *factors)
{
    for (int64_t i = 0; i < (v->kv_scale == KV_SCALE_HEAD ? v->hkv : 1); i++)
        factors[i] = (float)(1.0 / (300 + (double)(draw(seed, i) % 300)));
}

int set_kv_buffer_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    seed = mix(seed + (uint64_t)index);
    if (index == ARRAY_loc)
        draw_loc(v, seed, data);
    else if (index == ARRAY_positions)
        draw_positions(v, seed, data);
    else if (index == ARRAY_k_scale || index == ARRAY_v_scale)
        draw_factors(v, seed, data);
    else if (index == ARRAY_k && v->layout == KV_MLA)
        draw_mla(v, seed, data);
    else
        return 0;
    return 1;
}
