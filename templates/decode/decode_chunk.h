/* Rows of a cache as f32, a chunk of CHUNK columns at a time, in the order that costs least: one
 * of bf16 is a register of pairs, of which the even columns are a shift away and the odd ones a
 * mask. PER_CHUNK vectors of columns
 *
 *     bf16        0 2 4 ...    1 3 5 ...
 *     e4m3        likewise, by way of bf16, where there are 32 lanes of 16 bits; else as they are
 *     f16, f32    as they are
 *
 * A row of queries is put into that order beforehand, sums of values back into the columns'
 * afterwards. */
#ifndef DECODE_CHUNK_H
#define DECODE_CHUNK_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "common/cpu/transpose.h"

#define DT_E4M3 5
#define KV_SIZE(dtype) ((dtype) == DT_E4M3 ? 1 : DT_SIZE(dtype))
#ifdef __AVX512BW__
#define IS_SPLIT (KV_DTYPE == DT_BF16 || KV_DTYPE == DT_E4M3)
#else
#define IS_SPLIT (KV_DTYPE == DT_BF16)
#endif
#define PER_CHUNK (IS_SPLIT ? 2 : 1)
#define CHUNK (PER_CHUNK * VW)

typedef uint8_t vec_u8 __attribute__((vector_size(VW)));
typedef uint8_t vec_u8_any __attribute__((vector_size(VW), aligned(1), may_alias));

INLINE const char *kv_element(int dtype, const void *base, int64_t index)
{
    return (const char *)base + index * KV_SIZE(dtype);
}

/* s eeee mmm is s 0000eeee mmm0... with 120 more in the exponent; eeee = 0: mmm 2^-9, converted, as
 * arithmetic on denormals is slow; the code of all ones is NaN. */
INLINE vec_f32 f32_from_e4m3(vec_u8 bytes)
{
    vec_u32 bits = __builtin_convertvector(bytes, vec_u32), magnitude = bits & 0x7f;
    vec_f32 small = __builtin_convertvector((vec_i32)magnitude, vec_f32) * 0x1p-9f;
    vec_u32 value = (magnitude << 20) + 0x3c000000;
    value = select_u32((vec_i32)(magnitude < 8), (vec_u32)small, value);
    value = select_u32((vec_i32)(magnitude == 0x7f), splat_u32(0x7fc00000), value);
    return (vec_f32)(value | (bits & 0x80) << 24);
}

#ifdef __AVX512BW__
/* The same in the upper half of each, with the denormals looked up. */
INLINE vec_u32 pairs_from_e4m3(const void *p)
{
    typedef uint16_t vec_bits __attribute__((vector_size(4 * VW)));
    typedef short vec_short __attribute__((vector_size(4 * VW)));
    typedef uint8_t vec_bytes __attribute__((vector_size(2 * VW), aligned(1), may_alias));
#define EIGHT 0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60
    const vec_short small = { EIGHT, EIGHT, EIGHT, EIGHT };
#undef EIGHT
    vec_bits bits = __builtin_convertvector(*(const vec_bytes *)p, vec_bits);
    vec_bits magnitude = bits & 0x7f, value = (magnitude << 4) + 0x3c00;
    vec_bits looked_up = (vec_bits)__builtin_ia32_permvarhi512(small, (vec_short)bits);
    vec_bits is_small = (vec_bits)(magnitude < 8), is_nan = (vec_bits)(magnitude == 0x7f);
    value = (is_small & looked_up) | (~is_small & value);
    return (vec_u32)(value | (is_nan & 0x7fc0) | (bits & 0x80) << 8);
}

