/* causal_conv1d on a GPU. An item is a tile of tokens by the channels of one access, and a thread
 * has it alone: it walks down the tokens with the W - 1 inputs before them in registers. Items of a
 * tile are neighbours, so a warp reads 32 accesses in a row.
 *
 *     tile of tokens      first ........................... last
 *     sequences       ----][------][--][------------------------------
 *                       1      2     3     4
 *
 * 1. A sequence from an earlier tile: its first W - 1 tokens are that tile's, wherever they lie;
 *    the window of the others is loaded from x.
 * 2. One that begins here: its window is the old state. Its first W - 1 tokens are all computed
 *    here, past the tile's end if need be, so that no other thread needs the old state ...
 * 3. ... and a pool's slot is overwritten by this thread. Where states go to final_state, which
 *    sequences of no tokens have too, more items do that, one for a sequence and an access.
 * 4. Tokens of no sequence (before the first, after the last) become 0.
 *
 * Memory bounds it: x and y once each, 4 bytes an element of 2, so 12288 channels of 8192 tokens
 * take 94 us at 4.3 TB/s. For that a thread has UNROLL accesses in flight (UNROLL KiB of 16-byte
 * ones for 64 threads; 512 resident threads of an SM with 4 are 32 KiB), and the W - 1 rows that
 * tiles share come from L2. Boundaries outside [0, t] are clamped; slots outside the pool count
 * as -1. */
#include "causal_conv1d_args.h"
#include "conv.cuh"

#ifndef INDEX_BYTES
#define INDEX_BYTES 4
#endif
#ifndef VARLEN
#define VARLEN 1
#endif
#ifndef POOL
#define POOL 1
#endif
#ifndef THREADS
#define THREADS 128
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

/* The channels of a thread. */
struct place {
    int64_t channel;
    int count;
};

struct sequence {
    int64_t index, begin, end; /* index -1: tokens of none */
    int64_t old, kept;         /* where its state is read and written, or -1 */
};

static __device__ __forceinline__ int64_t boundary(const struct causal_conv1d_args &args, int64_t i)
{
    if (INDEX_BYTES == 8)
        return ((const int64_t *)args.cu_seqlens)[i];
    return ((const int32_t *)args.cu_seqlens)[i];
}

