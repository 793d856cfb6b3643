/* Attention of one query of each sequence to a paged cache, on CPUs, in two steps.
 *
 *     1. decode    pieces of at most DECODE_PIECE tokens (decode_piece.h), each to a slot of the
 *                  workspace: the largest score, the sum of the weights, the weighted sum of v
 *     2. combine   the slots of a head of a sequence, in order, and the sink: o and lse
 *
 * The cuts are at multiples of DECODE_PIECE of a sequence's own tokens and of the common prefix's,
 * so that the bits of a sequence depend on nothing else, whoever computes what.
 *
 * The host knows no lengths. Each block of the first step reads them all and takes an equal share
 * of the units that there are: (sequence, piece, heads of the cache, tiles of their query heads),
 * in that order. Of the common prefix a unit is a piece of it, for a few heads and many sequences
 * one after another: the first brings it to the second-level cache.
 *
 * A page outside the pool is read as page 0. Rows behind a length are not read. */
#include "common/cpu/dtype.h"

#ifndef D
#define D 128
#endif
#ifndef DV
#define DV 128
#endif
#ifndef GROUP
#define GROUP 4
#endif
#ifndef HKV
#define HKV 8
#endif
#ifndef PAGE
#define PAGE 16
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef KV_DTYPE
#define KV_DTYPE DT_BF16
#endif
#ifndef KV_SCALE
#define KV_SCALE 0
#endif
#ifndef SINKS
#define SINKS 0
#endif
#ifndef SINKS_DTYPE
#define SINKS_DTYPE DT_F32
#endif
#ifndef HAS_LSE
#define HAS_LSE 0
#endif
#ifndef HAS_SOFTCAP
#define HAS_SOFTCAP 0
#endif
#ifndef HAS_SHARED
#define HAS_SHARED 0
#endif
#ifndef HAS_WINDOW
#define HAS_WINDOW 0
#endif
#ifndef AMX
#define AMX 0
#endif

#include "attention_decode_cpu_args.h"
#include "decode_piece.h"

#define PARTS ((ROW_TILES + Q_TILES - 1) / Q_TILES) /* of a head's tiles of rows, a unit each */

/* Tokens that are seen of the prefix, and of the sequence's own. */
struct span {
    int64_t begin, end;
};

struct seen {
    struct span shared, own;
};

INLINE struct seen seen_of(const struct decode_args *args, int64_t sequence)
{
    int64_t shared = HAS_SHARED ? clamp(*args->shared_len, 0, args->shared_pages * PAGE) : 0;
    int64_t own = clamp(args->seq_lens[sequence], 0, args->max_pages * PAGE);
    int64_t first = 0;
    if (!args->pages)
        return (struct seen){ { 0, 0 }, { 0, 0 } };
    if (HAS_WINDOW)
        first = clamp(shared + own - args->window, 0, shared + own);
    return (struct seen){ { clamp(first, 0, shared), shared },
                          { clamp(first - shared, 0, own), own } };
}

INLINE int64_t pieces_of(struct span span)
{
    return span.begin < span.end ? (span.end - 1) / DECODE_PIECE - span.begin / DECODE_PIECE + 1
                                 : 0;
}

/* ---- 1. Pieces ------------------------------------------------------------------------------- */

/* The part of a span that is in piece `number` of those it touches. */
INLINE struct piece piece_of(const int32_t *table, struct span span, int64_t number)
{
    int64_t begin = (span.begin / DECODE_PIECE + number) * DECODE_PIECE, end = begin + DECODE_PIECE;
    begin = begin < span.begin ? span.begin : begin;
    end = end > span.end ? span.end : end;
    return (struct piece){ .table = table, .begin = begin, .count = end - begin };
}

/* Block `block` of the cache's heads. */
INLINE void choose_heads(struct piece *piece, int64_t block, int64_t heads)
{
    piece->head = block * heads;
    piece->heads = HKV - piece->head < heads ? HKV - piece->head : heads;
}

/* Tiles of rows that part `part` of a head has. */
INLINE void choose_part(struct piece *piece, int64_t part)
{
    piece->tile = part * Q_TILES;
    piece->tiles = ROW_TILES - piece->tile < Q_TILES ? ROW_TILES - piece->tile : Q_TILES;
}

/* A piece of the prefix for shared_batch sequences. */
INLINE void run_shared(const struct decode_cpu_args *args, int64_t unit)
{
    const int64_t head_blocks = (HKV + args->shared_heads - 1) / args->shared_heads;
    const int64_t number = unit % args->shared_slots, rest = unit / args->shared_slots;
    const int64_t first = rest / PARTS / head_blocks * args->shared_batch;
    for (int64_t i = 0; i < args->shared_batch && first + i < args->call.b; i++) {
        struct span span = seen_of(&args->call, first + i).shared;
        int64_t before = span.begin / DECODE_PIECE;
        if (number < before || number >= before + pieces_of(span))
            continue;
        struct piece piece = piece_of(args->call.shared_table, span, number - before);
        piece.sequence = first + i;
        choose_heads(&piece, rest / PARTS % head_blocks, args->shared_heads);
        piece.slot = number;
        choose_part(&piece, rest % PARTS);
        piece_run(args, &piece, 0);
    }
}

