/* The inner part of grouped_gemm_cpu.c for bf16 by AMX tiles: lines of b are the left factor and
 * are multiplied where they lie, two strips of 16 at a time; it is a's rows, at most MC, that are
 * packed into panels of 16. Reading b so takes 0.6 to 0.9 of the time that packing it does.
 *
 *     sums[panel][strip][16 of b][16 of a]  +=  strip[16][k]  panel[k][16]      for each panel
 *
 * A tile row is 64 bytes of a line of b. 32 lines at a time are 32 streams, which the hardware's
 * prefetcher follows: asking for what comes next, in whatever order, gained nothing. At the edges
 * of b tiles are copied, with zeros past them. Included by grouped_gemm_cpu.c. */
#ifndef GROUPED_GEMM_AMX_H
#define GROUPED_GEMM_AMX_H
#include "common/cpu/amx.h"
#include "common/cpu/pack_units.h"

_Static_assert(IS_PAIRED &&MC % 16 == 0 && NC % 32 == 0 && KC % 32 == 0, "AMX: whole tiles");

enum { PANELS = MC / 16, PAIRS = NC / 32 };
typedef float strip_sums[2][16][16];

/* Two strips over k elements: `columns` lines exist of 32. */
struct strips {
    const char *b;
    int64_t stride; /* bytes */
    int64_t columns, k;
    int is_first;
};

/* The tile rows of both strips at the edge of b: k elements from p on exist of 32. */
APART void copy_edge(uint32_t edge[32][16], const struct strips *strips, int64_t p)
{
    ROLLED
    for (int64_t c = 0; c < 32; c++)
        store_u32(edge[c], load_some_units(DTYPE, strips->b + c * strips->stride + p * 2,
                                           c < strips->columns ? strips->k - p : 0));
}

INLINE void multiply_strips(const struct strips *strips, const u32_any *const panel[2],
                            const int panels, strip_sums *sums)
{
    ALIGNED uint32_t edge[32][16];
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    if (!strips->is_first) {
        TILE_LOAD(0, sums[0][0], 64);
        TILE_LOAD(1, sums[0][1], 64);
        if (panels > 1) {
            TILE_LOAD(2, sums[1][0], 64);
            TILE_LOAD(3, sums[1][1], 64);
        }
    }
    for (int64_t p = 0; p < strips->k; p += 32) {
        const char *b = strips->b + p * 2;
        int64_t stride = strips->stride;
        if (strips->columns < 32 || strips->k - p < 32) {
            copy_edge(edge, strips, p);
            b = (const char *)edge;
            stride = 64;
        }
        TILE_LOAD(4, b, stride);
        TILE_LOAD(6, panel[0] + p / 2 * 16, 64);
        TILE_MULTIPLY(0, 4, 6);
        TILE_LOAD(5, b + 16 * stride, stride);
        TILE_MULTIPLY(1, 5, 6);
        if (panels > 1) {
            TILE_LOAD(7, panel[1] + p / 2 * 16, 64);
            TILE_MULTIPLY(2, 4, 7);
            TILE_MULTIPLY(3, 5, 7);
        }
    }
    TILE_STORE(0, sums[0][0], 64);
    TILE_STORE(1, sums[0][1], 64);
    if (panels > 1) {
        TILE_STORE(2, sums[1][0], 64);
        TILE_STORE(3, sums[1][1], 64);
    }
}

APART void multiply_panels(const struct strips *strips, const u32_any *panel, int64_t panels,
                           strip_sums *sums)
{
    enum { PANEL_UNITS = KC / 2 * 16 };
    for (; panels > 0; panels -= 2, panel += 2 * PANEL_UNITS, sums += 2) {
        const u32_any *const pair[2] = { panel, panel + PANEL_UNITS };
        if (panels > 1)
            multiply_strips(strips, pair, 2, sums);
        else
            multiply_strips(strips, pair, 1, sums);
    }
}

/* Both halves of 32 columns by 16 rows, transposed, to d. */
APART void finish_panel(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                        int64_t row, int64_t column, int64_t columns,
                        const strip_sums *const sums[HALVES])
{
    ALIGNED float out[HALVES][16][32];
    for (int half = 0; half < HALVES; half++)
        for (int strip = 0; strip < 2; strip++) {
            vec_u32 square[16];
            UNROLL
            for (int i = 0; i < 16; i++)
                square[i] = load_u32((*sums[half])[strip][i]);
            transpose(square);
            UNROLL
            for (int i = 0; i < 16; i++)
                store_u32(out[half][i] + 16 * strip, square[i]);
        }
    for (int64_t i = 0; i < MIN(16, tile->rows - row); i++)
        finish(args, d_at(args, tile, row + i, column), out[0][i], out[HALVES - 1][i], columns);
}

static void multiply_block(const struct grouped_gemm_cpu_args *args, const struct tile *tile,
                           int64_t column, int64_t columns)
{
    ALIGNED uint32_t a_panels[PANELS][KC / 2 * 16];
    ALIGNED strip_sums sums[HALVES][PAIRS][PANELS];
    int64_t panels = (tile->rows + 15) / 16, k_begin = 0;
    configure_tiles();
    do {
        int64_t k = MIN(KC, args->k - k_begin);
        for (int64_t i = 0; i < panels; i++)
            pack_panel(args, tile, i * 16, k_begin, k, a_panels[i]);
        for (int64_t j = 0; j < columns; j += 32)
            for (int half = 0; half < HALVES; half++) {
                struct strips strips = {
                    .b = element(DTYPE, b_row(args, tile, column + j, half), k_begin),
                    .stride = args->b_row_stride * 2,
                    .columns = MIN(32, columns - j),
                    .k = k,
                    .is_first = k_begin == 0,
                };
                multiply_panels(&strips, a_panels[0], panels, sums[half][j / 32]);
            }
        k_begin += KC;
    } while (k_begin < args->k);
    TILE_RELEASE();
    for (int64_t j = 0; j < columns; j += 32)
        for (int64_t i = 0; i < panels; i++) {
            const strip_sums *const of[HALVES] = {
                (const strip_sums *)&sums[0][j / 32][i],
#if ACTIVATION
                (const strip_sums *)&sums[1][j / 32][i],
#endif
            };
            finish_panel(args, tile, i * 16, column + j, MIN(32, columns - j), of);
        }
}
#endif
