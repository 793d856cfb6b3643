/* Rows in another order: one block of the grid writes args->block of them. */
#include "moe/shuffle_rows_args.h"

void shuffle_rows_main(const struct shuffle_rows_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    (void)y, (void)z;
    end = end < args->rows ? end : args->rows;
    for (int64_t r = begin; r < end; r++) {
        char *out = args->out + r * args->out_row;
        int64_t from = args->map[r];
        if (from >= 0 && from < args->inputs)
            __builtin_memcpy(out, args->in + from * args->in_row, args->width);
        else
            __builtin_memset(out, 0, args->width);
    }
}
