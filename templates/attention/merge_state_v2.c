/* merge_state_v2: its list; the rest is merge_states'. */
#define QUERN_DEF "attention/merge_state_v2.def"
#include <quern/family_def.h>

#include "merge_state_v2.h"
#include "merge_states.h"

static const struct quern_variant *const variants[] = { &merge_states_cuda, &merge_states_cpu,
                                                        NULL };

const struct quern_family quern_family_merge_state_v2 = {
    QUERN_FAMILY_TABLES(merge_state_v2),
    .folder = "attention",
    .doc = "attention to two sets of keys made one; natural logarithms",
    .variants = variants,
    .aliasable = 1u << ARRAY_v_merged | 1u << ARRAY_s_merged, /* over a or b: a row is read by those
                                                                 who write it, and then written */
    .validate = merge_states_validate,
    .inputs = merge_states_inputs,
    .units = merge_states_units,
    .reference = merge_states_reference,
    .tolerance = merge_states_tolerance,
    .cost = merge_states_cost,
};
