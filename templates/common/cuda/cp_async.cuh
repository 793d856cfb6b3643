/* cp.async: copies from global to shared memory that complete in groups (PTX ISA 9.7.9.25.3).
 * sm_80 and up. Each copies 16, 8 or 4 bytes between multiples of as many; only the first `bytes`
 * of them are read, the rest is zero. */
#ifndef QN_CUDA_CP_ASYNC_CUH
#define QN_CUDA_CP_ASYNC_CUH
#include "common/types.h"

__device__ __forceinline__ void cp_async_16(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_8(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_4(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

/* What this thread has started since the last call is one group. */
__device__ __forceinline__ void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `pending` of this thread's groups are under way; other threads see the data after
 * a barrier. */
template <int pending> __device__ __forceinline__ void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif
