/* What a block of mla_decode computes, one tile of TILE rows of the cache after the other, and
 * where those rows are.
 *
 * A unit is BM rows of o: query tokens times heads, in this order; with indices, which each query
 * has of its own, heads of one query. blockIdx.y is the unit, blockIdx.x a share of the line in
 * which all sequences' tiles stand (common/cuda/split_kv.cuh, with one unit a sequence: blocks of
 * the same share and other units read the same rows at the same time, so that L2 has them). With
 * DETERMINISTIC it is pieces that stand in the line, and a piece is tiles of one sequence.
 *
 * A sequence has a tile at least, so that one of no rows is somebody's too. */
#ifndef MLA_DECODE_ITEMS_CUH
#define MLA_DECODE_ITEMS_CUH
#include "common/cuda/convert.cuh"
#include "common/cuda/split_kv.cuh"
#include "mla/mla_decode_cuda_args.h"

#define UNIT_ROWS (HAS_TOPK ? HQ : SQ * HQ)
#define PIECE_TILES (MLA_PIECE_TOKENS / TILE)

__device__ __forceinline__ int length_of(const struct mla_cuda_args *args, int sequence)
{
    if (HAS_TOPK)
        return args->mla.pages ? (int)args->mla.topk : 0;
    int64_t most = args->mla.pages ? args->mla.max_pages * PAGE : 0;
    return (int)min(max((int64_t)args->mla.seq_lens[sequence], (int64_t)0), most);
}

__device__ __forceinline__ int tiles_of(int length)
{
    return max((length - 1) / TILE + 1, 1);
}

/* Of a piece of a sequence of so many tiles. */
__device__ __forceinline__ int piece_tiles(int tiles)
{
    return max(PIECE_TILES, (tiles + MLA_MOST_PIECES - 1) / MLA_MOST_PIECES);
}

/* What a sequence has in the line. */
struct line {
    const struct mla_cuda_args *args;
    __device__ __forceinline__ int operator()(int sequence) const
    {
        int tiles = tiles_of(length_of(args, sequence));
        return DETERMINISTIC ? (tiles + piece_tiles(tiles) - 1) / piece_tiles(tiles) : tiles;
    }
};

/* A walk over the block's share: an item is its part of one sequence. */
struct walk {
    struct split_kv_unit unit;
    int64_t x, end, share; /* the item's place in the line, and where the share ends */
    int tile, tiles_end;   /* the next tile of the sequence, and past the item's last */
    int first_tile;        /* of the item */
    int length;
    const int32_t *table; /* pages, or indices, of the sequence */
};

__device__ __forceinline__ bool walk_has(const struct walk *walk)
{
    return walk->x < walk->end;
}

__device__ __forceinline__ void walk_begin_item(struct walk *walk, const struct mla_cuda_args *args)
{
    if (!walk_has(walk))
        return;
    int sequence = walk->unit.sequence, place = (int)(walk->x - walk->unit.first);
    walk->length = length_of(args, sequence);
    int tiles = tiles_of(walk->length);
    if (DETERMINISTIC) {
        walk->tile = place * piece_tiles(tiles);
        walk->tiles_end = min(walk->tile + piece_tiles(tiles), tiles);
    } else {
        walk->tile = place;
        walk->tiles_end = (int)min(walk->end - walk->unit.first, (int64_t)tiles);
    }
    walk->first_tile = walk->tile;
    walk->table = HAS_TOPK ? args->mla.indices + sequence / SQ * args->mla.indices_sequence +
                                 sequence % SQ * args->mla.indices_token
                           : args->mla.page_table + sequence * args->mla.table_sequence;
}

/* By whole warps. */
__device__ __forceinline__ struct walk walk_begin(const struct mla_cuda_args *args)
{
    const struct line line = { args };
    struct walk walk = {};
    int64_t total = split_sum(line, 0, args->sequences);
    walk.share = split_share(total, gridDim.x, args->least);
    walk.x = blockIdx.x * walk.share;
    walk.end = min(walk.x + walk.share, total);
    walk.unit = split_find(line, args->sequences, 1, walk.x);
    walk_begin_item(&walk, args);
    return walk;
}

/* To the next tile. */
__device__ __forceinline__ void walk_next(struct walk *walk, const struct mla_cuda_args *args)
{
    const struct line line = { args };
    if (++walk->tile < walk->tiles_end)
        return;
    int64_t unit_end = walk->unit.first + walk->unit.tiles;
    walk->x = DETERMINISTIC ? walk->x + 1 : unit_end;
    if (walk->x >= unit_end && walk_has(walk))
        split_next(&walk->unit, line, args->sequences, 1);
    walk_begin_item(walk, args);
}

/* Whose results an item's are: of a sequence, to o, or of a part of it to a slot. */
struct part {
    int64_t slot; /* -1: all of the sequence, no other block has any of it */
    int sequence;
};

__device__ __forceinline__ struct part walk_part(const struct walk *walk)
{
    const bool is_whole = DETERMINISTIC
                              ? walk->unit.tiles == 1
                              : walk->first_tile == 0 && walk->tiles_end == walk->unit.tiles;
    int64_t slot = DETERMINISTIC ? walk->x : split_slot(walk->x, walk->share);
    return { is_whole ? -1 : slot * gridDim.y + blockIdx.y, walk->unit.sequence };
}

/* What the combine has to know, by one warp. */
__device__ __forceinline__ void walk_record(const struct mla_cuda_args *args,
                                            const struct walk *walk)
{
    const struct line line = { args };
    if (blockIdx.y)
        return;
    if (DETERMINISTIC)
        split_record_before(args->space, line, args->sequences);
    else if (threadIdx.x % 32 == 0)
        split_record(args->space, walk->unit, walk->share);
}

