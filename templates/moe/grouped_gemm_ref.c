/* The obvious reference of grouped_gemm, in float64. A unit is a row of d. */
#define QUERN_DEF "moe/grouped_gemm.def"
#include <quern/family_def.h>

#include <math.h>

#include "grouped_gemm.h"

enum { NO_SEGMENT = -2, FEW_COLUMNS = 16 };

static int64_t one(struct quern_ref *ref, int index, int64_t at)
{
    double value;
    quern_ref_read(ref, index, at, 1, &value);
    return (int64_t)value;
}

/* -1: zeros. */
static int64_t expert_of(struct quern_ref *ref, const struct values *v, int64_t unit)
{
    if (v->form == GROUPED_GEMM_MASKED)
        return unit % v->m < one(ref, ARRAY_counts, unit / v->m) ? unit / v->m : NO_SEGMENT;
    if (v->form == GROUPED_GEMM_BLOCKS) {
        int64_t expert = one(ref, ARRAY_expert_ids, unit / v->block);
        expert = expert >= 0 && expert < v->experts ? expert : -1;
        return unit < one(ref, ARRAY_num_rows, 0) ? expert : NO_SEGMENT;
    }
    for (int64_t i = 0; i <= v->experts; i++)
        if (one(ref, ARRAY_offsets, i) > unit)
            return i ? i - 1 : NO_SEGMENT;
    return NO_SEGMENT;
}

static double activate(const struct values *v, double gate, double up)
{
    double limit = grouped_gemm_limit(v->activation, v->limit);
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    if (v->activation == GROUPED_GEMM_SWIGLU_OAI)
        return gate / (1 + exp(-1.702 * gate)) * (up + 1);
    if (v->activation == GROUPED_GEMM_SILU)
        return gate / (1 + exp(-gate)) * up;
    if (v->activation == GROUPED_GEMM_GELU)
        return 0.5 * gate * erfc(-gate * sqrt(0.5)) * up;
    return gate / (1 + exp(-2 * sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
}

/* x . row `row` of b[expert]; *squares: of the terms' squares the sum. */
static double dot(struct quern_ref *ref, int64_t expert, int64_t row, const double *x, double *b,
                  double *squares)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double sum = 0;
    quern_ref_read(ref, ARRAY_b, (expert * v->n * (v->activation ? 2 : 1) + row) * v->k, v->k, b);
    *squares = 0;
    for (int64_t p = 0; p < v->k; p++) {
        sum += x[p] * b[p];
        *squares += x[p] * b[p] * x[p] * b[p];
    }
    return sum;
}

void grouped_gemm_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *x = quern_ref_scratch(ref, v->k), *b = quern_ref_scratch(ref, v->k);
    double *d = quern_ref_scratch(ref, v->n), norm = 0, squares, more;
    int64_t expert = expert_of(ref, v, unit), id = v->gather ? one(ref, ARRAY_row_ids, unit) : 0;
    int64_t row = !v->gather                                  ? unit
                  : id >= 0 && id / v->share < v->source_rows ? id / v->share
                                                              : -1;
    if (row >= 0)
        quern_ref_read(ref, ARRAY_a, row * v->k, v->k, x);
    for (int64_t j = 0; expert >= 0 && j < v->n; j++) {
        d[j] = dot(ref, expert, j, x, b, &squares);
        if (v->activation) {
            double up = dot(ref, expert, v->n + j, x, b, &more), product = activate(v, d[j], up);
            squares = squares * up * up + more * d[j] * d[j];
            d[j] = product;
        }
        norm += v->n < FEW_COLUMNS ? squares + d[j] * d[j] : d[j] * d[j];
    }
    quern_ref_expect_sums(ref, ARRAY_d, unit * v->n, expert == NO_SEGMENT ? 0 : v->n, d,
                          sqrt(norm));
}
