/* How weights and activations are read: as lanes of a dot product along k (dots), and as the rows
 * of units that tiles multiply (dot_units.h).
 *
 *     weights          dots                        tiles
 *     bf16, paired     pairs of bf16               pairs of bf16
 *     bf16, f16, f32   f32                         f32
 *     i8, paired       f32                         pairs of bf16, which hold an i8 exactly
 *     i8               f32                         f32
 *
 * A row's factor of i8 weights multiplies the finished sum. */
#ifndef MOE_CPU_LOAD_H
#define MOE_CPU_LOAD_H
#include "common/cpu/dot_units.h"

#define DT_I8 7
#define W_SIZE (W_DTYPE == DT_I8 ? 1 : DT_SIZE(W_DTYPE))
#define IS_I8 (W_DTYPE == DT_I8)
#define IS_DOT_PAIRED (IS_PAIRED && !IS_I8)
#define DOT_K (VW * (IS_DOT_PAIRED ? 2 : 1)) /* elements of k in a vector of dots */

typedef signed char vec_i8 __attribute__((vector_size(VW)));
typedef signed char vec_i8_any __attribute__((vector_size(VW), aligned(1), may_alias));

INLINE vec_f32 f32_from_i8(const void *p)
{
    return __builtin_convertvector(__builtin_convertvector(*(const vec_i8_any *)p, vec_i32),
                                   vec_f32);
}

INLINE vec_f32 weights_as_f32(const void *p)
{
    return IS_I8 ? f32_from_i8(p) : load_as_f32(W_DTYPE, p);
}

INLINE vec_u32 dot_weights(const void *p)
{
    return IS_DOT_PAIRED ? load_u32(p) : (vec_u32)weights_as_f32(p);
}

INLINE vec_u32 dot_activations(const void *p)
{
    return IS_DOT_PAIRED ? load_u32(p) : (vec_u32)load_as_f32(DTYPE, p);
}

/* The same of `count` elements, at most DOT_K, and zeros. */
INLINE vec_u32 dot_some_weights(const void *p, int64_t count)
{
    uint32_t buffer[VW] = { 0 };
    __builtin_memcpy(buffer, p, (count < DOT_K ? count : DOT_K) * W_SIZE);
    return dot_weights(buffer);
}

INLINE vec_u32 dot_some_activations(const void *p, int64_t count)
{
    uint32_t buffer[VW] = { 0 };
    __builtin_memcpy(buffer, p, (count < DOT_K ? count : DOT_K) * DT_SIZE(DTYPE));
    return dot_activations(buffer);
}

INLINE vec_f32 dot_add(vec_f32 acc, vec_u32 a, vec_u32 b)
{
#if IS_DOT_PAIRED
    return multiply_add(acc, a, b);
#else
    return acc + (vec_f32)a * (vec_f32)b;
#endif
}
#endif
