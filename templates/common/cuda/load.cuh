/* Vectors of elements in registers: `bytes` (16, 8, 4, 2 or 1, a constant) at a multiple of
 * themselves, as 32-bit words, the first element in the lowest bits. */
#ifndef QN_CUDA_LOAD_CUH
#define QN_CUDA_LOAD_CUH
#include "common/cuda/convert.cuh"

__device__ __forceinline__ void load_words(uint32_t *words, const void *p, int bytes)
{
    if (bytes == 16) {
        uint4 v = *(const uint4 *)p;
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if (bytes == 8) {
        uint2 v = *(const uint2 *)p;
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = bytes == 4   ? *(const uint32_t *)p
                   : bytes == 2 ? *(const uint16_t *)p
                                : *(const uint8_t *)p;
    }
}

__device__ __forceinline__ void store_words(void *p, const uint32_t *words, int bytes)
{
    if (bytes == 16)
        *(uint4 *)p = make_uint4(words[0], words[1], words[2], words[3]);
    else if (bytes == 8)
        *(uint2 *)p = make_uint2(words[0], words[1]);
    else if (bytes == 4)
        *(uint32_t *)p = words[0];
    else if (bytes == 2)
        *(uint16_t *)p = (uint16_t)words[0];
    else
        *(uint8_t *)p = (uint8_t)words[0];
}

/* size bytes from p as words, in accesses of width bytes: a divisor of size or a multiple. */
template <int size, int width>
__device__ __forceinline__ void load_bytes(uint32_t *words, const void *p)
{
    constexpr int piece = width < size ? width : size, part = piece < 4 ? piece : 4;
#pragma unroll
    for (int i = 0; i < size; i += piece) {
        uint32_t loaded[4];
        load_words(loaded, (const char *)p + i, piece);
        if (piece >= 4) {
#pragma unroll
            for (int w = 0; w < piece / 4; w++)
                words[i / 4 + w] = loaded[w];
        } else {
            uint32_t before = i % 4 ? words[i / 4] : 0;
            words[i / 4] = before | loaded[0] << i % 4 * 8;
        }
    }
    static_assert(size % part == 0, "whole accesses");
}

template <int size, int width>
__device__ __forceinline__ void store_bytes(void *p, const uint32_t *words)
{
    constexpr int piece = width < size ? width : size;
#pragma unroll
    for (int i = 0; i < size; i += piece) {
        if (piece >= 4) {
            store_words((char *)p + i, words + i / 4, piece);
        } else {
            uint32_t word = words[i / 4] >> i % 4 * 8;
            store_words((char *)p + i, &word, piece);
        }
    }
}

/* Shared memory by its 32-bit address. */
__device__ __forceinline__ uint32_t load_shared_4(uint32_t from)
{
    uint32_t word;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
    return word;
}

__device__ __forceinline__ void store_shared_16(uint32_t to, const uint32_t (&words)[4])
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

/* Element `index` of f32, bf16 or f16 words. */
__device__ __forceinline__ float word_as_f32(int dtype, const uint32_t *words, int index)
{
    if (dtype == DT_F32)
        return __uint_as_float(words[index]);
    uint16_t bits = (uint16_t)(words[index / 2] >> index % 2 * 16);
    return dtype == DT_BF16 ? f32_from_bf16(bits) : f32_from_f16(bits);
}

/* `count` values of f32, bf16 or f16 to words; an odd count leaves the last half word zero. */
__device__ __forceinline__ void words_from_f32(int dtype, uint32_t *words, const float *values,
                                               int count)
{
#pragma unroll
    for (int i = 0; i < count; i += dtype == DT_F32 ? 1 : 2) {
        float next = i + 1 < count ? values[i + 1] : 0.0f;
        if (dtype == DT_F32)
            words[i] = __float_as_uint(values[i]);
        else
            words[i / 2] = dtype == DT_BF16 ? bf16x2_from_f32(values[i], next)
                                            : f16x2_from_f32(values[i], next);
    }
}
#endif
