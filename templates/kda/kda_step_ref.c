/* The obvious reference of kda_step in float64: filter, recurrence, norm, with the filter's and
 * the recurrence's results rounded to dtype. A unit is a value head of a sequence. */
#define QUERN_DEF "kda/kda_step.def"
#include <quern/family_def.h>

#include <math.h>

#include "kda_norm_args.h"
#include "kda_recurrence_ref.h"
#include "kda_step.h"

/* The filter of `count` channels from `first` on, whose state moves on; is_first: its first use. */
static double *convolve(struct quern_ref *ref, const struct values *v, int64_t sequence,
                        int64_t slot, int64_t first, int64_t count, int is_first)
{
    const int64_t d = 2 * v->h * v->k + v->hv * v->v, rows = v->w - 1;
    double *out = v->bias ? kda_take(ref, ARRAY_bias, first, count) : quern_ref_scratch(ref, count);
    double *weight = kda_take(ref, ARRAY_weight, first * v->w, count * v->w);
    for (int64_t j = 0; j < v->w; j++) {
        double *row = j < rows
                          ? kda_take(ref, ARRAY_conv_states, (slot * rows + j) * d + first, count)
                          : kda_take(ref, ARRAY_x, sequence * d + first, count);
        for (int64_t c = 0; c < count; c++)
            out[c] += weight[c * v->w + j] * row[c];
        if (is_first && j > 0)
            quern_ref_expect(ref, ARRAY_conv_states, (slot * rows + j - 1) * d + first, count, row);
    }
    for (int64_t c = 0; c < count; c++)
        out[c] = kda_rounded(v->act ? out[c] / (1 + exp(-out[c])) : out[c], (int)v->dtype);
    return out;
}

static void normalise(struct quern_ref *ref, const struct values *v, int64_t row, double *o)
{
    double *z = kda_take(ref, ARRAY_z, row * v->v, v->v), sum = 0;
    double *weight = kda_take(ref, ARRAY_norm_weight, 0, v->v);
    for (int64_t c = 0; c < v->v; c++)
        sum += o[c] * o[c];
    for (int64_t c = 0; c < v->v; c++) {
        double gate = (v->norm - 1 == KDA_NORM_SILU ? z[c] : 1) / (1 + exp(-z[c]));
        o[c] *= weight[c] * gate / sqrt(sum / (double)v->v + (isnan(v->eps) ? 1e-5f : v->eps));
    }
}

void kda_step_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t sequence = unit / v->hv, head = unit % v->hv, key_head = head / (v->hv / v->h);
    const int64_t size = v->k * v->v, channels = v->decay ? 1 : v->k;
    const int64_t slot = (int64_t)*kda_take(ref, ARRAY_slots, sequence, 1);
    const int is_first = head % (v->hv / v->h) == 0; /* of those that share q and k */
    double *o = quern_ref_scratch(ref, v->v);
    if (slot >= 0 && slot < v->capacity) {
        struct kda_rule rule = { v->k,
                                 v->v,
                                 (int)v->gate,
                                 (int)v->l2norm,
                                 (int)v->beta_logits,
                                 (int)v->neg_eigval,
                                 isnan(v->scale) ? 1 / sqrt((double)v->k) : (float)v->scale,
                                 (float)v->lower_bound };
        struct kda_token token = {
            .q = convolve(ref, v, sequence, slot, key_head * v->k, v->k, is_first),
            .key = convolve(ref, v, sequence, slot, (v->h + key_head) * v->k, v->k, is_first),
            .value = convolve(ref, v, sequence, slot, 2 * v->h * v->k + head * v->v, v->v, 1),
            .g = kda_take(ref, ARRAY_g, unit * channels, channels),
            .bias =
                v->gate && v->dt_bias ? kda_take(ref, ARRAY_dt_bias, head * channels, channels) : 0,
            .g_count = channels,
            .A_log = v->gate ? *kda_take(ref, ARRAY_A_log, head, 1) : 0,
            .beta = *kda_take(ref, ARRAY_beta, unit, 1),
        };
        double *state = kda_take(ref, ARRAY_states, (slot * v->hv + head) * size, size);
        state = v->layout ? kda_transposed(ref, state, v->v, v->k) : state;
        kda_recurrence(&rule, &token, state, o, quern_ref_scratch(ref, 3 * v->k + v->v));
        state = v->layout ? kda_transposed(ref, state, v->k, v->v) : state;
        quern_ref_expect(ref, ARRAY_states, (slot * v->hv + head) * size, size, state);
        for (int64_t c = 0; c < v->v; c++)
            o[c] = v->norm ? kda_rounded(o[c], (int)v->dtype) : o[c];
        if (v->norm)
            normalise(ref, v, unit, o);
    }
    quern_ref_expect(ref, ARRAY_o, unit * v->v, v->v, o);
}
