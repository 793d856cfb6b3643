/* What joins the two halves of a gated layer, in vectors of f32: activate(activation, gate, up,
 * limit, alpha) of a constant ACTIVATION_.
 *
 *     first         gate <= limit, -limit <= up <= limit; a limit of infinity is none
 *     SILU          g sigmoid(g) u
 *     GELU          g Phi(g) u, Phi the normal distribution: 0.5 (1 + erf(g / sqrt 2))
 *     GELU_TANH     0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) u
 *     SWIGLU_OAI    g sigmoid(alpha g) (u + 1)
 *
 * What g and u are multiplied by is within 3e-7 of the definition. NaN of either stays. */
#ifndef QN_CPU_ACTIVATION_H
#define QN_CPU_ACTIVATION_H
#include "common/cpu/exp.h"

#define ACTIVATION_SILU 0
#define ACTIVATION_GELU 1
#define ACTIVATION_GELU_TANH 2
#define ACTIVATION_SWIGLU_OAI 3
#define ACTIVATION_ALPHA 1.702f /* of SWIGLU_OAI where nothing else is said */

/* Phi(x): e^(-x^2 / 2) t p(t) from below, t = 1 / (1 + 0.29 |x|), so that nothing cancels. */
INLINE vec_f32 activation_normal(vec_f32 x)
{
    vec_f32 magnitude = (vec_f32)((vec_u32)x & 0x7fffffff);
    vec_f32 t = 1.0f / (magnitude * 0.29f + 1.0f);
    vec_f32 p = splat_f32(3.7237081e-2f);
    p = p * t - 1.8216779e-1f;
    p = p * t + 2.8302889e-1f;
    p = p * t - 1.2358591e-1f;
    p = p * t + 1.6584882e-1f;
    p = p * t + 8.5546930e-2f;
    p = p * t + 1.1856869e-1f;
    p = p * t + 1.1552329e-1f;
    vec_f32 below = exp_f32(x * x * -0.5f) * t * p;
    return select_f32(x < 0, below, 1.0f - below);
}

INLINE vec_f32 activate(int activation, vec_f32 gate, vec_f32 up, float limit, float alpha)
{
    gate = select_f32(gate > limit, splat_f32(limit), gate);
    up = clamp_f32(up, -limit, limit);
    if (activation == ACTIVATION_SILU)
        return gate * sigmoid_f32(gate) * up;
    if (activation == ACTIVATION_GELU)
        return gate * activation_normal(gate) * up;
    if (activation == ACTIVATION_GELU_TANH) {
        vec_f32 twice = (gate * gate * 0.044715f * gate + gate) * 1.5957691f;
        return gate * sigmoid_f32(twice) * up;
    }
    return gate * sigmoid_f32(gate * alpha) * (up + 1.0f);
}

/* The same for choices that begin with none: 1 is SILU. */
INLINE vec_f32 gated_activation(int choice, vec_f32 gate, vec_f32 up, float limit)
{
    return activate(choice - 1, gate, up, limit, ACTIVATION_ALPHA);
}
#endif
