/* Experts of many tokens: a warp for each, as moe_route.cuh chooses them. Lane i writes the i-th
 * expert and its weight; the lanes after them the shared experts, whose weight is one number. */
#include "common/cuda/launch.cuh"
#include "moe/moe_route.cuh"
#include "moe/moe_route_args.h"

#ifndef SHARED
#define SHARED 0 /* shared experts behind a token's own */
#endif
#ifndef THREADS
#define THREADS 256
#endif
static_assert(ROUTE_TOPK + SHARED <= 32, "a lane for each result");

extern "C" __global__ void __launch_bounds__(THREADS)
    moe_route(const __grid_constant__ struct moe_route_args args)
{
    const int64_t token = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
    launch_wait();
    launch_dependents();
#endif
    if (token >= args.tokens)
        return;
    const void *logits = element(ROUTE_DTYPE, args.logits, token * args.logits_row);
    struct route_choice choice = route_token(logits, args.bias, args.scalars);
    if (lane >= ROUTE_TOPK) {
        choice.id = ROUTE_EXPERTS + lane - ROUTE_TOPK;
        choice.weight = args.shared_weight;
    }
    if (lane < ROUTE_TOPK + SHARED) {
        args.ids[token * args.ids_row + lane] = choice.id;
        args.weights[token * args.weights_row + lane] = choice.weight;
    }
}
