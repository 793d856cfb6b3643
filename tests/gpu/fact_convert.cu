/* Facts about conversions between f32 and the narrow types; test_warp_gpu.c says what each must
 * give. args.n elements of dtype args.x, in every way that convert.cuh has. */
#include "common/cuda/convert.cuh"
#include "fact_args.h"

#define INDEX ((int)(blockIdx.x * blockDim.x + threadIdx.x))

extern "C" __global__ void decode(const __grid_constant__ struct fact_args args)
{
    if (INDEX < args.n)
        ((float *)args.out)[INDEX] = load_as_f32(args.x, element(args.x, args.a, INDEX));
}

extern "C" __global__ void encode(const __grid_constant__ struct fact_args args)
{
    if (INDEX < args.n)
        store_from_f32(args.x, (void *)element(args.x, args.out, INDEX),
                       ((const float *)args.a)[INDEX]);
}

/* Two at a time, bf16 or f16; args.n is even. */
extern "C" __global__ void encode_pairs(const __grid_constant__ struct fact_args args)
{
    const float *pair = (const float *)args.a + 2 * INDEX;
    if (2 * INDEX < args.n)
        ((uint32_t *)args.out)[INDEX] = args.x == DT_BF16 ? bf16x2_from_f32(pair[0], pair[1])
                                                          : f16x2_from_f32(pair[0], pair[1]);
}

/* As on devices without the instruction. */
extern "C" __global__ void encode_by_hand(const __grid_constant__ struct fact_args args)
{
    if (INDEX >= args.n)
        return;
    float value = ((const float *)args.a)[INDEX];
    ((uint8_t *)args.out)[INDEX] = args.x == DT_E4M3 ? fp8_from_f32(value, 3, -6, 448.0f)
                                                     : fp8_from_f32(value, 2, -14, 57344.0f);
}

extern "C" __global__ void encode_tf32(const __grid_constant__ struct fact_args args)
{
    if (INDEX < args.n)
        ((uint32_t *)args.out)[INDEX] = tf32_from_f32(((const uint32_t *)args.a)[INDEX]);
}
