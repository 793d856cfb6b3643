/* The gated delta rule, STEPS tokens of each sequence: one block of the grid handles BV columns of
 * v of HEADS value heads. Of every token
 *
 *     S = e^g S        m = S^T key        S = S + key (beta (value - m))^T        o = S^T query
 *
 * with the scale in the query. A slab of the state, BV columns of one head, is read from memory
 * once and written once, or once a token with SAVE.
 *
 *     1. Activations of all tokens, f32: norms, gate, sigmoid.
 *     2. The slab through the tokens.
 *     3. o, rounded.
 *
 * One token of a slab that is in memory takes the way of kda_decode_once.h: a block's heads one
 * after another, the next read while the last is written. Else the slab is a copy in f32, in cache:
 *
 *     [v, k]   a row is a column of S: VW of them go through all tokens by themselves
 *     [k, v]   vectors along v, the slab as a whole
 *
 * Either way a token takes two passes over the copy: the first decays and sums m, which the second
 * needs to update; it sums o. Memory is read in the first of the first token, written in the second
 * of the last.
 *
 * Memory is what it waits for: 128 KiB a token and head of 128 by 128 f32, there and back.
 *
 * A slot outside the pool: o is zeros and nothing else is touched. With TREE a token begins from
 * what its parent stored, rounded as it was stored; with no parent from the state before. */
#include "kda_decode_work.h"

#ifndef HEADS
#define HEADS 1
#endif

/* o NULL: zeros. */
INLINE void store_row(const struct kda_decode_args *args, const struct place *at, int64_t token,
                      const float *o)
{
    void *row = (void *)row_of(DTYPE, &args->o, at->sequence, token, at->head);
    for (int c = 0; c < BV; c += VW) {
        vec_f32 value = o ? *(const vec_f32_any *)(o + c) : splat_f32(0);
        store_from_f32(DTYPE, (void *)element(DTYPE, row, at->column + c), value);
    }
}

/* One token of the heads from place `at` on, up to head `end`. */
INLINE void heads_once(const struct kda_decode_args *args, struct place at, int64_t end)
{
    struct slab slabs[2], *write = 0;
    float o[BV];
    for (struct place next = at; write || next.head < end; next.head++) {
        struct slab *read = next.head < end ? &slabs[next.head & 1] : 0;
        if (read) {
            load_factors(args, &next, 0, &read->token);
            load_value(args, &next, 0, &read->token);
            slab_open(read, args, &next);
        }
        slabs_once(write, read, o);
        if (write) {
            store_row(args, &at, 0, o);
            at.head++;
        }
        write = read;
    }
}

/* All tokens of one head. after: the slab that comes next; NULL: another block's business. */
INLINE void head_steps(const struct kda_decode_args *args, const struct place *at,
                       const char *after)
{
    struct token tokens[STEPS];
    float o[STEPS][BV];
    for (int t = 0; t < STEPS; t++) {
        load_factors(args, at, t, &tokens[t]);
        load_value(args, at, t, &tokens[t]);
    }
    slab_advance(args, at, tokens, after, o);
    for (int t = 0; t < STEPS; t++)
        store_row(args, at, t, o[t]);
}

void kda_decode_main(const struct kda_decode_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t slot = POOL ? args->slots[y] : y, head = x / (V / BV) * HEADS;
    int64_t end = HV - head < HEADS ? HV : head + HEADS;
    int is_used = !POOL || (slot >= 0 && slot < args->capacity);
    struct place at = { .sequence = y,
                        .from_sequence = slot,
                        .to_sequence = SAVE ? y : slot,
                        .head = head,
                        .column = x % (V / BV) * BV };
    (void)z;
    if (is_used && IS_ONCE) {
        heads_once(args, at, end);
        return;
    }
    for (; at.head < end; at.head++) {
        struct place next = at;
        next.head++;
        if (is_used)
            head_steps(args, &at,
                       HAS_FROM && !TREE && next.head < end
                           ? slab_of(&args->from, at.from_sequence, 0, &next)
                           : 0);
        for (int t = 0; !is_used && t < STEPS; t++)
            store_row(args, &at, t, 0);
    }
}
