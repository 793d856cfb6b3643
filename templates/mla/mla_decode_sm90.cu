/* mla_decode by wgmma, sm_90a. A block has BM = 64 rows of queries (mla_decode_items.cuh) and takes
 * TILE = 64 rows of the cache at a time:
 *
 *     warpgroups 0, 1   scores of all 64 rows and tokens, their softmax, and 256 columns of o: the
 *                       scores twice, so that nothing is exchanged
 *     warpgroup 2       copies rows, a tile ahead: by TMA those of one page, by cp.async those of
 *                       several, and the last ones, behind which zeros are wanted
 *
 *     shared memory     [ queries ][ stage 0 ][ stage 1 ][ barriers, jobs, factors, flags, walks ]
 *
 * Queries and stages are 9 boxes of 64 columns, 64 rows of 128 bytes (swizzled): along the columns
 * the keys, and the first 8 boxes across them the values. The weights come from registers.
 *
 * With TURNS the warpgroups multiply keys in turns, so that they do not come to their softmax at
 * the same time.
 *
 *     full[stage]      the rows are there; all copiers arrive
 *     empty[stage]     nobody reads them any more; each warp arrives
 *
 * Of 656-byte tokens the copiers widen the values, through registers, and the consumers apply the
 * factors (mla_decode_rows.cuh): scores are the sum of five, and the columns of each half of a
 * warpgroup's o have weights of their own.
 *
 * With each stage goes a job, which tells the consumers what they have; they need not walk. */
#include "common/types.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#define KV_DTYPE DT_BF16
#define SQ 1
#define HQ 128
#define PAGE 64
#define CAUSAL 0
#define HAS_TOPK 0
#define HAS_LSE 1
#define DETERMINISTIC 0
#define ALIGN_Q 16
#define ALIGN_KV 16
#define ALIGN_O 16
#define USE_MAP 1
#define TURNS 1
#endif
#define BM 64
#define TILE 64

#include "common/cuda/named_barrier.cuh"
#include "common/cuda/wgmma.cuh"
#include "mla/mla_decode_combine.cuh"
#include "mla/mla_decode_softmax.cuh"

#if DTYPE == DT_BF16
#define OPERAND_TYPE bf16
#else
#define OPERAND_TYPE f16
#endif
#if TILE /* included within an #if, wgmma_shape.cuh is put in each time */
#define WGMMA_NAME multiply_keys
#define WGMMA_N TILE
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"
#define WGMMA_NAME multiply_half_the_keys
#define WGMMA_N 32
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"
#define WGMMA_NAME multiply_values
#define WGMMA_N 128
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_B 1
#define WGMMA_FROM_REGISTERS
#include "common/cuda/wgmma_shape.cuh"
#endif

#include "mla/mla_decode_sm90_copy.cuh"

constexpr int LOADS_AT_ONCE = ALIGN_Q < 4 || IS_E4M3 ? 1 : 4;
#define COLUMNS (MLA_DV / 2) /* of a warpgroup */
#define HALF 128             /* of them, those of one factor */

enum { BARRIER_CONSUMERS = 1, BARRIER_TURN = 2 }; /* a turn for each warpgroup */

/* ---- Consumers ------------------------------------------------------------------------------- */

struct state {
    float o[COLUMNS / HALF][HALF / 2];
    float m[2], l[2];
};

/* The unit's queries of a sequence to shared memory; zeros for rows that are not there. */
__device__ __forceinline__ void load_queries(const struct mla_cuda_args *args,
                                             const struct shared *shared, int sequence)
{
    named_barrier_sync(BARRIER_CONSUMERS, CONSUMERS); /* nobody multiplies those before */
    int first = threadIdx.x;
    asm volatile("" : "+r"(first)); /* addresses are not for the loop of all tiles to keep */
#pragma unroll LOADS_AT_ONCE
    for (int i = first; i < BM * (MLA_ROW / 16); i += CONSUMERS) {
        int row = i / (MLA_ROW / 16), chunk = i % (MLA_ROW / 16);
        int64_t offset = heads_offset(args->mla.q, sequence, blockIdx.y, row);
        uint32_t words[4] = {};
        if (offset >= 0)
            load_chunk<ALIGN_Q>(words, (const char *)args->mla.q.data + offset * 2 + chunk * 16);
        take_sign(words, args->mla.scale);
        store_shared_16(shared->queries + row_chunk(BM, row, chunk), words);
    }
    tma_store_fence();
    named_barrier_sync(BARRIER_CONSUMERS, CONSUMERS);
}

