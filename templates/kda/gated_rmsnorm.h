/* What the files of gated_rmsnorm share on the host side. */
#ifndef GATED_RMSNORM_H
#define GATED_RMSNORM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_gated_rmsnorm;

void gated_rmsnorm_reference(struct quern_ref *ref, int64_t unit);

#endif
