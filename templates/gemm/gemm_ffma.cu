/* GEMM by f32 multiply-add, sm_80 and up:  d = a b^T (+ bias) (+ old d),  b as [n,k] or [k,n]; a,
 * b, d and bias each f32, bf16 or f16. What is exact in f32 goes in, sums are f32.
 *
 * A block owns BM x BN of d for one share of k. It reads a and b in tiles of BK along k into two
 * buffers in turn:
 *
 *     for each tile of k:
 *         1. load the next tile to registers, four elements at a time
 *         2. multiply: for each k a thread takes TM of a and TN of b, and adds TM x TN products
 *         3. convert the next tile to f32 and put it into the other buffer
 *
 *     shared memory    buffer 0 [ a: BK x BM ][ b: BK x BN ]  buffer 1 [ a | b ]          f32
 *
 * In shared memory a tile lies with its rows (columns of d) side by side whatever the operand's
 * layout, so that a thread reads four of them at once. Where the operand is contiguous along k, a
 * thread's four elements go to four lines; rows trade places (place_of) so that those which a warp
 * writes to one line lie in different banks.
 *
 *     threads of a warp: 8 along n, 4 along m       a thread's columns, TN = 8:
 *                                                   [ 4t .. 4t + 3 ]  and BN / 2 further on
 *
 * What lies past m, n or k is not read and becomes zero.
 *
 * Entries: gemm_ffma, and gemm_reduce where SPLIT_K > 1 (gemm_tile.cuh, with the order of tiles).
 */

/* ---- Parameters: what is computed ---- */
#ifndef A_DTYPE
#define A_DTYPE DT_F32
#endif
#ifndef B_DTYPE
#define B_DTYPE DT_F32
#endif
#ifndef D_DTYPE
#define D_DTYPE DT_F32
#endif
#ifndef BIAS_DTYPE
#define BIAS_DTYPE DT_NONE
#endif
#ifndef B_IS_NK /* 1: b is [n,k] ("nt"), 0: [k,n] ("nn") */
#define B_IS_NK 1
#endif
#ifndef ACCUMULATE
#define ACCUMULATE 0
#endif
#ifndef ALIGN_A
#define ALIGN_A 16
#endif
#ifndef ALIGN_B
#define ALIGN_B 16
#endif
#ifndef ALIGN_D
#define ALIGN_D 16
#endif

/* ---- Parameters: how ---- */
#ifndef BM
#define BM 128
#endif
#ifndef BN
#define BN 128
#endif
#ifndef BK
#define BK 16
#endif
#ifndef TM
#define TM 8
#endif
#ifndef TN
#define TN 8
#endif
#ifndef SPLIT_K
#define SPLIT_K 1
#endif
#ifndef GROUP
#define GROUP 8
#endif
#ifndef BLOCKS_AN_SM /* that its registers must hold */
#define BLOCKS_AN_SM 1
#endif

#include "gemm_tile.cuh"

#define THREADS_M (BM / TM)
#define THREADS_N (BN / TN)
#define THREADS (THREADS_M * THREADS_N)
#define A_VECTORS ((BM * BK / 4 + THREADS - 1) / THREADS) /* of a tile, a thread */
#define B_VECTORS ((BN * BK / 4 + THREADS - 1) / THREADS)
#define BUFFER (BK * (BM + BN)) /* f32 */
#define OUT_WIDTH (OUT_VECTOR < 4 ? OUT_VECTOR : 4)

static_assert(TM % 4 == 0 && TN % 4 == 0, "a thread reads four elements at a time");
static_assert(THREADS_M % 4 == 0 && THREADS_N % 8 == 0, "a warp is 4 x 8 threads");
static_assert(BK % 8 == 0 && 128 % BK == 0, "see place_of");

/* Where element `row` lies in line `k` of a tile of `rows`. */
__device__ __forceinline__ int place_of(int k, int row, int rows)
{
    return k * rows + (row ^ (k / 4 * (128 / BK) & (rows - 1)));
}

