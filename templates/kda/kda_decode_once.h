/* One token of a slab that is in memory, in two passes over it:
 *
 *     read     m = S^T (e^g key)
 *     write    S = e^g S + key change^T      o = S^T query       change = beta (value - m)
 *
 * There is no copy: what is written has been read into the cache. Memory is to be at work all the
 * time, so the passes of two places go on side by side, a row of the one and a row of the other:
 *
 *     [v, k]   VW rows are written while the next VW are read, the next slab's after the last
 *     [k, v]   a strip of columns is written while the same strip of the next slab is read
 *
 * and rows are asked for before they are read. Rows are visited from STREAMS places of a slab in
 * turn: the processor's own prefetching stays within a page, and so it has as many pages.
 * Included by kda_decode_work.h. */
#ifndef KDA_DECODE_ONCE_H
#define KDA_DECODE_ONCE_H

#define IS_ONCE (STEPS == 1 && HAS_FROM && (IS_VK || BV % (2 * VW) == 0)) /* it can be done so */
#define STREAMS 4
#define AHEAD 2 /* rows, in each of these places */

/* A slab, its token and, when it has been read, m. */
struct slab {
    const char *from;
    char *to; /* NULL: it is not stored */
    int64_t from_row, to_row;
    struct token token;
    float decayed_key[K], m[BV];
};

/* ---- Elements, two vectors at a time --------------------------------------------------------- */

/* Those of bf16 are taken as they lie in lanes of 32 bits, the even ones and the odd ones: one
 * load, no lane moves. What they meet has the same order. */
INLINE void load_two(const char *from, int64_t index, vec_f32 x[2])
{
    if (STATE == DT_BF16) {
        vec_u32 both = load_u32(element(STATE, from, index));
        x[0] = (vec_f32)(both << 16);
        x[1] = (vec_f32)(both & 0xffff0000);
        return;
    }
    x[0] = load_as_f32(STATE, element(STATE, from, index));
    x[1] = load_as_f32(STATE, element(STATE, from, index + VW));
}

/* Where the processor converts to bf16 by itself, denormals become 0. */
INLINE void store_two(char *to, int64_t index, const vec_f32 x[2])
{
    void *at = (void *)element(STATE, to, index);
    if (STATE != DT_BF16) {
        store_from_f32(STATE, at, x[0]);
        store_from_f32(STATE, (void *)element(STATE, at, VW), x[1]);
        return;
    }
#if defined(__AVX512BF16__)
    typedef uint16_t vec_both __attribute__((vector_size(4 * VW)));
    vec_both both = (vec_both)__builtin_ia32_cvtne2ps2bf16_512(x[1], x[0]);
    store_u32(at, (vec_u32)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                                   21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27,
                                                   12, 28, 13, 29, 14, 30, 15, 31));
#else
    vec_u32 even = __builtin_convertvector(bf16_from_f32(x[0]), vec_u32);
    store_u32(at, even | __builtin_convertvector(bf16_from_f32(x[1]), vec_u32) << 16);
#endif
}

/* Puts `count` elements in the order in which load_two() gives them. */
INLINE void pair_off(float *x, int count)
{
    for (int first = 0; STATE == DT_BF16 && first < count; first += 2 * VW) {
        float from[2 * VW];
        __builtin_memcpy(from, x + first, sizeof(from));
        for (int i = 0; i < VW; i++) {
            x[first + i] = from[2 * i];
            x[first + VW + i] = from[2 * i + 1];
        }
    }
}

INLINE void undo_pair_off(float *x, int count)
{
    for (int first = 0; STATE == DT_BF16 && first < count; first += 2 * VW) {
        float from[2 * VW];
        __builtin_memcpy(from, x + first, sizeof(from));
        for (int i = 0; i < VW; i++) {
            x[first + 2 * i] = from[i];
            x[first + 2 * i + 1] = from[VW + i];
        }
    }
}

/* Asks for the `count` elements of the row that is AHEAD rows after this one. */
INLINE void ask_ahead(const char *row, int64_t pitch, const int count)
{
    row = element(STATE, row, AHEAD * pitch);
    for (int at = 0; at < count * DT_SIZE(STATE); at += 64)
        __builtin_prefetch(row + at);
}

