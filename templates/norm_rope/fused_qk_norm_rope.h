/* What the files of fused_qk_norm_rope share on the host side. */
#ifndef FUSED_QK_NORM_ROPE_H
#define FUSED_QK_NORM_ROPE_H

#include <quern/family.h>

#include "fused_qk_norm_rope_args.h"

QUERN_API extern const struct quern_family quern_family_fused_qk_norm_rope;
extern const struct quern_variant fused_qk_norm_rope_cuda, fused_qk_norm_rope_cpu;

/* The scalars, with what they are unless given. */
struct norm_rope_scalars {
    double eps, base, factor, low, high, attention_factor;
};
struct norm_rope_scalars norm_rope_scalars_of(const struct quern_spec *spec);

/* How much of `factor` pair i turns slower by: from 0 up to low, to 1 from high on. */
double norm_rope_ramp(const struct norm_rope_scalars *scalars, int64_t pair);

/* What the code of both kinds of kernel depends on; their arguments. */
void fused_qk_norm_rope_define(struct quern_step *step, const struct quern_spec *bucket);
struct fused_qk_norm_rope_args fused_qk_norm_rope_arguments(const struct quern_binding *binding);

int fused_qk_norm_rope_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void fused_qk_norm_rope_reference(struct quern_ref *ref, int64_t unit);

#endif
