/* The register tile of a matrix product: c[MR][NR] (+)= a[MR][k] times b[k][NR], both packed in
 * units (dot_units.h). Two kinds, with one interface and one layout of b:
 *
 *   AMX 0   vectors. MR x NR / VW accumulators; per unit of k, NR / VW loads of b and MR broadcasts
 *           of a. A tile of a is k-major, a[p][MR]: the broadcasts of one p share a cache line.
 *           (Rows with a stride ran at 157 GFLOPS where this runs at 190.)
 *           MR <= VW, and MR * (NR / VW) + NR / VW + 1 should not exceed the vector registers.
 *   AMX 1   tiles, bf16 pairs only. MR / 16 x NR / 16 accumulators, at most 2 x 2. A tile of a is
 *           MR rows of A_STRIDE units: a tile row is 16 units of one row of a.
 *
 *   b panel:  b[p][PANEL], of which a tile takes NR columns. As bf16 pairs a row is what TDPBF16PS
 *             wants as well. Packed k is padded to a multiple of PACKED_K, whatever reads it.
 *
 * The includer defines MR, NR, PANEL (a multiple of NR), KU (the most units of k that a tile of a
 * holds), AMX, and B_IS_STREAMED: a panel comes from memory, not from L1. */
#ifndef QN_CPU_GEMM_TILE_H
#define QN_CPU_GEMM_TILE_H
#include "common/cpu/pack_units.h"
#if AMX
#include "common/cpu/amx.h"
#endif

#define PACKED_K 32 /* a tile row of pairs */

static inline int64_t units_of(int64_t k)
{
    return (k + PACKED_K - 1) / PACKED_K * PACKED_K / UNIT_K;
}

/* What follows a row of a streamed panel by 3 KB: the hardware's own prefetcher does not keep up
 * with a single stream (16 rows of a, f32: 1.4 times faster). The next panel follows, usually. */
INLINE void prefetch_row(const u32_any *row)
{
    enum { LINE = 16, AHEAD = 768 };
    UNROLL
    for (int c = 0; B_IS_STREAMED && c < NR; c += LINE)
        __builtin_prefetch(row + AHEAD + c);
}

#if AMX

_Static_assert(IS_PAIRED, "AMX multiplies bf16 by bf16");
_Static_assert((MR == 16 || MR == 32) && (NR == 16 || NR == 32), "AMX: MR and NR are 16 or 32");

#define A_STRIDE (KU + 16) /* + 64 bytes: rows must not share one set of the L1 cache */
#define A_TILE_UNITS (MR * A_STRIDE)
#define A_STEP 1 /* from unit p of a tile to unit p + 1 */

APART void pack_a_tile(uint32_t *dst, int dtype, const void *src, int64_t stride, int64_t rows,
                       int64_t k)
{
    for (int64_t r = 0; r < MR; r++)
        pack_row(dst + r * A_STRIDE, dtype, element(dtype, src, r * stride), r < rows ? k : 0,
                 units_of(k));
}

APART void multiply_tile(const uint32_t *a, const u32_any *b, int64_t units, float *c, int is_first)
{
    enum { A_BYTES = A_STRIDE * 4, NR_BYTES = NR * 4, PANEL_BYTES = PANEL * 4 };
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    if (!is_first) {
        TILE_LOAD(0, c, NR_BYTES);
        if (NR > 16)
            TILE_LOAD(1, c + 16, NR_BYTES);
        if (MR > 16)
            TILE_LOAD(2, c + 16 * NR, NR_BYTES);
        if (MR > 16 && NR > 16)
            TILE_LOAD(3, c + 16 * NR + 16, NR_BYTES);
    }
    for (int64_t p = 0; p < units; p += TILE_UNITS) {
        for (int64_t r = 0; r < TILE_UNITS; r++)
            prefetch_row(b + (p + r) * PANEL);
        TILE_LOAD(4, a + p, A_BYTES);
        TILE_LOAD(6, b + p * PANEL, PANEL_BYTES);
        TILE_MULTIPLY(0, 4, 6);
        if (NR > 16) {
            TILE_LOAD(7, b + p * PANEL + 16, PANEL_BYTES);
            TILE_MULTIPLY(1, 4, 7);
        }
        if (MR > 16) {
            TILE_LOAD(5, a + 16 * A_STRIDE + p, A_BYTES);
            TILE_MULTIPLY(2, 5, 6);
        }
        if (MR > 16 && NR > 16)
            TILE_MULTIPLY(3, 5, 7);
    }
    TILE_STORE(0, c, NR_BYTES);
    if (NR > 16)
        TILE_STORE(1, c + 16, NR_BYTES);
    if (MR > 16)
        TILE_STORE(2, c + 16 * NR, NR_BYTES);
    if (MR > 16 && NR > 16)
        TILE_STORE(3, c + 16 * NR + 16, NR_BYTES);
}

#else

_Static_assert(MR <= VW && NR % VW == 0, "MR is at most a vector, NR a multiple of it");

#define A_TILE_UNITS (MR * KU)
#define A_STEP MR

/* Writes VW - MR units past the tile's end: the next tile, or slack that the caller provides. */
APART void pack_a_tile(uint32_t *dst, int dtype, const void *src, int64_t stride, int64_t rows,
                       int64_t k)
{
    pack_panel_nk(dst, MR, dtype, src, stride, rows, k, units_of(k));
}

APART void multiply_tile(const uint32_t *a, const u32_any *b, int64_t units, float *c, int is_first)
{
    enum { VECTORS = NR / VW };
    vec_f32 acc[MR][VECTORS];
    UNROLL
    for (int r = 0; r < MR; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            acc[r][v] = is_first ? (vec_f32){ 0 } : (vec_f32)load_u32(c + r * NR + v * VW);
    }
    for (int64_t p = 0; p < units; p++) {
        vec_u32 columns[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            columns[v] = load_u32(b + p * PANEL + v * VW);
        prefetch_row(b + p * PANEL);
        UNROLL
        for (int r = 0; r < MR; r++) {
            vec_u32 row = splat_u32(a[p * MR + r]);
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                acc[r][v] = multiply_add(acc[r][v], row, columns[v]);
        }
    }
    UNROLL
    for (int r = 0; r < MR; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            store_u32(c + r * NR + v * VW, (vec_u32)acc[r][v]);
    }
}

#endif
#endif
