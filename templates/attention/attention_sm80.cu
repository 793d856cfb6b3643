/* Attention on tensor cores by mma.sync, sm_80 and up: o = softmax(factor q k^T, masked) v, tile by
 * tile with an online softmax, as FlashAttention-2 does it. attention_prefill, and with PREFIX
 * attention_extend, whose first keys are in a paged cache.
 *
 * A block has BM rows of one head of one sequence (attention_rows.cuh), a warp WM of them: their
 * scores of a tile, and their sums of values, stay in its registers.
 *
 *     1. which rows are the block's, and which tiles of keys they see (attention_read.cuh)
 *     2. start copies of q and of the first tiles
 *     for each tile:
 *         3. wait for it, and for all warps to be done with the one before; start copies of the
 *            tile STAGES - 1 ahead, to where that was
 *         4. scores = q k^T
 *         5. where not every row sees the whole tile: those that a row does not see = -infinity
 *         6. references of the softmax (online_softmax.cuh)
 *         7. values += 2^(scores - references) v, 16 keys at a time
 *     8. values / denominators, through shared memory where q was, in vectors to o; lse
 *
 *     shared memory    q | k, v of stage 0 | k, v of stage 1 ... | struct parked | struct block
 *
 * With STAGES 1 step 3 copies the tile's own v, and between 4 and 5 the next tile's k follows: each
 * is copied while the other is multiplied, in half the memory, for one more barrier.
 *
 * Fragments of p are those of the scores, rounded: sums and operands of mma have the same layout.
 * References of the softmax follow the greatest score only where it has grown by more than a factor
 * of 2^8, so that values are seldom rescaled.
 *
 * What bounds it, for 32 rows of a warp, 64 keys and widths of 128: 256 mma, and 80 ldmatrix of
 * 512 bytes, 16 of q, 32 of k, 32 of v. The copies of a tile add 8 KiB for each of four warps, so
 * shared memory, at 128 bytes a clock of an SM, is busy for 384 clocks. mma.sync reaches about 62 %
 * of wgmma's rate on sm_90, which takes an SM 413 clocks: the two are nearly even, and 32 rows a
 * warp are what makes them so, for 16 rows read as much of k and v. 64 exponentials a thread take
 * 128 clocks beside them. A warp does these in turn; two blocks on an SM overlap them. Sums and
 * scores are 192 of 255 registers, so the softmax's state is put away in shared memory, and what is
 * cheap to compute is not kept (thread_again).
 */

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE
#define DTYPE DT_BF16
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
#ifndef PREFIX /* attention_extend: 1 by page_table, 2 by kv_indices */
#define PREFIX 0
#endif
#ifndef CACHE_DTYPE
#define CACHE_DTYPE DTYPE
#endif
#ifndef KV_SCALE /* of the cache: 1 for all heads, 2 for each */
#define KV_SCALE 0
#endif
#ifndef ALIGN_K_CACHE
#define ALIGN_K_CACHE 16
#endif
#ifndef ALIGN_V_CACHE
#define ALIGN_V_CACHE 16
#endif

/* ---- Parameters: how ---- */
#ifndef BM
#define BM 128
#endif
#ifndef BN
#define BN 64
#endif
#ifndef WARPS
#define WARPS 4
#endif
#ifndef STAGES
#define STAGES 2
#endif
#ifndef Q_REGS
#define Q_REGS 0
#endif
#ifndef PACK
#define PACK 0
#endif
#ifndef BLOCKS /* that an SM is to hold */
#define BLOCKS 2
#endif

#define THREADS (32 * WARPS)
#define WM (BM / WARPS)
#define M_FRAGMENTS (WM / 16)
#define N_FRAGMENTS (BN / 8)
#define V_FRAGMENTS (DV / 8)
#define Q_PITCH (D * 2)
#define V_PITCH (DV * 2)
#define Q_BYTES (BM * Q_PITCH)
#define K_BYTES (BN * Q_PITCH)
#define V_BYTES (BN * V_PITCH)
#define STAGE_BYTES (K_BYTES + V_BYTES)
#define PARK (WM * (DV + BN) >= 192 * 32)
#define TILES_AHEAD (STAGES > 2 ? STAGES - 2 : 0) /* whose copies are under way as one is used */

#include "attention_read.cuh"
#include "attention_scores.cuh"
#include "attention_store.cuh"
#include "common/cuda/ldmatrix.cuh"
#include "common/cuda/mma.cuh"
#include "common/cuda/online_softmax.cuh"

static_assert(BM % (16 * WARPS) == 0 && BN % 16 == 0, "a warp multiplies 16 x 16 at a time");
static_assert(D % 32 == 0 && DV % 32 == 0 && DV <= D, "lines are multiples of 64 bytes");

