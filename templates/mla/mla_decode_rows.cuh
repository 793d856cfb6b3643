/* Rows of keys in shared memory, what is copied there, and 656-byte tokens.
 *
 * A tile of rows is boxes of 64 columns, one behind the other: row r of a box is 128 bytes, whose
 * chunk c of 16 bytes is the (c ^ r % 8)th, as wgmma and TMA have it.
 *
 * Of a 656-byte token (kv_dtype=e4m3) the 512 values are multiplied without their factors, which is
 * exact in bf16 and f16; the products' sums of each 128, and the weights, get them in f32. */
#ifndef MLA_DECODE_ROWS_CUH
#define MLA_DECODE_ROWS_CUH
#include "common/cuda/cp_async.cuh"
#include "common/cuda/load.cuh"
#include "common/cuda/mma.cuh"
#include "mla/mla_decode_cuda_args.h"

/* Where chunk `chunk` of row `row` lies in a tile of `rows`. */
__device__ __forceinline__ uint32_t row_chunk(int rows, int row, int chunk)
{
    return chunk / 8 * (rows * MLA_BOX_ROW) + row * MLA_BOX_ROW + (((chunk ^ row) & 7) << 4);
}

__device__ __forceinline__ uint32_t pair_from_f32(float low, float high)
{
    return DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
}

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    if (DTYPE == DT_BF16)
        mma_bf16(d, a, b0, b1);
    else
        mma_f16(d, a, b0, b1);
}

/* ---- Chunks of 16 bytes ---------------------------------------------------------------------- */

/* In accesses of `align` bytes, which `from` is a multiple of. */
template <int align>
__device__ __forceinline__ void load_chunk(uint32_t (&words)[4], const char *from)
{
#pragma unroll
    for (int i = 0; i < 16; i += align) {
        uint32_t part[4];
        load_words(part, from + i, align);
        if (align >= 4) {
#pragma unroll
            for (int j = 0; j < align / 4; j++)
                words[i / 4 + j] = part[j];
        } else {
            words[i / 4] = i % 4 ? words[i / 4] | part[0] << i % 4 * 8 : part[0];
        }
    }
}

/* Two elements of 16 bits at a multiple of `align` bytes. */
template <int align> __device__ __forceinline__ uint32_t load_pair(const char *from)
{
    if (align >= 4)
        return *(const uint32_t *)from;
    return *(const uint16_t *)from | (uint32_t) * (const uint16_t *)(from + 2) << 16;
}

/* The chunk at an offset; zeros where `from` is NULL. */
template <int align>
__device__ __forceinline__ void load_chunk_or_zeros(uint32_t (&words)[4], const char *from,
                                                    int offset)
{
    words[0] = words[1] = words[2] = words[3] = 0;
    if (from)
        load_chunk<align>(words, from + offset);
}

/* Zeros unless `is_there`; `from` is not read then. */
template <int align>
__device__ __forceinline__ void copy_row_chunk(uint32_t to, const char *from, bool is_there)
{
    if (align == 16)
        cp_async_16(to, from, is_there ? 16 : 0);
#pragma unroll
    for (int i = 0; align == 8 && i < 16; i += 8)
        cp_async_8(to + i, from + i, is_there ? 8 : 0);
#pragma unroll
    for (int i = 0; align == 4 && i < 16; i += 4)
        cp_async_4(to + i, from + i, is_there ? 4 : 0);
    if (align < 4) {
        uint32_t words[4] = {};
        if (is_there)
            load_chunk<align>(words, from);
        store_shared_16(to, words);
    }
}

/* Of the eight elements at a shared address. */
__device__ __forceinline__ bool has_infinity_or_nan(uint32_t chunk)
{
    const uint32_t exponent = DTYPE == DT_BF16 ? 0x7f80 : 0x7c00;
    bool found = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t word = load_shared_4(chunk + 4 * i);
        found |= (word & exponent) == exponent || (word >> 16 & exponent) == exponent;
    }
    return found;
}

