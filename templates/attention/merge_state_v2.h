#ifndef MERGE_STATE_V2_H
#define MERGE_STATE_V2_H

#include <quern/family.h>

QUERN_API extern const struct quern_family quern_family_merge_state_v2;

#endif
