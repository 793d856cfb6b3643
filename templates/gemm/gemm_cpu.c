/* GEMM on the CPU:  d[batch,m,n] = a[batch,m,k] b^T  (+ old d)  (+ bias[n]),  b as [n,k] or [k,n].
 *
 * Two algorithms; ALGO picks one, and only that one is compiled.
 *
 * ALGO_TILED: the blocked product. A grid block owns MC x NC of d for the whole of k, or for one
 * of SPLIT_K shares of it.
 *
 *     for each KC of k:
 *         1. pack a: MC rows into tiles of MR                       a_tiles    (L2)
 *         for each group of columns:
 *             for each chunk of k in KC:
 *                 2. pack b into panels of NR, or find them packed  b_panels   (L1)
 *                 3. multiply every tile of a by every panel        c_tiles    (L2)
 *                 4. after the last chunk: finish the tiles to d, or to partial
 *
 *      b panel j                     a tile i                 a tile i, AMX       c tile (i, j)
 *
 *          column j PANEL + ...           row i MR + ...          p = 0  1  2  ...   f32
 *         +--- PANEL ----+               +--- MR ---+            +------------+      +-- NR --+
 *   p = 0 | units        |         p = 0 | units    |            | units      | MR   |        | MR
 *       1 |              |             1 |          |            |            |      +--------+
 *     ... | zeros to     |           ... |          |            +------------+
 *         | units_of(k)  |               |          |
 *
 * With PACK_B all of b lies in panels before the product starts: [entry][panel][unit][PANEL], an
 * entry for each batch entry, or a single one for all. Either gemm_pack_b prepares them in the
 * workspace, in every call, and a panel is as wide as a tile; or (PACKED) b was given so, and tiles
 * of any NR that divides its panels read it where it lies. The layout depends on the width and on
 * what a unit is (dot_units.h), and on nothing else. Without PACK_B a block packs what it needs
 * when it needs it: that reads b once per MC rows and writes nothing to memory, and wins as long
 * as a block can hold most of m; with AMX, where memory is the limit, up to several blocks.
 *
 * ALGO_SMALL: few rows, bandwidth-bound. A grid block owns MR rows (all of them, usually) by NC
 * columns and reads b once, unpacked: NR dot products side by side for [n,k], or with AMX tiles
 * whose left factor is b; for [k,n], eight rows of b at a time into an f32 accumulator row that
 * stays in L1.
 *
 * SPLIT_K > 1: blocks write f32 sums to partial[SPLIT_K][batch][m][n]; gemm_reduce adds them in
 * the order of the shares and finishes. All is deterministic: no result depends on who ran first.
 *
 * Entries, and their grids (x, y, z):
 *
 *     gemm_pack_b   ceil(k / KC),  ceil(n / NR),  entries                        PACK_B, !PACKED;
 *                                  ceil(n / NC) where b is [k,n]
 *     gemm_main     ceil(m / MC),  ceil(n / NC),  batch * SPLIT_K                ALGO_TILED
 *     gemm_small    ceil(m / MR),  ceil(n / NC),  batch * SPLIT_K                ALGO_SMALL
 *     gemm_reduce   m,             ceil(n / NC),  batch                          SPLIT_K > 1
 *
 * Invariants. Sums are f32, rounded once on store. No element outside the arrays is touched, nor
 * one between the rows of a strided array. Zeros pad packed k and missing rows and columns (those
 * of PACKED panels are the caller's), so padding never makes a NaN. k = 0 runs through the same
 * loops with no units.
 * Temporaries live on the stack: blocks have no thread number, and a thread's stack stays warm.
 *
 * Not done: no sharing of packed a between blocks, no fp8. Denormal bf16 inputs count as zero where
 * vdpbf16ps or TDPBF16PS multiply.
 */
#define ALGO_TILED 0
#define ALGO_SMALL 1

