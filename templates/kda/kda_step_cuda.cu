/* A token of each sequence through filter, gated delta rule and norm, in one kernel. A group is a
 * head of q and k of a sequence with its HV / H value heads; a block has all of it, or a cluster of
 * CLUSTER blocks shares it: PARALLEL value heads at a time, PARTS blocks for each of those, COLUMNS
 * of v a block. A block walks over its share of the value heads. Of each:
 *
 *     1. Loads: slot, x, filters, gate, z; then the filter's states; then a slab of the state, BV
 *        columns of v in registers (kda_decode_slab.cuh). All are in flight together.
 *     2. Meanwhile the filter, a few channels a thread, the logarithms of the decays and what gates
 *        the norm, to shared memory: q, k and v as DTYPE, what kda_decode reads from memory.
 *     3. The token (kda_decode_vk.cuh, kda_decode_kv.cuh), slab by slab. o goes to shared memory as
 *        DTYPE, the slabs back to the pool.
 *     4. The norm, by one warp, from there; the sums of PARTS blocks meet in each other's shared
 *        memory.
 *
 * The filter's states of q and k are read by all blocks of a group and overwritten by one. No block
 * outside the group reads them, and in a cluster the first block keeps what it will write in shared
 * memory until a cluster barrier, at which all arrive after their reading and nobody waits before
 * the state is done. States of v are a block's own: each thread writes what it has read itself.
 *
 * Memory bound: a state there and back is 128 KiB a head of 128 by 128 f32, at 4.3 TB/s 62 us for
 * 64 sequences of 32 heads, 1 us for one sequence, where latencies are what counts: the slot, then
 * filter and state together, then the norm's exchange. Inputs, outputs and the filter's states add
 * 6 KiB a head in bf16; filters come from L2.
 *
 * A slot outside the pools: o is zeros and nothing else is touched. Sums are in a fixed order. */
#define STEPS 1
#define POOL 1
#define HAS_FROM 1
#define HAS_TO 1
#define SAVE 0
#define TREE 0
/* What the token's code reads from shared memory: logarithms of decays and beta, in f32. */
#define GATE KDA_GATE_NONE
#define HAS_BIAS 0
#define G_DTYPE DT_F32
#define BETA_DTYPE DT_F32
#define Q_ACCESS 16
#define K_ACCESS 16
#define V_ACCESS 16
#define G_ACCESS 16
#include "common/cuda/cluster.cuh"
#include "common/cuda/mbarrier.cuh"
#include "kda_kinds.h"
#include "kda_norm.cuh"
#include "kda_step_args.h"

#ifndef H
#define H 1
#endif
#ifndef HV
#define HV 1
#endif
#ifndef K
#define K 128
#endif
#ifndef V
#define V 128
#endif
#ifndef STATE
#define STATE DT_F32
#endif
#ifndef IS_SCALAR
#define IS_SCALAR 0
#endif
#ifndef L2NORM
#define L2NORM 0
#endif
#ifndef BETA_LOGITS
#define BETA_LOGITS 0
#endif
#ifndef NEG_EIGVAL
#define NEG_EIGVAL 0
#endif
#ifndef IS_VK
#define IS_VK 0
#endif
#ifndef RAW_GATE
#define RAW_GATE KDA_GATE_NONE
#endif
#ifndef RAW_BIAS
#define RAW_BIAS 0
#endif
#ifndef RAW_G
#define RAW_G DT_F32
#endif
#ifndef RAW_BETA
#define RAW_BETA DT_F32
#endif
#ifndef NORM_ACT
#define NORM_ACT KDA_NORM_SIGMOID /* KDA_NORM_UNGATED: no norm */
#endif
#ifndef Z_DTYPE
#define Z_DTYPE DT_BF16
#endif
#ifndef NORM_WEIGHT
#define NORM_WEIGHT DT_F32
#endif
#ifndef CONV_ACCESS
#define CONV_ACCESS 4
#endif
#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef BV
#define BV 32
#endif
#ifndef WARPS
#define WARPS 8
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif
#ifndef PARALLEL
#define PARALLEL 1
#endif
#ifndef PARTS
#define PARTS 1
#endif

#include "conv.cuh"
#if IS_VK
#include "kda_decode_vk.cuh"
#else
#include "kda_decode_kv.cuh"
#endif

#define CLUSTER (PARALLEL * PARTS)
#define HEADS (HV / H / PARALLEL) /* that a block walks over */
#define COLUMNS (V / PARTS)
#define HAS_NORM (NORM_ACT != KDA_NORM_UNGATED)
#define DECAYS (IS_SCALAR ? 1 : K)
#define DECAYS_EACH ((DECAYS + THREADS - 1) / THREADS)
#define COLUMNS_EACH ((COLUMNS + THREADS - 1) / THREADS)
static_assert(COLUMNS % BV == 0 && PARTS <= 32, "slabs of a block are whole");

