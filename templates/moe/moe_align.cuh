/* Slots sorted by expert, by blocks of THREADS threads: a stable counting sort of chunks.
 *
 *     bucket   0: slots of no expert; e + 1: those of expert e
 *     tables   in shared memory, for each bucket: how many slots there are, its first row, the row
 *              of its next slot; 16 bits for each bucket and warp: slots of the chunk ahead of the
 *              warp's part
 *     part     of a chunk, a warp's, 32 slots at a time: lanes of one bucket find each other by
 *              match.any and count in the order of the lanes
 *
 *     1. each warp counts its part; where there are no counts of the chunks, the block the others
 *     2. a thread a bucket: sums over the warps ahead, the chunks ahead, the buckets ahead
 *     3. every slot of the chunk to its row; one at a block's first row writes the block's expert
 *     4. rows that no slot has, a bucket a warp
 *     5. what there is one of
 *
 * What is counted by atomics are integers, in any order the same. Nothing is read or written
 * outside the arrays whatever ids and expert_map hold. */
#ifndef MOE_ALIGN_CUH
#define MOE_ALIGN_CUH
#include "common/types.h"
#include "moe/moe_align_args.h"

#ifndef THREADS
#define THREADS 512
#endif
#ifndef SIZES
#define SIZES 0 /* problem_sizes and blockscale_offsets may be wanted */
#endif

#define ALIGN_WARPS (THREADS / 32)
#define ALIGN_CHUNKS 8    /* counts of chunks that a thread has in flight */
#define ALIGN_NONE 0xffff /* the bucket of a lane without a slot */
static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps, of which one adds up the sums");

struct moe_align_tables {
    int32_t *total;  /* [buckets] */
    int32_t *start;  /* [buckets + 1] */
    int32_t *next;   /* [buckets] */
    int32_t *sums;   /* [32] */
    uint16_t *parts; /* [warps, buckets] */
    int buckets;
    int first, end; /* buckets of the thread, whose sums it runs */
};

/* In `shared`, which has room for experts + 2 buckets. */
static __device__ __forceinline__ struct moe_align_tables moe_align_tables(int experts,
                                                                           int32_t *shared)
{
    const int buckets = experts + 1, each = (buckets + THREADS - 1) / THREADS;
    const int first = min((int)threadIdx.x * each, buckets);
    int32_t *next = shared + 2 * (experts + 2);
    int32_t *sums = next + experts + 2;
    return { shared, shared + experts + 2,      next, sums, (uint16_t *)(sums + 32), buckets,
             first,  min(first + each, buckets) };
}

static __device__ __forceinline__ int moe_align_divide(int n, const struct moe_align_divisor &by)
{
    return (int)((uint64_t)(uint32_t)n * by.factor >> by.shift);
}

static __device__ __forceinline__ int moe_align_bucket(const struct moe_align_args &args, int slot)
{
    const int token = moe_align_divide(slot, args.by_topk);
    uint32_t id = (uint32_t)args.ids[token * args.ids_token + slot - token * args.topk];
    if (args.expert_map)
        id = id < (uint32_t)args.global ? (uint32_t)args.expert_map[id] : 0xffffffff;
    return id < (uint32_t)args.experts ? (int)id + 1 : 0;
}

/* ---- A warp's part of a chunk ---------------------------------------------------------------- */

struct moe_align_part {
    int64_t chunk_first, chunk_end;
    int64_t begin, end;
    int warps;       /* that have a part */
    uint16_t *table; /* the warp's of t.parts */
};

static __device__ __forceinline__ struct moe_align_part
moe_align_part(const struct moe_align_args &args, const struct moe_align_tables &t, int chunk)
{
    const int warp = threadIdx.x / 32;
    struct moe_align_part part;
    part.chunk_first = min((int64_t)chunk * args.chunk, (int64_t)args.slots);
    part.chunk_end = min(part.chunk_first + args.chunk, (int64_t)args.slots);
    part.begin = min(part.chunk_first + warp * args.part, part.chunk_end);
    part.end = min(part.begin + args.part, part.chunk_end);
    part.warps =
        moe_align_divide((int)(part.chunk_end - part.chunk_first) + args.part - 1, args.by_part);
    part.table = t.parts + warp * t.buckets;
    return part;
}

/* Of the lane's slot among the 32 from `first` on. */
static __device__ __forceinline__ int
moe_align_next(const struct moe_align_args &args, const struct moe_align_part &part, int64_t first)
{
    const int64_t slot = first + threadIdx.x % 32;
    return slot < part.end ? moe_align_bucket(args, (int)slot) : ALIGN_NONE;
}

/* take(slot, bucket, ahead) by each lane that has a slot, `ahead` of those of its bucket before it,
 * counted from what the warp's table was. `next`: of the part's first slots. */
