/* One machine vector of 32-bit lanes: its width VW, its types and the few operations that C's
 * vector extensions do not spell.
 *
 *   ISA                      VW   bytes   registers
 *   AVX-512 (x86-64-v4)      16     64       32
 *   AVX2    (x86-64-v3)       8     32       16
 *   SSE2, NEON, anything      4     16       16 (NEON 32)
 *
 * The *_any types are for memory: element alignment only, and they may alias anything. */
#ifndef QN_CPU_VEC_H
#define QN_CPU_VEC_H
#include "common/types.h"

#if defined(__AVX512F__)
#define VW 16
#elif defined(__AVX2__)
#define VW 8
#else
#define VW 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* optimised alone: compiles faster */
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)") /* cold: saves compile time */

typedef float vec_f32 __attribute__((vector_size(4 * VW)));
typedef uint32_t vec_u32 __attribute__((vector_size(4 * VW)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * VW)));
typedef uint16_t vec_u16 __attribute__((vector_size(2 * VW)));

typedef float vec_f32_any __attribute__((vector_size(4 * VW), aligned(2), may_alias));
typedef uint32_t vec_u32_any __attribute__((vector_size(4 * VW), aligned(2), may_alias));
typedef uint16_t vec_u16_any __attribute__((vector_size(2 * VW), aligned(2), may_alias));
typedef uint32_t u32_any __attribute__((aligned(2), may_alias));

INLINE vec_u32 load_u32(const void *p)
{
    return *(const vec_u32_any *)p;
}
INLINE vec_u16 load_u16(const void *p)
{
    return *(const vec_u16_any *)p;
}
INLINE void store_u32(void *p, vec_u32 v)
{
    *(vec_u32_any *)p = v;
}
INLINE void store_u16(void *p, vec_u16 v)
{
    *(vec_u16_any *)p = v;
}

INLINE vec_u32 splat_u32(uint32_t x)
{
    return (vec_u32){ 0 } + x;
}

/* Lane-wise mask ? yes : no; the mask's lanes are 0 or -1, as comparisons give them. */
INLINE vec_u32 select_u32(vec_i32 mask, vec_u32 yes, vec_u32 no)
{
    return ((vec_u32)mask & yes) | (~(vec_u32)mask & no);
}

/* The sum of the lanes, added as a tree: the order is fixed by VW alone. */
INLINE float sum_lanes(vec_f32 v)
{
    float lane[VW];
    *(vec_f32_any *)lane = v;
    UNROLL
    for (int width = VW / 2; width > 0; width /= 2) {
        UNROLL
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    }
    return lane[0];
}
#endif
