/* What the kernels of set_kv_buffer share: the spec's constants, indices, accesses as wide as each
 * array's alignment allows, rotation. Every operation is rounded by itself (__fmul_rn and its like
 * are never contracted), so that all devices agree to the bit. */
#ifndef KV_ROWS_CUH
#define KV_ROWS_CUH
#include "common/cuda/load.cuh"
#include "kv_cache/set_kv_buffer_args.h"

#ifndef HKV
#define HKV 8
#define D 128
#define DV 128
#define HQ 0
#define PAGE 16
#define DTYPE DT_BF16
#define KV_DTYPE DT_BF16
#define IS_MLA 0
#define KV_SCALE 0
#define IS_INDEX_64 0
#define ROPE 0
#define ROPE_DIM 0
#define ROPE_FIRST 0
#define ROPE_DTYPE DT_F32
#endif
/* Bytes of an access of each array. */
#ifndef K_ACCESS
#define K_ACCESS 16
#define V_ACCESS 16
#define Q_ACCESS 16
#define COS_ACCESS 16
#define K_CACHE_ACCESS 16
#define V_CACHE_ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif

#define SIZE DT_SIZE(DTYPE)
#define HALF (ROPE_DIM / 2)
#define IS_GPTJ (ROPE == 2)

static __device__ __forceinline__ int64_t index_at(const void *indices, int64_t i)
{
    return IS_INDEX_64 ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
}

/* Row of cos_sin that a token is rotated by; what is outside is the nearest one. */
static __device__ __forceinline__ const void *angles_of(const struct set_kv_buffer_args &args,
                                                        int64_t token)
{
    int64_t position = index_at(args.positions, token), last = args.max_position - 1;
    position = position < 0 ? 0 : position < last ? position : last;
    return element(ROPE_DTYPE, args.cos_sin, position * args.cos_sin_row);
}

/* A pair (a, b) to (a cos - b sin, b cos + a sin). */
static __device__ __forceinline__ void rotate_pair(float &a, float &b, float cosine, float sine)
{
    float left = a, right = b;
    a = __fsub_rn(__fmul_rn(left, cosine), __fmul_rn(right, sine));
    b = __fadd_rn(__fmul_rn(right, cosine), __fmul_rn(left, sine));
}

static __device__ __forceinline__ char *place(const struct kv_cache &cache, int64_t row,
                                              int64_t head, int size)
{
    int64_t at = row / PAGE * cache.page + row % PAGE * cache.token + head * cache.head;
    return (char *)cache.data + at * size;
}
#endif
