/* What the files of kda_step share on the host side. */
#ifndef KDA_STEP_H
#define KDA_STEP_H

#include <quern/family.h>

#include "kda_step_args.h"

QUERN_API extern const struct quern_family quern_family_kda_step;
extern const struct quern_variant kda_step_cpu, kda_step_cuda;

#define KDA_STEP_SHARE 16 /* CPU: sequences of a block, at most */

/* What the code of both kinds of kernel depends on; their arguments. */
void kda_step_define(struct quern_step *step, const struct quern_spec *bucket);
struct kda_step_args kda_step_arguments(const struct quern_binding *binding);

void kda_step_reference(struct quern_ref *ref, int64_t unit);

#endif
