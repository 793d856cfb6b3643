/* grouped_gemm on tensor cores by mma.sync, sm_80 and up. DTYPE bf16 or f16; sums are f32.
 *
 * Blocks stay: each walks over tiles of BM rows of one expert (grouped_gemm_tiles.cuh) by OUT_N
 * columns of d. It reads a and b in steps of BK along k, STAGES - 1 of them ahead, by cp.async; the
 * reader goes on to the next tile while the last steps of one are multiplied and its sums stored,
 * so that the copies never pause.
 *
 *     for each tile:
 *         for each step of k, for each 32 bytes of it:
 *             1. before the last ones: wait for the next step, and for all warps to be done with
 *                the one before this
 *             2. ldmatrix the fragments of the next 32 bytes
 *             3. with the first ones: start the copy STAGES - 1 steps ahead, perhaps of another
 *                tile, to where the one before this was
 *             4. multiply: a warp has WM x WN of the products in registers
 *         5. act(gate) up, if so; four lanes trade columns, so that each has 16 bytes to store
 *
 *     shared memory    the list of tiles, then stage 0 [ a | b ]  stage 1 [ a | b ]  ...
 *
 * With an activation the WN lines of b that a warp multiplies are WN / 2 of the gate, then the same
 * columns of up: a thread finds both in its registers.
 *
 * A stage consists of lines of BK, these of chunks of 16 bytes, which trade places within a line
 * (chunk_at) so that the eight lines of a ldmatrix lie in different banks. ALIGN_A and ALIGN_B say
 * what the base and strides are multiples of: a chunk is copied as one of 16 bytes, two of 8, four
 * of 4, or through registers. What lies past a tile's rows, n or k is not read and becomes zero.
 *
 * Tensor cores cut off what does not fit into a sum, which always errs to the same side: where d is
 * f32, sums are added to totals, properly rounded, and started anew every TOTAL_STEPS steps. */

/* ---- Parameters: what is computed ---- */
#ifndef DTYPE /* of a and b */
#define DTYPE DT_BF16
#endif
#ifndef D_DTYPE
#define D_DTYPE DT_BF16
#endif
#ifndef FORM
#define FORM FORM_OFFSETS
#endif
#ifndef GATHER
#define GATHER 0
#endif
#ifndef ACTIVATION
#define ACTIVATION 0
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
#define BK 64
#endif
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARPS_N
#define WARPS_N 2
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef TOTAL_STEPS /* 0: no totals */
#define TOTAL_STEPS 0
#endif
#ifndef GROUP
#define GROUP 8
#endif

#include "common/cuda/cp_async.cuh"
#include "common/cuda/launch.cuh"
#include "common/cuda/ldmatrix.cuh"
#include "common/cuda/load.cuh"
#include "common/cuda/mma.cuh"
#include "grouped_gemm_sm80_args.h"
#include "grouped_gemm_tiles.cuh"

#define SIZE 2
#define HALVES (ACTIVATION ? 2 : 1) /* gate and up */
#define OUT_N (BN / HALVES)
#define THREADS (32 * WARPS_M * WARPS_N)
#define WM (BM / WARPS_M)
#define WN (BN / WARPS_N)
#define LINE (BK * SIZE) /* bytes */
#define CHUNKS (LINE / 16)
#define PASS (THREADS / CHUNKS) /* lines that all threads copy together */
#define A_PASSES ((BM + PASS - 1) / PASS)
#define A_BYTES (BM * LINE)
#define STAGE_BYTES (A_BYTES + BN * LINE)
#define K_STEPS (LINE / 32)
#define M_FRAGMENTS (WM / 16)
#define N_FRAGMENTS (WN / 8)
#define OUT_FRAGMENTS (N_FRAGMENTS / HALVES)

