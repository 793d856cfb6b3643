/* Tiles of q, k and v in shared memory, and copying rows into them.
 *
 * A line of a tile is a row of the array, `pitch` bytes of 16-bit elements. Its chunks of 16 bytes
 * trade places within groups of 8 (of 4 where lines are odd multiples of 64 bytes) such that the
 * eight lines of a ldmatrix lie in different banks:
 *
 *     chunk c of line l is at place  c ^ (l % 8)      or  c ^ (l / 2 % 4)
 *
 * A thread copies the same chunk of each group, of every (lines of a pass)th line. */
#ifndef ATTENTION_TILES_CUH
#define ATTENTION_TILES_CUH
#include "common/cuda/cp_async.cuh"
#include "common/cuda/load.cuh"

#ifndef COPIERS /* threads that copy a tile: 2^n, side by side from a multiple of that */
#define COPIERS THREADS
#endif
#ifndef IS_SPLIT /* 1: as wgmma reads them, a group of chunks of all lines, then the next */
#define IS_SPLIT 0
#endif

#define CHUNK_MASK(pitch) ((pitch) % 128 ? 3 : 7)
#define GROUP_CHUNKS(pitch) (CHUNK_MASK(pitch) + 1)
#define PASS_LINES(pitch) (COPIERS / GROUP_CHUNKS(pitch))
#define PASSES(lines, pitch) (((lines) + PASS_LINES(pitch) - 1) / PASS_LINES(pitch))
#define LINE_BYTES(pitch) (IS_SPLIT ? 128 : (pitch)) /* from a line to the next in a tile */
#define GROUP_BYTES(lines, pitch) (IS_SPLIT ? (lines)*128 : GROUP_CHUNKS(pitch) * 16)
#define GROUPS(pitch) ((pitch) / 16 / GROUP_CHUNKS(pitch))

template <int pitch> __device__ __forceinline__ uint32_t tile_at(uint32_t line, uint32_t chunk)
{
    uint32_t key = CHUNK_MASK(pitch) == 7 ? line & 7 : line >> 1 & 3;
    return line * pitch + ((chunk ^ key) << 4);
}

/* From the address of a chunk to that of the one `chunks` further, both even or both odd. */
template <int pitch> __device__ __forceinline__ uint32_t tile_step(uint32_t at, int chunks)
{
    return (at ^ (chunks & CHUNK_MASK(pitch)) << 4) + (chunks & ~CHUNK_MASK(pitch)) * 16;
}

/* ---- Chunks ---------------------------------------------------------------------------------- */

/* Of 2-byte elements at any of their multiples. */
__device__ __forceinline__ void copy_elements(uint32_t to, const char *from, int bytes)
{
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = 4 * i < bytes ? *(const uint16_t *)(from + 4 * i) : 0;
        words[i] |= 4 * i < bytes ? *(const uint16_t *)(from + 4 * i + 2) << 16 : 0;
    }
    store_shared_16(to, words);
}

/* 16 bytes, or zeros. */
template <int align>
__device__ __forceinline__ void copy_chunk(uint32_t to, const char *from, bool exists)
{
    if (align == 16)
        cp_async_16(to, from, exists ? 16 : 0);
#pragma unroll
    for (int i = 0; align == 8 && i < 16; i += 8)
        cp_async_8(to + i, from + i, exists ? 8 : 0);
#pragma unroll
    for (int i = 0; align == 4 && i < 16; i += 4)
        cp_async_4(to + i, from + i, exists ? 4 : 0);
    if (align < 4)
        copy_elements(to, from, exists ? 16 : 0);
}

/* ---- Rows one stride apart ------------------------------------------------------------------- */

/* threadIdx.x, such that nothing made of it is kept in registers from tile to tile. */
__device__ __forceinline__ uint32_t thread_again(void)
{
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

__device__ __forceinline__ uint32_t copier_again(void)
{
    return thread_again() % COPIERS;
}

/* A tile of rows `stride` bytes apart, of which `left` exist. */
template <int lines, int pitch, int align>
__device__ __forceinline__ void copy_tile(uint32_t to, const char *from, int64_t stride, int left)
{
    uint32_t thread = copier_again();
    int line = thread / GROUP_CHUNKS(pitch), chunk = thread % GROUP_CHUNKS(pitch);
    from += line * stride + chunk * 16;
    to += tile_at<LINE_BYTES(pitch)>(line, chunk);
    constexpr int passes = PASSES(lines, pitch), at_once = align < 4 ? 1 : passes;
#pragma unroll(at_once)
    for (int pass = 0; pass < passes; pass++) {
        if (lines % PASS_LINES(pitch) && line >= lines)
            break;
#pragma unroll
        for (int group = 0; group < GROUPS(pitch); group++)
            copy_chunk<align>(to + group * GROUP_BYTES(lines, pitch),
                              from + group * GROUP_CHUNKS(pitch) * 16, line < left);
        to += PASS_LINES(pitch) * LINE_BYTES(pitch);
        from += PASS_LINES(pitch) * stride;
        line += PASS_LINES(pitch);
    }
}
#endif
