/* What host and device sides of concat_mla_k and concat_mla_absorb_q share. Strides are in
 * elements. */
#ifndef MLA_CONCAT_ARGS_H
#define MLA_CONCAT_ARGS_H

#include "common/types.h"

struct mla_concat_args {
    const void *left, *right; /* [t, h, left's width], [t, h, right's width] */
    void *out;
    int64_t left_token, left_head, right_token, right_head, out_token, out_head;
    int64_t t;
    int64_t block; /* CPU: rows that one block of the grid handles */
};

#endif