/* ---- Rows of the cache ----------------------------------------------------------------------- */

/* What the table has for a row of the sequence, to be asked for ahead. */
__device__ __forceinline__ int table_entry(const struct walk *walk, int row)
{
    if (row >= walk->length)
        return -1;
    return walk->table[HAS_TOPK ? row : row / PAGE];
}

/* The row itself; NULL: there is none. */
__device__ __forceinline__ const char *cache_row(const struct mla_cuda_args *args,
                                                 const struct walk *walk, int row, int entry)
{
    int64_t page = entry, place = row % PAGE;
    if (row >= walk->length)
        return nullptr;
    if (HAS_TOPK) {
        page = entry / PAGE, place = entry % PAGE;
        if (entry < 0 || page >= args->mla.pages)
            return nullptr;
    } else if (entry < 0 || page >= args->mla.pages) {
        page = 0;
    }
    int64_t offset = page * args->mla.cache_page + place * args->mla.cache_token;
    return (const char *)args->mla.kv_cache + offset * DT_SIZE(KV_DTYPE);
}

/* How many of the sequence's last `rows` rows of the cache row `row` of the unit sees. */
__device__ __forceinline__ int rows_seen(int rows, int row)
{
    int query = (blockIdx.y * BM + row) / HQ;
    return CAUSAL ? rows - SQ + 1 + query : rows;
}

/* All queries see all of the next TILE of these `rows` rows; some queries see fewer than others. */
__device__ __forceinline__ bool has_all_seen(int rows)
{
    return !HAS_TOPK && rows - (CAUSAL ? SQ - 1 : 0) >= TILE;
}

__device__ __forceinline__ bool has_partly_seen(int rows)
{
    return CAUSAL && !has_all_seen(rows);
}

/* ---- Rows of q and o ------------------------------------------------------------------------- */

/* Element offset of row `row` of the unit of a sequence in the line; -1: there is no such row. */
__device__ __forceinline__ int64_t heads_offset(const struct mla_heads &heads, int sequence,
                                                int unit, int row)
{
    int at = unit * BM + row, query = at / HQ;
    if (at >= UNIT_ROWS)
        return -1;
    if (HAS_TOPK)
        query = sequence % SQ, sequence = sequence / SQ;
    return sequence * heads.sequence + query * heads.token + at % HQ * heads.head;
}

/* ---- Results --------------------------------------------------------------------------------- */

#define MLA_LN2 0.6931471805599453f

__device__ __forceinline__ float log2_of(float x)
{
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* m, l: the largest score times log2 e, and the sum below it; 0 where nothing is seen. */
__device__ __forceinline__ void store_lse(const struct mla_cuda_args *args, int sequence, int unit,
                                          int row, float m, float l)
{
    int64_t offset = heads_offset(args->mla.lse, sequence, unit, row);
    if (HAS_LSE && offset >= 0)
        ((float *)args->mla.lse.data)[offset] = l == 0.0f ? SPLIT_NONE : (m + log2_of(l)) * MLA_LN2;
}

__device__ __forceinline__ float reciprocal_of_sum(float l)
{
    return l == 0.0f ? 0.0f : 1.0f / l;
}

/* `count` (2 or 4) values to o, in accesses of what it is aligned to. */
template <int count> __device__ __forceinline__ void store_o(char *to, const float (&values)[count])
{
    uint32_t words[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; i++)
        words[i] = DTYPE == DT_BF16 ? bf16x2_from_f32(values[2 * i], values[2 * i + 1])
                                    : f16x2_from_f32(values[2 * i], values[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < count / 2; i++) {
        if (ALIGN_O >= 4) {
            ((uint32_t *)to)[i] = words[i];
        } else {
            ((uint16_t *)to)[2 * i] = (uint16_t)words[i];
            ((uint16_t *)to)[2 * i + 1] = (uint16_t)(words[i] >> 16);
        }
    }
}

/* Where a row of the unit goes: to o, times a factor, or to the workspace as it is, or nowhere. */
struct row_place {
    char *o;
    float *sums;
    float factor;
};

/* l: the row's sum. */
__device__ __forceinline__ struct row_place row_place(const struct mla_cuda_args *args,
                                                      const struct part *part, int row, float l)
{
    if (part->slot >= 0)
        return { nullptr, args->space.o + (part->slot * BM + row) * MLA_DV, 1.0f };
    int64_t offset = heads_offset(args->mla.o, part->sequence, blockIdx.y, row);
    return { offset < 0 ? nullptr : (char *)args->mla.o.data + offset * 2, nullptr,
             reciprocal_of_sum(l) };
}

/* A pair of its columns. */
__device__ __forceinline__ void put_pair(const struct row_place &place, int column, float a,
                                         float b)
{
    const float values[2] = { a * place.factor, b * place.factor };
    if (place.sums)
        *(float2 *)(place.sums + column) = make_float2(values[0], values[1]);
    else if (place.o)
        store_o(place.o + column * 2, values);
}

/* By one thread of a row. */
__device__ __forceinline__ void put_sums(const struct mla_cuda_args *args, const struct part *part,
                                         int row, float m, float l)
{
    if (part->slot < 0)
        store_lse(args, part->sequence, blockIdx.y, row, m, l);
    else
        *(float2 *)(args->space.sums + (part->slot * BM + row) * 2) = make_float2(m, l);
}
#endif
