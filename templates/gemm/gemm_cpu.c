/* essay later */

#define ALGO_TILED 0
#define ALGO_SMALL 1

#ifndef ALGO
#define ALGO ALGO_TILED
#endif
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
#ifndef B_IS_NK
#define B_IS_NK 1
#endif
#ifndef ACCUMULATE
#define ACCUMULATE 0
#endif
#ifndef AMX
#define AMX 0
#endif
#ifndef BF16_PAIRS
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
#ifdef __AVX512BF16__
#define IS_PAIRED (BF16_PAIRS && A_DTYPE == DT_BF16 && B_DTYPE == DT_BF16)
#else
#define IS_PAIRED 0
#endif
#include "common/cpu/pack_units.h"
#include "gemm/gemm_args.h"
#if AMX
#include "common/cpu/amx.h"
#endif

#define UNIT_ALIGN 16 /* panels and splits of k are whole AMX tile rows */
#define NV (NR / VW)
#define KU (KC / UNIT_K)        /* units in a block of k */
#if PACK_B
#define GROUP NR
#define PANEL_UNITS KU
#else
#define GROUP (B_IS_NK ? NR : NC)
#define PANEL_UNITS MIN(KU, 64)
#endif
#define ROUND_UP(x, to) (((x) + (to) - 1) / (to) * (to))
#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define ALIGNED __attribute__((aligned(64)))

#define GRID_BLOCK const struct gemm_args *g, uint32_t x, uint32_t y, uint32_t z

/* What one block of the grid works on: its place in d, its share of k, its batch entry. */
struct block {
    int64_t row, column, rows, columns;
    int64_t k_begin, k_end;
    const void *a, *b;
    char *d;
    float *partial;
    const uint32_t *packed_b;
};

static int64_t units_of(int64_t k)
{
    return ROUND_UP((k + UNIT_K - 1) / UNIT_K, UNIT_ALIGN);
}

static struct block make_block(GRID_BLOCK, int64_t rows, int64_t columns)
{
    int64_t entry = z / SPLIT_K, split = z % SPLIT_K;
    int64_t share = ROUND_UP((g->k + SPLIT_K - 1) / SPLIT_K, UNIT_ALIGN * UNIT_K);
    struct block block = {
        .row = x * rows,
        .column = y * columns,
        .k_begin = MIN(split * share, g->k),
        .k_end = MIN((split + 1) * share, g->k),
        .a = element(A_DTYPE, g->a, entry * g->a_batch_stride),
        .b = element(B_DTYPE, g->b, entry * g->b_batch_stride),
        .d = (char *)g->d + entry * g->d_batch_stride * DT_SIZE(D_DTYPE),
    };
    block.rows = MIN(rows, g->m - block.row);
    block.columns = MIN(columns, g->n - block.column);
    if (SPLIT_K > 1) block.partial = g->partial + (split * g->batch + entry) * g->m * g->n;
    if (PACK_B) {
        int64_t matrix = ROUND_UP(g->n, NR) * units_of(g->k);
        block.packed_b = g->packed_b + (g->b_batch_stride ? entry : 0) * matrix;
    }
    return block;
}

/* `count` <= VW outputs: add bias and old d, round, store. */
INLINE void finish(const struct gemm_args *g, void *d, int64_t j, vec_f32 value, int64_t count)
{
    int is_whole = count >= VW;
    if (BIAS_DTYPE != DT_NONE) {
        const void *bias = element(BIAS_DTYPE, g->bias, j);
        value += is_whole ? load_as_f32(BIAS_DTYPE, bias)
                          : load_part_as_f32(BIAS_DTYPE, bias, count);
    }
    if (ACCUMULATE)
        value += is_whole ? load_as_f32(D_DTYPE, d) : load_part_as_f32(D_DTYPE, d, count);
    if (is_whole)
        store_from_f32(D_DTYPE, d, value);
    else
        store_part_from_f32(D_DTYPE, d, value, count);
}

/* Row i of d from column j on: finished, or as a partial sum over a share of k. */
INLINE void store_row(const struct gemm_args *g, const struct block *block, int64_t i, int64_t j,
                      const float *values, int64_t count)
{
    if (SPLIT_K > 1) {
        __builtin_memcpy(block->partial + i * g->n + j, values, count * sizeof *values);
        return;
    }
    char *d = block->d + (i * g->d_row_stride + j) * DT_SIZE(D_DTYPE);
    for (int64_t c = 0; c < count; c += VW)
        finish(g, d + c * DT_SIZE(D_DTYPE), j + c, (vec_f32)load_u32(values + c), count - c);
}

