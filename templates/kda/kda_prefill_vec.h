/* Steps 3 to 6 of kda_prefill_cpu in f32 vectors, a strip of PRODUCT_COLUMNS columns at a time. */
#ifndef KDA_PREFILL_VEC_H
#define KDA_PREFILL_VEC_H
#include "kda_prefill_work.h"

/* ---- 3. Reach ------------------------------------------------------------------------------ */

/* left: keys, and CHUNK rows on queries, times P from the chunk's start. right: keys times P to
 * its end. total: P of the whole chunk. */
APART void reach_chunk(struct work *w, int64_t rows)
{
    for (int64_t d = 0; d < KEY_WIDTH; d += CHAINS * VW) {
        chains product;
        chains_begin(product);
        for (int64_t i = 0; i < rows; i++) {
            chains_multiply(product, w->decay[i] + d);
            chains_put(w->left[i] + d, product, w->k[i] + d);
            chains_put(w->left[CHUNK + i] + d, product, w->q[i] + d);
        }
        chains_store(w->total + d, product);
        chains_begin(product);
        for (int64_t j = rows - 1; j >= 0; j--) {
            chains_put(w->right[j] + d, product, w->k[j] + d);
            chains_multiply(product, w->decay[j] + d);
        }
    }
}

/* ---- 4. to 6. -------------------------------------------------------------------------------- */

/* acc += scale row. */
INLINE void add_row(vec_f32 acc[PRODUCT_VECTORS], float scale, const vec_f32 row[PRODUCT_VECTORS])
{
    UNROLL
    for (int v = 0; v < PRODUCT_VECTORS; v++)
        acc[v] += scale * row[v];
}

/* Rows of a tile past the chunk's last hold whatever was there: what they give is not used. */
INLINE struct matrix rows_from(const float *first, int64_t row)
{
    return (struct matrix){ first, row, 1 };
}

APART void solve(struct work *w, const struct kda_prefill_args *args, const void *values,
                 int64_t strip, int64_t rows)
{
    const int64_t column = strip * PRODUCT_COLUMNS;
    for (int64_t i = 0; i < rows; i += PRODUCT_ROWS) {
        product_acc acc;
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            int64_t row = i + r < rows ? i + r : rows - 1;
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                acc[r][v] =
                    load_as_f32(DTYPE, element(DTYPE, values, row * args->v_t + column + v * VW));
        }
        product_tile(acc, rows_from(w->left[i], KEY_WIDTH), w->state[strip][0], PRODUCT_COLUMNS,
                     KEY_WIDTH, 1);
        product_tile(acc, rows_from(w->scores_k[i], CHUNK), w->x[0], PRODUCT_COLUMNS, i, 1);
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            if (i + r >= rows)
                break;
            UNROLL
            for (int s = 0; s < r; s++)
                add_row(acc[r], -w->scores_k[i + r][i + s], acc[s]);
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++) {
                acc[r][v] *= w->beta[i + r];
                put(&w->x[i + r][v * VW], acc[r][v]);
            }
        }
    }
}

APART void outputs(const struct work *w, const struct kda_prefill_args *args, const void *o,
                   int64_t strip, int64_t rows)
{
    const int64_t column = strip * PRODUCT_COLUMNS;
    for (int64_t i = 0; i < rows; i += PRODUCT_ROWS) {
        product_acc acc = { { { 0 } } };
        product_tile(acc, rows_from(w->left[CHUNK + i], KEY_WIDTH), w->state[strip][0],
                     PRODUCT_COLUMNS, KEY_WIDTH, 0);
        product_tile(acc, rows_from(w->scores_q[i], CHUNK), w->x[0], PRODUCT_COLUMNS, i, 0);
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            if (i + r >= rows)
                break;
            UNROLL
            for (int s = 0; s <= r; s++) {
                vec_f32 row[PRODUCT_VECTORS];
                UNROLL
                for (int v = 0; v < PRODUCT_VECTORS; v++)
                    row[v] = at(&w->x[i + s][v * VW]);
                add_row(acc[r], w->scores_q[i + r][i + s], row);
            }
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                store_from_f32(DTYPE,
                               (void *)element(DTYPE, o, (i + r) * args->o_t + column + v * VW),
                               finite_or_nan(acc[r][v]));
        }
    }
}

APART void advance_state(struct work *w, int64_t strip, int64_t rows)
{
    for (int64_t d = 0; d < KEY_WIDTH; d += PRODUCT_ROWS) {
        product_acc acc;
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                acc[r][v] = w->total[d + r] * at(&w->state[strip][d + r][v * VW]);
        }
        product_tile(acc, (struct matrix){ &w->right[0][d], 1, KEY_WIDTH }, w->x[0],
                     PRODUCT_COLUMNS, rows, 0);
        UNROLL
        for (int r = 0; r < PRODUCT_ROWS; r++) {
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                put(&w->state[strip][d + r][v * VW], acc[r][v]);
        }
    }
}

INLINE void work_on_strip(struct work *w, const struct kda_prefill_args *args, const void *values,
                          const void *o, int64_t strip, int64_t rows)
{
    solve(w, args, values, strip, rows);
    outputs(w, args, o, strip, rows);
    advance_state(w, strip, rows);
}
#endif
