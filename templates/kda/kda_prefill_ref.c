/* The obvious reference of kda_prefill: the recurrence in float64, token by token. A unit is a
 * value head of a sequence.
 *
 * What is not finite is expected as NaN. A form in chunks may spread a NaN or Inf of the inputs
 * backwards, so of a chunk of KDA_PREFILL_CHUNK tokens with some outputs are expected from the
 * last such token on. */
#define QUERN_DEF "kda/kda_prefill.def"
#include <quern/family_def.h>

#include <float.h>
#include <math.h>

#include "kda_kinds.h"
#include "kda_prefill.h"
#include "kda_recurrence_ref.h"

static double one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return value;
}

/* Expects `count` values from `first`, NaN where they are not finite; sums of terms of a norm. */
static void expect(struct quern_ref *ref, int index, int64_t first, int64_t count, double *values,
                   double norm)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = fabs(values[i]) <= FLT_MAX ? values[i] : (double)NAN;
    quern_ref_expect_sums(ref, index, first, count, values, norm);
}

static int64_t border(struct quern_ref *ref, const struct values *v, int64_t sequence)
{
    int64_t at = v->varlen ? (int64_t)one(ref, ARRAY_cu_seqlens, sequence) : v->t / v->n * sequence;
    return at < 0 ? 0 : at > v->t ? v->t : at;
}

/* A head's state, [k, v] or [v, k] in memory, to or from [k][v]. */
static void transpose(const struct values *v, const double *from, int is_read, double *to)
{
    for (int64_t d = 0; d < v->k; d++)
        for (int64_t c = 0; c < v->v; c++) {
            int64_t dense = d * v->v + c, stored = v->layout ? c * v->k + d : dense;
            to[is_read ? dense : stored] = from[is_read ? stored : dense];
        }
}

struct inputs {
    double *q, *key, *value, *g, *bias, *row, *scratch;
    int64_t g_count;
};

static struct kda_token read_token(struct quern_ref *ref, int64_t at, int64_t head,
                                   const struct inputs *in)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t row = at * v->hv + head, key_row = at * v->h + head / (v->hv / v->h);
    quern_ref_read(ref, ARRAY_q, key_row * v->k, v->k, in->q);
    quern_ref_read(ref, ARRAY_k, key_row * v->k, v->k, in->key);
    quern_ref_read(ref, ARRAY_v, row * v->v, v->v, in->value);
    quern_ref_read(ref, ARRAY_g, row * in->g_count, in->g_count, in->g);
    if (v->gate && v->dt_bias)
        quern_ref_read(ref, ARRAY_dt_bias, head * in->g_count, in->g_count, in->bias);
    return (struct kda_token){ .q = in->q,
                               .key = in->key,
                               .value = in->value,
                               .g = in->g,
                               .bias = v->gate && v->dt_bias ? in->bias : NULL,
                               .g_count = in->g_count,
                               .A_log = v->gate ? one(ref, ARRAY_A_log, head) : 0,
                               .beta = one(ref, ARRAY_beta, row) };
}

static int is_finite(const struct values *v, const struct kda_token *token)
{
    double sum = token->beta * 0; /* NaN as soon as something is not finite */
    for (int64_t d = 0; d < v->k; d++)
        sum += (token->q[d] + token->key[d]) * 0;
    for (int64_t c = 0; c < v->v; c++)
        sum += token->value[c] * 0;
    for (int64_t d = 0; d < token->g_count; d++) /* -Inf, as a logarithm, forgets all */
        sum += v->gate == KDA_GATE_NONE && token->g[d] < 0 ? 0 : token->g[d] * 0;
    return sum == 0;
}

/* The last token of the chunk that begins at `at` with a NaN or Inf among its inputs, else at. */
static int64_t spread_end(struct quern_ref *ref, int64_t at, int64_t end, int64_t head,
                          const struct inputs *in)
{
    int64_t last = at;
    for (int64_t i = at; i < end && i < at + KDA_PREFILL_CHUNK; i++) {
        struct kda_token token = read_token(ref, i, head, in);
        last = is_finite(values_of(quern_ref_spec(ref)), &token) ? last : i;
    }
    return last;
}

/* Which row of the array of states a sequence begins from and leaves behind; -1: none. */
static int64_t state_row(struct quern_ref *ref, const struct values *v, int64_t sequence)
{
    int64_t slot = v->pool ? (int64_t)one(ref, ARRAY_slots, sequence) : sequence;
    return v->pool && slot >= v->capacity ? -1 : slot;
}

void kda_prefill_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t sequence = unit / v->hv, head = unit % v->hv, size = v->k * v->v;
    const int64_t begin = border(ref, v, sequence), end = border(ref, v, sequence + 1);
    const int64_t slot = state_row(ref, v, sequence), offset = (slot * v->hv + head) * size;
    const struct kda_rule rule = { v->k,
                                   v->v,
                                   (int)v->gate,
                                   (int)v->l2norm,
                                   (int)v->beta_logits,
                                   (int)v->neg_eigval,
                                   isnan(v->scale) ? 1 / sqrt((double)v->k) : (float)v->scale,
                                   (float)v->lower_bound };
    const struct inputs in = { quern_ref_scratch(ref, v->k),
                               quern_ref_scratch(ref, v->k),
                               quern_ref_scratch(ref, v->v),
                               quern_ref_scratch(ref, v->k),
                               quern_ref_scratch(ref, v->k),
                               quern_ref_scratch(ref, v->v),
                               quern_ref_scratch(ref, 3 * v->k + v->v),
                               v->decay ? 1 : v->k };
    double *state = quern_ref_scratch(ref, size), *stored = quern_ref_scratch(ref, size);
    int64_t expected_from = begin;

    if (slot >= 0 && (v->pool || v->initial)) {
        quern_ref_read(ref, v->pool ? ARRAY_states : ARRAY_initial_state, offset, size, stored);
        transpose(v, stored, 1, state);
    }
    quern_ref_expect(ref, ARRAY_o, 0, 0,
                     NULL); /* there may be no token, and no state that is kept */
    for (int64_t at = begin; at < end; at++) {
        if (v->chunk_states && (at - begin) % KDA_PREFILL_CHUNK == 0) {
            int64_t row = begin / KDA_PREFILL_CHUNK + sequence + (at - begin) / KDA_PREFILL_CHUNK;
            transpose(v, state, 0, stored);
            expect(ref, ARRAY_chunk_states, (row * v->hv + head) * size, size, stored, 0);
        }
        if ((at - begin) % KDA_PREFILL_CHUNK == 0)
            expected_from = spread_end(ref, at, end, head, &in);
        struct kda_token token = read_token(ref, at, head, &in);
        double norm = kda_recurrence(&rule, &token, state, in.row, in.scratch);
        if (at >= expected_from)
            expect(ref, ARRAY_o, (at * v->hv + head) * v->v, v->v, in.row, norm);
    }
    transpose(v, state, 0, stored);
    if (slot >= 0 && (v->pool || v->final))
        expect(ref, v->pool ? ARRAY_states : ARRAY_final_state, offset, size, stored, 0);
}