#if ALGO == ALGO_TILED

/* c[MR][NR] (+)= a rows times a b panel over `units` of k. */
#if AMX
#define A_STRIDE (KU + 16) /* + 64 bytes: rows of a block must not share one L1 set */
static void multiply_tile(const uint32_t *a, const uint32_t *b, int64_t units, float *c,
                          int is_first)
{
    enum { A_BYTES = A_STRIDE * 4, NR_BYTES = NR * 4 };
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    if (!is_first) {
        TILE_LOAD(0, c, NR_BYTES);
        if (NR > 16) TILE_LOAD(1, c + 16, NR_BYTES);
        if (MR > 16) TILE_LOAD(2, c + 16 * NR, NR_BYTES);
        if (MR > 16 && NR > 16) TILE_LOAD(3, c + 16 * NR + 16, NR_BYTES);
    }
    for (int64_t p = 0; p < units; p += TILE_UNITS) {
        TILE_LOAD(4, a + p, A_BYTES);
        TILE_LOAD(6, b + p * NR, NR_BYTES);
        TILE_MULTIPLY(0, 4, 6);
        if (NR > 16) {
            TILE_LOAD(7, b + p * NR + 16, NR_BYTES);
            TILE_MULTIPLY(1, 4, 7);
        }
        if (MR > 16) {
            TILE_LOAD(5, a + 16 * A_STRIDE + p, A_BYTES);
            TILE_MULTIPLY(2, 5, 6);
        }
        if (MR > 16 && NR > 16) TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, c, NR_BYTES);
    if (NR > 16) TILE_STORE(1, c + 16, NR_BYTES);
    if (MR > 16) TILE_STORE(2, c + 16 * NR, NR_BYTES);
    if (MR > 16 && NR > 16) TILE_STORE(3, c + 16 * NR + 16, NR_BYTES);
}
#else
static void multiply_tile(const uint32_t *a, const uint32_t *b, int64_t units, float *c,
                          int is_first)
{
    vec_f32 acc[MR][NV];
    UNROLL for (int r = 0; r < MR; r++)
        UNROLL for (int v = 0; v < NV; v++)
            acc[r][v] = is_first ? (vec_f32){0} : (vec_f32)load_u32(c + r * NR + v * VW);
    for (int64_t p = 0; p < units; p++) {
        vec_u32 columns[NV];
        UNROLL for (int v = 0; v < NV; v++) columns[v] = load_u32(b + p * NR + v * VW);
        UNROLL for (int r = 0; r < MR; r++) {
            vec_u32 row = splat_u32(a[p * MR + r]);
            UNROLL for (int v = 0; v < NV; v++)
                acc[r][v] = multiply_add(acc[r][v], row, columns[v]);
        }
    }
    UNROLL for (int r = 0; r < MR; r++)
        UNROLL for (int v = 0; v < NV; v++) store_u32(c + r * NR + v * VW, (vec_u32)acc[r][v]);
}
#endif

/* `columns` <= width columns of b from (k_begin, column) on, as panels of panel_units. */
static void pack_panels(uint32_t *dst, const struct gemm_args *g, const void *b, int64_t column,
                        int64_t columns, int64_t k_begin, int64_t k)
{
    int64_t stride = g->b_row_stride;
    int64_t at = B_IS_NK ? column * stride + k_begin : k_begin * stride + column;
    const void *src = element(B_DTYPE, b, at);
    if (B_IS_NK)
        pack_panel_nk(dst, NR, B_DTYPE, src, stride, columns, k, units_of(k));
    else
        pack_panels_kn(dst, NR, PANEL_UNITS, B_DTYPE, src, stride, columns, k, units_of(k));
}

#if PACK_B
void gemm_pack_b(GRID_BLOCK)
{
    int64_t units = units_of(g->k), column = y * (int64_t)NR, k_begin = x * (int64_t)KC;
    uint32_t *panel = g->packed_b + z * ROUND_UP(g->n, NR) * units + column * units;
    pack_panels(panel + k_begin / UNIT_K * NR, g, element(B_DTYPE, g->b, z * g->b_batch_stride),
                column, MIN(NR, g->n - column), k_begin, MIN(KC, g->k - k_begin));
}
#endif

