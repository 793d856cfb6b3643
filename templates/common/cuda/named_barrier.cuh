/* Barriers 1 to 15 among some of a block's warps; 0 is __syncthreads(). `threads` counts all that
 * take part, arriving and waiting, and is a multiple of 32. Ids are given out by the kernel, in one
 * place. */
#ifndef QN_CUDA_NAMED_BARRIER_CUH
#define QN_CUDA_NAMED_BARRIER_CUH

__device__ __forceinline__ void named_barrier_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
#endif
