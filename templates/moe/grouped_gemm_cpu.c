/* grouped_gemm on the CPU: rows of an expert times its matrix, b[e] as [n, k] or, with an
 * activation, as [2 n, k].
 *
 * Rows are cut into tiles of at most MC, none of which has rows of two experts; a block owns a tile
 * and NC columns of d. Three algorithms; ALGO picks one, and only that one is compiled.
 *
 * ALGO_TILED: many rows, by vectors.
 *
 *     for each KC of k:
 *         1. pack a: the tile's rows, gathered or not, into tiles of MR        a_tiles  (L2)
 *         for each NR columns, of the gate and of up:
 *             for each chunk of k in KC:
 *                 2. pack b into a panel of NR                                 panel    (L1)
 *                 3. multiply every tile of a by it                            c_tiles  (L2)
 *     4. finish c_tiles to d
 *
 * ALGO_DOTS: few rows; b is read once, in order, and never stored.
 *
 *     for each few columns, of the gate and of up:
 *         1. dot products with a few rows of a at a time (common/cpu/dot_rows.h) to out[MC][NC]
 *     2. finish out to d
 *
 * ALGO_AMX: any number of rows, by tiles whose left factor is b (grouped_gemm_amx.h).
 *
 * Which rows a tile has is found from offsets, expert_ids or counts by each block for itself;
 * blocks beyond the last tile have nothing to do. Sums are f32, rounded once. Entry
 * grouped_gemm_rows, its grid: tiles of all experts, or with FORM_MASKED of each; ceil(n / NC);
 * experts with FORM_MASKED.
 *
 * Invariants: no index array can lead outside of a, b or d. Zeros pad packed k and missing rows and
 * columns. Denormal bf16 inputs count as zero where vdpbf16ps or TDPBF16PS multiply. */
#define ALGO_TILED 0
#define ALGO_DOTS 1
#define ALGO_AMX 2
#define FORM_OFFSETS 0
#define FORM_BLOCKS 1
#define FORM_MASKED 2

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE /* of a and b */
#define DTYPE DT_F32
#endif
#ifndef D_DTYPE
#define D_DTYPE DT_F32
#endif
#ifndef FORM
#define FORM FORM_OFFSETS
#endif
#ifndef GATHER
#define GATHER 0
#endif
#ifndef ACTIVATION
#define ACTIVATION 0
#endif

/* ---- Parameters: how ---- */
#ifndef ALGO
#define ALGO ALGO_TILED
#endif
#ifndef BF16_PAIRS /* multiply bf16 in pairs where there is an instruction, else widen to f32 */
#define BF16_PAIRS 1
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

#include "common/cpu/activation.h"
#include "common/cpu/dtype.h"
#define IS_PAIRED (BF16_PAIRS && DTYPE == DT_BF16)
#if ALGO == ALGO_TILED
#define AMX 0
#define KU (KC / UNIT_K)
#define PANEL NR
#define B_IS_STREAMED 0
#include "common/cpu/gemm_tile.h"
#elif ALGO == ALGO_AMX
#include "common/cpu/pack_units.h"
#else
#include "common/cpu/dot_rows.h"
#endif
#include "moe/grouped_gemm_cpu_args.h"

#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define MAX(x, y) ((x) > (y) ? (x) : (y))
#define ALIGNED __attribute__((aligned(64)))
#define HALVES (ACTIVATION ? 2 : 1) /* gate and up */

_Static_assert(NC % NR == 0, "NC: whole columns of tiles");

/* ---- Which rows ---------------------------------------------------------------------------- */

struct tile {
    int64_t expert;    /* -1: its rows become zeros */
    int64_t row, rows; /* of d, from its beginning or, FORM_MASKED, of the expert's; 0: no tile */
};

static int64_t between(int64_t value, int64_t least, int64_t most)
{
    return MAX(least, MIN(value, most));
}

static struct tile find_tile(const struct grouped_gemm_cpu_args *args, int64_t index, int64_t z)
{
    struct tile none = { 0, 0, 0 };
    if (FORM == FORM_MASKED) {
        int64_t rows = between(args->counts[z], 0, args->m), row = index * MC;
        return row < rows ? (struct tile){ z, row, MIN(MC, rows - row) } : none;
    }
    if (FORM == FORM_BLOCKS) {
        int64_t tiles = (args->block + MC - 1) / MC, block = index / tiles;
        int64_t row = block * args->block + index % tiles * MC;
        int64_t end = MIN((block + 1) * args->block, between(args->num_rows[0], 0, args->m));
        if (row >= end)
            return none;
        int64_t expert = args->expert_ids[block];
        expert = expert >= 0 && expert < args->experts ? expert : -1;
        return (struct tile){ expert, row, MIN(MC, end - row) };
    }
    int64_t begin = between(args->offsets[0], 0, args->m);
    for (int64_t e = 0; e < args->experts; e++) {
        int64_t end = between(args->offsets[e + 1], begin, args->m),
                tiles = (end - begin + MC - 1) / MC;
        if (index < tiles) {
            int64_t row = begin + index * MC;
            return (struct tile){ e, row, MIN(MC, end - row) };
        }
        index -= tiles;
        begin = end;
    }
    return none;
}