#if AMX
#define A_TILE (MR * A_STRIDE)
#define A_STEP 1
static void pack_a_tile(uint32_t *dst, const struct gemm_args *g, const void *a, int64_t rows,
                        int64_t k)
{
    for (int64_t r = 0; r < MR; r++)
        pack_row(dst + r * A_STRIDE, A_DTYPE, element(A_DTYPE, a, r * g->a_row_stride),
                 r < rows ? k : 0, units_of(k));
}
#else
#define A_TILE (MR * KU)
#define A_STEP MR
static void pack_a_tile(uint32_t *dst, const struct gemm_args *g, const void *a, int64_t rows,
                        int64_t k)
{
    pack_panel_nk(dst, MR, A_DTYPE, a, g->a_row_stride, rows, k, units_of(k));
}
#endif

/* One chunk of k for some of the block's panels. */
struct chunk {
    int64_t column, columns, units;
    int is_first, is_last;
};

static void multiply_chunk(const struct gemm_args *g, const struct block *block,
                           const struct chunk *chunk, const uint32_t *a, const uint32_t *b,
                           float *c_tiles)
{
    for (int64_t j = 0; j < chunk->columns; j += NR, b += NR * PANEL_UNITS)
        for (int64_t i = 0; i < block->rows; i += MR) {
            float *c = c_tiles + (chunk->column + j) * MC + i * NR;
            multiply_tile(a + i / MR * A_TILE, b, chunk->units, c, chunk->is_first);
            if (!chunk->is_last) continue;
            for (int64_t r = 0; r < MIN(MR, block->rows - i); r++)
                store_row(g, block, block->row + i + r, block->column + chunk->column + j,
                          c + r * NR, MIN(NR, chunk->columns - j));
        }
}

void gemm_main(GRID_BLOCK)
{
    struct block block = make_block(g, x, y, z, MC, NC);
    ALIGNED uint32_t a_tiles[MC / MR * A_TILE + VW];
    ALIGNED float c_tiles[MC * NC];
#if !PACK_B
    ALIGNED uint32_t b_panels[GROUP * PANEL_UNITS];
#endif
#if AMX
    configure_tiles();
#endif
    int64_t k_begin = block.k_begin;
    do {
        int64_t k = MIN(KC, block.k_end - k_begin);
        for (int64_t i = 0; i < block.rows; i += MR) {
            int64_t at = (block.row + i) * g->a_row_stride + k_begin;
            pack_a_tile(a_tiles + i / MR * A_TILE, g, element(A_DTYPE, block.a, at),
                        MIN(MR, block.rows - i), k);
        }
        for (int64_t j = 0; j < block.columns; j += GROUP) {
            int64_t p = 0;
            do {
                int64_t chunk_k = MIN(PANEL_UNITS * UNIT_K, k - p), at = k_begin + p;
                struct chunk chunk = {
                    .column = j,
                    .columns = MIN(GROUP, block.columns - j),
                    .units = (chunk_k + UNIT_K - 1) / UNIT_K,
                    .is_first = at == block.k_begin,
                    .is_last = at + chunk_k >= block.k_end,
                };
#if PACK_B
                const uint32_t *b_panels = block.packed_b +
                                           (block.column + j) * units_of(g->k) + at / UNIT_K * NR;
#else
                pack_panels(b_panels, g, block.b, block.column + j, chunk.columns, at, chunk_k);
#endif
                multiply_chunk(g, &block, &chunk, a_tiles + p / UNIT_K * A_STEP, b_panels,
                               c_tiles);
                p += PANEL_UNITS * UNIT_K;
            } while (p < k);
        }
        k_begin += KC;
    } while (k_begin < block.k_end);
#if AMX
    TILE_RELEASE();
#endif
}

#else /* ALGO_SMALL */

