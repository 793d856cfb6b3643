/* Inputs of silu_and_mul that reach where activations bend and where limits hold: a third of the
 * columns each up to 1, 4 and 16 in magnitude. */
#define QUERN_DEF "activation/silu_and_mul.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "silu_and_mul.h"

/* Values of 8 bits, which every dtype holds exactly; the f32's exponent is rebiased to f16's. */
static void put(int64_t dtype, void *data, int64_t i, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == QUERN_F32)
        ((float *)data)[i] = value;
    else if (dtype == QUERN_BF16)
        ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)data)[i] =
            (uint16_t)((bits >> 16 & 0x8000) + (value == 0 ? 0 : (bits << 1 >> 14) - (112 << 10)));
}

int silu_and_mul_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    uint64_t state = seed * 2 + 1;
    if (index != ARRAY_x)
        return 0;
    for (int64_t i = 0; i < v->tokens * 2 * v->width; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        int draw = (int)(state >> 32 & 511) - 256;
        int exponent = (int)(i % 3) * 2 - 8;
        put(v->dtype, data, i, ldexpf((float)(draw == -256 ? 255 : draw), exponent));
    }
    return 1;
}
