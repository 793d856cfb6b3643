/* out[i] = alpha x[i], or out[i] += alpha x[i]: blocks of THREADS threads walk over the array in
 * strides of the grid, so a grid of any size is right.
 *
 *     tile     THREADS * UNROLL accesses, one block's at a time
 *     access   ACCESS bytes, as wide as the alignment of x and out allows
 *
 * A thread first issues UNROLL loads and only then stores: bytes in flight are what a GPU's memory
 * wants. out may be x itself, since every element is read and written by one thread.
 *
 * The file is compiled alone, after the plan's #defines; the defaults below let NVRTC check it as
 * it stands. A template includes no header of a toolkit.
 */
#include "common/cuda/convert.cuh"
#include "copy_args.h"

#ifndef DTYPE
#define DTYPE DT_F32
#endif
#ifndef INPLACE
#define INPLACE 0
#endif
#ifndef HAS_ALPHA
#define HAS_ALPHA 0
#endif
#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

#define ELEMENTS (ACCESS / DT_SIZE(DTYPE)) /* in an access */
static_assert(ELEMENTS >= 1 && ELEMENTS <= THREADS, "an access holds elements, a block its rest");

#if DT_SIZE(DTYPE) == 4
typedef uint32_t element_bits;
#else
typedef uint16_t element_bits;
#endif

/* What one load or store moves. A plain copy never looks inside: every bit pattern stays. */
union access {
    element_bits elements[ELEMENTS];
#if ACCESS == 16
    uint4 words;
#elif ACCESS == 8
    uint2 words;
#elif ACCESS == 4
    uint32_t words;
#else
    uint16_t words;
#endif
};

/* The new value of an element of out, given the old. */
static __device__ __forceinline__ element_bits combine(element_bits x, element_bits out,
                                                       float alpha)
{
    if (!INPLACE && !HAS_ALPHA)
        return x;
    float value = load_as_f32(DTYPE, &x);
    if (HAS_ALPHA)
        value *= alpha;
    if (INPLACE)
        value += load_as_f32(DTYPE, &out);
    store_from_f32(DTYPE, &x, value);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    copy_cuda(const __grid_constant__ struct copy_args args)
{
    const int64_t tile = THREADS * UNROLL, accesses = args.n / ELEMENTS;
    const union access *x = (const union access *)args.x;
    union access *out = (union access *)args.out;

    /* 1. Whole accesses. */
    for (int64_t first = blockIdx.x * tile; first < accesses; first += gridDim.x * tile) {
        union access value[UNROLL], old[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int64_t i = first + u * THREADS + threadIdx.x;
            if (i < accesses)
                value[u].words = x[i].words;
            if (INPLACE && i < accesses)
                old[u].words = out[i].words;
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int64_t i = first + u * THREADS + threadIdx.x;
#pragma unroll
            for (int e = 0; e < ELEMENTS; e++)
                value[u].elements[e] =
                    combine(value[u].elements[e], old[u].elements[e], args.alpha);
            if (i < accesses)
                out[i].words = value[u].words;
        }
    }

    /* 2. What is left, less than an access: an element a thread of the first block. */
    int64_t i = accesses * ELEMENTS + threadIdx.x;
    if (blockIdx.x == 0 && i < args.n) {
        const element_bits *from = (const element_bits *)args.x;
        element_bits *to = (element_bits *)args.out;
        to[i] = combine(from[i], to[i], args.alpha);
    }
}
