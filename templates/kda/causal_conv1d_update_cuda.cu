/* causal_conv1d_update on a GPU. A thread has the channels of one access in some sequences, one
 * after the other: their weights stay in registers, and a sequence's window is read once, moves
 * along the steps in registers, and is written once, or with SAVE after every step.
 *
 * Memory bounds it: x, y and the state in and out. 256 sequences of 12288 channels of 2 bytes are
 * 50 MB, 12 us at 4.3 TB/s. A thread has W accesses and the next UNROLL steps in flight. Weights of
 * f32 are as many bytes as such a state, from L2: `share` sequences read them once. A slot outside
 * the pool counts as -1: y and windows become 0. */
#include "causal_conv1d_update_args.h"
#include "conv.cuh"

#ifndef SAVE
#define SAVE 0
#endif
#ifndef THREADS
#define THREADS 128
#endif
#ifndef UNROLL
#define UNROLL 1
#endif

/* A sequence in the channels of a thread. */
struct place {
    int64_t sequence, slot, channel;
    int count;
};

static __device__ __forceinline__ void *state_row(const struct causal_conv1d_update_args &args,
                                                  const struct place &at, int row)
{
    return (void *)element(DTYPE, args.states,
                           at.slot * args.state_pitch[0] + row * args.state_pitch[1]);
}

static __device__ __forceinline__ void *y_row(const struct causal_conv1d_update_args &args,
                                              const struct place &at, int64_t step)
{
    return (void *)element(DTYPE, args.y, at.sequence * args.y_pitch[0] + step * args.y_pitch[1]);
}

static __device__ __forceinline__ void *window_row(const struct causal_conv1d_update_args &args,
                                                   const struct place &at, int64_t step, int row)
{
    return (void *)element(DTYPE, args.windows,
                           at.sequence * args.window_pitch[0] + step * args.window_pitch[1] +
                               row * args.window_pitch[2]);
}

static __device__ __forceinline__ void clear(const struct causal_conv1d_update_args &args,
                                             const struct place &at)
{
    for (int64_t step = 0; step < args.steps; step++) {
        raw_store(y_row(args, at, step), at.channel, at.count, {});
        for (int row = 0; SAVE && row < W - 1; row++)
            raw_store(window_row(args, at, step, row), at.channel, at.count, {});
    }
}

/* All steps of a sequence; last holds its last W - 1 inputs as they stand in memory. */
static __device__ __forceinline__ void convolve(const struct causal_conv1d_update_args &args,
                                                const struct place &at, const struct filter &filter)
{
    struct raw last[W - 1];
    float window[W - 1][CONV_VEC];
#pragma unroll
    for (int j = 0; j < W - 1; j++)
        last[j] = raw_load(state_row(args, at, j), at.channel, at.count);
#pragma unroll
    for (int j = 0; j < W - 1; j++)
        raw_widen(window[j], last[j]);
#pragma unroll 1
    for (int64_t step = 0; step < args.steps; step += UNROLL) {
        struct raw now[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int64_t at_x = at.sequence * args.x_pitch[0] + (step + u) * args.x_pitch[1];
            now[u] = {};
            if (step + u < args.steps)
                now[u] = raw_load(element(DTYPE, args.x, at_x), at.channel, at.count);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const bool is_step = UNROLL == 1 || step + u < args.steps;
            struct raw out = filter_step(filter, window, now[u]);
            if (is_step)
                raw_store(y_row(args, at, step + u), at.channel, at.count, out);
#pragma unroll
            for (int j = 0; j < W - 1; j++) {
                if (is_step)
                    last[j] = j + 1 < W - 1 ? last[j + 1 < W - 1 ? j + 1 : j] : now[u];
                if (SAVE && is_step)
                    raw_store(window_row(args, at, step + u, j), at.channel, at.count, last[j]);
            }
        }
    }
#pragma unroll
    for (int j = 0; !SAVE && j < W - 1; j++)
        raw_store(state_row(args, at, j), at.channel, at.count, last[j]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    causal_conv1d_update_cuda(const __grid_constant__ struct causal_conv1d_update_args args)
{
    const int64_t columns = (args.d + CONV_VEC - 1) / CONV_VEC, stride = gridDim.y * args.share;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < columns;
         i += (int64_t)gridDim.x * THREADS) {
        int64_t channel = i * CONV_VEC, left = args.d - channel;
        struct place at = { 0, 0, channel, (int)(left < CONV_VEC ? left : CONV_VEC) };
        struct filter filter;
        filter_load(filter, args.weight, args.weight_pitch, args.bias, channel, at.count);
        for (int64_t first = blockIdx.y * args.share; first < args.n; first += stride) {
            int64_t end = first + args.share < args.n ? first + args.share : args.n;
            for (at.sequence = first; at.sequence < end; at.sequence++) {
                at.slot = args.slots ? args.slots[at.sequence] : at.sequence;
                if (at.slot < 0 || at.slot >= args.capacity)
                    clear(args, at);
                else
                    convolve(args, at, filter);
            }
        }
    }
}
