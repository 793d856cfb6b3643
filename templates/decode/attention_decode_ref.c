/* The obvious reference of attention_decode, in float64. A unit is a query head of a sequence. */
#define QUERN_DEF "decode/attention_decode.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_decode.h"

static double one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return value;
}

/* Appends the scores and the rows of the cache of a span of tokens; returns how many there are. */
static int64_t append(struct quern_ref *ref, int table, int64_t first, struct decode_span span,
                      int64_t head, const double *q, double *scores, double *rows)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const double factor = v->kv_scale ? one(ref, ARRAY_k_scale, v->kv_scale == 2 ? head : 0) : 1;
    const double scale = isnan(v->scale) ? 1 / sqrt((double)v->d) : (float)v->scale;
    double *k = quern_ref_scratch(ref, v->d);
    for (int64_t i = span.begin; i < span.end; i++) {
        int64_t page = (int64_t)one(ref, table, first + i / v->page);
        double score = 0;
        int64_t row = (page * v->page + i % v->page) * v->hkv + head;
        quern_ref_read(ref, ARRAY_k_cache, row * v->d, v->d, k);
        for (int64_t c = 0; c < v->d; c++)
            score += q[c] * k[c];
        score *= scale * factor;
        score = v->softcap > 0 ? (float)v->softcap * tanh(score / (float)v->softcap) : score;
        *scores++ = score;
        *rows++ = (double)row;
    }
    return span.end - span.begin;
}

void attention_decode_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t s = unit / v->hq, head = unit % v->hq / (v->hq / v->hkv);
    const struct decode_seen seen = attention_decode_seen(
        quern_ref_spec(ref), v->shared_pages ? (int64_t)one(ref, ARRAY_shared_len, 0) : 0,
        (int64_t)one(ref, ARRAY_seq_lens, s));
    const int64_t most = seen.shared.end + seen.own.end;
    double *q = quern_ref_scratch(ref, v->d), *o = quern_ref_scratch(ref, v->dv);
    double *scores = quern_ref_scratch(ref, most), *rows = quern_ref_scratch(ref, most);
    double *value = quern_ref_scratch(ref, v->dv), max = -INFINITY, sum = 0, terms = 0, lse;

    quern_ref_read(ref, ARRAY_q, unit * v->d, v->d, q);
    int64_t n = append(ref, ARRAY_shared_table, 0, seen.shared, head, q, scores, rows);
    n += append(ref, ARRAY_page_table, s * v->max_pages, seen.own, head, q, scores + n, rows + n);
    double sink = v->sinks ? one(ref, ARRAY_sinks, unit % v->hq) : -INFINITY;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, scores[i]);
    max = fmax(max, sink) == -INFINITY ? 0 : fmax(max, sink);
    for (int64_t i = 0; i < n; i++)
        sum += exp(scores[i] - max);
    sum += exp(sink - max);
    lse = n ? max + log(sum) : sink;

    double factor = v->kv_scale ? one(ref, ARRAY_v_scale, v->kv_scale == 2 ? head : 0) : 1;
    for (int64_t i = 0; i < n; i++) {
        double weight = exp(scores[i] - max) / sum;
        quern_ref_read(ref, ARRAY_v_cache, (int64_t)rows[i] * v->dv, v->dv, value);
        for (int64_t c = 0; c < v->dv; c++) {
            double term = weight * value[c];
            o[c] += term;
            terms += factor * term * (factor * term);
        }
    }
    for (int64_t c = 0; c < v->dv && n; c++)
        o[c] *= factor;
    /* Scores that are all -infinity: o means nothing. */
    quern_ref_expect_sums(ref, ARRAY_o, unit * v->dv, n && sum == 0 ? 0 : v->dv, o, sqrt(terms));
    if (v->lse)
        quern_ref_expect_sums(ref, ARRAY_lse, unit, 1, &lse, ATTENTION_DECODE_LSE);
}
