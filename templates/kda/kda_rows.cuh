/* Step 1 of kda_prefill_intra (kda_intra.cuh): what its blocks have in shared memory, and how the
 * rows of a chunk get there. */
#ifndef KDA_ROWS_CUH
#define KDA_ROWS_CUH
#include "kda_chunks.cuh"
#include "kda_gate.cuh"
#include "kda_tile.cuh"

#define K_TILES (KEY_WIDTH / 16)
#define V_TILES (VALUE_WIDTH / 16)
#define K_WARPS (KEY_WIDTH / 64) /* that share 16 rows */
#define INTRA_WARPS (CHUNK_BLOCKS * K_WARPS)
#define INTRA_THREADS (32 * INTRA_WARPS)
#define IS_SCALAR (DECAY == KDA_DECAY_SCALAR)
#define PAIRS (CHUNK_BLOCKS * (CHUNK_BLOCKS - 1) / 2) /* of blocks */
#define SOME_PAIRS (PAIRS > 0 ? PAIRS : 1)
#define TOTALS (IS_SCALAR ? 4 : KEY_WIDTH)
#define SCRATCH_PITCH 20 /* f32 */
#define LOG2_E 1.4426950216f

/* What step 3 leaves for step 4: tiles, each once rounded and once the rest. */
struct blocks {
    char q_tiles[2][(PAIRS + CHUNK_BLOCKS) * KDA_TILE_BYTES]; /* (I, J) at I (I + 1) / 2 + J */
    char a_tiles[2][SOME_PAIRS * KDA_TILE_BYTES];             /* -A; (I, J) at I (I - 1) / 2 + J */
    char n_tiles[2][CHUNK_BLOCKS * KDA_TILE_BYTES];           /* (1 + A_II)^-1 - 1 */
    struct sums partial[K_WARPS - (K_WARPS > 1)][2][CHUNK_BLOCKS][32]; /* of A_II, Q_II, m > 0 */
    float scratch[CHUNK_BLOCKS][16 * SCRATCH_PITCH];
};

/* Shared memory of a block. Tiles of k and q stand as they were read until step 2 scales them in
 * place, and reorders them (kda_tile.cuh); where the blocks are in the end, sums of logarithms are
 * until then. */
struct intra_shared {
    char left[2][CHUNK_BLOCKS * K_TILES * KDA_TILE_BYTES];              /* k, q */
    char right[IS_SCALAR ? 16 : SOME_PAIRS * K_TILES * KDA_TILE_BYTES]; /* of a pair of blocks */
    union {
        struct blocks blocks;
        float logarithms[CHUNK_BLOCKS][IS_SCALAR ? 1 : K_TILES][2][32][4];
    };
    float totals[CHUNK_BLOCKS][TOTALS], sums[CHUNK_BLOCKS][TOTALS], middles[CHUNK_BLOCKS][TOTALS];
    float dots[K_WARPS][CHUNK][4]; /* q q, k k, q k, - */
    float running[CHUNK];          /* scalar: logarithms of the decay since the chunk's start */
    float beta[CHUNK], key_norm[CHUNK], query_norm[CHUNK];
    float key_factor[CHUNK], query_factor[CHUNK]; /* of rows on the right side of step 4 */
};
static_assert(sizeof(struct intra_shared) == KDA_INTRA_SHARED(CHUNK, KEY_WIDTH, IS_SCALAR),
              "as said");

/* Where a block works. */
struct intra {
    const struct kda_prefill_cuda_args *args;
    struct intra_shared *shared;
    char *record;
    int64_t token; /* the first of the chunk */
    int rows, head;
};

