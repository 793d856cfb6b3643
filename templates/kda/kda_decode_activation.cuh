/* What kda_decode_cuda.cu makes of a token's inputs, in f32: gate, sigmoid, length. */
#ifndef KDA_DECODE_ACTIVATION_CUH
#define KDA_DECODE_ACTIVATION_CUH
#include "kda_decode_slab.cuh"
#include "kda_gate.cuh"

/* A head's gate. */
struct gate {
    float rate, lower;
    const float *bias;

    __device__ __forceinline__ gate(const struct kda_decode_args &args, int head)
        : rate(GATE ? __expf(args.A_log[head]) : 1.0f), lower(args.lower_bound),
          bias(args.dt_bias + (HAS_BIAS ? head * args.dt_bias_head : 0))
    {
    }

    __device__ __forceinline__ float decay(float x, int channel) const
    {
        return __expf(kda_gate<GATE>(x, HAS_BIAS ? bias[channel] : 0.0f, rate, lower));
    }
};

__device__ __forceinline__ float strength_of(float beta)
{
    if (BETA_LOGITS)
        beta = 1.0f / (1.0f + __expf(-beta));
    return NEG_EIGVAL ? 2.0f * beta : beta;
}

/* 1 / length of what `lanes` lanes have a square each of. */
template <int lanes> __device__ __forceinline__ float inverse_length(float squares)
{
#pragma unroll
    for (int width = lanes / 2; width > 0; width /= 2)
        squares += __shfl_xor_sync(0xffffffff, squares, width);
    return rsqrtf(squares + 1e-6f);
}

__device__ __forceinline__ float load_beta(const struct kda_decode_args &args,
                                           const struct place &at, int token)
{
    return load_as_f32(BETA_DTYPE, row_of<BETA_DTYPE>(args.beta, at, token, at.head));
}
#endif
