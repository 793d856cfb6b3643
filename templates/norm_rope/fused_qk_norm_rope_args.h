/* What host and device sides of fused_qk_norm_rope share. */
#ifndef FUSED_QK_NORM_ROPE_ARGS_H
#define FUSED_QK_NORM_ROPE_ARGS_H

#include "common/types.h"

#define NORM_ROPE_PAIRS 128 /* at most: d / 2 */
#define NORM_ROPE_ITEM 8    /* CUDA: columns that a thread has */

struct fused_qk_norm_rope_args {
    void *qkv;
    const void *q_weight, *k_weight, *positions;
    int64_t tokens;
    int64_t token, head; /* elements from a token of qkv to the next, from a head to the next */
    int64_t hq, heads;   /* queries; queries and keys */
    int64_t block;       /* CPU: tokens that a block handles */
    float eps, attention_factor;
    float turns[NORM_ROPE_PAIRS]; /* radians a position of each pair */
};

#endif
