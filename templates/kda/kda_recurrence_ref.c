/* The gated delta rule, a token at a time in float64.
 *
 *     S = e^g S                    g of a channel scales a row of the state, k rows of v
 *     d = b (value - S^T key)      what the key does not yet give of the value
 *     S = S + key d^T
 *     o = scale S^T query                                                                   */
#include "kda_recurrence_ref.h"

#include <math.h>

#include "kda_kinds.h"

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* The logarithm of a channel's decay. */
static double gate(const struct kda_rule *rule, const struct kda_token *token, int64_t channel)
{
    int64_t at = token->g_count == 1 ? 0 : channel;
    double y = token->g[at] + (token->bias ? token->bias[at] : 0), rate = exp(token->A_log);
    if (rule->gate == KDA_GATE_SOFTPLUS)
        return -rate * (y > 20 ? y : log1p(exp(y)));
    return rule->gate == KDA_GATE_BOUNDED ? rule->lower_bound * sigmoid(rate * y) : token->g[at];
}

static void normalise(double *x, const double *from, int64_t count, int is_wanted)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += from[i] * from[i];
    for (int64_t i = 0; i < count; i++)
        x[i] = is_wanted ? from[i] / sqrt(sum + 1e-6) : from[i];
}

/* A row of the state times factor, added to out. */
static void read_row(const double *row, double factor, int64_t v, double *out)
{
    for (int64_t c = 0; c < v; c++)
        out[c] += row[c] * factor;
}

static double squares(const double *row, int64_t count)
{
    double sum = 0;
    for (int64_t c = 0; c < count; c++)
        sum += row[c] * row[c];
    return sum;
}

double kda_recurrence(const struct kda_rule *rule, const struct kda_token *token, double *state,
                      double *out, double *scratch)
{
    const int64_t k = rule->k, v = rule->v;
    double *query = scratch, *key = query + k, *decay = key + k, *change = decay + k;
    double terms = 0, strength = rule->beta_logits ? sigmoid(token->beta) : token->beta;
    normalise(query, token->q, k, rule->l2norm);
    normalise(key, token->key, k, rule->l2norm);
    for (int64_t d = 0; d < k; d++)
        decay[d] = exp(gate(rule, token, d));

    for (int64_t c = 0; c < v; c++)
        change[c] = out[c] = 0;
    for (int64_t d = 0; d < k; d++) {
        for (int64_t c = 0; c < v; c++)
            state[d * v + c] *= decay[d];
        read_row(state + d * v, key[d], v, change);
    }
    for (int64_t c = 0; c < v; c++)
        change[c] = (rule->neg_eigval ? 2 : 1) * strength * (token->value[c] - change[c]);
    for (int64_t d = 0; d < k; d++) {
        read_row(change, key[d], v, state + d * v);
        read_row(state + d * v, query[d], v, out);
        terms += query[d] * query[d] * squares(state + d * v, v);
    }
    for (int64_t c = 0; c < v; c++)
        out[c] *= rule->scale;
    return fabs(rule->scale) * sqrt(terms);
}

/* ---- What references read and round with ----------------------------------------------------- */

double *kda_take(struct quern_ref *ref, int index, int64_t first, int64_t count)
{
    double *values = quern_ref_scratch(ref, count);
    quern_ref_read(ref, index, first, count, values);
    return values;
}

double *kda_transposed(struct quern_ref *ref, const double *from, int64_t rows, int64_t columns)
{
    double *to = quern_ref_scratch(ref, rows * columns);
    for (int64_t i = 0; i < rows * columns; i++)
        to[i % columns * rows + i / columns] = from[i];
    return to;
}

double kda_rounded(double value, int dtype)
{
    if (dtype == QUERN_F32 || value == 0 || !isfinite(value))
        return (float)value;
    int bits = dtype == QUERN_BF16 ? 8 : 11, least = dtype == QUERN_BF16 ? -126 : -14;
    int exponent = ilogb(value) > least ? ilogb(value) : least;
    double unit = ldexp(1, exponent + 1 - bits);
    return nearbyint(value / unit) * unit;
}
