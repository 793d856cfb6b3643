/* A walk by wgmma, on sm_90a: k up to 128, slabs of 64 columns. It is
 * that of kda_walk_mma.cuh but for
 *
 *     operands    of 16 columns a warp has the first in registers, as there; the second lie in
 *                 shared memory for all warps, in pieces of 8 x 8 (store_operand)
 *     copies      by the copy engine; one warp more starts them, a ring of STAGES records ahead
 *
 *     full[stage]      the record is there
 *     empty[stage]     all threads but the copier are done with it; each arrives for itself, since
 *                      each has read it by ordinary loads
 *
 *     for each chunk:  S decays;  v: a group;  o: a group;  v is rounded;  S: a group;  write o  */
#ifndef KDA_WALK_WGMMA_CUH
#define KDA_WALK_WGMMA_CUH
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/tma.cuh"
#include "common/cuda/wgmma.cuh"
#include "kda_walk.cuh"

#define STATE_THREADS (32 * SLAB_WARPS + 32)
#define RECORD_STAGE KDA_STATE_STAGE(CHUNK, KEY_WIDTH, BV)

#if DTYPE == DT_BF16
#define OPERAND_TYPE bf16
#else
#define OPERAND_TYPE f16
#endif
#define WGMMA_NAME multiply_tokens
#define WGMMA_N CHUNK
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_B 0
#define WGMMA_FROM_REGISTERS
#include "common/cuda/wgmma_shape.cuh"
#if KEY_WIDTH
#define WGMMA_NAME multiply_channels
#define WGMMA_N KEY_WIDTH
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_B 0
#define WGMMA_FROM_REGISTERS
#include "common/cuda/wgmma_shape.cuh"
#endif

/* ---- The ring ------------------------------------------------------------------------------ */

__device__ __forceinline__ uint32_t full_barrier(const struct walk *walk, int stage)
{
    return walk->barriers + KDA_STATE_BARRIERS * stage;
}

__device__ __forceinline__ uint32_t empty_barrier(const struct walk *walk, int stage)
{
    return walk->barriers + KDA_STATE_BARRIERS * stage + 8;
}

template <bool is_end>
__device__ __forceinline__ void copy_record(const struct walk *walk, const char *record, int stage)
{
    uint32_t full = full_barrier(walk, stage), to = walk->shared + stage * RECORD_STAGE;
    const int keys = is_end ? KEY_PART : 2 * KEY_PART;
    const char *values = record + 2 * KEY_PART + walk->slab * SLAB_PART;
    mbarrier_arrive_expect(full, SECOND_BYTES + (walk->is_map ? KEY_PART : FIRST_BYTES(is_end)));
    bulk_load(to, record, keys, full);
    if (!walk->is_map)
        bulk_load(to + keys, values, SLAB_PART, full);
    if (!is_end)
        bulk_load(to + keys + SLAB_PART, values + VALUE_PART, SLAB_PART, full);
    bulk_load(to + FIRST_BYTES(is_end), record + 2 * KEY_PART + 2 * VALUE_PART, SECOND_BYTES, full);
}

/* By one thread, for all chunks. */
template <bool is_end> __device__ __forceinline__ void copy_records(const struct walk *walk)
{
    const char *record = walk->record;
    int stage = 0;
    uint32_t parity = 1;
    for (int64_t left = walk->first_left; left > 0; left--) {
        mbarrier_wait(empty_barrier(walk, stage), parity);
        copy_record<is_end>(walk, record, stage);
        record += walk->record_pitch;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
}

/* Before the first chunk, by all warps: true in the one that has copied and is done. */
template <bool is_end> __device__ __forceinline__ bool copies_for_others(const struct walk *walk)
{
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(full_barrier(walk, stage), 1);
            mbarrier_init(empty_barrier(walk, stage), 32 * SLAB_WARPS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) < SLAB_WARPS)
        return false;
    if (threadIdx.x % 32 == 0)
        copy_records<is_end>(walk);
    return true;
}

/* ---- A chunk ------------------------------------------------------------------------------- */

/* A tile as wgmma's first operand. */
__device__ __forceinline__ void as_operand(uint32_t (&operand)[4], const struct tile &tile)
{
    operand[0] = tile.r[0], operand[1] = tile.r[2], operand[2] = tile.r[1], operand[3] = tile.r[3];
}

