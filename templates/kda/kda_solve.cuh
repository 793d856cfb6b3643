/* The second half of kda_prefill_intra (kda_intra.cuh): blocks of A and Q, the inverse, and the
 * columns of what goes to the record. */
#ifndef KDA_SOLVE_CUH
#define KDA_SOLVE_CUH
#include "kda_intra.cuh"

/* Products of rows of block I and block J times what is left out of them so far. Element (h, x, e)
 * of a lane's sums is row lane / 4 + 8 h, column 8 x + 2 (lane % 4) + e. */
__device__ __forceinline__ void scale_sums(const struct intra_shared *shared, struct sums *sums,
                                           const float *row_norms, int block, int other)
{
    int row = 16 * block + threadIdx.x % 32 / 4, column = 16 * other + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int of_row = row + i / 2 % 2 * 8, of_column = column + i / 4 * 8 + i % 2;
        float decay =
            IS_SCALAR ? exp2_of(shared->running[of_row] - shared->running[of_column]) : 1.0f;
        sums->d[i / 4][i % 4] *= row_norms[of_row] * shared->key_norm[of_column] * decay;
    }
}

__device__ __forceinline__ void scale_by_beta(const struct intra_shared *shared, struct sums *sums,
                                              int block, float sign)
{
    int row = 16 * block + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sums->d[i / 4][i % 4] *= sign * shared->beta[row + i / 2 % 2 * 8];
}

__device__ __forceinline__ void store_both(char *tiles, int rest, int index,
                                           const struct sums &sums)
{
    struct tile tile = rounded(sums);
    store_tile(tiles, index, tile);
    store_tile(tiles + rest, index, rest_of(sums, tile));
}

#define Q_REST ((int)sizeof(((struct blocks *)0)->q_tiles[0]))
#define A_REST ((int)sizeof(((struct blocks *)0)->a_tiles[0]))
#define N_REST ((int)sizeof(((struct blocks *)0)->n_tiles[0]))

/* ---- 3. Blocks of A and Q ------------------------------------------------------------------ */

/* Sums over the four lanes of a row. */
__device__ __forceinline__ void add_quad(float *value)
{
    *value += __shfl_xor_sync(~0u, *value, 1);
    *value += __shfl_xor_sync(~0u, *value, 2);
}

/* Exact pairs take their places. */
__device__ __forceinline__ void place_exact(struct sums *sums, float (&near)[2][3])
{
    int lane = threadIdx.x % 32, row = lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < 3; i++)
            add_quad(&near[half][i]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int away = row ^ (lane % 4 * 2 + i);
            float value = away == 1 ? near[half][0] : away == 2 ? near[half][1] : near[half][2];
            float *to = &sums->d[half][2 * half + i];
            *to = away > 0 && away < 4 ? value : *to;
        }
    }
}

/* What is not below the diagonal becomes 0, whatever it was. */
__device__ __forceinline__ void keep_below(struct sums *sums)
{
    int lane = threadIdx.x % 32, row = lane / 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bool is_kept = lane % 4 * 2 + i % 2 + i / 4 * 8 < row + i / 2 % 2 * 8;
        sums->d[i / 4][i % 4] = is_kept ? sums->d[i / 4][i % 4] : 0.0f;
    }
}

/* Column c of (1 + A)^-1 by lane c, 16 rows of A in f32; then both tiles of it less 1. */
__device__ __forceinline__ void invert(const struct intra *in, int block, const struct sums &a)
{
    int lane = threadIdx.x % 32, column = lane % 16;
    float *scratch = in->shared->blocks.scratch[block], x[16];
#pragma unroll
    for (int i = 0; i < 8; i++)
        scratch[(lane / 4 + i / 2 % 2 * 8) * SCRATCH_PITCH + lane % 4 * 2 + i / 4 * 8 + i % 2] =
            a.d[i / 4][i % 4];
    __syncwarp();
#pragma unroll
    for (int row = 0; row < 16; row++) {
        x[row] = row == column ? 1.0f : 0.0f;
#pragma unroll
        for (int i = 0; i < row; i += 4) {
            float four[4];
            load_4_floats(four, scratch + row * SCRATCH_PITCH + i);
#pragma unroll
            for (int j = 0; j < 4 && i + j < row; j++)
                x[row] -= four[j] * x[i + j];
        }
    }
    if (lane >= 16)
        return;
#pragma unroll
    for (int row = 0; row < 16; row++) {
        float value = row > column ? x[row] : 0.0f;
        uint32_t bits = pair_of(value, 0.0f);
        int at = block * KDA_TILE_BYTES + tile_offset(row, column);
        *(uint16_t *)(in->shared->blocks.n_tiles[0] + at) = (uint16_t)bits;
        *(uint16_t *)(in->shared->blocks.n_tiles[1] + at) =
            (uint16_t)pair_of(value - low_of(bits), 0.0f);
    }
}

