/* grouped_gemm on Hopper: wgmma fed by TMA, persistent blocks. Step `main` of
 * grouped_gemm_sm90_plan.c.
 *
 *     warpgroup 0 .. CONSUMERS-1   multiply, then finish and store their part of the tile
 *     warpgroup CONSUMERS          loads ahead, through the next tiles as well
 *
 *     shared memory   [ stage 0 ][ stage 1 ] ...   common/cuda/gemm_mainloop_sm90.cuh
 *                     [ staging of each consumer ]
 *                     [ full barriers ][ empty barriers ]
 *                     [ the experts' rows and tiles ]   grouped_gemm_sm90_tiles.cuh
 *
 *     1. every block counts the experts' tiles
 *     2. for each of its tiles, loader and consumers alike: which expert, rows and columns
 *     3. the consumers multiply, apply the activation, and store the rows that the expert has
 *
 * A tile is BM rows of P by BN rows of Q: P = rows of a and Q = rows of b[expert], or with SWAP the
 * other way around, for few rows of a an expert. With an activation half of the tile's rows of b
 * are the gate's and half are up's, such that a thread has the sums of both for the same element of
 * d: the halves of Q, or with SWAP the halves of each consumer's rows of P.
 *
 * Cooperative (PINGPONG 0): the consumers share a tile, ROWS = BM / CONSUMERS rows each.
 * Ping-pong: each takes every other tile whole, and one's epilogue runs under the other's main
 * loop; named barriers keep the main loops apart. */
#include "common/types.h"
#include "moe/grouped_gemm_sm90_args.h"

#ifndef BM
#define BM 128
#define BN 256
#define STAGES 3
#define CONSUMERS 2
#define PINGPONG 0
#define GROUP 8
#define SWAP 0
#define MIN_BLOCKS 1
#define FORM 0
#define BLOCK 64
#define GATHER 0
#define ACTIVATION 0
#define OPERAND_TYPE bf16
#define D_DTYPE DT_BF16
#define D_ALIGNED 1
#define D_WHOLE 1
#define HAS_TOTALS 0
#endif

#define P_ALONG_M 0
#define Q_ALONG_N 0
#define SHARED_P 1
#define SHARED_Q 1
#define ROWS (PINGPONG ? BM : BM / CONSUMERS)
#define PARTS (ROWS / 64)
#include "common/cuda/load.cuh"
#define PROMOTE_STEPS 0
#define TOTAL_STEPS 4 /* of which f32 results add the sums to totals, which rounds */
#include "common/cuda/gemm_mainloop_sm90.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/named_barrier.cuh"

#define THREADS (128 * (CONSUMERS + 1))
#define D_BYTES DT_SIZE(D_DTYPE)
#define TILE_ROWS (SWAP ? BN : BM)
#define TILE_COLUMNS ((SWAP ? BM : BN) / (ACTIVATION ? 2 : 1))
/* From the loader to the consumers; the counts add up for one block an SM. */
#define MOVES_REGISTERS (CONSUMERS > 1 && MIN_BLOCKS == 1)
#define LOADER_REGISTERS (CONSUMERS == 3 ? 32 : !GATHER ? 40 : TILE_ROWS > 128 ? 88 : 56)
#define CONSUMER_REGISTERS (CONSUMERS == 3 ? 160 : !GATHER ? 232 : TILE_ROWS > 128 ? 208 : 224)

static_assert(BM % 64 == 0 && BM <= 256 && ROWS % 64 == 0, "rows are shared in 64s");
static_assert(BN % 16 == 0 && BN <= 256, "columns of a wgmma, in the pairs of stmatrix");
static_assert(!ACTIVATION || (SWAP ? PARTS % 2 == 0 : BN % 32 == 0), "gate and up");
static_assert(!PINGPONG || CONSUMERS == 2, "two take turns");
static_assert(!GATHER || (CONSUMERS < 3 && FORM != 2), "the loader needs registers");

/* One a consumer. */
enum { BARRIER_TURN = 1, BARRIER_STAGING = 1 + CONSUMERS };

#include "moe/grouped_gemm_sm90_epilogue.cuh"
#include "moe/grouped_gemm_sm90_load.cuh"

/* ---- The consumers ------------------------------------------------------------------------- */

__device__ __forceinline__ void clear(float (&d)[PARTS][BN / 2])
{
#pragma unroll
    for (int i = 0; i < PARTS * BN / 2; i++)
        d[i / (BN / 2)][i % (BN / 2)] = 0;
}

/* As mainloop_multiply_tile(), for rows that cp.async brought as well: those become visible to
 * wgmma here. */
