/* What the files of causal_conv1d share on the host side. */
#ifndef CAUSAL_CONV1D_H
#define CAUSAL_CONV1D_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_causal_conv1d;

void causal_conv1d_reference(struct quern_ref *ref, int64_t unit);

#endif
