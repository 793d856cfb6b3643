/* Rows of tokens weighed and added: blocks walk over the accesses of the output in strides of the
 * grid, so a grid of any size is right.
 *
 *     access   ACCESS bytes of a row, as wide as the alignment of in and out allows: one thread's;
 *              what is left at the end of a row is added an element at a time
 *
 * One division of 64 bits a tile gives its first token; what a thread divides then is 32 bits. */
#include "common/cuda/launch.cuh"
#include "moe/moe_combine.cuh"

#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 8
#endif

#define ELEMENTS (ACCESS / DT_SIZE(DTYPE))
static_assert(ELEMENTS >= 1, "an access holds an element");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_combine(const __grid_constant__ struct moe_combine_args args)
{
    const uint32_t each = (args.width + ELEMENTS - 1) / ELEMENTS; /* accesses of a row */
    const int64_t accesses = args.tokens * each;
#if __CUDA_ARCH__ >= 900
    launch_wait();
    launch_dependents();
#endif
    for (int64_t first = (int64_t)blockIdx.x * THREADS; first < accesses;
         first += (int64_t)gridDim.x * THREADS) {
        int64_t token = first / each;
        uint32_t rest = (uint32_t)(first - token * each) + threadIdx.x;
        token += rest / each;
        int column = rest % each * ELEMENTS;
        if (token >= args.tokens)
            continue;
        if (column + ELEMENTS <= args.width)
            moe_combine_columns<ACCESS, UNROLL>(args, token, column);
#pragma unroll 1
        for (; column + ELEMENTS > args.width && column < args.width; column++)
            moe_combine_columns<DT_SIZE(DTYPE), 1>(args, token, column);
    }
}
