/* What the CPU variant's host side and its kernels share. */
#ifndef ATTENTION_DECODE_CPU_ARGS_H
#define ATTENTION_DECODE_CPU_ARGS_H

#include "decode/attention_decode_args.h"

#define DECODE_PIECE 512 /* tokens that one block takes of a sequence, at multiples of it */
#define DECODE_TILES 16  /* tiles of rows that a unit has at most */

/* Of a piece, for each query head that it was computed for. */
struct decode_state {
    float max, sum; /* of the scores; of exp(score - max) */
};

struct decode_cpu_args {
    struct decode_args call;
    /* [b, hq, slots]: first those of the common prefix's pieces, then those of its own. */
    struct decode_state *states;
    float *sums; /* [b, hq, slots, DV]: of exp(score - max) v */
    int64_t slots, shared_slots;
    int64_t heads;         /* heads of the cache in a unit */
    int64_t shared_blocks; /* of the grid's blocks the first: each a piece of the prefix, of
                              shared_heads heads, for shared_batch sequences */
    int64_t shared_heads, shared_batch;
    int64_t blocks; /* the others, which share out all units of the sequences' own tokens */
};

#endif