static_assert(WM % 16 == 0 && WN % 16 == 0, "a warp multiplies 16 x 16 at a time");
static_assert(K_STEPS >= 2 && K_STEPS % 2 == 0, "fragments alternate between two buffers");
static_assert(STAGES >= 2, "a step is copied while another one is multiplied");
static_assert(THREADS % CHUNKS == 0, "whole lines a pass");
static_assert(!ACTIVATION || PASS % WN == 0 || WN / 2 % PASS == 0, "a pass is of one half, or all");

struct fragments {
    uint32_t a[M_FRAGMENTS][4], b[N_FRAGMENTS][2];
};

#include "grouped_gemm_sm80_store.cuh"

/* Where a chunk of a line lies in a stage. Lines of less than 128 bytes share the banks of one. */
__device__ __forceinline__ uint32_t chunk_at(uint32_t line, uint32_t chunk)
{
    const int chunks = LINE < 128 ? CHUNKS : 8, lines = 8 / chunks;
    return line * LINE + ((chunk ^ (line / lines & (chunks - 1))) << 4);
}

/* ---- Which tile ---------------------------------------------------------------------------- */

struct walk {
    struct tile_list list;
    struct row_blocks blocks;
    uint32_t tiles; /* of all experts */
};

__device__ __forceinline__ struct walk walk_make(const struct grouped_gemm_sm80_args *args,
                                                 char *shared)
{
    struct walk walk = {};
    int rows;
    if (FORM == FORM_BLOCKS) {
        walk.blocks = row_blocks_make(args->block, args->num_rows, args->m);
        rows = rows_of_tiles(&walk.blocks);
    } else {
        walk.list.first = (int *)shared;
        walk.list.border = walk.list.first + args->experts + 1;
        tile_list_make<THREADS>(&walk.list, FORM == FORM_OFFSETS ? args->offsets : args->counts,
                                args->experts, args->m);
        rows = walk.list.first[args->experts];
    }
    walk.tiles = (uint32_t)rows * args->n_tiles;
    return walk;
}

__device__ __forceinline__ struct tile tile_at(const struct grouped_gemm_sm80_args *args,
                                               const struct walk *walk, uint32_t index)
{
    return FORM == FORM_BLOCKS ? tile_of_blocks(&walk->blocks, args->expert_ids, args->experts,
                                                index, args->n_tiles)
                               : tile_in_list(&walk->list, args->experts, index, args->n_tiles);
}

/* ---- Copying ------------------------------------------------------------------------------- */

/* How far the copies are. A thread copies one chunk of every PASSth line. */
struct reader {
    const char *a, *b; /* its chunk of its first line in the next step; GATHER: of row 0 of a */
    int rows[GATHER ? A_PASSES : 1]; /* GATHER: of a; -1: none */
    int lines_left;                  /* of a, from the thread's first on; none or less: no line */
    int columns_left;                /* of b, likewise */
    int k_left;                      /* from the next step on */
    uint32_t stage;                  /* where that goes */
    uint32_t next;                   /* tile to be read after this one */
};

