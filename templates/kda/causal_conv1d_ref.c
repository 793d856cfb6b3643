/* The obvious reference of causal_conv1d, in float64: a unit is a token, or a sequence's state. */
#define QUERN_DEF "kda/causal_conv1d.def"
#include <quern/family_def.h>

#include <math.h>

#include "causal_conv1d.h"

static int64_t read_one(struct quern_ref *ref, int array, int64_t at)
{
    double value;
    quern_ref_read(ref, array, at, 1, &value);
    return (int64_t)value;
}

/* In [0, t], whatever cu_seqlens holds. */
static int64_t begin_of(struct quern_ref *ref, int64_t sequence)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    if (!v->varlen)
        return sequence * (v->t / v->n);
    int64_t border = read_one(ref, ARRAY_cu_seqlens, sequence);
    return border < 0 ? 0 : border > v->t ? v->t : border;
}

static int64_t end_of(struct quern_ref *ref, int64_t sequence)
{
    int64_t begin = begin_of(ref, sequence), next = begin_of(ref, sequence + 1);
    return next < begin ? begin : next;
}

/* Where a sequence's state is kept; -1: nowhere. */
static int64_t slot_of(struct quern_ref *ref, int64_t sequence)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t slot = v->pool ? read_one(ref, ARRAY_slots, sequence) : sequence;
    return v->pool && slot >= v->capacity ? -1 : slot;
}

/* The inputs of `token` of a sequence: of x, or what came before. */
static void read_input(struct quern_ref *ref, int64_t sequence, int64_t token, double *row)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t begin = begin_of(ref, sequence), before = token - begin + v->w - 1;
    int64_t old = v->pool || v->initial ? slot_of(ref, sequence) : -1;
    if (v->has_initial && !read_one(ref, ARRAY_has_initial, sequence))
        old = -1;
    for (int64_t c = 0; c < v->d; c++)
        row[c] = 0;
    if (token >= begin)
        quern_ref_read(ref, ARRAY_x, token * v->d, v->d, row);
    else if (old >= 0)
        quern_ref_read(ref, v->pool ? ARRAY_states : ARRAY_initial_state,
                       (old * (v->w - 1) + before) * v->d, v->d, row);
}

static void expect_state(struct quern_ref *ref, int64_t sequence)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t begin = begin_of(ref, sequence), end = end_of(ref, sequence);
    int64_t slot = slot_of(ref, sequence), rows = v->w - 1;
    double *row = quern_ref_scratch(ref, v->d);
    for (int64_t r = 0; r < rows && slot >= 0 && (v->pool || v->final); r++) {
        if (v->pool && begin == end)
            quern_ref_read(ref, ARRAY_states, (slot * rows + r) * v->d, v->d, row);
        else
            read_input(ref, sequence, end - rows + r, row);
        quern_ref_expect(ref, v->pool ? ARRAY_states : ARRAY_final_state, (slot * rows + r) * v->d,
                         v->d, row);
    }
}

void causal_conv1d_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    double *out = quern_ref_scratch(ref, v->d), *row = quern_ref_scratch(ref, v->d), weight[4];
    int64_t sequence = 0, above = v->n, is_inside;
    if (unit >= v->t) {
        expect_state(ref, unit - v->t);
        return;
    }
    while (above - sequence > 1) { /* the last that begins at or before the token */
        int64_t middle = (sequence + above) / 2;
        *(begin_of(ref, middle) <= unit ? &sequence : &above) = middle;
    }
    is_inside = unit >= begin_of(ref, sequence) && unit < end_of(ref, sequence);
    if (v->bias && is_inside)
        quern_ref_read(ref, ARRAY_bias, 0, v->d, out);
    for (int64_t j = 0; j < v->w && is_inside; j++) {
        read_input(ref, sequence, unit - (v->w - 1) + j, row);
        for (int64_t c = 0; c < v->d; c++) {
            quern_ref_read(ref, ARRAY_weight, c * v->w, v->w, weight);
            out[c] += weight[j] * row[c];
        }
    }
    for (int64_t c = 0; c < v->d; c++)
        out[c] = v->act ? out[c] / (1 + exp(-out[c])) : out[c];
    quern_ref_expect(ref, ARRAY_y, unit * v->d, v->d, out);
}