/* ---- Reading ------------------------------------------------------------------------------- */

/* An operand, from the next tile on. Its lines are contiguous: along k, or along rows. */
struct reader {
    const char *from;               /* first element of the tile */
    int64_t line_pitch, tile_pitch; /* bytes */
    int rows_left;                  /* that exist */
};

/* Four elements of which `count` exist. */
__device__ __forceinline__ void load_four(uint32_t (&words)[4], const char *from, int dtype,
                                          int align, int count)
{
    const int size = DT_SIZE(dtype);
    if (count >= 4 && align >= 4 * size) {
        load_words(words, from, 4 * size);
        return;
    }
    words[0] = words[1] = words[2] = words[3] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i < count && size == 4)
            words[i] = *(const uint32_t *)(from + 4 * i);
        else if (i < count)
            words[i / 2] |= *(const uint16_t *)(from + 2 * i) << i % 2 * 16;
    }
}

/* Line and first element of vector `index` of a tile, a vector being along k or along rows. */
__device__ __forceinline__ void vector_at(int index, int along_k, int rows, int *k, int *row)
{
    *k = along_k ? index % (BK / 4) * 4 : index / (rows / 4);
    *row = along_k ? index / (BK / 4) : index % (rows / 4) * 4;
}

template <int vectors>
__device__ __forceinline__ void read_tile(uint32_t (&words)[vectors][4], struct reader *reader,
                                          int rows, int along_k, int dtype, int align, int k_left)
{
#pragma unroll
    for (int i = 0; i < vectors; i++) {
        int k, row, index = i * THREADS + threadIdx.x;
        vector_at(index, along_k, rows, &k, &row);
        int count = along_k ? (row < reader->rows_left ? k_left - k : 0)
                            : (k < k_left ? reader->rows_left - row : 0);
        int64_t offset = along_k ? row * reader->line_pitch + k * DT_SIZE(dtype)
                                 : k * reader->line_pitch + row * DT_SIZE(dtype);
        if (rows * BK / 4 % THREADS == 0 || index < rows * BK / 4)
            load_four(words[i], reader->from + offset, dtype, align, count);
    }
    reader->from += reader->tile_pitch;
}

template <int vectors>
__device__ __forceinline__ void write_tile(float *tile, const uint32_t (&words)[vectors][4],
                                           int rows, int along_k, int dtype)
{
#pragma unroll
    for (int i = 0; i < vectors; i++) {
        int k, row, index = i * THREADS + threadIdx.x;
        float values[4];
        vector_at(index, along_k, rows, &k, &row);
        if (rows * BK / 4 % THREADS && index >= rows * BK / 4)
            continue;
#pragma unroll
        for (int v = 0; v < 4; v++)
            values[v] = word_as_f32(dtype, words[i], v);
        if (!along_k)
            *(float4 *)(tile + place_of(k, row, rows)) =
                make_float4(values[0], values[1], values[2], values[3]);
#pragma unroll
        for (int v = 0; along_k && v < 4; v++)
            tile[place_of(k + v, row, rows)] = values[v];
    }
}

/* ---- Multiplying --------------------------------------------------------------------------- */

/* A thread's first row and column in groups of four; the next group is BM * 4 / TM rows on. */
__device__ __forceinline__ int thread_row(void)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return (warp / (THREADS_N / 8) * 4 + lane / 8) * 4;
}

__device__ __forceinline__ int thread_column(void)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return (warp % (THREADS_N / 8) * 8 + lane % 8) * 4;
}

__device__ __forceinline__ void multiply(float (&sums)[TM][TN], const float *buffer)
{
    int row = thread_row(), column = thread_column();
#pragma unroll
    for (int k = 0; k < BK; k++) {
        float a[TM], b[TN];
#pragma unroll
        for (int i = 0; i < TM; i += 4) {
            float4 v = *(const float4 *)(buffer + place_of(k, row + i * THREADS_M, BM));
            a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
        }
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            float4 v =
                *(const float4 *)(buffer + BK * BM + place_of(k, column + j * THREADS_N, BN));
            b[j] = v.x, b[j + 1] = v.y, b[j + 2] = v.z, b[j + 3] = v.w;
        }
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++)
                sums[i][j] += a[i] * b[j];
        }
    }
}

