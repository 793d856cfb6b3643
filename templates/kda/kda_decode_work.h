/* What kda_decode_cpu.c and kda_step_cpu.c do with a slab of a state, BV columns of v of one value
 * head, and the STEPS tokens that it goes through; kda_decode_cpu.c says how.
 *
 *     load_factors()      what a token multiplies the state with, and its beta, in f32
 *     load_value()        its value in the slab's columns
 *     slab_advance()      the slab from memory, through the tokens, to memory */
#ifndef KDA_DECODE_WORK_H
#define KDA_DECODE_WORK_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "common/cpu/transpose.h"
#include "kda_decode_args.h"
#include "kda_gate.h"

#ifndef STEPS
#define STEPS 1
#endif
#ifndef H
#define H 1
#endif
#ifndef HV
#define HV 1
#endif
#ifndef K
#define K 128
#endif
#ifndef V
#define V 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef STATE
#define STATE DT_F32
#endif
#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef BETA_DTYPE
#define BETA_DTYPE DT_F32
#endif
#ifndef GATE
#define GATE KDA_GATE_NONE
#endif
#ifndef IS_SCALAR
#define IS_SCALAR 0
#endif
#ifndef L2NORM
#define L2NORM 0
#endif
#ifndef BETA_LOGITS
#define BETA_LOGITS 0
#endif
#ifndef NEG_EIGVAL
#define NEG_EIGVAL 0
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef IS_VK
#define IS_VK 0
#endif
#ifndef POOL
#define POOL 0
#endif
#ifndef HAS_FROM
#define HAS_FROM 0
#endif
#ifndef HAS_TO
#define HAS_TO 0
#endif
#ifndef SAVE
#define SAVE 0
#endif
#ifndef TREE
#define TREE 0
#endif
#ifndef BV
#define BV 64
#endif

#define ROUNDS_STATE (TREE && STATE != DT_F32) /* to what a child would read */

struct token {
    float decay[K], key[K], query[K], value[BV];
    float beta;
};

/* What a block works on. */
struct place {
    int64_t sequence, from_sequence, to_sequence;
    int64_t head, column; /* column: of v, the first */
};

/* ---- 1. Activations -------------------------------------------------------------------------- */

INLINE const void *row_of(const int dtype, const struct kda_rows *rows, int64_t sequence,
                          int64_t token, int64_t head)
{
    return element(dtype, rows->data,
                   sequence * rows->sequence + token * rows->token + head * rows->head);
}

/* K elements, of length 1 with L2NORM, times `factor`. */
APART void load_unit(const void *from, float factor, float *to)
{
    vec_f32 squares = splat_f32(0);
    for (int d = 0; d < K; d += VW) {
        vec_f32 x = load_as_f32(DTYPE, element(DTYPE, from, d));
        squares += x * x;
        *(vec_f32_any *)(to + d) = x;
    }
    if (L2NORM)
        factor *= rsqrt_f32(splat_f32(sum_lanes(squares) + 1e-6f))[0];
    for (int d = 0; d < K; d += VW)
        *(vec_f32_any *)(to + d) *= factor;
}

APART void load_decay(const struct kda_decode_args *args, const void *g, int64_t head, float *to)
{
    float rate = GATE ? exp_f32(splat_f32(args->A_log[head]))[0] : 1;
    const float *bias = HAS_BIAS ? args->dt_bias + head * args->dt_bias_head : 0;
    for (int d = 0; d < K; d += VW) {
        vec_f32 x = IS_SCALAR ? splat_f32(load_one_as_f32(G_DTYPE, g))
                              : load_as_f32(G_DTYPE, element(G_DTYPE, g, d));
        vec_f32 b = !HAS_BIAS   ? splat_f32(0)
                    : IS_SCALAR ? splat_f32(bias[0])
                                : *(const vec_f32_any *)(bias + d);
        *(vec_f32_any *)(to + d) = exp_f32(kda_gate(GATE, x, b, rate, args->lower_bound));
    }
}

