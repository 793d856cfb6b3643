/* What attention_decode_sm80 has to do, and which part of it a piece is: tokens that are seen, the
 * line of all tiles or pieces, rows of queries. Arithmetic on lengths that only the device has. */
#ifndef DECODE_LINE_CUH
#define DECODE_LINE_CUH
#include "common/cuda/split_kv.cuh"
#include "decode_cuda_args.h"

#define ROWS (8 * N_TILES)
#define TILE (WARPS * WARP_TOKENS)
#define ROW_TILES ((GROUP + ROWS - 1) / ROWS)
#define UNITS (HKV * ROW_TILES) /* of a sequence */
#define FIXED (HAS_SHARED || DETERMINISTIC)
#define LEAST_PIECE (DECODE_PIECE_TOKENS / TILE) /* tiles of a fixed piece */

/* ---- The line ------------------------------------------------------------------------------ */

/* Tokens of the prefix. */
__device__ __forceinline__ int shared_tokens(const struct decode_args &call)
{
    if (!HAS_SHARED || call.pages <= 0)
        return 0;
    return max(0, min(*call.shared_len, (int)(call.shared_pages * PAGE)));
}

/* The tokens that a sequence sees of its own, and the first one of the prefix. */
struct seen {
    int begin, end, shared_begin;
};

__device__ __forceinline__ struct seen seen_of(const struct decode_args &call, int sequence,
                                               int shared)
{
    int most = call.pages > 0 ? (int)(call.max_pages * PAGE) : 0;
    int end = max(0, min(call.seq_lens[sequence], most));
    if (!HAS_WINDOW)
        return { 0, end, 0 };
    int first = (int)max((int64_t)0, (int64_t)shared + end - call.window);
    return { max(0, first - shared), end, min(first, shared) };
}

/* The line of the tiles of all sequences, or with FIXED of the pieces of all units. */
struct line {
    int64_t share, total;                    /* share: of a group of blocks, unless FIXED */
    int shared, shared_units, shared_pieces; /* tokens of the prefix; units and pieces of each */
    int piece;                               /* tiles of one, unless DETERMINISTIC */
};

__device__ __forceinline__ int tiles_between(int begin, int end)
{
    return end > begin ? (end + TILE - 1) / TILE - begin / TILE : 0;
}

__device__ __forceinline__ int tiles_of(const struct decode_args &call, int sequence, int shared)
{
    struct seen seen = seen_of(call, sequence, shared);
    return tiles_between(seen.begin, seen.end);
}

/* Tiles of a piece, of a unit of `tiles`. */
__device__ __forceinline__ int tiles_of_piece(const struct line &line, int tiles)
{
    if (!DETERMINISTIC)
        return line.piece;
    return max(LEAST_PIECE, (tiles + DECODE_PIECES - 1) / DECODE_PIECES);
}

__device__ __forceinline__ int parts_of(const struct line &line, int tiles)
{
    int piece = FIXED ? tiles_of_piece(line, tiles) : 1;
    return (tiles + piece - 1) / piece;
}

/* What a sequence has in the line. */
__device__ __forceinline__ int entries_of(const struct decode_args &call, const struct line &line,
                                          int sequence)
{
    return parts_of(line, tiles_of(call, sequence, line.shared)) * (FIXED ? UNITS : 1);
}

/* By whole warps, all to the same end. `blocks`: groups of them, unless FIXED. */
__device__ __forceinline__ struct line line_of(const struct decode_args &call, int blocks)
{
    struct line line = {};
    int b = (int)call.b;
    line.shared = shared_tokens(call);
    int shared_tiles = tiles_between(0, line.shared);
    if (HAS_SHARED)
        line.shared_units = (b * GROUP + ROWS - 1) / ROWS * HKV;
    if (HAS_SHARED && !DETERMINISTIC) {
        int64_t tiles = split_sum([&](int i) { return tiles_of(call, i, line.shared); }, 0, b);
        tiles = tiles * UNITS + (int64_t)shared_tiles * line.shared_units;
        line.piece = (int)max((int64_t)LEAST_PIECE, (tiles + DECODE_SHARED_PIECES * blocks - 1) /
                                                        (DECODE_SHARED_PIECES * blocks));
    }
    line.shared_pieces = HAS_SHARED ? parts_of(line, shared_tiles) : 0;
    line.total = split_sum([&](int i) { return entries_of(call, line, i); }, 0, b) +
                 (int64_t)line.shared_pieces * line.shared_units;
    line.share = FIXED ? 0 : split_share(line.total, blocks, LEAST);
    return line;
}

/* ---- Pieces -------------------------------------------------------------------------------- */

/* A piece of a unit. */
struct piece {
    int sequence, head; /* of the cache; sequence -1: the prefix */
    int first_row;      /* among the query heads of the cache's head, of all sequences for -1 */
    int rows;
    int tile, tiles;
    int64_t slot; /* -1: whole */
};

