/* gemm on Hopper: wgmma fed by TMA, one persistent block an SM. Step `main` of gemm_sm90_plan.c.
 *
 *     warpgroup 0 .. CONSUMERS-1   multiply, then finish and store their rows of the tile
 *     warpgroup CONSUMERS          one thread loads ahead, through the next tiles as well
 *
 *     shared memory   [ stage 0 ][ stage 1 ] ...   gemm_mainloop_sm90.cuh
 *                     [ staging of each consumer ]
 *                     [ full barriers ][ empty barriers ]
 *
 * A tile is BM rows of P by BN rows of Q: P = a and Q = b, or with SWAP P = b and Q = a, so that few
 * rows of a are the narrow side of the multiplication. Then the tile is d's transposed, and is
 * transposed back on its way through the staging memory.
 *
 * Cooperative (PINGPONG 0): the consumers share a tile, ROWS = BM / CONSUMERS rows each.
 * Ping-pong: each takes every other tile whole, and one's epilogue runs under the other's main loop;
 * named barriers keep the main loops apart.
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
#include "common/cuda/stmatrix.cuh"
#include "common/cuda/swizzle.cuh"

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

/* ---- The epilogue -------------------------------------------------------------------------- */

/* A consumer's staging memory. Its two buffers are taken in turns, through all parts and tiles. */
struct staging {
    uint32_t address;
    int consumer;
    uint32_t pieces; /* stored so far */
};

/* Where this thread's d[part][i] lies: its row of P and row of Q. */
__device__ __forceinline__ int32_t row_of(const struct tile *tile, int32_t row, int part, int i)
{
    return tile->p + row + 64 * part + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 +
           (i & 2) * 4;
}

__device__ __forceinline__ int32_t column_of(const struct tile *tile, int i)
{
    return tile->q + i / 4 * 8 + threadIdx.x % 4 * 2 + (i & 1);
}

__device__ __forceinline__ void *d_at(const struct gemm_sm90_args *args, int32_t batch, int32_t m,
                                      int32_t n)
{
    int64_t index = batch * args->d_batch_stride + m * args->d_row_stride + n;
    return (char *)args->d + index * D_BYTES;
}

/* Old d's elements at (m, n) and, of the same row, n + 1: one load where rows are aligned. */
__device__ __forceinline__ void add_old_pair(const struct gemm_sm90_args *args, int32_t batch,
                                             int32_t m, int32_t n, float *d)
{
    uint32_t words[2];
    const void *at = d_at(args, batch, m, n);
    if (D_TMA && n + 1 < args->n) {
        load_words(words, at, 2 * D_BYTES);
        d[0] += word_as_f32(D_DTYPE, words, 0);
        d[1] += word_as_f32(D_DTYPE, words, 1);
        return;
    }
    d[0] += load_as_f32(D_DTYPE, at);
    if (n + 1 < args->n)
        d[1] += load_as_f32(D_DTYPE, d_at(args, batch, m, n + 1));
}

/* d[part] += bias + old d, where the tile lies within d; eight columns at a time, since all loads
 * at once would take more registers than there are. */
__device__ __forceinline__ void add_extras(const struct gemm_sm90_args *args,
                                           const struct tile *tile, int32_t row, int part,
                                           float (&d)[BN / 2])
{
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        int32_t p = row_of(tile, row, part, i), q = column_of(tile, i);
        int32_t m = SWAP ? q : p, n = SWAP ? p : q;
        if (m < args->m && n < args->n) {
            if (BIAS_DTYPE != DT_NONE)
                d[i] += load_as_f32(BIAS_DTYPE, element(BIAS_DTYPE, args->bias, n));
            if (ACCUMULATE && SWAP)
                d[i] += load_as_f32(D_DTYPE, d_at(args, tile->batch, m, n));
            if (ACCUMULATE && !SWAP && i % 2 == 0)
                add_old_pair(args, tile->batch, m, n, &d[i]);
        }
        if (i % 4 == 3)
            asm volatile("" ::: "memory");
    }
}

__device__ __forceinline__ void store_elements(const struct gemm_sm90_args *args,
                                               const struct tile *tile, int32_t row, int part,
                                               const float (&d)[BN / 2])
{
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        int32_t p = row_of(tile, row, part, i), q = column_of(tile, i);
        int32_t m = SWAP ? q : p, n = SWAP ? p : q;
        if (m < args->m && n < args->n)
            store_from_f32(D_DTYPE, d_at(args, tile->batch, m, n), d[i]);
    }
}

