/* Slots sorted by expert in two steps, of which the first is skipped where slots are few. A block
 * has a chunk of the slots; blocks beyond the chunks help with the rows that no slot has.
 *
 * Each waits for the kernel ahead, which may still write the ids or read what is written here. */
#include "common/cuda/launch.cuh"
#include "moe/moe_align.cuh"

static __device__ __forceinline__ void wait_for_ids(void)
{
#if __CUDA_ARCH__ >= 900
    launch_wait();
    launch_dependents();
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_align_count(const __grid_constant__ struct moe_align_args args)
{
    extern __shared__ int32_t shared[];
    const int64_t begin = (int64_t)blockIdx.x * args.chunk;
    const int end = (int)min(begin + args.chunk, (int64_t)args.slots);
    for (int b = threadIdx.x; b <= args.experts; b += THREADS)
        shared[b] = 0;
    wait_for_ids();
    __syncthreads();
#pragma unroll 2
    for (int i = (int)begin + threadIdx.x; i < end; i += THREADS)
        atomicAdd(&shared[moe_align_bucket(args, i)], 1);
    __syncthreads();
    for (int b = threadIdx.x; b <= args.experts; b += THREADS)
        args.counts[blockIdx.x * (int64_t)(args.experts + 1) + b] = shared[b];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_align_sort(const __grid_constant__ struct moe_align_args args)
{
    extern __shared__ int32_t shared[];
    moe_align_blocks(args, blockIdx.x, gridDim.x, shared, [] { wait_for_ids(); });
}
