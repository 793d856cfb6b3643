/* What the suites that compile for CUDA share. */
#ifndef CUDA_COMMON_H
#define CUDA_COMMON_H

#include <stdbool.h>

/* What every case is compiled for. */
enum { CUDA_TARGET_COUNT = 6 };
extern const char *const cuda_targets[CUDA_TARGET_COUNT];

/* True where there is no NVRTC and `make deps` could not get it: says so, and counts `checks` as
 * skipped. Where there is none for any other reason the checks are to run, and fail. */
bool cuda_is_skipped(int checks);

#endif
