#include "moe_align_edges.h"

#include <stdio.h>
#include <string.h>

#include "jit/context.h"

#define MANY "chunk=1024", "threads=128,chunk=96,whole=0"

const struct moe_align_edge moe_align_edges[] = {
    { "moe_align_block_size tokens=300 topk=8 experts=37 block=16", "ids", 37, NULL, NULL },
    { "moe_align_block_size tokens=300 topk=8 experts=256 block=64", "ids", 256, MANY },
    { "moe_align_block_size tokens=90 topk=3 experts=8 block=8 mapped=1 global=20", "ids", 20, NULL,
      "threads=256,chunk=64,whole=8192" },
    { "moe_align_block_size tokens=90 topk=3 experts=8 block=8 mapped=1 global=20", "expert_map", 8,
      NULL, NULL },
    { "moe_align_block_size tokens=2000 topk=2 experts=1024 block=1", "ids", 1024, MANY },
    { "moe_align_block_size tokens=1 topk=2 experts=1 block=128", "ids", 1, NULL, NULL },
    { "prepare_moe_input tokens=700 topk=6 experts=64 n=8 k=16 blockscale=1", "ids", 64, MANY },
    { "prepare_moe_input tokens=5 topk=2 experts=1000 n=8 k=16 blockscale=1", "ids", 1000, NULL,
      "threads=512,chunk=32,whole=0" },
    { "shuffle_rows rows=50 inputs=7 width=40", "map", 7, NULL, NULL },
    { "apply_shuffle_mul_sum tokens=9 topk=5 rows=11 width=24 factors=1", "perm", 11, NULL, NULL },
};
const int moe_align_edge_count = sizeof(moe_align_edges) / sizeof(moe_align_edges[0]);

static const char *const names[] = { "one", "none", "wild", "near", "down" };

static int64_t drawn(enum moe_align_pattern pattern, int64_t i, int64_t count, int64_t limit,
                     uint64_t *seed)
{
    switch (pattern) {
    case MOE_ALIGN_ONE:
        return limit - 1;
    case MOE_ALIGN_WILD:
        return (int32_t)common_random(seed);
    case MOE_ALIGN_NEAR:
        return common_between(seed, -2, limit + 1);
    case MOE_ALIGN_DOWN:
        return (count - 1 - i) * limit / count;
    default:
        return -1;
    }
}

void moe_align_edge_put(struct common_arrays *set, const struct quern_spec *spec,
                        const struct moe_align_edge *edge, enum moe_align_pattern pattern,
                        uint64_t *seed)
{
    int index = 0;
    while (strcmp(spec->family->arrays[index].name, edge->array))
        index++;
    const int64_t count = qn_shape_count(&set->shapes[index]);
    for (int64_t i = 0; i < count; i++)
        common_arrays_put(set, index, i, (double)drawn(pattern, i, count, edge->limit, seed));
}

void moe_align_edge_text(const struct moe_align_edge *edge, enum moe_align_pattern pattern,
                         char *text, size_t bytes)
{
    snprintf(text, bytes, "%s with %s %s", edge->spec, names[pattern], edge->array);
}
