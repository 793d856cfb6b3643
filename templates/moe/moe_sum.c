/* moe_sum: its kernels and rules are moe_combine's. */
#define QUERN_DEF "moe/moe_sum.def"
#include <quern/family_def.h>

#include "moe_sum.h"

QUERN_STATIC_ASSERT((int)ARRAY_x == (int)MOE_COMBINE_IN && (int)ARRAY_out == ARRAY_COUNT - 1,
                    "moe_combine's order");

struct moe_combine_spec moe_sum_spec(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct moe_combine_spec){
        .tokens = v->tokens,
        .topk = v->topk,
        .width = v->hidden,
        .dtype = v->dtype,
        .perm = -1,
        .factors = -1,
        .scaling = 1,
    };
}

const struct quern_family quern_family_moe_sum = {
    QUERN_FAMILY_TABLES(moe_sum),
    .folder = "moe",
    .doc = "the rows of each token's experts added",
    .variants = moe_combine_variants,
    .validate = moe_combine_validate,
    .units = moe_combine_units,
    .reference = moe_combine_reference,
    .tolerance = moe_combine_tolerance,
    .cost = moe_combine_cost,
};
