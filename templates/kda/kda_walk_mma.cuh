/* A walk by mma.sync, on every target.
 *
 * What a product leaves is, rounded, the first operand of the next one, so that the state never
 * leaves the registers:
 *
 *     v  = u - w S              v^T = u^T - S^T w^T                the records hold these second
 *     o  = outputs + queries S  o^T = outputs^T + S^T queries^T    operands, in tiles
 *     S  = decay S + keys^T v   S^T = S^T decay + v^T keys
 *
 * A record is copied in two parts, w, queries, u, outputs and keys, decays, each to one of STAGES
 * places. While one is worked on the next are under way; a place that all warps are done with is
 * filled again:
 *
 *     for each chunk:
 *         1. wait for the first part, barrier, copy the second part that comes next
 *         2. v and o; write o
 *         3. wait for the second part, barrier, copy the first part that comes next
 *         4. S
 *
 * Warps that share columns have each some of the tokens in 2 and some channels of k in 4. Each
 * leaves its share of v and of S, rounded, in shared memory; the barriers are the same two. */
#ifndef KDA_WALK_MMA_CUH
#define KDA_WALK_MMA_CUH
#include "common/cuda/cp_async.cuh"
#include "kda_walk.cuh"

#define STATE_THREADS (32 * SLAB_WARPS)

/* ---- Records ------------------------------------------------------------------------------- */

template <int bytes> __device__ __forceinline__ void copy_bytes(uint32_t to, const char *from)
{
    const int pass = STATE_THREADS * 16, at = threadIdx.x * 16;
#pragma unroll
    for (int first = 0; first < bytes; first += pass) {
        if (bytes % pass == 0 || first + at < bytes)
            cp_async_16(to + first + at, from + first + at, 16);
    }
}

/* Starts the copy of the next first part, if there is one; a group either way. */
template <bool is_end> __device__ __forceinline__ void copy_first(struct walk *walk, int stage)
{
    if (walk->first_left > 0) {
        uint32_t to = walk->shared + stage * FIRST_BYTES(is_end);
        const char *values = walk->record + 2 * KEY_PART + walk->slab * SLAB_PART;
        const int keys = is_end ? KEY_PART : 2 * KEY_PART;
        copy_bytes<keys>(to, walk->record);
        if (!walk->is_map)
            copy_bytes<SLAB_PART>(to + keys, values);
        if (!is_end)
            copy_bytes<SLAB_PART>(to + keys + SLAB_PART, values + VALUE_PART);
        walk->record += walk->record_pitch;
        walk->first_left--;
    }
    cp_async_commit();
}

template <bool is_end> __device__ __forceinline__ void copy_second(struct walk *walk, int stage)
{
    if (walk->second_left > 0) {
        uint32_t to = walk->shared + STAGES * FIRST_BYTES(is_end) + stage * SECOND_BYTES;
        const char *keys = walk->second_record + 2 * KEY_PART + 2 * VALUE_PART;
        copy_bytes<KEY_PART>(to, keys);
        copy_bytes<4 * KEY_WIDTH>(to + KEY_PART, keys + KEY_PART);
        walk->second_record += walk->record_pitch;
        walk->second_left--;
    }
    cp_async_commit();
}

/* ---- A chunk --------------------------------------------------------------------------------- */

