/* A warp on its way through chunks: what it has of a state, where that comes from and goes to, and
 * the outputs. A warp has 16 columns of the state, or with others of SPLIT some channels of k of
 * them, transposed: 16 x k f32 in tiles. */
#ifndef KDA_WALK_CUH
#define KDA_WALK_CUH
#include "kda_kinds.h"
#include "kda_segments.cuh"

#define SLAB_WARPS (BV / 16 * SPLIT)
#define OWN_TILES (K_TILES / SPLIT)       /* of its columns' state that a warp has */
#define OWN_BLOCKS (CHUNK_BLOCKS / SPLIT) /* of 16 tokens */
#define SLAB_PART KDA_PART_BYTES(CHUNK, BV)
#define FIRST_BYTES(is_end) ((is_end) ? KEY_PART + SLAB_PART : 2 * KEY_PART + 2 * SLAB_PART)
#define SECOND_BYTES (KEY_PART + 4 * KEY_WIDTH)

/* Where a warp works. */
struct walk {
    const struct kda_prefill_cuda_args *args;
    const char *record; /* of the chunk that is copied next: its first part, its second */
    const char *second_record;
    char *out;         /* of the lane's first row of the chunk and its four channels */
    int64_t out_pitch; /* bytes: 8 tokens */
    uint32_t shared, barriers;
    char *stages;
    int64_t record_pitch, first_left, second_left; /* chunks to be copied */
    char *shares; /* of v, then of S, for the warps of the same columns */
    int head, slab;
    int columns, first_tile, first_block; /* 16 of the state; what of them a warp has */
    bool is_map;                          /* the columns are of the segment's map */
    /* chunk_states: of the next row the head's state, and tokens since the sequence's start */
    char *chunk_state;
    int64_t offset;
};

/* ---- The state in memory ------------------------------------------------------------------- */

/* Channel of v of the lane's row in a tile: 16 of a warp, row lane / 4 + 8 half. */
__device__ __forceinline__ int value_channel(const struct walk *walk, int half)
{
    int row = threadIdx.x % 32 / 4;
    return walk->columns * 16 + row / 2 * 4 + row % 2 + 2 * half;
}

__device__ __forceinline__ void load_state(const struct walk *walk, int64_t index,
                                           struct sums (&state)[OWN_TILES])
{
    const struct kda_prefill_cuda_args *args = walk->args;
    const char *base = (const char *)element(STATE_DTYPE, args->before,
                                             index * args->before_n + walk->head * args->before_h);
#pragma unroll
    for (int i = 0; i < 2 * OWN_TILES; i++) {
        int half = i % 2, value = value_channel(walk, half);
        int key = (walk->first_tile + i / 2) * 16 + threadIdx.x % 4 * 4;
        uint32_t words[4];
        if (LAYOUT == KDA_LAYOUT_VK)
            load_4<STATE_DTYPE, ALIGN_BEFORE>(
                words, element(STATE_DTYPE, base, value * args->before_row + key));
#pragma unroll
        for (int j = 0; j < 4; j++)
            state[i / 2].d[j / 2][2 * half + j % 2] =
                LAYOUT == KDA_LAYOUT_VK
                    ? word_as_f32(STATE_DTYPE, words, j)
                    : load_as_f32(STATE_DTYPE,
                                  element(STATE_DTYPE, base, (key + j) * args->before_row + value));
    }
}

/* What is not finite, as NaN: sums in another order give an infinity or a NaN. */
__device__ __forceinline__ float finite_or_nan(float value)
{
    return fmaf(value, 0.0f, value);
}

