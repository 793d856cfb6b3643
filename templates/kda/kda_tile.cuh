/* Tiles: 16 x 16 elements of DTYPE (bf16 or f16) in the registers of a warp, and their products
 * with f32 sums by mma.sync. sm_80 and up.
 *
 *     columns    0-7    8-15        each a matrix of 8 x 8: lane l has of it row l / 4,
 *     rows 0-7   r[0]   r[1]        columns 2 (l % 4) and the next, the first in the low half
 *         8-15   r[2]   r[3]
 *
 * So a tile is either operand of a product (a b^T: both have what is summed over along their
 * columns), it is what a product leaves, rounded, and its transpose costs four instructions. In
 * memory it is KDA_TILE_BYTES, a lane's four registers together: one access of 16 bytes a lane,
 * without conflicts of banks, or four whole lines of DRAM.
 *
 * What a lane has of a row are two pairs of columns, 8 apart. Where columns are channels of a head
 * they stand in the tile in an order in which these four are neighbours in memory:
 *
 *     column     0 1 2 3 4 5 6 7 8 9 ...      channel  4 ((c % 8) / 2) + c % 2 + 2 (c / 8)
 *     channel    0 1 4 5 8 9 . . 2 3 ...                                                     */
#ifndef KDA_TILE_CUH
#define KDA_TILE_CUH
#include "common/cuda/load.cuh"
#include "common/cuda/mma.cuh"

struct tile {
    uint32_t r[4];
};

/* 16 x 16 f32: columns 0-7 in d[0], 8-15 in d[1]; in each rows 0-7 first, a pair of columns. */
struct sums {
    float d[2][4];
};

__device__ __forceinline__ uint32_t pair_of(float low, float high)
{
    return DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
}

__device__ __forceinline__ float low_of(uint32_t pair)
{
    return DTYPE == DT_BF16 ? __uint_as_float(pair << 16) : f32_from_f16((uint16_t)pair);
}

__device__ __forceinline__ float high_of(uint32_t pair)
{
    return DTYPE == DT_BF16 ? __uint_as_float(pair & 0xffff0000) : f32_from_f16(pair >> 16);
}

__device__ __forceinline__ void mma_16_bit(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1)
{
    if (DTYPE == DT_BF16)
        mma_bf16(d, a, b0, b1);
    else
        mma_f16(d, a, b0, b1);
}

/* sums += a b^T */
__device__ __forceinline__ void multiply(struct sums *sums, const struct tile &a,
                                         const struct tile &b)
{
    const uint32_t rows[4] = { a.r[0], a.r[2], a.r[1], a.r[3] };
    mma_16_bit(sums->d[0], rows, b.r[0], b.r[1]);
    mma_16_bit(sums->d[1], rows, b.r[2], b.r[3]);
}

__device__ __forceinline__ struct tile rounded(const struct sums &sums)
{
    struct tile tile;
#pragma unroll
    for (int i = 0; i < 4; i++)
        tile.r[i] = pair_of(sums.d[i % 2][i / 2 * 2], sums.d[i % 2][i / 2 * 2 + 1]);
    return tile;
}

__device__ __forceinline__ struct sums widened(const struct tile &tile)
{
    struct sums sums;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums.d[i % 2][i / 2 * 2] = low_of(tile.r[i]);
        sums.d[i % 2][i / 2 * 2 + 1] = high_of(tile.r[i]);
    }
    return sums;
}

/* What rounding left of the sums, rounded: both tiles together have twice the digits. */
__device__ __forceinline__ struct tile rest_of(const struct sums &sums, const struct tile &tile)
{
    struct sums rest = widened(tile);
#pragma unroll
    for (int i = 0; i < 8; i++)
        rest.d[i / 4][i % 4] = sums.d[i / 4][i % 4] - rest.d[i / 4][i % 4];
    return rounded(rest);
}

__device__ __forceinline__ struct sums zero_sums(void)
{
    struct sums sums;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sums.d[i / 4][i % 4] = 0.0f;
    return sums;
}

__device__ __forceinline__ struct tile negated(const struct tile &tile)
{
    struct tile other;
#pragma unroll
    for (int i = 0; i < 4; i++)
        other.r[i] = tile.r[i] ^ 0x80008000;
    return other;
}

/* By all lanes of a warp. */
__device__ __forceinline__ uint32_t transposed_8x8(uint32_t matrix)
{
    uint32_t other;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(matrix));
    return other;
}

__device__ __forceinline__ struct tile transposed(const struct tile &tile)
{
    struct tile other;
#pragma unroll
    for (int i = 0; i < 4; i++)
        other.r[i % 2 * 2 + i / 2] = transposed_8x8(tile.r[i]);
    return other;
}

/* ---- Memory -------------------------------------------------------------------------------- */

__device__ __forceinline__ struct tile load_tile(const char *tiles, int index)
{
    struct tile tile;
    load_words(tile.r, tiles + index * KDA_TILE_BYTES + threadIdx.x % 32 * 16, 16);
    return tile;
}

__device__ __forceinline__ void store_tile(char *tiles, int index, const struct tile &tile)
{
    store_words(tiles + index * KDA_TILE_BYTES + threadIdx.x % 32 * 16, tile.r, 16);
}

/* As the serial kernel's second operand: a tile, or for wgmma 8 x 8 of it after the other, 128
 * bytes each. */
__device__ __forceinline__ void store_operand(char *tiles, int index, const struct tile &tile)
{
    if (!WGMMA) {
        store_tile(tiles, index, tile);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        *(uint32_t *)(tiles + index * KDA_TILE_BYTES + i * 128 + threadIdx.x % 32 * 4) = tile.r[i];
}

/* As registers of a product's first operand stand; back again. A tile that is loaded for nothing
 * else, and is stored so, takes no moves. */
__device__ __forceinline__ struct tile reordered(const struct tile &tile)
{
    return { { tile.r[0], tile.r[2], tile.r[1], tile.r[3] } };
}

/* One element's place in a tile. */
__device__ __forceinline__ int tile_offset(int row, int column)
{
    return (row % 8 * 4 + column % 8 / 2) * 16 + (row / 8 * 2 + column / 8) * 4 + column % 2 * 2;
}

/* Four neighbouring elements, which lie at a multiple of `align` bytes, as words. */
template <int dtype, int align>
__device__ __forceinline__ void load_4(uint32_t *words, const void *p)
{
    const int bytes = 4 * DT_SIZE(dtype), step = align < bytes ? align : bytes;
    const char *from = (const char *)p;
    if (step >= 4) {
#pragma unroll
        for (int i = 0; i < bytes; i += step)
            load_words(words + i / 4, from + i, step);
        return;
    }
#pragma unroll
    for (int i = 0; i < bytes; i += 4)
        words[i / 4] = *(const uint16_t *)(from + i) | (uint32_t) * (const uint16_t *)(from + i + 2)
                                                           << 16;
}

template <int dtype, int align>
__device__ __forceinline__ void store_4(void *p, const uint32_t *words)
{
    const int bytes = 4 * DT_SIZE(dtype), step = align < bytes ? align : bytes;
    char *to = (char *)p;
    if (step >= 4) {
#pragma unroll
        for (int i = 0; i < bytes; i += step)
            store_words(to + i, words + i / 4, step);
        return;
    }
#pragma unroll
    for (int i = 0; i < bytes; i += 4) {
        *(uint16_t *)(to + i) = (uint16_t)words[i / 4];
        *(uint16_t *)(to + i + 2) = (uint16_t)(words[i / 4] >> 16);
    }
}
#endif
