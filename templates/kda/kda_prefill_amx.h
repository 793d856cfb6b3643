/* Steps 2 to 6 of kda_prefill_cpu with the products of bf16 on AMX tiles and their sums in f32.
 * Strips are of 64 columns, four tiles:
 *
 *     y       = [k; q] S                  left (bf16) times the strip of the state, in pairs
 *     y_k    += Akk x                     for 16 rows at a time, of the rows before them;
 *     x       = b (v - y_k - Akk x)       then those 16, in f32 vectors
 *     y_q    += Aqk x                     the output
 *     S       = P(all) S + k^T x          the tiles' sums are the state's own f32
 *
 * A tile multiplies 32 deep. What a product reads past the rows that there are, or above the
 * diagonal, is zero in both factors.
 *
 * Two choices keep the error of an output at 3.2e-3 where keys are correlated, instead of 4.5e-3:
 * Aqk is the sum of two bf16, and x is rounded as soon as it is known, so that the rows after it
 * see, and the delta rule corrects, what the outputs and the state are made of.
 *
 * Pairs: a lane of 32 bits holds two bf16 that follow each other along the depth. A left factor's
 * row of bf16 is a row of pairs; a right factor's pairs are made of two of its rows. */
#ifndef KDA_PREFILL_AMX_H
#define KDA_PREFILL_AMX_H
#include "common/cpu/amx.h"
#include "kda_prefill_work.h"

#define TILE_DEPTH 32 /* elements */
#define STRIP_TILES 4
#define ROW_BYTES(array) ((int64_t)sizeof((array)[0])) /* the stride of a tile's rows */
_Static_assert(PRODUCT_COLUMNS == STRIP_TILES * 16 && VW == 16, "strips of four tiles");
_Static_assert(CHUNK % TILE_DEPTH == 0, "chunks of whole tiles");

INLINE vec_u16 bf16_bits(vec_f32 value)
{
#if defined(__AVX512BF16__)
    typedef __bf16 vec_bf16 __attribute__((vector_size(2 * VW)));
    return (vec_u16)__builtin_ia32_cvtneps2bf16_512_mask(value, (vec_bf16){ 0 }, 0xffff);
#else
    return bf16_from_f32(value);
#endif
}

/* The bf16 next to it. */
INLINE vec_f32 rounded(vec_f32 value)
{
    return f32_from_bf16(bf16_bits(value));
}

INLINE void put_bf16(uint32_t *row, int64_t d, vec_f32 value)
{
    store_u16((uint16_t *)row + d, bf16_bits(value));
}

/* From element d on: the elements of a row times the products. */
INLINE void chains_put_bf16(uint32_t *to, int64_t d, const chains product, const float *row)
{
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        put_bf16(to, d + c * VW, at(row + d + c * VW) * product[c]);
}

/* Two rows of a right factor as one of pairs. */
INLINE vec_u32 pairs_of(const float *first, const float *second)
{
    vec_u32 low = __builtin_convertvector(bf16_bits(at(first)), vec_u32);
    return low | __builtin_convertvector(bf16_bits(at(second)), vec_u32) << 16;
}

/* c[16][64] += a[16][depth] b[depth][64]; strides in bytes, depth in elements. */
INLINE void multiply_row_of_tiles(float *c, int64_t c_row, const uint32_t *a, int64_t a_row,
                                  const uint32_t *b, int64_t depth, const int is_first)
{
    enum { B_ROW = PRODUCT_COLUMNS * 4 };
    if (is_first) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, c, c_row);
        TILE_LOAD(1, c + 16, c_row);
        TILE_LOAD(2, c + 32, c_row);
        TILE_LOAD(3, c + 48, c_row);
    }
    for (int64_t p = 0; p < depth / 2; p += TILE_UNITS) {
        TILE_LOAD(4, a + p, a_row);
        TILE_LOAD(5, b + p * PRODUCT_COLUMNS, B_ROW);
        TILE_MULTIPLY(0, 4, 5);
        TILE_LOAD(6, b + p * PRODUCT_COLUMNS + 16, B_ROW);
        TILE_MULTIPLY(1, 4, 6);
        TILE_LOAD(7, b + p * PRODUCT_COLUMNS + 32, B_ROW);
        TILE_MULTIPLY(2, 4, 7);
        TILE_LOAD(5, b + p * PRODUCT_COLUMNS + 48, B_ROW);
        TILE_MULTIPLY(3, 4, 5);
    }
    TILE_STORE(0, c, c_row);
    TILE_STORE(1, c + 16, c_row);
    TILE_STORE(2, c + 32, c_row);
    TILE_STORE(3, c + 48, c_row);
}

/* ---- 2. Scores of halves of 16 rows and more ------------------------------------------------ */

/* Rows of bf16 as a right factor: to[i][j] is pair i of row j, for 16 rows. */
INLINE void turn_pairs(uint32_t *to, int64_t to_row, const uint32_t *from, int64_t from_row)
{
    vec_u32 square[VW];
    UNROLL
    for (int j = 0; j < VW; j++)
        square[j] = load_u32(from + j * from_row);
    transpose(square);
    UNROLL
    for (int i = 0; i < VW; i++)
        store_u32(to + i * to_row, square[i]);
}

