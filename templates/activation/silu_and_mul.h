/* What the files of silu_and_mul share on the host side. */
#ifndef SILU_AND_MUL_H
#define SILU_AND_MUL_H

#include <quern/family.h>

#include "silu_and_mul_args.h"

QUERN_API extern const struct quern_family quern_family_silu_and_mul;
extern const struct quern_variant silu_and_mul_cuda, silu_and_mul_cpu;

enum { BY_SILU, BY_GELU, BY_GELU_TANH, BY_SWIGLU_OAI }; /* activation */
enum { TO_NONE, TO_E4M3, TO_I8 };                       /* quantize */

/* limit and alpha as the kernels take them: infinity where there is no limit. */
float silu_and_mul_limit(const struct quern_spec *spec);
float silu_and_mul_alpha(const struct quern_spec *spec);

/* What the code of both kinds of kernel depends on; their arguments. */
void silu_and_mul_define(struct quern_step *step, const struct quern_spec *bucket);
struct silu_and_mul_args silu_and_mul_arguments(const struct quern_binding *binding);

int silu_and_mul_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data);
void silu_and_mul_reference(struct quern_ref *ref, int64_t unit);

#endif