/* The i-th of `count` rows to be visited: STREAMS parts of the slab are gone through in turn. */
INLINE int64_t visited(int64_t i, int64_t count)
{
    return i % STREAMS * (count / STREAMS) + i / STREAMS;
}

/* ---- [v, k] ---------------------------------------------------------------------------------- */

INLINE vec_f32 row_read(const char *row, const float *decayed_key)
{
    vec_f32 sums[2] = { splat_f32(0), splat_f32(0) };
    for (int d = 0; d < K; d += 2 * VW) {
        vec_f32 x[2];
        load_two(row, d, x);
        sums[0] += x[0] * *(const vec_f32_any *)(decayed_key + d);
        sums[1] += x[1] * *(const vec_f32_any *)(decayed_key + d + VW);
    }
    return sums[0] + sums[1];
}

INLINE vec_f32 row_write(const char *from, char *to, const struct token *token, float change)
{
    vec_f32 sums[2] = { splat_f32(0), splat_f32(0) };
    for (int d = 0; d < K; d += 2 * VW) {
        vec_f32 x[2];
        load_two(from, d, x);
        UNROLL
        for (int j = 0; j < 2; j++) {
            const int at = d + j * VW;
            x[j] = x[j] * *(const vec_f32_any *)(token->decay + at) +
                   *(const vec_f32_any *)(token->key + at) * change;
            sums[j] += x[j] * *(const vec_f32_any *)(token->query + at);
        }
        if (to)
            store_two(to, d, x);
    }
    return sums[0] + sums[1];
}

/* Reads VW rows of `next` from row `first` on; writes those of `now` from row `written` on. */
INLINE void rows_pass(const struct slab *now, int written, float *o, struct slab *next, int first)
{
    vec_f32 read_sums[VW], write_sums[VW];
    float change[VW];
    if (now)
        *(vec_f32_any *)change =
            now->token.beta * (*(const vec_f32_any *)(now->token.value + written) -
                               *(const vec_f32_any *)(now->m + written));
    for (int r = 0; r < VW; r++) {
        if (next) {
            const char *row = element(STATE, next->from, visited(first + r, BV) * next->from_row);
            ask_ahead(row, next->from_row, K);
            read_sums[r] = row_read(row, next->decayed_key);
        }
        if (now)
            write_sums[r] = row_write(
                element(STATE, now->from, visited(written + r, BV) * now->from_row),
                now->to ? (char *)element(STATE, now->to, visited(written + r, BV) * now->to_row)
                        : 0,
                &now->token, change[r]);
    }
    if (now)
        *(vec_f32_any *)(o + written) = sum_lanes_of_each(write_sums);
    if (next)
        *(vec_f32_any *)(next->m + first) = sum_lanes_of_each(read_sums);
}

APART void rows_read_first(struct slab *next)
{
    rows_pass(0, 0, 0, next, 0);
}

APART void rows_read_write(struct slab *now, int written, float *o, struct slab *next, int first)
{
    rows_pass(now, written, o, next, first);
}

APART void rows_write_last(struct slab *now, float *o)
{
    rows_pass(now, BV - VW, o, 0, 0);
}

INLINE void rows_once(struct slab *now, struct slab *next, float *o)
{
    for (int first = 0; now && first < BV - VW; first += VW)
        rows_read_write(now, first, o, now, first + VW);
    if (!now)
        rows_read_first(next);
    else if (next)
        rows_read_write(now, BV - VW, o, next, 0);
    else
        rows_write_last(now, o);
}

/* ---- [k, v] ---------------------------------------------------------------------------------- */

#define ONCE_VECTORS (BV < 8 * VW ? BV / VW : VW == 16 ? 8 : 4) /* whose sums are in registers */
#define ONCE_COLUMNS (ONCE_VECTORS * VW)

INLINE void strip_read(const char *row, float decayed_key, vec_f32 *m)
{
    UNROLL
    for (int j = 0; j < ONCE_VECTORS; j += 2) {
        vec_f32 x[2];
        load_two(row, j * VW, x);
        m[j] += x[0] * decayed_key;
        m[j + 1] += x[1] * decayed_key;
    }
}

