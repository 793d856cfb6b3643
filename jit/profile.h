/* Device profiles shipped as data, so that a machine without the device can plan for it. */
#ifndef QN_PROFILE_H
#define QN_PROFILE_H

#include <quern/family.h>

/* QUERN_INVALID lists the known names. */
int qn_profile_find(const char *name, struct quern_profile *profile, struct quern_message *why);

#endif
