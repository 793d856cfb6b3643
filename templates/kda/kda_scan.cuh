/* kda_prefill_scan: where the chunks of each sequence begin in the workspace. */
#ifndef KDA_SCAN_CUH
#define KDA_SCAN_CUH
#include "kda_chunks.cuh"

#define KDA_SCAN_THREADS 1024

#if VARLEN
/* One block. Each thread has a run of sequences: their chunks are counted, the counts of all
 * threads added up, the runs gone through once more. */
extern "C" __global__ void __launch_bounds__(KDA_SCAN_THREADS)
    kda_prefill_scan(const __grid_constant__ struct kda_prefill_cuda_args args)
{
    __shared__ int64_t sums[KDA_SCAN_THREADS];
    int64_t run = (args.n + KDA_SCAN_THREADS - 1) / KDA_SCAN_THREADS;
    int64_t begin = min(threadIdx.x * run, args.n), end = min(begin + run, args.n), sum = 0;
    for (int64_t i = begin; i < end; i++)
        sum += (max((int64_t)0, border_of(&args, i + 1) - border_of(&args, i)) + CHUNK - 1) / CHUNK;
    sums[threadIdx.x] = sum;
    for (int distance = 1; distance < KDA_SCAN_THREADS; distance *= 2) {
        __syncthreads();
        int64_t before = (int)threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
        __syncthreads();
        sums[threadIdx.x] += before;
    }
    int64_t at = sums[threadIdx.x] - sum;
    for (int64_t i = begin; i < end; i++) {
        args.first[i] = (int32_t)min(at, args.chunks);
        at += (max((int64_t)0, border_of(&args, i + 1) - border_of(&args, i)) + CHUNK - 1) / CHUNK;
    }
    if (threadIdx.x == KDA_SCAN_THREADS - 1)
        args.first[args.n] = (int32_t)min(sums[threadIdx.x], args.chunks);
}
#endif
#endif