struct row {
    int sequence, head; /* of q */
};

__device__ __forceinline__ struct row row_of(const struct piece &piece, int i)
{
    int at = piece.first_row + i;
    if (HAS_SHARED && piece.sequence < 0)
        return { at / GROUP, piece.head * GROUP + at % GROUP };
    return { piece.sequence, piece.head * GROUP + at };
}

/* The rows of query heads that a unit of a sequence has; nothing else is known yet. */
__device__ __forceinline__ struct piece piece_of(int sequence, int unit)
{
    int first_row = unit % ROW_TILES * ROWS;
    return { sequence, unit / ROW_TILES, first_row, min(ROWS, GROUP - first_row), 0, 0, -1 };
}

/* Where a block is in the line: at a piece, the one after which begins at `next`. `of` is the
 * sequence that holds what came last, with all its entries. */
struct walk {
    int64_t next, end;
    struct split_kv_unit of;
    struct piece piece;
    bool is_done;
};

/* Entry x of the line, of the prefix: all heads and rows of a part of it come together, to be read
 * once from memory. */
__device__ __forceinline__ struct piece shared_piece(const struct decode_args &call,
                                                     const struct line &line, int64_t x)
{
    int unit = (int)(x % line.shared_units), part = (int)(x / line.shared_units);
    int of_head = line.shared_units / HKV, first_row = unit % of_head * ROWS;
    int tiles = tiles_between(0, line.shared), each = tiles_of_piece(line, tiles);
    return { -1,
             unit / of_head,
             first_row,
             (int)min((int64_t)ROWS, call.b * GROUP - first_row),
             part * each,
             min(each, tiles - part * each),
             x };
}

/* Entry x of a sequence, with FIXED: likewise. */
__device__ __forceinline__ struct piece fixed_piece(const struct decode_args &call,
                                                    const struct line &line,
                                                    const struct split_kv_unit &of, int64_t x)
{
    int at = (int)(x - of.first);
    struct piece piece = piece_of(of.sequence, at % UNITS);
    struct seen seen = seen_of(call, of.sequence, line.shared);
    int tiles = tiles_between(seen.begin, seen.end), each = tiles_of_piece(line, tiles);
    piece.tile = seen.begin / TILE + at / UNITS * each;
    piece.tiles = min(each, tiles - at / UNITS * each);
    piece.slot = x;
    return piece;
}

/* Entries x up to end of a sequence, without FIXED: tiles of the unit that this block has of all
 * sequences, blockIdx.x. The group of blocks, blockIdx.y, has the others at the same time: the rows
 * of a token are read together. */
__device__ __forceinline__ struct piece cut_piece(const struct decode_args &call,
                                                  const struct line &line,
                                                  const struct split_kv_unit &of, int64_t x,
                                                  int64_t end)
{
    struct piece piece = piece_of(of.sequence, blockIdx.x);
    int64_t slot = 2 * (int64_t)blockIdx.y + (x != blockIdx.y * line.share);
    piece.tile = seen_of(call, of.sequence, line.shared).begin / TILE + (int)(x - of.first);
    piece.tiles = (int)(end - x);
    piece.slot = piece.tiles == of.tiles ? -1 : slot * UNITS + blockIdx.x;
    return piece;
}

/* To the first entry, of a block or group. */
__device__ __forceinline__ struct walk walk_begin(const struct decode_args &call,
                                                  const struct line &line)
{
    const int64_t prefix = (int64_t)line.shared_units * line.shared_pieces;
    auto entries = [&](int i) { return entries_of(call, line, i); };
    struct walk walk = {};
    walk.next = FIXED ? blockIdx.x : blockIdx.y * line.share;
    walk.end = FIXED ? line.total : min(walk.next + line.share, line.total);
    walk.of = split_find(entries, (int)call.b, 1, max(walk.next - prefix, (int64_t)0));
    walk.of.first += prefix;
    return walk;
}

__device__ __forceinline__ void walk_advance(struct walk &walk, const struct decode_args &call,
                                             const struct line &line)
{
    auto entries = [&](int i) { return entries_of(call, line, i); };
    int64_t x = walk.next;
    walk.is_done = x >= walk.end;
    if (walk.is_done)
        return;
    walk.next = x + gridDim.x;
    if (HAS_SHARED && x < (int64_t)line.shared_units * line.shared_pieces) {
        walk.piece = shared_piece(call, line, x);
        return;
    }
    while (x >= walk.of.first + walk.of.tiles)
        split_next(&walk.of, entries, (int)call.b, 1);
    if (!FIXED)
        walk.next = min(walk.end, walk.of.first + walk.of.tiles);
    walk.piece =
        FIXED ? fixed_piece(call, line, walk.of, x) : cut_piece(call, line, walk.of, x, walk.next);
}
#endif
