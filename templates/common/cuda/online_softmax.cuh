/* Softmax of rows that arrive a tile at a time, on scores as mma leaves them (mma.cuh): fragment
 * [i][j] holds two neighbouring columns of row g of 16 rows i, and of row g + 8, g = lane / 4; the
 * four lanes of a quad share a row. sm_80 and up.
 *
 *     p = 2^(scale s - reference)        sum += p        sums of p v are relative to it likewise
 *
 * The reference of a row is its greatest scaled score or, to rescale seldom, one that this exceeds
 * by at most SOFTMAX_SLACK: p is then at most 2^SOFTMAX_SLACK, and rounding it is as exact as ever.
 * A row that has seen nothing has a reference of -infinity, which counts as 0. A NaN among scores
 * makes the sum NaN and leaves the reference alone. */
#ifndef QN_CUDA_ONLINE_SOFTMAX_CUH
#define QN_CUDA_ONLINE_SOFTMAX_CUH
#include "common/types.h"

#define SOFTMAX_SLACK 8.0f
#define SOFTMAX_NONE __int_as_float((int)0xff800000) /* -infinity */
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

template <int fragments> struct softmax_rows {
    float reference[fragments][2]; /* of rows g and g + 8; base 2, the same in all four lanes */
    float sum[fragments][2];       /* of this lane's columns */
};

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x)
{
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* By way of the exponential, whose error is absolute and small: that of tanh.approx is not. */
__device__ __forceinline__ float tanh_exact(float x)
{
    return fmaf(-2.0f, reciprocal_fast(exp2_fast(2 * LOG2_E * x) + 1.0f), 1.0f);
}

__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

template <int fragments>
__device__ __forceinline__ void softmax_begin(struct softmax_rows<fragments> *rows)
{
#pragma unroll
    for (int i = 0; i < fragments; i++) {
        rows->reference[i][0] = rows->reference[i][1] = SOFTMAX_NONE;
        rows->sum[i][0] = rows->sum[i][1] = 0.0f;
    }
}

/* -infinity counts as 0. */
__device__ __forceinline__ float softmax_origin(float reference)
{
    return reference == SOFTMAX_NONE ? 0.0f : reference;
}

/* A thread's greatest scores, by row. */
template <int fragments, int columns>
__device__ __forceinline__ void softmax_max(float (&most)[fragments][2],
                                            const float (&scores)[fragments][columns][4])
{
#pragma unroll
    for (int i = 0; i < fragments; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            most[i][half] = fmaxf(scores[i][0][2 * half], scores[i][0][2 * half + 1]);
#pragma unroll
            for (int j = 1; j < columns; j++)
                most[i][half] =
                    fmaxf(most[i][half], fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
        }
    }
}

/* Makes references fit the scores of one more tile, and sums relative to them. True: values have to
 * be multiplied by `factors`. By whole warps. scale > 0. */
template <int fragments, int columns>
__device__ __forceinline__ bool softmax_refer(struct softmax_rows<fragments> *rows,
                                              const float (&scores)[fragments][columns][4],
                                              float scale, float (&factors)[fragments][2])
{
    float most[fragments][2];
    bool has_grown = false;
    softmax_max(most, scores);
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++)
        has_grown |= most[i / 2][i % 2] * scale > rows->reference[i / 2][i % 2] + SOFTMAX_SLACK;
    if (!__any_sync(0xffffffff, has_grown))
        return false;
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++) {
        float *reference = &rows->reference[i / 2][i % 2], before = *reference;
        *reference = fmaxf(before, quad_max(most[i / 2][i % 2]) * scale);
        factors[i / 2][i % 2] = exp2_fast(before - softmax_origin(*reference));
        rows->sum[i / 2][i % 2] *= factors[i / 2][i % 2];
    }
    return true;
}

template <int fragments, int widths>
__device__ __forceinline__ void softmax_rescale(float (&values)[fragments][widths][4],
                                                const float (&factors)[fragments][2])
{
#pragma unroll
    for (int i = 0; i < fragments * widths * 4; i++)
        values[i / 4 / widths][i / 4 % widths][i % 4] *= factors[i / 4 / widths][i % 4 / 2];
}

/* What ends a row: values times `factor` are the outputs, log2 is the logarithm of the
 * denominator, base 2. sink: a score that only the denominator has, base 2; SOFTMAX_NONE: none. A
 * row that has seen nothing: outputs 0, and the sink. */
struct softmax_end {
    float factor, log2;
};

__device__ __forceinline__ struct softmax_end softmax_finish(float reference, float lane_sum,
                                                             float sink)
{
    float most = softmax_origin(fmaxf(reference, sink));
    float factor = exp2_fast(softmax_origin(reference) - most);
    float sum = quad_sum(lane_sum);
    float total = (sum == 0.0f ? 0.0f : sum * factor) + exp2_fast(sink - most);
    struct softmax_end end;
    end.factor = sum == 0.0f ? 0.0f : factor * reciprocal_fast(total);
    end.log2 = sum == 0.0f ? sink : most + log2_fast(total);
    return end;
}
#endif
