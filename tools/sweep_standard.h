/* What a sweep tunes of a device that nothing is known of yet. */
#ifndef TOOLS_SWEEP_STANDARD_H
#define TOOLS_SWEEP_STANDARD_H

#include "model_plan.h"

/* The calls of a few models, at some of their sizes. 0, or -1 with one line in `why`. Release with
 * plan_fini() in any case. */
int sweep_standard(struct plan *plan, char *why, int size);

#endif