template <typename Take>
static __device__ __forceinline__ void moe_align_walk(const struct moe_align_args &args,
                                                      const struct moe_align_part &part, int next,
                                                      Take take)
{
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int64_t i = part.begin; i < part.end; i += 32) {
        const int b = next;
        next = moe_align_next(args, part, i + 32);
        const uint32_t peers = __match_any_sync(0xffffffff, b);
        const int rank = __popc(peers & ((1u << lane) - 1));
        const int ahead = b == ALIGN_NONE ? 0 : part.table[b];
        __syncwarp();
        if (b != ALIGN_NONE && rank == 0)
            part.table[b] = (uint16_t)(ahead + __popc(peers));
        __syncwarp();
        if (b != ALIGN_NONE)
            take((int)i + lane, b, ahead + rank);
    }
}

/* ---- The steps of a sort, each by the whole block -------------------------------------------- */

static __device__ __forceinline__ void moe_align_clear(const struct moe_align_tables &t,
                                                       const struct moe_align_part &part)
{
#pragma unroll 1
    for (int b = threadIdx.x; b < t.buckets; b += THREADS)
        t.total[b] = t.next[b] = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < (part.warps * t.buckets + 1) / 2; i += THREADS)
        ((uint32_t *)t.parts)[i] = 0;
}

/* 1. Without the counts of all chunks: slots of the others, into total, those ahead into next. */
static __device__ __forceinline__ void moe_align_count_others(const struct moe_align_args &args,
                                                              const struct moe_align_tables &t,
                                                              const struct moe_align_part &part)
{
    const int first = (int)part.chunk_first, left = args.slots - (int)part.chunk_end;
#pragma unroll 4
    for (int i = threadIdx.x; i < first + left; i += THREADS) {
        const int b = moe_align_bucket(args, i < first ? i : i - first + (int)part.chunk_end);
        atomicAdd(&t.total[b], 1);
        if (i < first)
            atomicAdd(&t.next[b], 1);
    }
}

/* 2. Of the bucket, from the counts of all chunks. */
static __device__ __forceinline__ void moe_align_add_counts(const struct moe_align_args &args,
                                                            const struct moe_align_tables &t,
                                                            int chunk, int b)
{
    int total = 0, ahead = 0;
#pragma unroll 1
    for (int first = 0; first < args.chunks; first += ALIGN_CHUNKS) {
        int found[ALIGN_CHUNKS];
#pragma unroll
        for (int c = 0; c < ALIGN_CHUNKS; c++)
            found[c] =
                first + c < args.chunks ? args.counts[(int64_t)(first + c) * t.buckets + b] : 0;
#pragma unroll
        for (int c = 0; c < ALIGN_CHUNKS; c++) {
            total += found[c];
            ahead += first + c < chunk ? found[c] : 0;
        }
    }
    t.total[b] = total, t.next[b] = ahead;
}

/* 2. Each warp's slots of the bucket become those of the warps ahead; returns how many all have. */
static __device__ __forceinline__ int moe_align_sum_parts(const struct moe_align_tables &t,
                                                          int warps, int b)
{
    int found[ALIGN_WARPS], ahead = 0;
#pragma unroll
    for (int w = 0; w < ALIGN_WARPS; w++)
        found[w] = w < warps ? t.parts[w * t.buckets + b] : 0;
#pragma unroll
    for (int w = 0; w < ALIGN_WARPS; w++) {
        if (w < warps)
            t.parts[w * t.buckets + b] = (uint16_t)ahead;
        ahead += found[w];
    }
    return ahead;
}

/* The sum of the threads' values ahead of this one's; *all: of all. A barrier is due before the
 * next one. */
static __device__ __forceinline__ int moe_align_scan(int value, int32_t *sums, int *all)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value, ahead = 0, total = 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int before = __shfl_up_sync(0xffffffff, sum, step);
        sum += lane >= step ? before : 0;
    }
    if (lane == 31)
        sums[warp] = sum;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < ALIGN_WARPS; w++) {
        ahead += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    *all = total;
    return ahead + sum - value;
}

/* 2. start: the first row of each bucket, and behind the last the rows in use; next likewise. */
static __device__ __forceinline__ void moe_align_lay_out(const struct moe_align_args &args,
                                                         const struct moe_align_tables &t,
                                                         const struct moe_align_part &part,
                                                         int chunk)
{
    int rows = 0, all;
    auto padded = [&](int b) {
        int blocks = moe_align_divide(t.total[b] + args.block - 1, args.by_block);
        return b || args.is_filtered_kept ? blocks * args.block : 0;
    };
#pragma unroll 1
    for (int b = t.first; b < t.end; b++) {
        const int own = moe_align_sum_parts(t, part.warps, b);
        if (args.counts)
            moe_align_add_counts(args, t, chunk, b);
        else
            t.total[b] += own;
        rows += padded(b);
    }
    int row = moe_align_scan(rows, t.sums, &all);
#pragma unroll 1
    for (int b = t.first; b < t.end; b++) {
        t.start[b] = row;
        t.next[b] += row;
        row += padded(b);
    }
    if (threadIdx.x == 0)
        t.start[t.buckets] = all;
}