#if B_IS_NK
#define COLUMNS NR
static void small_dots(const struct gemm_args *g, const struct block *block, int64_t j,
                       float out[MR][NC])
{
    const char *a[MR], *b[COLUMNS];
    vec_f32 acc[MR][COLUMNS];
    UNROLL for (int r = 0; r < MR; r++)
        a[r] = element(A_DTYPE, block->a, (block->row + MIN(r, block->rows - 1)) * g->a_row_stride);
    UNROLL for (int c = 0; c < COLUMNS; c++) {
        int64_t column = block->column + MIN(j + c, block->columns - 1);
        b[c] = element(B_DTYPE, block->b, column * g->b_row_stride);
    }
    UNROLL for (int r = 0; r < MR; r++)
        UNROLL for (int c = 0; c < COLUMNS; c++) acc[r][c] = (vec_f32){0};
    int64_t p = block->k_begin;
    for (; p + VEC_K <= block->k_end; p += VEC_K) {
        vec_u32 columns[COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c++)
            columns[c] = load_units(B_DTYPE, element(B_DTYPE, b[c], p));
        UNROLL for (int r = 0; r < MR; r++) {
            vec_u32 row = load_units(A_DTYPE, element(A_DTYPE, a[r], p));
            UNROLL for (int c = 0; c < COLUMNS; c++)
                acc[r][c] = multiply_add(acc[r][c], row, columns[c]);
        }
    }
    if (p < block->k_end) {
        int64_t left = block->k_end - p;
        for (int r = 0; r < MR; r++) {
            vec_u32 row = load_part_units(A_DTYPE, element(A_DTYPE, a[r], p), left);
            for (int c = 0; c < COLUMNS; c++)
                acc[r][c] = multiply_add(acc[r][c], row,
                    load_part_units(B_DTYPE, element(B_DTYPE, b[c], p), left));
        }
    }
    for (int r = 0; r < MR; r++)
        for (int c = 0; c < COLUMNS; c++) out[r][j + c] = sum_lanes(acc[r][c]);
}
#else
#define ROWS_K 8
static void small_rows(const struct gemm_args *g, const struct block *block, int64_t p,
                       int64_t k, float out[MR][NC])
{
    float a[MR][ROWS_K];
    const char *b[ROWS_K];
    for (int u = 0; u < ROWS_K; u++) {
        int64_t at = (p + MIN(u, k - 1)) * g->b_row_stride + block->column;
        b[u] = element(B_DTYPE, block->b, at);
    }
    for (int r = 0; r < MR; r++) {
        int64_t at = (block->row + MIN(r, block->rows - 1)) * g->a_row_stride + p;
        
        for (int u = 0; u < ROWS_K; u++)
            a[r][u] = u < k ? load_one_as_f32(A_DTYPE, element(A_DTYPE, block->a, at + u)) : 0;
        
    }
    int64_t j = 0;
    for (; j < block->columns; j += VW) {
        vec_f32 rows[ROWS_K];
        int64_t left = block->columns - j;
        UNROLL for (int u = 0; u < ROWS_K; u++)
            rows[u] = left >= VW ? load_as_f32(B_DTYPE, element(B_DTYPE, b[u], j))
                                 : load_part_as_f32(B_DTYPE, element(B_DTYPE, b[u], j), left);
        UNROLL for (int r = 0; r < MR; r++) {
            vec_f32 acc = (vec_f32)load_u32(out[r] + j);
            UNROLL for (int u = 0; u < ROWS_K; u++) acc += rows[u] * a[r][u];
            store_u32(out[r] + j, (vec_u32)acc);
        }
    }
}
#endif

void gemm_small(GRID_BLOCK)
{
    struct block block = make_block(g, x, y, z, MR, NC);
    ALIGNED float out[MR][NC];
#if B_IS_NK
    for (int64_t j = 0; j < block.columns; j += COLUMNS) small_dots(g, &block, j, out);
#else
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NC; j++) out[r][j] = 0;
    for (int64_t p = block.k_begin; p < block.k_end; p += ROWS_K)
        small_rows(g, &block, p, MIN(ROWS_K, block.k_end - p), out);
#endif
    for (int64_t r = 0; r < block.rows; r++)
        store_row(g, &block, block.row + r, block.column, out[r], block.columns);
}
#endif

#if SPLIT_K > 1
void gemm_reduce(GRID_BLOCK)
{
    int64_t i = x, matrix = g->m * g->n, begin = y * (int64_t)NC;
    const float *partial = g->partial + z * matrix + i * g->n;
    char *d = (char *)g->d + (z * g->d_batch_stride + i * g->d_row_stride) * DT_SIZE(D_DTYPE);
    for (int64_t j = begin; j < MIN(begin + NC, g->n); j += VW) {
        int64_t count = MIN(VW, g->n - j);
        vec_f32 sum = {0};
        for (int64_t split = 0; split < SPLIT_K; split++) {
            const float *p = partial + split * g->batch * matrix + j;
            sum += count < VW ? load_part_as_f32(DT_F32, p, count) : load_as_f32(DT_F32, p);
        }
        finish(g, d + j * DT_SIZE(D_DTYPE), j, sum, count);
    }
}
#endif
