/* The obvious reference of moe_align_block_size: one unit, the whole call. */
#define QUERN_DEF "moe/moe_align_block_size.def"
#include <quern/family_def.h>

#include "moe_align_block_size.h"

static void map_ids(struct quern_ref *ref, const struct values *v, double *ids)
{
    double *map = quern_ref_scratch(ref, v->global);
    if (v->mapped)
        quern_ref_read(ref, ARRAY_expert_map, 0, v->global, map);
    for (int64_t i = 0; i < v->tokens * v->topk; i++) {
        if (v->mapped)
            ids[i] = ids[i] >= 0 && ids[i] < (double)v->global ? map[(int64_t)ids[i]] : -1;
        if (ids[i] < 0 || ids[i] >= (double)v->experts)
            ids[i] = -1;
    }
}

void moe_align_block_size_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t slots = v->tokens * v->topk, rows = moe_align_rows(slots, v->experts, v->block);
    double *ids = quern_ref_scratch(ref, slots), *sorted = quern_ref_scratch(ref, rows);
    double *experts = quern_ref_scratch(ref, rows / v->block), used;
    int64_t row = 0;
    (void)unit;
    quern_ref_read(ref, ARRAY_ids, 0, slots, ids);
    map_ids(ref, v, ids);
    for (int64_t i = 0; i < rows; i++)
        sorted[i] = (double)slots, experts[i / v->block] = -1;
    for (int64_t e = -1; e < v->experts; e++) {
        for (int64_t i = 0; i < slots; i++) {
            if (ids[i] == (double)e) {
                experts[row / v->block] = (double)e;
                sorted[row++] = (double)i;
            }
        }
        row = (row + v->block - 1) / v->block * v->block;
    }
    used = (double)row;
    quern_ref_expect(ref, ARRAY_sorted_ids, 0, rows, sorted);
    quern_ref_expect(ref, ARRAY_expert_ids, 0, rows / v->block, experts);
    quern_ref_expect(ref, ARRAY_num_tokens_post_pad, 0, 1, &used);
}
