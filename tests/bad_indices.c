#include "bad_indices.h"

#include <stdio.h>
#include <string.h>

const char *const bad_index_specs[] = {
    "kda_prefill t=48 n=4 h=1 hv=2 k=64 v=64 varlen=1 pool=1 capacity=6",
    "kda_prefill t=48 n=4 h=1 hv=1 k=64 v=128 varlen=1 index=i64 initial=1 gate=softplus layout=vk",
    "kda_decode n=4 h=1 hv=2 k=64 v=64 pool=1 capacity=6",
    "kda_decode n=4 steps=2 h=1 hv=1 k=64 v=64 save=states tree=1 layout=vk",
    "causal_conv1d t=48 n=4 d=40 varlen=1 pool=1 capacity=6",
    "causal_conv1d t=48 n=4 d=40 varlen=1 index=i64 initial=1",
    "causal_conv1d_update n=4 d=40 capacity=6",
    "kda_step n=4 h=1 hv=2 k=64 v=64 capacity=6",
    "kda_step n=4 h=2 hv=2 k=64 v=64 capacity=6 gate=softplus layout=vk norm=none",
    "kda_gate_cumsum t=48 n=4 hv=2 k=64 varlen=1 gate=softplus",
    "kda_gate_cumsum t=48 n=4 hv=2 decay=scalar varlen=1 index=i64",
};
const int bad_index_spec_count = sizeof(bad_index_specs) / sizeof(bad_index_specs[0]);

const struct bad_indices bad_indices[] = {
    { "cu_seqlens", { 3, 9, 20, 30, 48 }, "cu_seqlens[0]=3: must be 0", false },
    { "cu_seqlens", { -7, 9, 20, 30, 48 }, "cu_seqlens[0]=-7: must be 0", false },
    { "cu_seqlens",
      { 0, 9, 5, 20, 48 },
      "cu_seqlens[2]=5: must be at least cu_seqlens[1]=9",
      true },
    { "cu_seqlens",
      { 0, 9, 20, -2000000000, 48 },
      "cu_seqlens[3]=-2000000000: must be at least cu_seqlens[2]=20",
      true },
    { "cu_seqlens", { 0, 9, 20, 30, 49 }, "cu_seqlens[4]=49: must be at most t=48", false },
    { "cu_seqlens",
      { 0, 9, 2147483647, 2147483647, 2147483647 },
      "cu_seqlens[2]=2147483647: must be at most t=48",
      false },
    { "cu_seqlens", { 0, 9, 9, 30, 41 }, NULL, false }, /* tokens after the last: padding */
    { "cu_seqlens", { 0, 0, 0, 5, 5 }, NULL, false },
    { "slots", { 0, 77, 1, 2 }, "slots[1]=77: must be -1, or from 0 to below capacity=6", false },
    { "slots", { 0, 1, 2, 6 }, "slots[3]=6: must be -1, or from 0 to below capacity=6", false },
    { "slots",
      { -2147483647, 1, 2147483647, -2 },
      "slots[0]=-2147483647: must be -1, or from 0 to below capacity=6",
      false },
    { "slots", { 3, -1, 5, 3 }, "slots[3]=3: must not be used twice, and slots[0] is 3 too", true },
    { "slots", { 4, 4, 4, 4 }, "slots[1]=4: must not be used twice, and slots[0] is 4 too", true },
    { "slots", { -1, 5, -1, 0 }, NULL, false },
    { "parents",
      { -1, 0, -1, 1, -1, 0, -1, 0 },
      "parents[1, 1]=1: must be -1, or from 0 to below 1",
      false },
    { "parents",
      { -1, 0, -1, -1, -1, 0, -1, -2147483647 },
      "parents[3, 1]=-2147483647: must be -1, or from 0 to below 1",
      false },
    { "parents", { 9, 0, -9, -1, 2147483647, 0, 0, -1 }, NULL, false }, /* the first's: no effect */
};
const int bad_index_count = sizeof(bad_indices) / sizeof(bad_indices[0]);

int bad_indices_array(struct quern_context *ctx, const struct quern_spec *spec, const char *name)
{
    struct quern_family_description family;
    struct quern_shape shape;
    quern_family_describe(spec->family, &family);
    for (int i = 0; i < family.array_count; i++) {
        assert_ok(ctx, quern_spec_shape(ctx, spec, i, &shape));
        if (shape.role != QUERN_ABSENT && !strcmp(family.arrays[i].name, name))
            return i;
    }
    return -1;
}

static int64_t count_of(const struct quern_shape *shape)
{
    int64_t count = 1;
    for (int d = 0; d < shape->rank; d++)
        count *= shape->dims[d];
    return count;
}

void bad_indices_put(struct common_arrays *set, int index, const struct bad_indices *bad)
{
    ck_assert_int_le(count_of(&set->shapes[index]), BAD_INDICES);
    for (int64_t i = 0; i < count_of(&set->shapes[index]); i++)
        common_arrays_put(set, index, i, bad->values[i]);
}

void bad_indices_text(const char *spec, const struct bad_indices *bad, char *text, size_t bytes)
{
    size_t used = (size_t)snprintf(text, bytes, "%s with %s={", spec, bad->array);
    for (int i = 0; i < BAD_INDICES && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%d", i ? ", " : "", bad->values[i]);
    if (used < bytes)
        snprintf(text + used, bytes - used, "}");
}