/* Row i of the tile in a; NULL: zeros. */
INLINE const void *a_row(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                         int64_t i)
{
    int64_t row = tile->row + i, expert = FORM == FORM_MASKED ? tile->expert : 0;
    if (GATHER) {
        int64_t id = args->row_ids[row];
        row = id < 0 ? -1 : args->share == 1 ? id : id / args->share;
        if (row < 0 || row >= args->source_rows)
            return (const void *)0;
    }
    return element(DTYPE, args->a, expert * args->a_expert_stride + row * args->a_row_stride);
}

/* Column j of the expert's matrix, of the gate (half 0) or of up. */
INLINE const void *b_row(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                         int64_t j, int half)
{
    int64_t row = j + half * args->n;
    return element(DTYPE, args->b, tile->expert * args->b_expert_stride + row * args->b_row_stride);
}

INLINE void *d_at(const struct grouped_gemm_cpu_args *args, const struct tile *tile, int64_t i,
                  int64_t j)
{
    int64_t expert = FORM == FORM_MASKED ? tile->expert : 0;
    int64_t at = expert * args->d_expert_stride + (tile->row + i) * args->d_row_stride + j;
    return (char *)args->d + at * DT_SIZE(D_DTYPE);
}

/* `count` sums of one row, and with an activation as many of up, to d. */
INLINE void finish(const struct grouped_gemm_cpu_args *args, void *d, const float *gate,
                   const float *up, int64_t count)
{
    ROLLED
    for (int64_t c = 0; c < count; c += VW) {
        vec_f32 value = (vec_f32)load_u32(gate + c);
        void *to = (char *)d + c * DT_SIZE(D_DTYPE);
        if (ACTIVATION)
            value = gated_activation(ACTIVATION, value, (vec_f32)load_u32(up + c), args->limit);
        if (count - c >= VW)
            store_from_f32(D_DTYPE, to, value);
        else
            store_part_from_f32(D_DTYPE, to, value, count - c);
    }
}

static void clear_tile(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                       int64_t column, int64_t columns)
{
    for (int64_t i = 0; i < tile->rows; i++)
        __builtin_memset(d_at(args, tile, i, column), 0, columns * DT_SIZE(D_DTYPE));
}

#if ALGO != ALGO_DOTS
/* `rows` rows of the tile from row i on, k elements from k_begin on, with a stride: where they lie,
 * or gathered. */
static const void *find_rows(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                             int64_t i, int64_t rows, int64_t k_begin, int64_t k, char *gathered,
                             int64_t *stride)
{
    *stride = args->a_row_stride;
    if (!GATHER)
        return element(DTYPE, a_row(args, tile, i), k_begin);
    for (int64_t r = 0; r < rows; r++) {
        const void *from = a_row(args, tile, i + r);
        char *to = gathered + r * KC * DT_SIZE(DTYPE);
        if (from)
            __builtin_memcpy(to, element(DTYPE, from, k_begin), k * DT_SIZE(DTYPE));
        else
            __builtin_memset(to, 0, k * DT_SIZE(DTYPE));
    }
    *stride = KC;
    return gathered;
}
#endif

/* ---- Many rows ----------------------------------------------------------------------------- */

#if ALGO == ALGO_TILED

#define CHUNK_UNITS MIN(KU, 64) /* of k that a panel has: it and what it is made from fit in L1 */

_Static_assert(MC % MR == 0 && KC % PACKED_K == 0, "MC, KC: whole tiles");

/* 1. MR rows from row i on, k elements from k_begin on. */
static void pack_rows(const struct grouped_gemm_cpu_args *args, const struct tile *tile, int64_t i,
                      int64_t k_begin, int64_t k, uint32_t *to)
{
    ALIGNED char gathered[GATHER ? MR * KC * DT_SIZE(DTYPE) : 1];
    int64_t stride, rows = MIN(MR, tile->rows - i);
    const void *from = find_rows(args, tile, i, rows, k_begin, k, gathered, &stride);
    pack_a_tile(to, DTYPE, from, stride, rows, k);
}

/* 2 and 3 for NR columns, k elements from k_begin on. c: tiles of MR x NR. */
static void multiply_columns(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                             const void *b, int64_t columns, int64_t k_begin, int64_t k,
                             const uint32_t *a_tiles, float *c)
{
    ALIGNED uint32_t panel[NR * CHUNK_UNITS];
    int64_t done = 0;
    do {
        int64_t chunk = MIN(CHUNK_UNITS * UNIT_K, k - done), at = k_begin + done;
        pack_panel_nk(panel, NR, DTYPE, element(DTYPE, b, at), args->b_row_stride, columns, chunk,
                      units_of(chunk));
        for (int64_t i = 0; i < tile->rows; i += MR)
            multiply_tile(a_tiles + i / MR * A_TILE_UNITS + done / UNIT_K * A_STEP, panel,
                          (chunk + UNIT_K - 1) / UNIT_K, c + i * NR, at == 0);
        done += CHUNK_UNITS * UNIT_K;
    } while (done < k);
}

