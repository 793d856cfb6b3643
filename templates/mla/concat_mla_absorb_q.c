/* concat_mla_absorb_q: its kernels and rules are mla_concat's. */
#define QUERN_DEF "mla/concat_mla_absorb_q.def"
#include <quern/family_def.h>

#include "mla_concat.h"

QUERN_STATIC_ASSERT((int)ARRAY_a == (int)MLA_CONCAT_LEFT && (int)ARRAY_b == (int)MLA_CONCAT_RIGHT &&
                        (int)ARRAY_q == (int)MLA_CONCAT_OUT,
                    "mla_concat's order");

const struct quern_family quern_family_concat_mla_absorb_q = {
    QUERN_FAMILY_TABLES(concat_mla_absorb_q),
    .folder = "mla",
    .doc = "queries of mla_decode: the absorbed columns, then the rotary ones",
    .variants = mla_concat_variants,
    .validate = mla_concat_validate,
    .units = mla_concat_units,
    .reference = mla_concat_reference,
    .tolerance = mla_concat_tolerance,
    .cost = mla_concat_cost,
};
