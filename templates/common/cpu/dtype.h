/* Element types in memory, and their conversion to and from vectors of f32.
 *
 * A dtype is a DT_ constant; every function below is inlined with a constant dtype, so the
 * switch costs nothing. Conversions are integer code or vector builtins, never the compiler's
 * library calls (__truncsfbf2, __extendhfsf2), which no runtime here provides:
 *
 *   bf16 -> f32   shift left by 16
 *   f32 -> bf16   round to nearest even by adding 0x7fff plus the kept lowest bit; NaN stays NaN
 *   f16 <-> f32   F16C or NEON where present; else rebias the exponent by a multiplication,
 *                 which also gets denormals right (F. Giesen, half_to_float_fast)
 *
 * The _part functions touch exactly `count` elements, 0 < count < VW, and see zeros beyond. */
#ifndef QN_CPU_DTYPE_H
#define QN_CPU_DTYPE_H
#include "common/cpu/vec.h"

#define DT_NONE 0
#define DT_F32 1
#define DT_BF16 2
#define DT_F16 3
#define DT_SIZE(dtype) ((dtype) == DT_F32 ? 4 : 2)

INLINE vec_f32 f32_from_bf16(vec_u16 bits)
{
    return (vec_f32)(__builtin_convertvector(bits, vec_u32) << 16);
}

INLINE vec_u16 bf16_from_f32(vec_f32 value)
{
    vec_u32 bits = (vec_u32)value;
    vec_u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vec_u32 quiet_nan = (bits >> 16) | 0x40;
    return __builtin_convertvector(select_u32(value != value, quiet_nan, rounded), vec_u16);
}

#if defined(__F16C__) || defined(__aarch64__)
typedef _Float16 vec_f16 __attribute__((vector_size(2 * VW)));

INLINE vec_f32 f32_from_f16(vec_u16 bits)
{
    return __builtin_convertvector((vec_f16)bits, vec_f32);
}

INLINE vec_u16 f16_from_f32(vec_f32 value)
{
    return (vec_u16) __builtin_convertvector(value, vec_f16);
}
#else
INLINE vec_f32 f32_from_f16(vec_u16 half)
{
    vec_u32 bits = __builtin_convertvector(half, vec_u32);
    vec_u32 magnitude = (bits & 0x7fff) << 13;
    vec_f32 rebias = (vec_f32)splat_u32(0x77800000); /* 2^112 */
    vec_u32 finite = (vec_u32)((vec_f32)magnitude * rebias);
    vec_u32 special = magnitude | 0x7f800000; /* infinity, NaN */
    vec_i32 is_special = magnitude >= 0x0f800000;
    return (vec_f32)(select_u32(is_special, special, finite) | (bits & 0x8000) << 16);
}

INLINE vec_u16 f16_from_f32(vec_f32 value)
{
    vec_u32 bits = (vec_u32)value;
    vec_u32 magnitude = bits & 0x7fffffff;
    /* Adding 0.5 leaves a denormal half's bits, rounded by the adder, at the bottom. */
    vec_f32 half = (vec_f32)splat_u32(0x3f000000);
    vec_u32 denormal = (vec_u32)((vec_f32)magnitude + half) - 0x3f000000;
    vec_u32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    vec_u32 result = select_u32(magnitude < 0x38800000, denormal, normal);
    result = select_u32(magnitude >= 0x47800000, splat_u32(0x7c00), result);
    result = select_u32(magnitude > 0x7f800000, splat_u32(0x7e00), result);
    return __builtin_convertvector(result | (bits & 0x80000000) >> 16, vec_u16);
}
#endif

INLINE const void *element(int dtype, const void *base, int64_t index)
{
    return (const char *)base + index * DT_SIZE(dtype);
}

INLINE vec_f32 load_as_f32(int dtype, const void *p)
{
    if (dtype == DT_F32)
        return (vec_f32)load_u32(p);
    return dtype == DT_BF16 ? f32_from_bf16(load_u16(p)) : f32_from_f16(load_u16(p));
}

INLINE void store_from_f32(int dtype, void *p, vec_f32 value)
{
    if (dtype == DT_F32)
        store_u32(p, (vec_u32)value);
    else
        store_u16(p, dtype == DT_BF16 ? bf16_from_f32(value) : f16_from_f32(value));
}

INLINE vec_f32 load_part_as_f32(int dtype, const void *p, int64_t count)
{
    uint32_t buffer[VW] = { 0 };
    __builtin_memcpy(buffer, p, count * DT_SIZE(dtype));
    return load_as_f32(dtype, buffer);
}

INLINE float load_one_as_f32(int dtype, const void *p)
{
    if (dtype == DT_F32)
        return *(const float *)p;
    vec_u16 bits = { *(const uint16_t *)p };
    return (dtype == DT_BF16 ? f32_from_bf16(bits) : f32_from_f16(bits))[0];
}

INLINE void store_part_from_f32(int dtype, void *p, vec_f32 value, int64_t count)
{
    uint32_t buffer[VW];
    store_from_f32(dtype, buffer, value);
    __builtin_memcpy(p, buffer, count * DT_SIZE(dtype));
}
#endif
