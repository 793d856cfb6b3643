/* Scores of mla_decode_sm80: 8 warps multiply BM rows of queries by TILE rows of the cache. Each
 * has some rows, some tokens, and of every box of 64 products a share; the shares' sums are added
 * by those who read them (score_pair). */
#ifndef MLA_DECODE_SM80_SCORES_CUH
#define MLA_DECODE_SM80_SCORES_CUH
#include "common/cuda/ldmatrix.cuh"
#include "mla/mla_decode_rows.cuh"

#define WARPS 8
#define IS_E4M3 (KV_DTYPE == DT_E4M3)
#define BOXES (MLA_DK / 64)

/* Warps of the scores: along rows, tokens and products (the last the fastest). */
#define SCORE_M (BM == 16 ? 1 : 2)
#define SCORE_K (BM == 32 && TILE == 16 ? 4 : 2)
#define SCORE_N (WARPS / SCORE_M / SCORE_K)
#define SCORE_BLOCKS (BM / SCORE_M / 16) /* of 16 rows */
#define SCORE_TOKENS (TILE / SCORE_N)    /* 8 or 16 */
#define BOX_STEPS (4 / SCORE_K)          /* of 16 products of a box, a warp */
#define SCORE_PITCH (TILE + 8)           /* f32; the eight rows of a fragment in different banks */
#define KEEPS_QUERIES (BM == 16)         /* in registers */
#define CHAINS (16 / SCORE_TOKENS) /* sums of one element, which need not wait for each other */

static_assert(SCORE_TOKENS == 8 ? BOX_STEPS == 2 : SCORE_TOKENS == 16, "a ldmatrix of keys");

/* A warp's sums. */
struct score_sums {
    float s[SCORE_BLOCKS][SCORE_TOKENS / 8][4];
};

struct score_warp {
    int share, tokens, rows; /* share of the products; first token, first row of the tile */
};

__device__ __forceinline__ struct score_warp score_warp(void)
{
    int warp = threadIdx.x / 32;
    return { warp % SCORE_K, warp / SCORE_K % SCORE_N * SCORE_TOKENS,
             warp / SCORE_K / SCORE_N * 16 * SCORE_BLOCKS };
}

/* Fragments of 16 rows of queries by step `step` of box `box` of this warp's. */
__device__ __forceinline__ void query_fragment(uint32_t (&a)[4], uint32_t queries, int block,
                                               int box, int step)
{
    const struct score_warp warp = score_warp();
    int lane = threadIdx.x % 32, row = warp.rows + 16 * block + lane % 16;
    uint32_t at = row_chunk(BM, row, warp.share * BOX_STEPS * 2 + lane / 16) ^ step * 32;
    ldmatrix_x4(a, queries + at + box * (BM * MLA_BOX_ROW));
}

__device__ __forceinline__ void copy_fragment(uint32_t (&to)[4], const uint32_t (&from)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        to[i] = from[i];
}

/* Products of a warp's tokens in one box, added to sums. */
__device__ __forceinline__ void multiply_box(struct score_sums (&sums)[CHAINS], uint32_t tile,
                                             uint32_t queries, const uint32_t (*kept)[BOX_STEPS][4],
                                             int box)
{
    const struct score_warp warp = score_warp();
    const int lane = threadIdx.x % 32, first = warp.share * BOX_STEPS * 2;
    const int token = warp.tokens + (SCORE_TOKENS == 8 ? 0 : lane / 16 * 8) + lane % 8;
    const int chunk = first + (SCORE_TOKENS == 8 ? lane / 8 : lane / 8 % 2);
    const uint32_t lane_at = row_chunk(TILE, token, chunk);
    tile += box * (TILE * MLA_BOX_ROW);
    uint32_t b[BOX_STEPS][SCORE_TOKENS / 8][2];
    if (SCORE_TOKENS == 8) {
        uint32_t m[4];
        ldmatrix_x4(m, tile + lane_at);
#pragma unroll
        for (int i = 0; i < 4; i++)
            b[i / 2 % BOX_STEPS][0][i % 2] = m[i];
    } else {
#pragma unroll
        for (int step = 0; step < BOX_STEPS; step++) {
            uint32_t m[4];
            ldmatrix_x4(m, tile + (lane_at ^ step * 32));
#pragma unroll
            for (int i = 0; i < 4; i++)
                b[step][i / 2 % (SCORE_TOKENS / 8)][i % 2] = m[i];
        }
    }
#pragma unroll
    for (int step = 0; step < BOX_STEPS; step++) {
#pragma unroll
        for (int block = 0; block < SCORE_BLOCKS; block++) {
            uint32_t a[4];
            if (!KEEPS_QUERIES)
                query_fragment(a, queries, block, box, step);
            else
                copy_fragment(a, kept[box][step]);
#pragma unroll
            for (int i = 0; i < SCORE_TOKENS / 8; i++)
                multiply(sums[step % CHAINS].s[block][i], a, b[step][i][0], b[step][i][1]);
        }
    }
}

/* Sums times the tokens' factors of one group are added to totals. */
__device__ __forceinline__ void
add_group(struct score_sums *totals, struct score_sums (&sums)[CHAINS], const char *raw, int group)
{
#pragma unroll
    for (int i = 0; i < SCORE_TOKENS / 8 * 2; i++) {
        int token = score_warp().tokens + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float factor = e4m3_factor(raw, token, group);
#pragma unroll
        for (int j = 0; j < SCORE_BLOCKS * 2 * CHAINS; j++) {
            int block = j / 2 % SCORE_BLOCKS, at = j % 2 * 2 + i % 2;
            float &sum = sums[j / 2 / SCORE_BLOCKS].s[block][i / 2][at];
            totals->s[block][i / 2][at] += sum * factor;
            sum = 0.0f;
        }
    }
}

/* To `scores`, [SCORE_K][BM][SCORE_PITCH]. tile: of rows; raw: the same tokens of e4m3; kept: this
 * warp's fragments of queries, where they are in registers. */
__device__ __forceinline__ void compute_scores(float *scores, uint32_t queries, uint32_t tile,
                                               const char *raw,
                                               const uint32_t (*kept)[BOX_STEPS][4])
{
    const struct score_warp warp = score_warp();
    struct score_sums sums[CHAINS] = {}, totals = {};
#pragma unroll
    for (int box = 0; box < BOXES; box++) {
        multiply_box(sums, tile, queries, kept, box);
        if (IS_E4M3 && box % 2 && box < BOXES - 1)
            add_group(&totals, sums, raw, box / 2);
    }
    scores += warp.share * BM * SCORE_PITCH;
#pragma unroll
    for (int i = 0; i < SCORE_BLOCKS * SCORE_TOKENS / 8; i++) {
        int block = i / (SCORE_TOKENS / 8), tokens = i % (SCORE_TOKENS / 8);
        float(&s)[4] = totals.s[block][tokens];
        int row = warp.rows + 16 * block + threadIdx.x % 32 / 4;
        float *to = scores + row * SCORE_PITCH + warp.tokens + 8 * tokens + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < 4 * CHAINS; j++)
            s[j % 4] += sums[j / 4].s[block][tokens][j % 4];
        *(float2 *)to = make_float2(s[0], s[1]);
        *(float2 *)(to + 8 * SCORE_PITCH) = make_float2(s[2], s[3]);
    }
}

__device__ __forceinline__ float2 score_pair(const float *scores, int row, int token)
{
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int share = 0; share < SCORE_K; share++) {
        float2 s = *(const float2 *)(scores + (share * BM + row) * SCORE_PITCH + token);
        sum.x += s.x, sum.y += s.y;
    }
    return sum;
}
#endif
