/* What the files of moe share on the host side. */
#ifndef MOE_H
#define MOE_H

#include <quern/family.h>

#include "moe_args.h"

enum { MOE_SILU, MOE_GELU, MOE_GELU_TANH, MOE_SWIGLU_OAI };

QUERN_API extern const struct quern_family quern_family_moe;
extern const struct quern_variant moe_stream, moe_stream_more, moe_grouped_sm90, moe_grouped_sm80,
    moe_cpu;

/* The defines that every step depends on. */
void moe_define(struct quern_step *step, const struct quern_spec *bucket);
/* The arguments of every step but what is in the workspace. */
struct moe_args moe_arguments(const struct quern_binding *binding);

int moe_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void moe_reference(struct quern_ref *ref, int64_t unit);

#endif
