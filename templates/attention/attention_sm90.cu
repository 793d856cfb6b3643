/* Attention on Hopper: wgmma, fed by cp.async; sm_90a only. The steps are those of
 * attention_sm80.cu, and rows, tiles, masks and the end are its code; it differs in who does them.
 *
 *     warpgroup 0 .. CONSUMERS-1    64 rows each: scores, softmax and values in registers
 *     warpgroup CONSUMERS           copies, STAGES tiles ahead: two warps k, the others q and v
 *
 *     shared memory   [ q ][ k, v of stage 0 ][ k, v of stage 1 ] ... [ barriers ][ struct block ]
 *     barriers        q is full; k, and v, of each stage are full, are empty
 *
 * A consumer issues the scores of a tile, then the values of the tile before; while the latter are
 * multiplied it computes the former's exponentials:
 *
 *     s(0)   p(0)   for each tile t from 1:  issue s(t);  issue values += p(t-1) v(t-1);
 *                                            wait for s(t);  p(t) = 2^(s(t) - references);
 *                                            wait for values;  rescale them if references grew
 *     values += p v of the last tile
 *
 * With TURNS consumers issue in turn, so that one's exponentials run beside another's products.
 * Copies are by ordinary threads, not by TMA: what they bring may have any strides, and rows beyond
 * a sequence are zeros. They become visible to wgmma by the copier's fence once they are there;
 * a copier that would wait for an empty stage first publishes all that it has begun.
 */

#include "common/types.h"

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE
#define DTYPE DT_BF16
#define OPERAND_TYPE bf16
#endif
#ifndef D
#define D 128
#endif
#ifndef DV
#define DV 128
#endif
#ifndef CAUSAL
#define CAUSAL 0
#endif
#ifndef HAS_SOFTCAP
#define HAS_SOFTCAP 0
#endif
#ifndef SINKS_DTYPE
#define SINKS_DTYPE DT_NONE
#endif
#ifndef VARLEN
#define VARLEN 0
#endif
#ifndef HAS_LSE
#define HAS_LSE 0
#endif
#ifndef ALIGN_Q
#define ALIGN_Q 16
#endif
#ifndef ALIGN_K
#define ALIGN_K 16
#endif
#ifndef ALIGN_V
#define ALIGN_V 16
#endif
#ifndef ALIGN_O
#define ALIGN_O 16
#endif

/* ---- Parameters: how ---- */
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef BN
#define BN 128
#endif
#ifndef STAGES
#define STAGES 2
#endif
#ifndef PACK
#define PACK 0
#endif
#ifndef TURNS
#define TURNS 1
#endif

#define PREFIX 0
#define KV_SCALE 0
#define THREADS (128 * (CONSUMERS + 1))
#define COPIERS 64
#define IS_SPLIT 1
#define BM (64 * CONSUMERS)
#define WM 16
#define M_FRAGMENTS 1
#define N_FRAGMENTS (BN / 8)
#define V_FRAGMENTS (DV / 8)
#define Q_PITCH (D * 2)
#define V_PITCH (DV * 2)
#define Q_BYTES (BM * Q_PITCH)
#define K_BYTES (BN * Q_PITCH)
#define V_BYTES (BN * V_PITCH)
#define STAGE_BYTES (K_BYTES + V_BYTES)

#include "attention_read.cuh"
#include "attention_scores.cuh"
#include "attention_store.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/named_barrier.cuh"
#include "common/cuda/tma.cuh"
#include "common/cuda/wgmma.cuh"

static_assert(BN % 16 == 0 && D % 64 == 0 && DV % 64 == 0 && DV <= D, "groups of 64 columns");
static_assert(STAGES >= 1 && (!TURNS || CONSUMERS > 1), "none takes turns alone");

#if BN /* as it is included again */
#define WGMMA_NAME wgmma_scores
#define WGMMA_N BN
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_A 0
#define WGMMA_TRANS_B 0
#include "common/cuda/wgmma_shape.cuh"
#endif