/* 3. The first row of a block always has a slot. */
static __device__ __forceinline__ void moe_align_put(const struct moe_align_args &args, int slot,
                                                     int expert, int row)
{
    const int token = moe_align_divide(slot, args.by_topk);
    if (args.positions)
        args.positions[token * args.positions_token + slot - token * args.topk] = row;
    if (row < 0)
        return;
    if (args.sorted)
        args.sorted[row] = args.share == 1 ? slot : token;
    const int block = moe_align_divide(row, args.by_block);
    if (args.expert_ids && row == block * args.block)
        args.expert_ids[block] = expert;
}

/* 4. Block `index` of `blocks` has a share. */
static __device__ void moe_align_fill(const struct moe_align_args &args,
                                      const struct moe_align_tables &t, int index, int blocks)
{
    const int lane = threadIdx.x % 32, used = t.start[t.buckets];
    const int64_t thread = (int64_t)index * THREADS + threadIdx.x;
    const int64_t threads = (int64_t)blocks * THREADS;
#pragma unroll 1
    for (int64_t b = thread / 32; args.sorted && args.block > 1 && b < t.buckets;
         b += threads / 32) {
        if (t.start[b] == t.start[b + 1]) /* empty, or not kept */
            continue;
#pragma unroll 1
        for (int row = t.start[b] + t.total[b] + lane; row < t.start[b + 1]; row += 32)
            args.sorted[row] = args.padding;
    }
#pragma unroll 1
    for (int64_t row = used + thread; args.sorted && row < args.rows; row += threads)
        args.sorted[row] = args.padding;
    const int ends = moe_align_divide(args.rows, args.by_block);
#pragma unroll 1
    for (int64_t i = moe_align_divide(used, args.by_block) + thread; args.expert_ids && i < ends;
         i += threads)
        args.expert_ids[i] = -1;
}

static __device__ __forceinline__ void moe_align_sizes(int32_t *to, int m, int n, int k)
{
    to[0] = m, to[1] = n, to[2] = k;
}

/* 5. By one block. Thread i has `each` experts from i * each. */
static __device__ void moe_align_write(const struct moe_align_args &args,
                                       const struct moe_align_tables &t)
{
    const int each = (args.experts + THREADS - 1) / THREADS, first = threadIdx.x * each;
    const int end = min(first + each, args.experts);
    int padded = 0, all_padded = 0;
#pragma unroll 1
    for (int e = first; e < end; e++) {
        int m = t.total[e + 1];
        padded += (m + 127) / 128 * 128;
        if (args.offsets)
            args.offsets[e] = t.start[e + 1];
        if (SIZES && args.problem_sizes1)
            moe_align_sizes(args.problem_sizes1 + e * args.sizes1_row, m, 2 * args.n, args.k);
        if (SIZES && args.problem_sizes2)
            moe_align_sizes(args.problem_sizes2 + e * args.sizes2_row, m, args.k, args.n);
    }
    if (args.offsets && threadIdx.x == 0)
        args.offsets[args.experts] = t.start[t.buckets];
    if (args.rows_used && threadIdx.x == 0)
        args.rows_used[0] = t.start[t.buckets];
    if (SIZES && args.blockscale_offsets) {
        int at = moe_align_scan(padded, t.sums, &all_padded);
#pragma unroll 1
        for (int e = first; e < end; e++) {
            args.blockscale_offsets[e] = at;
            at += (t.total[e + 1] + 127) / 128 * 128;
        }
        if (threadIdx.x == 0)
            args.blockscale_offsets[args.experts] = all_padded;
    }
}

/* All of it, as block `index` of `blocks`, of which there is one for each chunk at least. wait() is
 * called once, before anything of an earlier kernel is read or overwritten. */
template <typename Wait>
static __device__ __forceinline__ void moe_align_blocks(const struct moe_align_args &args,
                                                        int index, int blocks, int32_t *shared,
                                                        Wait wait)
{
    const struct moe_align_tables t = moe_align_tables(args.experts, shared);
    struct moe_align_part part = moe_align_part(args, t, index);
    moe_align_clear(t, part);
    wait();
#pragma unroll 1
    for (int is_counted = 0; is_counted < 2; is_counted++) {
        const int next = moe_align_next(args, part, part.begin);
        __syncthreads();
        moe_align_walk(args, part, next, [&](int slot, int b, int ahead) {
            const bool has_row = b || args.is_filtered_kept;
            if (is_counted)
                moe_align_put(args, slot, b - 1, has_row ? t.next[b] + ahead : -1);
        });
        if (is_counted)
            break;
        if (!args.counts)
            moe_align_count_others(args, t, part);
        __syncthreads();
        moe_align_lay_out(args, t, part, index);
    }
    moe_align_fill(args, t, index, blocks);
    if (index == 0)
        moe_align_write(args, t);
}
#endif
