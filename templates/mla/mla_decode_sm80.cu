/* mla_decode by mma.sync, sm_80 and up. A block has BM rows of queries (mla_decode_items.cuh) and
 * takes TILE rows of the cache at a time, copied by cp.async STAGES - 1 tiles ahead, through all
 * items of its share:
 *
 *     for each tile:
 *         1. wait for it, and for all warps to be done with the one before; copy one more
 *         2. of e4m3: the values, without their factors, become rows like the others
 *         3. scores: a warp has BM / SCORE_M rows by TILE / SCORE_N tokens by a share of the
 *            products, which meet in shared memory
 *         4. each warp takes the softmax of its rows of o, all tokens: warps that have other
 *            columns of the same rows find the same, so nothing need be exchanged
 *         5. o += p v: a warp has BM / OUT_M rows by 512 / OUT_N columns, v are the first 512
 *            columns of the tile, read transposed
 *
 *     shared memory   [ queries ][ stage 0 ][ stage 1 ] ...  [ scores ][ flags ]
 *
 * 16 rows of queries are in registers instead. Queries and tiles are boxes of 64 columns, each BM
 * or TILE rows of 128 bytes whose chunks trade places (common/cuda/swizzle.cuh). Where KV_DTYPE is
 * e4m3 the ring holds tokens as they are, and there is one tile of rows.
 *
 * Where queries see different rows (CAUSAL), values that are not finite must not get to those who
 * do not see them, as 0 NaN: clear_broken_rows(). */
#ifndef DTYPE
#define DTYPE DT_BF16
#define KV_DTYPE DT_BF16
#define SQ 1
#define HQ 16
#define PAGE 64
#define CAUSAL 0
#define HAS_TOPK 0
#define HAS_LSE 1
#define DETERMINISTIC 0
#define BM 16
#define TILE 32
#define STAGES 5
#define ALIGN_Q 16
#define ALIGN_KV 16
#define ALIGN_O 16
#endif

#include "mla/mla_decode_combine.cuh"
#include "mla/mla_decode_sm80_scores.cuh"
#include "mla/mla_decode_softmax.cuh"

#define THREADS (32 * WARPS)

/* Warps of o: columns the fastest. */
#define OUT_M (BM == 16 ? 1 : 2)
#define OUT_N (WARPS / OUT_M)
#define OUT_BLOCKS (BM / OUT_M / 16)
#define OUT_COLUMNS (MLA_DV / OUT_N)

#define ROW_LANES (THREADS / TILE)                    /* threads that copy a row */
constexpr int COPIES_AT_ONCE = ALIGN_KV < 4 ? 1 : 32; /* others go through registers */
constexpr int LOADS_AT_ONCE = ALIGN_Q < 4 ? 1 : 4;
#define TILE_BYTES (TILE * MLA_ROW)
#define STAGE_BYTES (IS_E4M3 ? TILE * MLA_TOKEN_BYTES : TILE_BYTES)

static_assert(BM * MLA_ROW % 128 == 0 && TILE_BYTES % 128 == 0, "boxes are swizzled");
static_assert(OUT_COLUMNS <= MLA_GROUP && OUT_COLUMNS >= 64, "a warp's columns have one factor");

struct shared {
    uint32_t queries, stages, tile; /* tile: of rows, where KV_DTYPE is e4m3 */
    const char *raw;                /* the same as stages */
    float *scores;                  /* [SCORE_K][BM][SCORE_PITCH] */
    uint8_t *flags;                 /* [STAGES][TILE]: there is such a row */
};

struct state {
    float o[OUT_BLOCKS][OUT_COLUMNS / 8][4];
    float m[OUT_BLOCKS][2], l[OUT_BLOCKS][2]; /* of rows lane / 4 and 8 more; l: of this lane */
};

/* ---- Copying --------------------------------------------------------------------------------- */

/* What this thread copies next: a row of a tile, whose entry it has. */
struct copier {
    struct walk walk;
    int entry, stage;
};

__device__ __forceinline__ void copier_look_ahead(struct copier *copier)
{
    if (walk_has(&copier->walk))
        copier->entry =
            table_entry(&copier->walk, copier->walk.tile * TILE + threadIdx.x / ROW_LANES);
}