__device__ __forceinline__ float exp2_of(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_of(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float norm_of(float squares)
{
    return L2NORM ? rsqrtf(squares + 1e-6f) : 1.0f;
}

/* A row of the chunk. Past the last one it is that: beta is 0 and the decay 1 there, so that such
 * rows add nothing, and are not written. */
__device__ __forceinline__ int64_t token_of(const struct intra *in, int row)
{
    return in->token + min(row, in->rows - 1);
}

/* ---- Queries and keys ---------------------------------------------------------------------- */

/* Of each row, by the products of tiles with themselves: q q, k k, q k. A lane of four that share a
 * row has the element on the diagonal. */
struct row_dots {
    struct sums qq, kk, qk;
};

__device__ __forceinline__ void put_dots(const struct intra *in, int first_row, int part,
                                         const struct row_dots &dots)
{
    int lane = threadIdx.x % 32, row = lane / 4;
    bool is_odd = row % 2;
    if (lane % 4 != row / 2)
        return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float *to = in->shared->dots[part][first_row + row + 8 * half];
        to[0] = is_odd ? dots.qq.d[half][2 * half + 1] : dots.qq.d[half][2 * half];
        to[1] = is_odd ? dots.kk.d[half][2 * half + 1] : dots.kk.d[half][2 * half];
        to[2] = is_odd ? dots.qk.d[half][2 * half + 1] : dots.qk.d[half][2 * half];
    }
}

/* Four tiles of a warp's rows. */
struct rows {
    struct tile q[4], k[4];
};

__device__ __forceinline__ void load_rows(const struct intra *in, int block, int part,
                                          struct rows *rows)
{
    const struct kda_prefill_cuda_args *args = in->args;
    int lane = threadIdx.x % 32, channel = 64 * part + lane % 4 * 4, head = in->head / args->group;
    const void *q_head = element(DTYPE, args->q, head * args->q_h + channel);
    const void *k_head = element(DTYPE, args->k, head * args->k_h + channel);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t token = token_of(in, 16 * block + lane / 4 + 8 * half);
        const char *q_row = (const char *)element(DTYPE, q_head, token * args->q_t);
        const char *k_row = (const char *)element(DTYPE, k_head, token * args->k_t);
#pragma unroll
        for (int s = 0; s < 4; s++) {
            load_4<DTYPE, ALIGN_Q>(rows->q[s].r + 2 * half, q_row + 32 * s);
            load_4<DTYPE, ALIGN_K>(rows->k[s].r + 2 * half, k_row + 32 * s);
        }
    }
}

/* To shared memory, with their dots. */
__device__ __forceinline__ void put_rows(const struct intra *in, int block, int part,
                                         const struct rows &rows)
{
    struct row_dots dots = { zero_sums(), zero_sums(), zero_sums() };
#pragma unroll
    for (int s = 0; s < 4; s++) {
        store_tile(in->shared->left[0], block * K_TILES + 4 * part + s, rows.k[s]);
        store_tile(in->shared->left[1], block * K_TILES + 4 * part + s, rows.q[s]);
        if (!IS_SCALAR)
            multiply(&dots.qk, rows.q[s], rows.k[s]);
        if (L2NORM) {
            multiply(&dots.qq, rows.q[s], rows.q[s]);
            multiply(&dots.kk, rows.k[s], rows.k[s]);
        }
    }
    put_dots(in, 16 * block, part, dots);
}

/* v is needed last: to L2 for now, in lines of 128 bytes. */
__device__ __forceinline__ void prefetch_values(const struct intra *in)
{
    const struct kda_prefill_cuda_args *args = in->args;
    const int lines = VALUE_WIDTH / 64;
#pragma unroll 1
    for (int i = threadIdx.x; i < in->rows * lines; i += INTRA_THREADS) {
        int64_t offset = (in->token + i / lines) * args->v_t + in->head * args->v_h;
        uint64_t line = (uint64_t)element(DTYPE, args->v, offset + i % lines * 64);
        asm volatile("prefetch.global.L2 [%0];" ::"l"(line & ~(uint64_t)31));
    }
}

/* ---- Decays -------------------------------------------------------------------------------- */

/* What turns g into the base 2 logarithm of a decay. */
struct gate {
    float factor, bias, limit; /* bounded: limit / (1 + 2^(factor g + bias)) */
};