/* Tiles below each other, what store_operand leaves; and those `index` tiles further. */
__device__ __forceinline__ uint64_t operand_at(uint32_t tiles)
{
    return wgmma_plain(tiles, 128, 256);
}

__device__ __forceinline__ uint64_t further(uint64_t operand, int index)
{
    return operand + index * (KDA_TILE_BYTES / 16);
}

/* After S^T was rounded for the products. */
__device__ __forceinline__ void decay_state(const char *second, struct sums (&state)[K_TILES])
{
    const float *decays = (const float *)(second + KEY_PART);
#pragma unroll
    for (int tile = 0; tile < K_TILES; tile++) {
        float4 four = *(const float4 *)(decays + 16 * tile + threadIdx.x % 4 * 4);
        const float decay[4] = { four.x, four.y, four.z, four.w };
#pragma unroll
        for (int i = 0; i < 8; i++)
            state[tile].d[i / 4][i % 4] *= decay[i / 4 * 2 + i % 2];
    }
}

template <bool is_end>
__device__ __forceinline__ void walk_chunk(struct walk *walk, int stage, uint32_t parity, int rows,
                                           struct sums (&state)[K_TILES])
{
    const char *first = walk->stages + stage * RECORD_STAGE, *second = first + FIRST_BYTES(is_end);
    const char *u = first + (is_end ? KEY_PART : 2 * KEY_PART) +
                    walk->columns % (BV / 16) * CHUNK_BLOCKS * KDA_TILE_BYTES;
    const uint32_t operands = walk->shared + stage * RECORD_STAGE;
    const uint64_t w = operand_at(operands), queries = operand_at(operands + KEY_PART);
    const uint64_t keys = operand_at(operands + FIRST_BYTES(is_end));
    uint32_t columns[K_TILES][4], values[CHUNK_BLOCKS][4];
    struct sums less[CHUNK_BLOCKS], out[CHUNK_BLOCKS];
    float(&all_less)[8 * CHUNK_BLOCKS] = *(float(*)[8 * CHUNK_BLOCKS]) less;
    float(&all_out)[8 * CHUNK_BLOCKS] = *(float(*)[8 * CHUNK_BLOCKS]) out;
    float(&all_state)[8 * K_TILES] = *(float(*)[8 * K_TILES]) state;
#pragma unroll
    for (int tile = 0; tile < K_TILES; tile++)
        as_operand(columns[tile], rounded(state[tile]));
    mbarrier_wait(full_barrier(walk, stage), parity);
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS; block++) {
        less[block] = walk->is_map ? zero_sums() : widened(negated(load_tile(u, block)));
        if (!is_end)
            out[block] = widened(load_tile(u + SLAB_PART, block));
    }
    decay_state(second, state);
    wgmma_fence();
#pragma unroll
    for (int tile = 0; tile < K_TILES; tile++)
        multiply_tokens(all_less, columns[tile], further(w, CHUNK_BLOCKS * tile), 1);
    wgmma_commit();
#pragma unroll
    for (int tile = 0; tile < K_TILES && !is_end; tile++)
        multiply_tokens(all_out, columns[tile], further(queries, CHUNK_BLOCKS * tile), 1);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(all_less);
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS; block++)
        as_operand(values[block], negated(rounded(less[block])));
    wgmma_fence();
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS; block++)
        multiply_channels(all_state, values[block], further(keys, block * K_TILES), 1);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(all_out);
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS && !is_end; block++)
        store_outputs(walk, out[block], block, rows - 16 * block);
    wgmma_wait<0>();
    wgmma_hold(all_state);
}

template <bool is_end>
__device__ __forceinline__ void walk_chunks(struct walk *walk, const struct sequence *run,
                                            struct sums (&state)[K_TILES])
{
    int stage = 0;
    uint32_t parity = 0;
    for (int64_t left = run->end - run->begin; left > 0; left -= CHUNK) {
        if (CHUNK_STATES && !is_end)
            store_chunk_state(walk, state);
        walk_chunk<is_end>(walk, stage, parity, (int)min(left, (int64_t)CHUNK), state);
        walk->out += CHUNK / 8 * walk->out_pitch;
        tma_store_fence(); /* what was read by ordinary loads is overwritten by the copy engine */
        mbarrier_arrive(empty_barrier(walk, stage));
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
}
#endif
