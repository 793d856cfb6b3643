/* What the files of kda_gate_cumsum share on the host side. */
#ifndef KDA_GATE_CUMSUM_H
#define KDA_GATE_CUMSUM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_kda_gate_cumsum;

int kda_gate_cumsum_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void kda_gate_cumsum_reference(struct quern_ref *ref, int64_t unit);

#endif
