/* What experts are chosen by: f32 values that host, CPU kernels and GPU kernels compute to the same
 * bit, so that the choice is the same everywhere. They are IEEE products, sums and quotients, each
 * rounded to nearest by itself: score_mul() keeps a compiler from fusing a product with the sum
 * after it.
 *
 *     score_clean(x)    x within the finite f32: NaN and -infinity become the least one
 *     score_exp(x)      e^x, x kept within [-80, 80]
 *     score_sigmoid(x)  1 / (1 + e^-x), x kept likewise: it is never 0 nor subnormal; NaN is -80
 *     score_cap(x)      c tanh(x / c), from c and 1 / c
 *     score_image(x)    unsigned integers in the order of the values of clean x; never 0
 *
 * exp, sigmoid and tanh are within 3e-7 of the value, relatively. A score is one f32 on the host
 * and on GPUs. In CPU kernels, where "common/cpu/vec.h" comes first, it is a vector of them. */
#ifndef MOE_SCORE_H
#define MOE_SCORE_H
#include "common/types.h"

#define SCORE_MOST 0x1.fffffep127f /* the largest finite f32 */
#define SCORE_RANGE 80.0f          /* of the arguments of e^x */

#if defined(__CUDACC_RTC__)

#define SCORE_INLINE static __device__ __forceinline__
typedef float score_f32;
typedef int32_t score_i32;
typedef uint32_t score_u32;

SCORE_INLINE float score_splat(float x)
{
    return x;
}
SCORE_INLINE int32_t score_bits(float x)
{
    return __float_as_int(x);
}
SCORE_INLINE float score_from_bits(int32_t bits)
{
    return __int_as_float(bits);
}
SCORE_INLINE float score_mul(float a, float b)
{
    return __fmul_rn(a, b);
}
SCORE_INLINE float score_add(float a, float b)
{
    return __fadd_rn(a, b);
}
/* Rounded to nearest without the branch that __frcp_rn() has for very large x: this is the rest of
 * it. |x| is from 2^-100 to 2^100. */
SCORE_INLINE float score_reciprocal(float x)
{
    float guess;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
    return __fmaf_rn(guess, -__fmaf_rn(x, guess, -1.0f), guess);
}
/* The same of a / b: from a reciprocal rounded to nearest the second correction rounds so too. */
SCORE_INLINE float score_div(float a, float b)
{
    float inverse = score_reciprocal(b), q = __fmul_rn(a, inverse);
    q = __fmaf_rn(__fmaf_rn(-b, q, a), inverse, q);
    return __fmaf_rn(__fmaf_rn(-b, q, a), inverse, q);
}
/* NaN gives the bound. */
SCORE_INLINE float score_at_least(float x, float least)
{
    return fmaxf(x, least);
}
SCORE_INLINE float score_at_most(float x, float most)
{
    return fminf(x, most);
}

#else

#define SCORE_INLINE static inline __attribute__((always_inline, unused))

#ifdef QN_CPU_VEC_H
typedef vec_f32 score_f32;
typedef vec_i32 score_i32;
typedef vec_u32 score_u32;

SCORE_INLINE score_i32 score_bits(score_f32 x)
{
    return (score_i32)x;
}
SCORE_INLINE score_f32 score_from_bits(score_i32 bits)
{
    return (score_f32)bits;
}
SCORE_INLINE score_f32 score_select(score_i32 mask, score_f32 yes, score_f32 no)
{
    return (score_f32)select_u32(mask, (vec_u32)yes, (vec_u32)no);
}
#else
typedef float score_f32;
typedef int32_t score_i32;
typedef uint32_t score_u32;

SCORE_INLINE score_i32 score_bits(score_f32 x)
{
    score_i32 bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    return bits;
}
SCORE_INLINE score_f32 score_from_bits(score_i32 bits)
{
    score_f32 x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
}
SCORE_INLINE score_f32 score_select(score_i32 mask, score_f32 yes, score_f32 no)
{
    return mask ? yes : no;
}
#endif

#if defined(__AVX512F__)
#define SCORE_REGISTER "+v"
#elif defined(__x86_64__)
#define SCORE_REGISTER "+x"
#elif defined(__aarch64__)
#define SCORE_REGISTER "+w"
#else
#define SCORE_REGISTER "+m"
#endif

SCORE_INLINE score_f32 score_splat(float x)
{
    return (score_f32){ 0 } + x;
}
SCORE_INLINE score_f32 score_mul(score_f32 a, score_f32 b)
{
    score_f32 product = a * b;
    __asm__("" : SCORE_REGISTER(product));
    return product;
}
SCORE_INLINE score_f32 score_add(score_f32 a, score_f32 b)
{
    return a + b;
}
SCORE_INLINE score_f32 score_div(score_f32 a, score_f32 b)
{
    return a / b;
}
SCORE_INLINE score_f32 score_reciprocal(score_f32 x)
{
    return 1.0f / x;
}
SCORE_INLINE score_f32 score_at_least(score_f32 x, float least)
{
    return score_select(x > least, x, score_splat(least));
}
SCORE_INLINE score_f32 score_at_most(score_f32 x, float most)
{
    return score_select(x < most, x, score_splat(most));
}

