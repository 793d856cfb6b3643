/* Which tiles a block of grouped_gemm_sm90 works on.
 *
 *     form=offsets   rows offsets[e] to offsets[e + 1] are expert e's; an offset counts as the
 *     form=masked    largest of those up to it. Or the first counts[e] rows of matrix e
 *         blocks_scan(): every block counts the experts' tiles of rows, once
 *         segments[e]   first row and the row behind the last
 *         ends[e]       tiles of rows of the experts 0 to e; an expert without rows has none
 *     form=blocks    rows come in blocks of BLOCK, each with its expert: nothing to count
 *
 * Tiles of an expert (of all blocks) follow one another. Among them, groups of GROUP along the
 * rows, within a group first along the rows: those that run at the same time share rows of a and
 * of b. A block takes every gridDim.x-th.
 *
 * Expects TILE_ROWS and TILE_COLUMNS of d, FORM, BLOCK, GROUP and THREADS. */
#ifndef GROUPED_GEMM_SM90_TILES_CUH
#define GROUPED_GEMM_SM90_TILES_CUH
#include "moe/grouped_gemm_sm90_args.h"

#define FORM_OFFSETS 0
#define FORM_BLOCKS 1
#define FORM_MASKED 2
#define WARPS (THREADS / 32)
#define TILES_OF_BLOCK ((BLOCK + TILE_ROWS - 1) / TILE_ROWS)
static_assert(WARPS * 4 <= GROUPED_GEMM_SM90_SCAN_BYTES, "a word a warp");

struct segment {
    int32_t begin, end;
};

struct tiles {
    uint32_t count;
    int32_t rows; /* form=blocks: rows in use */
    struct segment *segments;
    int32_t *ends;
};

struct tile {
    int32_t expert; /* -1: rows of zeros */
    int32_t row, end, column;
};

/* ---- Counting ------------------------------------------------------------------------------ */

template <bool is_sum> __device__ __forceinline__ int32_t joined(int32_t x, int32_t y)
{
    return is_sum ? x + y : max(x, y);
}

/* The sum (or the largest, at least 0) of `value` of all threads before this one; by all threads.
 * Values are not negative. */
template <bool is_sum> __device__ __forceinline__ int32_t before(int32_t value, int32_t *words)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        int32_t other = __shfl_up_sync(0xffffffff, value, distance);
        value = lane >= distance ? joined<is_sum>(value, other) : value;
    }
    if (lane == 31)
        words[warp] = value;
    int32_t result = __shfl_up_sync(0xffffffff, value, 1);
    result = lane ? result : 0;
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < warp; i++)
        result = joined<is_sum>(result, words[i]);
    __syncthreads();
    return result;
}

__device__ __forceinline__ int32_t within(int32_t row, int32_t m)
{
    return min(max(row, 0), m);
}

__device__ __forceinline__ int32_t row_tiles(const struct segment *segment)
{
    return (segment->end - segment->begin + TILE_ROWS - 1) / TILE_ROWS;
}

/* Segments of the experts [first, end), of which this thread has these. */
__device__ __forceinline__ void find_segments(const struct grouped_gemm_sm90_args *args,
                                              const struct tiles *tiles, int32_t *words,
                                              int32_t first, int32_t end)
{
    if (FORM == FORM_MASKED) {
#pragma unroll 1
        for (int32_t e = first; e < end; e++)
            tiles->segments[e] = { 0, within(args->groups[e], args->m) };
        return;
    }
    int32_t most = 0;
#pragma unroll 1
    for (int32_t e = first; e < end; e++) {
        most = max(most, within(args->groups[e], args->m));
        tiles->segments[e].begin = most;
    }
    int32_t earlier = before<false>(most, words);
#pragma unroll 1
    for (int32_t e = first; e < end; e++) {
        int32_t begin = max(earlier, tiles->segments[e].begin);
        tiles->segments[e] = { begin, max(begin, within(args->groups[e + 1], args->m)) };
    }
}

