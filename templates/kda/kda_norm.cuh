/* What a normalised element is gated with. */
#ifndef KDA_NORM_CUH
#define KDA_NORM_CUH
#include "kda_norm_args.h"

template <int act> __device__ __forceinline__ float kda_norm_gate(float z)
{
    return __fdividef(act == KDA_NORM_SILU ? z : 1.0f, 1.0f + __expf(-z));
}
#endif
