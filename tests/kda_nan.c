#include "kda_nan.h"

#include <math.h>
#include <string.h>

#include "bad_indices.h"
#include "jit/context.h"
#include "jit/dtype.h"

const char *const kda_nan_specs[] = {
    "kda_prefill t=48 n=4 h=1 hv=2 k=64 v=64 initial=1 gate=bounded lower_bound=-5",
    "kda_prefill t=48 n=4 h=1 hv=1 k=64 v=64 varlen=1 pool=1 capacity=6 dtype=f16 l2norm=1",
    "kda_prefill t=48 n=4 h=1 hv=2 k=64 v=128 dtype=f32 varlen=1 initial=1 decay=scalar layout=vk",
    "kda_decode n=4 h=1 hv=2 k=64 v=64 initial=1 gate=softplus",
    "kda_decode n=4 h=1 hv=2 k=64 v=64 pool=1 capacity=6 dtype=f16 l2norm=1 layout=vk",
    "kda_decode n=4 steps=3 h=1 hv=1 k=64 v=64 pool=1 capacity=6 save=states tree=1",
    "causal_conv1d t=48 n=4 d=40 initial=1 dtype=f16",
    "causal_conv1d t=48 n=4 d=40 varlen=1 pool=1 capacity=6",
    "causal_conv1d_update n=4 d=40 steps=2 capacity=6",
    "causal_conv1d_update n=4 d=40 dtype=f32 pool=0",
    "kda_step n=4 h=1 hv=2 k=64 v=64 capacity=6 gate=softplus dt_bias=1",
    "kda_step n=4 h=2 hv=2 k=64 v=64 capacity=6 dtype=f16 decay=scalar layout=vk norm=none",
    "kda_gate_cumsum t=48 n=4 hv=2 k=64 varlen=1 gate=softplus chunk=16",
};
const int kda_nan_spec_count = sizeof(kda_nan_specs) / sizeof(kda_nan_specs[0]);

enum { LENGTH = 12, TOKENS = 48, SEQUENCES = 4, CAPACITY = 6, HIT = 1, SLOTS = 1 };
static const struct bad_indices indices[] = {
    { "cu_seqlens", { 0, LENGTH, 2 * LENGTH, 3 * LENGTH, TOKENS }, NULL, false },
    [SLOTS] = { "slots", { 5, 2, 0, 3 }, NULL, false },
    { "parents", { -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0 }, NULL, false },
};

void kda_nan_indices_put(struct common_arrays *set, struct quern_context *ctx,
                         const struct quern_spec *spec)
{
    for (size_t i = 0; i < sizeof(indices) / sizeof(indices[0]); i++) {
        int index = bad_indices_array(ctx, spec, indices[i].array);
        if (index >= 0)
            bad_indices_put(set, index, &indices[i]);
    }
}

/* Whose a row of the leading dimension is; -1: everybody's, or a slot that is in no use. */
static int sequence_of(const struct quern_shape *shape, int64_t row)
{
    if (shape->dims[0] == TOKENS)
        return (int)(row / LENGTH);
    for (int i = 0; i < SEQUENCES && shape->dims[0] == CAPACITY; i++) {
        if (indices[SLOTS].values[i] == row)
            return i;
    }
    return shape->dims[0] == SEQUENCES ? (int)row : -1;
}

static int64_t row_count_of(const struct quern_shape *shape)
{
    return qn_shape_count(shape) / shape->dims[0];
}

static size_t row_bytes_of(const struct quern_shape *shape)
{
    return (size_t)row_count_of(shape) * quern_dtype_bytes(shape->dtype);
}

bool kda_nan_put(struct common_arrays *set, int index, uint64_t *seed)
{
    const struct quern_shape *shape = &set->shapes[index];
    int64_t row = 0;
    if ((shape->role != QUERN_IN && shape->role != QUERN_INOUT) || !qn_dtype_is_float(shape->dtype))
        return false;
    while (row < shape->dims[0] && sequence_of(shape, row) != HIT)
        row++;
    if (row == shape->dims[0])
        return false;
    int64_t width = row_count_of(shape);
    common_arrays_put(set, index, row * width + common_between(seed, 0, width - 1), NAN);
    return true;
}

static bool has_nan(const struct quern_shape *shape, const unsigned char *row)
{
    for (int64_t i = 0; i < row_count_of(shape); i++) {
        if (isnan(qn_dtype_get(shape->dtype, row + i * (int64_t)quern_dtype_bytes(shape->dtype))))
            return true;
    }
    return false;
}

/* How many rows of the second sequence have one; the others' must be as they were. */
static int rows_check(const struct common_arrays *set, int index, const char *what)
{
    const struct quern_shape *shape = &set->shapes[index];
    const struct common_array *own = &set->own[index];
    int found = 0;
    for (int64_t row = 0; row < shape->dims[0]; row++) {
        const unsigned char *now = own->data + (size_t)row * row_bytes_of(shape);
        if (sequence_of(shape, row) == HIT)
            found += has_nan(shape, now);
        else
            ck_assert_msg(!memcmp(now, own->kept + (now - own->pages), row_bytes_of(shape)),
                          "%s: row %d of array %d changed", what, (int)row, index);
    }
    return found;
}

void kda_nan_check(const struct common_arrays *set, const char *what)
{
    int found = 0;
    for (int i = 0; i < set->count; i++) {
        if (set->shapes[i].role == QUERN_OUT || set->shapes[i].role == QUERN_INOUT)
            found += rows_check(set, i, what);
    }
    ck_assert_msg(found > 0, "%s: no output has it", what);
}