/* What a block's threads tell each other; rows are of DTYPE. */
struct stage {
    __align__(16) char q[K * DT_SIZE(DTYPE)], k[K * DT_SIZE(DTYPE)], v[V * DT_SIZE(DTYPE)],
        o[V * DT_SIZE(DTYPE)];
    __align__(16) float decay[K];
    float beta;
    float norm[2][V];        /* weight times gate, of this head and the one before */
    float squares[2][PARTS]; /* of the head's blocks, likewise */
    __align__(16) char kept[CLUSTER > 1 ? (W - 1) * 2 * K *DT_SIZE(DTYPE) : 16];
};

/* A block's share of a group, and where it is. */
struct share {
    struct place at;
    int key_head, column; /* column: of v, the first */
    int rank;             /* in the cluster */
    int phase;            /* which of two of a stage the head uses */
    bool is_first;        /* the first of the block's heads: q and k are to be made */
};

/* ---- 1., 2. The filter ----------------------------------------------------------------------- */

/* The channels of one access: of q, k or v of the group; of q and k `shared` is the first in those
 * that blocks share, else negative. */
struct channels {
    int64_t first;
    int shared;
    char *to;
};

/* What is on its way for them. */
struct piece {
    struct raw last[W - 1], now;
    struct filter filter;
};

__device__ __forceinline__ int pieces_of(const struct share &share)
{
    return ((share.is_first ? 2 * K : 0) + COLUMNS) / CONV_VEC;
}

__device__ __forceinline__ struct channels channels_of(const struct share &share,
                                                       struct stage &stage, int piece)
{
    const int c = piece * CONV_VEC + (share.is_first ? 0 : 2 * K);
    if (c < K)
        return { (int64_t)share.key_head * K + c, c, stage.q + c * DT_SIZE(DTYPE) };
    if (c < 2 * K)
        return { (int64_t)(H + share.key_head) * K + c - K, c, stage.k + (c - K) * DT_SIZE(DTYPE) };
    const int column = share.column + c - 2 * K;
    return { (int64_t)2 * H * K + (int64_t)share.at.head * V + column, -1,
             stage.v + column * DT_SIZE(DTYPE) };
}

__device__ __forceinline__ void *conv_row(const struct kda_step_args &args,
                                          const struct share &share, int row)
{
    return (void *)element(DTYPE, args.conv_states,
                           share.at.slot * args.conv_slot + row * args.conv_row);
}

__device__ __forceinline__ void piece_load(struct piece &piece, const struct kda_step_args &args,
                                           const struct share &share, const struct channels &of)
{
    const void *x = element(DTYPE, args.x, share.at.sequence * args.x_sequence);
    piece.now = raw_load(x, of.first, CONV_VEC);
    filter_load(piece.filter, args.weight, args.weight_pitch, args.bias, of.first, CONV_VEC);
#pragma unroll
    for (int j = 0; j < W - 1; j++)
        piece.last[j] = raw_load(conv_row(args, share, j), of.first, CONV_VEC);
}

/* Filters; the states move on, in a cluster those of q and k to `kept` of its first block. */
__device__ __forceinline__ void piece_filter(const struct piece &piece,
                                             const struct kda_step_args &args,
                                             const struct share &share, struct stage &stage,
                                             const struct channels &of)
{
    float window[W - 1][CONV_VEC];
#pragma unroll
    for (int j = 0; j < W - 1; j++)
        raw_widen(window[j], piece.last[j]);
    struct raw out = filter_step(piece.filter, window, piece.now);
    store_words(of.to, out.words, CONV_ACCESS);
    const bool is_shared = CLUSTER > 1 && of.shared >= 0;
#pragma unroll
    for (int j = 0; j < W - 1; j++) {
        const struct raw &next = j + 1 < W - 1 ? piece.last[j + 1 < W - 1 ? j + 1 : j] : piece.now;
        if (!is_shared)
            raw_store(conv_row(args, share, j), of.first, CONV_VEC, next);
        else if (share.rank == 0)
            raw_store(stage.kept, j * 2 * K + of.shared, CONV_VEC, next);
    }
}

/* When all blocks of the cluster have read them. */
__device__ __forceinline__ void kept_store(const struct kda_step_args &args,
                                           const struct share &share, struct stage &stage)
{
    for (int i = threadIdx.x; i < (W - 1) * 2 * K / CONV_VEC; i += THREADS) {
        const int row = i / (2 * K / CONV_VEC), piece = i % (2 * K / CONV_VEC);
        const struct channels of = channels_of(share, stage, piece);
        raw_store(conv_row(args, share, row), of.first, CONV_VEC,
                  raw_load(stage.kept, row * 2 * K + of.shared, CONV_VEC));
    }
}

