/* out = the running sums of gate(g) / ln 2 inside chunks: one block of the grid handles args->block
 * heads of one slot, which holds a chunk or is empty.
 *
 *     1. find the slot's chunk: tokens [first, end)
 *     2. the rates exp(A_log) of the heads
 *     3. token by token, along the rows as memory has them: a row of out is the row before, which
 *        the cache has, plus the token's gates. With decay=scalar a vector is VW heads
 *
 * Bound by memory: 4 bytes out and one element of g in. What cu_seqlens holds is clamped to [0, t];
 * tokens of no sequence are not written. */
#include "common/cpu/dtype.h"
#include "kda_gate.h"
#include "kda_gate_cumsum_args.h"

#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef GATE
#define GATE KDA_GATE_SOFTPLUS
#endif
#ifndef SCALAR_DECAY
#define SCALAR_DECAY 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef VARLEN
#define VARLEN 0
#endif
#ifndef INDEX_64
#define INDEX_64 0
#endif
#ifndef HEADS
#define HEADS 32
#endif
#ifndef K
#define K 128
#endif
#ifndef CHUNK
#define CHUNK 64
#endif

#define LOG2_E 1.44269504f
#define MAX_HEADS 256 /* that a block may have */

struct span {
    int64_t first, end;
};

INLINE int64_t begin_of(const struct kda_gate_cumsum_args *args, int64_t sequence)
{
    int64_t value = INDEX_64 ? ((const int64_t *)args->cu_seqlens)[sequence]
                             : ((const int32_t *)args->cu_seqlens)[sequence];
    return value < 0 ? 0 : value > args->t ? args->t : value;
}

/* 1. The last sequence whose first slot is at or before this one has it, if any. */
INLINE struct span span_of(const struct kda_gate_cumsum_args *args, int64_t slot)
{
    int64_t low = 0, high = args->n, begin, end, first;
    if (!VARLEN) {
        begin = slot / args->chunks * args->length, end = begin + args->length;
        first = begin + slot % args->chunks * CHUNK;
    } else {
        while (high - low > 1) {
            int64_t middle = low + (high - low) / 2;
            if (begin_of(args, middle) / CHUNK + middle <= slot)
                low = middle;
            else
                high = middle;
        }
        begin = begin_of(args, low), end = begin_of(args, low + 1);
        first = begin + (slot - begin / CHUNK - low) * CHUNK;
    }
    if (first < begin || first > end)
        first = end;
    return (struct span){ first, end - first > CHUNK ? first + CHUNK : end };
}

/* The gate's logarithm in base 2; count lanes of x matter. */
INLINE vec_f32 decay_of(vec_f32 x, vec_f32 bias, vec_f32 rate, float lower)
{
    if (GATE == KDA_GATE_SOFTPLUS)
        return kda_gate(GATE, x, bias, LOG2_E, 0) * rate;
    if (GATE == KDA_GATE_BOUNDED)
        return kda_gate(GATE, rate * (x + bias), splat_f32(0), 1, lower * LOG2_E);
    return x * LOG2_E;
}

INLINE vec_f32 load_floats(const float *p, int64_t count)
{
    return count >= VW ? load_as_f32(DT_F32, p) : load_part_as_f32(DT_F32, p, count);
}

INLINE void store_floats(float *p, vec_f32 value, int64_t count)
{
    if (count >= VW)
        store_from_f32(DT_F32, p, value);
    else
        store_part_from_f32(DT_F32, p, value, count);
}

INLINE vec_f32 load_g(const void *g, int64_t count)
{
    return count >= VW ? load_as_f32(G_DTYPE, g) : load_part_as_f32(G_DTYPE, g, count);
}

/* One head's row of one token; before is out of the token before, NULL for a chunk's first. */
INLINE void row_sum(const void *g, const float *bias, float rate, float lower, const float *before,
                    float *out)
{
    for (int64_t i = 0; i < K; i += VW) {
        int64_t count = K - i;
        vec_f32 b = HAS_BIAS ? load_floats(bias + i, count) : splat_f32(0);
        vec_f32 value = decay_of(load_g(element(G_DTYPE, g, i), count), b, splat_f32(rate), lower);
        if (before)
            value += load_floats(before + i, count);
        store_floats(out + i, value, count);
    }
}

/* Up to VW lanes `stride` elements apart. */
INLINE vec_f32 gather(int dtype, const void *from, int64_t stride, int64_t count)
{
    if (stride == 1 && dtype == G_DTYPE)
        return load_g(from, count);
    float lane[VW] = { 0 };
    for (int64_t i = 0; i < VW && i < count; i++)
        lane[i] = load_one_as_f32(dtype, element(dtype, from, i * stride));
    return load_as_f32(DT_F32, lane);
}

/* decay=scalar: heads [head, end) of all tokens. */
INLINE void scalar_sums(const struct kda_gate_cumsum_args *args, struct span span, int64_t head,
                        int64_t end, const float *rate)
{
    const int64_t *gs = args->g_strides, *outs = args->out_strides;
    for (int64_t first = head; first < end; first += VW) {
        int64_t count = end - first;
        vec_f32 sum = splat_f32(0), bias = splat_f32(0);
        vec_f32 rates = load_as_f32(DT_F32, rate + first - head);
        if (HAS_BIAS)
            bias =
                gather(DT_F32, args->dt_bias + first * args->bias_stride, args->bias_stride, count);
        for (int64_t i = span.first; i < span.end; i++) {
            const void *g = element(G_DTYPE, args->g, i * gs[0] + first * gs[1]);
            float *out = args->out + i * outs[0] + first * outs[1];
            sum += decay_of(gather(G_DTYPE, g, gs[1], count), bias, rates, args->lower);
            if (outs[1] == 1) {
                store_floats(out, sum, count);
                continue;
            }
            for (int64_t lane = 0; lane < VW && lane < count; lane++)
                out[lane * outs[1]] = sum[lane];
        }
    }
}

void kda_gate_cumsum_main(const struct kda_gate_cumsum_args *args, uint32_t x, uint32_t y,
                          uint32_t z)
{
    (void)z;
    const int64_t *gs = args->g_strides, *outs = args->out_strides;
    int64_t head = (int64_t)y * args->block, end = head + args->block;
    struct span span = span_of(args, x);
    float rate[MAX_HEADS + VW];
    if (end > HEADS)
        end = HEADS;
    if (span.first >= span.end)
        return;

    /* 2. */
    for (int64_t i = 0; i < end - head; i += VW)
        store_from_f32(DT_F32, rate + i,
                       GATE ? exp_f32(load_floats(args->A_log + head + i, end - head - i))
                            : splat_f32(1));

    /* 3. */
    if (SCALAR_DECAY) {
        scalar_sums(args, span, head, end, rate);
        return;
    }
    for (int64_t i = span.first; i < span.end; i++) {
        for (int64_t h = head; h < end; h++) {
            float *out = args->out + i * outs[0] + h * outs[1];
            row_sum(element(G_DTYPE, args->g, i * gs[0] + h * gs[1]),
                    HAS_BIAS ? args->dt_bias + h * args->bias_stride : (const float *)0,
                    rate[h - head], args->lower, i > span.first ? out - outs[0] : (const float *)0,
                    out);
        }
    }
}