APART void load_factors(const struct kda_decode_args *args, const struct place *at, int64_t token,
                        struct token *to)
{
    const int64_t sequence = at->sequence, head = at->head;
    load_unit(row_of(DTYPE, &args->q, sequence, token, head / (HV / H)), args->scale, to->query);
    load_unit(row_of(DTYPE, &args->k, sequence, token, head / (HV / H)), 1, to->key);
    load_decay(args, row_of(G_DTYPE, &args->g, sequence, token, head), head, to->decay);
    float beta =
        load_one_as_f32(BETA_DTYPE, row_of(BETA_DTYPE, &args->beta, sequence, token, head));
    if (BETA_LOGITS)
        beta = sigmoid_f32(splat_f32(beta))[0];
    to->beta = NEG_EIGVAL ? 2 * beta : beta;
}

INLINE void load_value(const struct kda_decode_args *args, const struct place *at, int64_t token,
                       struct token *to)
{
    const void *value = row_of(DTYPE, &args->v, at->sequence, token, at->head);
    for (int c = 0; c < BV; c += VW)
        *(vec_f32_any *)(to->value + c) = load_as_f32(DTYPE, element(DTYPE, value, at->column + c));
}

/* ---- Where states are ------------------------------------------------------------------------ */

/* The slab's first element. */
INLINE char *slab_of(const struct kda_states *states, int64_t sequence, int64_t token,
                     const struct place *at)
{
    int64_t offset = sequence * states->sequence + token * states->token + at->head * states->head;
    return (char *)element(STATE, states->data,
                           offset + (IS_VK ? at->column * states->row : at->column));
}

/* Where a token's state begins: at what the token before left behind, at zeros, or in memory. */
enum origin { BEFORE, ZEROS, MEMORY };
struct start {
    enum origin origin;
    const char *from;
    int64_t row;
};

INLINE struct start start_of(const struct kda_decode_args *args, const struct place *at, int token)
{
    int parent = token - 1;
    if (TREE && token > 0) {
        parent = args->parents[at->sequence * args->parents_sequence + token];
        if (parent >= 0 && parent < token - 1)
            return (struct start){ MEMORY, slab_of(&args->to, at->to_sequence, parent, at),
                                   args->to.row };
        if (parent >= token)
            parent = -1;
    }
    if (parent >= 0)
        return (struct start){ .origin = BEFORE };
    if (!HAS_FROM)
        return (struct start){ .origin = ZEROS };
    return (struct start){ MEMORY, slab_of(&args->from, at->from_sequence, 0, at), args->from.row };
}

/* Where the token's slab is stored; NULL: nowhere. */
INLINE char *store_of(const struct kda_decode_args *args, const struct place *at, int token)
{
    if (!HAS_TO || (!SAVE && token < STEPS - 1))
        return 0;
    return slab_of(&args->to, at->to_sequence, token, at);
}

/* VW elements of a state: from memory, or from the copy. */
INLINE vec_f32 load_state(enum origin origin, const char *from, int64_t index, const float *copy)
{
    return origin == MEMORY   ? load_as_f32(STATE, element(STATE, from, index))
           : origin == BEFORE ? *(const vec_f32_any *)copy
                              : splat_f32(0);
}

/* To memory, and what a child would read of it to the copy. */
INLINE void store_state(char *to, int64_t index, vec_f32 x, float *copy)
{
    void *at = (void *)element(STATE, to, index);
    if (to)
        store_from_f32(STATE, at, x);
    if (STEPS > 1)
        *(vec_f32_any *)copy = to && ROUNDS_STATE ? load_as_f32(STATE, at) : x;
}

/* ---- 2. [v, k]: a row is a column of S; VW of them at a time --------------------------------- */

/* Lane i of the result: the sum of v[i]'s lanes. A round sums over the top bit of the lane, which
 * the top bit of the row replaces at the bottom. */