/* The last of the tile's `rows` rows are not seen by all queries: of these, those with values that
 * are not finite become zero, so that they do not get to the others; to queries that see them they
 * do by the scores. */
__device__ __forceinline__ void clear_broken_rows(uint32_t tile, int rows)
{
    const int row = threadIdx.x / 4, lane = threadIdx.x % 4;
    const uint32_t zeros[4] = {};
    bool is_broken = false;
    named_barrier_sync(BARRIER_CONSUMERS, CONSUMERS); /* all have their scores */
    for (int chunk = lane; row > rows - SQ && chunk < MLA_DV / 8; chunk += 4)
        is_broken |= has_infinity_or_nan(tile + row_chunk(TILE, row, chunk));
    uint32_t broken = __ballot_sync(~0u, is_broken);
    if (broken >> threadIdx.x % 32 / 4 * 4 & 15)
        for (int chunk = lane; chunk < MLA_DV / 8; chunk += 4)
            store_shared_16(tile + row_chunk(TILE, row, chunk), zeros);
    tma_store_fence();
    named_barrier_sync(BARRIER_CONSUMERS, CONSUMERS);
}

__device__ __forceinline__ int lane_row(void)
{
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

/* -infinity where a row of the cache is not seen. */
__device__ __forceinline__ void mask_scores(const struct shared *shared, int rows, int stage,
                                            float (&s)[TILE / 8][4])
{
    const int first = threadIdx.x % 4 * 2;
    const int seen[2] = { rows_seen(rows, lane_row()) - first,
                          rows_seen(rows, lane_row() + 8) - first };
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        uint32_t flags = 0x101;
        if (HAS_TOPK)
            flags = *(const uint16_t *)(shared->flags + stage * TILE + 8 * i + first);
#pragma unroll
        for (int j = 0; j < 4; j++)
            s[i][j] = 8 * i + j % 2 < seen[j / 2] && flags >> j % 2 * 8 & 1 ? s[i][j] : SPLIT_NONE;
    }
}

__device__ __forceinline__ void scale_rows(struct state *state, const float (&keep)[2])
{
    if (!__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f))
        return;
#pragma unroll
    for (int i = 0; i < COLUMNS / HALF * 64; i++)
        state->o[i / 64][i % 64] *= keep[i / 2 % 2];
}

/* Where step `step` of 16 products is in queries and keys. */
__device__ __forceinline__ constexpr int step_at(int step)
{
    return step / 4 * (BOX_BYTES / 16) + step % 4 * 2;
}

/* Products of all 64 rows and tokens, in steps from `begin` on. */
__device__ __forceinline__ void multiply_steps(float (&sums)[TILE / 8][4], uint64_t queries,
                                               uint64_t keys, int begin)
{
    float(&all)[TILE / 2] = *(float(*)[TILE / 2]) sums;
    wgmma_fence();
#pragma unroll
    for (int step = begin; step < MLA_DK / 16; step++)
        multiply_keys(all, queries + step_at(step), keys + step_at(step), step > begin);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(all);
}

__device__ __forceinline__ const float *factors_of(const struct shared *shared, int stage,
                                                   int group)
{
    return shared->factors + (stage * GROUPS + group) * TILE + threadIdx.x % 4 * 2;
}

/* Products of one group, of which queries and keys are the first, with half of the tokens, times
 * its factors, added to s. */
