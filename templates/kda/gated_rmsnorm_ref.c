/* The obvious reference of gated_rmsnorm, in float64: a unit is a row. */
#define QUERN_DEF "kda/gated_rmsnorm.def"
#include <quern/family_def.h>

#include <math.h>

#include "gated_rmsnorm.h"
#include "kda_norm_args.h"

void gated_rmsnorm_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *x = quern_ref_scratch(ref, v->d), *z = quern_ref_scratch(ref, v->d);
    double *weight = quern_ref_scratch(ref, v->d), sum = 0;
    float eps = isnan(v->eps) ? 1e-5f : (float)v->eps;

    quern_ref_read(ref, ARRAY_x, unit * v->d, v->d, x);
    quern_ref_read(ref, ARRAY_z, unit * v->d, v->d, z);
    quern_ref_read(ref, ARRAY_weight, 0, v->d, weight);
    for (int64_t i = 0; i < v->d; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < v->d; i++) {
        double gate = (v->act == KDA_NORM_SILU ? z[i] : 1) / (1 + exp(-z[i]));
        x[i] *= 1 / sqrt(sum / (double)v->d + eps) * weight[i] * gate;
    }
    quern_ref_expect(ref, ARRAY_out, unit * v->d, v->d, x);
}
