/* The decay gate of one channel; kda_gate.h says what it is. */
#ifndef KDA_GATE_CUH
#define KDA_GATE_CUH
#include "kda_kinds.h"

/* log(1 + e^y), whole: where y is large it is y to the last bit. A polynomial in z = e^-|y| is
 * within 2e-7 of log(1 + z) and half the instructions of log1pf. NaN and infinities stay. */
__device__ __forceinline__ float kda_softplus(float y)
{
    float z = __expf(-fabsf(y)), p = -3.1760570e-3f;
    p = p * z + 1.9542526e-2f;
    p = p * z - 5.6373612e-2f;
    p = p * z + 1.0543624e-1f;
    p = p * z - 1.5269667e-1f;
    p = p * z + 1.9663274e-1f;
    p = p * z - 2.4951616e-1f;
    p = p * z + 3.3329710e-1f;
    p = p * z - 4.9999893e-1f;
    p = p * z + 1.0f;
    return p * z + (y < 0.0f ? 0.0f : y);
}

template <int gate>
__device__ __forceinline__ float kda_gate(float x, float bias, float rate, float lower)
{
    float y = x + bias;
    if (gate == KDA_GATE_SOFTPLUS)
        return -rate * kda_softplus(y);
    if (gate == KDA_GATE_BOUNDED)
        return __fdividef(lower, 1.0f + __expf(-rate * y)); /* lower / infinity is 0 */
    return x;
}
#endif
