/* The obvious reference of l2norm, in float64: a unit is a row. */
#define QUERN_DEF "kda/l2norm.def"
#include <quern/family_def.h>

#include <math.h>

#include "l2norm.h"

void l2norm_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *x = quern_ref_scratch(ref, v->d), sum = 0;
    float eps = isnan(v->eps) ? 1e-6f : (float)v->eps;

    quern_ref_read(ref, ARRAY_x, unit * v->d, v->d, x);
    for (int64_t i = 0; i < v->d; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < v->d; i++)
        x[i] *= 1 / sqrt(sum + eps);
    quern_ref_expect(ref, ARRAY_out, unit * v->d, v->d, x);
}
