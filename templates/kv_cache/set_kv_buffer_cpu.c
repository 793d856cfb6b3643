/* set_kv_buffer: one block of the grid handles args->block tokens. For each of them
 *
 *     1. q      each head rotated in place
 *     2. k      each head rotated into a row on the stack; it or k itself to the cache
 *     3. v      to the cache
 *
 * to the cache: as it is, or divided by a factor and rounded to e4m3, or as a token of layout=mla.
 * Every operation is rounded by itself, so that all devices agree to the bit: a compiler that
 * contracts a product and a sum is kept from it by alone(). */
#include "common/cpu/dtype.h"
#include "common/cpu/e4m3.h"
#include "kv_cache/set_kv_buffer_args.h"

#ifndef HKV
#define HKV 8
#define D 128
#define DV 128
#define HQ 0
#define PAGE 16
#define DTYPE DT_BF16
#define KV_DTYPE DT_BF16
#define IS_MLA 0
#define KV_SCALE 0
#define IS_INDEX_64 0
#define ROPE 0
#define ROPE_DIM 0
#define ROPE_FIRST 0
#define ROPE_DTYPE DT_F32
#endif

#define HALF (ROPE_DIM / 2)
#define SIZE DT_SIZE(DTYPE)
#define IS_GPTJ (ROPE == 2)
#define DT_E4M3 5

/* The cosines and sines of a token. */
struct angles {
    float cosine[HALF + VW], sine[HALF + VW];
};

INLINE vec_f32 alone(vec_f32 x)
{
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#else
    __asm__("" : "+w"(x));
#endif
    return x;
}

INLINE vec_f32 load_some(int dtype, const void *p, int64_t count)
{
    return count >= VW ? load_as_f32(dtype, p) : load_part_as_f32(dtype, p, count);
}

INLINE void store_some(int dtype, void *p, vec_f32 value, int64_t count)
{
    if (count >= VW)
        store_from_f32(dtype, p, value);
    else
        store_part_from_f32(dtype, p, value, count);
}

INLINE void load_floats(float *to, int dtype, const void *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += VW) {
        vec_f32 value = load_some(dtype, element(dtype, from, i), count - i);
        store_some(DT_F32, to + i, value, count - i);
    }
}

static int64_t index_at(const void *indices, int64_t i)
{
    return IS_INDEX_64 ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
}

/* ---- Rotation -------------------------------------------------------------------------------- */

static void load_angles(struct angles *angles, const struct set_kv_buffer_args *args, int64_t token)
{
    int64_t position = index_at(args->positions, token), last = args->max_position - 1;
    position = position < 0 ? 0 : position < last ? position : last;
    const void *row = element(ROPE_DTYPE, args->cos_sin, position * args->cos_sin_row);
    load_floats(angles->cosine, ROPE_DTYPE, row, HALF);
    load_floats(angles->sine, ROPE_DTYPE, element(ROPE_DTYPE, row, HALF), HALF);
}

/* ROPE_DIM values in place: (a, b) of a pair to (a cos - b sin, b cos + a sin). */
static void rotate(void *row, const struct angles *angles)
{
    float values[ROPE_DIM + VW], a[HALF + VW], b[HALF + VW];
    load_floats(values, DTYPE, row, ROPE_DIM);
    for (int64_t i = 0; i < HALF; i++) {
        a[i] = values[IS_GPTJ ? 2 * i : i];
        b[i] = values[IS_GPTJ ? 2 * i + 1 : HALF + i];
    }
    for (int64_t i = 0; i < HALF; i += VW) {
        const int64_t count = HALF - i;
        vec_f32 left = load_some(DT_F32, a + i, count), right = load_some(DT_F32, b + i, count);
        vec_f32 cosine = load_some(DT_F32, angles->cosine + i, count);
        vec_f32 sine = load_some(DT_F32, angles->sine + i, count);
        store_some(DT_F32, a + i, alone(left * cosine) - alone(right * sine), count);
        store_some(DT_F32, b + i, alone(right * cosine) + alone(left * sine), count);
    }
    for (int64_t i = 0; i < HALF; i++) {
        values[IS_GPTJ ? 2 * i : i] = a[i];
        values[IS_GPTJ ? 2 * i + 1 : HALF + i] = b[i];
    }
    for (int64_t i = 0; i < ROPE_DIM; i += VW) {
        vec_f32 value = load_some(DT_F32, values + i, ROPE_DIM - i);
        store_some(DTYPE, (void *)element(DTYPE, row, i), value, ROPE_DIM - i);
    }
}

/* ---- Into a cache ---------------------------------------------------------------------------- */

