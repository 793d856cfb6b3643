/* Device profiles shipped as data, so that a machine without the device can plan for it. */
#ifndef QN_PROFILE_H
#define QN_PROFILE_H

#include <quern/family.h>

/* QUERN_INVALID lists the known names. */
int qn_profile_find(const char *name, struct quern_profile *profile, struct quern_message *why);

/* The profile that --device-profile names: a shipped one, or, where the text holds a '/' or a '.',
 * that of a file (profile_file.c). */
int qn_profile_get(const char *name, struct quern_profile *profile, struct quern_message *why);

/* The shipped profile of a CUDA device by its name, architecture and number of SMs; QUERN_MISS if
 * there is none. */
int qn_profile_of_device(const char *device, int sm, int cores, struct quern_profile *profile);

/* What to plan for where a target's device is not here: the shipped profile of the newest
 * architecture that is not newer than the target's, of several the last. */
void qn_profile_of_target(const struct quern_target *target, struct quern_profile *profile);

#endif
