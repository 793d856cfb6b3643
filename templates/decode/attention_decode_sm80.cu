/* Attention of one query of each sequence to a paged cache, by mma.sync, sm_80 and up.
 *
 * Memory bound: what counts is that each SM has 40 KiB or more of K and V under way. A unit is ROWS
 * of the query heads that share a head of the cache, of one sequence. A block has a piece of a unit
 * at a time, in tiles of TILE tokens, of which each of its warps has WARP_TOKENS:
 *
 *     warp 0   | 16 tokens: stage 0 [ K | V ]  stage 1 [ K | V ] ...      m, l, o of its own
 *     warp 1   | the next 16: ...                                         m, l, o
 *
 *     1. decode    a block finds its share (common/cuda/split_kv.cuh). Of each piece in it:
 *        1.1 the copies of the first tiles
 *        1.2 of each tile the copy of the one STAGES - 1 ahead, which may be of a piece to come,
 *            then its own part; no barrier: a warp reads only what it has copied itself
 *        1.3 the warps' sums are added in shared memory; stored as o, or as a partial state
 *     2. combine   adds partial states
 *
 * With CLUSTER > 1, for few sequences that are not long: a cluster of blocks has a unit, adds its
 * sums by way of their shared memory, and there is no second step.
 *
 * Where is which piece: two ways.
 *
 *     FIXED 0   a group of blocks, one for each unit of a sequence, has a share of the tiles of all
 *               sequences: its blocks read other heads of the same tokens at the same time. Most
 *               units are whole; a block of the combine for each cut, unit and row.
 *     FIXED 1   with a common prefix, and where bits may not depend on anything else: units consist
 *               of pieces (DETERMINISTIC: of a length that follows from the sequence's own), each
 *               of which has a slot of its own. Blocks take them in turn. A block of the combine
 *               for each unit and row. The prefix comes first in the line of all pieces, with units
 *               of ROWS of the query heads of all sequences.
 *
 * Queries of lengths beyond their table see what is in it, and pages outside the cache are read as
 * page 0. */
#ifndef D
#define D 128
#endif
#ifndef DV
#define DV 128
#endif
#ifndef GROUP
#define GROUP 4
#endif
#ifndef HKV
#define HKV 8
#endif
#ifndef PAGE
#define PAGE 16
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef KV_DTYPE
#define KV_DTYPE DT_BF16
#endif
#ifndef KV_SCALE /* 0: none, 1: of all, 2: of each head */
#define KV_SCALE 0
#endif
#ifndef SINKS
#define SINKS 0
#endif
#ifndef SINKS_DTYPE
#define SINKS_DTYPE DT_F32
#endif
#ifndef HAS_LSE
#define HAS_LSE 0
#endif
#ifndef HAS_SOFTCAP
#define HAS_SOFTCAP 0
#endif
#ifndef HAS_SHARED
#define HAS_SHARED 0
#endif
#ifndef HAS_WINDOW
#define HAS_WINDOW 0
#endif
#ifndef DETERMINISTIC
#define DETERMINISTIC 0
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
#ifndef N_TILES /* 8 query rows each */
#define N_TILES 1
#endif
#ifndef WARPS
#define WARPS 4
#endif
#ifndef WARP_TOKENS
#define WARP_TOKENS 16
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef BLOCKS /* of an SM */
#define BLOCKS 2
#endif
#ifndef LEAST /* tiles of a block */
#define LEAST 1
#endif
#ifndef CLUSTER /* blocks that share a unit; 1: shares of all of them */
#define CLUSTER 1
#endif

#include "common/cuda/launch.cuh"
#include "decode_store.cuh"

/* ---- 1. Decode ------------------------------------------------------------------------------ */

struct source {
    struct kv_span span;
    struct kv_rows k, v;
};

__device__ __forceinline__ struct kv_rows rows_of(const struct decode_cache &cache, int head)
{
    return { (const char *)cache.data + head * cache.head * KV_SIZE, cache.page * KV_SIZE,
             cache.token * KV_SIZE };
}

/* The tokens of a piece's unit. */
__device__ __forceinline__ struct kv_span span_of(const struct decode_args &call,
                                                  const struct piece &piece, int shared)
{
    if (HAS_SHARED && piece.sequence < 0)
        return { call.shared_table, 0, shared, (int)call.pages };
    struct seen seen = seen_of(call, piece.sequence, shared);
    return { call.page_table + piece.sequence * call.table_row, seen.begin, seen.end,
             (int)call.pages };
}

__device__ __forceinline__ struct source source_of(const struct decode_args &call,
                                                   const struct piece &piece, int shared)
{
    return { span_of(call, piece, shared), rows_of(call.k, piece.head),
             rows_of(call.v, piece.head) };
}

/* The shared address of this warp's stages. */
__device__ __forceinline__ uint32_t stages_of(const char *memory)
{
    return (uint32_t)__cvta_generic_to_shared(memory) + threadIdx.x / 32 * (STAGES * STAGE_BYTES);
}

/* The copies of a block's pieces: of tile `tile` of walk.piece next. */
struct reader {
    struct walk walk;
    struct source from;
    int tile, page;
};