__device__ __forceinline__ void add_group(const float *factors, int half, uint64_t queries,
                                          uint64_t keys, float (&s)[TILE / 8][4])
{
    float part[TILE / 4];
    factors += half * (TILE / 2);
    keys += half * (TILE / 2 * MLA_BOX_ROW / 16);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < MLA_GROUP / 16; step++)
        multiply_half_the_keys(part, queries + step_at(step), keys + step_at(step), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(part);
#pragma unroll
    for (int i = 0; i < TILE / 4; i++)
        s[half * (TILE / 16) + i / 4][i % 4] += part[i] * factors[i / 4 * 8 + i % 2];
}

__device__ __forceinline__ void compute_scores(const struct shared *shared, uint32_t tile,
                                               int stage, float (&s)[TILE / 8][4])
{
    uint64_t queries = wgmma_along_k(shared->queries), keys = wgmma_along_k(tile);
    multiply_steps(s, queries, keys, IS_E4M3 ? MLA_DV / 16 : 0);
#pragma unroll 1
    for (int group = 0; group < GROUPS && IS_E4M3; group++) {
        add_group(factors_of(shared, stage, group), 0, queries, keys, s);
        add_group(factors_of(shared, stage, group), 1, queries, keys, s);
        queries += step_at(MLA_GROUP / 16);
        keys += step_at(MLA_GROUP / 16);
    }
}

/* As the first operand; of e4m3 times what the values of a group have as factors. */
__device__ __forceinline__ void weights_of(const struct shared *shared, int stage, int group,
                                           bool is_partly_seen, const float (&s)[TILE / 8][4],
                                           uint32_t (&p)[TILE / 16][4])
{
    const float *factors = factors_of(shared, stage, group);
#pragma unroll
    for (int i = 0; i < TILE / 16; i++) {
        float weights[2][4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float weight = s[2 * i + j / 4][j % 4];
            if (IS_E4M3 && !(is_partly_seen && weight == 0.0f)) /* not 0 NaN */
                weight *= factors[8 * (2 * i + j / 4) + j % 2];
            weights[j / 4][j % 4] = weight;
        }
        as_operand(p[i], weights[0], weights[1]);
    }
}

__device__ __forceinline__ void add_tile(const struct mla_cuda_args *args,
                                         const struct shared *shared, int warpgroup, int stage,
                                         struct state *state)
{
    const uint32_t tile = shared->stages + stage * BOXES * BOX_BYTES;
    const uint64_t values = wgmma_along_mn<TILE>(tile + warpgroup * (COLUMNS / 64) * BOX_BYTES);
    const int rows = shared->jobs[stage].rows, group = warpgroup * (COLUMNS / HALF);
    float s[TILE / 8][4], keep[2];
    uint32_t p[TILE / 16][4];
    if (TURNS)
        named_barrier_sync(BARRIER_TURN + warpgroup, CONSUMERS);
    compute_scores(shared, tile, stage, s);
    if (TURNS)
        named_barrier_arrive(BARRIER_TURN + 1 - warpgroup, CONSUMERS);
    if (has_partly_seen(rows))
        clear_broken_rows(tile, rows);
    if (!has_all_seen(rows))
        mask_scores(shared, rows, stage, s);
    softmax_rows(s, score_factor(args->mla.scale), state->m, state->l, keep);
    scale_rows(state, keep);
    weights_of(shared, stage, group, has_partly_seen(rows), s, p);
#pragma unroll
    for (int half = 0; half < COLUMNS / HALF; half++) {
        if (IS_E4M3 && half)
            weights_of(shared, stage, group + half, has_partly_seen(rows), s, p);
        if (IS_E4M3 || half == 0)
            wgmma_fence();
#pragma unroll
        for (int step = 0; step < TILE / 16; step++)
            multiply_values(state->o[half], p[step],
                            values + half * (HALF / 64 * BOX_BYTES / 16) + step * 128, 1);
        if (IS_E4M3 || half + 1 == COLUMNS / HALF) {
            wgmma_commit();
            wgmma_wait<0>();
        }
    }
#pragma unroll
    for (int half = 0; half < COLUMNS / HALF; half++)
        wgmma_hold(state->o[half]);
}

