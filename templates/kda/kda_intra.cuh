/* kda_prefill_intra: what the chunks of a head can be told without the state, in the form in which
 * kda_prefill_state takes it. A block has a chunk of CHUNK tokens of a value head.
 *
 * With a the decay of a channel at a token, (i, j) the product of those after token j up to i, and
 * rows of keys and queries normalised if that is asked for:
 *
 *     A[i][j] = beta_i sum_d key_i (i, j) key_j       i > j
 *     Q[i][j] =        sum_d query_i (i, j) key_j     i >= j
 *     w = (1 + A)^-1 (beta key (i, start))            u = (1 + A)^-1 (beta value)
 *     queries = query (i, start) - Q w                outputs = Q u
 *     keys = key (end, j)                             decay = (end, start)
 *
 * (i, j) has to become a factor of row i times one of row j: (i, m) (m, j) for a place m between
 * them is at most 1 twice, whatever the gate. Places are 8 rows apart, within blocks of 16 rows:
 *
 *     left    rows of block I, keys and queries, measured from the middle m_I of its first 8 rows
 *             (the middle of the way, not a row): 2^(L_i - L_0 / 2), L_i being the logarithm of the
 *             decay from the block's start to row i and L_0 of that over its first 8 rows
 *     right   keys of block J, measured to m_I, for each I > J; to m_J for its own first 8 rows
 *
 * In its own 8 rows a row before the middle has a factor above 1. That is no harm while 8 rows
 * decay by no more than 2^-120: both factors are within 2^-60 and 2^60, bf16 has the range of f32,
 * and what products above the diagonal hold is dropped. A bounded gate cannot decay by more than
 * 2^-58. For other gates a warp looks at its channels, and where they go further, and always in
 * f16, it measures from the block's start, and takes its diagonal block apart: pairs within 4 rows
 * by exact powers of their difference and f32 sums, halves of 4 and 8 rows from the row between.
 * What is left out by underflow is below 2^-66 of a key.
 *
 * Step 4 undoes the measure: w's right side is left's rows times a factor of the channel.
 * With a decay of the head's own (scalar) the products of rows are taken as they are, and
 * multiplied by (i, j) after.
 *
 *     warp (i, m) has rows 16 i to 16 i + 15 and channels 64 m to 64 m + 63 of the chunk, a lane
 *     rows lane / 4 and 8 more, and four channels of each tile (kda_tile.cuh)
 *
 *     1. read q, k; q q, k k, q k; read g, sums of logarithms; all to shared memory
 *     2. left, right, diagonal blocks in registers; keys, to the record
 *     3. warps of m = 0: the diagonal 16 x 16 blocks of A and Q; the inverse of 1 + A there, by
 *        substitution, a column a lane. All: the blocks below, by mma
 *     4. columns of w and u, 16 at a time, transposed, so that what a product leaves is an operand
 *        of the next: X_I = (1 + A_II)^-1 (rhs_I - sum_{J < I} A_IJ X_J), then queries and outputs
 *
 * A, its inverse and Q are kept as a rounded tile and the rounded rest: where keys look alike their
 * rounding is what errs most. */
#ifndef KDA_INTRA_CUH
#define KDA_INTRA_CUH
#include "kda_rows.cuh"

/* ---- 2. Factors ---------------------------------------------------------------------------- */

/* Of a tile, [half of the rows][channel]: decays since the 8 rows' start, to their end. */
struct factors {
    float since[2][4], until[2][4];
    float total[2][4]; /* logarithms of 8 rows */
};

__device__ __forceinline__ void load_4_floats(float (&values)[4], const float *p)
{
    float4 four = *(const float4 *)p;
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
}

__device__ __forceinline__ struct factors factors_of(const struct intra *in, int block, int tile)
{
    struct factors f;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float(*sums)[4] = in->shared->logarithms[block][IS_SCALAR ? 0 : tile][half], sum[4];
        load_4_floats(sum, sums[lane]);
        load_4_floats(f.total[half], sums[28 + lane % 4]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            f.since[half][i] = exp2_of(sum[i]);
            f.until[half][i] = exp2_of(f.total[half][i] - sum[i]);
        }
    }
    return f;
}

/* A row's two words times factors, rounded. */
__device__ __forceinline__ void scale_row(uint32_t *pairs, const uint32_t *words,
                                          const float (&row)[4], const float (&channels)[4])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        pairs[i] = pair_of(low_of(words[i]) * (row[2 * i] * channels[2 * i]),
                           high_of(words[i]) * (row[2 * i + 1] * channels[2 * i + 1]));
}

__device__ __forceinline__ void powers(float (&values)[4], const float (&logarithms)[4],
                                       float factor)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] = exp2_of(logarithms[i] * factor);
}

__device__ __forceinline__ void times(float (&values)[4], const float (&others)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] *= others[i];
}

/* The diagonal block of 16 x 16 of A and Q, before rows are multiplied by their norms; pairs of
 * rows within four apart, if they are exact: of row i with the row i ^ 1, i ^ 2 and i ^ 3, which
 * mean something where that row is before it. */
