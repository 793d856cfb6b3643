/* What host and device sides of shuffle_rows share. All widths are in bytes. */
#ifndef SHUFFLE_ROWS_ARGS_H
#define SHUFFLE_ROWS_ARGS_H

#include "common/types.h"

struct shuffle_rows_args {
    const char *in;     /* [inputs], rows in_row apart */
    const int32_t *map; /* [rows]; outside [0, inputs): a row of zeros */
    char *out;          /* [rows], out_row apart */
    int64_t in_row, out_row, rows, inputs;
    int64_t block; /* CPU: rows that one block of the grid moves */
    int32_t width;
};

#endif
