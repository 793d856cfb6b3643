/* What merge_state and merge_state_v2 share on the host side: all but their lists, which differ in
 * nothing but the base that the text names. */
#ifndef MERGE_STATES_H
#define MERGE_STATES_H

#include <quern/family.h>

extern const struct quern_variant merge_states_cuda, merge_states_cpu;

/* Base e, and an infinity of either sign is an empty state: merge_state_v2. */
int merge_states_is_v2(const struct quern_spec *spec);
int merge_states_validate(const struct quern_spec *spec, struct quern_message *why);
int merge_states_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
int64_t merge_states_units(const struct quern_spec *spec);
void merge_states_reference(struct quern_ref *ref, int64_t unit);
double merge_states_tolerance(const struct quern_spec *spec, int index);
void merge_states_cost(const struct quern_spec *spec, struct quern_cost *cost);

#endif
