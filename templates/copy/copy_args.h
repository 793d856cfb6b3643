/* What host and device sides of copy share. */
#ifndef COPY_ARGS_H
#define COPY_ARGS_H

#include "common/types.h"

struct copy_args {
    const void *x;
    void *out;
    int64_t n;
    int64_t block; /* CPU: elements that one block of the grid handles */
    float alpha;
};

#endif
