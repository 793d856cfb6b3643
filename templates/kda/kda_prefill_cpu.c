/* The gated delta rule, in chunks of CHUNK tokens: a block of the grid is a value head of a
 * sequence, its state S, k by v in f32, on the stack.
 *
 * With E_i the decays of token i, a factor for each channel of the key, and P(j, i] the product of
 * E over the tokens after j up to i, of row i (q scaled, k normalised, b the strength):
 *
 *     1. load      q, k, v as f32, E, b
 *     2. scores    Aqk[i][j] = sum q_i k_j P(j, i]   j <= i       Akk the same with k_i   j < i
 *     3. reach     q_i and k_i times P from the chunk's start, k_j times P to its end
 *     4. solve     x_i = b_i (v_i - k_i S - sum of j < i: Akk[i][j] x_j)
 *     5. outputs   o_i = q_i S + sum of j <= i: Aqk[i][j] x_j
 *     6. state     S = P(all) S + sum k_j x_j
 *
 * Step 2 wants a factor of its own for every pair. It is taken apart by halving: a block of rows
 * [base, base + 2 half) gives its upper half times its lower half,
 *
 *     base        first         end       the pair (i, j): P(j, i] = P(j, first] P(first, i]
 *      |  lower: j  |  upper: i  |
 *
 * both factors being at most 1, whatever the gate. Halves of 4, 8, 16 ... rows give every pair but
 * those within 4 rows, which are taken one by one. The factors are running products, so there is
 * one exponential for each decay, no difference of sums that could lose its digits, and what
 * forgets all gives 0. A factor below LEAST counts as 0: denormals are slow, and next to the
 * diagonal's factor of 1 it is nothing.
 *
 * Steps 3 to 6 are in kda_prefill_vec.h, f32 vectors, where no row's arithmetic reads a later row,
 * so that a NaN goes on and not back; and in kda_prefill_amx.h, bf16 on tiles, where it may go back
 * to the start of its chunk. */
#include "kda_prefill_work.h"
#if AMX
#include "kda_prefill_amx.h"
#else
#include "kda_prefill_vec.h"
#endif

/* ---- 2. Scores ----------------------------------------------------------------------------- */

/* left: rows [first, end) of keys times P(first, i], then those of queries. */
INLINE void upper_half(struct work *w, int64_t first, int64_t end)
{
    for (int64_t d = 0; d < KEY_WIDTH; d += CHAINS * VW) {
        chains product;
        chains_begin(product);
        for (int64_t i = first; i < end; i++) {
            if (i > first)
                chains_multiply(product, w->decay[i] + d);
            chains_put(w->left[i - first] + d, product, w->k[i] + d);
            chains_put(w->left[end - first + i - first] + d, product, w->q[i] + d);
        }
    }
}

/* right: rows [base, first) of keys times P(j, first]. */
INLINE void lower_half(struct work *w, int64_t base, int64_t first)
{
    for (int64_t d = 0; d < KEY_WIDTH; d += CHAINS * VW) {
        chains product;
        chains_begin(product);
        for (int64_t j = first - 1; j >= base; j--) {
            chains_multiply(product, w->decay[j + 1] + d);
            chains_put(w->right[j - base] + d, product, w->k[j] + d);
        }
    }
}

/* The scores of [first, end) against [base, first). */
APART void score_halves(struct work *w, int64_t base, int64_t first, int64_t end)
{
    const int64_t upper = end - first, lower = first - base;
    upper_half(w, first, end);
    lower_half(w, base, first);
    for (int64_t i = 0; i < 2 * upper; i += DOT_LEFT) {
        for (int64_t j = 0; j < lower; j += DOT_RIGHT) {
            float tile[VW];
            dot_tile(tile, w->left[i], 2 * upper - i, w->right[j], lower - j, KEY_WIDTH, KEY_WIDTH);
            for (int64_t r = i; r < i + DOT_LEFT && r < 2 * upper; r++) {
                float *row = r < upper ? w->scores_k[first + r] : w->scores_q[end - 2 * upper + r];
                for (int64_t c = j; c < j + DOT_RIGHT && c < lower; c++)
                    row[base + c] = tile[(r - i) * DOT_RIGHT + c - j];
            }
        }
    }
}

#define NEAR 4
#define NEAR_Q(i, j) ((i) * ((i) + 1) / 2 + (j))
#define NEAR_K(i, j) (NEAR_Q(NEAR, 0) + (i) * ((i)-1) / 2 + (j))
#define NEAR_SUMS NEAR_K(NEAR, 0)
_Static_assert(NEAR_SUMS % VW == 0 && CHUNK % NEAR == 0, "whole vectors of sums");

/* The scores of NEAR rows among themselves: their sums fill the registers of AVX-512. Of rows past
 * the chunk's last nothing is used. */