struct diagonal {
    struct sums k, q;
    float near_k[2][3], near_q[2][3];
};

/* sums += a b^T for a of all 16 rows and b's first 8 rows; for a's and b's second 8 rows. */
__device__ __forceinline__ void multiply_first(struct sums *sums, const struct tile &a,
                                               const struct tile &b)
{
    const uint32_t rows[4] = { a.r[0], a.r[2], a.r[1], a.r[3] };
    mma_16_bit(sums->d[0], rows, b.r[0], b.r[1]);
}

__device__ __forceinline__ void multiply_second(struct sums *sums, const struct tile &a,
                                                const struct tile &b)
{
    const uint32_t rows[4] = { 0, a.r[2], 0, a.r[3] };
    mma_16_bit(sums->d[1], rows, b.r[2], b.r[3]);
}

/* Where 8 rows are near. Leaves left in place of k and q. */
__device__ __forceinline__ void near_diagonal(struct diagonal *d, const struct factors &f,
                                              const float (&middle)[4], struct tile *q,
                                              struct tile *k)
{
    float inverse[2][4];
    struct tile right, second_k, second_q;
    powers(inverse[0], f.total[0], -0.5f);
    powers(inverse[1], f.total[1], -0.5f);
    scale_row(right.r, k->r, f.until[0], inverse[0]);
    scale_row(right.r + 2, k->r + 2, f.until[1], inverse[1]);
    scale_row(second_k.r + 2, k->r + 2, f.since[1], inverse[1]);
    scale_row(second_q.r + 2, q->r + 2, f.since[1], inverse[1]);
    scale_row(k->r, k->r, f.since[0], inverse[0]);
    scale_row(q->r, q->r, f.since[0], inverse[0]);
    scale_row(k->r + 2, k->r + 2, f.since[1], middle);
    scale_row(q->r + 2, q->r + 2, f.since[1], middle);
    multiply_first(&d->k, *k, right);
    multiply_first(&d->q, *q, right);
    multiply_second(&d->k, second_k, right);
    multiply_second(&d->q, second_q, right);
}

/* Pairs of rows 1 to 3 apart by exclusive or: powers of the difference of their logarithms. */
__device__ __forceinline__ void add_exact(struct diagonal *d, int away, int half,
                                          const float (&sum)[4], const uint32_t *k,
                                          const uint32_t *q)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(~0u, k[i], 4 * away);
        float low = sum[2 * i], high = sum[2 * i + 1];
        low = low_of(other) * exp2_of(low - __shfl_xor_sync(~0u, low, 4 * away));
        high = high_of(other) * exp2_of(high - __shfl_xor_sync(~0u, high, 4 * away));
        d->near_k[half][away - 1] += low_of(k[i]) * low + high_of(k[i]) * high;
        d->near_q[half][away - 1] += low_of(q[i]) * low + high_of(q[i]) * high;
    }
}

/* Halves of 4 rows, measured from the fourth. */
__device__ __forceinline__ void add_eights(const struct intra *in, struct diagonal *d, int block,
                                           int tile, const struct tile &q, const struct tile &k)
{
    struct tile left_k, left_q, right;
    int lane = threadIdx.x % 32;
    bool is_second = lane & 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float(*sums)[4] = in->shared->logarithms[block][IS_SCALAR ? 0 : tile][half], sum[4];
        float middle[4], ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
        load_4_floats(sum, sums[lane]);
        load_4_floats(middle, sums[12 + lane % 4]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[i] = is_second ? exp2_of(sum[i] - middle[i]) : exp2_of(middle[i] - sum[i]);
        scale_row(left_k.r + 2 * half, k.r + 2 * half, sum, ones);
        scale_row(left_q.r + 2 * half, q.r + 2 * half, sum, ones);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        right.r[i] = is_second ? 0 : left_k.r[i];
        left_k.r[i] = is_second ? left_k.r[i] : 0;
        left_q.r[i] = is_second ? left_q.r[i] : 0;
    }
    const struct tile first_k = { left_k.r[0], left_k.r[1], 0, 0 };
    const struct tile first_q = { left_q.r[0], left_q.r[1], 0, 0 };
    multiply_first(&d->k, first_k, right);
    multiply_first(&d->q, first_q, right);
    multiply_second(&d->k, left_k, right);
    multiply_second(&d->q, left_q, right);
}

/* Whatever the decays: pairs of the same 8 rows. */
__device__ __forceinline__ void exact_pairs(const struct intra *in, struct diagonal *d, int block,
                                            int tile, const struct tile &q, const struct tile &k)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum[4];
        load_4_floats(sum,
                      in->shared->logarithms[block][IS_SCALAR ? 0 : tile][half][threadIdx.x % 32]);
#pragma unroll
        for (int away = 1; away < 4; away++)
            add_exact(d, away, half, sum, k.r + 2 * half, q.r + 2 * half);
    }
    add_eights(in, d, block, tile, q, k);
}