/* ---- 1., 2. Gates ---------------------------------------------------------------------------- */

/* Inputs of gates, on their way: decays by the block's last threads, since its first filter. */
struct raw_gates {
    float g[DECAYS_EACH], bias[DECAYS_EACH], rate, beta, z[COLUMNS_EACH], weight[COLUMNS_EACH];
};

__device__ __forceinline__ void gates_load(struct raw_gates &raw, const struct kda_step_args &args,
                                           const struct share &share)
{
    const struct place &at = share.at;
    const struct kda_decode_args &decode = args.decode;
    const void *g = row_of<RAW_G>(decode.g, at, 0, at.head);
    raw.rate = RAW_GATE ? decode.A_log[at.head] : 0.0f;
    raw.beta = load_as_f32(RAW_BETA, row_of<RAW_BETA>(decode.beta, at, 0, at.head));
#pragma unroll
    for (int i = 0; i < DECAYS_EACH; i++) {
        const int d = THREADS - 1 - (int)threadIdx.x + i * THREADS;
        raw.g[i] = d < DECAYS ? load_as_f32(RAW_G, element(RAW_G, g, d)) : 0.0f;
        raw.bias[i] = 0.0f;
        if (RAW_BIAS && d < DECAYS)
            raw.bias[i] = decode.dt_bias[at.head * decode.dt_bias_head + d];
    }
    const void *z = row_of<Z_DTYPE>(args.z, at, 0, at.head);
#pragma unroll
    for (int i = 0; HAS_NORM && i < COLUMNS_EACH; i++) {
        const int c = threadIdx.x + i * THREADS;
        raw.z[i] = raw.weight[i] = 0.0f;
        if (c < COLUMNS) {
            raw.z[i] = load_as_f32(Z_DTYPE, element(Z_DTYPE, z, share.column + c));
            raw.weight[i] =
                load_as_f32(NORM_WEIGHT, element(NORM_WEIGHT, args.norm_weight, share.column + c));
        }
    }
}

__device__ __forceinline__ void gates_make(struct stage &stage, const struct raw_gates &raw,
                                           const struct kda_step_args &args,
                                           const struct share &share)
{
    const float rate = RAW_GATE ? __expf(raw.rate) : 1.0f;
#pragma unroll
    for (int i = 0; i < DECAYS_EACH; i++) {
        const int d = THREADS - 1 - (int)threadIdx.x + i * THREADS;
        if (d < DECAYS)
            stage.decay[d] =
                kda_gate<RAW_GATE>(raw.g[i], raw.bias[i], rate, args.decode.lower_bound);
    }
    if (threadIdx.x == 0)
        stage.beta = raw.beta;
#pragma unroll
    for (int i = 0; HAS_NORM && i < COLUMNS_EACH; i++) {
        const int c = threadIdx.x + i * THREADS;
        if (c < COLUMNS)
            stage.norm[share.phase][share.column + c] =
                raw.weight[i] * kda_norm_gate<NORM_ACT>(raw.z[i]);
    }
}

/* ---- 3. -------------------------------------------------------------------------------------- */

/* The token as kda_decode has it, its rows in shared memory. */
__device__ __forceinline__ struct kda_decode_args token_of(const struct kda_step_args &args,
                                                           struct stage &stage)
{
    struct kda_decode_args token = args.decode;
    token.q = { stage.q, 0, 0, 0 };
    token.k = { stage.k, 0, 0, 0 };
    token.v = { stage.v, 0, 0, 0 };
    token.g = { stage.decay, 0, 0, 0 };
    token.beta = { &stage.beta, 0, 0, 0 };
    if (HAS_NORM)
        token.o = { stage.o, 0, 0, 0 };
    return token;
}

/* ---- 4. -------------------------------------------------------------------------------------- */