__device__ __forceinline__ void clear_state(struct state *state)
{
#pragma unroll
    for (int i = 0; i < COLUMNS / HALF * 64; i++)
        state->o[i / 64][i % 64] = 0.0f;
    state->m[0] = state->m[1] = SPLIT_NONE;
    state->l[0] = state->l[1] = 0.0f;
}

__device__ __forceinline__ void finish_item(const struct mla_cuda_args *args,
                                            const struct part *part, int warpgroup,
                                            const struct state *state)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = lane_row() + 8 * half, column = warpgroup * COLUMNS + threadIdx.x % 4 * 2;
        float l = state->l[half];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        const struct row_place place = row_place(args, part, row, l);
        if (warpgroup == 0 && threadIdx.x % 4 == 0)
            put_sums(args, part, row, state->m[half] * score_factor(args->mla.scale), l);
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; i++) {
            const float *pair = &state->o[i / 16][i % 16 * 4 + 2 * half];
            put_pair(place, column + 8 * i, pair[0], pair[1]);
        }
    }
}

__device__ __forceinline__ void consume_all(const struct mla_cuda_args *args,
                                            const struct shared *shared, int warpgroup)
{
    struct state state;
    if (TURNS && warpgroup == 1)
        named_barrier_arrive(BARRIER_TURN, CONSUMERS); /* the other begins */
#pragma unroll 1
    for (uint32_t turn = 0;; turn++) {
        const int stage = turn % STAGES;
        mbarrier_wait(shared->full + 8 * stage, turn / STAGES % 2);
        if (shared->jobs[stage].kind & JOB_END)
            break;
        if (shared->jobs[stage].kind & JOB_FIRST) {
            load_queries(args, shared, shared->jobs[stage].part.sequence);
            clear_state(&state);
        }
        add_tile(args, shared, warpgroup, stage, &state);
        if (shared->jobs[stage].kind & JOB_LAST) {
            const struct part part = shared->jobs[stage].part;
            finish_item(args, &part, warpgroup, &state);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            mbarrier_arrive(shared->empty + 8 * stage);
    }
    if (TURNS && warpgroup == 0)
        named_barrier_sync(BARRIER_TURN, CONSUMERS); /* the turn that is left over */
}

/* ---- The block ------------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(CONSUMERS + COPIERS, 1)
    mla_decode_sm90(const __grid_constant__ struct mla_cuda_args args)
{
    extern __shared__ __align__(1024) char memory[];
    struct shared shared;
    shared.queries = shared_address(memory);
    shared.stages = shared.queries + BM * MLA_ROW;
    shared.full = shared.stages + STAGES * BOXES * BOX_BYTES;
    shared.empty = shared.full + 8 * STAGES;
    shared.jobs = (struct job *)(memory + (shared.empty - shared.queries) + 8 * STAGES);
    shared.factors = (float *)(shared.jobs + STAGES);
    shared.flags = (uint8_t *)(shared.factors + STAGES * GROUPS * TILE);
    shared.walks = (struct walk *)(shared.flags + STAGES * TILE);
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(shared.full + 8 * stage, COPIERS);
            mbarrier_init(shared.empty + 8 * stage, CONSUMERS / 32);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (warpgroup == CONSUMERS / 128) {
        registers_lower<72>();
        struct walk *walk = &shared.walks[threadIdx.x % COPIERS / 32];
        walk_put(walk, walk_begin(&args));
        if (threadIdx.x % COPIERS < 32)
            walk_record(&args, walk);
        copy_all(&args, &shared, walk);
    } else {
        registers_raise<216>();
        consume_all(&args, &shared, warpgroup);
    }
    announce_combine();
}
