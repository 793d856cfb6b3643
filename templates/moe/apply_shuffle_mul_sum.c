/* apply_shuffle_mul_sum: its kernels and rules are moe_combine's. */
#define QUERN_DEF "moe/apply_shuffle_mul_sum.def"
#include <quern/family_def.h>

#include "apply_shuffle_mul_sum.h"
#include "moe_rows.h"

QUERN_STATIC_ASSERT((int)ARRAY_in == (int)MOE_COMBINE_IN && (int)ARRAY_out == ARRAY_COUNT - 1,
                    "moe_combine's order");

struct moe_combine_spec apply_shuffle_mul_sum_spec(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct moe_combine_spec){
        .tokens = v->tokens,
        .topk = v->topk,
        .rows = v->rows,
        .width = v->width,
        .dtype = v->dtype,
        .perm = ARRAY_perm,
        .factors = v->factors ? ARRAY_factors : -1,
        .scaling = 1,
    };
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->rows == QUERN_REQUIRED && v->tokens != QUERN_REQUIRED && v->topk != QUERN_REQUIRED)
        v->rows = v->tokens * v->topk;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return moe_rows_check("perm", host[ARRAY_perm], v->tokens * v->topk, "rows", v->rows, why);
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    if (index != ARRAY_perm)
        return 0;
    moe_rows_draw(seed, v->tokens * v->topk, v->rows, data);
    return 1;
}

const struct quern_family quern_family_apply_shuffle_mul_sum = {
    QUERN_FAMILY_TABLES(apply_shuffle_mul_sum),
    .folder = "moe",
    .doc = "rows of each token's experts, gathered, weighed and added",
    .variants = moe_combine_variants,
    .validate = moe_combine_validate,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = moe_combine_units,
    .reference = moe_combine_reference,
    .tolerance = moe_combine_tolerance,
    .cost = moe_combine_cost,
    .implied = implied,
};
