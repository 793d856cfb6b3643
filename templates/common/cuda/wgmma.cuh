/* wgmma, what every shape shares: descriptors of tiles in shared memory, and the order of things.
 * sm_90a only; all four warps of an aligned warpgroup execute each of these together.
 *
 *     wgmma_fence        before the first, and when registers were touched since
 *     issue ...          wgmma_shape.cuh; those into the same accumulators need nothing between
 *     wgmma_commit       they form a group
 *     wgmma_wait<n>      at most n groups are unfinished; the others' accumulators may be read
 *
 * Tiles written by TMA need the barrier's wait and no more; those written by ordinary stores need
 * tma_store_fence() by every writer and a barrier.
 *
 * Tiles are swizzled over 128 bytes (swizzle.cuh) and start at a multiple of 1024 bytes, but for
 * plain ones:
 *     along K       row r is 128 bytes: 64 16-bit elements of K. 8 rows are 1024 bytes
 *     along M or N  64 16-bit elements of M or N by BK rows of K; the next 64 follow after BK * 128
 *                   bytes */
#ifndef QN_CUDA_WGMMA_CUH
#define QN_CUDA_WGMMA_CUH
#include "common/types.h"

#define WGMMA_SWIZZLE_128 (1ull << 62)

/* PTX ISA 9.7.15.5.1.2.2: address, leading and stride byte offsets, in units of 16 bytes. */
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t tile, uint32_t leading,
                                                     uint32_t stride)
{
    return WGMMA_SWIZZLE_128 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 |
           (tile & 0x3FFFF) >> 4;
}

/* A tile that is contiguous along K. Within it 32 bytes of K are 2 units further, 64 rows 512. */
__device__ __forceinline__ uint64_t wgmma_along_k(uint32_t tile)
{
    return wgmma_descriptor(tile, 16, 1024);
}

/* A 16-bit tile that is contiguous along M or N, BK rows of K a column of 64. 16 rows of K are 128
 * units further, 64 of M or N are 8 BK. */
template <int bk> __device__ __forceinline__ uint64_t wgmma_along_mn(uint32_t tile)
{
    return wgmma_descriptor(tile, bk * 128, 1024);
}

/* A 16-bit tile along K that is not swizzled: pieces of 8 rows by 8 of K, 128 contiguous bytes, a
 * row 16. The next 8 of K are `next_k` bytes further, the next 8 rows `next_rows`. */
__device__ __forceinline__ uint64_t wgmma_plain(uint32_t tile, uint32_t next_k, uint32_t next_rows)
{
    return (uint64_t)(next_rows >> 4) << 32 | (uint64_t)(next_k >> 4) << 16 | (tile & 0x3FFFF) >> 4;
}

__device__ __forceinline__ void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int groups> __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

/* Keeps the compiler from moving reads of an accumulator across a wait. */
template <int count> __device__ __forceinline__ void wgmma_hold(float (&d)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}
#endif