__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    if (DTYPE == DT_BF16)
        mma_bf16(sums, a, b0, b1);
    else
        mma_f16(sums, a, b0, b1);
}

/* ---- Scores ---------------------------------------------------------------------------------- */

/* Where the lane's chunk of the warp's first rows of q is. */
__device__ __forceinline__ uint32_t q_of_lane(uint32_t q_tile)
{
    uint32_t thread = thread_again();
    return q_tile + tile_at<Q_PITCH>(thread / 32 * WM + thread % 16, thread % 32 / 16);
}

/* 16 columns of q, of the warp's rows. */
__device__ __forceinline__ void load_q(uint32_t (&q)[M_FRAGMENTS][4], uint32_t at, int step)
{
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++)
        ldmatrix_x4(q[i], tile_step<Q_PITCH>(at, 2 * step) + i * 16 * Q_PITCH);
}

__device__ __forceinline__ void
multiply_keys(float (&scores)[M_FRAGMENTS][N_FRAGMENTS][4],
              uint32_t (&q_kept)[Q_REGS ? D / 16 : 1][M_FRAGMENTS][4], uint32_t q_at, uint32_t keys)
{
    uint32_t lane = thread_again() % 32;
    uint32_t k_at = keys + tile_at<Q_PITCH>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS * N_FRAGMENTS * 4; i++)
        scores[i / 4 / N_FRAGMENTS][i / 4 % N_FRAGMENTS][i % 4] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t loaded[M_FRAGMENTS][4];
        if (!Q_REGS)
            load_q(loaded, q_at, step);
#pragma unroll
        for (int j = 0; j < N_FRAGMENTS; j += 2) {
            uint32_t k[4];
            ldmatrix_x4(k, tile_step<Q_PITCH>(k_at, 2 * step) + j * 8 * Q_PITCH);
#pragma unroll
            for (int i = 0; i < M_FRAGMENTS; i++) {
                const uint32_t(&q)[4] = Q_REGS ? q_kept[Q_REGS ? step : 0][i] : loaded[i];
                multiply(scores[i][j], q, k[0], k[1]);
                multiply(scores[i][j + 1], q, k[2], k[3]);
            }
        }
    }
}

/* ---- Values ---------------------------------------------------------------------------------- */

/* values += p v. The exponentials of the next 16 keys are computed while those of the ones before
 * are multiplied. */
