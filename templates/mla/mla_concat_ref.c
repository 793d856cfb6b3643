/* The obvious reference of concat_mla_k and concat_mla_absorb_q. A unit is a token. */
#define QUERN_DEF "mla/concat_mla_absorb_q.def"
#include <quern/family_def.h>

#include "mla_concat.h"

void mla_concat_reference(struct quern_ref *ref, int64_t unit)
{
    const struct quern_spec *spec = quern_ref_spec(ref);
    const struct values *v = values_of(spec);
    const int64_t width = v->nope + v->rope;
    double *row = quern_ref_scratch(ref, width);
    struct quern_shape right;
    spec->family->shape(spec, MLA_CONCAT_RIGHT, &right);
    for (int64_t h = 0; h < v->h; h++) {
        int64_t from = unit * right.dims[1] + (right.dims[1] > 1 ? h : 0);
        quern_ref_read(ref, MLA_CONCAT_LEFT, (unit * v->h + h) * v->nope, v->nope, row);
        quern_ref_read(ref, MLA_CONCAT_RIGHT, from * v->rope, v->rope, row + v->nope);
        quern_ref_expect(ref, MLA_CONCAT_OUT, (unit * v->h + h) * width, width, row);
    }
}
