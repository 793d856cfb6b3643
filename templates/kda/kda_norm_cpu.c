/* l2norm and gated_rmsnorm: a row is one head of one token, D elements, and one block of the grid
 * handles args->block rows, each as kda_norm_row.h does it.
 *
 * Bound by memory: two bytes moved for every one of a row, three with a gate. An element of out is
 * written after the same one of x and z has been read, so out may be either. */
#include "kda_norm_row.h"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef Z_DTYPE
#define Z_DTYPE DT_BF16
#endif
#ifndef WEIGHT_DTYPE
#define WEIGHT_DTYPE DT_F32
#endif
#ifndef ACT
#define ACT KDA_NORM_SIGMOID
#endif
#ifndef HEADS
#define HEADS 32
#endif
#ifndef D
#define D 128
#endif

#define GATED (ACT != KDA_NORM_UNGATED)

void kda_norm_main(const struct kda_norm_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    const int64_t *xs = args->x_strides, *zs = args->z_strides, *outs = args->out_strides;
    int64_t row = (int64_t)x * args->block, end = row + args->block, rows = args->t * HEADS;
    if (end > rows)
        end = rows;
    const struct norm_row kind = { DTYPE, Z_DTYPE, WEIGHT_DTYPE, ACT, D };
    int64_t token = row / HEADS, head = row % HEADS;
    for (; row < end; row++) {
        normalise(kind, element(DTYPE, args->x, token * xs[0] + head * xs[1]),
                  GATED ? element(Z_DTYPE, args->z, token * zs[0] + head * zs[1]) : (void *)0,
                  args->weight, (void *)element(DTYPE, args->out, token * outs[0] + head * outs[1]),
                  args->eps);
        if (++head == HEADS)
            head = 0, token++;
    }
}
