/* Pack matrices into rows or panels of 32-bit units (dot_units.h), zero-padded along k.
 *
 *   rows    dst[i][p]                 unit p of row i            (the operand that is broadcast)
 *   panel   dst[p][c]                 unit p of column c, c < width  (the operand of whole vectors)
 *
 * Sources are row-major: "nk" has k innermost and is transposed into a panel, "kn" has n
 * innermost. Only the stated elements are read. `width` is a constant, a multiple of VW. */
#ifndef QN_CPU_PACK_UNITS_H
#define QN_CPU_PACK_UNITS_H
#include "common/cpu/dot_units.h"
#include "common/cpu/transpose.h"

/* One row of k elements to `units` units. */
INLINE void pack_row(uint32_t *dst, int dtype, const void *src, int64_t k, int64_t units)
{
    for (int64_t p = 0; p < units; p += VW)
        store_u32(dst + p, load_some_units(dtype, element(dtype, src, p * UNIT_K), k - p * UNIT_K));
}

/* `columns` <= width rows of b[n][k] to a panel of `units` rows. A width below VW is allowed too:
 * rows of the panel are written in order, each store running over into the next row, the last one
 * VW - width units past the panel's end. One copy serves every width, and is specialised by the
 * compiler if all callers name one dtype; a mixed product tests the dtype as it goes. */
APART void pack_panel_nk(u32_any *dst, int width, int dtype, const void *src, int64_t stride,
                         int64_t columns, int64_t k, int64_t units)
{
    for (int c = 0; c < width; c += VW) {
        const void *group = element(dtype, src, c * stride);
        for (int64_t p = 0; p < units; p += VW) {
            vec_u32 square[VW];
            int64_t left = k - p * UNIT_K;
            const void *corner = element(dtype, group, p * UNIT_K);
            if (columns - c >= VW && left >= VEC_K) {
                UNROLL
                for (int i = 0; i < VW; i++)
                    square[i] = load_units(dtype, element(dtype, corner, i * stride));
            } else {
                vec_u32 edge[VW]; /* apart from square, which stays in registers */
                ROLLED
                for (int i = 0; i < VW; i++)
                    edge[i] = load_some_units(dtype, element(dtype, corner, i * stride),
                                              c + i < columns ? left : 0);
                UNROLL
                for (int i = 0; i < VW; i++)
                    square[i] = edge[i];
            }
            transpose(square);
            UNROLL
            for (int i = 0; i < VW; i++)
                store_u32(dst + (p + i) * width + c, square[i]);
        }
    }
}

/* VW columns of one row of b[k][n], widened to 32 bits; those past `columns` are zero. */
INLINE vec_u32 load_columns(int dtype, const void *p, int64_t columns)
{
    if (columns <= 0)
        return (vec_u32){ 0 };
    if (!IS_PAIRED)
        return (vec_u32)(columns < VW ? load_part_as_f32(dtype, p, columns)
                                      : load_as_f32(dtype, p));
    uint16_t buffer[VW] = { 0 };
    if (columns < VW) {
        __builtin_memcpy(buffer, p, columns * 2);
        p = buffer;
    }
    return __builtin_convertvector(load_u16(p), vec_u32);
}

/* `columns` columns of b[k][n] to as many panels as they need, one every panel_bytes. All panels
 * are filled at once: the source is read row by row, in runs as long as possible. */
INLINE void pack_panels_kn(void *dst, int width, int64_t panel_bytes, int dtype, const void *src,
                           int64_t stride, int64_t columns, int64_t k, int64_t units)
{
    for (int64_t p = 0; p < units; p++) {
        const void *row = element(dtype, src, p * UNIT_K * stride);
        for (int64_t j = 0; j < columns; j += width)
            for (int c = 0; c < width; c += VW) {
                const void *first = element(dtype, row, j + c);
                char *panel = (char *)dst + j / width * panel_bytes;
                int64_t left = columns - j - c;
                vec_u32 unit = load_columns(dtype, first, p * UNIT_K < k ? left : 0);
                if (IS_PAIRED) {
                    const void *second = element(dtype, first, stride);
                    unit |= load_columns(dtype, second, p * 2 + 1 < k ? left : 0) << 16;
                }
                store_u32(panel + (p * width + c) * 4, unit);
            }
    }
}
#endif