/* To a head's state at `base`, whose rows are `pitch` elements apart. */
template <int dtype, int align>
__device__ __forceinline__ void store_state(const struct walk *walk, char *base, int64_t pitch,
                                            const struct sums (&state)[OWN_TILES])
{
#pragma unroll
    for (int i = 0; i < 2 * OWN_TILES; i++) {
        int half = i % 2, value = value_channel(walk, half);
        int key = (walk->first_tile + i / 2) * 16 + threadIdx.x % 4 * 4;
        float values[4];
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            values[j] = finite_or_nan(state[i / 2].d[j / 2][2 * half + j % 2]);
        if (LAYOUT == KDA_LAYOUT_VK) {
            words_from_f32(dtype, words, values, 4);
            store_4<dtype, align>((char *)element(dtype, base, value * pitch + key), words);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            store_from_f32(dtype, (char *)element(dtype, base, (key + j) * pitch + value),
                           values[j]);
    }
}

/* The state at a multiple of 64 tokens from the sequence's start. */
__device__ __forceinline__ void store_chunk_state(struct walk *walk,
                                                  const struct sums (&state)[OWN_TILES])
{
    if (walk->offset % 64 == 0) {
        store_state<DTYPE, ALIGN_CHUNKS>(walk, walk->chunk_state, walk->args->chunks_row, state);
        walk->chunk_state += walk->args->chunks_n * DT_SIZE(DTYPE);
    }
    walk->offset += CHUNK;
}

/* ---- Outputs --------------------------------------------------------------------------------- */

/* o^T is turned back: a lane has four channels of a token. 16 tokens from block * 16, of which
 * `rows` exist, or more. */
__device__ __forceinline__ void store_outputs(const struct walk *walk, struct sums outputs,
                                              int block, int rows)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        outputs.d[i / 4][i % 4] = finite_or_nan(outputs.d[i / 4][i % 4] * walk->args->scale);
    struct tile tile = transposed(rounded(outputs));
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if ((int)threadIdx.x % 32 / 4 + 8 * half < rows)
            store_4<DTYPE, ALIGN_O>(walk->out + (2 * block + half) * walk->out_pitch,
                                    tile.r + 2 * half);
    }
}

/* ---- Beginning ----------------------------------------------------------------------------- */

__device__ __forceinline__ struct walk walk_of(const struct kda_prefill_cuda_args *args,
                                               const struct sequence *run, int head, int slab,
                                               char *shared)
{
    struct walk walk;
    int64_t token = run->begin + threadIdx.x % 32 / 4;
    int warp = threadIdx.x / 32;
    walk.args = args;
    walk.head = head;
    walk.slab = slab;
    walk.columns = slab * (BV / 16) + warp / SPLIT;
    walk.first_tile = warp % SPLIT * OWN_TILES;
    walk.first_block = warp % SPLIT * OWN_BLOCKS;
    walk.is_map = false;
    walk.record_pitch = args->hv * (int64_t)RECORD_BYTES;
    walk.record = args->records + run->first * walk.record_pitch + head * (int64_t)RECORD_BYTES;
    walk.second_record = walk.record;
    walk.stages = shared;
    walk.shared = (uint32_t)__cvta_generic_to_shared(shared);
    walk.first_left = walk.second_left = run->chunks;
    walk.out_pitch = 8 * args->o_t * DT_SIZE(DTYPE);
    walk.out = (char *)element(DTYPE, args->o,
                               token * args->o_t + head * args->o_h + walk.columns * 16 +
                                   threadIdx.x % 4 * 4);
    walk.barriers = walk.shared + STAGES * KDA_STATE_STAGE(CHUNK, KEY_WIDTH, BV);
    walk.shares = shared + STAGES * KDA_STATE_STAGE(CHUNK, KEY_WIDTH, BV) +
                  warp / SPLIT * (CHUNK_BLOCKS + K_TILES) * KDA_TILE_BYTES;
    return walk;
}

/* The slot of a sequence's state, or its own number; -1: it begins as 0 and is kept nowhere. */
__device__ __forceinline__ int64_t place_of(const struct kda_prefill_cuda_args *args, int64_t index)
{
    if (!POOL)
        return index;
    int64_t slot = args->slots[index];
    return slot < args->capacity ? slot : -1;
}

/* The state before the call. */
__device__ __forceinline__ void load_before(const struct walk *walk, int64_t place,
                                            struct sums (&state)[OWN_TILES])
{
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++)
        state[tile] = zero_sums();
    if (HAS_BEFORE && place >= 0)
        load_state(walk, place, state);
}

/* The state with which a segment of several begins: the end of the one before; of the first in the
 * last one's place. */
__device__ __forceinline__ void load_begin(const struct walk *walk, const struct segment *segment,
                                           struct sums (&state)[OWN_TILES])
{
#if SEGMENT
    int64_t before = segment->number ? segment->slot - 1 : segment->slot + segment->count - 1;
    const char *end = end_of(walk->args, before, walk->head);
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++)
        state[tile] = load_end(end, walk->columns, walk->first_tile + tile);
#endif
}
#endif
