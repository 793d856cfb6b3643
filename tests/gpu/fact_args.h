/* The one argument of every kernel in tests/gpu: the same bytes for the device code and for the
 * suite that fills it in. */
#ifndef FACT_ARGS_H
#define FACT_ARGS_H

#include "common/types.h"

/* The attribute stands here because NVRTC leaves one behind the brace without effect. */
struct __attribute__((aligned(64))) fact_map {
    unsigned char bytes[128];
};

struct fact_args {
    struct fact_map maps[2];
    const void *a, *b;
    void *out;
    int32_t x, y, z; /* coordinates */
    int32_t n, bytes;
};

#endif
