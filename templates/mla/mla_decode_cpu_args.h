/* What host and device sides of mla_decode_cpu share. A run is a sequence, or with indices a query
 * token of one: what sees one list of rows. */
#ifndef MLA_DECODE_CPU_ARGS_H
#define MLA_DECODE_CPU_ARGS_H

#include "mla/mla_decode_args.h"

/* Rows begin to end of a run's list. slot: where its partial result goes; -1: it is all of it. */
struct mla_piece {
    int32_t run, slot;
    int64_t begin, end;
};

/* The partial results of a run; of none where pieces is 1. */
struct mla_run {
    int32_t slot, pieces;
};

struct mla_decode_cpu_args {
    struct mla_decode_args call;
    int64_t runs;
    int64_t pieces_wanted; /* of all runs together, where they are long enough */
    /* The workspace. */
    int64_t *piece_count;
    struct mla_piece *pieces;
    struct mla_run *run_table;
    float *partial_sums; /* [slot][row][2]: the largest score in base 2, the sum */
    float *partial_o;    /* [slot][row][512] */
};

#endif
