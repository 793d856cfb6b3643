/* Facts about what a warp does with fragments: ldmatrix, stmatrix, mma.sync, cp.async.
 * test_warp_gpu.c says what each must give. sm_80, stmatrix sm_90. */
#include "common/cuda/cp_async.cuh"
#include "common/cuda/ldmatrix.cuh"
#include "common/cuda/mma.cuh"
#include "fact_args.h"
#if __CUDA_ARCH__ >= 900
#include "common/cuda/stmatrix.cuh"
#endif

__device__ __forceinline__ uint32_t address_of(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* Four matrices one after the other, element i of each holding what args.a has. Lane l dumps its
 * four registers; args.n: transposed. */
extern "C" __global__ void read_matrices(const __grid_constant__ struct fact_args args)
{
    __shared__ __align__(16) uint16_t matrices[4][8][8];
    uint32_t lane = threadIdx.x, words[4];
    for (int i = lane; i < 256; i += 32)
        (&matrices[0][0][0])[i] = ((const uint16_t *)args.a)[i];
    __syncwarp();
    uint32_t row = address_of(matrices[lane / 8][lane % 8]);
    if (args.n)
        ldmatrix_x4_transposed(words, row);
    else
        ldmatrix_x4(words, row);
    for (int i = 0; i < 4; i++)
        ((uint32_t *)args.out)[4 * lane + i] = words[i];
}

#if __CUDA_ARCH__ >= 900
/* The reverse: lane l's registers from args.a, the matrices to args.out. */
extern "C" __global__ void write_matrices(const __grid_constant__ struct fact_args args)
{
    __shared__ __align__(16) uint16_t matrices[4][8][8];
    uint32_t lane = threadIdx.x, words[4];
    for (int i = 0; i < 4; i++)
        words[i] = ((const uint32_t *)args.a)[4 * lane + i];
    uint32_t row = address_of(matrices[lane / 8][lane % 8]);
    if (args.n)
        stmatrix_x4_transposed(row, words);
    else
        stmatrix_x4(row, words);
    __syncwarp();
    for (int i = lane; i < 256; i += 32)
        ((uint16_t *)args.out)[i] = (&matrices[0][0][0])[i];
}
#endif

/* d = a b^T with 16 rows of a, 16 of b, both of 32 bytes: bf16 (args.n 0), f16 (1) or f32 that is
 * tf32 (2). */
extern "C" __global__ void multiply(const __grid_constant__ struct fact_args args)
{
    __shared__ __align__(16) unsigned char a[16][32], b[16][32];
    uint32_t lane = threadIdx.x, matrix = lane / 8, p[4], q[4];
    for (int i = lane; i < 512; i += 32) {
        (&a[0][0])[i] = ((const unsigned char *)args.a)[i];
        (&b[0][0])[i] = ((const unsigned char *)args.b)[i];
    }
    __syncwarp();
    ldmatrix_x4(p, address_of(&a[matrix % 2 * 8 + lane % 8][matrix / 2 * 16]));
    ldmatrix_x4(q, address_of(&b[matrix / 2 * 8 + lane % 8][matrix % 2 * 16]));
    for (int half = 0; half < 2; half++) {
        float d[4] = { 1, 2, 3, 4 }; /* they are added to */
        if (args.n == 0)
            mma_bf16(d, p, q[2 * half], q[2 * half + 1]);
        else if (args.n == 1)
            mma_f16(d, p, q[2 * half], q[2 * half + 1]);
        else
            mma_tf32(d, p, q[2 * half], q[2 * half + 1]);
        for (int i = 0; i < 4; i++)
            ((float *)args.out)[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] =
                d[i] - (i + 1);
    }
}

/* Thread t copies the first t bytes of 16, 8 or 4 (args.n) into a slot of 16 that holds 0xee. */
extern "C" __global__ void copy_parts(const __grid_constant__ struct fact_args args)
{
    __shared__ __align__(16) unsigned char slots[32][16];
    int t = threadIdx.x;
    const unsigned char *from = (const unsigned char *)args.a + 16 * t;
    for (int i = 0; i < 16; i++)
        slots[t][i] = 0xee;
    __syncwarp();
    if (t <= args.n && args.n == 16)
        cp_async_16(address_of(slots[t]), from, t);
    if (t <= args.n && args.n == 8)
        cp_async_8(address_of(slots[t]), from, t);
    if (t <= args.n && args.n == 4)
        cp_async_4(address_of(slots[t]), from, t);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 16; i++)
        ((unsigned char *)args.out)[16 * t + i] = slots[t][i];
}