INLINE vec_f32 sum_lanes_of_each(vec_f32 v[VW])
{
    UNROLL
    for (int half = VW / 2; half > 0; half /= 2) {
        UNROLL
        for (int i = 0; i < half; i++)
            v[i] = INTERLEAVE_LOW(v[i], v[i + half]) + INTERLEAVE_HIGH(v[i], v[i + half]);
    }
    return v[0];
}

/* Decays the rows into the copy and reads the key. */
INLINE vec_f32 rows_decay(enum origin origin, const char *from, int64_t from_row, float (*copy)[K],
                          const struct token *token)
{
    vec_f32 m[VW];
    UNROLL
    for (int r = 0; r < VW; r++) {
        vec_f32 sums[2] = { splat_f32(0), splat_f32(0) };
        for (int d = 0; d < K; d += 2 * VW) {
            UNROLL
            for (int j = 0; j < 2; j++) {
                const int at = d + j * VW;
                vec_f32 x = load_state(origin, from, r * from_row + at, copy[r] + at);
                x *= *(const vec_f32_any *)(token->decay + at);
                sums[j] += x * *(const vec_f32_any *)(token->key + at);
                *(vec_f32_any *)(copy[r] + at) = x;
            }
        }
        m[r] = sums[0] + sums[1];
    }
    return sum_lanes_of_each(m);
}

/* Updates them and reads the query. */
INLINE vec_f32 rows_update(char *to, int64_t to_row, float (*copy)[K], const struct token *token,
                           const float *change)
{
    vec_f32 o[VW];
    UNROLL
    for (int r = 0; r < VW; r++) {
        vec_f32 sums[2] = { splat_f32(0), splat_f32(0) };
        for (int d = 0; d < K; d += 2 * VW) {
            UNROLL
            for (int j = 0; j < 2; j++) {
                const int at = d + j * VW;
                vec_f32 x = *(const vec_f32_any *)(copy[r] + at);
                x += *(const vec_f32_any *)(token->key + at) * change[r];
                sums[j] += x * *(const vec_f32_any *)(token->query + at);
                store_state(to, r * to_row + at, x, copy[r] + at);
            }
        }
        o[r] = sums[0] + sums[1];
    }
    return sum_lanes_of_each(o);
}

APART void rows_step(const struct start *start, char *to, int64_t to_row, int first,
                     float (*copy)[K], const struct token *token, float *o)
{
    const char *from = element(STATE, start->from, first * start->row);
    const int64_t from_row = start->row;
    float change[VW];
    vec_f32 m = start->origin == MEMORY  ? rows_decay(MEMORY, from, from_row, copy, token)
                : start->origin == ZEROS ? rows_decay(ZEROS, 0, 0, copy, token)
                                         : rows_decay(BEFORE, 0, 0, copy, token);
    *(vec_f32_any *)change = token->beta * (*(const vec_f32_any *)(token->value + first) - m);
    *(vec_f32_any *)(o + first) =
        to ? rows_update((char *)element(STATE, to, first * to_row), to_row, copy, token, change)
           : rows_update(0, 0, copy, token, change);
}

APART void rows_advance(const struct kda_decode_args *args, const struct place *at,
                        const struct token *tokens, float (*o)[BV])
{
    for (int first = 0; first < BV; first += VW) {
        float copy[VW][K];
        for (int t = 0; t < STEPS; t++) {
            struct start start = start_of(args, at, t);
            rows_step(&start, store_of(args, at, t), args->to.row, first, copy, &tokens[t], o[t]);
        }
    }
}

/* ---- 2. [k, v]: vectors along v -------------------------------------------------------------- */

#define STRIP (BV < 4 * VW ? BV : 4 * VW) /* columns whose sums are in registers */
#define SV (STRIP / VW)