/* Pairs of the first and the second 8. Leaves left in place of k and q, measured from the block's
 * start. */
__device__ __forceinline__ void far_diagonal(struct diagonal *d, const struct factors &f,
                                             struct tile *q, struct tile *k)
{
    const float ones[4] = { 1.0f, 1.0f, 1.0f, 1.0f };
    float before[4];
    struct tile left_k = {}, left_q = {}, right = {};
    scale_row(left_k.r + 2, k->r + 2, f.since[1], ones);
    scale_row(left_q.r + 2, q->r + 2, f.since[1], ones);
    scale_row(right.r, k->r, f.until[0], ones);
    multiply_first(&d->k, left_k, right);
    multiply_first(&d->q, left_q, right);
    powers(before, f.total[0], 1.0f);
    scale_row(k->r, k->r, f.since[0], ones);
    scale_row(q->r, q->r, f.since[0], ones);
    scale_row(k->r + 2, k->r + 2, f.since[1], before);
    scale_row(q->r + 2, q->r + 2, f.since[1], before);
}

/* The keys of a tile, measured to each later block, and to the chunk's end. */
__device__ __forceinline__ void put_keys(const struct intra *in, int block, int tile,
                                         const float (&key_norm)[2], const struct tile &k,
                                         struct factors *f)
{
    struct intra_shared *shared = in->shared;
    int channel = IS_SCALAR ? 0 : tile * 16 + threadIdx.x % 4 * 4;
    float after[4] = { 1.0f, 1.0f, 1.0f, 1.0f }, other[4];
    char *keys = in->record + 2 * (KEY_PART + VALUE_PART);
    struct tile right;
    powers(other, f->total[1], 1.0f);
    times(f->until[0], other);
#pragma unroll 1
    for (int later = block + 1; later < CHUNK_BLOCKS; later++) {
        load_4_floats(other, shared->middles[later] + channel);
        times(other, after);
        scale_row(right.r, k.r, f->until[0], other);
        scale_row(right.r + 2, k.r + 2, f->until[1], other);
        store_tile(shared->right, (later * (later - 1) / 2 + block) * K_TILES + tile, right);
        load_4_floats(other, shared->totals[later] + channel);
        times(after, other);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            other[i] = after[i] * key_norm[half];
        scale_row(right.r + 2 * half, k.r + 2 * half, f->until[half], other);
    }
    store_operand(keys, block * K_TILES + tile, transposed(right));
}

/* From the dots, after a barrier. */
__device__ __forceinline__ float key_norm_of(const struct intra *in, int row)
{
    float squares = 0.0f;
    for (int part = 0; L2NORM && part < K_WARPS; part++)
        squares += in->shared->dots[part][row][1];
    return norm_of(squares);
}

/* A warp's tiles, one by one. */
__device__ __forceinline__ void factor_rows(const struct intra *in, int block, int part,
                                            bool is_near, struct diagonal *d)
{
    struct intra_shared *shared = in->shared;
    int row = 16 * block + threadIdx.x % 32 / 4;
    const float key_norm[2] = { key_norm_of(in, row), key_norm_of(in, row + 8) };
#pragma unroll 1
    for (int s = 0; s < 4; s++) {
        int tile = 4 * part + s, index = block * K_TILES + tile;
        struct tile k = load_tile(shared->left[0], index), left = k;
        struct tile q = load_tile(shared->left[1], index);
        const bool is_far = !IS_ALWAYS_NEAR && !is_near;
        if (is_far)
            exact_pairs(in, d, block, tile, q, k);
        struct factors f = factors_of(in, block, tile);
        if (is_far) {
            far_diagonal(d, f, &q, &left);
        } else {
            float middle[4];
            load_4_floats(middle, shared->middles[block] +
                                      (IS_SCALAR ? 0 : tile * 16 + threadIdx.x % 4 * 4));
            near_diagonal(d, f, middle, &q, &left);
        }
        store_tile(shared->left[0], index, reordered(left));
        store_tile(shared->left[1], index, reordered(q));
        put_keys(in, block, tile, key_norm, k, &f);
    }
}

/* Scalar: rows stay as they are; keys times the decay of their token to the chunk's end. */
__device__ __forceinline__ void decay_keys(const struct intra *in, int block, int part)
{
    struct intra_shared *shared = in->shared;
    char *keys = in->record + 2 * (KEY_PART + VALUE_PART);
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * block + threadIdx.x % 32 / 4 + 8 * half;
        factor[half] =
            key_norm_of(in, row) * exp2_of(shared->running[CHUNK - 1] - shared->running[row]);
    }
#pragma unroll
    for (int s = 0; s < 4; s++) {
        int tile = 4 * part + s;
        struct tile k = load_tile(shared->left[0], block * K_TILES + tile), scaled;
#pragma unroll
        for (int i = 0; i < 4; i++)
            scaled.r[i] = pair_of(low_of(k.r[i]) * factor[i / 2], high_of(k.r[i]) * factor[i / 2]);
        store_operand(keys, block * K_TILES + tile, transposed(scaled));
    }
}
#endif
