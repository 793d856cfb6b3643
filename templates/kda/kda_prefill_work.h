/* What a block of kda_prefill_cpu works with, and how it comes from the arrays and goes back. */
#ifndef KDA_PREFILL_WORK_H
#define KDA_PREFILL_WORK_H
#include "common/cpu/dtype.h"
#include "common/cpu/product_f32.h"
#include "kda_gate.h"
#include "kda_prefill_args.h"

#ifndef KEY_WIDTH
#define KEY_WIDTH 128
#endif
#ifndef VALUE_WIDTH
#define VALUE_WIDTH 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef STATE_DTYPE
#define STATE_DTYPE DT_F32
#endif
#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef BETA_DTYPE
#define BETA_DTYPE DT_F32
#endif
#ifndef IS_INDEX_64
#define IS_INDEX_64 0
#endif
#ifndef GATE
#define GATE KDA_GATE_NONE
#endif
#ifndef DECAY
#define DECAY KDA_DECAY_CHANNEL
#endif
#ifndef L2NORM
#define L2NORM 0
#endif
#ifndef BETA_LOGITS
#define BETA_LOGITS 0
#endif
#ifndef NEG_EIGVAL
#define NEG_EIGVAL 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef LAYOUT
#define LAYOUT KDA_LAYOUT_KV
#endif
#ifndef VARLEN
#define VARLEN 0
#endif
#ifndef POOL
#define POOL 0
#endif
#ifndef HAS_BEFORE
#define HAS_BEFORE 0
#endif
#ifndef HAS_AFTER
#define HAS_AFTER 1
#endif
#ifndef CHUNK_STATES
#define CHUNK_STATES 0
#endif
#ifndef CHUNK
#define CHUNK 32
#endif

#ifndef AMX
#define AMX 0
#endif

#define ALIGNED __attribute__((aligned(64)))
#define LEAST 0x1p-50f
_Static_assert(CHUNK % PRODUCT_ROWS == 0 && CHUNK <= 64, "rows of whole tiles");

/* What a block works with. Rows of keys; the upper half of `left` holds those of queries. The state
 * lies in strips of PRODUCT_COLUMNS: the rows of one, 32 KiB of it, fill L1 evenly. */
struct work {
    ALIGNED float state[VALUE_WIDTH / PRODUCT_COLUMNS][KEY_WIDTH][PRODUCT_COLUMNS];
    ALIGNED float q[CHUNK][KEY_WIDTH], k[CHUNK][KEY_WIDTH], decay[CHUNK][KEY_WIDTH];
    ALIGNED float left[2 * CHUNK][KEY_WIDTH], right[CHUNK][KEY_WIDTH];
    ALIGNED float x[CHUNK][PRODUCT_COLUMNS]; /* of the strip in work */
    ALIGNED float scores_k[CHUNK][CHUNK], scores_q[CHUNK][CHUNK];
    ALIGNED float total[KEY_WIDTH];
    float beta[CHUNK];
#if AMX /* bf16, two in a lane */
    ALIGNED uint32_t left_pairs[2 * CHUNK][KEY_WIDTH / 2], right_pairs[CHUNK / 2][KEY_WIDTH / 2];
    ALIGNED uint32_t turned[KEY_WIDTH / 2][16], tail_pairs[KEY_WIDTH][CHUNK / 2];
    ALIGNED uint32_t state_pairs[KEY_WIDTH / 2][PRODUCT_COLUMNS];
    ALIGNED uint32_t x_pairs[CHUNK / 2][PRODUCT_COLUMNS];
    ALIGNED uint32_t scores_k_pairs[CHUNK][CHUNK / 2], scores_q_pairs[CHUNK][CHUNK / 2];
    ALIGNED uint32_t scores_q_low_pairs[CHUNK][CHUNK / 2]; /* what rounding left */
    ALIGNED float y[2 * CHUNK][PRODUCT_COLUMNS];
#endif
};