/* The scores of rows [first, first + 16) against the 16 columns from `column`, of keys and queries:
 * left_pairs holds the rows, `half` rows on those of queries; turned[KEY_WIDTH / 2][16]. */
INLINE void score_tiles(struct work *w, int64_t row, int64_t half, int64_t first, int64_t column)
{
    enum { SCORE_ROW = CHUNK * 4 };
    TILE_ZERO(0);
    TILE_ZERO(1);
    for (int64_t p = 0; p < KEY_WIDTH / 2; p += TILE_UNITS) {
        TILE_LOAD(4, w->left_pairs[row] + p, ROW_BYTES(w->left_pairs));
        TILE_LOAD(5, w->left_pairs[half + row] + p, ROW_BYTES(w->left_pairs));
        TILE_LOAD(6, w->turned[p], ROW_BYTES(w->turned));
        TILE_MULTIPLY(0, 4, 6);
        TILE_MULTIPLY(1, 5, 6);
    }
    TILE_STORE(0, &w->scores_k[first][column], SCORE_ROW);
    TILE_STORE(1, &w->scores_q[first][column], SCORE_ROW);
}

/* All `half` rows on both sides: what is past the chunk's end has zero for keys and queries. */
APART void score_halves_on_tiles(struct work *w, int64_t base, int64_t half)
{
    const int64_t first = base + half;
    for (int64_t d = 0; d < KEY_WIDTH; d += CHAINS * VW) {
        chains product;
        chains_begin(product);
        for (int64_t i = 0; i < half; i++) {
            if (i)
                chains_multiply(product, w->decay[first + i] + d);
            chains_put_bf16(w->left_pairs[i], d, product, w->k[first + i]);
            chains_put_bf16(w->left_pairs[half + i], d, product, w->q[first + i]);
        }
        chains_begin(product);
        for (int64_t j = half - 1; j >= 0; j--) {
            chains_multiply(product, w->decay[base + j + 1] + d);
            chains_put_bf16(w->right_pairs[j], d, product, w->k[base + j]);
        }
    }
    for (int64_t j = 0; j < half; j += 16) {
        for (int64_t p = 0; p < KEY_WIDTH / 2; p += VW)
            turn_pairs(w->turned[p], 16, w->right_pairs[j] + p, KEY_WIDTH / 2);
        for (int64_t i = 0; i < half; i += 16)
            score_tiles(w, i, half, first + i, base + j);
    }
}

/* ---- What the strips share ------------------------------------------------------------------ */

/* Scores as left factors: of queries up to the diagonal, of keys whole blocks of 16 before it. */
INLINE void pack_scores(struct work *w)
{
    static const vec_i32 lane = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    for (int64_t i = 0; i < CHUNK; i++) {
        for (int64_t j = 0; j < CHUNK; j += VW) {
            vec_f32 zero = { 0 }, k = at(w->scores_k[i] + j), q = at(w->scores_q[i] + j);
            q = select_f32(lane <= (int32_t)(i - j), q, zero);
            put_bf16(w->scores_k_pairs[i], j, j + VW <= i / VW * VW ? k : zero);
            put_bf16(w->scores_q_pairs[i], j, q);
            put_bf16(w->scores_q_low_pairs[i], j, q - rounded(q));
        }
    }
}

/* left: keys, and CHUNK rows on queries, times P from the chunk's start; tail: keys times P to its
 * end, turned; total: P of it all. */
APART void reach_chunk(struct work *w, int64_t rows)
{
    (void)rows; /* what is past them has keys of 0 and decays of 1 */
    for (int64_t d = 0; d < KEY_WIDTH; d += CHAINS * VW) {
        chains product;
        chains_begin(product);
        for (int64_t i = 0; i < CHUNK; i++) {
            chains_multiply(product, w->decay[i] + d);
            chains_put_bf16(w->left_pairs[i], d, product, w->k[i]);
            chains_put_bf16(w->left_pairs[CHUNK + i], d, product, w->q[i]);
        }
        chains_store(w->total + d, product);
        chains_begin(product);
        for (int64_t j = CHUNK - 1; j >= 0; j--) {
            chains_put(w->right[j] + d, product, w->k[j] + d);
            chains_multiply(product, w->decay[j] + d);
        }
    }
    for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
        for (int64_t i = 0; i < CHUNK; i += TILE_DEPTH) {
            vec_u32 square[VW];
            UNROLL
            for (int r = 0; r < VW; r++)
                square[r] = pairs_of(w->right[i + 2 * r] + d, w->right[i + 2 * r + 1] + d);
            transpose(square);
            UNROLL
            for (int r = 0; r < VW; r++)
                store_u32(w->tail_pairs[d + r] + i / 2, square[r]);
        }
    }
    pack_scores(w);
}

/* ---- 4. to 6. ------------------------------------------------------------------------------- */