/* The next tile, if there is one; a group either way. */
__device__ __forceinline__ void copy_tile(const struct mla_cuda_args *args,
                                          const struct shared *shared, struct copier *copier)
{
    const int row = threadIdx.x / ROW_LANES, lane = threadIdx.x % ROW_LANES;
    constexpr int chunks = IS_E4M3 ? MLA_TOKEN_BYTES / 16 : MLA_ROW / 16;
    if (walk_has(&copier->walk)) {
        const char *from =
            cache_row(args, &copier->walk, copier->walk.tile * TILE + row, copier->entry);
        const char *at = (from ? from : (const char *)args->mla.kv_cache) + lane * 16;
        uint32_t stage = shared->stages + copier->stage * STAGE_BYTES;
#pragma unroll COPIES_AT_ONCE
        for (int i = 0; i < (chunks + ROW_LANES - 1) / ROW_LANES; i++) {
            int chunk = lane + i * ROW_LANES;
            uint32_t to = IS_E4M3 ? stage + row * MLA_TOKEN_BYTES + chunk * 16
                                  : stage + row_chunk(TILE, row, chunk);
            if (chunks % ROW_LANES == 0 || chunk < chunks)
                copy_row_chunk<ALIGN_KV>(to, at + i * ROW_LANES * 16, from != nullptr);
        }
        if (HAS_TOPK && lane == 0)
            shared->flags[copier->stage * TILE + row] = from != nullptr;
        walk_next(&copier->walk, args);
        copier_look_ahead(copier);
    }
    cp_async_commit();
    copier->stage = copier->stage + 1 == STAGES ? 0 : copier->stage + 1;
}

/* The unit's queries of a sequence to shared memory; zeros for rows that are not there. */
__device__ __forceinline__ void load_queries(const struct mla_cuda_args *args,
                                             const struct shared *shared, const struct walk *walk)
{
#pragma unroll LOADS_AT_ONCE
    for (int i = threadIdx.x; i < BM * (MLA_ROW / 16); i += THREADS) {
        int row = i / (MLA_ROW / 16), chunk = i % (MLA_ROW / 16);
        int64_t offset = heads_offset(args->mla.q, walk->unit.sequence, blockIdx.y, row);
        uint32_t words[4] = {};
        if (offset >= 0)
            load_chunk<ALIGN_Q>(words, (const char *)args->mla.q.data + offset * 2 + chunk * 16);
        take_sign(words, args->mla.scale);
        store_shared_16(shared->queries + row_chunk(BM, row, chunk), words);
    }
}

/* This warp's fragments of them, instead, to registers. */
__device__ __forceinline__ void keep_queries(const struct mla_cuda_args *args,
                                             const struct walk *walk,
                                             uint32_t (&kept)[BOXES][BOX_STEPS][4])
{
    const int lane = threadIdx.x % 32, first = score_warp().share * BOX_STEPS * 16 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t offset =
            heads_offset(args->mla.q, walk->unit.sequence, blockIdx.y, lane / 4 + 8 * half);
        const char *row = (const char *)args->mla.q.data + (offset + first) * 2;
#pragma unroll
        for (int i = 0; i < BOXES * BOX_STEPS * 2; i++) {
            int box = i / 2 / BOX_STEPS, step = i / 2 % BOX_STEPS, right = i % 2;
            uint32_t &pair = kept[box][step][2 * right + half];
            pair = offset < 0 ? 0
                              : load_pair<ALIGN_Q>(row + (box * 64 + step * 16 + right * 8) * 2) ^
                                    sign_to_take(args->mla.scale);
        }
    }
}

/* The last of the tile's `rows` rows are not seen by all queries: of these, those with values that
 * are not finite become zero, so that they do not get to the others; to queries that see them they
 * do by the scores. By all threads. */
