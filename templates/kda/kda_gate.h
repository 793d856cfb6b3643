/* The decay gate, in vectors: the natural logarithm of what a channel of the state is multiplied
 * by, at most 0.
 *
 *     none       x, as it comes
 *     softplus   -exp(A_log) log(1 + e^(x + bias))                  unbounded
 *     bounded    lower / (1 + e^(-exp(A_log) (x + bias)))           above lower, which is negative
 *
 * rate is exp(A_log), 1 where there is none. */
#ifndef KDA_GATE_H
#define KDA_GATE_H
#include "common/cpu/exp.h"
#include "kda_kinds.h"

INLINE vec_f32 kda_gate(const int gate, vec_f32 x, vec_f32 bias, float rate, float lower)
{
    if (gate == KDA_GATE_SOFTPLUS)
        return -rate * softplus_f32(x + bias);
    if (gate == KDA_GATE_BOUNDED)
        return lower * sigmoid_f32(rate * (x + bias));
    return x;
}
#endif