__device__ __forceinline__ int first_token(const struct piece &piece, int tile)
{
    return (piece.tile + tile) * TILE + threadIdx.x / 32 * WARP_TOKENS;
}

__device__ __forceinline__ void reader_find(struct reader &reader)
{
    const struct walk &walk = reader.walk;
    reader.page = 0;
    if (!walk.is_done && reader.tile < walk.piece.tiles)
        reader.page =
            kv_page<PAGE, WARP_TOKENS>(reader.from.span, first_token(walk.piece, reader.tile));
}

__device__ __forceinline__ void reader_open(struct reader &reader, const struct decode_args &call,
                                            const struct walk &walk, int shared)
{
    reader.walk = walk;
    reader.tile = 0;
    if (!walk.is_done)
        reader.from = source_of(call, walk.piece, shared);
    reader_find(reader);
}

/* Starts the copy of the next tile, if there is one; a group either way. */
template <class Advance>
__device__ __forceinline__ void reader_fetch(struct reader &reader, const struct decode_args &call,
                                             uint32_t to, int shared, Advance advance)
{
    struct walk &walk = reader.walk;
    const struct kv_span &span = reader.from.span;
    int token = first_token(walk.piece, reader.tile);
    if (!walk.is_done && reader.tile < walk.piece.tiles && token < span.end &&
        token + WARP_TOKENS > span.begin) {
        kv_copy<PAGE, WARP_TOKENS, K_BYTES, ALIGN_K>(to, reader.from.k, span, token, reader.page);
        kv_copy<PAGE, WARP_TOKENS, V_BYTES, ALIGN_V>(to + STAGE_K, reader.from.v, span, token,
                                                     reader.page);
    }
    cp_async_commit();
    if (!walk.is_done && ++reader.tile >= walk.piece.tiles) {
        advance(walk);
        reader.tile = 0;
        if (!walk.is_done)
            reader.from = source_of(call, walk.piece, shared);
    }
    reader_find(reader);
}

__device__ __forceinline__ void load_queries(struct queries &q, const struct decode_args &call,
                                             const struct piece &piece)
{
    float scale = call.scale * cache_scale(call.k_scale, piece.head);
    if (!HAS_SOFTCAP || !(call.softcap > 0.0f))
        scale *= LOG2E;
    queries_load(
        q,
        [&](int i) -> const void * {
            struct row row = row_of(piece, i);
            int64_t at = row.sequence * call.q.sequence + row.head * call.q.head;
            return i < piece.rows ? (const uint16_t *)call.q.data + at : nullptr;
        },
        scale);
}

/* The pieces from walk.piece on; advance(walk) goes to the next, or sets is_done. */
template <class Advance>
__device__ __forceinline__ void attend_pieces(const struct decode_cuda_args &args,
                                              struct walk &walk, int shared, char *memory,
                                              Advance advance)
{
    const struct decode_args &call = args.call;
    struct reader reader;
    int slot = 0;
    const uint32_t stages = stages_of(memory);
    reader_open(reader, call, walk, shared);
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++) /* 1.1 */
        reader_fetch(reader, call, stages + i * STAGE_BYTES, shared, advance);
#pragma unroll 1
    for (; !walk.is_done; advance(walk)) {
        const struct piece &piece = walk.piece;
        const struct kv_span span = span_of(call, piece, shared);
        struct queries q;
        struct sums sums;
        load_queries(q, call, piece);
        sums_clear(sums);
        int lane = threadIdx.x % 32, seen_from = span.begin;
        if (HAS_SHARED_WINDOW && piece.sequence < 0 && lane < piece.rows)
            seen_from = seen_of(call, row_of(piece, lane).sequence, shared).shared_begin;
#pragma unroll 1
        for (int i = 0; i < piece.tiles; i++) { /* 1.2 */
            int token = first_token(piece, i);
            reader_fetch(reader, call, stages + (slot ? slot - 1 : STAGES - 1) * STAGE_BYTES,
                         shared, advance);
            cp_async_wait<STAGES - 1>();
            __syncwarp();
            if (token < span.end && token + WARP_TOKENS > span.begin)
                attend(sums, q, stages + slot * STAGE_BYTES, call.softcap, token, span, seen_from);
            __syncwarp();
            slot = slot == STAGES - 1 ? 0 : slot + 1;
        }
        /* 1.3 */
        char *in_stage = memory + (slot ? slot - 1 : STAGES - 1) * STAGE_BYTES;
        float *of_warps = (float *)(SUMS_IN_STAGE ? in_stage : memory + STAGES_BYTES);
        put_sums(sums, of_warps, piece.rows);
        __syncthreads();
#if CLUSTER > 1
        char *behind = memory + STAGES_BYTES + (SUMS_IN_STAGE ? 0 : WARPS * SUMS_BYTES);
        store_sums_of_cluster(args, piece, of_warps, (float *)behind);
#else
        store_sums(args, piece, of_warps);
        __syncthreads();
#endif
    }
    cp_async_wait<0>();
}

