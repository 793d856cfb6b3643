/* Inputs of fused_qk_norm_rope that mean something: positions in no order, small and large. */
#define QUERN_DEF "norm_rope/fused_qk_norm_rope.def"
#include <quern/family_def.h>

#include "fused_qk_norm_rope.h"

int fused_qk_norm_rope_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    uint64_t state = seed * 2 + 1;
    if (index != ARRAY_positions)
        return 0;
    for (int64_t i = 0; i < v->tokens; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        int64_t position = (int64_t)(state >> 44) >> i % 4 * 5; /* below 2^20, 2^15, 2^10, 2^5 */
        if (v->index == QUERN_I64)
            ((int64_t *)data)[i] = position;
        else
            ((int32_t *)data)[i] = (int32_t)position;
    }
    return 1;
}