__device__ __forceinline__ void clear_broken_rows(uint32_t tile, int rows)
{
    const int row = threadIdx.x / ROW_LANES, lane = threadIdx.x % ROW_LANES;
    const uint32_t zeros[4] = {};
    bool is_broken = false;
    for (int chunk = lane; row > rows - SQ && chunk < MLA_DV / 8; chunk += ROW_LANES)
        is_broken |= has_infinity_or_nan(tile + row_chunk(TILE, row, chunk));
    uint32_t broken = __ballot_sync(~0u, is_broken);
    if (broken >> threadIdx.x % 32 / ROW_LANES * ROW_LANES & ((1u << ROW_LANES) - 1))
        for (int chunk = lane; chunk < MLA_DV / 8; chunk += ROW_LANES)
            store_shared_16(tile + row_chunk(TILE, row, chunk), zeros);
    __syncthreads();
}

/* ---- Softmax and o --------------------------------------------------------------------------- */

__device__ __forceinline__ int out_rows(void)
{
    return threadIdx.x / 32 / OUT_N * 16 * OUT_BLOCKS;
}

__device__ __forceinline__ int out_columns(void)
{
    return threadIdx.x / 32 % OUT_N * OUT_COLUMNS;
}

/* Scores of this lane's rows in block `block`; -infinity where they are not seen. */
__device__ __forceinline__ void load_scores(const struct shared *shared, const struct walk *walk,
                                            int stage, int block, float (&s)[TILE / 8][4])
{
    const int row = out_rows() + 16 * block + threadIdx.x % 32 / 4;
    const int rows = walk->length - walk->tile * TILE;
    const int seen[2] = { rows_seen(rows, row), rows_seen(rows, row + 8) };
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        int token = 8 * i + threadIdx.x % 4 * 2;
        uint32_t flags =
            HAS_TOPK ? *(const uint16_t *)(shared->flags + stage * TILE + token) : 0x101;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float2 pair = score_pair(shared->scores, row + 8 * half, token);
            s[i][2 * half] = token < seen[half] && flags & 1 ? pair.x : SPLIT_NONE;
            s[i][2 * half + 1] = token + 1 < seen[half] && flags >> 8 ? pair.y : SPLIT_NONE;
        }
    }
}

__device__ __forceinline__ void scale_rows(float (&o)[OUT_COLUMNS / 8][4], const float (&keep)[2])
{
    if (!__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f))
        return;
#pragma unroll
    for (int i = 0; i < OUT_COLUMNS / 8; i++) {
        o[i][0] *= keep[0], o[i][1] *= keep[0];
        o[i][2] *= keep[1], o[i][3] *= keep[1];
    }
}

/* Values of e4m3 have no factors: the weights get them. */
__device__ __forceinline__ void scale_weights(float (&p)[TILE / 8][4], const char *raw,
                                              bool is_partly_seen)
{
#pragma unroll
    for (int i = 0; i < TILE / 8 * 2; i++) {
        int token = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float factor = e4m3_factor(raw, token, out_columns() / MLA_GROUP);
#pragma unroll
        for (int half = 0; half < 2; half++) { /* 0 NaN where it is not seen */
            float &weight = p[i / 2][2 * half + i % 2];
            weight = is_partly_seen && weight == 0.0f ? 0.0f : weight * factor;
        }
    }
}

/* 4, 5. */
__device__ __forceinline__ void add_tile(const struct mla_cuda_args *args,
                                         const struct shared *shared, const struct walk *walk,
                                         int stage, uint32_t tile, const char *raw,
                                         struct state *state)
{
    const int lane = threadIdx.x % 32, column = out_columns();
    uint32_t p[OUT_BLOCKS][TILE / 16][4];
#pragma unroll
    for (int block = 0; block < OUT_BLOCKS; block++) {
        float s[TILE / 8][4], keep[2];
        load_scores(shared, walk, stage, block, s);
        softmax_rows(s, score_factor(args->mla.scale), state->m[block], state->l[block], keep);
        scale_rows(state->o[block], keep);
        if (IS_E4M3)
            scale_weights(s, raw, has_partly_seen(walk->length - walk->tile * TILE));
#pragma unroll
        for (int i = 0; i < TILE / 16; i++)
            as_operand(p[block][i], s[2 * i], s[2 * i + 1]);
    }
    const uint32_t lane_at = row_chunk(TILE, lane % 16, column / 8 + lane / 16);
#pragma unroll
    for (int i = 0; i < OUT_COLUMNS / 16; i++) {
        const uint32_t at = tile + (lane_at ^ i % 4 * 32) + i / 4 * (TILE * MLA_BOX_ROW);
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            uint32_t v[4];
            ldmatrix_x4_transposed(v, at + step * 16 * MLA_BOX_ROW);
#pragma unroll
            for (int block = 0; block < OUT_BLOCKS; block++) {
                multiply(state->o[block][2 * i], p[block][step], v[0], v[1]);
                multiply(state->o[block][2 * i + 1], p[block][step], v[2], v[3]);
            }
        }
    }
}