#if DV
#define WGMMA_NAME wgmma_values
#define WGMMA_N DV
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_B 1
#define WGMMA_FROM_REGISTERS
#include "common/cuda/wgmma_shape.cuh"
#endif

/* Named barriers: a consumer's turn, and all of them at the end. */
enum { BARRIER_TURN = 1, BARRIER_END = BARRIER_TURN + CONSUMERS };

/* ---- Barriers -------------------------------------------------------------------------------- */

/* Of k and of v in each stage; their stages are used in the same order. */
enum { PART_K, PART_V };

struct ring {
    uint32_t stages, barriers;
    int begin; /* the first tile */
};

#define RING_BARRIERS (1 + 4 * STAGES)
#define RING_BYTES (RING_BARRIERS * 8 + 8)

__device__ __forceinline__ uint32_t q_full(const struct ring *ring)
{
    return ring->barriers;
}

__device__ __forceinline__ uint32_t full_of(const struct ring *ring, int part, int tile)
{
    return ring->barriers + 8 + (uint32_t)tile % STAGES * 32 + part * 16;
}

__device__ __forceinline__ uint32_t empty_of(const struct ring *ring, int part, int tile)
{
    return full_of(ring, part, tile) + 8;
}

__device__ __forceinline__ uint32_t parity_of(const struct ring *ring, int tile)
{
    return (uint32_t)(tile - ring->begin) / STAGES & 1;
}

/* By one thread. A warp arrives once. */
__device__ __forceinline__ void ring_init(const struct ring *ring)
{
    mbarrier_init(q_full(ring), COPIERS / 32);
    for (int tile = 0; tile < STAGES; tile++)
        for (int part = PART_K; part <= PART_V; part++) {
            mbarrier_init(full_of(ring, part, tile), COPIERS / 32);
            mbarrier_init(empty_of(ring, part, tile), 4 * CONSUMERS);
        }
    mbarrier_init_fence();
}

__device__ __forceinline__ void arrive_once(uint32_t barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive(barrier);
}

/* ---- Copying --------------------------------------------------------------------------------- */

/* Two of the copier's warps bring k, the other two q and v: neither waits for what holds up the
 * other. Each counts its groups of copies, of which `begun` have been started and `published` are
 * known to consumers: all, or all but one. */
struct copier {
    int part, begun, published;
};

/* The copies of the next group are there. v comes after q. */
__device__ __forceinline__ void publish(const struct ring *ring, struct copier *copier)
{
    int tile = ring->begin + copier->published - copier->part;
    tma_store_fence();
    arrive_once(tile < ring->begin ? q_full(ring) : full_of(ring, copier->part, tile));
    copier->published++;
}

/* Ends a group, and awaits the one before. */
__device__ __forceinline__ void end_group(const struct ring *ring, struct copier *copier)
{
    cp_async_commit();
    copier->begun++;
    cp_async_wait<1>();
    if (copier->begun - copier->published > 1)
        publish(ring, copier);
}

__device__ __forceinline__ void publish_all(const struct ring *ring, struct copier *copier)
{
    cp_async_wait<0>();
    if (copier->begun > copier->published)
        publish(ring, copier);
}

/* Consumers may need what is under way before they let go of the stage. */
__device__ __forceinline__ void wait_empty(const struct ring *ring, struct copier *copier, int tile)
{
    uint32_t empty = empty_of(ring, copier->part, tile), parity = parity_of(ring, tile) ^ 1;
    if (!__all_sync(0xffffffff, mbarrier_test(empty, parity)))
        publish_all(ring, copier);
    mbarrier_wait(empty, parity);
}

__device__ __forceinline__ void copy_k(const struct attention_cuda_args *args,
                                       const struct block *block, const struct ring *ring)
{
    struct copier copier = { PART_K, 0, 0 };
#pragma unroll 1
    for (int tile = block->begin; tile < block->end; tile++) {
        wait_empty(ring, &copier, tile);
        read_k(args, block, ring->stages, tile);
        end_group(ring, &copier);
    }
    publish_all(ring, &copier);
}

