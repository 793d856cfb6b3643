/* GEMM on tensor cores by mma.sync, sm_80 and up:  d = a b^T (+ bias) (+ old d),  b as [n,k] or
 * [k,n]. DTYPE bf16 or f16, or f32 that is rounded to tf32. Sums are f32.
 *
 * A block owns BM x BN of d for one share of k. It reads a and b in tiles of BK along k, STAGES - 1
 * of them ahead, by cp.async:
 *
 *     for each tile of k:
 *         for each 32 bytes of k in it:
 *             1. before the last ones: wait for the next tile, and for all warps to be done with
 *                the one before this
 *             2. ldmatrix the fragments of the next 32 bytes
 *             3. with the first ones: start the copy of the tile STAGES - 1 ahead, to where the one
 *                before this was
 *             4. multiply: a warp has WM x WN of d in registers
 *     5. sums + bias, 16 rows of a warp at a time, to shared memory, and from there in vectors to d
 *
 *     shared memory    stage 0 [ a | b ]  stage 1 [ a | b ]  ...        then 16 x WN f32 a warp
 *
 * A tile consists of lines: rows of BK where the operand is contiguous along k (a, and b as [n,k]),
 * rows of BN where it is not (b as [k,n]). Lines consist of chunks of 16 bytes, which trade places
 * within a line (chunk_at) so that the eight lines of a ldmatrix lie in different banks; so do the
 * 4 x 8 elements that a warp picks from f32 as [k,n], which has no ldmatrix.
 *
 * ALIGN_A and ALIGN_B say what the base and strides are multiples of: a chunk is copied as one of
 * 16 bytes, two of 8, four of 4, or through registers. What lies past m, n or k is not read and
 * becomes zero, so that a NaN beside the arrays does no harm.
 *
 * Tensor cores cut off what does not fit into a sum, each time they add to it, which always errs to
 * the same side: the error grows with k, not with its root. Where d is f32 that would show, so sums
 * are added to totals, properly rounded, and started anew every TOTAL_TILES tiles.
 *
 * Entries: gemm_sm80, and gemm_reduce where SPLIT_K > 1 (gemm_tile.cuh, with the order of tiles).
 */

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE /* of a and b; DT_F32: multiplied as tf32 */
#define DTYPE DT_BF16
#endif
#ifndef D_DTYPE
#define D_DTYPE DT_BF16
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
#define BN 256
#endif
#ifndef BK
#define BK 64
#endif
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARPS_N
#define WARPS_N 4
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef TOTAL_TILES /* 0: no totals */
#define TOTAL_TILES 0
#endif
#ifndef SPLIT_K
#define SPLIT_K 1
#endif
#ifndef GROUP
#define GROUP 8
#endif

#include "common/cuda/cp_async.cuh"
#include "common/cuda/ldmatrix.cuh"
#include "common/cuda/mma.cuh"
#include "gemm_tile.cuh"

#define SIZE DT_SIZE(DTYPE)
#define THREADS (32 * WARPS_M * WARPS_N)
#define WM (BM / WARPS_M)
#define WN (BN / WARPS_N)
#define A_LINE (BK * SIZE) /* bytes */
#define B_LINE ((B_IS_NK ? BK : BN) * SIZE)
#define B_LINES (B_IS_NK ? BN : BK)
#define B_SKEW (DTYPE == DT_F32 && !B_IS_NK ? 2 : 1) /* of chunk_at */
#define A_BYTES (BM * BK * SIZE)
#define STAGE_BYTES (A_BYTES + BN * BK * SIZE)
#define K_STEPS (BK * SIZE / 32)
#define M_FRAGMENTS (WM / 16)
#define N_FRAGMENTS (WN / 8)
#define STAGING_PITCH (WN + 8) /* f32; 8 keeps the quads of a fragment's rows in different banks */

static_assert(WM % 16 == 0 && WN % 16 == 0, "a warp multiplies 16 x 16 at a time");
static_assert(K_STEPS >= 2 && K_STEPS % 2 == 0, "fragments alternate between two buffers");
static_assert(STAGES >= 2, "a tile is copied while another one is multiplied");
static_assert(BM * (A_LINE / 16) % 32 == 0 && THREADS % (A_LINE / 16) == 0, "whole lines a pass");
static_assert(B_LINES * (B_LINE / 16) % 32 == 0 && THREADS % (B_LINE / 16) == 0, "likewise");

struct fragments {
    uint32_t a[M_FRAGMENTS][4], b[N_FRAGMENTS][2];
};

