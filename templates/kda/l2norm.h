/* What the files of l2norm share on the host side. */
#ifndef L2NORM_H
#define L2NORM_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_l2norm;

void l2norm_reference(struct quern_ref *ref, int64_t unit);

#endif
