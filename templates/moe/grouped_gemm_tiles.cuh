/* Which tiles there are, found on the device from offsets, counts or expert_ids, and what walks
 * over them. A tile is BM rows of one expert, or what is left of it, by N columns of d; experts
 * without rows have none.
 *
 *     expert       0           2     3                  a row of tiles: those of the same rows
 *     rows      |  BM | BM |.| BM | .|
 *     first     0             3     4 5                 rows of tiles before an expert, in shared
 *                                                       memory, and where its rows begin
 *
 * Tiles are numbered expert by expert. Within one they are taken GROUP rows of tiles at a time,
 * down each column of the group, so that blocks which run at the same time need few distinct rows
 * of a and columns of b, and find them in L2. With FORM_BLOCKS the blocks of rows are known
 * without a list, and a group may span experts.
 *
 * Before including, define FORM, BM and GROUP. */
#ifndef GROUPED_GEMM_TILES_CUH
#define GROUPED_GEMM_TILES_CUH
#include "common/types.h"

#define FORM_OFFSETS 0
#define FORM_BLOCKS 1
#define FORM_MASKED 2

/* The list, in shared memory: two arrays of experts + 1. */
struct tile_list {
    int *first;  /* rows of tiles before expert e; at [experts]: of all */
    int *border; /* FORM_OFFSETS: where its rows begin; FORM_MASKED: how many it has */
};

struct tile {
    int expert;      /* -1: its rows become zeros */
    int row, rows;   /* the first of d, or of the expert's with FORM_MASKED; how many there are */
    int column_tile; /* its place along n */
};

__device__ __forceinline__ int clamp_int(int value, int least, int most)
{
    return max(least, min(value, most));
}

/* What the threads before this one have, all together: the largest, at least 0, or the sum.
 * scratch: an int for each warp, another one for each call. */
template <int threads, bool is_max>
__device__ __forceinline__ int scan_before(int value, int *scratch)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, before = 0, sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffff, sum, step);
        sum = lane < step ? sum : is_max ? max(sum, other) : sum + other;
    }
    if (lane == 31)
        scratch[warp] = sum;
    sum = __shfl_up_sync(0xffffffff, sum, 1);
    sum = lane ? sum : 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < threads / 32; i++) {
        int other = scratch[i];
        before = i >= warp ? before : is_max ? max(before, other) : before + other;
    }
    return is_max ? max(before, sum) : before + sum;
}

/* By all threads of the block; ends in a barrier. Offsets that fall back are raised to the largest
 * so far, so that no row has two experts. */
template <int threads>
__device__ __forceinline__ void tile_list_make(const struct tile_list *list, const int32_t *given,
                                               int experts, int m)
{
    __shared__ int scratch[2][threads / 32];
    int share = (experts + threads) / threads; /* of experts + 1 */
    int begin = threadIdx.x * share, end = min(begin + share, experts + 1), largest = 0, sum = 0;
    if (FORM == FORM_OFFSETS) {
        for (int e = begin; e < end; e++)
            largest = max(largest, clamp_int(given[e], 0, m));
        largest = scan_before<threads, true>(largest, scratch[0]);
    }
    for (int e = begin; e < end; e++) {
        int value = FORM == FORM_OFFSETS || e < experts ? clamp_int(given[e], 0, m) : 0;
        largest = max(largest, value);
        list->border[e] = FORM == FORM_OFFSETS ? largest : value;
    }
    __syncthreads();
    for (int e = begin; e < min(end, experts); e++) {
        int rows = FORM == FORM_OFFSETS ? list->border[e + 1] - list->border[e] : list->border[e];
        list->first[e] = sum;
        sum += (rows + BM - 1) / BM;
    }
    sum = scan_before<threads, false>(sum, scratch[1]);
    for (int e = begin; e < min(end, experts); e++)
        list->first[e] += sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        int last = experts - 1;
        int rows = list->border[experts] - list->border[last];
        rows = FORM == FORM_OFFSETS ? rows : list->border[last];
        list->first[experts] = list->first[last] + (rows + BM - 1) / BM;
    }
    __syncthreads();
}

/* FORM_BLOCKS: rows of tiles in a block of rows, and rows in use. */
struct row_blocks {
    int block, tiles, rows;
};

__device__ __forceinline__ struct row_blocks row_blocks_make(int block, const int32_t *num_rows,
                                                             int m)
{
    return { block, (block + BM - 1) / BM, clamp_int(*num_rows, 0, m) };
}

__device__ __forceinline__ int rows_of_tiles(const struct row_blocks *blocks)
{
    return blocks->rows / blocks->block * blocks->tiles +
           (blocks->rows % blocks->block + BM - 1) / BM;
}

/* Tile `index` of `m_tiles` rows of n_tiles each: its row of tiles, and its place in that. */
__device__ __forceinline__ int row_of_tile(uint32_t index, uint32_t m_tiles, uint32_t n_tiles,
                                           int *column_tile)
{
    uint32_t group = index / (GROUP * n_tiles) * GROUP, within = index - group * n_tiles;
    uint32_t rows = min(m_tiles - group, (uint32_t)GROUP);
    *column_tile = within / rows;
    return group + within % rows;
}

__device__ __forceinline__ struct tile tile_in_list(const struct tile_list *list, int experts,
                                                    uint32_t index, uint32_t n_tiles)
{
    int row = index / n_tiles, low = 0, high = experts; /* first[low] <= row < first[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        (list->first[middle] <= row ? low : high) = middle;
    }
    struct tile tile = { low };
    int first = list->first[low], begin = FORM == FORM_OFFSETS ? list->border[low] : 0;
    int end = FORM == FORM_OFFSETS ? list->border[low + 1] : list->border[low];
    row = row_of_tile(index - first * n_tiles, list->first[low + 1] - first, n_tiles,
                      &tile.column_tile);
    tile.row = begin + row * BM;
    tile.rows = min(BM, end - tile.row);
    return tile;
}

__device__ __forceinline__ struct tile tile_of_blocks(const struct row_blocks *blocks,
                                                      const int32_t *expert_ids, int experts,
                                                      uint32_t index, uint32_t n_tiles)
{
    struct tile tile;
    int row = row_of_tile(index, rows_of_tiles(blocks), n_tiles, &tile.column_tile);
    int block = row / blocks->tiles, expert = expert_ids[block];
    tile.expert = expert < experts ? max(expert, -1) : -1;
    tile.row = block * blocks->block + row % blocks->tiles * BM;
    tile.rows = min(BM, min((block + 1) * blocks->block, blocks->rows) - tile.row);
    return tile;
}
#endif