/* Where a chunk of a line lies in a tile. Lines of less than 128 bytes share the banks of one. */
__device__ __forceinline__ uint32_t chunk_at(uint32_t line, uint32_t chunk, int line_bytes,
                                             int skew)
{
    int chunks = line_bytes < 128 ? line_bytes / 16 : 8, lines = 8 / chunks;
    return line * line_bytes + ((chunk ^ (line / lines * skew & (chunks - 1))) << 4);
}

/* ---- Copying ------------------------------------------------------------------------------- */

/* What a thread copies of an operand: one chunk of every (lines of a pass)th line. */
struct copier {
    const char *from;               /* the chunk in its first line of the next tile */
    int64_t line_pitch, tile_pitch; /* bytes */
    int line, chunk;
};

__device__ __forceinline__ struct copier copier_make(const void *origin, int64_t line_pitch,
                                                     int64_t tile_pitch, int line_bytes)
{
    struct copier copier;
    copier.line = threadIdx.x / (line_bytes / 16);
    copier.chunk = threadIdx.x % (line_bytes / 16);
    copier.line_pitch = line_pitch;
    copier.tile_pitch = tile_pitch;
    copier.from = (const char *)origin + copier.line * line_pitch + copier.chunk * 16;
    return copier;
}

__device__ __forceinline__ int clamp_bytes(int bytes, int most)
{
    return max(0, min(bytes, most));
}

/* Of 2-byte elements at any of their multiples. */
__device__ __forceinline__ void copy_elements(uint32_t to, const char *from, int bytes)
{
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = 4 * i < bytes ? *(const uint16_t *)(from + 4 * i) : 0;
        words[i] |= 4 * i + 2 < bytes ? *(const uint16_t *)(from + 4 * i + 2) << 16 : 0;
    }
    store_shared_16(to, words);
}

/* `bytes` of a chunk, zeros behind them. */
__device__ __forceinline__ void copy_chunk(uint32_t to, const char *from, int bytes, int align)
{
    if (align == 16)
        cp_async_16(to, from, bytes);
#pragma unroll
    for (int i = 0; align == 8 && i < 16; i += 8)
        cp_async_8(to + i, from + i, clamp_bytes(bytes - i, 8));
#pragma unroll
    for (int i = 0; align == 4 && i < 16; i += 4)
        cp_async_4(to + i, from + i, clamp_bytes(bytes - i, 4));
    if (align < 4)
        copy_elements(to, from, bytes);
}

/* The next tile, of which `lines_left` lines of `bytes_left` bytes exist. Single elements need
 * registers: not all at a time. */
template <int align>
__device__ __forceinline__ void copy_tile(struct copier *copier, uint32_t to, int lines,
                                          int line_bytes, int skew, int lines_left,
                                          int64_t bytes_left)
{
    const int pass = THREADS / (line_bytes / 16);
    int bytes = clamp_bytes((int)min(bytes_left, (int64_t)line_bytes) - copier->chunk * 16, 16);
#pragma unroll(align < 4 ? 2 : 64)
    for (int first = 0; first < lines; first += pass) {
        int line = copier->line + first;
        if (lines % pass == 0 || line < lines)
            copy_chunk(to + chunk_at(line, copier->chunk, line_bytes, skew),
                       copier->from + first * copier->line_pitch, line < lines_left ? bytes : 0,
                       align);
    }
    copier->from += copier->tile_pitch;
}

/* ---- Multiplying --------------------------------------------------------------------------- */

/* b as [k,n]: a line is a row of k. */
__device__ __forceinline__ void load_b_along_n(struct fragments *f, uint32_t b, int step,
                                               int first_column)
{
    int lane = threadIdx.x % 32;
    if (DTYPE == DT_F32) {
#pragma unroll
        for (int i = 0; i < N_FRAGMENTS; i++) {
            int column = first_column + 8 * i + lane / 4, line = step * 8 + lane % 4;
            uint32_t within = column % 4 * 4;
            f->b[i][0] = load_shared_4(b + chunk_at(line, column / 4, B_LINE, B_SKEW) + within);
            f->b[i][1] = load_shared_4(b + chunk_at(line + 4, column / 4, B_LINE, B_SKEW) + within);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N_FRAGMENTS; i += 2) {
        uint32_t pair[4];
        int chunk = first_column / 8 + i + lane / 16;
        ldmatrix_x4_transposed(pair, b + chunk_at(step * 16 + lane % 16, chunk, B_LINE, B_SKEW));
        f->b[i][0] = pair[0], f->b[i][1] = pair[1];
        f->b[i + 1][0] = pair[2], f->b[i + 1][1] = pair[3];
    }
}

/* The fragments of 32 bytes of k: an even number of chunks on, which is one bit of chunk_at. */
__device__ __forceinline__ void load_fragments(struct fragments *f, uint32_t stage, int step)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_row = warp / WARPS_N * WM, first_column = warp % WARPS_N * WN;
    uint32_t a = chunk_at(first_row + lane % 16, lane / 16, A_LINE, 1) ^ step * 32;
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++)
        ldmatrix_x4(f->a[i], stage + a + i * 16 * A_LINE);
    if (!B_IS_NK) {
        load_b_along_n(f, stage + A_BYTES, step, first_column);
        return;
    }
    uint32_t b = chunk_at(first_column + lane % 8 + lane / 16 * 8, lane / 8 % 2, B_LINE, 1);
    b = A_BYTES + (b ^ step * 32);