/* By a warp of m = 0, with its own share in d. */
__device__ __forceinline__ void finish_diagonal(const struct intra *in, int block,
                                                struct diagonal *d)
{
    struct intra_shared *shared = in->shared;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int part = 1; part < K_WARPS && !IS_SCALAR; part++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            d->k.d[i / 4][i % 4] +=
                shared->blocks.partial[part - 1][0][block][lane].d[i / 4][i % 4];
            d->q.d[i / 4][i % 4] +=
                shared->blocks.partial[part - 1][1][block][lane].d[i / 4][i % 4];
        }
    }
    scale_sums(shared, &d->k, shared->key_norm, block, block);
    scale_sums(shared, &d->q, shared->query_norm, block, block);
    scale_by_beta(shared, &d->k, block, 1.0f);
    if (IS_SCALAR)
        keep_below(&d->k);
    invert(in, block, d->k);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = lane / 4, half = i / 2 % 2, column = lane % 4 * 2 + i % 2 + i / 4 * 8;
        int token = 16 * block + row + 8 * half;
        float dot = 0.0f, *q = &d->q.d[i / 4][i % 4];
        if (column > row + 8 * half)
            *q = 0.0f;
        if (IS_SCALAR || i / 4 != half || column != row + 8 * half)
            continue;
        for (int part = 0; part < K_WARPS; part++)
            dot += shared->dots[part][token][2];
        *q = dot * shared->query_norm[token] * shared->key_norm[token];
    }
    store_both(shared->blocks.q_tiles[0], Q_REST, block * (block + 3) / 2, d->q);
}

/* A tile of keys or queries as step 2 left it. */
__device__ __forceinline__ struct tile load_left(const char *left, int index)
{
    struct tile tile = load_tile(left, index);
    return IS_SCALAR ? tile : reordered(tile);
}

/* Sums over all channels: rows of block I, those of a pair's right side or of block J. */
__device__ __forceinline__ void multiply_rows(const struct intra_shared *shared, int block,
                                              int other, struct sums *k, struct sums *q)
{
    const char *right = shared->right;
    int index = (block * (block - 1) / 2 + other) * K_TILES;
    if (IS_SCALAR)
        right = shared->left[0], index = other * K_TILES;
    *k = *q = zero_sums();
#pragma unroll 2
    for (int tile = 0; tile < K_TILES; tile++) {
        struct tile b = load_tile(right, index + tile);
        multiply(k, load_left(shared->left[0], block * K_TILES + tile), b);
        multiply(q, load_left(shared->left[1], block * K_TILES + tile), b);
    }
}

/* A pair of blocks, by its number. */
__device__ __forceinline__ void below_diagonal(const struct intra *in, int pair)
{
    struct intra_shared *shared = in->shared;
    int block = pair < 1 ? 1 : pair < 3 ? 2 : 3, other = pair - block * (block - 1) / 2;
    struct sums a, q;
    multiply_rows(shared, block, other, &a, &q);
    scale_sums(shared, &a, shared->key_norm, block, other);
    scale_sums(shared, &q, shared->query_norm, block, other);
    scale_by_beta(shared, &a, block, -1.0f);
    store_both(shared->blocks.a_tiles[0], A_REST, pair, a);
    store_both(shared->blocks.q_tiles[0], Q_REST, pair + block, q);
}

/* ---- 4. Columns ---------------------------------------------------------------------------- */

/* 16 channels by all tokens, transposed: column i of a lane's sums is a token. Of a block of tokens
 * the right side, and what Q times the solution is added to. */
struct columns {
    struct tile solution[CHUNK_BLOCKS]; /* of values: v, as long as there is none */
    struct sums right, out;
    float before[2]; /* of keys: the decay over earlier blocks */
    int tile;
};

/* Times a factor of the token. */
__device__ __forceinline__ void scale_columns(struct sums *sums, const float *factors, int block)
{
    int token = 16 * block + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sums->d[i / 4][i % 4] *= factors[token + i / 4 * 8 + i % 2];
}

template <bool is_key>
__device__ __forceinline__ void begin_columns(const struct intra *in, struct columns *c)
{
    const struct kda_prefill_cuda_args *args = in->args;
    c->before[0] = c->before[1] = 1.0f;
    if (is_key)
        return;
    const void *v =
        element(DTYPE, args->v, in->head * args->v_h + 16 * c->tile + threadIdx.x % 4 * 4);
#pragma unroll
    for (int i = 0; i < 2 * CHUNK_BLOCKS; i++)
        load_4<DTYPE, ALIGN_V>(
            c->solution[i / 2].r + i % 2 * 2,
            element(DTYPE, v, token_of(in, threadIdx.x % 32 / 4 + 8 * i) * args->v_t));
}

