/* The obvious reference of copy, in float64. */
#define QUERN_DEF "copy/copy.def"
#include <quern/family_def.h>

#include <math.h>

#include "copy.h"

void copy_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t first = unit * COPY_UNIT;
    int64_t count = v->n - first < COPY_UNIT ? v->n - first : COPY_UNIT;
    double *x = quern_ref_scratch(ref, count), *out = quern_ref_scratch(ref, count);

    quern_ref_read(ref, ARRAY_x, first, count, x);
    if (v->inplace)
        quern_ref_read(ref, ARRAY_out, first, count, out);
    for (int64_t i = 0; i < count; i++)
        out[i] += isnan(v->alpha) ? x[i] : (float)v->alpha * x[i];
    quern_ref_expect(ref, ARRAY_out, first, count, out);
}
