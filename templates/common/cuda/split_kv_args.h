/* What host and device sides of kernels that split sequences share: where the workspace has what
 * blocks tell the combine. common/cuda/split_kv.cuh says how it is used. */
#ifndef QN_CUDA_SPLIT_KV_ARGS_H
#define QN_CUDA_SPLIT_KV_ARGS_H
#include "common/types.h"

/* The unit that holds the first tile of a block's share. */
struct split_kv_cut {
    int64_t share; /* tiles of every block */
    int64_t first; /* the unit's first tile, in the order of all */
    int32_t sequence, unit, tiles;
    int32_t unused;
};

struct split_kv_space {
    struct split_kv_cut *cuts; /* of each block */
    int64_t *before;           /* tiles of one unit of all sequences ahead of each, then of all */
    float *sums;               /* [slots, rows, 2]: the maximum, and the sum of exp2 below it */
    float *o;                  /* [slots, rows, dv]: sums of exp2 below the maximum times v */
};

#ifndef __CUDACC_RTC__
static inline int64_t split_kv_bytes(int64_t blocks, int64_t sequences, int64_t slots, int64_t rows,
                                     int64_t dv)
{
    return blocks * (int64_t)sizeof(struct split_kv_cut) + (sequences + 2) / 2 * 16 +
           slots * rows * (dv + 2) * 4;
}

/* rows is even, dv a multiple of 4: everything lies at multiples of 16 bytes. */
static inline struct split_kv_space split_kv_space(void *workspace, int64_t blocks,
                                                   int64_t sequences, int64_t slots, int64_t rows)
{
    struct split_kv_space space;
    space.cuts = (struct split_kv_cut *)workspace;
    space.before = (int64_t *)(void *)(space.cuts + blocks);
    space.sums = (float *)(void *)(space.before + (sequences + 2) / 2 * 2);
    space.o = space.sums + slots * rows * 2;
    return space;
}
#endif
#endif
