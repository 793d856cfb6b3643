/* The obvious reference of moe_sum, moe_sum_reduce and apply_shuffle_mul_sum. A unit is a token. */
#include <math.h>

#include "moe_combine.h"

/* Row j of the token, or of the array that perm[token, j] names; -1: none. */
static int64_t row_of(struct quern_ref *ref, const struct moe_combine_spec *s, int64_t slot)
{
    double row = (double)slot;
    if (s->perm < 0)
        return slot;
    quern_ref_read(ref, s->perm, slot, 1, &row);
    return row >= 0 && row < (double)s->rows ? (int64_t)row : -1;
}

void moe_combine_reference(struct quern_ref *ref, int64_t unit)
{
    const struct quern_spec *spec = quern_ref_spec(ref);
    const struct moe_combine_spec s = moe_combine_spec(spec);
    double *row = quern_ref_scratch(ref, s.width), *out = quern_ref_scratch(ref, s.width);
    double squares = 0, factor = 1;
    for (int64_t slot = unit * s.topk; slot < (unit + 1) * s.topk; slot++) {
        const int64_t from = row_of(ref, &s, slot);
        if (from < 0)
            continue;
        if (s.factors >= 0)
            quern_ref_read(ref, s.factors, slot, 1, &factor);
        quern_ref_read(ref, MOE_COMBINE_IN, from * s.width, s.width, row);
        for (int64_t i = 0; i < s.width; i++) {
            const double term = (double)(float)s.scaling * factor * row[i];
            out[i] += term;
            squares += term * term;
        }
    }
    quern_ref_expect_sums(ref, moe_combine_out(spec), unit * s.width, s.width, out, sqrt(squares));
}
