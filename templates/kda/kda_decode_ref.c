/* The obvious reference of kda_decode: the recurrence in float64, token by token. A unit is a value
 * head of a sequence. */
#define QUERN_DEF "kda/kda_decode.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_decode.h"
#include "kda_recurrence_ref.h"

static double one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return value;
}

static struct kda_token token_at(struct quern_ref *ref, const struct values *v, int64_t token,
                                 int64_t head)
{
    int64_t row = token * v->hv + head, key_row = token * v->h + head / (v->hv / v->h);
    int64_t channels = v->decay ? 1 : v->k;
    int has_bias = v->gate && v->dt_bias;
    return (struct kda_token){
        .q = kda_take(ref, ARRAY_q, key_row * v->k, v->k),
        .key = kda_take(ref, ARRAY_k, key_row * v->k, v->k),
        .value = kda_take(ref, ARRAY_v, row * v->v, v->v),
        .g = kda_take(ref, ARRAY_g, row * channels, channels),
        .bias = has_bias ? kda_take(ref, ARRAY_dt_bias, head * channels, channels) : NULL,
        .g_count = channels,
        .A_log = v->gate ? one(ref, ARRAY_A_log, head) : 0,
        .beta = one(ref, ARRAY_beta, row),
    };
}

/* The state before the call, [k][v]. */
static double *state_before(struct quern_ref *ref, const struct values *v, int64_t index,
                            int64_t head)
{
    int64_t size = v->k * v->v, first = (index * v->hv + head) * size;
    if (!v->pool && !v->initial)
        return quern_ref_scratch(ref, size);
    double *state = kda_take(ref, v->pool ? ARRAY_states : ARRAY_initial_state, first, size);
    return v->layout ? kda_transposed(ref, state, v->v, v->k) : state;
}

static void expect_state(struct quern_ref *ref, const struct values *v, int index, int64_t at,
                         const double *state)
{
    int64_t size = v->k * v->v;
    quern_ref_expect(ref, index, at * size, size,
                     v->layout ? kda_transposed(ref, state, v->k, v->v) : state);
}

void kda_decode_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t sequence = unit / v->hv, head = unit % v->hv, size = v->k * v->v;
    const int64_t index = v->pool ? (int64_t)one(ref, ARRAY_slots, sequence) : sequence;
    const int is_used = !v->pool || (index >= 0 && index < v->capacity);
    const struct kda_rule rule = { v->k,
                                   v->v,
                                   (int)v->gate,
                                   (int)v->l2norm,
                                   (int)v->beta_logits,
                                   (int)v->neg_eigval,
                                   isnan(v->scale) ? 1 / sqrt((double)v->k) : (float)v->scale,
                                   (float)v->lower_bound };
    double *before = is_used ? state_before(ref, v, index, head) : NULL;
    double *after[KDA_DECODE_STEPS], *scratch = quern_ref_scratch(ref, 3 * v->k + v->v);

    for (int64_t i = 0; i < v->steps; i++) {
        int64_t token = sequence * v->steps + i, parent = i - 1;
        double *out = quern_ref_scratch(ref, v->v);
        if (is_used) {
            struct kda_token inputs = token_at(ref, v, token, head);
            if (v->tree)
                parent = (int64_t)one(ref, ARRAY_parents, token);
            after[i] = quern_ref_scratch(ref, size);
            memcpy(after[i], parent >= 0 && parent < i ? after[parent] : before,
                   (size_t)size * sizeof(double));
            kda_recurrence(&rule, &inputs, after[i], out, scratch);
        }
        quern_ref_expect(ref, ARRAY_o, (token * v->hv + head) * v->v, v->v, out);
        if (is_used && v->save)
            expect_state(ref, v, ARRAY_step_states, token * v->hv + head, after[i]);
    }
    if (is_used && !v->save && (v->pool || v->final))
        expect_state(ref, v, v->pool ? ARRAY_states : ARRAY_final_state, index * v->hv + head,
                     after[v->steps - 1]);
}
