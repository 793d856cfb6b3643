/* causal_conv1d_update on a CPU: a block of the grid is some sequences (x) by a chunk of channels
 * (y). It transposes the chunk's weights once, then for each sequence
 *
 * 1. computes all steps, reading rows of the state and of x where they stand;
 * 2. writes the windows, with SAVE, or else moves the last W - 1 inputs into the state.
 *
 * A slot outside the pool counts as -1: y and windows become 0. */
#include "causal_conv1d_update_args.h"
#include "conv_filter.h"

#ifndef SAVE
#define SAVE 0
#endif

/* A sequence in a chunk of channels. */
struct place {
    const struct causal_conv1d_update_args *args;
    int64_t sequence, slot, channel, count;
};

/* Input `step`: of x, or where it is negative of the state. */
INLINE const void *input_row(const struct place *at, int64_t step)
{
    const struct causal_conv1d_update_args *args = at->args;
    if (step >= 0)
        return element(DTYPE, args->x,
                       at->sequence * args->x_pitch[0] + step * args->x_pitch[1] + at->channel);
    return element(DTYPE, args->states,
                   at->slot * args->state_pitch[0] + (W - 1 + step) * args->state_pitch[1] +
                       at->channel);
}

INLINE void *y_row(const struct place *at, int64_t step)
{
    const struct causal_conv1d_update_args *args = at->args;
    return (void *)element(DTYPE, args->y,
                           at->sequence * args->y_pitch[0] + step * args->y_pitch[1] + at->channel);
}

INLINE void *window_row(const struct place *at, int64_t step, int64_t row)
{
    const struct causal_conv1d_update_args *args = at->args;
    return (void *)element(DTYPE, args->windows,
                           at->sequence * args->window_pitch[0] + step * args->window_pitch[1] +
                               row * args->window_pitch[2] + at->channel);
}

APART void clear(const struct place *at)
{
    int64_t bytes = at->count * DT_SIZE(DTYPE);
    for (int64_t step = 0; step < at->args->steps; step++) {
        __builtin_memset(y_row(at, step), 0, bytes);
        for (int64_t row = 0; SAVE && row < W - 1; row++)
            __builtin_memset(window_row(at, step, row), 0, bytes);
    }
}

APART void convolve(const struct place *at, const struct filter *filter)
{
    const void *rows[W - 1 + GROUP];
    void *out[GROUP];
    for (int64_t step = 0; step < at->args->steps;) {
        int group = at->args->steps - step >= GROUP ? GROUP : 1;
        for (int r = 0; r < W - 1 + group; r++)
            rows[r] = input_row(at, step - (W - 1) + r);
        for (int u = 0; u < group; u++)
            out[u] = y_row(at, step + u);
        if (group == GROUP)
            filter_four(filter, rows, out, at->count);
        else
            filter_one(filter, rows, out, at->count);
        step += group;
    }
}

/* A state's rows go up: one that is read lies after the one that is written. */
APART void keep(const struct place *at)
{
    int64_t bytes = at->count * DT_SIZE(DTYPE), steps = at->args->steps;
    for (int64_t step = 0; SAVE && step < steps; step++) {
        for (int64_t row = 0; row < W - 1; row++)
            __builtin_memcpy(window_row(at, step, row), input_row(at, step + 1 - (W - 1) + row),
                             bytes);
    }
    for (int64_t row = 0; !SAVE && steps && row < W - 1; row++)
        __builtin_memcpy((void *)input_row(at, row - (W - 1)), input_row(at, steps - (W - 1) + row),
                         bytes);
}

void causal_conv1d_update_main(const struct causal_conv1d_update_args *args, uint32_t x, uint32_t y,
                               uint32_t z)
{
    struct filter filter;
    struct place at = { .args = args, .channel = (int64_t)y * args->chunk };
    int64_t first = x * args->share, last = first + args->share, left = args->d - at.channel;
    (void)z;
    at.count = left < args->chunk ? left : args->chunk;
    filter_load(&filter, element(WEIGHT, args->weight, at.channel * args->weight_pitch),
                args->weight_pitch, BIAS ? element(BIAS, args->bias, at.channel) : 0, at.count);
    for (int64_t i = first; i < last && i < args->n; i++) {
        at.sequence = i;
        at.slot = args->slots ? args->slots[i] : i;
        if (at.slot < 0 || at.slot >= args->capacity) {
            clear(&at);
        } else {
            convolve(&at, &filter); /* 1 */
            keep(&at);              /* 2 */
        }
    }
}
