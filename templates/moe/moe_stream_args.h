/* What host and device sides of moe_stream share. */
#ifndef MOE_STREAM_ARGS_H
#define MOE_STREAM_ARGS_H

#include "moe/moe_args.h"
#include "moe/moe_route_rules.h"

#define MOE_STREAM_TOKENS 64 /* at most: a token is a bit */
#define MOE_STREAM_MEMBERS 8 /* slots of a tile: columns of an mma */

/* What a compilation holds. */
#define MOE_STREAM_ALL 0
#define MOE_STREAM_ROUTE 1
#define MOE_STREAM_UP 2
#define MOE_STREAM_DOWN 3

/* Tiles: up to 8 slots of one expert. */
struct moe_tiles {
    int32_t *count;
    int32_t *experts; /* of each: which of w13 and w2 */
    int32_t *slots;   /* [tiles][8]; -1: none */
    float *weights;   /* [slots] */
};

struct moe_stream_args {
    struct moe_args moe;
    struct moe_route_scalars scalars;
    struct moe_tiles tiles; /* what moe_stream_route leaves to the others; else unused */
    void *h;                /* [slots][MOE_STREAM_PITCH(inter)], in dtype */
};

#define MOE_STREAM_PITCH(inter) (((inter) + 7) / 8 * 8)
/* Bytes of shared memory: rings of steps, of every warp; sums of 16 columns, of every warp; the
 * tiles where blocks make them. A step of a ring is two rows of weights and a slot's; where there
 * is but one token (is_one), what slots multiply lies beside the rings, once, padded to whole
 * steps. */
#define MOE_STREAM_STAGE(step, is_one) (((is_one) ? 2 : 3) * 32 * 16 * (step) / 32)
#define MOE_STREAM_VECTOR(width, step) (((width) + (step)-1) / (step) * (step)*2)
#define MOE_STREAM_MASKS(experts, shared) (8 * ((experts) + (shared) + 1))
#define MOE_STREAM_TABLE(experts, shared, slots)                                                   \
    ((MOE_STREAM_MASKS(experts, shared) + 4 * ((experts) + (shared) + 4) + 44 * (slots) + 15) /    \
     16 * 16)

#endif