static __device__ __forceinline__ int64_t bounded(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

static __device__ struct sequence sequence_at(const struct causal_conv1d_args &args, int64_t i)
{
    struct sequence s = { i, 0, 0, i, i };
    if (VARLEN) {
        s.begin = bounded(boundary(args, i), 0, args.t);
        s.end = bounded(boundary(args, i + 1), s.begin, args.t);
    } else {
        s.begin = i * (args.t / args.n);
        s.end = s.begin + args.t / args.n;
    }
    if (POOL) {
        int32_t slot = args.slots[i];
        s.old = s.kept = slot >= 0 && slot < args.capacity ? slot : -1;
    }
    if (!args.old_state || (args.has_initial && !args.has_initial[i]))
        s.old = -1;
    return s;
}

/* The sequence that holds a token; else the gap that does, up to args.t at most. */
static __device__ struct sequence sequence_of(const struct causal_conv1d_args &args, int64_t token)
{
    int64_t below = -1, above = args.n; /* below begins at or before the token, above after it */
    if (!VARLEN)
        return sequence_at(args, token / (args.t / args.n));
    while (above - below > 1) {
        int64_t middle = below + (above - below) / 2;
        if (boundary(args, middle) <= token)
            below = middle;
        else
            above = middle;
    }
    struct sequence s = { -1, token, args.t, -1, -1 };
    if (below >= 0)
        s = sequence_at(args, below);
    else if (args.n > 0)
        s.end = bounded(boundary(args, 0), 0, args.t);
    if (s.end <= token)
        s = { -1, token, args.t, -1, -1 };
    return s;
}

/* Input `token` of s: of x, or from its begin back of its old state. */
static __device__ __forceinline__ struct raw input(const struct causal_conv1d_args &args,
                                                   const struct place &place,
                                                   const struct sequence &s, int64_t token)
{
    if (token >= s.begin)
        return raw_load(element(DTYPE, args.x, token * args.x_pitch), place.channel, place.count);
    if (s.old < 0)
        return {};
    int64_t row = token - s.begin + W - 1;
    return raw_load(
        element(DTYPE, args.old_state, s.old * args.old_pitch[0] + row * args.old_pitch[1]),
        place.channel, place.count);
}

/* Rows go up: of a pool's slot, a row that is read lies after the one that is written. */
static __device__ __forceinline__ void keep_state(const struct causal_conv1d_args &args,
                                                  const struct place &place,
                                                  const struct sequence &s)
{
#pragma unroll 1
    for (int row = 0; row < W - 1; row++) {
        struct raw raw = input(args, place, s, s.end - (W - 1) + row);
        int64_t at = s.kept * args.new_pitch[0] + row * args.new_pitch[1];
        raw_store((void *)element(DTYPE, args.new_state, at), place.channel, place.count, raw);
    }
}

/* Tokens [token, stop) of a sequence, behind their window. */
static __device__ __forceinline__ void filter_tokens(const struct causal_conv1d_args &args,
                                                     const struct place &place,
                                                     const struct filter &filter,
                                                     float (&window)[W - 1][CONV_VEC],
                                                     int64_t token, int64_t stop)
{
    for (; token < stop; token += UNROLL) {
        struct raw raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            raw[u] = {};
            if (token + u < stop)
                raw[u] = raw_load(element(DTYPE, args.x, (token + u) * args.x_pitch), place.channel,
                                  place.count);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            struct raw out = filter_step(filter, window, raw[u]);
            if (token + u < stop)
                raw_store((void *)element(DTYPE, args.y, (token + u) * args.y_pitch), place.channel,
                          place.count, out);
        }
    }
}

static __device__ __forceinline__ void convolve_tile(const struct causal_conv1d_args &args,
                                                     const struct place &place, int64_t first,
                                                     int64_t last)
{
    struct filter filter;
    filter_load(filter, args.weight, args.weight_pitch, args.bias, place.channel, place.count);
    for (int64_t token = first; token < last;) {
        struct sequence s = sequence_of(args, token);
        int64_t stop = bounded(s.end, token, last), mine = s.begin + W - 1;
        if (s.index < 0) { /* 4 */
            for (; token < stop; token++)
                raw_store((void *)element(DTYPE, args.y, token * args.y_pitch), place.channel,
                          place.count, {});
            continue;
        }
        int is_first = s.begin >= first;
        if (is_first) /* 2 */
            stop = bounded(mine, stop, s.end);
        else if (token < mine) /* 1; one that is shorter ends before */
            token = mine < s.end ? mine : s.end;
        if (token < stop) {
            float window[W - 1][CONV_VEC];
#pragma unroll
            for (int j = 0; j < W - 1; j++)
                raw_widen(window[j], input(args, place, s, token - (W - 1) + j));
            if (POOL && is_first && s.kept >= 0) /* 3 */
                keep_state(args, place, s);
            filter_tokens(args, place, filter, window, token, stop);
        }
        token = stop > token ? stop : token;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    causal_conv1d_cuda(const __grid_constant__ struct causal_conv1d_args args)
{
    const int64_t columns = (args.d + CONV_VEC - 1) / CONV_VEC;
    const int64_t items = (args.tiles + (!POOL && args.new_state ? args.n : 0)) * columns;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < items;
         i += (int64_t)gridDim.x * THREADS) {
        int64_t tile = i / columns, channel = (i - tile * columns) * CONV_VEC;
        const struct place place = { channel, (int)(args.d - channel < CONV_VEC ? args.d - channel
                                                                                : CONV_VEC) };
        if (tile >= args.tiles)
            keep_state(args, place, sequence_at(args, tile - args.tiles));
        else
            convolve_tile(args, place, tile * args.tile,
                          bounded((tile + 1) * args.tile, 0, args.t));
    }
}
