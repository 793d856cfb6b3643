/* Elements of a key-value cache: those of dtype.h, and e4m3.
 *
 * An e4m3 is moved to where an f32 has its exponent and fraction; a multiplication by 2^120 makes
 * the biases agree, and denormals right. The code of all ones is NaN. */
#ifndef QN_CPU_ATTENTION_DTYPE_H
#define QN_CPU_ATTENTION_DTYPE_H
#include "common/cpu/dtype.h"

#define DT_E4M3 5
#define KV_SIZE(dtype) ((dtype) == DT_E4M3 ? 1 : DT_SIZE(dtype))

typedef uint8_t vec_u8 __attribute__((vector_size(VW)));
typedef uint8_t vec_u8_any __attribute__((vector_size(VW), aligned(1), may_alias));

INLINE vec_f32 f32_from_e4m3(vec_u8 bytes)
{
    vec_u32 bits = __builtin_convertvector(bytes, vec_u32), magnitude = bits & 0x7f;
    vec_u32 value = (vec_u32)((vec_f32)(magnitude << 20) * 0x1p120f);
    value = select_u32((vec_i32)(magnitude == 0x7f), splat_u32(0x7fc00000), value);
    return (vec_f32)(value | (bits & 0x80) << 24);
}

INLINE const void *kv_element(int dtype, const void *base, int64_t index)
{
    return (const char *)base + index * KV_SIZE(dtype);
}

INLINE vec_f32 load_kv(int dtype, const void *p)
{
    return dtype == DT_E4M3 ? f32_from_e4m3(*(const vec_u8_any *)p) : load_as_f32(dtype, p);
}
#endif
