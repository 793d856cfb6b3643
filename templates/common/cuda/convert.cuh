/* Element types in memory, and their conversion to and from f32, one value or a pair at a time.
 *
 * A dtype is a DT_ constant; functions that take one are inlined with a constant, so the choice
 * costs nothing. f32 to bf16, f16 and fp8 rounds to nearest even. NaN stays NaN; what is too large
 * becomes infinity in bf16 and f16, and the largest finite value in fp8 (e4m3 has no infinity).
 * 16-bit conversions are instructions from sm_80 up, fp8 ones from sm_89 up; below that they are
 * integer code. */
#ifndef QN_CUDA_CONVERT_CUH
#define QN_CUDA_CONVERT_CUH
#include "common/types.h"

#define DT_NONE 0
#define DT_F32 1
#define DT_BF16 2
#define DT_F16 3
#define DT_E4M3 5
#define DT_E5M2 6
#define DT_SIZE(dtype) ((dtype) == DT_F32 ? 4 : (dtype) <= DT_F16 ? 2 : 1)

/* ---- One value ----------------------------------------------------------------------------- */

__device__ __forceinline__ float f32_from_bf16(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

__device__ __forceinline__ uint16_t bf16_from_f32(float value)
{
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float f32_from_f16(uint16_t bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ uint16_t f16_from_f32(float value)
{
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

/* The value as tensor cores take it for tf32: 10 bits of mantissa, ties away from zero. */
__device__ __forceinline__ uint32_t tf32_from_f32(uint32_t value)
{
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(value)));
    return bits;
}

/* ---- A pair, the first value in the low half ----------------------------------------------- */

__device__ __forceinline__ uint32_t bf16x2_from_f32(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ uint32_t f16x2_from_f32(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

/* ---- fp8 ----------------------------------------------------------------------------------- */

/* The exponent field is moved into an f32 and rebiased by a product, which gets denormals right.
 * For e5m2 the bits are the upper half of an f16. */
__device__ __forceinline__ float f32_from_e4m3(uint8_t bits)
{
    float magnitude = __uint_as_float((uint32_t)(bits & 0x7f) << 20) * 0x1p120f;
    magnitude = (bits & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000) : magnitude;
    return bits & 0x80 ? -magnitude : magnitude;
}

__device__ __forceinline__ float f32_from_e5m2(uint8_t bits)
{
    return f32_from_f16((uint16_t)(bits << 8));
}

/* A float with `mantissa` bits below its leading one, whose least exponent is `least` and largest
 * value `most`: a denormal's spacing is that of the least exponent, and adding 1.5 2^23 spacings
 * rounds to it. */
__device__ __forceinline__ uint8_t fp8_from_f32(float value, int mantissa, int least, float most)
{
    uint32_t sign = __float_as_uint(value) >> 24 & 0x80;
    float magnitude = fminf(fabsf(value), most);
    int exponent = max((int)(__float_as_uint(magnitude) >> 23) - 127, least);
    float spacing = __uint_as_float((uint32_t)(exponent - mantissa + 127) << 23);
    float magic = 0x1.8p23f * spacing;
    float rounded = __fsub_rn(__fadd_rn(magnitude, magic), magic);
    uint32_t steps = (uint32_t)(rounded / spacing);
    uint32_t code = ((uint32_t)(exponent - least) << mantissa) + steps;
    return (uint8_t)(value != value ? 0x7f : sign | code);
}

__device__ __forceinline__ uint8_t e4m3_from_f32(float value)
{
#if __CUDA_ARCH__ >= 890
    uint16_t bits;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(0.0f), "f"(value));
    return (uint8_t)bits;
#else
    return fp8_from_f32(value, 3, -6, 448.0f);
#endif
}

/* A pair, the first value in the low byte. */
__device__ __forceinline__ uint32_t e4m3x2_from_f32(float low, float high)
{
#if __CUDA_ARCH__ >= 890
    uint16_t bits;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return fp8_from_f32(low, 3, -6, 448.0f) | (uint32_t)fp8_from_f32(high, 3, -6, 448.0f) << 8;
#endif
}

__device__ __forceinline__ uint8_t e5m2_from_f32(float value)
{
#if __CUDA_ARCH__ >= 890
    uint16_t bits;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(0.0f), "f"(value));
    return (uint8_t)bits;
#else
    return fp8_from_f32(value, 2, -14, 57344.0f);
#endif
}

/* ---- By dtype ------------------------------------------------------------------------------ */

__device__ __forceinline__ const void *element(int dtype, const void *base, int64_t index)
{
    return (const char *)base + index * DT_SIZE(dtype);
}

__device__ __forceinline__ float load_as_f32(int dtype, const void *p)
{
    if (dtype == DT_F32)
        return *(const float *)p;
    if (dtype == DT_E4M3 || dtype == DT_E5M2) {
        uint8_t bits = *(const uint8_t *)p;
        return dtype == DT_E4M3 ? f32_from_e4m3(bits) : f32_from_e5m2(bits);
    }
    uint16_t bits = *(const uint16_t *)p;
    return dtype == DT_BF16 ? f32_from_bf16(bits) : f32_from_f16(bits);
}

__device__ __forceinline__ void store_from_f32(int dtype, void *p, float value)
{
    if (dtype == DT_F32)
        *(float *)p = value;
    else if (dtype == DT_E4M3 || dtype == DT_E5M2)
        *(uint8_t *)p = dtype == DT_E4M3 ? e4m3_from_f32(value) : e5m2_from_f32(value);
    else
        *(uint16_t *)p = dtype == DT_BF16 ? bf16_from_f32(value) : f16_from_f32(value);
}
#endif
