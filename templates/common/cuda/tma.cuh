/* TMA: the copy engine moves boxes of a tensor between global and shared memory (PTX ISA
 * 9.7.9.25). sm_90 and up; multicast belongs on sm_90a and sm_100a only.
 *
 * The tensor map (128 bytes, 64-byte aligned, in the kernel's __grid_constant__ argument) was
 * encoded by the host. Coordinates are elements, innermost first, and may lie outside the tensor:
 * loads give zeros there and stores leave it out, yet a load always credits its barrier with the
 * whole box's bytes; but x is a multiple of 16 bytes, or the load is an illegal instruction (seen
 * on sm_90). One thread issues; shared addresses are multiples of 128 bytes, of 1024 where the box
 * is swizzled over 128 bytes. */
#ifndef QN_CUDA_TMA_CUH
#define QN_CUDA_TMA_CUH
#include "common/types.h"

__device__ __forceinline__ void tma_prefetch_map(const void *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Contiguous bytes, a multiple of 16 of them at such addresses, with no map. */
__device__ __forceinline__ void bulk_load(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* Box at (x, y, z) of a 3-D map into `to`; `barrier` is told of its bytes. */
__device__ __forceinline__ void tma_load_3d(uint32_t to, const void *map, uint32_t barrier,
                                            int32_t x, int32_t y, int32_t z)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The same into every block of the cluster whose rank's bit is set in `mask`, at the same offset,
 * telling each one's own barrier. */
__device__ __forceinline__ void tma_multicast_3d(uint32_t to, const void *map, uint32_t barrier,
                                                 int32_t x, int32_t y, int32_t z, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
                 : "memory");
}

/* Shared memory to the box at (x, y, z), none of which is negative: that is an illegal instruction
 * (seen on sm_90). What was written there by ordinary stores needs
 * tma_store_fence() by every thread that wrote, then a barrier, before this. */
__device__ __forceinline__ void tma_store_3d(const void *map, uint32_t from, int32_t x, int32_t y,
                                             int32_t z)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            map),
        "r"(from), "r"(x), "r"(y), "r"(z)
        : "memory");
}

/* Ordinary stores to shared memory become visible to TMA and wgmma. */
__device__ __forceinline__ void tma_store_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Stores issued by this thread since the last commit form a group. */
__device__ __forceinline__ void tma_store_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* At most `groups` of this thread's groups still read shared memory. */
template <int groups> __device__ __forceinline__ void tma_store_wait_read(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(groups) : "memory");
}
#endif