/* Two chunks, byte by byte: the upper and the lower bytes of bf16, then put side by side. */
INLINE void two_from_e4m3(const void *p, vec_u32 chunks[2])
{
    typedef uint8_t vec_64 __attribute__((vector_size(64)));
    typedef uint8_t vec_64_any __attribute__((vector_size(64), aligned(1), may_alias));
    typedef uint16_t vec_32 __attribute__((vector_size(64)));
    typedef uint64_t vec_8 __attribute__((vector_size(64)));
    typedef char vec_char __attribute__((vector_size(64)));
#define UPPER 0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0
#define LOWER 0, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0
    const vec_64 small_upper = { UPPER, UPPER, UPPER, UPPER };
    const vec_64 small_lower = { LOWER, LOWER, LOWER, LOWER };
#undef UPPER
#undef LOWER
    const vec_8 words = (vec_8) * (const vec_64_any *)p;
    const vec_64 bytes = (vec_64)__builtin_shufflevector(words, words, 0, 4, 1, 5, 2, 6, 3, 7);
    const vec_64 magnitude = bytes & 0x7f;
    const vec_64 is_small = (vec_64)(magnitude < 8), is_nan = (vec_64)(magnitude == 0x7f);
    vec_64 lower = (vec_64)((vec_32)bytes << 4) & 0xf0;
    vec_64 upper = ((vec_64)((vec_32)bytes >> 4) & 7) + 0x3c;
    lower =
        (is_small & (vec_64)__builtin_ia32_pshufb512((vec_char)small_lower, (vec_char)magnitude)) |
        (~is_small & lower);
    upper =
        (is_small & (vec_64)__builtin_ia32_pshufb512((vec_char)small_upper, (vec_char)magnitude)) |
        (~is_small & upper);
    lower |= is_nan & 0xc0;
    upper |= (is_nan & 0x7f) | (bytes & 0x80);
    chunks[0] = (vec_u32)__builtin_shufflevector(
        lower, upper, 0, 64, 1, 65, 2, 66, 3, 67, 4, 68, 5, 69, 6, 70, 7, 71, 16, 80, 17, 81, 18,
        82, 19, 83, 20, 84, 21, 85, 22, 86, 23, 87, 32, 96, 33, 97, 34, 98, 35, 99, 36, 100, 37,
        101, 38, 102, 39, 103, 48, 112, 49, 113, 50, 114, 51, 115, 52, 116, 53, 117, 54, 118, 55,
        119);
    chunks[1] = (vec_u32)__builtin_shufflevector(
        lower, upper, 8, 72, 9, 73, 10, 74, 11, 75, 12, 76, 13, 77, 14, 78, 15, 79, 24, 88, 25, 89,
        26, 90, 27, 91, 28, 92, 29, 93, 30, 94, 31, 95, 40, 104, 41, 105, 42, 106, 43, 107, 44, 108,
        45, 109, 46, 110, 47, 111, 56, 120, 57, 121, 58, 122, 59, 123, 60, 124, 61, 125, 62, 126,
        63, 127);
}
#else
INLINE vec_u32 pairs_from_e4m3(const void *p)
{
    return load_u32(p); /* never called */
}

INLINE void two_from_e4m3(const void *p, vec_u32 chunks[2])
{
    chunks[0] = chunks[1] = load_u32(p); /* never called */
}
#endif

/* Where IS_SPLIT: a chunk as bf16. */
INLINE vec_u32 load_pairs(const char *p)
{
    return KV_DTYPE == DT_E4M3 ? pairs_from_e4m3(p) : load_u32(p);
}

/* `count` chunks, 1 or 2. */
INLINE void load_all_pairs(const char *p, const int count, vec_u32 chunks[2])
{
    if (KV_DTYPE == DT_E4M3 && count == 2) {
        two_from_e4m3(p, chunks);
        return;
    }
    chunks[0] = load_pairs(p);
    if (count == 2)
        chunks[1] = load_pairs(kv_element(KV_DTYPE, p, CHUNK));
}

INLINE void load_chunk(const char *p, vec_f32 columns[PER_CHUNK])
{
    if (IS_SPLIT) {
        vec_u32 pairs = load_pairs(p);
        columns[0] = (vec_f32)(pairs << 16);
        columns[PER_CHUNK - 1] = (vec_f32)(pairs & 0xffff0000);
    } else if (KV_DTYPE == DT_E4M3) {
        columns[0] = f32_from_e4m3(*(const vec_u8_any *)p);
    } else {
        columns[0] = load_as_f32(KV_DTYPE, p);
    }
}

/* A row of D queries, of DTYPE, in the order of chunks. */
INLINE void load_in_chunks(const void *row, float *to)
{
    for (int c = 0; c < D; c += CHUNK) {
        float columns[CHUNK];
        for (int i = 0; i < CHUNK; i += VW)
            *(vec_f32_any *)(columns + i) = load_as_f32(DTYPE, element(DTYPE, row, c + i));
        UNROLL
        for (int i = 0; i < CHUNK; i++)
            to[c + i % PER_CHUNK * VW + i / PER_CHUNK] = columns[i];
    }
}

/* A row of DV sums from the order of chunks. */
INLINE void store_from_chunks(float *to, const float *sums)
{
    for (int c = 0; c < DV; c += CHUNK) {
        vec_f32 first = *(const vec_f32_any *)(sums + c);
        if (IS_SPLIT) {
            vec_f32 second = *(const vec_f32_any *)(sums + c + VW);
            *(vec_f32_any *)(to + c) = INTERLEAVE_LOW(first, second);
            *(vec_f32_any *)(to + c + VW) = INTERLEAVE_HIGH(first, second);
        } else {
            *(vec_f32_any *)(to + c) = first;
        }
    }
}
#endif