__device__ __forceinline__ void copy_q_and_v(const struct attention_cuda_args *args,
                                             const struct block *block, const struct ring *ring,
                                             uint32_t q_tile)
{
    struct copier copier = { PART_V, 0, 0 };
    read_q(args, &block->rows, q_tile);
    end_group(ring, &copier);
#pragma unroll 1
    for (int tile = block->begin; tile < block->end; tile++) {
        wait_empty(ring, &copier, tile);
        read_v(args, block, ring->stages, tile);
        end_group(ring, &copier);
    }
    publish_all(ring, &copier);
}

/* ---- Multiplying ----------------------------------------------------------------------------- */

typedef float score_tile[M_FRAGMENTS][N_FRAGMENTS][4];
typedef float value_tile[M_FRAGMENTS][V_FRAGMENTS][4];

/* A group: scores = q k^T of the warpgroup's rows. */
__device__ __forceinline__ void issue_scores(const struct ring *ring, score_tile &scores,
                                             uint32_t q_rows, int tile)
{
    uint64_t q = wgmma_along_k(q_rows), k = wgmma_along_k(stage_of(ring->stages, tile));
    float(&sums)[BN / 2] = reinterpret_cast<float(&)[BN / 2]>(scores);
    mbarrier_wait(full_of(ring, PART_K, tile), parity_of(ring, tile));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        wgmma_scores(sums, q + step / 4 * (BM * 128 / 16) + step % 4 * 2,
                     k + step / 4 * (BN * 128 / 16) + step % 4 * 2, step > 0);
    wgmma_commit();
}

/* A group: values += p v. */
__device__ __forceinline__ void issue_values(const struct ring *ring, value_tile &values,
                                             uint32_t (&p)[BN / 16][M_FRAGMENTS][4], int tile)
{
    uint64_t v = wgmma_along_mn<BN>(stage_of(ring->stages, tile) + K_BYTES);
    float(&sums)[DV / 2] = reinterpret_cast<float(&)[DV / 2]>(values);
    mbarrier_wait(full_of(ring, PART_V, tile), parity_of(ring, tile));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < BN / 16; step++)
        wgmma_values(sums, p[step][0], v + step * 128, 1);
    wgmma_commit();
}

/* What is read of the tile has been read. */
__device__ __forceinline__ void hold_scores(score_tile &scores)
{
    wgmma_hold(reinterpret_cast<float(&)[BN / 2]>(scores));
}

__device__ __forceinline__ void hold_values(value_tile &values)
{
    wgmma_hold(reinterpret_cast<float(&)[DV / 2]>(values));
}

__device__ __forceinline__ void map_and_mask(const struct attention_cuda_args *args,
                                             const struct block *block, score_tile &scores,
                                             int tile)
{
    if (HAS_SOFTCAP && args->inner != 0.0f)
        map_scores(scores, [=](float s) { return tanh_exact(s * args->inner); });
    else if (args->sign != 1.0f)
        map_scores(scores, [=](float s) { return s * args->sign; });
    if (!is_whole(block, tile))
        mask_scores(scores, args, block, tile);
}

/* All scores of a tile. */
__device__ __forceinline__ void all_exponentials(struct softmax_rows<M_FRAGMENTS> *state,
                                                 score_tile &scores, float factor)
{
#pragma unroll
    for (int step = 0; step < BN / 16; step++)
        exponentials(state, scores, factor, step);
}

__device__ __forceinline__ void round_all(uint32_t (&p)[BN / 16][M_FRAGMENTS][4],
                                          const score_tile &scores)
{
#pragma unroll
    for (int step = 0; step < BN / 16; step++)
        round_p(p[step], scores, step);
}

__device__ __forceinline__ void take_turn(int warpgroup)
{
    if (TURNS)
        named_barrier_sync(BARRIER_TURN + warpgroup, 256);
}

/* To the next consumer. Each turn that is given is taken: behind its last the last gives none. */
__device__ __forceinline__ void give_turn(int warpgroup, bool is_last)
{
    if (TURNS && !(is_last && warpgroup == CONSUMERS - 1))
        named_barrier_arrive(BARRIER_TURN + (warpgroup + 1) % CONSUMERS, 256);
}

