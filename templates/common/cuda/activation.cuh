/* What joins the two halves of a gated layer, in f32: activate(activation, gate, up, limit, alpha)
 * of a constant ACTIVATION_.
 *
 *     first         gate <= limit, -limit <= up <= limit; a limit of infinity is none
 *     SILU          g sigmoid(g) u
 *     GELU          g Phi(g) u, Phi the normal distribution: 0.5 (1 + erf(g / sqrt 2))
 *     GELU_TANH     0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) u
 *     SWIGLU_OAI    g sigmoid(alpha g) (u + 1)
 *
 * What g and u are multiplied by is within 3e-7 of the definition. NaN of either stays. */
#ifndef QN_CUDA_ACTIVATION_CUH
#define QN_CUDA_ACTIVATION_CUH
#include "common/types.h"

#define ACTIVATION_SILU 0
#define ACTIVATION_GELU 1
#define ACTIVATION_GELU_TANH 2
#define ACTIVATION_SWIGLU_OAI 3
#define ACTIVATION_ALPHA 1.702f /* of SWIGLU_OAI where nothing else is said */

/* e^x, by the special function unit. */
__device__ __forceinline__ float activation_exp(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

__device__ __forceinline__ float activation_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float activation_sigmoid(float x)
{
    return activation_reciprocal(1.0f + activation_exp(-x));
}

/* Phi(x): e^(-x^2 / 2) t p(t) from below, t = 1 / (1 + 0.29 |x|), so that nothing cancels. */
__device__ __forceinline__ float activation_normal(float x)
{
    float t = activation_reciprocal(fmaf(0.29f, fabsf(x), 1.0f));
    float p = 3.7237081e-2f;
    p = fmaf(p, t, -1.8216779e-1f);
    p = fmaf(p, t, 2.8302889e-1f);
    p = fmaf(p, t, -1.2358591e-1f);
    p = fmaf(p, t, 1.6584882e-1f);
    p = fmaf(p, t, 8.5546930e-2f);
    p = fmaf(p, t, 1.1856869e-1f);
    p = fmaf(p, t, 1.1552329e-1f);
    float below = activation_exp(-0.5f * x * x) * t * p;
    return x < 0.0f ? below : 1.0f - below;
}

__device__ __forceinline__ float activate(int activation, float gate, float up, float limit,
                                          float alpha)
{
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    if (activation == ACTIVATION_SILU)
        return gate * activation_sigmoid(gate) * up;
    if (activation == ACTIVATION_GELU)
        return gate * activation_normal(gate) * up;
    if (activation == ACTIVATION_GELU_TANH) {
        float twice = 1.5957691f * fmaf(0.044715f * gate * gate, gate, gate);
        return gate * activation_sigmoid(twice) * up;
    }
    return gate * activation_sigmoid(alpha * gate) * (up + 1.0f);
}

/* The same for choices that begin with none: 1 is SILU. */
__device__ __forceinline__ float gated_activation(int choice, float gate, float up, float limit)
{
    return activate(choice - 1, gate, up, limit, ACTIVATION_ALPHA);
}
#endif