#pragma unroll
    for (int i = 0; i < N_FRAGMENTS; i += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, stage + b + i * 8 * B_LINE);
        f->b[i][0] = pair[0], f->b[i][1] = pair[1];
        f->b[i + 1][0] = pair[2], f->b[i + 1][1] = pair[3];
    }
}

__device__ __forceinline__ void round_fragments(struct fragments *f)
{
#pragma unroll
    for (int i = 0; i < 4 * M_FRAGMENTS; i++)
        f->a[i / 4][i % 4] = tf32_from_f32(f->a[i / 4][i % 4]);
#pragma unroll
    for (int i = 0; i < 2 * N_FRAGMENTS; i++)
        f->b[i / 2][i % 2] = tf32_from_f32(f->b[i / 2][i % 2]);
}

/* Down one column of fragments and up the next: neighbours share b's, or a's. */
__device__ __forceinline__ void multiply(float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4],
                                         struct fragments *f)
{
    if (DTYPE == DT_F32)
        round_fragments(f);
#pragma unroll
    for (int j = 0; j < N_FRAGMENTS; j++) {
#pragma unroll
        for (int down = 0; down < M_FRAGMENTS; down++) {
            int i = j % 2 ? M_FRAGMENTS - 1 - down : down;
            if (DTYPE == DT_BF16)
                mma_bf16(sums[i][j], f->a[i], f->b[j][0], f->b[j][1]);
            else if (DTYPE == DT_F16)
                mma_f16(sums[i][j], f->a[i], f->b[j][0], f->b[j][1]);
            else
                mma_tf32(sums[i][j], f->a[i], f->b[j][0], f->b[j][1]);
        }
    }
}

/* totals += sums, sums = 0. */
__device__ __forceinline__ void add_to_totals(float (&totals)[M_FRAGMENTS][N_FRAGMENTS][4],
                                              float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4])
{
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++) {
#pragma unroll
        for (int j = 0; j < 4 * N_FRAGMENTS; j++) {
            totals[i][j / 4][j % 4] += sums[i][j / 4][j % 4];
            sums[i][j / 4][j % 4] = 0.0f;
        }
    }
}

/* ---- Storing ------------------------------------------------------------------------------- */

__device__ __forceinline__ void add_bias(const struct gemm_cuda_args *args, int first_column,
                                         float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4])
{
#pragma unroll
    for (int j = 0; j < N_FRAGMENTS; j++) {
        int column = first_column + 8 * j + threadIdx.x % 4 * 2;
        float bias0 = bias_of_column(args, column), bias1 = bias_of_column(args, column + 1);
#pragma unroll
        for (int i = 0; i < M_FRAGMENTS; i++) {
            sums[i][j][0] += bias0, sums[i][j][1] += bias1;
            sums[i][j][2] += bias0, sums[i][j][3] += bias1;
        }
    }
}

/* Fragments hold pairs of columns of eight rows; by way of shared memory they become vectors. */
__device__ __forceinline__ void store_sums(const struct gemm_cuda_args *args,
                                           const struct tile *tile, char *shared,
                                           float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_row = tile->m + warp / WARPS_N * WM, first_column = tile->n + warp % WARPS_N * WN;
    float *staging = (float *)shared + warp * 16 * STAGING_PITCH;
    float *quad = staging + lane / 4 * STAGING_PITCH + lane % 4 * 2;
    if (BIAS_DTYPE != DT_NONE && SPLIT_K == 1)
        add_bias(args, first_column, sums);
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < N_FRAGMENTS; j++) {
            *(float2 *)(quad + 8 * j) = make_float2(sums[i][j][0], sums[i][j][1]);
            *(float2 *)(quad + 8 * j + 8 * STAGING_PITCH) =
                make_float2(sums[i][j][2], sums[i][j][3]);
        }
        __syncwarp();
