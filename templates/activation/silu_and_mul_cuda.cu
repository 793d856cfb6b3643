/* silu_and_mul, as it is or with a factor for 128 columns: the items of all rows are one row of
 * items, over which blocks walk in strides of the grid, UNROLL items a thread at a time.
 *
 *     1. loads of all items, so that they are in flight together
 *     2. each item joined; of a group's 16 items, which 16 lanes have, the greatest magnitude
 *     3. stored
 *
 * A thread divides once; from then on it counts rows and items. */
#include "activation/silu_and_mul.cuh"

#ifndef UNROLL
#define UNROLL 2
#endif

struct place {
    int64_t token;
    uint32_t item;
};

static __device__ __forceinline__ struct place place_of(uint64_t first, uint32_t offset,
                                                        uint32_t items)
{
    const uint64_t token = first >> 32 ? first / items : (uint32_t)first / items;
    const uint32_t item = (uint32_t)(first - token * items) + offset;
    struct place place = { (int64_t)(token + item / items), item % items };
    return place;
}

static __device__ __forceinline__ void go_on(struct place &place,
                                             const struct silu_and_mul_args &args)
{
    place.token += args.step_rows;
    place.item += args.step_items;
    if (place.item >= args.items) {
        place.item -= args.items;
        place.token++;
    }
}

/* Over the 16 lanes of a group. */
static __device__ __forceinline__ float group_greatest(float most)
{
#pragma unroll
    for (int apart = SILU_MUL_GROUP / ITEM / 2; apart > 0; apart /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    return most;
}

static __device__ __forceinline__ void
finish(const struct silu_and_mul_args &args, const struct place &place, const struct halves &halves)
{
    const bool is_there = place.token < args.tokens;
    float values[ITEM];
    join(values, halves, args);
    if (!QUANTIZE) {
        if (is_there)
            store_item(args, place.token, place.item, values);
        return;
    }
    const uint32_t group_items = SILU_MUL_GROUP / ITEM;
    const float factor = factor_of(group_greatest(greatest(0.0f, values)));
    if (is_there && place.item % group_items == 0)
        args.scales[place.token * args.scales_row + place.item / group_items] = factor;
    if (is_there)
        store_codes(args, place.token, place.item, values, __fdiv_rn(1.0f, factor));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    silu_and_mul(const __grid_constant__ struct silu_and_mul_args args)
{
    const int64_t items = args.tokens * args.items, tile = THREADS * UNROLL;
    struct place places[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        places[u] = place_of(blockIdx.x * tile + u * THREADS, threadIdx.x, args.items);
    for (int64_t first = blockIdx.x * tile; first < items; first += gridDim.x * tile) {
        struct halves halves[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            halves[u] = {};
            if (places[u].token < args.tokens)
                load_item(halves[u], args, places[u].token, places[u].item);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            finish(args, places[u], halves[u]);
            go_on(places[u], args);
        }
    }
}
