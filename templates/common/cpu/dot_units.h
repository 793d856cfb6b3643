/* The multiply-accumulate step of a dot product over k, in 32-bit *units*.
 *
 * A unit is what one lane multiplies at once: UNIT_K consecutive k of one row.
 *
 *   IS_PAIRED 0   UNIT_K 1   an f32 (bf16 and f16 are widened when they are loaded)
 *   IS_PAIRED 1   UNIT_K 2   a pair of bf16, low half first: vdpbf16ps, or an AMX tile row; where
 *                            neither exists each half is widened when it is multiplied
 *
 * Loading, packing and transposing then look the same for both: they move units. */
#ifndef QN_CPU_DOT_UNITS_H
#define QN_CPU_DOT_UNITS_H
#include "common/cpu/dtype.h"

#ifndef IS_PAIRED
#define IS_PAIRED 0
#endif
#define UNIT_K (IS_PAIRED ? 2 : 1)
#define VEC_K (VW * UNIT_K) /* elements of k in a vector of units */

/* acc + a * b lane by lane; a pair adds both its products. */
INLINE vec_f32 multiply_add(vec_f32 acc, vec_u32 a, vec_u32 b)
{
#if IS_PAIRED && defined(__AVX512BF16__)
    typedef __bf16 vec_pairs __attribute__((vector_size(4 * VW)));
    return __builtin_ia32_dpbf16ps_512(acc, (vec_pairs)a, (vec_pairs)b);
#elif IS_PAIRED
    vec_u32 high = splat_u32(0xffff0000);
    acc += (vec_f32)(a << 16) * (vec_f32)(b << 16);
    return acc + (vec_f32)(a & high) * (vec_f32)(b & high);
#else
    return acc + (vec_f32)a * (vec_f32)b;
#endif
}

/* VEC_K elements along k as units, or the first `count` of them and zeros. */
INLINE vec_u32 load_units(int dtype, const void *p)
{
    return IS_PAIRED ? load_u32(p) : (vec_u32)load_as_f32(dtype, p);
}

INLINE vec_u32 load_part_units(int dtype, const void *p, int64_t count)
{
    if (!IS_PAIRED)
        return (vec_u32)load_part_as_f32(dtype, p, count);
    uint32_t buffer[VW] = { 0 };
    __builtin_memcpy(buffer, p, count * 2);
    return load_u32(buffer);
}

/* Any count: what is past the end is zero and is not read. */
INLINE vec_u32 load_some_units(int dtype, const void *p, int64_t count)
{
    if (count >= VEC_K)
        return load_units(dtype, p);
    return count > 0 ? load_part_units(dtype, p, count) : (vec_u32){ 0 };
}
#endif
