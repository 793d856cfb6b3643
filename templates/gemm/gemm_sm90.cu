/* gemm on Hopper: wgmma fed by TMA, one persistent block an SM. Step `main` of gemm_sm90_plan.c.
 *
 *     warpgroup 0 .. CONSUMERS-1   multiply, then finish and store their rows of the tile
 *     warpgroup CONSUMERS          one thread loads ahead, through the next tiles as well
 *
 *     shared memory   [ stage 0 ][ stage 1 ] ...   gemm_mainloop_sm90.cuh
 *                     [ staging of each consumer ]
 *                     [ full barriers ][ empty barriers ]
 *
 * A tile is BM rows of P by BN rows of Q: P = a and Q = b, or with SWAP P = b and Q = a, so that
 * few rows of a are the narrow side of the multiplication. Then the tile is d's transposed, and is
 * transposed back on its way through the staging memory.
 *
 * Cooperative (PINGPONG 0): the consumers share a tile, ROWS = BM / CONSUMERS rows each.
 * Ping-pong: each takes every other tile whole, and one's epilogue runs under the other's main
 * loop; named barriers keep the main loops apart.
 *
 * Tiles are worked on in an order that keeps those which run at the same time close together:
 * groups of GROUP along P, within a group first along P. Blocks that share a tile (SHARED_Q = 2: of
 * Q, so they are neighbours along P; SHARED_P likewise) are a cluster, as are, with SPLIT_K, those
 * that sum shares of one tile's K; there a cluster has one tile, and its blocks' sums meet in block
 * 0 through distributed shared memory, in the order of the shares: the bits are always the same.
 *
 * The epilogue adds bias and old d in f32, rounds once, and stores by TMA where d is aligned to 16
 * bytes (D_TMA), else element by element. What a tile has beyond m or n is not stored: TMA leaves
 * out what lies outside the map, other stores are guarded. */
#include "common/types.h"
#include "gemm/gemm_sm90_args.h"

#ifndef BM
#define BM 128
#define BN 256
#define STAGES 3
#define CONSUMERS 2
#define PINGPONG 0
#define SHARED_P 1
#define SHARED_Q 1
#define SPLIT_K 1
#define GROUP 8
#define SWAP 0
#define B_ALONG_N 0
#define MIN_BLOCKS 1
#define OPERAND_TYPE bf16
#define D_DTYPE DT_BF16
#define D_TMA 1
#define BIAS_DTYPE DT_NONE
#define ACCUMULATE 0
#endif

#define P_ALONG_M (SWAP && B_ALONG_N)
#define Q_ALONG_N (!SWAP && B_ALONG_N)
#define ROWS (PINGPONG ? BM : BM / CONSUMERS)
#define PARTS (ROWS / 64)
#include "common/cuda/load.cuh"
#define PROMOTE_STEPS (D_DTYPE == DT_F32 ? 4 : 0)
#include "common/cuda/gemm_mainloop_sm90.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/named_barrier.cuh"

#define THREADS (128 * (CONSUMERS + 1))
#define D_BYTES DT_SIZE(D_DTYPE)
#define PIECE GEMM_SM90_PIECE(D_BYTES)
#define TAIL GEMM_SM90_TAIL(BN, D_BYTES)
#define STAGING_BYTES (D_TMA ? GEMM_SM90_STAGING(SWAP, BN, D_BYTES) : 0)
/* From the loader to the consumers; the counts add up for one block an SM. */
#define MOVES_REGISTERS (CONSUMERS > 1 && MIN_BLOCKS == 1)
#define CLUSTER (SHARED_P * SHARED_Q * SPLIT_K)

static_assert(BM % 64 == 0 && BM <= 256 && ROWS % 64 == 0, "rows are shared in 64s");
static_assert(BN % 16 == 0 && BN <= 256, "columns of a wgmma, in the pairs of stmatrix");
static_assert(!PINGPONG || (CONSUMERS == 2 && SPLIT_K == 1), "two take turns");
static_assert(SPLIT_K == 1 || SHARED_P * SHARED_Q == 1, "a cluster has one purpose");

/* The first two are one a consumer. */
enum { BARRIER_STAGING = 1, BARRIER_TURN = 1 + CONSUMERS, BARRIER_SUMS = 1 + 2 * CONSUMERS };

/* ---- Tiles --------------------------------------------------------------------------------- */

struct tile {
    int32_t p, q, batch; /* first row of P and of Q, and which product */
};

/* Tile number `work` of those of this block's place in its cluster. */
__device__ __forceinline__ struct tile tile_at(const struct gemm_sm90_args *args, int32_t work,
                                               uint32_t rank)
{
    int32_t units_p = args->tiles_p / SHARED_Q, units_q = args->tiles_q / SHARED_P;
    int32_t batch = work / (units_p * units_q), unit = work % (units_p * units_q);
    int32_t first = unit / (GROUP * units_q) * GROUP, within = unit % (GROUP * units_q);
    int32_t height = units_p - first < GROUP ? units_p - first : GROUP;
    int32_t p = first + within % height, q = within / height;
    p = p * SHARED_Q + (SHARED_Q > 1 ? rank : 0);
    q = q * SHARED_P + (SHARED_P > 1 ? rank : 0);
    return { p * BM, q * BN, batch };
}

__device__ __forceinline__ int32_t work_count(const struct gemm_sm90_args *args)
{
    return args->batch * (args->tiles_p / SHARED_Q) * (args->tiles_q / SHARED_P);
}