__device__ __forceinline__ void multiply_tile(const struct ring *ring, uint32_t row, uint32_t step,
                                              int count, float (&d)[PARTS][BN / 2])
{
#if GATHER
    for (int i = 0; i < count; i++, step++) {
        mbarrier_wait(ring->full + 8 * (step % STAGES), step / STAGES & 1);
        tma_store_fence();
        mainloop_multiply_stage(ring, row, step, i, d);
        wgmma_wait<1>();
        if (i)
            stage_release(ring->empty + 8 * ((step - 1) % STAGES));
    }
    mainloop_finish(d);
    if (count)
        stage_release(ring->empty + 8 * ((step - 1) % STAGES));
#else
    mainloop_multiply_tile(ring, row, step, count, d);
#endif
}

#if HAS_TOTALS
/* Totals of every TOTAL_STEPS steps' sums: tensor cores cut off what an f32 sum cannot hold. */
__device__ __forceinline__ void multiply(const struct ring *ring, uint32_t row, uint32_t step,
                                         int count, float (&d)[PARTS][BN / 2])
{
    float sums[PARTS][BN / 2];
    clear(d);
    for (int first = 0; first < count; first += TOTAL_STEPS) {
        multiply_tile(ring, row, step + first, min(count - first, TOTAL_STEPS), sums);
#pragma unroll
        for (int i = 0; i < PARTS * BN / 2; i++)
            d[i / (BN / 2)][i % (BN / 2)] += sums[i / (BN / 2)][i % (BN / 2)];
    }
}
#else
__device__ __forceinline__ void multiply(const struct ring *ring, uint32_t row, uint32_t step,
                                         int count, float (&d)[PARTS][BN / 2])
{
    if (count == 0)
        clear(d);
    multiply_tile(ring, row, step, count, d);
}
#endif

/* Ping-pong: wait for the turn, and give it to the other. */
__device__ __forceinline__ void turn_take(int consumer)
{
    if (PINGPONG)
        named_barrier_sync(BARRIER_TURN + consumer, 256);
}

__device__ __forceinline__ void turn_give(int consumer)
{
    if (PINGPONG)
        named_barrier_arrive(BARRIER_TURN + 1 - consumer, 256);
}

__device__ __forceinline__ void consume_all(const struct grouped_gemm_sm90_args *args,
                                            const struct tiles *tiles, const struct ring *ring,
                                            struct staging staging)
{
    const int consumer = staging.consumer, unit = PINGPONG ? 0 : consumer;
    float d[PARTS][BN / 2];
    struct walk walk = walk_begin(args, tiles);
    struct tile tile;
    uint32_t step = 0;
    if (consumer == 1)
        turn_give(consumer);
    for (int turn = 0; walk_next(args, tiles, &walk, &tile); turn++) {
        int32_t count = tile.expert < 0 ? 0 : (args->k + BK - 1) / BK;
        if (!PINGPONG || turn % 2 == consumer) {
            turn_take(consumer);
            multiply(ring, unit * ROWS, step, count, d);
            turn_give(consumer);
            finish(args, &tile, unit, &staging, d);
        }
        step += count;
    }
}

/* ---- The kernel ---------------------------------------------------------------------------- */

__device__ __forceinline__ void barriers_init(const struct ring *ring)
{
    for (int stage = 0; stage < STAGES; stage++) {
        mbarrier_init(ring->full + 8 * stage, FULL_ARRIVALS);
        mbarrier_init(ring->empty + 8 * stage, PINGPONG ? 4 : 4 * CONSUMERS);
    }
    mbarrier_init_fence();
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    grouped_gemm_sm90(const __grid_constant__ struct grouped_gemm_sm90_args args)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t staging_offset = STAGES * STAGE_BYTES;
    const uint32_t full_offset = staging_offset + CONSUMERS * 4 * GROUPED_GEMM_SM90_WARP_STAGING;
    const uint32_t base = shared_address(shared), full = base + full_offset;
    const struct ring ring = { base, full, full + 8 * STAGES };
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);

    if (threadIdx.x == 0)
        barriers_init(&ring);
    if (threadIdx.x == CONSUMERS * 128 && args.k) {
        if (!GATHER)
            tma_prefetch_map(args.map_a);
        tma_prefetch_map(args.map_b);
    }
    launch_wait();
    const struct tiles tiles = blocks_scan(&args, shared + full_offset + 16 * STAGES);
    __syncthreads();

    if (warp / 4 == CONSUMERS) {
        if (MOVES_REGISTERS)
            registers_lower<LOADER_REGISTERS>();
        if (GATHER || warp % 4 == 0)
            load_all(&args, &tiles, &ring);
        launch_dependents();
    } else {
        if (MOVES_REGISTERS)
            registers_raise<CONSUMER_REGISTERS>();
        const uint32_t staging = warp / 4 * 4 * GROUPED_GEMM_SM90_WARP_STAGING;
        consume_all(&args, &tiles, &ring, { base + staging_offset + staging, warp / 4 });
    }
}
