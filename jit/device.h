/* The backends that this build has, and the devices that a context opened with them. */
#ifndef QN_DEVICE_H
#define QN_DEVICE_H

#include "jit/context.h"

/* Opens options.device, or the first backend that finds one, and reads target and profile. */
int qn_device_open(struct quern_context *ctx);
void qn_devices_close(struct quern_context *ctx);

/* What compiles for `target`: the context's device if it is of that kind, else the kind's backend
 * opened without a device. UNSUPPORTED if this build has none. */
int qn_device_for(struct quern_context *ctx, const struct quern_target *target,
                  const struct qn_backend **backend, struct qn_device **device);

/* What to plan with for `target`; INVALID if options.profile names one that is for others. */
int qn_profile_for(struct quern_context *ctx, const struct quern_target *target,
                   struct quern_profile *profile);

/* Every backend's facts, and that of the kinds which this build lacks. */
void qn_devices_doctor(struct quern_context *ctx,
                       void (*fact)(void *user, const char *section, const char *name,
                                    const char *value),
                       void *user);

#endif
