/* What the blocks of the steps of moe_cpu read: the contract between moe_cpu_plan.c and moe_cpu.c.
 * A part is a run of tokens, sorted by itself; a slot is token * slots + j, a place where a slot is
 * in the sorted order. */
#ifndef MOE_CPU_ARGS_H
#define MOE_CPU_ARGS_H
#include "moe/moe_args.h"

/* Places [first, first + count) of a part go to one expert. tile: the first of their tiles, -1
 * where they are few enough for dot products. */
struct moe_job {
    int32_t expert, first, count, tile;
};

/* At most MOE_TILE places of one expert. */
struct moe_tile {
    int32_t first, count;
};

enum {
    MOE_TILE = 16,
    MOE_JOB_TILES = 16, /* of a job, at most: their sums stay in L1 */
    MOE_DOTS = 4        /* tokens of a job of dot products, at most, but without tiles */
};

struct moe_cpu_args {
    struct moe_args moe;
    int64_t hidden, inter;
    int64_t columns;        /* of logits: routed experts */
    int64_t slots;          /* of a token */
    int64_t local, weights; /* experts whose weights are here: routed, all */
    int64_t parts, part_tokens;
    int64_t up_rows, down_rows;    /* of a block: pairs of rows of w13, rows of w2 */
    int64_t most_jobs, most_tiles; /* of a part */

    /* The workspace. */
    int32_t *experts;       /* [slot]: columns of logits, behind them shared ones */
    float *factors;         /* [slot] */
    int32_t *order;         /* [place]: slot */
    int32_t *starts;        /* [part][weights + 1]: scratch of the sort */
    int32_t *counts;        /* [part][2]: jobs, tiles */
    struct moe_job *jobs;   /* [part][most_jobs] */
    struct moe_tile *tiles; /* [part][most_tiles] */
    uint32_t *x_panels;     /* [part][most_tiles][units of hidden][MOE_TILE] */
    uint32_t *h_panels;     /* [part][most_tiles][units of inter][MOE_TILE] */
    char *h;                /* [place][inter] in dtype, of jobs without tiles */
    float *sums;            /* [part][block of down_rows][part_tokens][down_rows] */
};
#endif
