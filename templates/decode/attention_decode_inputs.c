/* Inputs of attention_decode that mean something: queries with which the softmax is neither flat
 * nor all on one token; pages in no order, all different as far as the pool goes; lengths that
 * straddle the edges of pages and tiles; and in entries of tables that no call may use, numbers
 * that would lead outside the pool. */
#define QUERN_DEF "decode/attention_decode.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "attention_decode.h"

/* splitmix64: from 0 to 1. */
static double draw(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

/* Nearly normal, of mean 0 and variance 1. */
static double draw_normal(uint64_t *state)
{
    return (draw(state) + draw(state) + draw(state) + draw(state) - 2) * 1.7320508;
}

/* Rounded to nearest; halves too small to be normal become 0. */
static void put(int dtype, void *data, int64_t at, double value)
{
    float single = (float)value;
    uint32_t bits, magnitude;
    memcpy(&bits, &single, sizeof(bits));
    magnitude = bits & 0x7fffffff;
    if (dtype == QUERN_F32)
        ((float *)data)[at] = single;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[at] = (uint16_t)((bits + 0x8000) >> 16);
    else
        ((uint16_t *)data)[at] =
            (uint16_t)((bits >> 16 & 0x8000) |
                       (magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000 + 0x1000) >> 13));
}

/* ---- Lengths --------------------------------------------------------------------------------- */

/* Full ones in batches of a power of two that are long, as a bench or the tuner has them; else
 * every edge there is. */
int64_t attention_decode_length(const struct quern_spec *spec, int64_t sequence)
{
    const struct values *v = values_of(spec);
    const int64_t most = v->max_pages * v->page;
    const int64_t edges[] = { most, 0,   1,   v->page, v->page - 1, v->page + 1, most - 1, 511,
                              most, 513, 512, 63,      64,          65,          most / 3, 127,
                              129,  128, 15,  16,      17,          33,          1023,     1025 };
    if (!v->pages)
        return 0;
    if (most >= 1024 && v->b == quern_power_of_two_above(v->b))
        return most;
    int64_t length = edges[sequence % (int64_t)(sizeof(edges) / sizeof(edges[0]))];
    return length < 0 ? 0 : length > most ? most : length;
}

int64_t attention_decode_shared_length(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    int64_t most = v->shared_pages * v->page;
    return !v->pages ? 0 : most >= 1024 ? most : most - most / 5;
}

/* ---- Tables ---------------------------------------------------------------------------------- */

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* Number i of the pool's pages in no order: i -> (step i + first) mod pages, step prime to it. */
struct order {
    int64_t first, step, pages;
};

static struct order draw_order(const struct values *v, uint64_t state)
{
    struct order order = { 0, 1, v->pages };
    if (!v->pages)
        return order;
    order.first = (int64_t)(draw(&state) * (double)v->pages);
    order.step = 1 + (int64_t)((0.3 + 0.4 * draw(&state)) * (double)v->pages);
    while (common_divisor(order.step, v->pages) != 1)
        order.step++;
    return order;
}

/* The entries of a span's pages; all others lead nowhere, unless the whole row is to be good.
 * `used` counts on. */
static void draw_table(const struct values *v, const struct order *order, struct decode_span span,
                       int is_whole, int64_t width, int64_t *used, int32_t *table)
{
    for (int64_t i = 0; i < width; i++) {
        int is_seen =
            span.begin < span.end && i >= span.begin / v->page && i <= (span.end - 1) / v->page;
        int is_used = order->pages && (is_seen || is_whole);
        table[i] =
            is_used
                ? (int32_t)(((order->first + *used % order->pages * order->step)) % order->pages)
            : i % 2 ? INT32_MAX
                    : -1;
        *used += is_used;
    }
}

/* What sequence i sees; -1: what any of them sees of the prefix. */
static struct decode_seen seen_of(const struct quern_spec *spec, int64_t i)
{
    const int64_t shared = attention_decode_shared_length(spec);
    struct decode_seen seen = { { shared, shared }, { 0, 0 } };
    if (i >= 0)
        return attention_decode_seen(spec, shared, attention_decode_length(spec, i));
    for (int64_t s = 0; s < values_of(spec)->b; s++) {
        int64_t begin =
            attention_decode_seen(spec, shared, attention_decode_length(spec, s)).shared.begin;
        seen.shared.begin = begin < seen.shared.begin ? begin : seen.shared.begin;
    }
    return seen;
}

static void draw_tables(const struct quern_spec *spec, uint64_t seed, int is_shared, int32_t *table)
{
    const struct values *v = values_of(spec);
    const struct order order = draw_order(v, seed);
    struct decode_span prefix = seen_of(spec, -1).shared;
    int64_t used = 0;
    if (is_shared) {
        draw_table(v, &order, prefix, 0, v->shared_pages, &used, table);
        return;
    }
    if (prefix.begin < prefix.end)
        used = (prefix.end - 1) / v->page - prefix.begin / v->page + 1;
    /* The last row is good for every length: one that all sequences share may come of it. */
    for (int64_t i = 0; i < v->b; i++)
        draw_table(v, &order, seen_of(spec, i).own, i == v->b - 1, v->max_pages, &used,
                   table + i * v->max_pages);
}

int attention_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    uint64_t state = seed ^ (uint64_t)(index + 1) * UINT64_C(0xd1342543de82ef95);
    switch (index) {
    case ARRAY_q: /* keys have a variance of 1/3 */
        for (int64_t i = 0; i < v->b * v->hq * v->d; i++)
            put((int)v->dtype, data, i, 2 * draw_normal(&state));
        return 1;
    case ARRAY_sinks:
        for (int64_t i = 0; i < v->hq; i++)
            put((int)v->sinks_dtype, data, i, 2 * draw_normal(&state));
        return 1;
    case ARRAY_k_scale:
    case ARRAY_v_scale:
        for (int64_t i = 0; i < (v->kv_scale == 2 ? v->hkv : 1); i++)
            put(QUERN_F32, data, i, 0.5 + draw(&state));
        return 1;
    case ARRAY_seq_lens:
        for (int64_t i = 0; i < v->b; i++)
            ((int32_t *)data)[i] = (int32_t)attention_decode_length(spec, i);
        return 1;
    case ARRAY_shared_len:
        *(int32_t *)data = (int32_t)attention_decode_shared_length(spec);
        return 1;
    case ARRAY_page_table:
    case ARRAY_shared_table:
        draw_tables(spec, seed, index == ARRAY_shared_table, data);
        return 1;
    }
    return 0;
}