__device__ __forceinline__ void store_sums(const struct gemm_cuda_args *args,
                                           const struct tile *tile, float (&sums)[TM][TN])
{
#pragma unroll
    for (int j = 0; j < TN; j += OUT_WIDTH) {
        int column = tile->n + thread_column() + j / 4 * 4 * THREADS_N + j % 4;
        float bias[OUT_WIDTH];
#pragma unroll
        for (int v = 0; v < OUT_WIDTH; v++)
            bias[v] = SPLIT_K > 1 ? 0.0f : bias_of_column(args, column + v);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            int row = tile->m + thread_row() + i / 4 * 4 * THREADS_M + i % 4;
            float values[OUT_WIDTH];
#pragma unroll
            for (int v = 0; v < OUT_WIDTH; v++)
                values[v] = sums[i][j + v] + bias[v];
            put_sums(args, tile, row, column, values, OUT_WIDTH);
        }
    }
}

/* ---- The block ----------------------------------------------------------------------------- */

__device__ __forceinline__ struct reader reader_of_a(const struct gemm_cuda_args *args,
                                                     const struct tile *tile)
{
    struct reader reader;
    int64_t offset = tile->product * args->a_batch_stride + tile->m * args->a_row_stride;
    reader.from = (const char *)element(A_DTYPE, args->a, offset + tile->k_begin);
    reader.line_pitch = args->a_row_stride * DT_SIZE(A_DTYPE);
    reader.tile_pitch = BK * DT_SIZE(A_DTYPE);
    reader.rows_left = args->m - tile->m;
    return reader;
}

__device__ __forceinline__ struct reader reader_of_b(const struct gemm_cuda_args *args,
                                                     const struct tile *tile)
{
    struct reader reader;
    int64_t offset = tile->product * args->b_batch_stride;
    offset += B_IS_NK ? tile->n * args->b_row_stride + tile->k_begin
                      : tile->k_begin * args->b_row_stride + tile->n;
    reader.from = (const char *)element(B_DTYPE, args->b, offset);
    reader.line_pitch = args->b_row_stride * DT_SIZE(B_DTYPE);
    reader.tile_pitch = B_IS_NK ? BK * DT_SIZE(B_DTYPE) : BK * reader.line_pitch;
    reader.rows_left = args->n - tile->n;
    return reader;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM)
    gemm_ffma(const __grid_constant__ struct gemm_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    float *buffer = (float *)shared, *next = buffer + BUFFER;
    float sums[TM][TN] = {};
    uint32_t a_words[A_VECTORS][4], b_words[B_VECTORS][4];
    struct tile tile = tile_of_block(&args);
    struct reader a = reader_of_a(&args, &tile), b = reader_of_b(&args, &tile);

    /* The tile that is multiplied was loaded in the turn before: the first turn has none. */
    for (int k_left = tile.k_end - tile.k_begin, turn = 0; k_left > -BK; k_left -= BK, turn++) {
        if (k_left > 0) { /* 1 */
            read_tile(a_words, &a, BM, 1, A_DTYPE, ALIGN_A, k_left);
            read_tile(b_words, &b, BN, B_IS_NK, B_DTYPE, ALIGN_B, k_left);
        }
        if (turn > 0) /* 2 */
            multiply(sums, buffer);
        if (k_left > 0) { /* 3 */
            write_tile(next, a_words, BM, 1, A_DTYPE);
            write_tile(next + BK * BM, b_words, BN, B_IS_NK, B_DTYPE);
        }
        __syncthreads();
        float *swap = buffer;
        buffer = next, next = swap;
    }
    announce_reduce();
    store_sums(&args, &tile, sums);
}