/* ---- Parameters: what is computed ---- */
#ifndef A_DTYPE
#define A_DTYPE DT_F32
#endif
#ifndef B_DTYPE
#define B_DTYPE DT_F32
#endif
#ifndef D_DTYPE
#define D_DTYPE DT_F32
#endif
#ifndef BIAS_DTYPE
#define BIAS_DTYPE DT_NONE
#endif
#ifndef B_IS_NK /* 1: b is [n,k] ("nt"), 0: [k,n] ("nn") */
#define B_IS_NK 1
#endif
#ifndef ACCUMULATE
#define ACCUMULATE 0
#endif

#ifndef PACKED /* width of the panels that b was given in; 0: b is plain */
#define PACKED 0
#endif

/* ---- Parameters: how ---- */
#ifndef ALGO
#define ALGO ALGO_TILED
#endif
#ifndef AMX
#define AMX 0
#endif
#ifndef BF16_PAIRS /* multiply bf16 in pairs where there is an instruction, else widen to f32 */
#define BF16_PAIRS 1
#endif
#ifndef PACK_B
#define PACK_B 0
#endif
#ifndef SPLIT_K
#define SPLIT_K 1
#endif
#ifndef MR
#define MR 4
#endif
#ifndef NR
#define NR 16
#endif
#ifndef MC
#define MC 64
#endif
#ifndef NC
#define NC 64
#endif
#ifndef KC
#define KC 256
#endif

#include "common/cpu/dtype.h"
#define IS_PAIRED (BF16_PAIRS && A_DTYPE == DT_BF16 && B_DTYPE == DT_BF16)
#include "common/cpu/dot_units.h"
#if ALGO == ALGO_TILED || AMX
#include "common/cpu/pack_units.h"
#endif
#if AMX
#include "common/cpu/amx.h"
#endif
#include "gemm/gemm_args.h"

#define ROUND_UP(x, to) (((x) + (to)-1) / (to) * (to))
#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define ALIGNED __attribute__((aligned(64)))

/* ---- Blocks ---- */

/* What one block of the grid works on: its place in d, its share of k, its batch entry. */
struct block {
    int64_t row, column, rows, columns;
    int64_t k_begin, k_end;
    const void *a, *b;
    char *d;
    float *partial;
};

static struct block make_block(const struct gemm_args *args, int64_t row, int64_t rows,
                               int64_t column, int64_t z)
{
    int64_t entry = z / SPLIT_K, split = z % SPLIT_K;
    int64_t share = ROUND_UP((args->k + SPLIT_K - 1) / SPLIT_K, 32);
    struct block block = {
        .row = row,
        .column = column,
        .rows = MIN(rows, args->m - row),
        .columns = MIN(NC, args->n - column),
        .k_begin = MIN(split * share, args->k),
        .k_end = MIN((split + 1) * share, args->k),
        .a = element(A_DTYPE, args->a, entry * args->a_batch_stride),
        .b = element(B_DTYPE, args->b, entry * args->b_batch_stride),
        .d = (char *)args->d + entry * args->d_batch_stride * DT_SIZE(D_DTYPE),
    };
    if (SPLIT_K > 1)
        block.partial = args->partial + (split * args->batch + entry) * args->m * args->n;
    return block;
}

/* `count` outputs, at most VW, from column j on: add bias and old d, round, store. */
INLINE void finish(const struct gemm_args *args, void *d, int64_t j, vec_f32 value, int64_t count)
{
    int is_whole = count >= VW;
    if (BIAS_DTYPE != DT_NONE) {
        const void *bias = element(BIAS_DTYPE, args->bias, j);
        value +=
            is_whole ? load_as_f32(BIAS_DTYPE, bias) : load_part_as_f32(BIAS_DTYPE, bias, count);
    }
    if (ACCUMULATE)
        value += is_whole ? load_as_f32(D_DTYPE, d) : load_part_as_f32(D_DTYPE, d, count);
    if (is_whole)
        store_from_f32(D_DTYPE, d, value);
    else
        store_part_from_f32(D_DTYPE, d, value, count);
}