__device__ __forceinline__ int clamp_bytes(int bytes, int most)
{
    return clamp_int(bytes, 0, most);
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
template <int align>
__device__ __forceinline__ void copy_chunk(uint32_t to, const char *from, int bytes)
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

/* Column of the tile that line `first` after a thread's own has; *is_up: of which half. A pass lies
 * within one half of a warp's lines, or spans all of them: then the halves are the thread's. */
__device__ __forceinline__ int column_after(int first, int *is_up)
{
    const int half = WN / 2;
    if (!ACTIVATION || PASS % WN == 0) {
        *is_up = 0;
        return first / HALVES;
    }
    *is_up = first % WN >= half;
    return first / WN * half + first % half;
}

/* A thread's first line of b in a tile: likewise. */
__device__ __forceinline__ int column_of_line(int line, int *is_up)
{
    const int half = WN / 2;
    *is_up = ACTIVATION && line % WN >= half;
    return ACTIVATION ? line / WN * half + line % half : line;
}

__device__ __forceinline__ int gathered_row(const struct grouped_gemm_sm80_args *args, int id)
{
    int row = id < 0 ? -1 : args->share == 1 ? id : id / args->share;
    return row < args->source_rows ? row : -1;
}

__device__ __forceinline__ void reader_begin_tile(const struct grouped_gemm_sm80_args *args,
                                                  const struct tile *tile, struct reader *reader)
{
    int line = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, is_up;
    int column = column_of_line(line, &is_up), first = tile->column_tile * OUT_N;
    const char *a = (const char *)args->a + chunk * 16, *b = (const char *)args->b + chunk * 16;
    if (FORM == FORM_MASKED)
        a += tile->expert * args->a_expert_stride * SIZE;
    b += (tile->expert * args->b_expert_stride +
          ((int64_t)first + column + (is_up ? args->n : 0)) * args->b_row_stride) *
         SIZE;
    if (GATHER) {
#pragma unroll
        for (int i = 0; i < A_PASSES; i++) {
            bool is_one = line + i * PASS < tile->rows;
            reader->rows[i] = is_one ? args->row_ids[tile->row + line + i * PASS] : -1;
        }
#pragma unroll
        for (int i = 0; i < A_PASSES; i++)
            reader->rows[i] = gathered_row(args, reader->rows[i]);
        reader->a = a;
    } else {
        reader->a = a + (int64_t)(tile->row + line) * args->a_row_stride * SIZE;
    }
    reader->b = b;
    reader->lines_left = tile->rows - line;
    reader->columns_left = args->n - first - column;
    reader->k_left = args->k;
}

/* The next tile that has something to read. */
__device__ __forceinline__ void reader_next_tile(const struct grouped_gemm_sm80_args *args,
                                                 const struct walk *walk, struct reader *reader)
{
    while (reader->next < walk->tiles) {
        struct tile tile = tile_at(args, walk, reader->next);
        reader->next += gridDim.x;
        if (FORM == FORM_BLOCKS && tile.expert < 0)
            continue;
        reader_begin_tile(args, &tile, reader);
        return;
    }
}

__device__ __forceinline__ void copy_step(const struct grouped_gemm_sm80_args *args,
                                          struct reader *reader, uint32_t to)
{
    int line = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    int bytes = clamp_bytes(min(reader->k_left, BK) * SIZE - chunk * 16, 16);
    int64_t a_pitch = args->a_row_stride * SIZE, b_pitch = args->b_row_stride * SIZE;
#pragma unroll(ALIGN_A < 4 ? 2 : 64)
    for (int i = 0; i < A_PASSES; i++) {
        int row = GATHER ? reader->rows[GATHER ? i : 0] : i * PASS;
        bool is_one = GATHER ? row >= 0 : i * PASS < reader->lines_left;
        if (BM % PASS == 0 || line + i * PASS < BM)
            copy_chunk<ALIGN_A>(to + chunk_at(line + i * PASS, chunk),
                                reader->a + (is_one ? row * a_pitch : 0), is_one ? bytes : 0);
    }
#pragma unroll(ALIGN_B < 4 ? 2 : 64)
    for (int first = 0; first < BN; first += PASS) {
        int is_up, column = column_after(first, &is_up);
        bool is_one = column < reader->columns_left;
        const char *from = reader->b + column * b_pitch + (is_up ? args->n * b_pitch : 0);
        if (BN % PASS == 0 || line + first < BN)
            copy_chunk<ALIGN_B>(to + A_BYTES + chunk_at(line + first, chunk), from,
                                is_one ? bytes : 0);
    }
    reader->a += LINE;
    reader->b += LINE;
}

/* 3. The next step, of this tile or another; after the last one there is an empty group. */
__device__ __forceinline__ void read_step(const struct grouped_gemm_sm80_args *args,
                                          const struct walk *walk, struct reader *reader,
                                          uint32_t stages)
{
    if (reader->k_left <= 0)
        reader_next_tile(args, walk, reader);
    if (reader->k_left > 0)
        copy_step(args, reader, stages + reader->stage);
    cp_async_commit();
    reader->k_left -= BK;
    reader->stage = reader->stage == (STAGES - 1) * STAGE_BYTES ? 0 : reader->stage + STAGE_BYTES;
}

/* ---- Multiplying --------------------------------------------------------------------------- */

/* 2. The fragments of 32 bytes of k: an even number of chunks on, which is one bit of chunk_at. */
__device__ __forceinline__ void load_fragments(struct fragments *f, uint32_t stage, int step)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_row = warp / WARPS_N * WM, first_column = warp % WARPS_N * WN;
    uint32_t a = chunk_at(first_row + lane % 16, lane / 16) ^ step * 32;
    uint32_t b = chunk_at(first_column + lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ step * 32;
#pragma unroll
    for (int i = 0; i < M_FRAGMENTS; i++)
        ldmatrix_x4(f->a[i], stage + a + i * 16 * LINE);
#pragma unroll
    for (int i = 0; i < N_FRAGMENTS; i += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, stage + A_BYTES + b + i * 8 * LINE);
        f->b[i][0] = pair[0], f->b[i][1] = pair[1];
        f->b[i + 1][0] = pair[2], f->b[i + 1][1] = pair[3];
    }
}

