/* Small products of f32 matrices that lie in L1 or L2, in register tiles, and dot products of rows.
 *
 *     product_tile   acc[ROWS][COLUMNS] += sign a b      b row-major, a with any two strides
 *     dot_tile       out[i][j] = left row i . right row j, DOT_LEFT x DOT_RIGHT of them
 *
 * A tile of PRODUCT_ROWS x PRODUCT_VECTORS needs PRODUCT_VECTORS loads and PRODUCT_ROWS broadcasts
 * for their product in multiply-adds. What is packed is not worth it here: a is at most some dozens
 * of rows, which every column tile of b reads again. */
#ifndef QN_CPU_PRODUCT_F32_H
#define QN_CPU_PRODUCT_F32_H
#include "common/cpu/transpose.h"

#define PRODUCT_ROWS 4
#define PRODUCT_VECTORS (VW == 16 ? 4 : 2)
#define PRODUCT_COLUMNS (PRODUCT_VECTORS * VW)

typedef vec_f32 product_acc[PRODUCT_ROWS][PRODUCT_VECTORS];

/* An f32 matrix: element (i, j) at data[i * row + j * column]. */
struct matrix {
    const float *data;
    int64_t row, column;
};

/* `depth` columns of a times as many rows of b, b's rows having a stride of b_row. */
INLINE void product_tile(product_acc acc, struct matrix a, const float *b, int64_t b_row,
                         int64_t depth, const int is_subtracted)
{
    _Pragma("clang loop unroll(disable)") for (int64_t p = 0; p < depth; p++)
    {
        vec_f32 columns[PRODUCT_VECTORS];
        UNROLL
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            columns[v] = (vec_f32)load_u32(b + p * b_row + v * VW);
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            float factor = a.data[r * a.row + p * a.column];
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                acc[r][v] += (is_subtracted ? -factor : factor) * columns[v];
        }
    }
}

/* Lane i of the result is the sum of the lanes of v[i]. Each round adds pairs and halves the
 * vectors; interleaved so, the lanes end in order (transpose.h says why). */
INLINE vec_f32 sum_each(vec_f32 v[VW])
{
    UNROLL
    for (int half = VW / 2; half > 0; half /= 2) {
        UNROLL
        for (int i = 0; i < half; i++)
            v[i] = INTERLEAVE_LOW(v[i], v[i + half]) + INTERLEAVE_HIGH(v[i], v[i + half]);
    }
    return v[0];
}

#define DOT_RIGHT (VW == 4 ? 2 : 4)
#define DOT_LEFT (VW / DOT_RIGHT)

/* Row i of left is left + min(i, left_count - 1) * stride, and so for right: rows past the last
 * repeat it. out holds DOT_LEFT x DOT_RIGHT. */
INLINE void dot_tile(float *out, const float *left, int64_t left_count, const float *right,
                     int64_t right_count, int64_t stride, int64_t depth)
{
    const float *left_rows[DOT_LEFT], *right_rows[DOT_RIGHT];
    vec_f32 acc[VW];
    UNROLL
    for (int i = 0; i < DOT_LEFT; i++)
        left_rows[i] = left + (i < left_count ? i : left_count - 1) * stride;
    UNROLL
    for (int j = 0; j < DOT_RIGHT; j++)
        right_rows[j] = right + (j < right_count ? j : right_count - 1) * stride;
    UNROLL
    for (int i = 0; i < VW; i++)
        acc[i] = (vec_f32){ 0 };
    for (int64_t d = 0; d < depth; d += VW) {
        UNROLL
        for (int i = 0; i < DOT_LEFT; i++) {
            vec_f32 row = (vec_f32)load_u32(left_rows[i] + d);
            UNROLL
            for (int j = 0; j < DOT_RIGHT; j++)
                acc[i * DOT_RIGHT + j] += row * (vec_f32)load_u32(right_rows[j] + d);
        }
    }
    store_u32(out, (vec_u32)sum_each(acc));
}
#endif