/* `count` values divided by factor. */
INLINE void put_codes(uint8_t *to, const void *row, int64_t count, float factor)
{
    for (int64_t i = 0; i < count; i += VW) {
        vec_f32 value = load_some(DTYPE, element(DTYPE, row, i), count - i);
        store_codes(to + i, e4m3_from_f32(value / factor), count - i);
    }
}

INLINE void put_row(void *to, const void *row, int64_t count, float factor)
{
    if (KV_DTYPE == DT_E4M3)
        put_codes(to, row, count, factor);
    else
        __builtin_memcpy(to, row, count * SIZE);
}

/* Of a group: its largest magnitude but for NaN's, / 448; never 0. */
static float group_factor(const void *group)
{
    vec_f32 most = splat_f32(0);
    float lanes[VW], largest = 0;
    for (int64_t i = 0; i < KV_MLA_GROUP; i += VW) {
        vec_u32 bits = (vec_u32)load_as_f32(DTYPE, element(DTYPE, group, i));
        vec_f32 magnitude = (vec_f32)(bits & 0x7fffffff);
        most = select_f32(magnitude > most, magnitude, most);
    }
    store_u32(lanes, (vec_u32)most);
    for (int i = 0; i < VW; i++)
        largest = lanes[i] > largest ? lanes[i] : largest;
    largest /= 448;
    return largest > 0x1p-126f ? largest : 0x1p-126f;
}

/* The tail's NaN is 0x7fff, unless it is moved as bits: bf16 that is not rotated. */
static void put_mla(uint8_t *token, const void *row)
{
    const void *tail = element(DTYPE, row, KV_MLA_CODES);
    for (int64_t g = 0; g < KV_MLA_CODES / KV_MLA_GROUP; g++) {
        const void *group = element(DTYPE, row, g * KV_MLA_GROUP);
        float factor = group_factor(group);
        put_codes(token + g * KV_MLA_GROUP, group, KV_MLA_GROUP, factor);
        __builtin_memcpy(token + KV_MLA_CODES + g * 4, &factor, 4);
    }
    token += KV_MLA_BYTES - KV_MLA_TAIL * 2;
    if (!ROPE && DTYPE == DT_BF16)
        __builtin_memcpy(token, tail, KV_MLA_TAIL * 2);
    for (int64_t i = 0; (ROPE || DTYPE != DT_BF16) && i < KV_MLA_TAIL; i += VW) {
        vec_f32 value = load_as_f32(DTYPE, element(DTYPE, tail, i));
        value = select_f32(value != value, (vec_f32)splat_u32(0x7fff0000), value);
        store_from_f32(DT_BF16, token + i * 2, value);
    }
}

static char *place(const struct kv_cache *cache, int64_t row, int64_t head)
{
    int64_t at = row / PAGE * cache->page + row % PAGE * cache->token + head * cache->head;
    return (char *)cache->data + at * (IS_MLA || KV_DTYPE == DT_E4M3 ? 1 : SIZE);
}

static void put_token(const struct set_kv_buffer_args *args, int64_t token, int64_t row,
                      const struct angles *angles)
{
    char rotated[D * SIZE];
    for (int64_t h = 0; h < HKV; h++) {
        const void *k = element(DTYPE, args->k.data, token * args->k.token + h * args->k.head);
        if (ROPE) {
            __builtin_memcpy(rotated, k, D * SIZE);
            rotate(rotated + ROPE_FIRST * SIZE, angles);
            k = rotated;
        }
        if (IS_MLA)
            put_mla((uint8_t *)place(&args->k_cache, row, h), k);
        else
            put_row(place(&args->k_cache, row, h), k, D,
                    KV_SCALE ? args->k_scale[KV_SCALE == 2 ? h : 0] : 1);
    }
    for (int64_t h = 0; DV && h < HKV; h++) {
        const void *v = element(DTYPE, args->v.data, token * args->v.token + h * args->v.head);
        put_row(place(&args->v_cache, row, h), v, DV,
                KV_SCALE ? args->v_scale[KV_SCALE == 2 ? h : 0] : 1);
    }
}

void set_kv_buffer_main(const struct set_kv_buffer_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    for (int64_t token = begin; token < end && token < args->t; token++) {
        int64_t row = index_at(args->loc, token);
        struct angles angles;
        if (ROPE)
            load_angles(&angles, args, token);
        for (int64_t h = 0; h < HQ; h++) {
            int64_t at = token * args->q.token + h * args->q.head + ROPE_FIRST;
            rotate((void *)element(DTYPE, args->q.data, at), &angles);
        }
        if (row >= 0 && row < args->rows)
            put_token(args, token, row, &angles);
    }
}
