/* Inputs of mla_decode that mean something: queries and rows of normal values, whose scores are
 * neither flat nor of one row alone; pages in no order, all different as far as the cache has as
 * many; every second one of the first sequences at an edge (0, 1, a page, a tile, one more and one
 * less), the others nearly as long as they may be, the first just that. What no query sees is NaN,
 * what no length reaches in page_table no page; of a query's indices some are -1. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "mla_decode.h"

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

/* Of variance 1 and nearly normal: the sum of 12 uniform numbers, 5 bits each. */
static double normal(uint64_t seed, int64_t i)
{
    uint64_t bits = draw(seed, i);
    double sum = 0;
    for (int n = 0; n < 12; n++)
        sum += (double)(bits >> 5 * n & 31) + 0.5;
    return sum / 32 - 6;
}

/* ---- Values ---------------------------------------------------------------------------------- */

static uint16_t bf16_from(double value)
{
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Finite values; the code of a power of two follows that of the largest value below it. */
static uint16_t f16_from(double value)
{
    int exponent = value == 0 ? -14 : ilogb(value);
    exponent = exponent < -14 ? -14 : exponent;
    int code = (exponent + 14) * 1024 + (int)nearbyint(ldexp(fabs(value), 10 - exponent));
    return (uint16_t)(code | (value < 0) << 15);
}

/* Of magnitude 448 at most. */
static uint8_t e4m3_from(double value)
{
    int exponent = value == 0 ? -6 : ilogb(value);
    exponent = exponent < -6 ? -6 : exponent;
    int code = (exponent + 6) * 8 + (int)nearbyint(ldexp(fabs(value), 3 - exponent));
    return (uint8_t)(code | (value < 0) << 7);
}

static void put(int dtype, void *data, int64_t i, double value)
{
    if (dtype == QUERN_F32)
        ((float *)data)[i] = (float)value;
    else
        ((uint16_t *)data)[i] = dtype == QUERN_F16 ? f16_from(value) : bf16_from(value);
}

static void draw_token(uint64_t seed, int64_t row, uint8_t *token)
{
    float factors[MLA_DV / MLA_GROUP];
    for (int g = 0; g < MLA_DV / MLA_GROUP; g++)
        factors[g] = (float)((0.75 + (double)(draw(seed, row) >> 8 * g & 63) / 128) / 70);
    for (int i = 0; i < MLA_DV; i++)
        token[i] = e4m3_from(normal(seed, row * MLA_DK + i) * 70);
    memcpy(token + MLA_DV, factors, sizeof(factors));
    for (int i = 0; i < MLA_DK - MLA_DV; i++) {
        uint16_t half = bf16_from(normal(seed, row * MLA_DK + MLA_DV + i));
        memcpy(token + MLA_DV + sizeof(factors) + 2 * i, &half, sizeof(half));
    }
}

static void draw_normals(int dtype, uint64_t seed, int64_t count, void *data)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        put(dtype, data, i, normal(seed, i));
}

/* ---- Lengths, pages, rows -------------------------------------------------------------------- */

static int64_t length_of(const struct values *v, uint64_t seed, int64_t sequence, int64_t most)
{
    const int64_t edges[] = { v->page + 1, 1, 65, 0, 127, v->page, 129, 63, v->page - 1, 64 };
    int64_t edge = edges[sequence / 2 % 10];
    if (sequence % 2 && sequence < 20)
        return edge < most ? edge : most;
    return most - (sequence ? (int64_t)(draw(seed, sequence) % (uint64_t)(most / 16 + 1)) : 0);
}

/* Number k of 0 to count - 1 in no order; they repeat after count. */
static int64_t shuffled(uint64_t seed, int64_t k, int64_t count)
{
    const int64_t step = count % 7919 ? 7919 : count % 7907 ? 7907 : 7901;
    return (k * step + (int64_t)(mix(seed) % 65536)) % count;
}

static int64_t page_of(const struct values *v, uint64_t seed, int64_t sequence, int64_t i)
{
    return shuffled(seed, sequence * v->max_pages + i, v->pages);
}

static void draw_table(const struct values *v, uint64_t seed, int32_t *table)
{
    for (int64_t s = 0; s < v->b; s++) {
        int64_t length = v->pages ? length_of(v, seed, s, v->max_pages * v->page) : 0;
        for (int64_t i = 0; i < v->max_pages; i++)
            table[s * v->max_pages + i] = i * v->page < length
                                              ? (int32_t)page_of(v, seed, s, i)
                                              : (draw(seed, i) & 1 ? -1 : INT32_MAX);
    }
}

/* Rows of pages in use past a sequence's end, where no two sequences share pages. */
static void poison(const struct values *v, uint64_t seed, int64_t row_bytes, char *cache)
{
    if (v->topk || v->pages < v->b * v->max_pages)
        return;
    for (int64_t k = 0; k < v->b * v->max_pages; k++) {
        int64_t s = k / v->max_pages, i = k % v->max_pages;
        int64_t seen = length_of(v, seed, s, v->max_pages * v->page) - i * v->page;
        seen = seen < 0 ? 0 : seen < v->page ? seen : v->page;
        char *page = cache + page_of(v, seed, s, i) * v->page * row_bytes;
        memset(page + seen * row_bytes, 0xff, (size_t)((v->page - seen) * row_bytes));
    }
}

static void draw_cache(const struct quern_spec *spec, uint64_t seed, void *cache)
{
    const struct values *v = values_of(spec);
    const int dtype = (int)v->kv_dtype;
    const int64_t rows = v->pages * v->page;
    if (dtype != QUERN_E4M3) {
        draw_normals(dtype, mix(seed + 1), rows * MLA_DK, cache);
        poison(v, seed, MLA_DK * (int64_t)quern_dtype_bytes(dtype), cache);
        return;
    }
#pragma omp parallel for
    for (int64_t i = 0; i < rows; i++)
        draw_token(mix(seed + 1), i, (uint8_t *)cache + i * MLA_TOKEN_BYTES);
    poison(v, seed, MLA_TOKEN_BYTES, cache);
}

/* As many rows as a sequence of topk tokens would have, all different if the cache has as many. */
static void draw_indices(const struct values *v, uint64_t seed, int32_t *indices)
{
    const int64_t rows = v->pages * v->page < INT32_MAX ? v->pages * v->page : INT32_MAX;
    for (int64_t n = 0; n < v->b * v->sq; n++) {
        int64_t count = length_of(v, seed, n, v->topk < rows ? v->topk : rows);
        for (int64_t i = 0; i < v->topk; i++)
            indices[n * v->topk + i] =
                shuffled(seed, i, v->topk) < count
                    ? (int32_t)shuffled(seed + 1, n * v->topk + shuffled(seed, i, v->topk), rows)
                    : -1;
    }
}

int mla_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    int32_t *lengths = data;
    if (index == ARRAY_q)
        draw_normals((int)v->dtype, mix(seed), v->b * v->sq * v->hq * MLA_DK, data);
    else if (index == ARRAY_kv_cache)
        draw_cache(spec, seed, data);
    else if (index == ARRAY_page_table)
        draw_table(v, seed, data);
    else if (index == ARRAY_indices)
        draw_indices(v, seed, data);
    for (int64_t s = 0; index == ARRAY_seq_lens && s < v->b; s++)
        lengths[s] = v->pages ? (int32_t)length_of(v, seed, s, v->max_pages * v->page) : 0;
    return 1;
}