/* Rows of keys and queries as step 2 left them, from where they are measured back to the chunk's
 * start: times the decay over earlier blocks and to the middle of this one's. */
__device__ __forceinline__ void begin_key_block(const struct intra_shared *shared,
                                                struct columns *c, int block)
{
    int row = threadIdx.x % 32 / 4;
    c->right = widened(transposed(load_left(shared->left[0], block * K_TILES + c->tile)));
    c->out = widened(transposed(load_left(shared->left[1], block * K_TILES + c->tile)));
    scale_columns(&c->right, shared->key_factor, block);
    scale_columns(&c->out, shared->query_factor, block);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int channel = IS_SCALAR ? 0 : 16 * c->tile + row / 2 * 4 + row % 2 + 2 * half;
        float factor = IS_SCALAR ? 1.0f : c->before[half] * shared->middles[block][channel];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            c->right.d[i / 2][2 * half + i % 2] *= factor;
            c->out.d[i / 2][2 * half + i % 2] *= -factor;
        }
        if (!IS_SCALAR)
            c->before[half] *= shared->totals[block][channel];
    }
}

template <bool is_key>
__device__ __forceinline__ void begin_block(const struct intra_shared *shared, struct columns *c,
                                            int block)
{
    if (is_key) {
        begin_key_block(shared, c, block);
        return;
    }
    c->right = widened(transposed(c->solution[block]));
    c->out = zero_sums();
    scale_columns(&c->right, shared->beta, block);
}

template <bool is_key>
__device__ __forceinline__ void store_block(const struct intra *in, const struct columns *c,
                                            int block)
{
    char *first = in->record + (is_key ? 0 : 2 * KEY_PART);
    char *second = first + (is_key ? KEY_PART : VALUE_PART);
    struct tile solution = c->solution[block], out = rounded(c->out);
    if (is_key) {
        store_operand(first, CHUNK_BLOCKS * c->tile + block, transposed(solution));
        store_operand(second, CHUNK_BLOCKS * c->tile + block, transposed(negated(out)));
        return;
    }
    store_tile(first, CHUNK_BLOCKS * c->tile + block, solution);
    store_tile(second, CHUNK_BLOCKS * c->tile + block, out);
}

/* Both columns' sums plus what they have of a product with one tile and its rest. */
__device__ __forceinline__ void multiply_both(struct sums *first, struct sums *second,
                                              const struct tile &a, const struct tile &b,
                                              const char *tiles, int rest, int index)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        struct tile tile = load_tile(tiles + i * rest, index);
        multiply(first, a, tile);
        multiply(second, b, tile);
    }
}

/* (1 + A_II)^-1 times the right sides, which become the solution. */
__device__ __forceinline__ void apply_inverse(const struct intra_shared *shared,
                                              struct columns (&c)[2], int block)
{
    struct tile tile[2], rest[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tile[i] = rounded(c[i].right);
        rest[i] = rest_of(c[i].right, tile[i]);
    }
    struct tile n = load_tile(shared->blocks.n_tiles[0], block);
#pragma unroll
    for (int i = 0; i < 2; i++)
        multiply(&c[i].right, rest[i], n);
    multiply_both(&c[0].right, &c[1].right, tile[0], tile[1], shared->blocks.n_tiles[0], N_REST,
                  block);
#pragma unroll
    for (int i = 0; i < 2; i++)
        c[i].solution[block] = rounded(c[i].right);
}

/* Two columns: each tile of A, its inverse and Q is loaded for both, and neither waits for its own
 * products alone. */
template <bool is_first_key, bool is_second_key>
__device__ __forceinline__ void solve_columns(const struct intra *in, int first, int second)
{
    const struct blocks *blocks = &in->shared->blocks;
    struct columns c[2];
    c[0].tile = first;
    c[1].tile = second;
    begin_columns<is_first_key>(in, &c[0]);
    begin_columns<is_second_key>(in, &c[1]);
#pragma unroll
    for (int block = 0; block < CHUNK_BLOCKS; block++) {
        __syncwarp(); /* nothing is loaded before its time: registers are scarce */
        begin_block<is_first_key>(in->shared, &c[0], block);
        begin_block<is_second_key>(in->shared, &c[1], block);
#pragma unroll
        for (int other = 0; other < block; other++)
            multiply_both(&c[0].right, &c[1].right, c[0].solution[other], c[1].solution[other],
                          blocks->a_tiles[0], A_REST, block * (block - 1) / 2 + other);
        apply_inverse(in->shared, c, block);
#pragma unroll
        for (int other = 0; other <= block; other++)
            multiply_both(&c[0].out, &c[1].out, c[0].solution[other], c[1].solution[other],
                          blocks->q_tiles[0], Q_REST, block * (block + 1) / 2 + other);
        store_block<is_first_key>(in, &c[0], block);
        store_block<is_second_key>(in, &c[1], block);
    }
}