/* 4. Row i of d from column j on: finished, or as a partial sum. */
INLINE void store_row(const struct gemm_args *args, const struct block *block, int64_t i, int64_t j,
                      const float *values, int64_t count)
{
    if (SPLIT_K > 1) {
        __builtin_memcpy(block->partial + i * args->n + j, values, count * sizeof *values);
        return;
    }
    char *d = block->d + (i * args->d_row_stride + j) * DT_SIZE(D_DTYPE);
    ROLLED
    for (int64_t c = 0; c < count; c += VW)
        finish(args, d + c * DT_SIZE(D_DTYPE), j + c, (vec_f32)load_u32(values + c), count - c);
}

#if ALGO == ALGO_TILED

/* ---- The blocked product ---- */

#define KU (KC / UNIT_K)
#define PANEL (PACKED ? PACKED : NR)
#define B_IS_STREAMED PACK_B
#include "common/cpu/gemm_tile.h"

/* A chunk of k is as long as panels are. Where the block packs them itself they are short: panel,
 * the part of b it is made from and the tiles of a must share L1 (64 units beat 256 by 1.4). From
 * [k,n] panels are packed NC columns at a time, to read b in runs of NC and not of NR. */
#define PACK_COLUMNS (B_IS_NK ? NR : NC)
#define GROUP (PACK_B ? NR : PACK_COLUMNS)
#define PANEL_UNITS (PACK_B ? KU : MIN(KU, 64))

_Static_assert(MC % MR == 0 && NC % NR == 0, "MC, NC: whole tiles");
_Static_assert(KC % PACKED_K == 0, "KC: whole tile rows");
_Static_assert(!PACKED || (PACK_B && PACKED % NR == 0), "PACKED: panels of whole tiles");

/* A piece of batch entry b. */
struct piece {
    const void *b;
    int64_t column, columns, k_begin, k;
};

/* 2. Pack a piece: a panel every panel_bytes. */
APART void pack_panels(u32_any *dst, int64_t panel_bytes, const struct piece *piece, int64_t stride)
{
    int64_t units = units_of(piece->k);
    if (B_IS_NK)
        pack_panel_nk(dst, NR, B_DTYPE,
                      element(B_DTYPE, piece->b, piece->column * stride + piece->k_begin), stride,
                      piece->columns, piece->k, units);
    else
        pack_panels_kn(dst, NR, panel_bytes, B_DTYPE,
                       element(B_DTYPE, piece->b, piece->k_begin * stride + piece->column), stride,
                       piece->columns, piece->k, units);
}

#if PACK_B
/* Where packed b has column `column` at k = k_begin. */
static u32_any *packed_panel(const struct gemm_args *args, int64_t entry, int64_t column,
                             int64_t k_begin)
{
    char *panel = (char *)args->packed_b + entry * args->packed_batch_bytes +
                  column / PANEL * args->packed_panel_bytes;
    return (u32_any *)panel + k_begin / UNIT_K * PANEL + column % PANEL;
}
#endif

#if PACK_B && !PACKED
void gemm_pack_b(const struct gemm_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t column = y * (int64_t)PACK_COLUMNS, k_begin = x * (int64_t)KC;
    struct piece piece = {
        .b = element(B_DTYPE, args->b, z * args->b_batch_stride),
        .column = column,
        .columns = MIN(PACK_COLUMNS, args->n - column),
        .k_begin = k_begin,
        .k = MIN(KC, args->k - k_begin),
    };
    pack_panels(packed_panel(args, z, column, k_begin), args->packed_panel_bytes, &piece,
                args->b_row_stride);
}
#endif

/* A group of panels over a chunk of k. */
struct chunk {
    int64_t column, columns; /* relative to the block */
    int64_t units;
    int is_first, is_last;
};

/* 3. */
APART void multiply_chunk(const struct gemm_args *args, const struct block *block,
                          const struct chunk *chunk, const uint32_t *a, const u32_any *b,
                          float *c_tiles)
{
    for (int64_t j = 0; j < chunk->columns; j += NR, b += NR * PANEL_UNITS)
        for (int64_t i = 0; i < block->rows; i += MR) {
            float *c = c_tiles + (chunk->column + j) * MC + i * NR;
            multiply_tile(a + i / MR * A_TILE_UNITS, b, chunk->units, c, chunk->is_first);
            if (!chunk->is_last)
                continue;
            for (int64_t r = 0; r < MIN(MR, block->rows - i); r++)
                store_row(args, block, block->row + i + r, block->column + chunk->column + j,
                          c + r * NR, MIN(NR, chunk->columns - j));
        }
}

