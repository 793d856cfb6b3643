/* The obvious reference of kda_gate_cumsum, in float64: a unit is a slot for a chunk, as many as
 * there could be; the chunks fill the first ones. */
#define QUERN_DEF "kda/kda_gate_cumsum.def"
#include <quern/family_def.h>

#include <math.h>

#include "kda_gate_cumsum.h"
#include "kda_kinds.h"

static double gate_of(const struct values *v, double x, double rate)
{
    if (v->gate == KDA_GATE_SOFTPLUS)
        return -rate * (x > 20 ? x : log1p(exp(x)));
    return v->gate == KDA_GATE_BOUNDED ? (float)v->lower_bound / (1 + exp(-rate * x)) : x;
}

/* The tokens of chunk `unit`: none if there are fewer chunks. */
static void find_chunk(struct quern_ref *ref, const struct values *v, int64_t unit, int64_t *first,
                       int64_t *count)
{
    double *begin = quern_ref_scratch(ref, v->n + 1);
    int64_t chunk = INT64_C(16) << v->chunk;
    for (int64_t s = 0; s <= v->n; s++)
        begin[s] = (double)(s * (v->t / (v->n ? v->n : 1)));
    if (v->varlen)
        quern_ref_read(ref, ARRAY_cu_seqlens, 0, v->n + 1, begin);
    for (int64_t s = 0; s <= v->n; s++)
        begin[s] = fmin(fmax(begin[s], 0), (double)v->t);
    *count = 0;
    for (int64_t s = 0; s < v->n; s++) {
        int64_t length = (int64_t)fmax(begin[s + 1] - begin[s], 0);
        int64_t chunks = (length + chunk - 1) / chunk;
        if (unit < chunks) {
            *first = (int64_t)begin[s] + unit * chunk;
            *count = length - unit * chunk < chunk ? length - unit * chunk : chunk;
            return;
        }
        unit -= chunks;
    }
}

void kda_gate_cumsum_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t k = v->decay == KDA_DECAY_SCALAR ? 1 : v->k, width = v->hv * k, first, count;
    double *x = quern_ref_scratch(ref, width), *sum = quern_ref_scratch(ref, width);
    double *bias = quern_ref_scratch(ref, width), *A_log = quern_ref_scratch(ref, v->hv);

    if (v->gate)
        quern_ref_read(ref, ARRAY_A_log, 0, v->hv, A_log);
    if (v->gate && v->dt_bias)
        quern_ref_read(ref, ARRAY_dt_bias, 0, width, bias);
    find_chunk(ref, v, unit, &first, &count);
    quern_ref_expect(ref, ARRAY_out, 0, 0, NULL); /* there may be no token in any sequence */
    for (int64_t i = first; i < first + count; i++) {
        quern_ref_read(ref, ARRAY_g, i * width, width, x);
        for (int64_t c = 0; c < width; c++)
            sum[c] += gate_of(v, x[c] + bias[c], exp(A_log[c / k])) / M_LN2;
        quern_ref_expect(ref, ARRAY_out, i * width, width, sum);
    }
}
