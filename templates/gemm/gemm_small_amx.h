/* gemm_small.h for bf16 by AMX tiles: NR rows of b, [n,k], are the left factor and are multiplied
 * where they lie; it is a, at most 16 rows of it, that is packed into a panel.
 *
 *     sums[NR][16]  +=  b[NR][k]  a_panel[k][16]          out = sums transposed, after the last KC
 *
 * A tile row is 64 bytes of a row of b. Sixteen rows at a time are sixteen streams, which the
 * hardware's prefetcher follows; prefetching on top of it gains nothing here.
 *
 * Against packing b by blocks (ALGO_TILED), 16 x 4096 x 4096: 0.87 of the bandwidth for 0.71. */
#ifndef QN_GEMM_SMALL_AMX_H
#define QN_GEMM_SMALL_AMX_H

_Static_assert(IS_PAIRED &&B_IS_NK &&MR == 16, "AMX: pairs of bf16, 16 rows of a");
_Static_assert((NR == 16 || NR == 32) && NC % NR == 0 && KC % 32 == 0, "AMX: whole tiles");

/* NR rows of b over k: sums (+)= b a. */
struct strip {
    const void *b;
    int64_t columns, k; /* what there is of NR rows and of the tiles along k */
    int is_first;
};

/* The tile rows at the edge of b, with zeros past it. */
APART void copy_edge(uint32_t edge[NR][TILE_UNITS], const void *b, int64_t stride, int64_t columns,
                     int64_t k)
{
    ROLLED
    for (int64_t c = 0; c < NR; c++)
        store_u32(edge[c],
                  load_some_units(B_DTYPE, element(B_DTYPE, b, c * stride), c < columns ? k : 0));
}

APART void multiply_strip(const struct strip *strip, int64_t b_stride, const uint32_t *a_panel,
                          float sums[NR][16])
{
    enum { ROW_BYTES = 64, TILE_K = TILE_UNITS * UNIT_K };
    ALIGNED uint32_t edge[NR][TILE_UNITS];
    TILE_ZERO(0);
    TILE_ZERO(1);
    if (!strip->is_first) {
        TILE_LOAD(0, sums, ROW_BYTES);
        if (NR > 16)
            TILE_LOAD(1, sums[NR - 16], ROW_BYTES);
    }
    for (int64_t p = 0; p < strip->k; p += TILE_K) {
        const char *rows = element(B_DTYPE, strip->b, p);
        int64_t stride = b_stride * DT_SIZE(B_DTYPE);
        if (strip->columns < NR || strip->k - p < TILE_K) {
            copy_edge(edge, rows, b_stride, strip->columns, strip->k - p);
            rows = (const char *)edge;
            stride = ROW_BYTES;
        }
        TILE_LOAD(2, a_panel + p / UNIT_K * 16, ROW_BYTES);
        TILE_LOAD(3, rows, stride);
        TILE_MULTIPLY(0, 3, 2);
        if (NR > 16) {
            TILE_LOAD(4, rows + 16 * stride, stride);
            TILE_MULTIPLY(1, 4, 2);
        }
    }
    TILE_STORE(0, sums, ROW_BYTES);
    if (NR > 16)
        TILE_STORE(1, sums[NR - 16], ROW_BYTES);
}

static void small_block(const struct gemm_args *args, const struct block *block, float out[MR][NC])
{
    ALIGNED uint32_t a_panel[KC / UNIT_K * 16];
    ALIGNED float sums[NC][16];
    int64_t k_begin = block->k_begin;
    configure_tiles();
    do {
        int64_t k = MIN(KC, block->k_end - k_begin);
        pack_panel_nk(a_panel, 16, A_DTYPE, a_at(args, block, 0, k_begin), args->a_row_stride,
                      block->rows, k, ROUND_UP(k, 32) / UNIT_K);
        for (int64_t j = 0; j < block->columns; j += NR) {
            int64_t first = (block->column + j) * args->b_row_stride + k_begin;
            struct strip strip = { element(B_DTYPE, block->b, first), block->columns - j, k,
                                   k_begin == block->k_begin };
            multiply_strip(&strip, args->b_row_stride, a_panel, sums + j);
        }
        k_begin += KC;
    } while (k_begin < block->k_end);
    TILE_RELEASE();
    ROLLED
    for (int64_t j = 0; j < block->columns; j += 16) {
        vec_u32 square[16];
        UNROLL
        for (int i = 0; i < 16; i++)
            square[i] = load_u32(sums[j + i]);
        transpose(square);
        UNROLL
        for (int i = 0; i < 16; i++)
            store_u32(out[i] + j, square[i]);
    }
}

#endif
