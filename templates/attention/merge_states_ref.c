/* The obvious reference of merge_state and merge_state_v2, in float64. A unit is a head of a
 * token. */
#define QUERN_DEF "attention/merge_state.def"
#include <quern/family_def.h>

#include <math.h>

#include "merge_states.h"

/* A state's logarithm, in base e. */
static double logarithm(struct quern_ref *ref, int index, int64_t at)
{
    double s;
    quern_ref_read(ref, index, at, 1, &s);
    if (merge_states_is_v2(quern_ref_spec(ref)))
        return isinf(s) ? -INFINITY : s;
    return s * M_LN2;
}

void merge_states_reference(struct quern_ref *ref, int64_t unit)
{
    const int64_t d = values_of(quern_ref_spec(ref))->d;
    const double s_a = logarithm(ref, ARRAY_s_a, unit), s_b = logarithm(ref, ARRAY_s_b, unit);
    const double unit_of_s = merge_states_is_v2(quern_ref_spec(ref)) ? 1 : M_LN2;
    const double max = fmax(s_a, s_b), w_a = exp(s_a - max), w_b = exp(s_b - max);
    const int is_empty = s_a == -INFINITY && s_b == -INFINITY;
    double *a = quern_ref_scratch(ref, d), *b = quern_ref_scratch(ref, d), terms = 0;
    double s = is_empty ? -INFINITY : (max + log(w_a + w_b)) / unit_of_s;

    quern_ref_read(ref, ARRAY_v_a, unit * d, d, a);
    quern_ref_read(ref, ARRAY_v_b, unit * d, d, b);
    for (int64_t i = 0; i < d; i++) {
        double of_a = s_a == -INFINITY ? 0 : w_a * a[i] / (w_a + w_b);
        double of_b = s_b == -INFINITY ? 0 : w_b * b[i] / (w_a + w_b);
        terms += of_a * of_a + of_b * of_b;
        a[i] = of_a + of_b;
    }
    quern_ref_expect_sums(ref, ARRAY_v_merged, unit * d, d, a, sqrt(terms));
    quern_ref_expect_sums(ref, ARRAY_s_merged, unit, 1, &s, hypot(max, log(w_a + w_b)) / unit_of_s);
}
