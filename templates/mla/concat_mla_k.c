/* concat_mla_k: its kernels and rules are mla_concat's. */
#define QUERN_DEF "mla/concat_mla_k.def"
#include <quern/family_def.h>

#include "mla_concat.h"

QUERN_STATIC_ASSERT((int)ARRAY_k_nope == (int)MLA_CONCAT_LEFT &&
                        (int)ARRAY_k_rope == (int)MLA_CONCAT_RIGHT &&
                        (int)ARRAY_k == (int)MLA_CONCAT_OUT,
                    "mla_concat's order");

const struct quern_family quern_family_concat_mla_k = {
    QUERN_FAMILY_TABLES(concat_mla_k),
    .folder = "mla",
    .doc = "keys of MLA's prefill: those of each head, then the rotary ones of all",
    .variants = mla_concat_variants,
    .validate = mla_concat_validate,
    .units = mla_concat_units,
    .reference = mla_concat_reference,
    .tolerance = mla_concat_tolerance,
    .cost = mla_concat_cost,
};