/* Columns of keys and of values, two at a time. */
__device__ __forceinline__ void solve(const struct intra *in, int warp)
{
    const int both = K_TILES < V_TILES ? K_TILES : V_TILES;
#pragma unroll 1
    for (int tile = warp; tile < both; tile += INTRA_WARPS)
        solve_columns<true, false>(in, tile, tile);
#pragma unroll 1
    for (int tile = both + 2 * warp; K_TILES > both && tile < K_TILES; tile += 2 * INTRA_WARPS)
        solve_columns<true, true>(in, tile, tile + 1);
#pragma unroll 1
    for (int tile = both + 2 * warp; V_TILES > both && tile < V_TILES; tile += 2 * INTRA_WARPS)
        solve_columns<false, false>(in, tile, tile + 1);
}

/* ---- The block ----------------------------------------------------------------------------- */

/* Steps 1 and 2 with a decay for each channel. What is read is asked for before anything waits. */
__device__ __forceinline__ void work_on_rows(const struct intra *in, int block, int part,
                                             struct diagonal *d)
{
    struct intra_shared *shared = in->shared;
    struct gate_rows g;
    struct rows rows;
    load_gates(in, block, part, &g);
    load_rows(in, block, part, &rows);
    prefetch_values(in);
    read_beta(in);
    bool is_near = put_gates(in, block, part, g);
    put_rows(in, block, part, rows);
    __syncthreads();
    put_row_factors(in);
    store_decays(in);
    factor_rows(in, block, part, is_near, d);
    if (!IS_ALWAYS_NEAR && !is_near) {
        place_exact(&d->k, d->near_k);
        place_exact(&d->q, d->near_q);
    }
    keep_below(&d->k);
    keep_below(&d->q);
    __syncthreads();
    if (part > 0) {
        shared->blocks.partial[part - 1][0][block][threadIdx.x % 32] = d->k;
        shared->blocks.partial[part - 1][1][block][threadIdx.x % 32] = d->q;
    }
    __syncthreads();
}

/* With one for the head. */
__device__ __forceinline__ void work_on_plain_rows(const struct intra *in, int block, int part,
                                                   struct diagonal *d)
{
    struct rows rows;
    load_rows(in, block, part, &rows);
    prefetch_values(in);
    read_beta(in);
    read_token_gates(in);
    put_rows(in, block, part, rows);
    __syncthreads();
    put_row_factors(in);
    store_decays(in);
    decay_keys(in, block, part);
    __syncthreads();
    if (part == 0)
        multiply_rows(in->shared, block, block, &d->k, &d->q);
}

__device__ __forceinline__ void work_on_chunk(const struct intra *in)
{
    int warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0); /* known to be the warp's */
    int block = warp % CHUNK_BLOCKS, part = warp / CHUNK_BLOCKS;
    struct diagonal d = {};
    if (IS_SCALAR)
        work_on_plain_rows(in, block, part, &d);
    else
        work_on_rows(in, block, part, &d);
    if (part == 0)
        finish_diagonal(in, block, &d);
    /* The pairs by the other warps, if there are others. */
    const int first = K_WARPS > 1 ? CHUNK_BLOCKS : 0;
    for (int pair = warp - first; warp >= first && pair < PAIRS; pair += INTRA_WARPS - first)
        below_diagonal(in, pair);
    __syncthreads();
    solve(in, warp);
}

/* Block: a chunk of a value head, heads first. */
extern "C" __global__ void __launch_bounds__(INTRA_THREADS, INTRA_BLOCKS * 64 / CHUNK)
    kda_prefill_intra(const __grid_constant__ struct kda_prefill_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    int64_t chunk = blockIdx.x / args.hv, index = sequence_of_chunk(&args, chunk);
    if (index < 0)
        return;
    struct sequence sequence = sequence_of(&args, index);
    struct intra in;
    in.args = &args;
    in.shared = (struct intra_shared *)shared;
    in.head = blockIdx.x % args.hv;
    in.record = args.records + (chunk * args.hv + in.head) * (int64_t)RECORD_BYTES;
    in.token = sequence.begin + (chunk - sequence.first) * CHUNK;
    in.rows = (int)min(sequence.end - in.token, (int64_t)CHUNK);
    work_on_chunk(&in);
}
#endif
