/* What the files of attention_prefill share on the host side. */
#ifndef ATTENTION_PREFILL_H
#define ATTENTION_PREFILL_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_attention_prefill;
extern const struct quern_variant attention_prefill_cpu, attention_prefill_sm80,
    attention_prefill_sm90;

void attention_prefill_reference(struct quern_ref *ref, int64_t unit);

#endif