/* o of the block's columns, from shared memory, by its first warp. */
__device__ __forceinline__ void normalise(const struct kda_step_args &args,
                                          const struct share &share, struct stage &stage)
{
    const int lane = share.at.lane;
    float x[(COLUMNS + 31) / 32], squares = 0.0f;
    if (share.at.warp == 0) {
#pragma unroll
        for (int i = 0; i < (COLUMNS + 31) / 32; i++) {
            const int c = i * 32 + lane;
            x[i] =
                c < COLUMNS ? load_as_f32(DTYPE, element(DTYPE, stage.o, share.column + c)) : 0.0f;
            squares += x[i] * x[i];
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            squares += __shfl_xor_sync(0xffffffff, squares, distance);
    }
    if (PARTS > 1) {
        if (share.at.warp == 0 && lane < PARTS) {
            float *mine = &stage.squares[share.phase][share.rank % PARTS];
            cluster_store(cluster_address(shared_address(mine), share.rank / PARTS * PARTS + lane),
                          squares);
        }
        __syncwarp();
        cluster_sync();
        squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            squares += stage.squares[share.phase][i];
    }
    if (share.at.warp == 0) {
        const float factor = rsqrtf(squares * (1.0f / V) + args.eps);
        const void *to = row_of<DTYPE>(args.decode.o, share.at, 0, share.at.head);
#pragma unroll
        for (int i = 0; i < (COLUMNS + 31) / 32; i++) {
            const int c = i * 32 + lane;
            if (c < COLUMNS)
                store_from_f32(DTYPE, (void *)element(DTYPE, to, share.column + c),
                               x[i] * factor * stage.norm[share.phase][share.column + c]);
        }
    }
}

/* ---- The block ------------------------------------------------------------------------------- */

__device__ __forceinline__ void head_zeros(const struct kda_step_args &args,
                                           const struct share &share)
{
    const void *to = row_of<DTYPE>(args.decode.o, share.at, 0, share.at.head);
    for (int c = threadIdx.x; c < COLUMNS; c += THREADS)
        store_from_f32(DTYPE, (void *)element(DTYPE, to, share.column + c), 0.0f);
}

/* After the first barrier q, k, v and gates are there, and all have read the filter's states; after
 * the second o is, and what the next head overwrites has been read. Where blocks exchange sums, the
 * last slab is stored after that: the exchange waits for all stores before it. */
__device__ __forceinline__ void head_step(const struct kda_step_args &args, struct share &share,
                                          struct stage &stage)
{
    struct place &at = share.at;
    const int pieces = pieces_of(share);
    struct piece piece;
    struct raw_gates raw;
    slab s;
    /* 1. */
    gates_load(raw, args, share);
    if (threadIdx.x < pieces)
        piece_load(piece, args, share, channels_of(share, stage, threadIdx.x));
    at.column = share.column;
    slab_begin(s, args.decode, at);

    /* 2. */
    if (threadIdx.x < pieces)
        piece_filter(piece, args, share, stage, channels_of(share, stage, threadIdx.x));
#pragma unroll 1
    for (int i = threadIdx.x + THREADS; i < pieces; i += THREADS) {
        const struct channels of = channels_of(share, stage, i);
        piece_load(piece, args, share, of);
        piece_filter(piece, args, share, stage, of);
    }
    gates_make(stage, raw, args, share);
    __syncthreads();
    if (CLUSTER > 1 && share.is_first)
        cluster_arrive_relaxed();

    /* 3. */
    const struct kda_decode_args token = token_of(args, stage);
    const struct gate gate(token, at.head);
#pragma unroll 1
    for (int turn = 0; turn < COLUMNS / BV; turn++) {
        struct inputs in;
        if (turn > 0) {
            at.column += BV;
            slab_begin(s, args.decode, at);
        }
        inputs_load(in, token, at, 0);
        advance(s, in, gate, token, at, 0);
        if (PARTS == 1 || turn + 1 < COLUMNS / BV)
            slab_store(s, slab_of(args.decode.to, at, at.slot, 0), args.decode.to.row);
    }
    if (CLUSTER > 1 && share.is_first)
        cluster_wait();
    __syncthreads();

    /* 4. */
    if (HAS_NORM)
        normalise(args, share, stage);
    if (PARTS > 1)
        slab_store(s, slab_of(args.decode.to, at, at.slot, 0), args.decode.to.row);
    if (CLUSTER > 1 && share.is_first) {
        if (share.rank == 0)
            kept_store(args, share, stage);
        __syncthreads();
    }
    share.phase ^= 1;
}

/* One block an SM is promised at least: else ptxas, on some targets, spills so that more would
 * fit. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    kda_step_cuda(const __grid_constant__ struct kda_step_args args)
{
    __shared__ struct stage stage;
    struct share share = {};
    share.at.warp = threadIdx.x / 32;
    share.at.lane = threadIdx.x % 32;
    share.rank = (int)(blockIdx.x % CLUSTER);
    share.column = share.rank % PARTS * COLUMNS;
#pragma unroll 1
    for (int64_t i = blockIdx.x / CLUSTER; i < args.decode.n * H; i += gridDim.x / CLUSTER) {
        share.at.sequence = i / H;
        share.key_head = (int)(i % H);
        share.at.slot = args.decode.slots[share.at.sequence];
        const bool is_used = share.at.slot >= 0 && share.at.slot < args.decode.capacity;
#pragma unroll 1
        for (int j = 0; j < HEADS; j++) {
            share.is_first = j == 0;
            share.at.head = share.key_head * (HV / H) + j * PARALLEL + share.rank / PARTS;
            if (is_used)
                head_step(args, share, stage);
            else
                head_zeros(args, share);
        }
    }
}