__device__ __forceinline__ void clear_state(struct state *state)
{
#pragma unroll
    for (int block = 0; block < OUT_BLOCKS; block++) {
#pragma unroll
        for (int i = 0; i < OUT_COLUMNS / 8 * 4; i++)
            state->o[block][i / 4][i % 4] = 0.0f;
        state->m[block][0] = state->m[block][1] = SPLIT_NONE;
        state->l[block][0] = state->l[block][1] = 0.0f;
    }
}

/* The item is done. */
__device__ __forceinline__ void finish_item(const struct mla_cuda_args *args,
                                            const struct walk *walk, const struct state *state)
{
    const struct part part = walk_part(walk);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < OUT_BLOCKS * 2; i++) {
        int row = out_rows() + i * 8 + lane / 4, column = out_columns() + lane % 4 * 2;
        float l = state->l[i / 2][i % 2], m = state->m[i / 2][i % 2];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        const struct row_place place = row_place(args, &part, row, l);
        if (threadIdx.x / 32 % OUT_N == 0 && lane % 4 == 0)
            put_sums(args, &part, row, m * score_factor(args->mla.scale), l);
#pragma unroll
        for (int j = 0; j < OUT_COLUMNS / 8; j++)
            put_pair(place, column + 8 * j, state->o[i / 2][j][i % 2 * 2],
                     state->o[i / 2][j][i % 2 * 2 + 1]);
    }
}

/* ---- The block ------------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mla_decode_sm80(const __grid_constant__ struct mla_cuda_args args)
{
    extern __shared__ __align__(128) char memory[];
    struct shared shared;
    shared.queries = (uint32_t)__cvta_generic_to_shared(memory);
    shared.tile = shared.queries + !KEEPS_QUERIES * BM * MLA_ROW;
    shared.stages = shared.tile + IS_E4M3 * TILE_BYTES;
    shared.raw = memory + (shared.stages - shared.queries);
    shared.scores = (float *)(shared.raw + STAGES * STAGE_BYTES);
    shared.flags = (uint8_t *)(shared.scores + SCORE_K * BM * SCORE_PITCH);

    struct walk walk = walk_begin(&args);
    struct copier copier = { walk, 0, 0 };
    struct state state;
    uint32_t kept[BOXES][BOX_STEPS][4];
    int stage = 0;
    if (threadIdx.x < 32)
        walk_record(&args, &walk);
    copier_look_ahead(&copier);
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++)
        copy_tile(&args, &shared, &copier);
#pragma unroll 1
    while (walk_has(&walk)) {
        const bool is_first = walk.tile == walk.first_tile;
        if (is_first) {
            if (KEEPS_QUERIES)
                keep_queries(&args, &walk, kept);
            else
                load_queries(&args, &shared, &walk);
            clear_state(&state);
        }
        cp_async_wait<STAGES - 2>(); /* 1 */
        __syncthreads();
        copy_tile(&args, &shared, &copier);
        const char *raw = shared.raw + stage * STAGE_BYTES;
        const uint32_t tile = IS_E4M3 ? shared.tile : shared.stages + stage * STAGE_BYTES;
        if (IS_E4M3) { /* 2 */
            widen_tokens<TILE, THREADS>(tile, raw);
            __syncthreads();
        }
        compute_scores(shared.scores, shared.queries, tile, raw, kept); /* 3 */
        __syncthreads();
        if (has_partly_seen(walk.length - walk.tile * TILE))
            clear_broken_rows(tile, walk.length - walk.tile * TILE);
        add_tile(&args, &shared, &walk, stage, tile, raw, &state); /* 4, 5 */
        if (walk.tile + 1 == walk.tiles_end)
            finish_item(&args, &walk, &state);
        walk_next(&walk, &args);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    announce_combine();
    cp_async_wait<0>();
}