/* Share `share` of `args->blocks` of all units of sequences' own tokens. */
INLINE void run_share(const struct decode_cpu_args *args, int64_t share)
{
    const struct decode_args *call = &args->call;
    const int64_t head_blocks = (HKV + args->heads - 1) / args->heads;
    const int64_t units = head_blocks * PARTS; /* of a piece */
    struct piece last = { .count = 0 };
    int64_t total = 0, s = 0, at = 0;
    for (int64_t i = 0; i < call->b; i++)
        total += pieces_of(seen_of(call, i).own) * units;
    const int64_t begin = total * share / args->blocks, end = total * (share + 1) / args->blocks;
    for (; s < call->b && at < end; s++) {
        const struct span span = seen_of(call, s).own;
        const int64_t count = pieces_of(span) * units;
        const int64_t stop = end - at < count ? end - at : count;
        for (int64_t unit = begin > at ? begin - at : 0; unit < stop; unit++) {
            int64_t number = unit / units, rest = unit % units;
            struct piece piece = piece_of(call->page_table + s * call->table_row, span, number);
            piece.sequence = s;
            choose_heads(&piece, rest / PARTS, args->heads);
            piece.slot = args->shared_slots + number;
            choose_part(&piece, rest % PARTS);
            if (last.count)
                piece_run(args, &last, &piece);
            last = piece;
        }
        at += count;
    }
    if (last.count)
        piece_run(args, &last, 0);
}

void attention_decode_main(const struct decode_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    if (HAS_SHARED && x < args->shared_blocks)
        run_shared(args, x);
    else
        run_share(args, x - args->shared_blocks);
}

/* ---- 2. Combine ------------------------------------------------------------------------------ */

/* The natural logarithm of a number from 2^-126 up: its exponent is a first guess, which Newton's
 * steps on e^y = x make exact. */
INLINE float log_one(float x)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    float y = ((float)bits * 0x1p-23f - 127) * 0.6931472f;
    for (int i = 0; i < 3; i++)
        y += x * exp_f32(splat_f32(-y))[0] - 1;
    return x > 0 && x < __builtin_inff() ? y : x == 0 ? -__builtin_inff() : x;
}

/* Slots [begin, begin + count) of a row. */
struct slots {
    int64_t begin, count;
};

INLINE float max_of(const struct decode_state *states, struct slots slots, float max)
{
    for (int64_t i = slots.begin; i < slots.begin + slots.count; i++)
        max = states[i].max > max ? states[i].max : max;
    return max;
}

/* Adds the slots to o and returns the sum of their weights. */
INLINE float add_slots(const struct decode_state *states, const float *sums, struct slots slots,
                       float max, float o[DV])
{
    float sum = 0;
    for (int64_t i = slots.begin; i < slots.begin + slots.count; i++) {
        vec_f32 factor = exp_f32(splat_f32(states[i].max - max));
        sum += factor[0] * states[i].sum;
        for (int c = 0; c < DV; c += VW)
            *(vec_f32_any *)(o + c) += factor * *(const vec_f32_any *)(sums + i * DV + c);
    }
    return sum;
}

/* One query head of a sequence. */
INLINE void combine_row(const struct decode_cpu_args *args, const struct slots slots[2],
                        int64_t sequence, int64_t head)
{
    const struct decode_args *call = &args->call;
    const float none = -__builtin_inff();
    const int64_t row = (sequence * HKV * GROUP + head) * args->slots;
    const struct decode_state *states = args->states + row;
    const float *sums = args->sums + row * DV;
    float o[DV] = { 0 }, sink = none, factor = 0, lse;
    if (SINKS)
        sink = load_one_as_f32(SINKS_DTYPE, element(SINKS_DTYPE, call->sinks, head));
    lse = sink;
    if (slots[0].count + slots[1].count) {
        float max = max_of(states, slots[1], max_of(states, slots[0], sink));
        max = max == none ? 0 : max;
        float sum = add_slots(states, sums, slots[0], max, o);
        sum += add_slots(states, sums, slots[1], max, o);
        if (SINKS)
            sum += exp_f32(splat_f32(sink - max))[0];
        lse = max + log_one(sum);
        factor = KV_SCALE ? call->v_scale[KV_SCALE == 2 ? head / GROUP : 0] : 1;
        factor = sum == 0 ? 0 : factor / sum;
    }
    void *out =
        (void *)element(DTYPE, call->o.data, sequence * call->o.sequence + head * call->o.head);
    for (int c = 0; c < DV; c += VW)
        store_from_f32(DTYPE, (void *)element(DTYPE, out, c), *(vec_f32_any *)(o + c) * factor);
    if (HAS_LSE)
        ((float *)call->lse.data)[sequence * call->lse.sequence + head * call->lse.head] = lse;
}

/* Block (x, y): the group of head x of the cache, of sequence y. */
void attention_decode_combine(const struct decode_cpu_args *args, uint32_t x, uint32_t y,
                              uint32_t z)
{
    const struct seen seen = seen_of(&args->call, y);
    const struct slots slots[2] = {
        { seen.shared.begin / DECODE_PIECE, pieces_of(seen.shared) },
        { args->shared_slots, pieces_of(seen.own) },
    };
    (void)z;
    for (int64_t i = 0; i < GROUP; i++)
        combine_row(args, slots, y, (int64_t)x * GROUP + i);
}