#pragma unroll
        for (int first = 0; first < 16 * WN; first += 32 * OUT_VECTOR) {
            int row = (first + lane * OUT_VECTOR) / WN, column = (first + lane * OUT_VECTOR) % WN;
            float values[OUT_VECTOR];
#pragma unroll
            for (int v = 0; v < OUT_VECTOR; v++)
                values[v] = staging[row * STAGING_PITCH + column + v];
            put_sums(args, tile, first_row + 16 * i + row, first_column + column, values,
                     OUT_VECTOR);
        }
    }
}

/* ---- The block ----------------------------------------------------------------------------- */

/* Both operands' copies, and how far they are. */
struct reader {
    struct copier a, b;
    int rows, columns; /* of the tile that exist, or more */
    int k_left;        /* from the next tile on */
    uint32_t stage;    /* where that goes */
};

__device__ __forceinline__ struct reader reader_make(const struct gemm_cuda_args *args,
                                                     const struct tile *tile)
{
    const char *a = (const char *)args->a, *b = (const char *)args->b;
    int64_t a_row = args->a_row_stride * SIZE, b_row = args->b_row_stride * SIZE;
    a += tile->product * args->a_batch_stride * SIZE + tile->m * a_row +
         (int64_t)tile->k_begin * SIZE;
    b += tile->product * args->b_batch_stride * SIZE;
    b += B_IS_NK ? tile->n * b_row + (int64_t)tile->k_begin * SIZE
                 : tile->k_begin * b_row + (int64_t)tile->n * SIZE;
    struct reader reader;
    reader.a = copier_make(a, a_row, A_LINE, A_LINE);
    reader.b = copier_make(b, b_row, B_IS_NK ? B_LINE : BK * b_row, B_LINE);
    reader.rows = args->m - tile->m;
    reader.columns = args->n - tile->n;
    reader.k_left = tile->k_end - tile->k_begin;
    reader.stage = 0;
    return reader;
}

/* Starts the next tile's copy, if there is a next tile; a group either way. */
__device__ __forceinline__ void read_tile(struct reader *reader, uint32_t stages)
{
    if (reader->k_left > 0) {
        uint32_t to = stages + reader->stage;
        int64_t k_bytes = (int64_t)reader->k_left * SIZE;
        copy_tile<ALIGN_A>(&reader->a, to, BM, A_LINE, 1, reader->rows, k_bytes);
        copy_tile<ALIGN_B>(&reader->b, to + A_BYTES, B_LINES, B_LINE, B_SKEW,
                           B_IS_NK ? reader->columns : reader->k_left,
                           B_IS_NK ? k_bytes : (int64_t)reader->columns * SIZE);
    }
    cp_async_commit();
    reader->k_left -= BK;
    reader->stage = reader->stage == (STAGES - 1) * STAGE_BYTES ? 0 : reader->stage + STAGE_BYTES;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm_sm80(const __grid_constant__ struct gemm_cuda_args args)
{
    extern __shared__ __align__(128) char shared[];
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared), stage = 0;
    float sums[M_FRAGMENTS][N_FRAGMENTS][4] = {}, totals[M_FRAGMENTS][N_FRAGMENTS][4] = {};
    struct fragments fragments[2];
    struct tile tile = tile_of_block(&args);
    struct reader reader = reader_make(&args, &tile);
    int tiles = (reader.k_left + BK - 1) / BK;

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        read_tile(&reader, stages);
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (tiles > 0)
        load_fragments(&fragments[0], stages, 0);
#pragma unroll 1
    for (; tiles > 0; tiles--) {
        if (TOTAL_TILES && tiles % (TOTAL_TILES ? TOTAL_TILES : 1) == 0)
            add_to_totals(totals, sums);
#pragma unroll
        for (int step = 0; step < K_STEPS; step++) {
            if (step == K_STEPS - 1) { /* 1 */
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                stage = stage == (STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
            }
            /* 2 */
            load_fragments(&fragments[(step + 1) % 2], stages + stage, (step + 1) % K_STEPS);
            if (step == 0) /* 3 */
                read_tile(&reader, stages);
            multiply(sums, &fragments[step % 2]); /* 4 */
        }
    }
    add_to_totals(totals, sums);
    announce_reduce();
    cp_async_wait<0>();
    __syncthreads();
    store_sums(&args, &tile, shared, totals); /* 5 */
}