/* Decays the strip into the copy, at copy[0], and reads the key. */
INLINE void strip_decay(enum origin origin, const char *from, int64_t from_row, float *copy,
                        const struct token *token, vec_f32 *m)
{
    for (int d = 0; d < K; d++) {
        UNROLL
        for (int j = 0; j < SV; j++) {
            vec_f32 x = load_state(origin, from, d * from_row + j * VW, copy + d * BV + j * VW);
            x *= token->decay[d];
            m[j] += x * token->key[d];
            *(vec_f32_any *)(copy + d * BV + j * VW) = x;
        }
    }
}

/* Updates it and reads the query; asks for what the next strip begins with, which is memory's only
 * work meanwhile. */
INLINE void strip_update(char *to, int64_t to_row, const char *next, int64_t next_row, float *copy,
                         const struct token *token, const vec_f32 *change, vec_f32 *o)
{
    for (int d = 0; d < K; d++) {
        for (int i = 0; next && i < STRIP * DT_SIZE(STATE); i += 64)
            __builtin_prefetch(next + d * next_row * DT_SIZE(STATE) + i);
        UNROLL
        for (int j = 0; j < SV; j++) {
            vec_f32 x = *(const vec_f32_any *)(copy + d * BV + j * VW);
            x += change[j] * token->key[d];
            o[j] += x * token->query[d];
            store_state(to, d * to_row + j * VW, x, copy + d * BV + j * VW);
        }
    }
}

/* Where the strip after the one at column `first` begins in memory: to the right, or, past the
 * slab's last, at `after`. */
INLINE const char *strip_after(const struct start *start, int first, const char *after)
{
    if (start->origin != MEMORY)
        return 0;
    return first + STRIP < BV ? element(STATE, start->from, first + STRIP) : after;
}

APART void strip_step(const struct start *start, const char *next, char *to, int64_t to_row,
                      float *copy, const struct token *token, int first, float *o)
{
    const char *from = element(STATE, start->from, first);
    const int64_t from_row = start->row;
    vec_f32 m[SV], sums[SV];
    UNROLL
    for (int j = 0; j < SV; j++)
        m[j] = sums[j] = splat_f32(0);
    if (start->origin == MEMORY)
        strip_decay(MEMORY, from, from_row, copy + first, token, m);
    else if (start->origin == ZEROS)
        strip_decay(ZEROS, 0, 0, copy + first, token, m);
    else
        strip_decay(BEFORE, 0, 0, copy + first, token, m);
    UNROLL
    for (int j = 0; j < SV; j++)
        m[j] = token->beta * (*(const vec_f32_any *)(token->value + first + j * VW) - m[j]);
    if (to)
        strip_update((char *)element(STATE, to, first), to_row, next, from_row, copy + first, token,
                     m, sums);
    else
        strip_update(0, 0, next, from_row, copy + first, token, m, sums);
    UNROLL
    for (int j = 0; j < SV; j++)
        *(vec_f32_any *)(o + first + j * VW) = sums[j];
}

APART void strips_advance(const struct kda_decode_args *args, const struct place *at,
                          const struct token *tokens, const char *after, float (*o)[BV])
{
    float copy[K * BV];
    for (int t = 0; t < STEPS; t++) {
        struct start start = start_of(args, at, t);
        char *to = store_of(args, at, t);
        for (int first = 0; first < BV; first += STRIP)
            strip_step(&start, strip_after(&start, first, after), to, args->to.row, copy,
                       &tokens[t], first, o[t]);
    }
}

#include "kda_decode_once.h"

/* ---- 2. Either ------------------------------------------------------------------------------- */

/* after: the first element of a slab that this thread is likely to read next, with rows as far
 * apart; NULL: not known. */
INLINE void slab_advance(const struct kda_decode_args *args, const struct place *at,
                         const struct token *tokens, const char *after, float (*o)[BV])
{
    if (IS_VK)
        rows_advance(args, at, tokens, o);
    else
        strips_advance(args, at, tokens, after, o);
}
#endif