APART void score_near(struct work *w, int64_t base)
{
    vec_f32 sums[NEAR_SUMS];
    float scores[NEAR_SUMS];
    UNROLL
    for (int i = 0; i < NEAR_SUMS; i++)
        sums[i] = splat_f32(0);
    for (int64_t d = 0; d < KEY_WIDTH; d += VW) {
        UNROLL
        for (int j = 0; j < NEAR; j++) {
            vec_f32 key = at(w->k[base + j] + d), product = splat_f32(1);
            sums[NEAR_Q(j, j)] += at(w->q[base + j] + d) * key;
            UNROLL
            for (int i = j + 1; i < NEAR; i++) {
                product = factor(product * at(w->decay[base + i] + d));
                sums[NEAR_Q(i, j)] += at(w->q[base + i] + d) * (key * product);
                sums[NEAR_K(i, j)] += at(w->k[base + i] + d) * (key * product);
            }
        }
    }
    UNROLL
    for (int i = 0; i < NEAR_SUMS; i += VW)
        put(scores + i, sum_each(sums + i));
    UNROLL
    for (int i = 0; i < NEAR; i++) {
        UNROLL
        for (int j = 0; j <= i; j++) {
            w->scores_q[base + i][base + j] = scores[NEAR_Q(i, j)];
            if (j < i)
                w->scores_k[base + i][base + j] = scores[NEAR_K(i, j)];
        }
    }
}

APART void score_chunk(struct work *w, int64_t rows)
{
    for (int64_t base = 0; base < rows; base += NEAR)
        score_near(w, base);
    for (int64_t half = NEAR; half < rows; half *= 2) {
        for (int64_t base = 0; base + half < rows; base += 2 * half) {
            int64_t end = base + 2 * half;
#if AMX
            if (half >= 16) {
                score_halves_on_tiles(w, base, half);
                continue;
            }
#endif
            score_halves(w, base, base + half, end < rows ? end : rows);
        }
    }
}

/* ---- The block ----------------------------------------------------------------------------- */

/* Where a sequence begins: whatever cu_seqlens holds, from 0 to t. */
static int64_t border(const struct kda_prefill_args *args, int64_t sequence)
{
    int64_t border = args->t / args->n * sequence;
    if (VARLEN)
        border = IS_INDEX_64 ? ((const int64_t *)args->cu_seqlens)[sequence]
                             : ((const int32_t *)args->cu_seqlens)[sequence];
    return border < 0 ? 0 : border > args->t ? args->t : border;
}

/* The state after the sequence's last token, and those before tokens 0, 64, 128 ... of it, which
 * have rows that no other sequence has. */
APART void store_last(const struct work *w, const struct kda_prefill_args *args, int64_t slot,
                      int64_t head)
{
    int64_t offset = slot * args->after_n + head * args->after_h;
    store_state(w, STATE_DTYPE, (void *)element(STATE_DTYPE, args->after, offset), args->after_row);
}

APART void store_chunk_state(const struct work *w, const struct kda_prefill_args *args, int64_t row,
                             int64_t head)
{
    int64_t offset = row * args->chunk_n + head * args->chunk_h;
    store_state(w, DTYPE, (void *)element(DTYPE, args->chunk_states, offset), args->chunk_row);
}

void kda_prefill_main(const struct kda_prefill_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)z;
    struct work w;
    const int64_t head = x, begin = border(args, y), end = border(args, (int64_t)y + 1);
    int64_t slot = POOL ? args->slots[y] : y;
    if (POOL && slot >= args->capacity)
        slot = -1;

#if AMX
    configure_tiles();
#endif
    if (HAS_BEFORE && slot >= 0)
        load_state(
            &w, element(STATE_DTYPE, args->before, slot * args->before_n + head * args->before_h),
            args->before_row);
    else
        __builtin_memset(w.state, 0, sizeof(w.state));

    for (int64_t first = begin; first < end; first += CHUNK) {
        int64_t rows = end - first < CHUNK ? end - first : CHUNK;
        const void *values = element(DTYPE, args->v, first * args->v_t + head * args->v_h);
        const void *o = element(DTYPE, args->o, first * args->o_t + head * args->o_h);
        if (CHUNK_STATES && (first - begin) % 64 == 0)
            store_chunk_state(&w, args, begin / 64 + y + (first - begin) / 64, head);
        load_chunk(&w, args, head, first, rows, end);
        score_chunk(&w, rows);
        reach_chunk(&w, rows);
        for (int64_t strip = 0; strip < VALUE_WIDTH / PRODUCT_COLUMNS; strip++)
            work_on_strip(&w, args, values, o, strip, rows);
    }

    if (HAS_AFTER && slot >= 0)
        store_last(&w, args, slot, head);
#if AMX
    TILE_RELEASE();
#endif
}