/* Sequences that see nothing have no tiles, and no block: groups take them by number. */
__device__ __forceinline__ void store_empty(const struct decode_args &call)
{
    for (int i = blockIdx.y; i < call.b; i += gridDim.y) {
        if (tiles_of(call, i, 0))
            continue;
        struct piece piece = piece_of(i, blockIdx.x);
        for (int j = threadIdx.x; j < piece.rows * (DV / 4); j += THREADS)
            store_row(call, row_of(piece, j / (DV / 4)), j % (DV / 4) * 4,
                      { SPLIT_NONE, 0.0f, {} });
    }
}

#if CLUSTER > 1
/* A cluster has a unit, each block as many of its tiles. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_decode_cluster(const __grid_constant__ struct decode_cuda_args args)
{
    extern __shared__ __align__(16) char memory[];
    launch_wait();
    launch_dependents();
    int number = blockIdx.x / CLUSTER;
    struct walk walk = {};
    walk.piece = piece_of(number / UNITS, number % UNITS);
    struct seen seen = seen_of(args.call, walk.piece.sequence, 0);
    int tiles = tiles_between(seen.begin, seen.end), share = (tiles + CLUSTER - 1) / CLUSTER;
    int first = min((int)cluster_rank() * share, tiles);
    walk.piece.tile = seen.begin / TILE + first;
    walk.piece.tiles = min(share, tiles - first);
    attend_pieces(args, walk, 0, memory, [](struct walk &at) { at.is_done = true; });
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_decode_sm80(const __grid_constant__ struct decode_cuda_args args)
{
    extern __shared__ __align__(16) char memory[];
#if __CUDA_ARCH__ >= 900
    launch_wait();
    launch_dependents(); /* no block of this grid waits for a place that those could take */
#endif
    const struct decode_args &call = args.call;
    const struct line line = line_of(call, FIXED ? gridDim.x : gridDim.y);
    struct walk walk = walk_begin(call, line);
    if (threadIdx.x == 0 && blockIdx.x == 0)
        split_record(args.space, walk.of, FIXED ? line.piece : line.share, blockIdx.y);
    if (FIXED && threadIdx.x < 32)
        split_record_before(
            args.space, [&](int i) { return entries_of(call, line, i); }, (int)call.b);
    if (!FIXED)
        store_empty(call);
    auto advance = [&](struct walk &at) { walk_advance(at, call, line); };
    advance(walk);
    attend_pieces(args, walk, line.shared, memory, advance);
}

/* ---- 2. Combine ------------------------------------------------------------------------------ */

#define COMBINE_THREADS 128

/* Row `row` of unit blockIdx.x of a sequence that was cut. */
__device__ __forceinline__ void combine_cut(const struct decode_cuda_args &args, int row)
{
    struct split_kv_unit of;
    struct split_kv_pieces pieces;
    if (!split_pieces(args.space, blockIdx.y, &of, &pieces))
        return;
    const struct piece piece = piece_of(of.sequence, blockIdx.x);
    if (row < piece.rows)
        split_combine<COMBINE_THREADS, DV>(
            args.space, pieces.count,
            [&](int i) { return (pieces(i) * UNITS + blockIdx.x) * ROWS + row; },
            [&](int column, const struct split_kv_state &state) {
                store_row(args.call, row_of(piece, row), column, state);
            });
}

/* Row `row` of unit `unit` of a sequence: its pieces of the prefix, then its own. */
__device__ __forceinline__ void combine_fixed(const struct decode_cuda_args &args, int sequence,
                                              int unit, int row)
{
    const struct decode_args &call = args.call;
    const struct piece piece = piece_of(sequence, unit);
    if (row >= piece.rows)
        return;
    struct line line = {};
    line.shared = shared_tokens(call);
    line.piece = (int)args.space.cuts[0].share;
    const int64_t of_head = (call.b * GROUP + ROWS - 1) / ROWS;
    const int64_t at = (int64_t)sequence * GROUP + piece.first_row + row;
    if (HAS_SHARED)
        line.shared_pieces = parts_of(line, tiles_between(0, line.shared));
    const int own = parts_of(line, tiles_of(call, sequence, line.shared));
    const int64_t prefix = of_head * HKV * line.shared_pieces;
    split_combine<COMBINE_THREADS, DV>(
        args.space, line.shared_pieces + own,
        [&](int i) {
            int64_t slot = i * of_head * HKV + piece.head * of_head + at / ROWS;
            if (i < line.shared_pieces)
                return slot * ROWS + at % ROWS;
            slot = prefix + args.space.before[sequence] + (i - line.shared_pieces) * UNITS + unit;
            return slot * ROWS + row;
        },
        [&](int column, const struct split_kv_state &state) {
            store_row(call, row_of(piece, row), column, state);
        });
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS, 1)
    attention_decode_combine(const __grid_constant__ struct decode_cuda_args args)
{
#if __CUDA_ARCH__ >= 900
    launch_dependents();
    launch_wait();
#endif
    if (!FIXED)
        combine_cut(args, blockIdx.z);
    for (int64_t i = blockIdx.x; FIXED && i < args.call.b * UNITS; i += gridDim.x)
        combine_fixed(args, (int)(i / UNITS), (int)(i % UNITS), blockIdx.z);
}
#endif
