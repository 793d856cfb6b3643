/* causal_conv1d on a CPU: a block of the grid is a tile of tokens by a chunk of channels (x: tile,
 * y: chunk), and after the tiles, where final_state is written, a sequence's state by a chunk.
 *
 *     tile of tokens      first ........................... last
 *     sequences       ----][------][--][------------------------------
 *                       1      2     3     4
 *
 * 1. A sequence from an earlier tile: its first W - 1 tokens are that tile's, wherever they lie;
 *    the others have all their inputs in x.
 * 2. One that begins here: the first W - 1 tokens also read its old state. They are all computed
 *    here, past the tile's end if need be, so that no other block needs the old state ...
 * 3. ... and a pool's slot can be overwritten by this block, after those tokens.
 * 4. Tokens of no sequence (before the first, after the last) become 0.
 *
 * The filter's weights are transposed into a buffer once for a block; rows of x are read where they
 * stand, W - 1 of every W - 1 + GROUP again from cache. Lengths outside [0, t] are clamped, slots
 * outside the pool count as -1. */
#include "causal_conv1d_args.h"
#include "conv_filter.h"

#ifndef INDEX_BYTES
#define INDEX_BYTES 4
#endif
#ifndef VARLEN
#define VARLEN 1
#endif
#ifndef POOL
#define POOL 1
#endif

struct block {
    const struct causal_conv1d_args *args;
    int64_t channel, count; /* of the chunk */
    const void *zeros;      /* a row */
    struct filter *filter;
};

struct sequence {
    int64_t index, begin, end; /* index -1: tokens of none */
    int64_t old, kept;         /* where its state is read and written, or -1 */
};

INLINE int64_t boundary(const struct causal_conv1d_args *args, int64_t i)
{
    if (INDEX_BYTES == 8)
        return ((const int64_t *)args->cu_seqlens)[i];
    return ((const int32_t *)args->cu_seqlens)[i];
}

INLINE int64_t bounded(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* Sequence i, where it is and where its states are. */
APART struct sequence sequence_at(const struct causal_conv1d_args *args, int64_t i)
{
    struct sequence s = { .index = i, .old = i, .kept = i };
    if (VARLEN) {
        s.begin = bounded(boundary(args, i), 0, args->t);
        s.end = bounded(boundary(args, i + 1), s.begin, args->t);
    } else {
        s.begin = i * (args->t / args->n);
        s.end = s.begin + args->t / args->n;
    }
    if (POOL) {
        int32_t slot = args->slots[i];
        s.old = s.kept = slot >= 0 && slot < args->capacity ? slot : -1;
    }
    if (!args->old_state || (args->has_initial && !args->has_initial[i]))
        s.old = -1;
    return s;
}

/* The sequence that holds a token; else the gap that does, up to args->t at most. */
APART struct sequence sequence_of(const struct causal_conv1d_args *args, int64_t token)
{
    int64_t below = -1, above = args->n; /* below begins at or before the token, above after it */
    if (!VARLEN)
        return sequence_at(args, token / (args->t / args->n));
    while (above - below > 1) {
        int64_t middle = below + (above - below) / 2;
        if (boundary(args, middle) <= token)
            below = middle;
        else
            above = middle;
    }
    struct sequence s = { .index = -1, .begin = token, .end = args->t, .old = -1, .kept = -1 };
    if (below >= 0)
        s = sequence_at(args, below);
    else if (args->n > 0)
        s.end = bounded(boundary(args, 0), 0, args->t);
    if (s.end <= token)
        s = (struct sequence){ .index = -1, .begin = token, .end = args->t };
    return s;
}

INLINE const void *x_row(const struct block *block, int64_t token)
{
    return element(DTYPE, block->args->x, token * block->args->x_pitch + block->channel);
}

INLINE const void *old_row(const struct block *block, int64_t old, int64_t row)
{
    const int64_t *pitch = block->args->old_pitch;
    return old < 0 ? block->zeros
                   : element(DTYPE, block->args->old_state,
                             old * pitch[0] + row * pitch[1] + block->channel);
}

/* Input `token` of s: of x, or from its begin back of its old state. */
INLINE const void *input_row(const struct block *block, const struct sequence *s, int64_t token)
{
    return token >= s->begin ? x_row(block, token)
                             : old_row(block, s->old, token - s->begin + W - 1);
}

/* Rows go up: of a pool's slot, a row that is read lies after the one that is written. */
APART void keep_state(const struct block *block, const struct sequence *s)
{
    const int64_t *pitch = block->args->new_pitch;
    ROLLED
    for (int64_t row = 0; row < W - 1; row++) {
        const void *from = input_row(block, s, s->end - (W - 1) + row);
        void *to = (void *)element(DTYPE, block->args->new_state,
                                   s->kept * pitch[0] + row * pitch[1] + block->channel);
        if (from != to)
            __builtin_memcpy(to, from, block->count * DT_SIZE(DTYPE));
    }
}

/* Tokens [token, stop) of s. */
APART void filter_tokens(const struct block *block, const struct sequence *s, int64_t token,
                         int64_t stop)
{
    const struct causal_conv1d_args *args = block->args;
    const void *rows[W - 1 + GROUP];
    void *out[GROUP];
    while (token < stop) {
        int group = stop - token >= GROUP ? GROUP : 1;
        for (int r = 0; r < W - 1 + group; r++)
            rows[r] = input_row(block, s, token - (W - 1) + r);
        for (int u = 0; u < group; u++)
            out[u] = (void *)element(DTYPE, args->y, (token + u) * args->y_pitch + block->channel);
        if (group == GROUP)
            filter_four(block->filter, rows, out, block->count);
        else
            filter_one(block->filter, rows, out, block->count);
        token += group;
    }
}

APART void clear_tokens(const struct block *block, int64_t token, int64_t stop)
{
    for (; token < stop; token++)
        __builtin_memset(
            (void *)element(DTYPE, block->args->y, token * block->args->y_pitch + block->channel),
            0, block->count * DT_SIZE(DTYPE));
}

APART void convolve_tile(const struct block *block, int64_t first, int64_t last)
{
    for (int64_t token = first; token < last;) {
        struct sequence s = sequence_of(block->args, token);
        int64_t stop = bounded(s.end, token, last), mine = s.begin + W - 1;
        if (s.index < 0) { /* 4 */
            clear_tokens(block, token, stop);
        } else if (s.begin < first) { /* 1 */
            filter_tokens(block, &s, token > mine ? token : mine, stop);
        } else { /* 2 */
            stop = bounded(mine, stop, s.end);
            filter_tokens(block, &s, token, stop);
            if (POOL && s.kept >= 0)
                keep_state(block, &s); /* 3 */
        }
        token = stop;
    }
}

void causal_conv1d_main(const struct causal_conv1d_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    static const uint32_t zeros[FILTER_CHANNELS];
    struct filter filter;
    (void)z;
    struct block block = {
        .args = args, .channel = (int64_t)y * args->chunk, .zeros = zeros, .filter = &filter
    };
    block.count = bounded(args->d - block.channel, 0, args->chunk);
    if (x >= args->tiles) {
        struct sequence s = sequence_at(args, x - args->tiles);
        keep_state(&block, &s);
        return;
    }
    int64_t first = x * args->tile, last = bounded(first + args->tile, 0, args->t);
    filter_load(&filter, element(WEIGHT, args->weight, block.channel * args->weight_pitch),
                args->weight_pitch, BIAS ? element(BIAS, args->bias, block.channel) : 0,
                block.count);
    convolve_tile(&block, first, last);
}
