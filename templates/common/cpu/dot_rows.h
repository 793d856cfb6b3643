/* Dot products of DOT_ROWS_LEFT rows with DOT_ROWS_RIGHT rows along k, one vector of them in all:
 * what streams a matrix of weights past a few rows. Each right row is read once, in order, from
 * memory; left rows stay in the cache. In units (dot_units.h), so that pairs of bf16 multiply as
 * pairs.
 *
 * The hardware starts anew in every right row and stops at every page, so what comes DOT_AHEAD
 * bytes later is asked for: of the same rows, and past their end of the next DOT_ROWS_RIGHT rows.
 * */
#ifndef QN_CPU_DOT_ROWS_H
#define QN_CPU_DOT_ROWS_H
#include "common/cpu/dot_units.h"
#include "common/cpu/transpose.h"

#ifndef DOT_AHEAD
#define DOT_AHEAD 2048
#endif
#define DOT_ROWS_RIGHT (VW == 4 ? 2 : 4)
#define DOT_ROWS_LEFT (VW / DOT_ROWS_RIGHT)

/* Lane i of the result is the sum of the lanes of v[i]; transpose.h says why they end in order. */
INLINE vec_f32 dot_rows_sums(vec_f32 v[VW])
{
    UNROLL
    for (int half = VW / 2; half > 0; half /= 2) {
        UNROLL
        for (int i = 0; i < half; i++)
            v[i] = INTERLEAVE_LOW(v[i], v[i + half]) + INTERLEAVE_HIGH(v[i], v[i + half]);
    }
    return v[0];
}

struct dot_rows {
    const void *left[DOT_ROWS_LEFT]; /* NULL: a row of zeros */
    const void *right[DOT_ROWS_RIGHT];
    int64_t k;
    int64_t next; /* bytes from the right rows to those that follow them */
};

/* Lane DOT_ROWS_RIGHT i + j: left row i . right row j. Only the first `lefts` (a constant) left
 * rows are multiplied. */
INLINE vec_f32 dot_rows(int dtype, const struct dot_rows *rows, const int lefts)
{
    vec_f32 acc[VW] = { 0 };
    vec_u32 mask[DOT_ROWS_LEFT];
    const char *left[DOT_ROWS_LEFT];
    int64_t k = rows->k, p = 0;
    UNROLL
    for (int i = 0; i < lefts; i++) {
        mask[i] = splat_u32(rows->left[i] ? 0xffffffff : 0);
        left[i] = rows->left[i] ? rows->left[i] : rows->right[0];
    }
    for (; p + VEC_K <= k; p += VEC_K) {
        vec_u32 right[DOT_ROWS_RIGHT];
        int64_t ahead = p * DT_SIZE(dtype) + DOT_AHEAD;
        ahead += ahead < k * DT_SIZE(dtype) ? 0 : rows->next - k * DT_SIZE(dtype);
        UNROLL
        for (int j = 0; j < DOT_ROWS_RIGHT; j++) {
            __builtin_prefetch((const void *)((uintptr_t)rows->right[j] + (uintptr_t)ahead));
            right[j] = load_units(dtype, element(dtype, rows->right[j], p));
        }
        UNROLL
        for (int i = 0; i < lefts; i++) {
            vec_u32 row = load_units(dtype, element(dtype, left[i], p)) & mask[i];
            UNROLL
            for (int j = 0; j < DOT_ROWS_RIGHT; j++)
                acc[i * DOT_ROWS_RIGHT + j] =
                    multiply_add(acc[i * DOT_ROWS_RIGHT + j], row, right[j]);
        }
    }
    if (p < k) {
        vec_f32 sums[VW]; /* apart from acc, which stays in registers */
        UNROLL
        for (int i = 0; i < VW; i++)
            sums[i] = acc[i];
        ROLLED
        for (int i = 0; i < lefts * DOT_ROWS_RIGHT; i++) {
            const void *of_left = element(dtype, left[i / DOT_ROWS_RIGHT], p);
            const void *of_right = element(dtype, rows->right[i % DOT_ROWS_RIGHT], p);
            vec_u32 row = load_part_units(dtype, of_left, k - p) & mask[i / DOT_ROWS_RIGHT];
            sums[i] = multiply_add(sums[i], row, load_part_units(dtype, of_right, k - p));
        }
        UNROLL
        for (int i = 0; i < VW; i++)
            acc[i] = sums[i];
    }
    return dot_rows_sums(acc);
}
#endif