static void multiply_block(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                           int64_t column, int64_t columns)
{
    ALIGNED uint32_t a_tiles[MC / MR * A_TILE_UNITS + VW];
    ALIGNED float c_tiles[HALVES][MC * NC];
    int64_t k_begin = 0;
    do {
        int64_t k = MIN(KC, args->k - k_begin);
        for (int64_t i = 0; i < tile->rows; i += MR)
            pack_rows(args, tile, i, k_begin, k, a_tiles + i / MR * A_TILE_UNITS);
        for (int64_t j = 0; j < columns; j += NR)
            for (int half = 0; half < HALVES; half++)
                multiply_columns(args, tile, b_row(args, tile, column + j, half),
                                 MIN(NR, columns - j), k_begin, k, a_tiles, c_tiles[half] + j * MC);
        k_begin += KC;
    } while (k_begin < args->k);
    for (int64_t i = 0; i < tile->rows; i++) /* 4 */
        for (int64_t j = 0; j < columns; j += NR) {
            int64_t at = j * MC + i * NR;
            finish(args, d_at(args, tile, i, column + j), c_tiles[0] + at, c_tiles[HALVES - 1] + at,
                   MIN(NR, columns - j));
        }
}

#elif ALGO == ALGO_AMX

/* ---- By AMX tiles ------------------------------------------------------------------------- */

/* 16 rows from row i on, k elements from k_begin on, to a panel. */
static void pack_panel(const struct grouped_gemm_cpu_args *args, const struct tile *tile, int64_t i,
                       int64_t k_begin, int64_t k, uint32_t *to)
{
    ALIGNED char gathered[GATHER ? 16 * KC * DT_SIZE(DTYPE) : 1];
    int64_t stride, rows = MIN(16, tile->rows - i);
    const void *from = find_rows(args, tile, i, rows, k_begin, k, gathered, &stride);
    pack_panel_nk((u32_any *)to, 16, DTYPE, from, stride, rows, k, (k + 31) / 32 * 16);
}

#include "moe/grouped_gemm_amx.h"

#else /* ALGO_DOTS */

/* ---- Few rows ------------------------------------------------------------------------------ */

_Static_assert(NC % DOT_ROWS_RIGHT == 0 && NC % VW == 0, "NC: whole steps, whole vectors");

/* 1. Columns j to j + DOT_ROWS_RIGHT of one half; what is missing repeats the last. */
static void stream_columns(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                           int64_t column, int64_t columns, int64_t j, int half, float out[MC][NC])
{
    struct dot_rows rows = { .k = args->k };
    rows.next = DOT_ROWS_RIGHT * args->b_row_stride * DT_SIZE(DTYPE);
    UNROLL
    for (int c = 0; c < DOT_ROWS_RIGHT; c++)
        rows.right[c] = b_row(args, tile, column + MIN(j + c, columns - 1), half);
    for (int64_t i = 0; i < tile->rows; i += DOT_ROWS_LEFT) {
        int64_t lefts = MIN(DOT_ROWS_LEFT, tile->rows - i);
        UNROLL
        for (int r = 0; r < DOT_ROWS_LEFT; r++)
            rows.left[r] = a_row(args, tile, i + MIN(r, lefts - 1));
        ALIGNED float sums[VW];
        store_u32(sums, (vec_u32)(lefts == 1 ? dot_rows(DTYPE, &rows, 1)
                                             : dot_rows(DTYPE, &rows, DOT_ROWS_LEFT)));
        for (int64_t r = 0; r < lefts; r++)
            __builtin_memcpy(&out[i + r][j], sums + r * DOT_ROWS_RIGHT, DOT_ROWS_RIGHT * 4);
    }
}

static void multiply_block(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                           int64_t column, int64_t columns)
{
    ALIGNED float out[HALVES][MC][NC];
    for (int half = 0; half < HALVES; half++)
        for (int64_t j = 0; j < columns; j += DOT_ROWS_RIGHT)
            stream_columns(args, tile, column, columns, j, half, out[half]);
    for (int64_t i = 0; i < tile->rows; i++) /* 2 */
        finish(args, d_at(args, tile, i, column), out[0][i], out[HALVES - 1][i], columns);
}

#endif

void grouped_gemm_rows(const struct grouped_gemm_cpu_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    struct tile tile = find_tile(args, x, z);
    int64_t column = y * (int64_t)NC, columns = MIN(NC, args->n - column);
    if (tile.rows && tile.expert < 0)
        clear_tile(args, &tile, column, columns);
    else if (tile.rows)
        multiply_block(args, &tile, column, columns);
}
