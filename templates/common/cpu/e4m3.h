/* f32 to e4m3 in vectors: to nearest even, beyond 448 to 448 with its sign, NaN to 0x7f. */
#ifndef QN_CPU_E4M3_H
#define QN_CPU_E4M3_H
#include "common/cpu/exp.h"

typedef uint8_t vec_u8 __attribute__((vector_size(VW)));
typedef uint8_t vec_u8_any __attribute__((vector_size(VW), aligned(1), may_alias));

/* Below 2^-6 the spacing is 2^-9, that of an f32 beside 2^14; above, the lowest of the 3 bits of
 * mantissa is bit 20 of the f32, and the exponent's bias is 120 less. */
INLINE vec_u8 e4m3_from_f32(vec_f32 value)
{
    const vec_u32 sign = (vec_u32)value >> 24 & 0x80;
    vec_f32 magnitude = (vec_f32)((vec_u32)value & 0x7fffffff);
    magnitude = select_f32(magnitude > 448, splat_f32(448), magnitude);
    const vec_u32 bits = (vec_u32)magnitude;
    vec_u32 normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    vec_u32 small = (vec_u32)(magnitude + 0x1p14f) - 0x46800000;
    vec_u32 code = sign | select_u32(magnitude < 0x1p-6f, small, normal);
    code = select_u32(value != value, splat_u32(0x7f), code);
    return __builtin_convertvector(code, vec_u8);
}

/* `count` codes, of which all VW are computed. */
INLINE void store_codes(uint8_t *to, vec_u8 codes, int64_t count)
{
    if (count >= VW)
        *(vec_u8_any *)to = codes;
    else
        __builtin_memcpy(to, &codes, count);
}
#endif
