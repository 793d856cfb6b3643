/* Waiting in a test: a barrier that never completes is a wrong result after a second, not a device
 * that hangs. */
#ifndef FACT_WAIT_CUH
#define FACT_WAIT_CUH
#include "common/cuda/mbarrier.cuh"

__device__ __forceinline__ uint64_t fact_time_ns(void)
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__device__ __forceinline__ bool fact_wait(uint32_t barrier, uint32_t parity)
{
    uint64_t start = fact_time_ns();
    while (!mbarrier_try(barrier, parity)) {
        if (fact_time_ns() - start > 1000000000)
            return false;
    }
    return true;
}
#endif