/* Where column c of row d of the state lies. */
INLINE int64_t state_at(int64_t d, int64_t c)
{
    return (c / PRODUCT_COLUMNS * KEY_WIDTH + d) * PRODUCT_COLUMNS + c % PRODUCT_COLUMNS;
}

INLINE vec_f32 at(const float *p)
{
    return (vec_f32)load_u32(p);
}

INLINE void put(float *p, vec_f32 value)
{
    store_u32(p, (vec_u32)value);
}

/* A product of decays; NaN stays. */
INLINE vec_f32 factor(vec_f32 value)
{
    return select_f32(value < LEAST, splat_f32(0), value);
}

/* Running products of CHAINS vectors of channels side by side: of one alone, each row would wait
 * for the row before it. */
#define CHAINS 4
typedef vec_f32 chains[CHAINS];
_Static_assert(KEY_WIDTH % (CHAINS * VW) == 0, "rows of whole chains");

INLINE void chains_begin(chains product)
{
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        product[c] = splat_f32(1);
}

INLINE void chains_multiply(chains product, const float *row)
{
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        product[c] = factor(product[c] * at(row + c * VW));
}

INLINE void chains_store(float *to, const chains product)
{
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        put(to + c * VW, product[c]);
}

/* to = row times the products. */
INLINE void chains_put(float *to, const chains product, const float *row)
{
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        put(to + c * VW, at(row + c * VW) * product[c]);
}

/* What is not finite, as NaN. */
INLINE vec_f32 finite_or_nan(vec_f32 value)
{
    return value + (value - value);
}

/* ---- 1. Load ------------------------------------------------------------------------------- */

/* Asks for the line that begins with element d of the row `ahead` elements on, if one does: what a
 * head's rows have between them keeps the processor from seeing by itself what comes next. */
INLINE void ask_for(const void *row, int64_t d, int64_t size, int64_t ahead)
{
    if (d * size % 64 == 0)
        __builtin_prefetch((const char *)row + (d + ahead) * size, 0, 2);
}

/* A row of queries or keys times `scale`, normalised if that is asked for. */
INLINE void load_row(float *row, const void *from, int64_t ahead, float scale)
{
    vec_f32 sum = { 0 };
    for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
        ask_for(from, d, DT_SIZE(DTYPE), ahead);
        vec_f32 value = load_as_f32(DTYPE, element(DTYPE, from, d));
        sum += value * value;
        put(row + d, value * scale);
    }
    if (!L2NORM)
        return;
    vec_f32 inverse = rsqrt_f32(splat_f32(sum_lanes(sum) + 1e-6f));
    for (int64_t d = 0; d < KEY_WIDTH; d += VW)
        put(row + d, at(row + d) * inverse);
}

INLINE vec_f32 decay_of(vec_f32 g, vec_f32 bias, float rate, float lower)
{
    return factor(exp_f32(kda_gate(GATE, g, bias, rate, lower)));
}

/* The decays of a token; of GDN the one that all channels have. */
INLINE void load_decay(float *row, const void *g, int64_t ahead, const float *bias, float rate,
                       float lower)
{
    if (DECAY == KDA_DECAY_SCALAR) {
        vec_f32 all = decay_of(splat_f32(load_one_as_f32(G_DTYPE, g)),
                               splat_f32(HAS_BIAS ? bias[0] : 0), rate, lower);
        for (int64_t d = 0; d < KEY_WIDTH; d += VW)
            put(row + d, all);
        return;
    }
    for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
        ask_for(g, d, DT_SIZE(G_DTYPE), ahead);
        put(row + d, decay_of(load_as_f32(G_DTYPE, element(G_DTYPE, g, d)),
                              HAS_BIAS ? at(bias + d) : splat_f32(0), rate, lower));
    }
}

APART void load_chunk(struct work *w, const struct kda_prefill_args *args, int64_t head,
                      int64_t first, int64_t rows, int64_t end)
{
    const int64_t key_head = head / (args->hv / args->h);
    const float rate = GATE ? exp_f32(splat_f32(args->A_log[head]))[0] : 1;
    for (int64_t i = 0; i < rows; i++) {
        int64_t t = first + i;
        int64_t ahead = t + CHUNK < end ? CHUNK : 0;
        load_row(w->q[i], element(DTYPE, args->q, t * args->q_t + key_head * args->q_h),
                 ahead * args->q_t, args->scale);
        load_row(w->k[i], element(DTYPE, args->k, t * args->k_t + key_head * args->k_h),
                 ahead * args->k_t, 1);
        load_decay(w->decay[i], element(G_DTYPE, args->g, t * args->g_t + head * args->g_h),
                   ahead * args->g_t, args->dt_bias + (HAS_BIAS ? head * args->bias_h : 0), rate,
                   args->lower_bound);
        for (int64_t c = 0; c < VALUE_WIDTH; c += VW)
            ask_for(element(DTYPE, args->v, t * args->v_t + head * args->v_h), c, DT_SIZE(DTYPE),
                    ahead * args->v_t);
        float beta = load_one_as_f32(
            BETA_DTYPE, element(BETA_DTYPE, args->beta, t * args->beta_t + head * args->beta_h));
        if (BETA_LOGITS)
            beta = sigmoid_f32(splat_f32(beta))[0];
        w->beta[i] = NEG_EIGVAL ? 2 * beta : beta;
    }
    for (int64_t i = rows; AMX && i < CHUNK; i++) { /* tiles take these: nothing happens there */
        for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
            put(w->q[i] + d, splat_f32(0));
            put(w->k[i] + d, splat_f32(0));
            put(w->decay[i] + d, splat_f32(1));
        }
    }
}

/* ---- States in memory ---------------------------------------------------------------------- */

/* [v, k]: squares of VW x VW are turned. */
APART void load_state(struct work *w, const void *from, int64_t stride)
{
    if (LAYOUT == KDA_LAYOUT_KV) {
        for (int64_t d = 0; d < KEY_WIDTH; d++)
            for (int64_t c = 0; c < VALUE_WIDTH; c += VW)
                put(&w->state[0][0][state_at(d, c)],
                    load_as_f32(STATE_DTYPE, element(STATE_DTYPE, from, d * stride + c)));
        return;
    }
    for (int64_t c = 0; c < VALUE_WIDTH; c += VW) {
        for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
            vec_u32 square[VW];
            UNROLL
            for (int r = 0; r < VW; r++)
                square[r] = (vec_u32)load_as_f32(STATE_DTYPE,
                                                 element(STATE_DTYPE, from, (c + r) * stride + d));
            transpose(square);
            UNROLL
            for (int r = 0; r < VW; r++)
                store_u32(&w->state[0][0][state_at(d + r, c)], square[r]);
        }
    }
}

INLINE void store_part(const int dtype, void *to, int64_t offset, vec_f32 value)
{
    store_from_f32(dtype, (void *)element(dtype, to, offset), finite_or_nan(value));
}

INLINE void store_state(const struct work *w, const int dtype, void *to, int64_t stride)
{
    if (LAYOUT == KDA_LAYOUT_KV) {
        for (int64_t d = 0; d < KEY_WIDTH; d++)
            for (int64_t c = 0; c < VALUE_WIDTH; c += VW)
                store_part(dtype, to, d * stride + c, at(&w->state[0][0][state_at(d, c)]));
        return;
    }
    for (int64_t c = 0; c < VALUE_WIDTH; c += VW) {
        for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
            vec_u32 square[VW];
            UNROLL
            for (int r = 0; r < VW; r++)
                square[r] = load_u32(&w->state[0][0][state_at(d + r, c)]);
            transpose(square);
            UNROLL
            for (int r = 0; r < VW; r++)
                store_part(dtype, to, (c + r) * stride + d, (vec_f32)square[r]);
        }
    }
}
#endif
