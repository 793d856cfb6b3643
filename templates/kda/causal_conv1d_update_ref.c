/* The obvious reference of causal_conv1d_update, in float64: a unit is a sequence. */
#define QUERN_DEF "kda/causal_conv1d_update.def"
#include <quern/family_def.h>

#include <math.h>

#include "causal_conv1d_update.h"

/* Input `step` of a sequence: of x, or where it is negative of its state. */
static void read_input(struct quern_ref *ref, int64_t sequence, int64_t slot, int64_t step,
                       double *row)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    if (step >= 0)
        quern_ref_read(ref, ARRAY_x, (sequence * v->steps + step) * v->d, v->d, row);
    else
        quern_ref_read(ref, ARRAY_states, ((slot + 1) * (v->w - 1) + step) * v->d, v->d, row);
}

/* The state after `count` steps, as rows of `array` from row `first` on. */
static void expect_state(struct quern_ref *ref, int64_t sequence, int64_t slot, int64_t count,
                         int array, int64_t first)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *row = quern_ref_scratch(ref, v->d);
    for (int64_t r = 0; r < v->w - 1; r++) {
        if (slot >= 0)
            read_input(ref, sequence, slot, count - (v->w - 1) + r, row);
        quern_ref_expect(ref, array, (first + r) * v->d, v->d, row);
    }
}

static void expect_output(struct quern_ref *ref, int64_t sequence, int64_t slot, int64_t step)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *out = quern_ref_scratch(ref, v->d), *row = quern_ref_scratch(ref, v->d), weight[4];
    if (v->bias && slot >= 0)
        quern_ref_read(ref, ARRAY_bias, 0, v->d, out);
    for (int64_t j = 0; j < v->w && slot >= 0; j++) {
        read_input(ref, sequence, slot, step - (v->w - 1) + j, row);
        for (int64_t c = 0; c < v->d; c++) {
            quern_ref_read(ref, ARRAY_weight, c * v->w, v->w, weight);
            out[c] += weight[j] * row[c];
        }
    }
    for (int64_t c = 0; c < v->d; c++)
        out[c] = v->act ? out[c] / (1 + exp(-out[c])) : out[c];
    quern_ref_expect(ref, ARRAY_y, (sequence * v->steps + step) * v->d, v->d, out);
}

void causal_conv1d_update_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double slot = (double)unit;
    if (v->pool)
        quern_ref_read(ref, ARRAY_slots, unit, 1, &slot);
    if (v->pool && slot >= (double)v->capacity)
        slot = -1;
    for (int64_t step = 0; step < v->steps; step++) {
        expect_output(ref, unit, (int64_t)slot, step);
        if (v->save)
            expect_state(ref, unit, (int64_t)slot, step + 1, ARRAY_windows,
                         (unit * v->steps + step) * (v->w - 1));
    }
    if (!v->save && slot >= 0)
        expect_state(ref, unit, (int64_t)slot, v->steps, ARRAY_states, (int64_t)slot * (v->w - 1));
}