/* By all threads. `memory`: what GROUPED_GEMM_SM90_SCAN_BYTES and _EXPERT_BYTES say. */
__device__ __forceinline__ struct tiles blocks_scan(const struct grouped_gemm_sm90_args *args,
                                                    void *memory)
{
    if (FORM == FORM_BLOCKS) {
        int32_t rows = within(*args->num_rows, args->m), blocks = (rows + BLOCK - 1) / BLOCK;
        return { (uint32_t)(blocks * TILES_OF_BLOCK) * args->tiles_n, rows, nullptr, nullptr };
    }
    int32_t *words = (int32_t *)memory;
    struct segment *segments = (struct segment *)(words + GROUPED_GEMM_SM90_SCAN_BYTES / 4);
    struct tiles tiles = { 0, 0, segments, (int32_t *)(segments + args->experts) };
    const int32_t each = (args->experts + THREADS - 1) / THREADS;
    const int32_t first = min((int32_t)threadIdx.x * each, args->experts);
    const int32_t end = min(first + each, args->experts);
    find_segments(args, &tiles, words, first, end);
    int32_t sum = 0;
#pragma unroll 1
    for (int32_t e = first; e < end; e++)
        sum += row_tiles(&segments[e]);
    sum = before<true>(sum, words);
#pragma unroll 1
    for (int32_t e = first; e < end; e++)
        tiles.ends[e] = sum += row_tiles(&segments[e]);
    __syncthreads();
    tiles.count = (uint32_t)tiles.ends[args->experts - 1] * args->tiles_n;
    return tiles;
}

/* ---- Walking ------------------------------------------------------------------------------- */

struct walk {
    uint32_t work;  /* the next tile */
    int32_t expert; /* form=blocks: its expert, read ahead */
};

/* The expert of row tile `index`, by a whole warp: the first whose `ends` is beyond it. At most
 * 1024 experts: the last of each 32 first. */
__device__ __forceinline__ int32_t find_expert(const struct grouped_gemm_sm90_args *args,
                                               const struct tiles *tiles, int32_t index)
{
    const int32_t lane = threadIdx.x % 32, last = args->experts - 1;
    int32_t end = tiles->ends[min(lane * 32 + 31, last)];
    int32_t first = __popc(__ballot_sync(0xffffffff, end <= index)) * 32;
    end = tiles->ends[min(first + lane, last)];
    return min(first + __popc(__ballot_sync(0xffffffff, end <= index)), last);
}

struct place {
    int32_t row, column; /* in tiles */
};

/* Tile `unit` of those of `height` tiles of rows. */
__device__ __forceinline__ struct place place_of(const struct grouped_gemm_sm90_args *args,
                                                 uint32_t unit, uint32_t height)
{
    uint32_t first = unit / (GROUP * args->tiles_n) * GROUP;
    uint32_t inner = unit - first * args->tiles_n, rows = min(height - first, (uint32_t)GROUP);
    return { (int32_t)(first + inner % rows), (int32_t)(inner / rows) };
}

__device__ __forceinline__ void expert_ahead(const struct grouped_gemm_sm90_args *args,
                                             const struct tiles *tiles, struct walk *walk)
{
    if (FORM != FORM_BLOCKS || walk->work >= tiles->count)
        return;
    struct place place = place_of(args, walk->work, tiles->count / args->tiles_n);
    int32_t expert = args->groups[place.row / TILES_OF_BLOCK];
    walk->expert = expert >= 0 && expert < args->experts ? expert : -1;
}

__device__ __forceinline__ struct walk walk_begin(const struct grouped_gemm_sm90_args *args,
                                                  const struct tiles *tiles)
{
    struct walk walk = { blockIdx.x, 0 };
    expert_ahead(args, tiles, &walk);
    return walk;
}

/* The block's next tile; by whole warps. False: there is none. */
__device__ __forceinline__ bool walk_next(const struct grouped_gemm_sm90_args *args,
                                          const struct tiles *tiles, struct walk *walk,
                                          struct tile *tile)
{
    if (walk->work >= tiles->count)
        return false;
    if (FORM == FORM_BLOCKS) {
        struct place place = place_of(args, walk->work, tiles->count / args->tiles_n);
        int32_t block = place.row / TILES_OF_BLOCK, first = block * BLOCK;
        tile->expert = walk->expert;
        tile->row = first + place.row % TILES_OF_BLOCK * TILE_ROWS;
        tile->end = min(first + BLOCK, tiles->rows);
        tile->column = place.column * TILE_COLUMNS;
    } else {
        tile->expert = find_expert(args, tiles, (int32_t)(walk->work / args->tiles_n));
        const struct segment segment = tiles->segments[tile->expert];
        int32_t tile_count = row_tiles(&segment);
        uint32_t first = tiles->ends[tile->expert] - tile_count;
        struct place place = place_of(args, walk->work - first * args->tiles_n, tile_count);
        tile->row = segment.begin + place.row * TILE_ROWS;
        tile->end = segment.end;
        tile->column = place.column * TILE_COLUMNS;
    }
    walk->work += gridDim.x;
    expert_ahead(args, tiles, walk);
    return true;
}
#endif