INLINE void strip_write(const char *from, char *to, const struct token *token, int d,
                        const vec_f32 *change, vec_f32 *sums)
{
    UNROLL
    for (int j = 0; j < ONCE_VECTORS; j += 2) {
        vec_f32 x[2];
        load_two(from, j * VW, x);
        UNROLL
        for (int i = 0; i < 2; i++) {
            x[i] = x[i] * token->decay[d] + change[j + i] * token->key[d];
            sums[j + i] += x[i] * token->query[d];
        }
        if (to)
            store_two(to, j * VW, x);
    }
}

INLINE void strip_pass(const struct slab *now, struct slab *next, int first, float *o)
{
    vec_f32 change[ONCE_VECTORS], sums[ONCE_VECTORS], m[ONCE_VECTORS];
    UNROLL
    for (int j = 0; j < ONCE_VECTORS; j++) {
        sums[j] = m[j] = splat_f32(0);
        if (now)
            change[j] =
                now->token.beta * (*(const vec_f32_any *)(now->token.value + first + j * VW) -
                                   *(const vec_f32_any *)(now->m + first + j * VW));
    }
    for (int i = 0; i < K; i++) {
        const int d = (int)visited(i, K);
        if (next) {
            const char *row = element(STATE, next->from, d * next->from_row + first);
            ask_ahead(row, next->from_row, ONCE_COLUMNS);
            strip_read(row, next->decayed_key[d], m);
        }
        if (now)
            strip_write(element(STATE, now->from, d * now->from_row + first),
                        now->to ? (char *)element(STATE, now->to, d * now->to_row + first) : 0,
                        &now->token, d, change, sums);
    }
    UNROLL
    for (int j = 0; j < ONCE_VECTORS; j++) {
        if (now)
            *(vec_f32_any *)(o + first + j * VW) = sums[j];
        if (next)
            *(vec_f32_any *)(next->m + first + j * VW) = m[j];
    }
}

APART void strip_read_first(struct slab *next, int first)
{
    strip_pass(0, next, first, 0);
}

APART void strip_read_write(struct slab *now, struct slab *next, int first, float *o)
{
    strip_pass(now, next, first, o);
}

APART void strip_write_last(struct slab *now, int first, float *o)
{
    strip_pass(now, 0, first, o);
}

INLINE void strips_once(struct slab *now, struct slab *next, float *o)
{
    for (int first = 0; first < BV; first += ONCE_COLUMNS) {
        if (!now)
            strip_read_first(next, first);
        else if (next)
            strip_read_write(now, next, first, o);
        else
            strip_write_last(now, first, o);
    }
}

/* ---- Either ---------------------------------------------------------------------------------- */

/* What is stored, loaded by load_factors() and load_value(), as the passes want it. */
INLINE void slab_open(struct slab *slab, const struct kda_decode_args *args, const struct place *at)
{
    slab->from = slab_of(&args->from, at->from_sequence, 0, at);
    slab->from_row = args->from.row;
    slab->to = store_of(args, at, 0);
    slab->to_row = args->to.row;
    for (int d = 0; d < K; d += VW)
        *(vec_f32_any *)(slab->decayed_key + d) = *(const vec_f32_any *)(slab->token.decay + d) *
                                                  *(const vec_f32_any *)(slab->token.key + d);
    if (!IS_VK) {
        pair_off(slab->token.value, BV);
        return;
    }
    float value[BV];
    __builtin_memcpy(value, slab->token.value, sizeof(value));
    for (int i = 0; i < BV; i++) /* as rows are visited */
        slab->token.value[i] = value[visited(i, BV)];
    pair_off(slab->decayed_key, K);
    pair_off(slab->token.decay, K);
    pair_off(slab->token.key, K);
    pair_off(slab->token.query, K);
}

/* Writes `now`, which has been read, and its o; reads `next`. Either may be NULL. */
INLINE void slabs_once(struct slab *now, struct slab *next, float *o)
{
    if (IS_VK) {
        float visits[BV];
        rows_once(now, next, visits);
        for (int i = 0; now && i < BV; i++)
            o[visited(i, BV)] = visits[i];
        return;
    }
    strips_once(now, next, o);
    if (now)
        undo_pair_off(o, BV);
}
#endif
