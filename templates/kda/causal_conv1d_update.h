/* What the files of causal_conv1d_update share on the host side. */
#ifndef CAUSAL_CONV1D_UPDATE_H
#define CAUSAL_CONV1D_UPDATE_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_causal_conv1d_update;

void causal_conv1d_update_reference(struct quern_ref *ref, int64_t unit);

#endif
