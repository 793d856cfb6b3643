/* Exponentials of vectors, without a math library: a power of two times a polynomial.
 *
 *     exp2(x) = 2^n p(x - n)        n the nearest integer, |x - n| <= 1/2, p of degree 7
 *     exp(x)  = 2^n p(r / ln 2)     r = x - n ln 2, ln 2 in two parts, so that large x lose nothing
 *
 * Relative error below 3e-7; what underflows is 0 (from 2^-149 down, by way of denormals), what
 * overflows infinity, NaN stays NaN. */
#ifndef QN_CPU_EXP_H
#define QN_CPU_EXP_H
#include "common/cpu/vec.h"

INLINE vec_f32 splat_f32(float x)
{
    return (vec_f32){ 0 } + x;
}

/* mask ? yes : no, lane by lane; the mask's lanes are 0 or -1. */
INLINE vec_f32 select_f32(vec_i32 mask, vec_f32 yes, vec_f32 no)
{
    return (vec_f32)select_u32(mask, (vec_u32)yes, (vec_u32)no);
}

/* NaN in x stays. */
INLINE vec_f32 clamp_f32(vec_f32 x, float least, float most)
{
    x = select_f32(x < least, splat_f32(least), x);
    return select_f32(x > most, splat_f32(most), x);
}

/* The nearest integer of |x| < 2^22, in lanes of f32: adding 1.5 2^23 leaves no fraction bits. */
INLINE vec_f32 round_f32(vec_f32 x)
{
    const float shift = 0x1.8p23f;
    return (x + shift) - shift;
}

/* 2^f for |f| <= 1/2. */
INLINE vec_f32 exp2_fraction(vec_f32 f)
{
    vec_f32 p = splat_f32(1.5252734e-5f);
    p = p * f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    return p * f + 1.0f;
}

/* value 2^n for an integer n from -300 to 300: an instruction of AVX-512, else in two factors,
 * neither of which overflows. */
INLINE vec_f32 scale_by_power(vec_f32 value, vec_f32 n)
{
#ifdef __AVX512F__
    return __builtin_ia32_scalefps512_mask(value, n, value, (uint16_t)-1, 4 /* MXCSR's rounding */);
#else
    vec_i32 whole = __builtin_convertvector(n, vec_i32), half = whole >> 1;
    vec_f32 first = (vec_f32)((half + 127) << 23), second = (vec_f32)((whole - half + 127) << 23);
    return value * first * second;
#endif
}

INLINE vec_f32 exp2_f32(vec_f32 x)
{
    vec_f32 bounded = clamp_f32(x, -200, 200), n = round_f32(bounded);
    vec_f32 value = scale_by_power(exp2_fraction(bounded - n), n);
    return select_f32(x != x, x, value);
}

INLINE vec_f32 exp_f32(vec_f32 x)
{
    const float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f; /* high: n times it is exact */
    vec_f32 bounded = clamp_f32(x, -130, 130), n = round_f32(bounded * 1.44269504f);
    vec_f32 rest = bounded - n * ln2_high - n * ln2_low;
    vec_f32 value = scale_by_power(exp2_fraction(rest * 1.44269504f), n);
    return select_f32(x != x, x, value);
}

/* 1 / (1 + e^-x). */
INLINE vec_f32 sigmoid_f32(vec_f32 x)
{
    return 1.0f / (1.0f + exp_f32(-x));
}

/* log(1 + z) for z from 0 to 1, within 1.2e-7 of it: z times a polynomial, no division. */
INLINE vec_f32 log1p_of_unit(vec_f32 z)
{
    vec_f32 p = splat_f32(-3.1760570e-3f);
    p = p * z + 1.9542526e-2f;
    p = p * z - 5.6373612e-2f;
    p = p * z + 1.0543624e-1f;
    p = p * z - 1.5269667e-1f;
    p = p * z + 1.9663274e-1f;
    p = p * z - 2.4951616e-1f;
    p = p * z + 3.3329710e-1f;
    p = p * z - 4.9999893e-1f;
    return (p * z + 1.0f) * z;
}

/* log(1 + e^x), whole: where x is large it is x to the last bit. */
INLINE vec_f32 softplus_f32(vec_f32 x)
{
    vec_f32 magnitude = select_f32(x < 0, -x, x), positive = select_f32(x > 0, x, splat_f32(0));
    return select_f32(x != x, x, positive + log1p_of_unit(exp_f32(-magnitude)));
}

/* 1 / sqrt(x). */
INLINE vec_f32 rsqrt_f32(vec_f32 x)
{
    return 1.0f / __builtin_elementwise_sqrt(x);
}
#endif
