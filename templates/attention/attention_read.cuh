/* What a block reads: its rows of q, then its keys and values tile by tile. Tiles of BN keys are
 * counted from the prefix's first, whose last one ends where the prefix does; then follow those of
 * the keys in k and v. */
#ifndef ATTENTION_READ_CUH
#define ATTENTION_READ_CUH
#include "attention_rows.cuh"
#include "attention_tiles.cuh"
#include "common/cuda/online_softmax.cuh"

/* What a block looks up in shared memory, since registers are few. */
struct block {
    struct block_rows rows;
    const char *k, *v;          /* the sequence's first row of k and of v */
    int begin, end;             /* the tiles that any row sees */
    int whole_begin, whole_end; /* the keys that every row sees */

    /* PREFIX */
    int prefix_tiles;
    const int32_t *ids;            /* the sequence's pages, or rows of the cache */
    const char *k_cache, *v_cache; /* the head's row 0 */
    float k_scale, v_scale;        /* the head's */
    float v_factor;                /* of values at the prefix's end */
};

__device__ __forceinline__ uint32_t stage_of(uint32_t stages, int tile)
{
    return stages + (uint32_t)tile % STAGES * STAGE_BYTES;
}

/* ---- Tiles and keys -------------------------------------------------------------------------- */

__device__ __forceinline__ bool is_of_prefix(const struct block *block, int tile)
{
    return PREFIX && tile < block->prefix_tiles;
}

__device__ __forceinline__ int key_of(const struct block *block, int tile)
{
    if (!PREFIX || is_of_prefix(block, tile))
        return tile * BN;
    return block->rows.prefix + (tile - block->prefix_tiles) * BN;
}

/* Where a tile's keys end. */
__device__ __forceinline__ int end_of(const struct block *block, int tile)
{
    return block->rows.prefix + (is_of_prefix(block, tile) ? 0 : block->rows.keys);
}

__device__ __forceinline__ int tile_of(const struct block *block, int key)
{
    if (!PREFIX || key < block->rows.prefix)
        return key / BN;
    return block->prefix_tiles + (key - block->rows.prefix) / BN;
}

/* Whether every row sees all keys of a tile. */
__device__ __forceinline__ bool is_whole(const struct block *block, int tile)
{
    int key = key_of(block, tile), end = block->whole_end;
    if (PREFIX)
        end = min(end, end_of(block, tile));
    return key >= block->whole_begin && key + BN <= end;
}

#if PREFIX
#include "attention_cache.cuh"
#else
struct fetched {
};
#define find_cache(args, block)
#define read_first_ids(args, block)
#define read_ids(args, block, tile)
#define fetch(fetched, args, block, tile) (void)(fetched)
#define put_fetched(fetched, block, stages, tile)
#define apply_wild_factors(block, stages, tile)
#endif

__device__ __forceinline__ const char *head_at(const struct block_rows *rows,
                                               const struct attention_rows *array)
{
    return (const char *)array->data + (VARLEN ? 0 : rows->sequence * array->sequence) +
           rows->k_begin * array->token + rows->kv_head * array->head;
}

/* False: there is nothing to do. */
__device__ __forceinline__ bool find_block(const struct attention_cuda_args *args,
                                           struct block *block)
{
    struct block_rows *rows = &block->rows;
    if (!find_rows(args, rows))
        return false;
    struct seen first = seen_by(args, rows, rows->first);
    struct seen last = seen_by(args, rows, min(rows->first + BM, rows->count) - 1);
    block->k = head_at(rows, &args->k), block->v = head_at(rows, &args->v);
    block->whole_begin = last.begin, block->whole_end = first.end;
    find_cache(args, block);
    block->begin = tile_of(block, first.begin);
    block->end = last.end > 0 ? tile_of(block, last.end - 1) + 1 : 0;
    return true;
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Zeros where a row does not exist. */
__device__ __forceinline__ void read_q(const struct attention_cuda_args *args,
                                       const struct block_rows *rows, uint32_t to)
{
    if (!PACK) {
        const char *first =
            (const char *)args->q.data + offset_of(args, rows, &args->q, rows->first);
        copy_tile<BM, Q_PITCH, ALIGN_Q>(to, first, args->q.token, rows->count - rows->first);
        return;
    }
    uint32_t thread = copier_again();
    int line = thread / GROUP_CHUNKS(Q_PITCH), chunk = thread % GROUP_CHUNKS(Q_PITCH);
    to += tile_at<LINE_BYTES(Q_PITCH)>(line, chunk);
    constexpr int passes = PASSES(BM, Q_PITCH), at_once = ALIGN_Q < 4 ? 1 : passes;
#pragma unroll(at_once)
    for (int pass = 0; pass < passes; pass++, line += PASS_LINES(Q_PITCH)) {
        int row = rows->first + line;
        bool exists = row < rows->count && line < BM;
        const char *from = (const char *)args->q.data + chunk * 16 +
                           (exists ? offset_of(args, rows, &args->q, row) : 0);
        if (BM % PASS_LINES(Q_PITCH) && line >= BM)
            break;
#pragma unroll
        for (int group = 0; group < GROUPS(Q_PITCH); group++)
            copy_chunk<ALIGN_Q>(to + group * GROUP_BYTES(BM, Q_PITCH),
                                from + group * GROUP_CHUNKS(Q_PITCH) * 16, exists);
        to += PASS_LINES(Q_PITCH) * LINE_BYTES(Q_PITCH);
    }
}

/* Start copies of a tile, if there is such a one and it is copied as it is. */
__device__ __forceinline__ void read_k(const struct attention_cuda_args *args,
                                       const struct block *block, uint32_t stages, int tile)
{
    if (tile >= block->end)
        return;
#if PREFIX
    if (is_of_prefix(block, tile)) {
        copy_cache<Q_PITCH, ALIGN_K_CACHE>(stage_of(stages, tile), args, &args->k_cache,
                                           block->k_cache, block, tile);
        return;
    }
#endif
    int first = key_of(block, tile) - block->rows.prefix;
    copy_tile<BN, Q_PITCH, ALIGN_K>(stage_of(stages, tile), block->k + first * args->k.token,
                                    args->k.token, block->rows.keys - first);
}

__device__ __forceinline__ void read_v(const struct attention_cuda_args *args,
                                       const struct block *block, uint32_t stages, int tile)
{
    if (tile >= block->end)
        return;
#if PREFIX
    if (is_of_prefix(block, tile)) {
        copy_cache<V_PITCH, ALIGN_V_CACHE>(stage_of(stages, tile) + K_BYTES, args, &args->v_cache,
                                           block->v_cache, block, tile);
        return;
    }
#endif
    int first = key_of(block, tile) - block->rows.prefix;
    copy_tile<BN, V_PITCH, ALIGN_V>(stage_of(stages, tile) + K_BYTES,
                                    block->v + first * args->v.token, args->v.token,
                                    block->rows.keys - first);
}

/* ---- Factors --------------------------------------------------------------------------------- */

/* Of a tile's scores: sign ahead of scale, which is above 0; with a softcap inner ahead of tanh. */
struct score_factors {
    float scale, sign, inner;
};

__device__ __forceinline__ struct score_factors factors_of(const struct attention_cuda_args *args,
                                                           const struct block *block, int tile)
{
    struct score_factors factors = { args->factor, args->sign, args->inner };
#if PREFIX
    if (KV_SCALE && is_of_prefix(block, tile))
        multiply_factors(&factors.scale, &factors.sign, &factors.inner, block->k_scale);
#endif
    return factors;
}
#endif
