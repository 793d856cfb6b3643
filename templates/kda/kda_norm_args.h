/* What host and device sides of l2norm and gated_rmsnorm share: they are one kernel. */
#ifndef KDA_NORM_ARGS_H
#define KDA_NORM_ARGS_H

#include "common/types.h"

/* gated_rmsnorm's act, as in its list; l2norm has none. */
#define KDA_NORM_SIGMOID 0
#define KDA_NORM_SILU 1
#define KDA_NORM_UNGATED 2

/* Strides in elements, of a token and of a head. */
struct kda_norm_args {
    const void *x, *z, *weight; /* l2norm: x alone */
    void *out;
    int64_t t;
    int64_t x_strides[2], z_strides[2], out_strides[2];
    int64_t block; /* CPU: rows that one block of the grid handles */
    float eps;
};

#endif
