/* moe_sum_reduce: its kernels and rules are moe_combine's. */
#define QUERN_DEF "moe/moe_sum_reduce.def"
#include <quern/family_def.h>

#include <math.h>

#include "moe_sum_reduce.h"

QUERN_STATIC_ASSERT((int)ARRAY_x == (int)MOE_COMBINE_IN && (int)ARRAY_out == ARRAY_COUNT - 1,
                    "moe_combine's order");

struct moe_combine_spec moe_sum_reduce_spec(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct moe_combine_spec){
        .tokens = v->tokens,
        .topk = v->topk,
        .width = v->hidden,
        .dtype = v->dtype,
        .perm = -1,
        .factors = v->weighted ? ARRAY_weights : -1,
        .scaling = isnan(v->scaling) ? 1 : v->scaling,
    };
}

const struct quern_family quern_family_moe_sum_reduce = {
    QUERN_FAMILY_TABLES(moe_sum_reduce),
    .folder = "moe",
    .doc = "the rows of each token's experts weighed, added and scaled",
    .variants = moe_combine_variants,
    .validate = moe_combine_validate,
    .units = moe_combine_units,
    .reference = moe_combine_reference,
    .tolerance = moe_combine_tolerance,
    .cost = moe_combine_cost,
};
