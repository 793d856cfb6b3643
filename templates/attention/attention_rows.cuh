/* Which rows of scores are a block's, and which keys they see.
 *
 *     row      a query of a head; with PACK a query of one head of a group, heads fastest, so that
 *              few queries fill a tile that reads their common head of k once
 *     tile     BM rows of one sequence
 *     item     a head of a sequence, or a group with PACK; dense batches: sequences * heads of them
 *
 * Dense batches take `section` items at a time, whose k and v fit in L2, and within a section the
 * tiles from the last one, which with CAUSAL is the longest, across the items:
 *
 *     section = 2, 3 tiles      0  1 | 6  7        columns: items
 *                               2  3 | 8  9        rows: tiles 2, 1, 0
 *                               4  5 |10 11
 *
 * Packed sequences take all heads of a tile, then the next tile; the grid has one more tile for
 * each sequence than the rows fill, and the blocks beyond the last tile end at once. */
#ifndef ATTENTION_ROWS_CUH
#define ATTENTION_ROWS_CUH
#include "attention_cuda_args.h"

struct block_rows {
    int sequence, head, kv_head; /* head: with PACK the group's first */
    int first, count;            /* rows of the tile, and all of the sequence's */
    int q_begin, queries;        /* tokens of the sequence in q */
    int k_begin, keys;           /* and in k */
    int prefix;                  /* PREFIX: keys ahead of those */
};

__device__ __forceinline__ int clamp_to(int value, int least, int most)
{
    return max(least, min(value, most));
}

/* Tokens that a sequence has in an array of `total`, whatever the borders are. */
__device__ __forceinline__ void tokens_of(const int32_t *borders, int sequence, int total,
                                          int *begin, int *count)
{
    *begin = clamp_to(borders[sequence], 0, total);
    *count = clamp_to(borders[sequence + 1], *begin, total) - *begin;
}

/* Rows of one token in an item. */
__device__ __forceinline__ int rows_per_query(const struct attention_cuda_args *args)
{
    return PACK ? args->group : 1;
}

/* Packed sequences: whose tile number `tile` is. Every lane of a warp looks at one of 32 sequences
 * at a time. False: nobody's. */
__device__ __forceinline__ bool find_sequence(const struct attention_cuda_args *args, int tile,
                                              struct block_rows *rows)
{
    int lane = threadIdx.x % 32, before = 0;
    for (int first = 0; first < args->b; first += 32) {
        int begin = 0, count = 0;
        if (first + lane < args->b)
            tokens_of(args->cu_seqlens_q, first + lane, args->sq, &begin, &count);
        int tiles = (count * rows_per_query(args) + BM - 1) / BM, end = tiles;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            int below = __shfl_up_sync(0xffffffff, end, distance);
            end += lane >= distance ? below : 0;
        }
        uint32_t beyond = __ballot_sync(0xffffffff, before + end > tile);
        if (beyond) {
            int owner = __ffs(beyond) - 1;
            int place = tile - before - __shfl_sync(0xffffffff, end - tiles, owner);
            rows->sequence = first + owner;
            rows->q_begin = __shfl_sync(0xffffffff, begin, owner);
            rows->queries = __shfl_sync(0xffffffff, count, owner);
            rows->first = (__shfl_sync(0xffffffff, tiles, owner) - 1 - place) * BM;
            return true;
        }
        before += __shfl_sync(0xffffffff, end, 31);
    }
    return false;
}

/* Tokens of a sequence's prefix, whatever the lengths or borders are. */
__device__ __forceinline__ int prefix_of(const struct attention_cuda_args *args, int sequence)
{
    int begin, count;
    if (args->pages == 0)
        return 0;
    if (PREFIX == 1)
        return clamp_to(args->lens[sequence], 0, args->max_pages << args->page_bits);
    tokens_of(args->lens, sequence, args->indices, &begin, &count);
    return count;
}

/* False: there is nothing to do. */
__device__ __forceinline__ bool find_rows(const struct attention_cuda_args *args,
                                          struct block_rows *rows)
{
    uint32_t heads = args->hq / rows_per_query(args), item;
    if (VARLEN) {
        item = blockIdx.x % heads;
        if (!find_sequence(args, blockIdx.x / heads, rows))
            return false;
        tokens_of(args->cu_seqlens_k, rows->sequence, args->sk, &rows->k_begin, &rows->keys);
    } else {
        uint32_t of_section = (uint32_t)args->section * args->tiles;
        uint32_t section = blockIdx.x / of_section, within = blockIdx.x % of_section;
        uint32_t first = section * args->section;
        uint32_t items = min(heads * args->b - first, (uint32_t)args->section);
        item = first + within % items;
        rows->sequence = item / heads;
        rows->first = (args->tiles - 1 - within / items) * BM;
        rows->q_begin = rows->k_begin = 0;
        rows->queries = args->sq;
        rows->keys = args->sk;
    }
    rows->head = item % heads * rows_per_query(args);
    rows->kv_head = rows->head / args->group;
    rows->count = rows->queries * rows_per_query(args);
    rows->prefix = PREFIX ? prefix_of(args, rows->sequence) : 0;
    return true;
}

/* ---- One row --------------------------------------------------------------------------------- */

__device__ __forceinline__ int query_of(const struct attention_cuda_args *args, int row)
{
    return PACK ? row / args->group : row;
}

__device__ __forceinline__ int head_of(const struct attention_cuda_args *args,
                                       const struct block_rows *rows, int row)
{
    return PACK ? rows->head + row % args->group : rows->head;
}

/* A row of q or o, in bytes. The sequence stride is only of dense batches. */
__device__ __forceinline__ int64_t offset_of(const struct attention_cuda_args *args,
                                             const struct block_rows *rows,
                                             const struct attention_rows *array, int row)
{
    int64_t sequence = VARLEN ? 0 : rows->sequence * array->sequence;
    return sequence + (rows->q_begin + query_of(args, row)) * array->token +
           head_of(args, rows, row) * array->head;
}

/* The keys that a row sees: from `begin` to below `end`, the prefix's first. */
struct seen {
    int begin, end;
};

__device__ __forceinline__ struct seen seen_by(const struct attention_cuda_args *args,
                                               const struct block_rows *rows, int row)
{
    int keys = rows->prefix + rows->keys;
    int position = query_of(args, row) + keys - rows->queries;
    struct seen seen = { 0, keys };
    if (CAUSAL)
        seen.end = min(keys, position + 1);
    if (args->window) {
        seen.begin = max(0, position - args->window + 1);
        if (!CAUSAL && position < keys - args->window)
            seen.end = position + args->window;
    }
    return seen;
}
#endif