/* 2. Leaves v, rounded. */
template <bool is_end>
__device__ __forceinline__ void apply_state(const struct walk *walk, const char *part,
                                            const struct sums (&state)[OWN_TILES],
                                            struct tile (&v)[OWN_BLOCKS], int rows)
{
    const char *queries = part + KEY_PART, *shares = walk->shares + CHUNK_BLOCKS * KDA_TILE_BYTES;
    const char *u = (is_end ? queries : queries + KEY_PART) +
                    walk->columns % (BV / 16) * CHUNK_BLOCKS * KDA_TILE_BYTES;
    const int first = walk->first_block;
    struct sums less[OWN_BLOCKS], out[OWN_BLOCKS];
#pragma unroll
    for (int block = 0; block < OWN_BLOCKS; block++) {
        less[block] = walk->is_map ? zero_sums() : widened(negated(load_tile(u, first + block)));
        if (!is_end)
            out[block] = widened(load_tile(u + SLAB_PART, first + block));
    }
#pragma unroll
    for (int tile = 0; tile < K_TILES; tile++) {
        struct tile columns =
            SPLIT > 1 ? load_tile(shares, tile) : rounded(state[tile % OWN_TILES]);
#pragma unroll
        for (int block = 0; block < OWN_BLOCKS; block++) {
            int at = CHUNK_BLOCKS * tile + first + block;
            multiply(&less[block], columns, load_tile(part, at));
            if (!is_end)
                multiply(&out[block], columns, load_tile(queries, at));
        }
    }
#pragma unroll
    for (int block = 0; block < OWN_BLOCKS; block++) {
        v[block] = negated(rounded(less[block]));
        if (SPLIT > 1)
            store_tile(walk->shares, first + block, v[block]);
    }
#pragma unroll
    for (int block = 0; block < OWN_BLOCKS && !is_end; block++)
        store_outputs(walk, out[block], first + block, rows - 16 * (first + block));
}

/* What other warps need of the state. */
__device__ __forceinline__ void share_state(const struct walk *walk,
                                            const struct sums (&state)[OWN_TILES])
{
    char *shares = walk->shares + CHUNK_BLOCKS * KDA_TILE_BYTES;
#pragma unroll
    for (int tile = 0; tile < OWN_TILES && SPLIT > 1; tile++)
        store_tile(shares, walk->first_tile + tile, rounded(state[tile]));
}

/* 4. */
__device__ __forceinline__ void advance_state(const struct walk *walk, const char *keys,
                                              const struct tile (&v)[OWN_BLOCKS],
                                              struct sums (&state)[OWN_TILES])
{
    const float *decays = (const float *)(keys + KEY_PART) + 16 * walk->first_tile;
    struct tile values[CHUNK_BLOCKS];
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS; block++)
        values[block] = SPLIT > 1 ? load_tile(walk->shares, block) : v[block % OWN_BLOCKS];
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++) {
        float4 four = *(const float4 *)(decays + 16 * tile + threadIdx.x % 4 * 4);
        const float decay[4] = { four.x, four.y, four.z, four.w };
#pragma unroll
        for (int i = 0; i < 8; i++)
            state[tile].d[i / 4][i % 4] *= decay[i / 4 * 2 + i % 2];
#pragma unroll
        for (int block = 0; block < CHUNK_BLOCKS; block++)
            multiply(&state[tile], values[block],
                     load_tile(keys, block * K_TILES + walk->first_tile + tile));
    }
    share_state(walk, state);
}

template <bool is_end>
__device__ __forceinline__ void walk_chunks(struct walk *walk, const struct sequence *run,
                                            struct sums (&state)[OWN_TILES])
{
    const char *second = walk->stages + STAGES * FIRST_BYTES(is_end);
    struct tile v[OWN_BLOCKS];
    int stage = 0;
    share_state(walk, state);
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        copy_first<is_end>(walk, i);
        if (i < STAGES - 1)
            copy_second<is_end>(walk, i);
    }
    for (int64_t left = run->end - run->begin; left > 0; left -= CHUNK) {
        cp_async_wait<2 * STAGES - 2>();
        __syncthreads();
        copy_second<is_end>(walk, stage == 0 ? STAGES - 1 : stage - 1);
        if (CHUNK_STATES && !is_end)
            store_chunk_state(walk, state);
        apply_state<is_end>(walk, walk->stages + stage * FIRST_BYTES(is_end), state, v,
                            (int)min(left, (int64_t)CHUNK));
        walk->out += CHUNK / 8 * walk->out_pitch;
        cp_async_wait<2 * STAGES - 2>();
        __syncthreads();
        copy_first<is_end>(walk, stage);
        advance_state(walk, second + stage * SECOND_BYTES, v, state);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
}

/* Nothing to do before the first chunk; no warp copies for the others. */
template <bool is_end> __device__ __forceinline__ bool copies_for_others(const struct walk *walk)
{
    (void)walk;
    return false;
}
#endif
