/* The end of a block: sums of values become outputs, by way of shared memory. */
#ifndef ATTENTION_STORE_CUH
#define ATTENTION_STORE_CUH
#include "attention_scores.cuh"

__device__ __forceinline__ void scale_values(float (&values)[M_FRAGMENTS][V_FRAGMENTS][4],
                                             float factor)
{
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS * V_FRAGMENTS * 4; i++)
        values[i / 4 / V_FRAGMENTS][i / 4 % V_FRAGMENTS][i % 4] *= factor;
}

__device__ __forceinline__ void store_chunk(char *to, const uint32_t (&words)[4])
{
#pragma unroll
    for (int i = 0; i < 16; i += ALIGN_O) {
        uint32_t piece[4] = { words[i / 4] >> i % 4 * 8 };
#pragma unroll
        for (int j = 1; j < ALIGN_O / 4; j++)
            piece[j] = words[i / 4 + j];
        store_words(to + i, piece, ALIGN_O);
    }
}

/* `to` is where the warp's rows of q were, `row` the first of them. */
__device__ __forceinline__ void store_values(const struct attention_cuda_args *args,
                                             const struct block_rows *rows, int row, char *shared,
                                             const float (&values)[M_FRAGMENTS][V_FRAGMENTS][4])
{
    int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * M_FRAGMENTS; i++) {
        char *line = shared + lane % 4 * 4;
#pragma unroll
        for (int j = 0; j < V_FRAGMENTS; j++) {
            const float(&four)[4] = values[i / 2][j];
            *(uint32_t *)(line + tile_at<V_PITCH>(i * 8 + lane / 4, j)) =
                i % 2 ? pack(four[2], four[3]) : pack(four[0], four[1]);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < WM * (DV / 8); i += 32) {
        int line = i / (DV / 8), chunk = i % (DV / 8);
        uint4 v = *(const uint4 *)(shared + tile_at<V_PITCH>(line, chunk));
        uint32_t words[4] = { v.x, v.y, v.z, v.w };
        int mine = rows->first + row + line;
        if (mine < rows->count)
            store_chunk((char *)args->o.data + offset_of(args, rows, &args->o, mine) + chunk * 16,
                        words);
    }
}

__device__ __forceinline__ void finish(const struct attention_cuda_args *args,
                                       const struct block_rows *rows, int row,
                                       struct softmax_rows<M_FRAGMENTS> *state,
                                       float (&values)[M_FRAGMENTS][V_FRAGMENTS][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * M_FRAGMENTS; i++) {
        int mine = rows->first + row + i * 8 + lane / 4, head = head_of(args, rows, mine);
        float sink = SOFTMAX_NONE;
        if (SINKS_DTYPE != DT_NONE)
            sink = load_as_f32(SINKS_DTYPE, element(SINKS_DTYPE, args->sinks, head)) * LOG2_E;
        struct softmax_end end =
            softmax_finish(state->reference[i / 2][i % 2], state->sum[i / 2][i % 2], sink);
#pragma unroll
        for (int j = 0; j < V_FRAGMENTS; j++) {
            float(&pair)[4] = values[i / 2][j];
            int at = i % 2 * 2;
            pair[at] = end.factor == 0.0f ? 0.0f : pair[at] * end.factor;
            pair[at + 1] = end.factor == 0.0f ? 0.0f : pair[at + 1] * end.factor;
        }
        if (HAS_LSE && lane % 4 == 0 && mine < rows->count)
            args->lse[(VARLEN ? 0 : rows->sequence * args->lse_sequence) +
                      (rows->q_begin + query_of(args, mine)) * args->lse_token + head] =
                end.log2 * LN_2;
    }
}
#endif