__device__ __forceinline__ void consume_all(const struct attention_cuda_args *args,
                                            const struct block *block, const struct ring *ring,
                                            uint32_t q_tile, int warpgroup,
                                            struct softmax_rows<M_FRAGMENTS> *state,
                                            value_tile &values)
{
    const uint32_t q_rows = q_tile + warpgroup * 64 * 128;
    const float factor = args->factor;
    score_tile scores;
    uint32_t p[BN / 16][M_FRAGMENTS][4];
    float changes[M_FRAGMENTS][2];
    int tile = block->begin;
    const int end = block->end;
    mbarrier_wait(q_full(ring), 0); /* also where it is not needed: o will be in its place */
    if (tile >= end)
        return;
    if (warpgroup == CONSUMERS - 1)
        give_turn(warpgroup, false);
    take_turn(warpgroup);
    issue_scores(ring, scores, q_rows, tile);
    give_turn(warpgroup, tile + 1 == end);
    wgmma_wait<0>();
    hold_scores(scores);
    arrive_once(empty_of(ring, PART_K, tile));
    map_and_mask(args, block, scores, tile);
    softmax_refer(state, scores, factor, changes);
    all_exponentials(state, scores, factor);
    round_all(p, scores);
#pragma unroll 1
    for (tile++; tile < end; tile++) {
        take_turn(warpgroup);
        issue_scores(ring, scores, q_rows, tile);
        issue_values(ring, values, p, tile - 1);
        give_turn(warpgroup, tile + 1 == end);
        wgmma_wait<1>();
        hold_scores(scores);
        arrive_once(empty_of(ring, PART_K, tile));
        map_and_mask(args, block, scores, tile);
        bool has_grown = softmax_refer(state, scores, factor, changes);
        all_exponentials(state, scores, factor);
        /* Never: it keeps the exponentials ahead of the wait, behind which they would be put. */
        if (state->sum[0][0] < 0.0f || state->sum[0][1] < 0.0f)
            wgmma_wait<1>();
        wgmma_wait<0>();
        hold_values(values);
        arrive_once(empty_of(ring, PART_V, tile - 1));
        if (has_grown)
            softmax_rescale(values, changes);
        round_all(p, scores);
    }
    issue_values(ring, values, p, end - 1);
    wgmma_wait<0>();
    hold_values(values);
}

/* ---- The block ------------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_sm90(const __grid_constant__ struct attention_cuda_args args)
{
    extern __shared__ __align__(1024) char shared[];
    const uint32_t q_tile = shared_address(shared), stages = q_tile + Q_BYTES;
    const uint32_t barriers = stages + STAGES * STAGE_BYTES;
    struct block *block = (struct block *)(shared + (barriers - q_tile) + RING_BYTES);
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warpgroup = warp / 4;
    struct block mine;
    if (!find_block(&args, &mine))
        return;
    const struct ring ring = { stages, barriers, mine.begin };
    if (threadIdx.x == 0) {
        *block = mine;
        ring_init(&ring);
    }
    __syncthreads();
    if (warpgroup == CONSUMERS) {
        if (CONSUMERS > 1)
            registers_lower<CONSUMERS == 2 ? 40 : 32>();
        if (warp < 4 * CONSUMERS + COPIERS / 32)
            copy_k(&args, block, &ring);
        else
            copy_q_and_v(&args, block, &ring, q_tile);
    } else {
        value_tile values = {};
        struct softmax_rows<M_FRAGMENTS> state;
        if (CONSUMERS > 1)
            registers_raise<CONSUMERS == 2 ? 232 : 160>();
        softmax_begin(&state);
        consume_all(&args, block, &ring, q_tile, warpgroup, &state, values);
        named_barrier_sync(BARRIER_END, 128 * CONSUMERS);
        const int warp_row = threadIdx.x / 32 * WM;
        finish(&args, &block->rows, warp_row, &state, values);
        store_values(&args, &block->rows, warp_row, shared + warp_row * V_PITCH, values);
    }
}