/* The block's share of K, in steps. */
__device__ __forceinline__ int32_t share_begin(const struct gemm_sm90_args *args, uint32_t rank)
{
    return SPLIT_K == 1 ? 0 : (int32_t)((int64_t)args->steps * rank / SPLIT_K);
}

__device__ __forceinline__ int32_t share_count(const struct gemm_sm90_args *args, uint32_t rank)
{
    return SPLIT_K == 1 ? args->steps : share_begin(args, rank + 1) - share_begin(args, rank);
}

/* ---- The loader ---------------------------------------------------------------------------- */

__device__ __forceinline__ void load_all(const struct gemm_sm90_args *args, const struct ring *ring,
                                         uint32_t rank)
{
    int32_t count = share_count(args, rank), works = work_count(args);
    uint32_t step = 0;
    for (int32_t work = blockIdx.x / CLUSTER; work < works; work += gridDim.x / CLUSTER) {
        struct tile tile = tile_at(args, work, rank);
        struct tile_load load = { args->map_p,
                                  args->map_q,
                                  tile.p,
                                  tile.q,
                                  tile.batch * args->step_p,
                                  tile.batch * args->step_q,
                                  share_begin(args, rank),
                                  rank };
        mainloop_load(ring, &load, step, count);
        step += count;
    }
}

#include "gemm/gemm_sm90_epilogue.cuh"

/* ---- Shares of K --------------------------------------------------------------------------- */

/* Block 0's sums become the cluster's. Sums travel through the stages, which are free by now: 16
 * bytes a thread at a time, side by side. By all consumers of all blocks. */
__device__ __forceinline__ void gather(const struct ring *ring, uint32_t rank,
                                       float (&d)[PARTS][BN / 2])
{
    const uint32_t pitch = CONSUMERS * 128 * 16;
    uint32_t mine = ring->tiles + threadIdx.x * 16;
    named_barrier_sync(BARRIER_SUMS, CONSUMERS * 128); /* nobody multiplies from the stages now */
    if (rank) {
#pragma unroll
        for (int i = 0; i < PARTS * BN / 2; i += 4) {
            const float *v = &d[i / (BN / 2)][i % (BN / 2)];
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(mine + i / 4 * pitch),
                         "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                         : "memory");
        }
    }
    cluster_sync();
    for (uint32_t from = 1; from < SPLIT_K && rank == 0; from++) {
        uint32_t theirs = cluster_address(mine, from);
#pragma unroll
        for (int i = 0; i < PARTS * BN / 2; i += 4) {
            float4 sum = cluster_load(theirs + i / 4 * pitch);
            float *v = &d[i / (BN / 2)][i % (BN / 2)];
            v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
        }
    }
}

/* ---- The consumers ------------------------------------------------------------------------- */

__device__ __forceinline__ void clear(float (&d)[PARTS][BN / 2])
{
#pragma unroll
    for (int i = 0; i < PARTS * BN / 2; i++)
        d[i / (BN / 2)][i % (BN / 2)] = 0;
}

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

__device__ __forceinline__ void consume_all(const struct gemm_sm90_args *args,
                                            const struct ring *ring, struct staging staging,
                                            uint32_t rank)
{
    const int consumer = staging.consumer;
    float d[PARTS][BN / 2];
    int32_t count = share_count(args, rank), works = work_count(args);
    int32_t row = PINGPONG ? 0 : consumer * ROWS;
    int turn = 0;
    if (consumer == 1)
        turn_give(consumer);
    for (int32_t work = blockIdx.x / CLUSTER; work < works; work += gridDim.x / CLUSTER, turn++) {
        if (PINGPONG && turn % 2 != consumer)
            continue;
        struct tile tile = tile_at(args, work, rank);
        if (count == 0)
            clear(d);
        turn_take(consumer);
#if PROMOTE_STEPS
        mainloop_multiply_exact(ring, row, (uint32_t)turn * count, count, d);
#else
        mainloop_multiply_tile(ring, row, (uint32_t)turn * count, count, d);
#endif
        turn_give(consumer);
        if (SPLIT_K > 1)
            gather(ring, rank, d);
        if (SPLIT_K == 1 || rank == 0)
            finish(args, &tile, row, &staging, d);
    }
    if (threadIdx.x % 128 == 0)
        tma_store_wait_read<0>(); /* shared memory is given up only after it was read */
    __syncwarp();
}

/* ---- The kernel ---------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    gemm_sm90(const __grid_constant__ struct gemm_sm90_args args)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    uint32_t base = shared_address(shared), staging = base + STAGES * STAGE_BYTES;
    uint32_t full = staging + CONSUMERS * STAGING_BYTES;
    const struct ring ring = { base, full, full + 8 * STAGES };
    const uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);

    if (threadIdx.x == 0)
        ring_init(&ring, PINGPONG ? 4 : 4 * CONSUMERS);
    if (threadIdx.x == CONSUMERS * 128 && args.steps) {
        tma_prefetch_map(args.map_p);
        tma_prefetch_map(args.map_q);
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();

    if (warpgroup == CONSUMERS) {
        if (MOVES_REGISTERS)
            registers_lower<CONSUMERS == 2 ? 40 : 32>();
        if (threadIdx.x == CONSUMERS * 128)
            load_all(&args, &ring, rank);
        __syncwarp();
        if (SPLIT_K > 1)
            cluster_sync(); /* the one in gather() */
    } else {
        if (MOVES_REGISTERS)
            registers_raise<CONSUMERS == 2 ? 232 : 160>();
        consume_all(&args, &ring, { staging + warpgroup * STAGING_BYTES, warpgroup, 0 }, rank);
    }
    if (CLUSTER > 1)
        cluster_sync();
}
