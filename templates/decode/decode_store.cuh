/* From the sums of warps to o, or to a partial state. */
#ifndef DECODE_STORE_CUH
#define DECODE_STORE_CUH
#include "decode_line.cuh"
#include "decode_warp.cuh"
#if CLUSTER > 1
#include "common/cuda/cluster.cuh"
#endif

#define THREADS (32 * WARPS)
#define O_PITCH (DV + 4) /* f32; 4 keeps the rows of a fragment in different banks */

/* A warp's sums in shared memory: o [ROWS, O_PITCH], then m and l [ROWS, 2]. In the stage that it
 * has just read, where they fit; else behind all stages. */
#define SUMS_BYTES (ROWS * (O_PITCH + 2) * 4)
#define SUMS_IN_STAGE (SUMS_BYTES <= STAGE_BYTES)
#define SUMS_APART ((SUMS_IN_STAGE ? STAGES * STAGE_BYTES : SUMS_BYTES) / 4) /* f32, of warps */
#define STAGES_BYTES (WARPS * STAGES * STAGE_BYTES)

__device__ __forceinline__ float cache_scale(const float *scales, int head)
{
    return KV_SCALE == 0 ? 1.0f : scales[KV_SCALE == 2 ? head : 0];
}

/* Whether a sequence sees no token at all: scores that are all -infinity leave the same sums. */
__device__ __forceinline__ bool sees_nothing(const struct decode_args &call, int sequence)
{
    int shared = shared_tokens(call);
    struct seen seen = seen_of(call, sequence, shared);
    return seen.begin >= seen.end && (HAS_WINDOW ? seen.shared_begin : 0) >= shared;
}

/* Four columns of a row of o, of a whole state; the row's lse. */
__device__ __forceinline__ void store_row(const struct decode_args &call, const struct row &row,
                                          int column, struct split_kv_state state)
{
    bool is_empty = state.m == SPLIT_NONE && state.l == 0.0f && sees_nothing(call, row.sequence);
    float sink = SPLIT_NONE;
    if (SINKS) {
        sink = load_as_f32(SINKS_DTYPE, element(SINKS_DTYPE, call.sinks, row.head));
        if (!is_empty)
            split_add(&state, { sink * LOG2E, 1.0f, {} });
    }
    float factor = 0.0f;
    if (state.l != 0.0f)
        factor = cache_scale(call.v_scale, row.head / GROUP) / state.l;
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] = state.o[i] * factor;
    uint32_t words[2];
    words_from_f32(DTYPE, words, values, 4);
    int64_t at = row.sequence * call.o.sequence + row.head * call.o.head + column;
    char *to = (char *)call.o.data + at * 2;
    const int access = ALIGN_O < 8 ? ALIGN_O : 8;
#pragma unroll
    for (int i = 0; i < 8; i += access) {
        uint32_t part[2] = { words[i / 4] >> i % 4 * 8, words[1] };
        store_words(to + i, part, access);
    }
    if (HAS_LSE && column == 0)
        ((float *)call.lse.data)[row.sequence * call.lse.sequence + row.head * call.lse.head] =
            is_empty ? sink : (state.m + log2f(state.l)) / LOG2E;
}

__device__ __forceinline__ void put_sums(struct sums &sums, float *memory, int rows)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *o = memory + warp * SUMS_APART, *ml = o + ROWS * O_PITCH;
    int dv = lane / 4 * (IS_FP8 ? 2 : 1), apart = IS_FP8 ? 1 : 8;
#pragma unroll
    for (int i = 0; i < 2 * N_TILES; i++) {
        int n = i / 2, j = i % 2, row = n * 8 + lane % 4 * 2 + j;
        float l = sums.l[n][j];
#pragma unroll
        for (int step = 4; step < 32; step *= 2)
            l += __shfl_xor_sync(~0u, l, step);
        if (row >= rows)
            continue;
        if (lane < 4)
            *(float2 *)(ml + row * 2) = make_float2(sums.m[n][j] - P_SHIFT, l);
#pragma unroll
        for (int k = 0; k < DV / 16; k++) {
            o[row * O_PITCH + k * 16 + dv] = sums.o[k][n][j];
            o[row * O_PITCH + k * 16 + dv + apart] = sums.o[k][n][j + 2];
        }
    }
}

/* Four columns of what all warps have put there. */
__device__ __forceinline__ struct split_kv_state sum_of_warps(const float *memory, int row,
                                                              int column)
{
    struct split_kv_state states[WARPS];
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        const float *of_warp = memory + warp * SUMS_APART;
        float4 o = *(const float4 *)(of_warp + row * O_PITCH + column);
        float2 ml = *(const float2 *)(of_warp + ROWS * O_PITCH + row * 2);
        states[warp] = { ml.x, ml.y, { o.x, o.y, o.z, o.w } };
    }
    return split_add_all(states);
}

/* 1.3, by all threads */
__device__ __forceinline__ void store_sums(const struct decode_cuda_args &args,
                                           const struct piece &piece, const float *memory)
{
    for (int i = threadIdx.x; i < piece.rows * (DV / 4); i += THREADS) {
        int row = i / (DV / 4), column = i % (DV / 4) * 4;
        struct split_kv_state state = sum_of_warps(memory, row, column);
        if (piece.slot < 0) {
            store_row(args.call, row_of(piece, row), column, state);
            continue;
        }
        int64_t at = piece.slot * ROWS + row;
        *(float4 *)(args.space.o + at * DV + column) =
            make_float4(state.o[0], state.o[1], state.o[2], state.o[3]);
        if (column == 0)
            *(float2 *)(args.space.sums + at * 2) = make_float2(state.m, state.l);
    }
}

#if CLUSTER > 1
/* The same, of a unit that the blocks of a cluster share: each adds up its warps' sums, in `sums`,
 * m and l in the last of a row's O_PITCH, then all blocks' for a share of the columns. */
__device__ __forceinline__ void store_sums_of_cluster(const struct decode_cuda_args &args,
                                                      const struct piece &piece,
                                                      const float *memory, float *sums)
{
    const int items = piece.rows * (DV / 4), share = (items + CLUSTER - 1) / CLUSTER;
    for (int i = threadIdx.x; i < items; i += THREADS) {
        float *to = sums + i / (DV / 4) * O_PITCH;
        struct split_kv_state state = sum_of_warps(memory, i / (DV / 4), i % (DV / 4) * 4);
        *(float4 *)(to + i % (DV / 4) * 4) =
            make_float4(state.o[0], state.o[1], state.o[2], state.o[3]);
        if (i % (DV / 4) == 0)
            *(float4 *)(to + DV) = make_float4(state.m, state.l, 0.0f, 0.0f);
    }
    cluster_sync();
    const int first = cluster_rank() * share, end = min(first + share, items);
    for (int i = first + threadIdx.x; i < end; i += THREADS) {
        int row = i / (DV / 4), column = i % (DV / 4) * 4;
        uint32_t from = (uint32_t)__cvta_generic_to_shared(sums + row * O_PITCH);
        struct split_kv_state states[CLUSTER];
#pragma unroll
        for (int rank = 0; rank < CLUSTER; rank++) {
            float4 o = cluster_load(cluster_address(from + column * 4, rank));
            float4 ml = cluster_load(cluster_address(from + DV * 4, rank));
            states[rank] = { ml.x, ml.y, { o.x, o.y, o.z, o.w } };
        }
        store_row(args.call, row_of(piece, row), column, split_add_all(states));
    }
    cluster_sync();
}
#endif
#endif
