/* What the files of kda_prefill share on the host side. */
#ifndef KDA_PREFILL_H
#define KDA_PREFILL_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_kda_prefill;
extern const struct quern_variant kda_prefill_sm80, kda_prefill_cpu;

#define KDA_PREFILL_CHUNK                                                                          \
    64 /* tokens of a chunk: over which an implementation may spread a NaN or
                                 Inf, and at the start of which chunk_states has the state */

void kda_prefill_reference(struct quern_ref *ref, int64_t unit);

#endif
