/* The main loop of a GEMM on Hopper: a ring of stages in shared memory that one thread fills by TMA
 * and warpgroups empty by wgmma. sm_90a only.
 *
 *     stage     [ P tile: BM x BK ][ Q tile: BN x BK ]        D (BM x BN) += P Q^T
 *     barriers  full[stage]    the loader's arrival, and the bytes of both tiles
 *               empty[stage]   one arrival of each warp that multiplied from it, of every block
 *                              that the stage's tiles were copied to
 *
 * P and Q are 16-bit. Each is contiguous along K, or (P_ALONG_M, Q_ALONG_N = 1) along its other
 * dimension; BK is 64, so that a row is 128 bytes, the swizzle's width.
 *
 * In a cluster of 2, blocks may share a tile (SHARED_P or SHARED_Q = 2): each loads half of it into
 * both. Then a stage may be filled again only when both blocks have emptied it.
 *
 * Steps are counted on through all tiles that a block works on, so loader and warpgroups need only
 * agree on how many steps each tile has: step i uses stage i % STAGES in its phase i / STAGES.
 *
 * Tensor cores cut off what an f32 sum cannot hold at every step, so that errors add up with k and
 * not with its root. PROMOTE_STEPS > 0 adds the sums of so many steps to totals in registers, which
 * rounds: for results in f32. It takes twice the registers.
 *
 * Before including, define BM, BN, STAGES, P_ALONG_M, Q_ALONG_N, SHARED_P, SHARED_Q, ROWS (rows of
 * a warpgroup, a multiple of 64), PROMOTE_STEPS and OPERAND_TYPE (bf16 or f16), all plain
 * numbers or words. */
#ifndef QN_CUDA_GEMM_MAINLOOP_SM90_CUH
#define QN_CUDA_GEMM_MAINLOOP_SM90_CUH
#include "common/cuda/cluster.cuh"
#include "common/cuda/mbarrier.cuh"
#include "common/cuda/tma.cuh"
#include "common/cuda/wgmma.cuh"

#define BK 64
#define ROW_BYTES 128
#define Q_COLUMNS (Q_ALONG_N ? (BN + 63) / 64 * 64 : BN)
#define P_BYTES (BM * ROW_BYTES)
#define Q_BYTES (Q_COLUMNS * ROW_BYTES)
#define STAGE_BYTES (P_BYTES + Q_BYTES)
#define CHUNK_BYTES (BK * ROW_BYTES)             /* 64 of M or N by BK of K */
#define K_UNITS(along_mn) ((along_mn) ? 128 : 2) /* of a descriptor, to the next 16 of K */

#define WGMMA_NAME mainloop_multiply
#define WGMMA_N BN
#define WGMMA_K 16
#define WGMMA_TYPE OPERAND_TYPE
#define WGMMA_TRANS_A P_ALONG_M
#define WGMMA_TRANS_B Q_ALONG_N
#include "common/cuda/wgmma_shape.cuh"

struct ring {
    uint32_t tiles; /* of stage 0, 1024-byte aligned */
    uint32_t full, empty;
};

/* By one thread, before the barrier that lets everybody use the ring. */
__device__ __forceinline__ void ring_init(const struct ring *ring, int warps)
{
    for (int stage = 0; stage < STAGES; stage++) {
        mbarrier_init(ring->full + 8 * stage, 1);
        mbarrier_init(ring->empty + 8 * stage, warps * SHARED_P * SHARED_Q);
    }
    mbarrier_init_fence();
}

/* ---- Loading ------------------------------------------------------------------------------- */

/* A tile of `extent` by BK into `to`; of a shared one, this block's half into both. The map's box
 * is what one copy brings: 64 by BK elements of a tile along its own dimension, else BK by the
 * extent, or half of it when the tile is shared. */
template <int extent, int along, int shared>
__device__ __forceinline__ void load_tile(uint32_t to, const void *map, uint32_t full,
                                          uint32_t rank, int32_t at, int32_t k, int32_t batch)
{
    const int pieces = along ? extent / 64 : shared;
    const int piece = extent / pieces;
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        uint32_t target = to + i * piece * ROW_BYTES;
        int32_t x = along ? at + i * piece : k, y = along ? k : at + i * piece;
        if (shared == 1)
            tma_load_3d(target, map, full, x, y, batch);
        else if (i % shared == rank)
            tma_multicast_3d(target, map, full, x, y, batch, (1 << shared) - 1);
    }
}

/* What the loader has to know of a tile. */
struct tile_load {
    const void *map_p, *map_q;
    int32_t p, q, batch_p, batch_q; /* first row, first column, batch entries */
    int32_t k_begin;                /* in steps of BK */
    uint32_t rank;                  /* of the block in its cluster */
};

