/* Inputs of kda_decode that mean something: keys of length about 1 and decays at most 1, with which
 * the recurrence does not grow; queries and keys that lean to one side, so that no output is a sum
 * that cancels and is all rounding; decays from hardly any to nearly total; distinct slots in no
 * order, some -1; parents before their children. */
#define QUERN_DEF "kda/kda_decode.def"
#include <quern/family_def.h>

#include <math.h>

#include "kda_decode.h"
#include "kda_draw.h"
#include "kda_kinds.h"

static void draw_parents(const struct values *v, uint64_t seed, int32_t *parents)
{
    for (int64_t i = 0; i < v->n * v->steps; i++) {
        int64_t token = i % v->steps;
        parents[i] = (int32_t)(kda_draw(seed, i) % (uint64_t)(token + 1)) - 1;
        if (kda_draw(seed, i) >> 32 & 1)
            parents[i] = (int32_t)token - 1;
    }
}

int kda_decode_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    const double unit = 1.31 / sqrt((double)v->k); /* from -1/2 to 3/2 of it: length 1 */
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    seed = kda_mix(seed + (uint64_t)index);
    if (index == ARRAY_q || index == ARRAY_k)
        kda_draw_floats(&shape, seed, -unit / 2, 1.5 * unit, 0, data);
    else if (index == ARRAY_g && v->gate == KDA_GATE_NONE)
        kda_draw_floats(&shape, seed, log(1e-3), log(8), 1, data);
    else if (index == ARRAY_g)
        kda_draw_floats(&shape, seed, -3, 3, 0, data);
    else if (index == ARRAY_beta)
        kda_draw_floats(&shape, seed, v->beta_logits ? -3 : 0.01, v->beta_logits ? 3 : 0.99, 0,
                        data);
    else if (index == ARRAY_A_log)
        kda_draw_floats(&shape, seed, log(0.05), log(16), 0, data);
    else if (index == ARRAY_slots)
        kda_draw_slots(seed, v->n, v->capacity, data);
    else if (index == ARRAY_parents)
        draw_parents(v, seed, data);
    else
        return 0;
    return 1;
}