__device__ __forceinline__ struct gate gate_of(const struct intra *in, int channel)
{
    struct gate gate = { LOG2_E, 0.0f, in->args->lower_bound * LOG2_E };
    if (HAS_BIAS)
        gate.bias = in->args->dt_bias[in->head * in->args->bias_h + channel];
    if (GATE != KDA_GATE_NONE)
        gate.factor *= -expf(in->args->A_log[in->head]);
    if (GATE == KDA_GATE_BOUNDED && gate.factor < -1e30f)
        gate.factor = -1e30f; /* infinite times g plus infinite times the bias might be a NaN */
    if (GATE == KDA_GATE_BOUNDED)
        gate.bias *= gate.factor;
    return gate;
}

/* Decays of less than 2^-128 are 0 either way, and sums of logarithms keep their digits. */
__device__ __forceinline__ float logarithm_of(const struct gate &gate, float x)
{
    if (GATE == KDA_GATE_BOUNDED)
        return gate.limit * reciprocal_of(1.0f + exp2_of(x * gate.factor + gate.bias));
    float y = GATE == KDA_GATE_NONE ? x : kda_softplus(x + gate.bias);
    y *= gate.factor;
    return y < -128.0f ? -128.0f : y;
}

/* What a lane has of g: of each of 16 rows two channels, as words. */
struct gate_rows {
    uint32_t words[16][2];
};

__device__ __forceinline__ void load_gates(const struct intra *in, int block, int part,
                                           struct gate_rows *g)
{
    const int bytes = 2 * DT_SIZE(G_DTYPE);
    int64_t pitch = in->args->g_t * DT_SIZE(G_DTYPE);
    const char *row_of_g =
        (const char *)element(G_DTYPE, in->args->g,
                              token_of(in, 16 * block) * in->args->g_t + in->head * in->args->g_h +
                                  64 * part + threadIdx.x % 32 * 2);
#pragma unroll
    for (int row = 0; row < 16; row++) {
        if (ALIGN_G >= bytes)
            load_words(g->words[row], row_of_g, bytes);
        else if (bytes == 8)
            load_words(g->words[row], row_of_g, 4), load_words(g->words[row] + 1, row_of_g + 4, 4);
        else
            g->words[row][0] =
                *(const uint16_t *)row_of_g | (uint32_t) * (const uint16_t *)(row_of_g + 2) << 16;
        if (16 * block + row + 1 < in->rows)
            row_of_g += pitch;
    }
}

/* The range in which 2^(x / 2) and 2^(-x / 2) times anything there is are both numbers. */
#define IS_ALWAYS_NEAR (DTYPE == DT_BF16 && GATE == KDA_GATE_BOUNDED)
#define LEAST_NEAR (-120.0f)

/* A lane has two channels, 16 rows of them. Leaves their sums of logarithms, from the beginning of
 * each 8 rows on, in the order of a tile's lanes; what all 16 rows make of a channel; and the
 * middle of the first 8 rows, from which step 2 measures. True if all of the warp's 8 rows are
 * near: decay in such a measure. */
