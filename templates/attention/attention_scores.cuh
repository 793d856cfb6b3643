/* Scores of a warp's WM rows and a tile's BN keys, as mma and wgmma leave them (mma.cuh): mapped,
 * masked, and made into p, the weights of values. */
#ifndef ATTENTION_SCORES_CUH
#define ATTENTION_SCORES_CUH
#include "attention_read.cuh"

template <typename function>
__device__ __forceinline__ void map_scores(float (&scores)[M_FRAGMENTS][N_FRAGMENTS][4], function f)
{
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS * N_FRAGMENTS * 4; i++) {
        float &s = scores[i / 4 / N_FRAGMENTS][i / 4 % N_FRAGMENTS][i % 4];
        s = f(s);
    }
}

/* Scores of keys that a row does not see become -infinity. */
__device__ __forceinline__ void mask_scores(float (&scores)[M_FRAGMENTS][N_FRAGMENTS][4],
                                            const struct attention_cuda_args *args,
                                            const struct block *block, int tile)
{
    uint32_t thread = thread_again();
    int lane = thread % 32, row = block->rows.first + thread / 32 * WM + lane / 4;
    int column = key_of(block, tile) + lane % 4 * 2, tile_end = end_of(block, tile);
#pragma unroll
    for (int i = 0; i < 2 * M_FRAGMENTS; i++) {
        struct seen seen = seen_by(args, &block->rows, row + i * 8);
        int last = min(seen.end, tile_end) - column, begin = seen.begin - column;
#pragma unroll
        for (int j = 0; j < N_FRAGMENTS; j++) {
            float(&pair)[4] = scores[i / 2][j];
            int at = i % 2 * 2;
            pair[at] = 8 * j >= begin && 8 * j < last ? pair[at] : SOFTMAX_NONE;
            pair[at + 1] = 8 * j + 1 >= begin && 8 * j + 1 < last ? pair[at + 1] : SOFTMAX_NONE;
        }
    }
}

__device__ __forceinline__ uint32_t pack(float low, float high)
{
    return DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
}

/* The fragments of p of 16 keys are those of scores, rounded. */
__device__ __forceinline__ void round_p(uint32_t (&a)[M_FRAGMENTS][4],
                                        const float (&p)[M_FRAGMENTS][N_FRAGMENTS][4], int step)
{
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++) {
        const float(&left)[4] = p[i][2 * step], (&right)[4] = p[i][2 * step + 1];
        a[i][0] = pack(left[0], left[1]), a[i][1] = pack(left[2], left[3]);
        a[i][2] = pack(right[0], right[1]), a[i][3] = pack(right[2], right[3]);
    }
}

/* Scores of 16 keys become p, and are summed. */
__device__ __forceinline__ void exponentials(struct softmax_rows<M_FRAGMENTS> *state,
                                             float (&scores)[M_FRAGMENTS][N_FRAGMENTS][4],
                                             float factor, int step)
{
#pragma unroll
    for (int pair = 0; pair < M_FRAGMENTS * 4; pair++) {
        int i = pair / 4, half = pair % 2;
        float *two = &scores[i][2 * step + pair / 2 % 2][2 * half];
        float origin = softmax_origin(state->reference[i][half]);
        two[0] = exp2_fast(fmaf(two[0], factor, -origin));
        two[1] = exp2_fast(fmaf(two[1], factor, -origin));
        state->sum[i][half] += two[0] + two[1];
    }
}
#endif
