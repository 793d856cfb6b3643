#include "attention_ref.h"

#include <math.h>
#include <string.h>

/* An element of lse is held to an absolute error: four tolerances of LSE_NORM, which is more than
 * the lse of scores that are not extreme. */
#define LSE_NORM(dtype) ((dtype) == QUERN_F32 ? 4 : 16)

double attention_tolerance(int64_t dtype, int is_lse)
{
    double o = dtype == QUERN_F32 ? 1e-5 : dtype == QUERN_F16 ? 1e-3 : 6e-3;
    double lse = dtype == QUERN_F32 ? 1e-5 : 1e-3;
    return is_lse ? lse / 4 / LSE_NORM(dtype) : o;
}

/* Keys [first, end) are seen. */
static int64_t first_key(const struct attention_unit *u)
{
    int64_t first = u->window ? u->position - u->window + 1 : 0;
    return first < 0 ? 0 : first;
}

static int64_t end_key(const struct attention_unit *u)
{
    int64_t end = u->causal ? u->position + 1 : u->window ? u->position + u->window : u->keys;
    return end > u->keys ? u->keys : end;
}

static double score(const struct attention_unit *u, const double *q, const double *k)
{
    double s = 0;
    for (int64_t c = 0; c < u->d; c++)
        s += q[c] * k[c];
    s *= u->scale;
    return u->softcap > 0 ? u->softcap * tanh(s / u->softcap) : s;
}

/* Scores of `count` keys become weights; a score of -infinity is as good as unseen. Returns the
 * logarithm of the denominator. */
static double softmax(double *p, int64_t count, double sink)
{
    double most = sink, sum;
    if (!count)
        return sink;
    for (int64_t j = 0; j < count; j++)
        most = p[j] > most || isnan(p[j]) ? p[j] : most;
    if (most == -INFINITY) {
        memset(p, 0, (size_t)count * sizeof(*p));
        return most;
    }
    sum = exp(sink - most);
    for (int64_t j = 0; j < count; j++)
        sum += exp(p[j] - most);
    for (int64_t j = 0; j < count; j++)
        p[j] = exp(p[j] - most) / sum;
    return most + log(sum);
}

/* Whether keys [begin, end) have a value that is not finite. */
static int is_spoiled(struct quern_ref *ref, const struct attention_unit *u, int64_t begin,
                      int64_t end)
{
    double *row = quern_ref_scratch(ref, u->dv), sum = 0;
    end = end > u->keys ? u->keys : end;
    for (int64_t j = begin < 0 ? 0 : begin; j < end; j++) {
        u->read(ref, u, 1, j, row);
        for (int64_t c = 0; c < u->dv; c++)
            sum += row[c] * 0;
    }
    return sum != 0;
}

/* The output, from weights p. */
static void expect_output(struct quern_ref *ref, const struct attention_unit *u, int64_t row,
                          const double *p, const double *values, int64_t count)
{
    double *o = quern_ref_scratch(ref, u->dv), terms = 0, weight = 0, spoiled = 0;
    for (int64_t j = 0; j < count; j++)
        weight += p[j];
    for (int64_t e = 0; e < count * u->dv; e++)
        spoiled += values[e] * 0;
    if (weight == 0 && spoiled != 0 && u->sinks >= 0)
        return; /* all scores are -infinity, and the sink's weight is all: 0 times NaN, or 0 */
    for (int64_t j = 0; weight != 0 && j < count; j++) {
        for (int64_t c = 0; c < u->dv; c++) {
            double term = p[j] * values[j * u->dv + c];
            o[c] += term;
            terms += term * term;
        }
    }
    quern_ref_expect_sums(ref, u->o, row * u->dv, u->dv, o, sqrt(terms));
}

void attention_reference_unit(struct quern_ref *ref, const struct attention_unit *u)
{
    const int64_t first = first_key(u), end = end_key(u), count = end > first ? end - first : 0;
    double *q = quern_ref_scratch(ref, u->d), *p = quern_ref_scratch(ref, count);
    double *keys = quern_ref_scratch(ref, count * u->d);
    double *values = quern_ref_scratch(ref, count * u->dv);
    const int is_unsaid = u->is_unsaid || is_spoiled(ref, u, first - ATTENTION_REACH, first) ||
                          is_spoiled(ref, u, end, end + ATTENTION_REACH);
    for (int64_t j = 0; j < count; j++) {
        u->read(ref, u, 0, first + j, keys + j * u->d);
        u->read(ref, u, 1, first + j, values + j * u->dv);
    }
    quern_ref_expect(ref, u->o, u->row * u->dv, 0, NULL);
    for (int64_t head = 0; head < u->heads; head++) {
        double sink = -INFINITY, lse;
        if (u->sinks >= 0)
            quern_ref_read(ref, u->sinks, u->head + head, 1, &sink);
        if (sink == INFINITY)
            continue; /* infinity less infinity, or not: nothing is said */
        quern_ref_read(ref, u->q, (u->row + head) * u->d, u->d, q);
        for (int64_t j = 0; j < count; j++)
            p[j] = score(u, q, keys + j * u->d);
        lse = softmax(p, count, sink);
        if (!is_unsaid && (count || !isnan(sink)))
            expect_output(ref, u, u->row + head, p, values, count);
        if (u->lse >= 0)
            quern_ref_expect_sums(ref, u->lse, u->row + head, 1, &lse, LSE_NORM(u->dtype));
    }
}