/* Rows [i, i + PRODUCT_ROWS) of x, from y and the rows of x before them in their block. */
INLINE void solve_rows(struct work *w, const struct kda_prefill_args *args, const void *values,
                       int64_t i, int64_t rows)
{
    const int64_t block = i / 16 * 16;
    product_acc acc;
    UNROLL
    for (int r = 0; r < PRODUCT_ROWS; r++) {
        UNROLL
        for (int v = 0; v < PRODUCT_VECTORS; v++) {
            acc[r][v] = splat_f32(0);
            if (i + r < rows)
                acc[r][v] =
                    load_as_f32(DTYPE, element(DTYPE, values, (i + r) * args->v_t + v * VW)) -
                    at(w->y[i + r] + v * VW);
        }
    }
    product_tile(acc, (struct matrix){ &w->scores_k[i][block], CHUNK, 1 }, w->x[block],
                 PRODUCT_COLUMNS, i - block, 1);
    UNROLL
    for (int r = 0; r < PRODUCT_ROWS; r++) {
        float beta = i + r < rows ? w->beta[i + r] : 0;
        UNROLL
        for (int v = 0; v < PRODUCT_VECTORS; v++) {
            UNROLL
            for (int s = 0; s < r; s++)
                acc[r][v] -= w->scores_k[i + r][i + s] * acc[s][v];
            acc[r][v] = i + r < rows ? rounded(acc[r][v] * beta) : splat_f32(0);
            put(w->x[i + r] + v * VW, acc[r][v]);
        }
    }
}

APART void solve_on_tiles(struct work *w, const struct kda_prefill_args *args, const void *values,
                          int64_t rows)
{
    __builtin_memset(w->x_pairs, 0, sizeof(w->x_pairs));
    for (int64_t block = 0; block < rows; block += 16) {
        if (block)
            multiply_row_of_tiles(w->y[block], ROW_BYTES(w->y), w->scores_k_pairs[block],
                                  ROW_BYTES(w->scores_k_pairs), w->x_pairs[0],
                                  (block + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH, 0);
        for (int64_t i = block; i < block + 16; i += PRODUCT_ROWS)
            solve_rows(w, args, values, i, rows);
        for (int64_t i = block; i < block + 16; i += 2) {
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                store_u32(w->x_pairs[i / 2] + v * VW,
                          pairs_of(w->x[i] + v * VW, w->x[i + 1] + v * VW));
        }
    }
}

APART void outputs_on_tiles(struct work *w, const struct kda_prefill_args *args, const void *o,
                            int64_t rows)
{
    for (int64_t i = 0; i < rows; i++) {
        int64_t depth = (i + 16 + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH;
        if (i % 16 == 0) {
            multiply_row_of_tiles(w->y[CHUNK + i], ROW_BYTES(w->y), w->scores_q_pairs[i],
                                  ROW_BYTES(w->scores_q_pairs), w->x_pairs[0], depth, 0);
            multiply_row_of_tiles(w->y[CHUNK + i], ROW_BYTES(w->y), w->scores_q_low_pairs[i],
                                  ROW_BYTES(w->scores_q_low_pairs), w->x_pairs[0], depth, 0);
        }
        UNROLL
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            store_from_f32(DTYPE, (void *)element(DTYPE, o, i * args->o_t + v * VW),
                           finite_or_nan(at(w->y[CHUNK + i] + v * VW)));
    }
}

APART void advance_state_on_tiles(struct work *w, float (*state)[PRODUCT_COLUMNS])
{
    for (int64_t d = 0; d < KEY_WIDTH; d += 16) {
        for (int64_t r = d; r < d + 16; r++) {
            UNROLL
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                put(state[r] + v * VW, w->total[r] * at(state[r] + v * VW));
        }
        multiply_row_of_tiles(state[d], ROW_BYTES(state), w->tail_pairs[d],
                              ROW_BYTES(w->tail_pairs), w->x_pairs[0], CHUNK, 0);
    }
}

INLINE void work_on_strip(struct work *w, const struct kda_prefill_args *args, const void *values,
                          const void *o, int64_t strip, int64_t rows)
{
    float(*state)[PRODUCT_COLUMNS] = w->state[strip];
    values = element(DTYPE, values, strip * PRODUCT_COLUMNS);
    o = element(DTYPE, o, strip * PRODUCT_COLUMNS);
    for (int64_t d = 0; d < KEY_WIDTH; d += 2) {
        UNROLL
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            store_u32(w->state_pairs[d / 2] + v * VW,
                      pairs_of(state[d] + v * VW, state[d + 1] + v * VW));
    }
    for (int64_t i = 0; i < 2 * CHUNK; i += 16)
        multiply_row_of_tiles(w->y[i], ROW_BYTES(w->y), w->left_pairs[i], ROW_BYTES(w->left_pairs),
                              w->state_pairs[0], KEY_WIDTH, 1);
    solve_on_tiles(w, args, values, rows);
    outputs_on_tiles(w, args, o, rows);
    advance_state_on_tiles(w, state);
}
#endif
