/* silu_and_mul with a factor a row: a block has a row at a time, its threads the row's items in
 * turn.
 *
 *     1. a thread's first KEPT items are joined and kept; of further ones only the magnitude is
 *     2. the greatest magnitude of the block: the factor
 *     3. the codes of the kept items; the further ones are read and joined again */
#include "activation/silu_and_mul.cuh"

#ifndef KEPT
#define KEPT 2
#endif

#define WARPS (THREADS / 32)

/* Magnitudes compare as their bits do. One barrier: rows use the two halves of `shared` in turn. */
static __device__ __forceinline__ float block_greatest(float most, uint32_t *shared)
{
    uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(most));
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = bits;
    __syncthreads();
    bits = shared[threadIdx.x % WARPS];
    return __uint_as_float(__reduce_max_sync(~0u, bits));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    silu_and_mul_rows(const __grid_constant__ struct silu_and_mul_args args)
{
    __shared__ uint32_t shared[2][WARPS];
    int half = 0;
    for (int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x, half ^= 1) {
        float kept[KEPT][ITEM], most = 0.0f;
        struct halves halves[KEPT];
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t item = threadIdx.x + k * THREADS;
            halves[k] = {};
            if (item < args.items)
                load_item(halves[k], args, token, item);
        }
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            join(kept[k], halves[k], args);
            most = greatest(most, kept[k]);
        }
        for (uint32_t item = threadIdx.x + KEPT * THREADS; item < args.items; item += THREADS) {
            float values[ITEM];
            load_item(halves[0], args, token, item);
            join(values, halves[0], args);
            most = greatest(most, values);
        }

        const float factor = factor_of(block_greatest(most, shared[half]));
        const float inverse = __fdiv_rn(1.0f, factor);
        if (threadIdx.x == 0)
            args.scales[token * args.scales_row] = factor;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t item = threadIdx.x + k * THREADS;
            if (item < args.items)
                store_codes(args, token, item, kept[k], inverse);
        }
        for (uint32_t item = threadIdx.x + KEPT * THREADS; item < args.items; item += THREADS) {
            float values[ITEM];
            load_item(halves[0], args, token, item);
            join(values, halves[0], args);
            store_codes(args, token, item, values, inverse);
        }
    }
}
