/* A token of kda_decode_cuda.cu where a row of the state in memory, [k, v], is a channel of the
 * key, with columns of v along the lanes: what it multiplies rows with is in shared memory, a
 * warp's own channels, and sums of columns meet there. */
#ifndef KDA_DECODE_KV_CUH
#define KDA_DECODE_KV_CUH
#include "kda_decode_activation.cuh"

#define CHANNELS (K / WARPS)       /* those of a warp */
#define OWN ((CHANNELS + 31) / 32) /* those that a lane makes the factors of */
typedef reduction<PER, GROUPS, LANES> column_sums;

/* A token's inputs as they are in memory: of q and k the whole row for its length, 32 channels
 * apart, and again the warp's own channels with g; of v what meets the lane's part of a row. */
struct inputs {
    run<DTYPE, 1> q_all[L2NORM ? K / 32 : 1], k_all[L2NORM ? K / 32 : 1], q[OWN], k[OWN];
    run<G_DTYPE, 1> g[OWN];
    run<DTYPE, VEC> v[PER / VEC];
    float beta;
};

__device__ __forceinline__ void inputs_load(struct inputs &in, const struct kda_decode_args &args,
                                            const struct place &at, int token)
{
    const void *q = row_of<DTYPE>(args.q, at, token, at.head / (HV / H));
    const void *k = row_of<DTYPE>(args.k, at, token, at.head / (HV / H));
    const void *v = row_of<DTYPE>(args.v, at, token, at.head);
    const void *g = row_of<G_DTYPE>(args.g, at, token, at.head);
#pragma unroll
    for (int i = 0; L2NORM && i < K / 32; i++) {
        in.q_all[i].load(element(DTYPE, q, i * 32 + at.lane), DT_SIZE(DTYPE));
        in.k_all[i].load(element(DTYPE, k, i * 32 + at.lane), DT_SIZE(DTYPE));
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int d = at.warp * CHANNELS + (i * 32 + at.lane) % CHANNELS;
        in.q[i].load(element(DTYPE, q, d), DT_SIZE(DTYPE));
        in.k[i].load(element(DTYPE, k, d), DT_SIZE(DTYPE));
        in.g[i].load(element(G_DTYPE, g, IS_SCALAR ? 0 : d), DT_SIZE(G_DTYPE));
    }
#pragma unroll
    for (int i = 0; i < PER / VEC; i++)
        in.v[i].load(element(DTYPE, v, at.column + inner_of(i * VEC, at.lane)), V_ACCESS);
    in.beta = load_beta(args, at, token);
}

/* What a token multiplies the rows with, and sums of columns, a warp's each. */
struct shared {
    float decay[K], key[K], query[K];
    float m[WARPS][BV], o[WARPS][BV];
};

/* The warp's channels. */
__device__ __forceinline__ void factors_make(struct shared &f, const struct inputs &in,
                                             const struct gate &gate, float scale,
                                             const struct place &at)
{
    float q_factor = scale, k_factor = 1.0f;
    if (L2NORM) {
        float q_squares = 0.0f, k_squares = 0.0f;
#pragma unroll
        for (int i = 0; i < K / 32; i++) {
            q_squares += in.q_all[i][0] * in.q_all[i][0];
            k_squares += in.k_all[i][0] * in.k_all[i][0];
        }
        q_factor *= inverse_length<32>(q_squares);
        k_factor = inverse_length<32>(k_squares);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int d = at.warp * CHANNELS + (i * 32 + at.lane) % CHANNELS;
        float decay = gate.decay(in.g[i][0], IS_SCALAR ? 0 : d);
        if (i * 32 + at.lane < CHANNELS) {
            f.decay[d] = decay;
            f.key[d] = k_factor * in.k[i][0];
            f.query[d] = q_factor * in.q[i][0];
        }
    }
    __syncwarp();
}

/* The lane's sums of columns to its warp's row. */
__device__ __forceinline__ void sums_put(float (&to)[WARPS][BV], float (&x)[PER],
                                         const struct place &at)
{
    column_sums::sum(x, at.lane);
#pragma unroll
    for (int i = 0; i < column_sums::held; i++) {
        if (column_sums::is_leader(at.lane))
            to[at.warp][inner_of(column_sums::first(at.lane) + i, at.lane)] = x[i];
    }
}

__device__ __forceinline__ float sums_get(const float (&from)[WARPS][BV], int column)
{
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        sum += from[w][column];
    return sum;
}

/* m is read between the barriers and o after them, so that the next token may write m while o
 * is still read. */
__device__ __forceinline__ void advance(slab &s, const struct inputs &in, const struct gate &gate,
                                        const struct kda_decode_args &args, const struct place &at,
                                        int token)
{
    __shared__ struct shared f;
    const int first = at.warp * CHANNELS + at.lane / LANES;
    float sums[PER], change[PER];
    factors_make(f, in, gate, args.scale, at);
#pragma unroll
    for (int e = 0; e < PER; e++)
        sums[e] = 0.0f;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float decay = f.decay[first + r * GROUPS], key = f.key[first + r * GROUPS];
#pragma unroll
        for (int e = 0; e < PER; e++) {
            s[r][e] *= decay;
            sums[e] += s[r][e] * key;
        }
    }
    sums_put(f.m, sums, at);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < PER; e++) {
        float m = sums_get(f.m, inner_of(e, at.lane));
        change[e] = strength_of(in.beta) * (in.v[e / VEC][e % VEC] - m);
        sums[e] = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float key = f.key[first + r * GROUPS], query = f.query[first + r * GROUPS];
#pragma unroll
        for (int e = 0; e < PER; e++) {
            s[r][e] += key * change[e];
            sums[e] += s[r][e] * query;
        }
    }
    sums_put(f.o, sums, at);
    __syncthreads();
    char *to = (char *)row_of<DTYPE>(args.o, at, token, at.head);
    for (int c = at.warp * 32 + at.lane; c < BV; c += THREADS)
        store_from_f32(DTYPE, (void *)element(DTYPE, to, at.column + c), sums_get(f.o, c));
}
#endif
