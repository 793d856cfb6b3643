/* The two kernels by which segments learn the state that they begin with (kda_segments.cuh). */
#ifndef KDA_JOIN_CUH
#define KDA_JOIN_CUH
#include "kda_state.cuh"

#if SEGMENT
#define JOIN_WARPS 4
#define JOIN_TILES (K_TILES / JOIN_WARPS) /* of a row of the state that a warp has */

/* ---- Ends and maps ------------------------------------------------------------------------- */

/* A warp's share of 16 columns of the map as it begins: 1. */
__device__ __forceinline__ void begin_map(const struct walk *walk, struct sums (&map)[OWN_TILES])
{
    int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8 * OWN_TILES; i++) {
        int half = i % 8 / 4, part = i % 4, tile = walk->first_tile + i / 8;
        bool is_one = tile == walk->columns && column + part % 2 + 8 * half == row + part / 2 * 8;
        map[i / 8].d[half][part] = is_one ? 1.0f : 0.0f;
    }
}

/* The columns are rows of what a warp has. */
__device__ __forceinline__ void store_map(const struct walk *walk, char *map,
                                          const struct sums (&state)[OWN_TILES])
{
#pragma unroll
    for (int i = 0; i < OWN_TILES; i++) {
        struct tile high = rounded(state[i]);
        int at = map_tile(walk->first_tile + i, walk->columns);
        store_tile(map, at, transposed(high));
        store_tile(map, at + 1, transposed(rest_of(state[i], high)));
    }
}

__device__ __forceinline__ void store_ends(const struct walk *walk, char *end,
                                           const struct sums (&state)[OWN_TILES])
{
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++)
        store_end(end, walk->columns, walk->first_tile + tile, state[tile]);
}

/* Block: a slab of a value head of a segment, slabs first: of the state, then of the map. */
extern "C" __global__ void __launch_bounds__(STATE_THREADS)
    kda_prefill_ends(const __grid_constant__ struct kda_prefill_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    const int value_slabs = VALUE_WIDTH / BV, slabs = value_slabs + KEY_WIDTH / BV;
    int64_t unit = blockIdx.x / slabs;
    int slab = blockIdx.x % slabs, head = unit % args.hv;
    bool is_map = slab >= value_slabs;
    struct segment segment = segment_of(&args, unit / args.hv);
    if (segment.number >= segment.count - 1 || (is_map && segment.number == 0))
        return;
    slab = is_map ? slab - value_slabs : slab;
    struct walk walk = walk_of(&args, &segment.run, head, slab, shared);
    struct sums state[OWN_TILES];
    walk.is_map = is_map;
    if (copies_for_others<true>(&walk))
        return;
    if (is_map)
        begin_map(&walk, state);
    else
        load_before(&walk, segment.number == 0 ? place_of(&args, segment.index) : -1, state);
    if (segment.number == 0)
        store_ends(&walk, end_of(&args, segment.slot + segment.count - 1, head), state);
    walk_chunks<true>(&walk, &segment.run, state);
    if (is_map)
        store_map(&walk, end_of(&args, segment.slot, head) + END_BYTES, state);
    else
        store_ends(&walk, end_of(&args, segment.slot, head), state);
}

/* ---- Joining them -------------------------------------------------------------------------- */

/* A state's tile for all warps: rounded, and the rounded rest. */
__device__ __forceinline__ void share_tile(char *shared, int tile, const struct sums &sums)
{
    struct tile high = rounded(sums);
    store_tile(shared, 2 * tile, high);
    store_tile(shared, 2 * tile + 1, rest_of(sums, high));
}

/* Adds to tiles of a warp the map's product with the state before, which is shared. */
__device__ __forceinline__ void add_mapped(struct sums (&sums)[JOIN_TILES], const char *shared,
                                           const char *map, int first)
{
#pragma unroll
    for (int from = 0; from < K_TILES; from++) {
        struct tile high = load_tile(shared, 2 * from), rest = load_tile(shared, 2 * from + 1);
#pragma unroll
        for (int i = 0; i < JOIN_TILES; i++) {
            struct tile map_high = load_tile(map, map_tile(first + i, from));
            multiply(&sums[i], high, map_high);
            multiply(&sums[i], rest, map_high);
            multiply(&sums[i], high, load_tile(map, map_tile(first + i, from) + 1));
        }
    }
}

/* Block: 16 columns of a value head of a sequence, columns first; a warp has some of their rows. */
extern "C" __global__ void __launch_bounds__(32 * JOIN_WARPS)
    kda_prefill_join(const __grid_constant__ struct kda_prefill_cuda_args args)
{
    __shared__ __align__(128) char shared[2][2 * K_TILES * KDA_TILE_BYTES];
    const int slabs = VALUE_WIDTH / 16, first = threadIdx.x / 32 * JOIN_TILES;
    int64_t unit = blockIdx.x / slabs, index = unit / args.hv;
    int columns = blockIdx.x % slabs, head = unit % args.hv;
    struct segment segment = segment_of(&args, first_slot(&args, index));
    struct sums state[JOIN_TILES];
    for (int64_t i = 0; i < segment.count - 1; i++) {
        char *end = end_of(&args, segment.slot + i, head);
#pragma unroll
        for (int j = 0; j < JOIN_TILES; j++)
            state[j] = load_end(end, columns, first + j);
        if (i > 0)
            add_mapped(state, shared[i % 2], end + END_BYTES, first);
#pragma unroll
        for (int j = 0; j < JOIN_TILES; j++) {
            if (i > 0)
                store_end(end, columns, first + j, state[j]);
            share_tile(shared[(i + 1) % 2], first + j, state[j]);
        }
        __syncthreads();
    }
}
#endif
#endif
