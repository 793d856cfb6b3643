/* A family of the suites' own for CUDA, registered at run time: a memset and two kernels of one
 * artifact, a workspace, an output that may be added to, candidates of which some are wrong. */
#ifndef GPU_STAGE_H
#define GPU_STAGE_H

#include <quern/family.h>

enum { STAGE_X, STAGE_OUT };

extern const struct quern_family gpu_stage_family;

#endif
