/* Facts about wgmma: descriptors along K and along M or N, steps of K inside the swizzle, where the
 * accumulators belong, every operand type. test_wgmma_gpu.c says what each must give. sm_90a. */
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/tma.cuh"
#include "common/cuda/wgmma.cuh"
#include "fact_args.h"
#include "fact_wait.cuh"

#if 1 /* a file included inside an #if is put in every time */
#define WGMMA_NAME multiply_bf16
#define WGMMA_N 64
#define WGMMA_K 16
#define WGMMA_TYPE bf16
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_f16
#define WGMMA_N 64
#define WGMMA_K 16
#define WGMMA_TYPE f16
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_tf32
#define WGMMA_N 64
#define WGMMA_K 8
#define WGMMA_TYPE tf32
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_e4m3
#define WGMMA_N 64
#define WGMMA_K 32
#define WGMMA_TYPE e4m3
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_e5m2
#define WGMMA_N 64
#define WGMMA_K 32
#define WGMMA_TYPE e5m2
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_n24
#define WGMMA_N 24
#define WGMMA_K 16
#define WGMMA_TYPE bf16
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_n256
#define WGMMA_N 256
#define WGMMA_K 16
#define WGMMA_TYPE bf16
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_mn
#define WGMMA_N 128
#define WGMMA_K 16
#define WGMMA_TYPE bf16
#define WGMMA_TRANS_A 1
#define WGMMA_TRANS_B 1
#include "common/cuda/wgmma_shape.cuh"

#define WGMMA_NAME multiply_k_by_mn
#define WGMMA_N 128
#define WGMMA_K 16
#define WGMMA_TYPE bf16
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 1
#include "common/cuda/wgmma_shape.cuh"
#endif

#define P_BYTES 8192
#define Q_BYTES 32768

struct tiles {
    __align__(1024) unsigned char p[P_BYTES], q[Q_BYTES];
};

/* One box of map 0 into p, and `boxes` of map 1, 64 columns on each time, into q: args.bytes in
 * all. */
__device__ __forceinline__ void load(struct tiles *tiles, uint64_t *full,
                                     const struct fact_args *args, int boxes)
{
    uint32_t barrier = shared_address(full);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(barrier, args->bytes);
        tma_load_3d(shared_address(tiles->p), &args->maps[0], barrier, 0, 0, 0);
        for (int i = 0; i < boxes; i++)
            tma_load_3d(shared_address(tiles->q) + i * P_BYTES, &args->maps[1], barrier, 64 * i, 0,
                        0);
    }
    __syncthreads();
    fact_wait(barrier, 0);
}

/* Each thread's accumulators one after the other. */
template <int count> __device__ __forceinline__ void dump(const float (&d)[count], void *out)
{
#pragma unroll
    for (int i = 0; i < count; i++)
        ((float *)out)[threadIdx.x * count + i] = d[i];
}

/* args.n steps of 32 bytes of K; the accumulators start as NaN, which the first step must not add
 * to. */
#define KERNEL(name, multiply, columns, p_descriptor, p_step, q_descriptor, q_step, boxes)         \
    extern "C" __global__ void __launch_bounds__(128, 1)                                           \
        name(const __grid_constant__ struct fact_args args)                                        \
    {                                                                                              \
        __shared__ struct tiles tiles;                                                             \
        __shared__ uint64_t full;                                                                  \
        float d[(columns) / 2];                                                                    \
        _Pragma("unroll") for (int i = 0; i < (columns) / 2; i++) d[i] = __int_as_float(-1);       \
        load(&tiles, &full, &args, boxes);                                                         \
        uint64_t p = p_descriptor(shared_address(tiles.p));                                        \
        uint64_t q = q_descriptor(shared_address(tiles.q));                                        \
        wgmma_hold(d);                                                                             \
        for (int k = 0; k < args.n; k++) {                                                         \
            wgmma_fence();                                                                         \
            multiply(d, p + k * (p_step), q + k * (q_step), k > 0);                                \
        }                                                                                          \
        wgmma_commit();                                                                            \
        wgmma_wait<0>();                                                                           \
        wgmma_hold(d);                                                                             \
        dump(d, args.out);                                                                         \
    }

KERNEL(along_k, multiply_bf16, 64, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(along_k_f16, multiply_f16, 64, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(along_k_tf32, multiply_tf32, 64, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(along_k_e4m3, multiply_e4m3, 64, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(along_k_e5m2, multiply_e5m2, 64, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(narrow, multiply_n24, 24, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(wide, multiply_n256, 256, wgmma_along_k, 2, wgmma_along_k, 2, 1)
KERNEL(along_mn, multiply_mn, 128, wgmma_along_mn<64>, 128, wgmma_along_mn<64>, 128, 2)
KERNEL(along_k_by_n, multiply_k_by_mn, 128, wgmma_along_k, 2, wgmma_along_mn<64>, 128, 2)