__device__ __forceinline__ bool put_gates(const struct intra *in, int block, int part,
                                          const struct gate_rows &g)
{
    int lane = threadIdx.x % 32, channel = 64 * part + 2 * lane, rows = in->rows - 16 * block;
    const struct gate gates[2] = { gate_of(in, channel), gate_of(in, channel + 1) };
    float sums[2][2];
    bool is_near = true;
#pragma unroll
    for (int row = 0; row < 16; row++) {
        float *to =
            in->shared->logarithms[block][channel / 16][row / 8][row % 8 * 4 + lane % 8 / 2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float before = row % 8 ? sums[row / 8][i] : 0.0f;
            float y = logarithm_of(gates[i], word_as_f32(G_DTYPE, g.words[row], i));
            sums[row / 8][i] = row < rows ? before + y : before;
            to[lane % 2 * 2 + i] = sums[row / 8][i];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        is_near &= DTYPE == DT_BF16 && sums[i / 2][i % 2] >= LEAST_NEAR;
    is_near = IS_ALWAYS_NEAR || __all_sync(~0u, is_near);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = sums[0][i] + sums[1][i];
        in->shared->sums[block][(channel + i) % TOTALS] = sum;
        in->shared->totals[block][(channel + i) % TOTALS] = exp2_of(sum);
        in->shared->middles[block][(channel + i) % TOTALS] =
            is_near ? exp2_of(0.5f * sums[0][i]) : 1.0f;
    }
    return is_near;
}

/* Scalar: a lane's row of the chunk, and if it is of the second 32, those before add up. */
__device__ __forceinline__ float token_logarithm(const struct intra *in, int row)
{
    const struct kda_prefill_cuda_args *args = in->args;
    if (row >= in->rows)
        return 0.0f;
    return logarithm_of(gate_of(in, 0), load_as_f32(G_DTYPE, element(G_DTYPE, args->g,
                                                                     (in->token + row) * args->g_t +
                                                                         in->head * args->g_h)));
}

/* By whole warps that have rows. */
__device__ __forceinline__ void read_token_gates(const struct intra *in)
{
    int row = threadIdx.x, lane = row % 32;
    if (row - lane >= CHUNK)
        return;
    float sum = token_logarithm(in, row), before = 0.0f;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        float other = __shfl_up_sync(~0u, sum, distance);
        sum += lane >= distance ? other : 0.0f;
    }
    if (row >= 32) {
        before = token_logarithm(in, lane);
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2)
            before += __shfl_xor_sync(~0u, before, distance);
    }
    if (row < CHUNK)
        in->shared->running[row] = before + sum;
}

/* ---- Factors of rows ----------------------------------------------------------------------- */

__device__ __forceinline__ void read_beta(const struct intra *in)
{
#pragma unroll 1
    for (int row = threadIdx.x; row < CHUNK; row += INTRA_THREADS) {
        float beta = 0.0f;
        if (row < in->rows)
            beta = load_as_f32(BETA_DTYPE, element(BETA_DTYPE, in->args->beta,
                                                   (in->token + row) * in->args->beta_t +
                                                       in->head * in->args->beta_h));
        if (BETA_LOGITS && row < in->rows)
            beta = 1.0f / (1.0f + __expf(-beta));
        in->shared->beta[row] = NEG_EIGVAL ? 2.0f * beta : beta;
    }
}

/* After a barrier. */
__device__ __forceinline__ void put_row_factors(const struct intra *in)
{
    struct intra_shared *shared = in->shared;
#pragma unroll 1
    for (int row = threadIdx.x; row < CHUNK; row += INTRA_THREADS) {
        float dots[2] = { 0.0f, 0.0f }, decay = IS_SCALAR ? exp2_of(shared->running[row]) : 1.0f;
        for (int i = 0; L2NORM && i < 2 * K_WARPS; i++)
            dots[i % 2] += shared->dots[i / 2][row][i % 2];
        shared->query_norm[row] = norm_of(dots[0]);
        shared->key_norm[row] = norm_of(dots[1]);
        shared->query_factor[row] = shared->query_norm[row] * decay;
        shared->key_factor[row] = shared->beta[row] * shared->key_norm[row] * decay;
    }
}

/* Of the whole chunk, from the sum of logarithms: the error does not grow with the tokens. */
__device__ __forceinline__ void store_decays(const struct intra *in)
{
    float *decays = (float *)(in->record + 3 * KEY_PART + 2 * VALUE_PART);
#pragma unroll 1
    for (int channel = threadIdx.x; channel < KEY_WIDTH; channel += INTRA_THREADS) {
        float sum = 0.0f;
        for (int block = 0; !IS_SCALAR && block < CHUNK_BLOCKS; block++)
            sum += in->shared->sums[block][channel % TOTALS];
        decays[channel] = exp2_of(IS_SCALAR ? in->shared->running[CHUNK - 1] : sum);
    }
}
#endif
