/* What host and device sides share of sorting slots by expert: moe_align_block_size,
 * prepare_moe_input and the fused layer. Slot i is choice i % topk of token i / topk. Every output
 * may be NULL: it is then not wanted. */
#ifndef MOE_ALIGN_ARGS_H
#define MOE_ALIGN_ARGS_H

#include "common/types.h"

/* Divides numbers from 0 to 2^31 - 1: n factor >> shift. */
struct moe_align_divisor {
    uint32_t factor;
    int32_t shift;
};

struct moe_align_args {
    const int32_t *ids;        /* [tokens, topk], rows ids_token elements apart */
    const int32_t *expert_map; /* [global]: what an id stands for; NULL: itself */

    int32_t *sorted;     /* [rows]: slot / share of each row; `padding` where there is none */
    int32_t *expert_ids; /* [rows / block]: expert of each block, -1: none */
    int32_t *rows_used;  /* [1] */
    int32_t *offsets;    /* [experts + 1]: first row of each expert, then the rows in use */
    int32_t *positions;  /* [tokens, topk]: row of each slot, -1: none */
    int32_t *problem_sizes1, *problem_sizes2; /* [experts, 3] */
    int32_t *blockscale_offsets;              /* [experts + 1] */

    int32_t *counts; /* [chunks, experts + 1], workspace; NULL: every block counts all slots */

    int64_t ids_token, positions_token, sizes1_row, sizes2_row;
    int32_t slots, topk, experts, global;
    int32_t block; /* an expert's rows are padded to a multiple of it */
    int32_t rows;  /* of `sorted`; a multiple of block */
    int32_t chunk; /* slots of a block of the grid, at most 65535 */
    int32_t share; /* topk: `sorted` holds tokens; 1: slots */
    int32_t padding;
    int32_t is_filtered_kept; /* slots of no expert have rows too, ahead of the others */
    /* CUDA, set by moe_align_bind(): */
    struct moe_align_divisor by_topk, by_block, by_part;
    int32_t chunks; /* of `chunk` slots */
    int32_t part;   /* slots of a chunk that a warp sorts */

    int32_t n, k; /* for problem_sizes */
};

#endif
