/* The first step of moe for many tokens: a warp for each chooses its experts (moe_route.cuh). What
 * is left of them are their places in w13 and w2, or -1 where they are not here; shared ones
 * follow, with weight 1. */
#include "common/cuda/launch.cuh"

#ifndef EXPERTS
#define EXPERTS 256
#define TOPK 8
#define SHARED 0
#define LOCAL 256
#define MAPPED 0
#endif
#ifndef THREADS
#define THREADS 256
#endif
#include "moe/moe_grouped_args.h"
#include "moe/moe_route.cuh"

#define SLOTS (TOPK + SHARED)

extern "C" __global__ void __launch_bounds__(THREADS)
    moe_grouped_route(const __grid_constant__ struct moe_grouped_route_args args)
{
    /* The same in all lanes, which the compiler can tell. */
    const int warp = __shfl_sync(0xffffffff, (int)threadIdx.x / 32, 0);
    const int64_t token = (int64_t)blockIdx.x * (THREADS / 32) + warp;
    const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
    launch_dependents();
#endif
    if (token >= args.moe.tokens)
        return;
    const void *logits = element(ROUTE_DTYPE, args.moe.logits, token * args.moe.logits_row);
    struct route_choice choice = route_token(logits, args.moe.bias, args.scalars);
    for (int j = lane; j < SLOTS; j += 32) {
        int id = j < TOPK ? choice.id : LOCAL + j - TOPK;
        if (MAPPED && j < TOPK)
            id = args.moe.expert_map[id];
        args.ids[token * SLOTS + j] = id >= 0 && (id < LOCAL || j >= TOPK) ? id : -1;
        args.weights[token * SLOTS + j] = j < TOPK ? choice.weight : 1.0f;
    }
}