#endif

SCORE_INLINE score_f32 score_clean(score_f32 x)
{
    return score_at_most(score_at_least(x, -SCORE_MOST), SCORE_MOST);
}

/* e^x = 2^n (1 + q): n is the nearest integer to x / ln 2, which the sum with 1.5 2^23 leaves in
 * the lowest bits; r = x - n ln 2, with ln 2 in two parts; q = r + r^2 p(r), p of degree 4. */
struct score_power {
    score_i32 shifted_n; /* n at the place of the exponent */
    score_f32 q;
};

SCORE_INLINE struct score_power score_power_of(score_f32 x)
{
    const score_f32 magic = score_splat(0x1.8p23f);
    score_f32 t = score_add(score_mul(x, score_splat(0x1.715476p0f)), magic);
    score_f32 n = score_add(t, -magic);
    score_f32 r = score_add(x, score_mul(n, score_splat(-0x1.62e4p-1f)));
    r = score_add(r, score_mul(n, score_splat(-0x1.7f7d1cp-20f)));
    score_f32 p =
        score_add(score_mul(r, score_splat(0x1.6bebf2p-10f)), score_splat(0x1.1227f6p-7f));
    p = score_add(score_mul(p, r), score_splat(0x1.555674p-5f));
    p = score_add(score_mul(p, r), score_splat(0x1.5554bp-3f));
    p = score_add(score_mul(p, r), score_splat(0x1.fffffep-2f));
    struct score_power power;
    power.shifted_n = (score_i32)((score_u32)score_bits(t) << 23);
    power.q = score_add(r, score_mul(score_mul(r, r), p));
    return power;
}

SCORE_INLINE score_f32 score_within_range(score_f32 x)
{
    return score_at_most(score_at_least(x, -SCORE_RANGE), SCORE_RANGE);
}

/* Of x within the range. */
SCORE_INLINE score_f32 score_exp_within(score_f32 x)
{
    struct score_power power = score_power_of(x);
    score_f32 fraction = score_add(power.q, score_splat(1.0f));
    return score_from_bits(score_bits(fraction) + power.shifted_n);
}

SCORE_INLINE score_f32 score_exp(score_f32 x)
{
    return score_exp_within(score_within_range(x));
}

SCORE_INLINE score_f32 score_sigmoid(score_f32 x)
{
    score_f32 power = score_exp_within(-score_within_range(x));
    return score_reciprocal(score_add(power, score_splat(1.0f)));
}

/* tanh |y| = z / (z + 2), z = e^(2 |y|) - 1 = 2^n q + (2^n - 1). */
SCORE_INLINE score_f32 score_tanh(score_f32 y)
{
    const score_i32 sign = score_bits(y) & (-0x7fffffff - 1);
    score_f32 magnitude = score_from_bits(score_bits(y) & 0x7fffffff);
    magnitude = score_at_most(score_add(magnitude, magnitude), 40.0f);
    struct score_power power = score_power_of(magnitude);
    score_f32 scale = score_from_bits(power.shifted_n + 0x3f800000);
    score_f32 z = score_add(score_mul(power.q, scale), score_add(scale, score_splat(-1.0f)));
    score_f32 value = score_div(z, score_add(z, score_splat(2.0f)));
    return score_from_bits(score_bits(value) | sign);
}

/* inverse is 1 / cap, rounded. */
SCORE_INLINE score_f32 score_cap(score_f32 x, float cap, float inverse)
{
    return score_mul(score_tanh(score_mul(x, score_splat(inverse))), score_splat(cap));
}

/* 1 / sum of e^z over a row. high: each term's whole units of 2^-20, added; low: what those leave,
 * in whole units of 2^-40, added. Both are exact, so their order does not matter. */
SCORE_INLINE score_f32 score_softmax_inverse(uint32_t high, uint32_t low)
{
    score_f32 sum = score_mul(score_splat((float)low), score_splat(0x1p-40f));
    sum = score_add(score_mul(score_splat((float)high), score_splat(0x1p-20f)), sum);
    return score_reciprocal(sum);
}

#ifndef QN_CPU_VEC_H
/* -0 and 0 have one image. */
SCORE_INLINE uint32_t score_image(float x)
{
    int32_t bits = score_bits(score_add(x, 0.0f));
    return (uint32_t)bits ^ ((uint32_t)(bits >> 31) | 0x80000000u);
}

SCORE_INLINE float score_from_image(uint32_t image)
{
    uint32_t flip = image >> 31 ? 0x80000000u : 0xffffffffu;
    return score_from_bits((int32_t)(image ^ flip));
}
#endif
#endif
