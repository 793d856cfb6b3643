/* A token of kda_decode_cuda.cu where a row of the state in memory, [v, k], is a column of S, along
 * the lanes of a group: what it multiplies with is in registers, and no warp needs another. */
#ifndef KDA_DECODE_VK_CUH
#define KDA_DECODE_VK_CUH
#include "kda_decode_activation.cuh"

typedef reduction<ROWS, LANES, 1> row_sums;

/* A token's inputs as they are in memory: of q, k and g what meets the lane's part of a row, of v
 * what meets the sums that it holds. */
struct inputs {
    run<DTYPE, VEC> q[PER / VEC], k[PER / VEC];
    run<G_DTYPE, IS_SCALAR ? 1 : VEC> g[IS_SCALAR ? 1 : PER / VEC];
    run<DTYPE, 1> v[row_sums::held];
    float beta;
};

/* Column of v, within the slab, of the sum that the lane holds as number i. */
__device__ __forceinline__ int column_of(const struct place &at, int i)
{
    return at.warp * (OUTER / WARPS) + (row_sums::first(at.lane) + i) * GROUPS + at.lane / LANES;
}

__device__ __forceinline__ void inputs_load(struct inputs &in, const struct kda_decode_args &args,
                                            const struct place &at, int token)
{
    const void *q = row_of<DTYPE>(args.q, at, token, at.head / (HV / H));
    const void *k = row_of<DTYPE>(args.k, at, token, at.head / (HV / H));
    const void *v = row_of<DTYPE>(args.v, at, token, at.head);
    const void *g = row_of<G_DTYPE>(args.g, at, token, at.head);
#pragma unroll
    for (int i = 0; i < PER / VEC; i++) {
        int d = inner_of(i * VEC, at.lane);
        in.q[i].load(element(DTYPE, q, d), Q_ACCESS);
        in.k[i].load(element(DTYPE, k, d), K_ACCESS);
        if (!IS_SCALAR)
            in.g[i].load(element(G_DTYPE, g, d), G_ACCESS);
    }
    if (IS_SCALAR)
        in.g[0].load(g, DT_SIZE(G_DTYPE));
#pragma unroll
    for (int i = 0; i < row_sums::held; i++)
        in.v[i].load(element(DTYPE, v, at.column + column_of(at, i)), DT_SIZE(DTYPE));
    in.beta = load_beta(args, at, token);
}

/* What the token multiplies the lane's part of a row with. */
struct factors {
    float decay[PER], key[PER], query[PER];
};

__device__ __forceinline__ void factors_make(struct factors &f, const struct inputs &in,
                                             const struct gate &gate, float scale, int lane)
{
    float q_squares = 0.0f, k_squares = 0.0f, one = IS_SCALAR ? gate.decay(in.g[0][0], 0) : 0.0f;
#pragma unroll
    for (int e = 0; e < PER; e++) {
        f.query[e] = in.q[e / VEC][e % VEC];
        f.key[e] = in.k[e / VEC][e % VEC];
        f.decay[e] = IS_SCALAR ? one : gate.decay(in.g[e / VEC][e % VEC], inner_of(e, lane));
        q_squares += f.query[e] * f.query[e];
        k_squares += f.key[e] * f.key[e];
    }
    float q_factor = L2NORM ? scale * inverse_length<LANES>(q_squares) : scale;
    float k_factor = L2NORM ? inverse_length<LANES>(k_squares) : 1.0f;
#pragma unroll
    for (int e = 0; e < PER; e++) {
        f.query[e] *= q_factor;
        f.key[e] *= k_factor;
    }
}

__device__ __forceinline__ void advance(slab &s, const struct inputs &in, const struct gate &gate,
                                        const struct kda_decode_args &args, const struct place &at,
                                        int token)
{
    struct factors f;
    factors_make(f, in, gate, args.scale, at.lane);
    float m[ROWS], o[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        m[r] = 0.0f;
#pragma unroll
        for (int e = 0; e < PER; e++) {
            s[r][e] *= f.decay[e];
            m[r] += s[r][e] * f.key[e];
        }
    }
    row_sums::sum(m, at.lane);
#pragma unroll
    for (int i = 0; i < row_sums::held; i++)
        m[i] = strength_of(in.beta) * (in.v[i][0] - m[i]);

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int owner = r / row_sums::held * row_sums::share;
        float change = __shfl_sync(0xffffffff, m[r % row_sums::held], owner, LANES);
        o[r] = 0.0f;
#pragma unroll
        for (int e = 0; e < PER; e++) {
            s[r][e] += f.key[e] * change;
            o[r] += s[r][e] * f.query[e];
        }
    }
    row_sums::sum(o, at.lane);
    char *to = (char *)row_of<DTYPE>(args.o, at, token, at.head);
#pragma unroll
    for (int i = 0; i < row_sums::held; i++) {
        if (row_sums::is_leader(at.lane))
            store_from_f32(DTYPE, (void *)element(DTYPE, to, at.column + column_of(at, i)), o[i]);
    }
}
#endif