__device__ __forceinline__ uint32_t d_pair(float low, float high)
{
    return D_DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
}

/* 16 columns of d to staging rows of `pitch` bytes, the first at `column`; transposed with SWAP. */
template <int pitch>
__device__ __forceinline__ void stage_16(uint32_t staging, int column, const float *d)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    if constexpr (D_BYTES == 2) {
        const uint32_t pairs[4] = { d_pair(d[0], d[1]), d_pair(d[2], d[3]), d_pair(d[4], d[5]),
                                    d_pair(d[6], d[7]) };
        int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8 + column;
        if (SWAP)
            stmatrix_x4_transposed(
                staging + swizzled<pitch>((sixteen + lane % 8) * pitch + (warp * 16 + eight) * 2),
                pairs);
        else
            stmatrix_x4(staging +
                            swizzled<pitch>((warp * 16 + eight + lane % 8) * pitch + sixteen * 2),
                        pairs);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = warp * 16 + lane / 4 + (i & 2) * 4;
            int at = column + i / 4 * 8 + lane % 4 * 2 + i % 2;
            uint32_t box = SWAP ? row / 32 * BN * 128 : 0;
            uint32_t offset = SWAP ? at * pitch + row % 32 * 4 : row * pitch + at * 4;
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(staging + box + swizzled<pitch>(offset)),
                         "f"(d[i])
                         : "memory");
        }
    }
}

/* `width` columns of a consumer's part, from `column` on, to d through one of its two buffers: one is
 * stored by TMA while the other is written. */
template <int width>
__device__ __forceinline__ void store_piece(const void *map, const struct tile *tile, int32_t row,
                                            struct staging *staging, int column, const float *d)
{
    uint32_t buffer = staging->address + staging->pieces++ % 2 * (64 * 128);
    if (threadIdx.x % 128 == 0)
        tma_store_wait_read<1>();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int j = 0; j < width; j += 16)
        stage_16<width * D_BYTES>(buffer, j, &d[j / 2]);
    tma_store_fence();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
    if (threadIdx.x % 128 == 0) {
        tma_store_3d(map, buffer, tile->q + column, tile->p + row, tile->batch);
        tma_store_commit();
    }
}

__device__ __forceinline__ void store_rows(const struct gemm_sm90_args *args,
                                           const struct tile *tile, int32_t row,
                                           struct staging *staging, const float (&d)[BN / 2])
{
    const int wide = BN / PIECE * PIECE;
#pragma unroll
    for (int column = 0; column < wide; column += PIECE)
        store_piece<PIECE>(args->map_d, tile, row, staging, column, &d[column / 2]);
#pragma unroll
    for (int column = wide; column < BN; column += TAIL)
        store_piece<TAIL>(args->map_tail, tile, row, staging, column, &d[column / 2]);
}

/* The same for a transposed tile: BN rows of 64 columns of d. */
__device__ __forceinline__ void store_transposed(const struct gemm_sm90_args *args,
                                                 const struct tile *tile, int32_t row,
                                                 struct staging *staging, const float (&d)[BN / 2])
{
    if (threadIdx.x % 128 == 0)
        tma_store_wait_read<0>();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int j = 0; j < BN; j += 16)
        stage_16<128>(staging->address, j, &d[j / 2]);
    tma_store_fence();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
    if (threadIdx.x % 128 == 0) {
        for (int box = 0; box < 64 * D_BYTES / 128; box++)
            tma_store_3d(args->map_d, staging->address + box * BN * 128, tile->p + row + box * 32,
                         tile->q, tile->batch);
        tma_store_commit();
    }
}

__device__ __forceinline__ void finish(const struct gemm_sm90_args *args, const struct tile *tile,
                                       int32_t row, struct staging *staging,
                                       float (&d)[PARTS][BN / 2])
{
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if (BIAS_DTYPE != DT_NONE || ACCUMULATE)
            add_extras(args, tile, row, part, d[part]);
        if (!D_TMA)
            store_elements(args, tile, row, part, d[part]);
        else if (SWAP)
            store_transposed(args, tile, row + 64 * part, staging, d[part]);
        else
            store_rows(args, tile, row + 64 * part, staging, d[part]);
    }
}

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