/* ---- 656-byte tokens ------------------------------------------------------------------------- */

__device__ __forceinline__ float e4m3_factor(const char *tokens, int token, int group)
{
    return *(const float *)(tokens + token * MLA_TOKEN_BYTES + MLA_DV + 4 * group);
}

/* Two values, in the upper bytes of both halves. Their bits are moved to where those of DTYPE are,
 * and a product sets the exponent right, also of denormals. */
__device__ __forceinline__ uint32_t widen_pair(uint32_t halves)
{
    uint32_t sign = halves & 0x80008000, rest = halves & 0x7f007f00, pair;
    if (DTYPE == DT_BF16) {
        uint32_t bits = sign | rest >> 4; /* 2^120 too small */
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(pair)
            : "r"(bits), "r"(0x7b807b80), "r"(0x80008000));
    } else {
        uint32_t bits = sign | rest >> 1; /* 2^8 */
        asm("fma.rn.f16x2 %0, %1, %2, %3;"
            : "=r"(pair)
            : "r"(bits), "r"(0x5c005c00), "r"(0x80008000));
    }
    return pair;
}

/* Four values to two pairs. The code of NaN would be 480. */
__device__ __forceinline__ void widen_word(uint32_t word, uint32_t &low, uint32_t &high)
{
    low = widen_pair(__byte_perm(word, 0, 0x1404));
    high = widen_pair(__byte_perm(word, 0, 0x3424));
    uint32_t nan = (word & 0x7f7f7f7f) + 0x01010101 & 0x80808080;
    if (nan) {
        low |= (nan & 0x80 ? 0x7fff : 0) | (nan & 0x8000 ? 0x7fff0000 : 0);
        high |= (nan & 0x800000 ? 0x7fff : 0) | (nan & 0x80000000 ? 0x7fff0000 : 0);
    }
}

/* The rotary part is bf16 whatever DTYPE is. */
__device__ __forceinline__ uint32_t rotary_pair(uint32_t pair)
{
    if (DTYPE == DT_BF16)
        return pair;
    return f16x2_from_f32(f32_from_bf16((uint16_t)pair), f32_from_bf16((uint16_t)(pair >> 16)));
}

/* 16 values of a token, which are two chunks of a row, to where the first of them, an even one,
 * lies. */
__device__ __forceinline__ void store_widened(uint32_t to, const uint32_t (&values)[4])
{
    uint32_t pairs[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        widen_word(values[i], pairs[i / 2][i % 2 * 2], pairs[i / 2][i % 2 * 2 + 1]);
    store_shared_16(to, pairs[0]);
    store_shared_16(to ^ 16, pairs[1]);
}

/* A chunk of its rotary part. */
__device__ __forceinline__ void store_rotary(uint32_t to, const uint32_t (&values)[4])
{
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pairs[i] = rotary_pair(values[i]);
    store_shared_16(to, pairs);
}

/* `rows` tokens to a tile of rows, by `threads` threads. */
template <int rows, int threads>
__device__ __forceinline__ void widen_tokens(uint32_t tile, const char *tokens)
{
#pragma unroll 2
    for (int i = threadIdx.x % threads; i < rows * (MLA_DV / 16); i += threads) {
        int row = i / (MLA_DV / 16), chunk = i % (MLA_DV / 16);
        uint32_t words[4];
        load_words(words, tokens + row * MLA_TOKEN_BYTES + chunk * 16, 16);
        store_widened(tile + row_chunk(rows, row, 2 * chunk), words);
    }
    for (int i = threadIdx.x % threads; i < rows * 8; i += threads) {
        int row = i / 8, chunk = i % 8;
        uint32_t words[4];
        load_words(words, tokens + row * MLA_TOKEN_BYTES + MLA_DV + 16 + chunk * 16, 16);
        store_rotary(tile + row_chunk(rows, row, MLA_DV / 8 + chunk), words);
    }
}
#endif