/* 4. Down one column of fragments and up the next: neighbours share b's, or a's. */
__device__ __forceinline__ void multiply(float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4],
                                         struct fragments *f)
{
#pragma unroll
    for (int j = 0; j < N_FRAGMENTS; j++) {
#pragma unroll
        for (int down = 0; down < M_FRAGMENTS; down++) {
            int i = j % 2 ? M_FRAGMENTS - 1 - down : down;
            if (DTYPE == DT_BF16)
                mma_bf16(sums[i][j], f->a[i], f->b[j][0], f->b[j][1]);
            else
                mma_f16(sums[i][j], f->a[i], f->b[j][0], f->b[j][1]);
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

/* ---- The block ----------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_sm80(const __grid_constant__ struct grouped_gemm_sm80_args args)
{
    extern __shared__ __align__(128) char shared[];
    float sums[M_FRAGMENTS][N_FRAGMENTS][4] = {};
    struct fragments fragments[2];
#if __CUDA_ARCH__ >= 900
    launch_wait();
#endif
    struct walk walk = walk_make(&args, shared);
    uint32_t list_bytes = FORM == FORM_BLOCKS ? 0 : (8 * (args.experts + 1) + 127) / 128 * 128;
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared) + list_bytes, stage = 0;
    struct reader reader = {};
    reader.next = args.k > 0 ? blockIdx.x : walk.tiles;

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        read_step(&args, &walk, &reader, stages);
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    load_fragments(&fragments[0], stages, 0);
#pragma unroll 1
    for (uint32_t index = blockIdx.x; index < walk.tiles; index += gridDim.x) {
        struct tile tile = tile_at(&args, &walk, index);
        float totals[M_FRAGMENTS][N_FRAGMENTS][4] = {};
#pragma unroll 1
        for (int k = tile.expert < 0 ? 0 : args.k, since = 0; k > 0; k -= BK) {
            if (TOTAL_STEPS && since++ == TOTAL_STEPS) {
                add_to_totals(totals, sums);
                since = 1;
            }
#pragma unroll
            for (int step = 0; step < K_STEPS; step++) {
                if (step == K_STEPS - 1) { /* 1 */
                    cp_async_wait<STAGES - 2>();
                    __syncthreads();
                    stage = stage == (STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
                }
                load_fragments(&fragments[(step + 1) % 2], stages + stage, (step + 1) % K_STEPS);
                if (step == 0)
                    read_step(&args, &walk, &reader, stages);
                multiply(sums, &fragments[step % 2]);
            }
        }
        add_to_totals(totals, sums);
        store_tile(&args, &tile, totals);
    }
    cp_async_wait<0>();
}