__device__ __forceinline__ void multiply_values(float (&values)[M_FRAGMENTS][V_FRAGMENTS][4],
                                                struct softmax_rows<M_FRAGMENTS> *state,
                                                float (&scores)[M_FRAGMENTS][N_FRAGMENTS][4],
                                                float factor, uint32_t v)
{
    uint32_t thread = thread_again();
    uint32_t v_at = v + tile_at<V_PITCH>(thread % 16, thread % 32 / 16);
    exponentials(state, scores, factor, 0);
#pragma unroll
    for (int step = 0; step < BN / 16; step++) {
        uint32_t a[M_FRAGMENTS][4];
        round_p(a, scores, step);
        if (step + 1 < BN / 16)
            exponentials(state, scores, factor, step + 1);
#pragma unroll
        for (int j = 0; j < V_FRAGMENTS; j += 2) {
            uint32_t b[4];
            ldmatrix_x4_transposed(b, tile_step<V_PITCH>(v_at, j) + step * 16 * V_PITCH);
#pragma unroll
            for (int i = 0; i < M_FRAGMENTS; i++) {
                multiply(values[i][j], a[i], b[0], b[1]);
                multiply(values[i][j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* ---- The block ------------------------------------------------------------------------------- */

/* The softmax's state and which tile it is, put away while scores and the sums of values need the
 * registers. */
enum { REFERENCES, SUMS };
struct parked {
    float words[PARK ? 4 * M_FRAGMENTS : 1][THREADS];
    int tiles[PARK ? THREADS : 2]; /* an even number: pointers follow */
};

template <int what>
__device__ __forceinline__ void park(struct parked *parked, const float (&values)[M_FRAGMENTS][2])
{
    uint32_t thread = thread_again();
#pragma unroll
    for (int i = 0; PARK && i < 2 * M_FRAGMENTS; i++)
        parked->words[2 * i + what][thread] = values[i / 2][i % 2];
}

__device__ __forceinline__ void unpark(const struct parked *parked,
                                       struct softmax_rows<M_FRAGMENTS> *state)
{
    uint32_t thread = thread_again();
#pragma unroll
    for (int i = 0; PARK && i < 2 * M_FRAGMENTS; i++) {
        state->reference[i / 2][i % 2] = parked->words[2 * i + REFERENCES][thread];
        state->sum[i / 2][i % 2] = parked->words[2 * i + SUMS][thread];
    }
}

__device__ __forceinline__ void park_tile(struct parked *parked, int tile)
{
    if (PARK)
        parked->tiles[thread_again()] = tile;
}

__device__ __forceinline__ void unpark_tile(const struct parked *parked, int *tile)
{
    if (PARK)
        *tile = parked->tiles[thread_again()];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_sm80(const __grid_constant__ struct attention_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    struct parked &parked = *(struct parked *)(shared + Q_BYTES + STAGES * STAGE_BYTES);
    struct block &block = *(struct block *)(&parked + 1);
    const uint32_t q_tile = (uint32_t)__cvta_generic_to_shared(shared), stages = q_tile + Q_BYTES;
    struct block mine;
    struct fetched fetched;
    if (!find_block(&args, &mine)) /* 1 */
        return;
    if (threadIdx.x == 0)
        block = mine;
    int tile = mine.begin;
    read_first_ids(&args, &mine);
    read_q(&args, &mine.rows, q_tile); /* 2 */
    read_k(&args, &mine, stages, tile);
    if (STAGES > 1)
        read_v(&args, &mine, stages, tile);
    fetch(&fetched, &args, &mine, tile);
    put_fetched(&fetched, &mine, stages, tile);
    cp_async_commit();
#pragma unroll
    for (int i = 1; i < STAGES - 1; i++) {
        read_k(&args, &mine, stages, tile + i);
        read_v(&args, &mine, stages, tile + i);
        cp_async_commit();
    }

    float values[M_FRAGMENTS][V_FRAGMENTS][4] = {};
    struct softmax_rows<M_FRAGMENTS> state;
    softmax_begin(&state);
    park<REFERENCES>(&parked, state.reference);
    park<SUMS>(&parked, state.sum);
    uint32_t q_kept[Q_REGS ? D / 16 : 1][M_FRAGMENTS][4];
    if (Q_REGS) {
        cp_async_wait<TILES_AHEAD>();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < (Q_REGS ? D / 16 : 0); step++)
            load_q(q_kept[step], q_of_lane(q_tile), step);
    }

#pragma unroll 1
    for (int end = mine.end; tile < end; tile++, end = block.end) {
        float scores[M_FRAGMENTS][N_FRAGMENTS][4];
        cp_async_wait<TILES_AHEAD>(); /* 3 */
        __syncthreads();
        if (STAGES > 1)
            read_k(&args, &block, stages, tile + STAGES - 1);
        read_v(&args, &block, stages, tile + STAGES - 1);
        read_ids(&args, &block, tile + STAGES);
        cp_async_commit();
        fetch(&fetched, &args, &block, tile + STAGES - 1);
        apply_wild_factors(&block, shared + Q_BYTES, tile);
        multiply_keys(scores, q_kept, q_of_lane(q_tile), stage_of(stages, tile)); /* 4 */
        if (STAGES == 1) {
            cp_async_wait<0>();
            __syncthreads();
            read_k(&args, &block, stages, tile + 1);
            cp_async_commit();
        }
        struct score_factors factors = factors_of(&args, &block, tile);
        if (HAS_SOFTCAP && args.inner != 0.0f)
            map_scores(scores, [=](float s) { return tanh_exact(s * factors.inner); });
        else if (factors.sign != 1.0f)
            map_scores(scores, [=](float s) { return s * factors.sign; });
        if (!is_whole(&block, tile)) /* 5 */
            mask_scores(scores, &args, &block, tile);
        unpark(&parked, &state);
        if (PREFIX && KV_SCALE && tile == block.prefix_tiles)
            scale_values(values, block.v_factor);
        float changes[M_FRAGMENTS][2];
        if (softmax_refer(&state, scores, factors.scale, changes)) /* 6 */
            softmax_rescale(values, changes);
        park<REFERENCES>(&parked, state.reference);
        park_tile(&parked, tile);
        multiply_values(values, &state, scores, factors.scale,
                        stage_of(stages, tile) + K_BYTES); /* 7 */
        park<SUMS>(&parked, state.sum);
        unpark_tile(&parked, &tile);
        put_fetched(&fetched, &block, stages, tile + STAGES - 1);
    }
    cp_async_wait<0>();
    __syncthreads();
    unpark(&parked, &state);
    if (PREFIX && KV_SCALE && tile <= block.prefix_tiles)
        scale_values(values, block.v_factor);
    const int warp_row = thread_again() / 32 * WM;
    finish(&args, &block.rows, warp_row, &state, values); /* 8 */
    store_values(&args, &block.rows, warp_row, shared + warp_row * Q_PITCH, values);
}
