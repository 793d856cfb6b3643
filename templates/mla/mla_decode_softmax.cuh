/* Softmax of scores as tensor cores leave them: a lane has of tiles of 16 rows by 8 tokens the
 * tokens 2 (lane % 4) and the next of rows lane / 4 and 8 more. They are yet to be multiplied with
 * a factor, which is positive: queries change their sign where the scale is negative. */
#ifndef MLA_DECODE_SOFTMAX_CUH
#define MLA_DECODE_SOFTMAX_CUH
#include "mla/mla_decode_rows.cuh"

/* The scale times log2 e, as a factor that keeps -infinity what it is. */
__device__ __forceinline__ float score_factor(float scale)
{
    return fmaxf(fabsf(scale) * 1.4426950408889634f, 1.17549435e-38f);
}

/* What pairs of queries are to be xored with for that. */
__device__ __forceinline__ uint32_t sign_to_take(float scale)
{
    return scale < 0.0f ? 0x80008000 : 0;
}

__device__ __forceinline__ void take_sign(uint32_t (&words)[4], float scale)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] ^= sign_to_take(scale);
}

/* Scores become exp2(factor (s - m)), where m is the largest until now; what sums until now are to
 * be multiplied with goes to `keep`. l is this lane's part of the sum. keep is the quotient of what
 * weights were and are relative to, both rounded: it is 1 as long as m stays. */
template <int tiles>
__device__ __forceinline__ void softmax_rows(float (&s)[tiles][4], float factor, float (&m)[2],
                                             float (&l)[2], float (&keep)[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = m[half], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < tiles; i++)
            most = fmaxf(most, fmaxf(s[i][2 * half], s[i][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float base = most == SPLIT_NONE ? 0.0f : most * factor;
        keep[half] = split_exp2(__fmul_rn(m[half], factor) - base);
#pragma unroll
        for (int i = 0; i < tiles; i++) {
            s[i][2 * half] = split_exp2(fmaf(s[i][2 * half], factor, -base));
            s[i][2 * half + 1] = split_exp2(fmaf(s[i][2 * half + 1], factor, -base));
            sum += s[i][2 * half] + s[i][2 * half + 1];
        }
        l[half] = fmaf(l[half], keep[half], sum);
        m[half] = most;
    }
}

/* Two tiles of weights, 8 tokens each, as the first operand. */
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const float (&p)[4],
                                           const float (&next)[4])
{
    a[0] = pair_from_f32(p[0], p[1]), a[1] = pair_from_f32(p[2], p[3]);
    a[2] = pair_from_f32(next[0], next[1]), a[3] = pair_from_f32(next[2], next[3]);
}
#endif