/* Fill the stages of `count` steps, from step `step` of the ring on. */
__device__ __forceinline__ void mainloop_load(const struct ring *ring, const struct tile_load *load,
                                              uint32_t step, int count)
{
    for (int i = 0; i < count; i++, step++) {
        uint32_t stage = step % STAGES, parity = step / STAGES & 1;
        uint32_t full = ring->full + 8 * stage, tile = ring->tiles + stage * STAGE_BYTES;
        int32_t k = (load->k_begin + i) * BK;
        mbarrier_wait(ring->empty + 8 * stage, parity ^ 1);
        mbarrier_arrive_expect(full, STAGE_BYTES);
        load_tile<BM, P_ALONG_M, SHARED_P>(tile, load->map_p, full, load->rank, load->p, k,
                                           load->batch_p);
        load_tile<Q_COLUMNS, Q_ALONG_N, SHARED_Q>(tile + P_BYTES, load->map_q, full, load->rank,
                                                  load->q, k, load->batch_q);
    }
}

/* ---- Multiplying --------------------------------------------------------------------------- */

/* One arrival a warp at the barriers of every block that filled the stage. */
__device__ __forceinline__ void stage_release(uint32_t empty)
{
    uint32_t lane = threadIdx.x % 32;
    if (SHARED_P * SHARED_Q == 1) {
        if (lane == 0)
            mbarrier_arrive(empty);
    } else if (lane < SHARED_P * SHARED_Q) {
        mbarrier_arrive_at(empty, lane);
    }
}

/* The sums of one step's stage are issued to d. */
__device__ __forceinline__ void mainloop_multiply_stage(const struct ring *ring, uint32_t row,
                                                        uint32_t step, int accumulates,
                                                        float (&d)[ROWS / 64][BN / 2])
{
    const uint32_t skip = row / 64 * CHUNK_BYTES; /* either way 64 rows are one chunk */
    uint32_t stage = step % STAGES, parity = step / STAGES & 1;
    uint32_t tile = ring->tiles + stage * STAGE_BYTES;
    uint64_t p = P_ALONG_M ? wgmma_along_mn<BK>(tile + skip) : wgmma_along_k(tile + skip);
    uint64_t q = Q_ALONG_N ? wgmma_along_mn<BK>(tile + P_BYTES) : wgmma_along_k(tile + P_BYTES);
    mbarrier_wait(ring->full + 8 * stage, parity);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BK / 16; k++) {
#pragma unroll
        for (int part = 0; part < ROWS / 64; part++)
            mainloop_multiply(d[part], p + part * (CHUNK_BYTES / 16) + k * K_UNITS(P_ALONG_M),
                              q + k * K_UNITS(Q_ALONG_N), k || accumulates);
    }
    wgmma_commit();
}

/* Nothing is in flight any more, and d may be read. */
__device__ __forceinline__ void mainloop_finish(float (&d)[ROWS / 64][BN / 2])
{
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < ROWS / 64; part++)
        wgmma_hold(d[part]);
}

/* d = P Q^T over `count` steps. `row` is the warpgroup's first within the P tile. A stage is
 * released a step late, when the step after it has been issued. */
__device__ __forceinline__ void mainloop_multiply_tile(const struct ring *ring, uint32_t row,
                                                       uint32_t step, int count,
                                                       float (&d)[ROWS / 64][BN / 2])
{
    for (int i = 0; i < count; i++, step++) {
        mainloop_multiply_stage(ring, row, step, i, d);
        wgmma_wait<1>();
        if (i)
            stage_release(ring->empty + 8 * ((step - 1) % STAGES));
    }
    mainloop_finish(d);
    if (count)
        stage_release(ring->empty + 8 * ((step - 1) % STAGES));
}

#if PROMOTE_STEPS
/* The same, with totals of every PROMOTE_STEPS steps' sums. */
__device__ __forceinline__ void mainloop_multiply_exact(const struct ring *ring, uint32_t row,
                                                        uint32_t step, int count,
                                                        float (&d)[ROWS / 64][BN / 2])
{
    float sums[ROWS / 64][BN / 2];
    for (int first = 0; first < count; first += PROMOTE_STEPS) {
        int steps = count - first < PROMOTE_STEPS ? count - first : PROMOTE_STEPS;
        mainloop_multiply_tile(ring, row, step + first, steps, sums);
#pragma unroll
        for (int i = 0; i < ROWS / 64 * BN / 2; i++) {
            float sum = sums[i / (BN / 2)][i % (BN / 2)];
            d[i / (BN / 2)][i % (BN / 2)] = first ? d[i / (BN / 2)][i % (BN / 2)] + sum : sum;
        }
    }
}
#endif
#endif
