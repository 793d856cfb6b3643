/* Tiles of a few tokens, made by one block: which experts were hit, and by which slots.
 *
 *     1. a warp a token: its experts; each expert's mask gets the token's bit
 *     2. one warp: where each expert's tiles begin, from the masks' bits
 *     3. a thread a slot: its tile and place there, from the bits below the token's
 *
 * One token needs no masks: its slots are the tiles.
 *
 * The order of tiles is that of experts, shared ones last, and of slots in them that of tokens:
 * whatever the order in which the bits came. A slot whose expert is not here is in no tile. */
#ifndef MOE_STREAM_TABLE_CUH
#define MOE_STREAM_TABLE_CUH
#include "moe/moe_route.cuh"
#include "moe/moe_stream_args.h"

#define SLOTS (TOPK + SHARED) /* of a token */
#define CHOICES (EXPERTS + SHARED)

/* The same in all lanes, which the compiler can tell: what they do together then needs no check. */
static __device__ __forceinline__ int moe_uniform(int value)
{
    return __shfl_sync(0xffffffff, value, 0);
}

static __device__ __forceinline__ int moe_warp(void)
{
    return moe_uniform(threadIdx.x / 32);
}

struct moe_table {
    uint64_t *masks; /* [CHOICES], tokens that chose it */
    int32_t *firsts; /* [CHOICES], its first tile */
    int32_t *ids;    /* [slots], -1: not here */
    struct moe_tiles tiles;
};

/* In shared memory, MOE_STREAM_TABLE bytes. */
static __device__ __forceinline__ struct moe_table moe_table_in(char *space, int slots)
{
    struct moe_table table;
    table.masks = (uint64_t *)space;
    table.firsts = (int32_t *)(space + MOE_STREAM_MASKS(EXPERTS, SHARED));
    table.tiles.count = table.firsts + CHOICES;
    table.ids = table.tiles.count + 1;
    table.tiles.weights = (float *)(table.ids + slots);
    table.tiles.experts = (int32_t *)(table.tiles.weights + slots);
    table.tiles.slots = table.tiles.experts + slots;
    return table;
}

/* Which of w13 and w2 a choice is; -1: none. */
static __device__ __forceinline__ int moe_local(const struct moe_args &moe, int choice)
{
    if (choice >= EXPERTS)
        return LOCAL + choice - EXPERTS;
    int local = MAPPED ? moe.expert_map[choice] : choice;
    return local >= 0 && local < LOCAL ? local : -1;
}

static __device__ __forceinline__ void moe_table_route(const struct moe_stream_args &args,
                                                       const struct moe_table &table, int token)
{
    const int lane = threadIdx.x % 32;
    const void *row = element(ROUTE_DTYPE, args.moe.logits, token * args.moe.logits_row);
    struct route_choice choice = route_token(row, args.moe.bias, args.scalars);
    for (int j = lane; j < SLOTS; j += 32) {
        int id = j < TOPK ? choice.id : EXPERTS + j - TOPK;
        id = moe_local(args.moe, id) < 0 ? -1 : id;
        table.ids[token * SLOTS + j] = id;
        table.tiles.weights[token * SLOTS + j] = j < TOPK ? choice.weight : 1.0f;
        if (id >= 0)
            atomicOr((unsigned long long *)&table.masks[id], 1ull << token);
    }
}

/* By one warp: a run of choices a lane. */
static __device__ __forceinline__ void moe_table_scan(const struct moe_table &table)
{
    const int lane = threadIdx.x % 32, run = (CHOICES + 31) / 32;
    int sum = 0;
    for (int e = lane * run; e < min((lane + 1) * run, CHOICES); e++)
        sum += (__popcll(table.masks[e]) + MOE_STREAM_MEMBERS - 1) / MOE_STREAM_MEMBERS;
    int first = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffff, first, step);
        first += lane >= step ? other : 0;
    }
    if (lane == 31)
        *table.tiles.count = first;
    first -= sum;
    for (int e = lane * run; e < min((lane + 1) * run, CHOICES); e++) {
        table.firsts[e] = first;
        first += (__popcll(table.masks[e]) + MOE_STREAM_MEMBERS - 1) / MOE_STREAM_MEMBERS;
    }
}

static __device__ __forceinline__ void moe_table_place(const struct moe_args &moe,
                                                       const struct moe_table &table, int slot)
{
    const int id = table.ids[slot];
    if (id < 0)
        return;
    const uint64_t mask = table.masks[id];
    const int rank = __popcll(mask & ((1ull << slot / SLOTS) - 1));
    const int tile = table.firsts[id] + rank / MOE_STREAM_MEMBERS;
    int32_t *slots = table.tiles.slots + tile * MOE_STREAM_MEMBERS;
    slots[rank % MOE_STREAM_MEMBERS] = slot;
    if (rank % MOE_STREAM_MEMBERS)
        return;
    table.tiles.experts[tile] = moe_local(moe, id);
    for (int i = __popcll(mask) - rank; i < MOE_STREAM_MEMBERS; i++)
        slots[i] = -1;
}

/* The tiles of one token, by one warp: a slot each, in their order. */
static __device__ __forceinline__ void moe_table_of_one(const struct moe_stream_args &args,
                                                        const struct moe_table &table)
{
    const int lane = threadIdx.x % 32;
    struct route_choice choice = route_token(args.moe.logits, args.moe.bias, args.scalars);
    int count = 0;
#pragma unroll
    for (int j = lane; j < (SLOTS + 31) / 32 * 32; j += 32) {
        int local = j < SLOTS ? moe_local(args.moe, j < TOPK ? choice.id : EXPERTS + j - TOPK) : -1;
        uint32_t here = __ballot_sync(0xffffffff, local >= 0);
        int tile = count + __popc(here & ((1u << lane) - 1));
        if (local >= 0) {
            table.tiles.experts[tile] = local;
            for (int i = 0; i < MOE_STREAM_MEMBERS; i++)
                table.tiles.slots[tile * MOE_STREAM_MEMBERS + i] = i ? -1 : j;
            table.tiles.weights[j] = j < TOPK ? choice.weight : 1.0f;
        }
        count += __popc(here);
    }
    if (lane == 0)
        *table.tiles.count = count;
}

/* By all threads of the block, of which there are `threads`. */
static __device__ __forceinline__ void moe_table_make(const struct moe_stream_args &args,
                                                      const struct moe_table &table, int threads)
{
    const int tokens = (int)args.moe.tokens;
    if (MOST_TOKENS == 1) {
        if (moe_warp() == 0)
            moe_table_of_one(args, table);
        __syncthreads();
        return;
    }
    for (int e = threadIdx.x; e < CHOICES; e += threads)
        table.masks[e] = 0;
    __syncthreads();
    for (int token = moe_warp(); token < tokens; token += threads / 32)
        moe_table_route(args, table, token);
    __syncthreads();
    if (moe_warp() == 0)
        moe_table_scan(table);
    __syncthreads();
    for (int slot = threadIdx.x; slot < tokens * SLOTS; slot += threads)
        moe_table_place(args.moe, table, slot);
    __syncthreads();
}
#endif
