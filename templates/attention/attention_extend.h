/* What the files of attention_extend share on the host side. */
#ifndef ATTENTION_EXTEND_H
#define ATTENTION_EXTEND_H

#include <quern/family.h>

/* Indices of kv_scale and prefix in the .def. */
enum { ATTENTION_SCALE_NONE, ATTENTION_SCALE_TENSOR, ATTENTION_SCALE_HEAD };
enum { ATTENTION_PREFIX_TABLE, ATTENTION_PREFIX_INDICES };

QUERN_API extern const struct quern_family quern_family_attention_extend;
extern const struct quern_variant attention_extend_cpu, attention_extend_sm80;

void attention_extend_reference(struct quern_ref *ref, int64_t unit);

#endif