/* 2 and 3 for one group of columns, k elements from k_begin on. */
static void multiply_group(const struct gemm_args *args, const struct block *block, int64_t entry,
                           int64_t column, int64_t k_begin, int64_t k, const uint32_t *a_tiles,
                           float *c_tiles)
{
#if !PACK_B
    ALIGNED uint32_t b_panels[GROUP * PANEL_UNITS];
#endif
    int64_t done = 0;
    do {
        int64_t chunk_k = MIN(PANEL_UNITS * UNIT_K, k - done), at = k_begin + done;
        struct chunk chunk = {
            .column = column,
            .columns = MIN(GROUP, block->columns - column),
            .units = (chunk_k + UNIT_K - 1) / UNIT_K,
            .is_first = at == block->k_begin,
            .is_last = at + chunk_k >= block->k_end,
        };
#if PACK_B
        const u32_any *b_panels = packed_panel(args, entry, block->column + column, at);
#else
        (void)entry;
        struct piece piece = { block->b, block->column + column, chunk.columns, at, chunk_k };
        pack_panels(b_panels, NR * PANEL_UNITS * 4, &piece, args->b_row_stride);
#endif
        multiply_chunk(args, block, &chunk, a_tiles + done / UNIT_K * A_STEP, b_panels, c_tiles);
        done += PANEL_UNITS * UNIT_K;
    } while (done < k);
}

void gemm_main(const struct gemm_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    struct block block = make_block(args, x * (int64_t)MC, MC, y * (int64_t)NC, z);
    ALIGNED uint32_t a_tiles[MC / MR * A_TILE_UNITS + VW];
    ALIGNED float c_tiles[MC * NC];
#if AMX
    configure_tiles();
#endif
    int64_t k_begin = block.k_begin;
    do {
        int64_t k = MIN(KC, block.k_end - k_begin);
        for (int64_t i = 0; i < block.rows; i += MR) { /* 1. */
            int64_t at = (block.row + i) * args->a_row_stride + k_begin;
            pack_a_tile(a_tiles + i / MR * A_TILE_UNITS, A_DTYPE, element(A_DTYPE, block.a, at),
                        args->a_row_stride, MIN(MR, block.rows - i), k);
        }
        for (int64_t j = 0; j < block.columns; j += GROUP)
            multiply_group(args, &block, z / SPLIT_K, j, k_begin, k, a_tiles, c_tiles);
        k_begin += KC;
    } while (k_begin < block.k_end);
#if AMX
    TILE_RELEASE();
#endif
}

#else /* ALGO_SMALL */

/* ---- Few rows ---- */

#include "gemm/gemm_small.h"

void gemm_small(const struct gemm_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    struct block block = make_block(args, x * (int64_t)MR, MR, y * (int64_t)NC, z);
    ALIGNED float out[MR][NC];
    small_block(args, &block, out);
    for (int64_t r = 0; r < block.rows; r++)
        store_row(args, &block, block.row + r, block.column, out[r], block.columns);
}

#endif

/* ---- Split k ---- */

#if SPLIT_K > 1
/* Up to NC columns of row x of batch entry z. */
void gemm_reduce(const struct gemm_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t matrix = args->m * args->n, column = y * (int64_t)NC;
    const float *partial = args->partial + z * matrix + x * args->n;
    char *d =
        (char *)args->d + (z * args->d_batch_stride + x * args->d_row_stride) * DT_SIZE(D_DTYPE);
    for (int64_t j = column; j < MIN(column + NC, args->n); j += VW) {
        int64_t count = args->n - j;
        vec_f32 sum = { 0 };
        for (int64_t split = 0; split < SPLIT_K; split++) {
            const float *p = partial + split * args->batch * matrix + j;
            sum += count < VW ? load_part_as_f32(DT_F32, p, count) : load_as_f32(DT_F32, p);
        }
        finish(args, d + j * DT_SIZE(D_DTYPE), j, sum, count);
    }
}
#endif
