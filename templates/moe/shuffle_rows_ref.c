/* The obvious reference of shuffle_rows. A unit is a row. */
#define QUERN_DEF "moe/shuffle_rows.def"
#include <quern/family_def.h>

#include "shuffle_rows.h"

void shuffle_rows_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *row = quern_ref_scratch(ref, v->width), from;
    quern_ref_read(ref, ARRAY_map, unit, 1, &from);
    if (from >= 0 && from < (double)v->inputs)
        quern_ref_read(ref, ARRAY_in, (int64_t)from * v->width, v->width, row);
    quern_ref_expect(ref, ARRAY_out, unit * v->width, v->width, row);
}
