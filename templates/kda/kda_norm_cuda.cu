/* l2norm and gated_rmsnorm: a row is one head of one token, D elements; LANES neighbouring lanes of
 * a warp handle it together, each with PASSES accesses of VEC elements.
 *
 *     step    THREADS / LANES * UNROLL rows, a block's at a time; blocks walk over the rows in
 *             strides of the grid, so a grid of any size is right
 *     1.      all loads of UNROLL rows (and of z), so that bytes are in flight
 *     2.      sums of squares, across the lanes by shuffles in a fixed order
 *     3.      scale, gate, store
 *
 * Bound by memory. Least bytes of a row: 2 D of x and out, and D of z where gated; at bf16 and 4.3
 * TB/s 8192 tokens of 32 heads of 128 take 31 us, gated 47 us. For that to be the bound the rest
 * must be cheap: a division by HEADS, which is a constant, and a dozen instructions an element.
 *
 * An element of out is written by the thread that has read the same one of x and z, so out may be
 * either. */
#include "common/cuda/load.cuh"
#include "kda_norm.cuh"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef Z_DTYPE
#define Z_DTYPE DT_BF16
#endif
#ifndef WEIGHT_DTYPE
#define WEIGHT_DTYPE DT_F32
#endif
#ifndef ACT
#define ACT KDA_NORM_SIGMOID
#endif
#ifndef HEADS
#define HEADS 32
#endif
#ifndef D
#define D 128
#endif
#ifndef VEC /* elements of an access: divides D */
#define VEC 8
#endif
#ifndef LANES
#define LANES 16
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 4
#endif

#define GATED (ACT != KDA_NORM_UNGATED)
#define PASSES ((D + LANES * VEC - 1) / (LANES * VEC))
#define ROWS (THREADS / LANES) /* that a block has at once */
#define WORDS(dtype) ((VEC * DT_SIZE(dtype) + 3) / 4)
static_assert(D % VEC == 0 && 32 % LANES == 0 && THREADS % 32 == 0, "rows of whole accesses");

struct row {
    int64_t token, head;
    bool is_there;
};

static __device__ __forceinline__ struct row row_at(const struct kda_norm_args &args, int64_t index)
{
    struct row row;
    row.token = (int64_t)((uint64_t)index / HEADS);
    row.head = index - row.token * HEADS;
    row.is_there = row.token < args.t;
    return row;
}

template <int dtype>
static __device__ __forceinline__ void load_row(uint32_t (&words)[PASSES][WORDS(dtype)],
                                                const void *data, const int64_t (&strides)[2],
                                                const struct row &row, int lane)
{
    const void *from =
        element(dtype, data, row.token * strides[0] + row.head * strides[1] + lane * VEC);
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        bool is_there = row.is_there && (p * LANES + lane) * VEC < D;
#pragma unroll
        for (int w = 0; w < WORDS(dtype); w++)
            words[p][w] = 0;
        if (is_there)
            load_words(words[p], element(dtype, from, p * LANES * VEC), VEC * DT_SIZE(dtype));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    kda_norm(const __grid_constant__ struct kda_norm_args args)
{
    const int lane = threadIdx.x % LANES;
    const int64_t rows = args.t * HEADS, step = (int64_t)gridDim.x * (ROWS * UNROLL);
    float weight[PASSES][VEC];
#pragma unroll
    for (int i = 0; i < PASSES * VEC; i++) {
        int column = (i / VEC * LANES + lane) * VEC + i % VEC;
        weight[i / VEC][i % VEC] = 0;
        if (GATED && column < D)
            weight[i / VEC][i % VEC] =
                load_as_f32(WEIGHT_DTYPE, element(WEIGHT_DTYPE, args.weight, column));
    }

    for (int64_t first = (int64_t)blockIdx.x * (ROWS * UNROLL); first < rows; first += step) {
        /* 1. */
        struct row row[UNROLL];
        uint32_t x[UNROLL][PASSES][WORDS(DTYPE)], z[UNROLL][PASSES][WORDS(Z_DTYPE)];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            row[u] = row_at(args, first + u * ROWS + threadIdx.x / LANES);
            load_row<DTYPE>(x[u], args.x, args.x_strides, row[u], lane);
            if (GATED)
                load_row<Z_DTYPE>(z[u], args.z, args.z_strides, row[u], lane);
        }

        /* 2. */
        float sum[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            sum[u] = 0;
#pragma unroll
            for (int i = 0; i < PASSES * VEC; i++) {
                float value = word_as_f32(DTYPE, x[u][i / VEC], i % VEC);
                sum[u] += value * value;
            }
        }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) {
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                sum[u] += __shfl_xor_sync(0xffffffff, sum[u], distance);
        }

        /* 3. */
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float factor = rsqrtf((GATED ? sum[u] * (1.0f / D) : sum[u]) + args.eps);
            int64_t at = row[u].token * args.out_strides[0] + row[u].head * args.out_strides[1];
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                int column = (p * LANES + lane) * VEC;
                float value[VEC];
                uint32_t words[WORDS(DTYPE)];
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    value[e] = word_as_f32(DTYPE, x[u][p], e) * factor;
                    if (GATED)
                        value[e] *=
                            weight[p][e] * kda_norm_gate<ACT>(word_as_f32(Z_DTYPE, z[u][p], e));
                }
                words_from_f32(DTYPE, words, value, VEC);
                if (row[u].is_there && column < D)
                    store_words((void *)element(DTYPE, args.out, at + column), words,
                                VEC * DT_SIZE(DTYPE));
            }
        }
    }
}
