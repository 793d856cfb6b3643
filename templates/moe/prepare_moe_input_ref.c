/* The obvious reference of prepare_moe_input: one unit, the whole call. */
#define QUERN_DEF "moe/prepare_moe_input.def"
#include <quern/family_def.h>

#include "prepare_moe_input.h"

void prepare_moe_input_reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    const int64_t slots = v->tokens * v->topk;
    double *ids = quern_ref_scratch(ref, slots);
    double *tokens = quern_ref_scratch(ref, slots), *rows = quern_ref_scratch(ref, slots);
    double *offsets = quern_ref_scratch(ref, v->experts + 1);
    double *padded = quern_ref_scratch(ref, v->experts + 1);
    int64_t row = 0;
    (void)unit;
    quern_ref_read(ref, ARRAY_ids, 0, slots, ids);
    for (int64_t i = 0; i < slots; i++)
        tokens[i] = rows[i] = -1;
    for (int64_t e = 0; e < v->experts; e++) {
        const int64_t first = row;
        for (int64_t i = 0; i < slots; i++) {
            if (ids[i] == (double)e) {
                tokens[row] = (double)(i / v->topk);
                rows[i] = (double)row++;
            }
        }
        const double m = (double)(row - first);
        const double sizes1[] = { m, 2 * (double)v->n, (double)v->k };
        const double sizes2[] = { m, (double)v->k, (double)v->n };
        offsets[e + 1] = (double)row;
        padded[e + 1] = padded[e] + (double)((row - first + 127) / 128 * 128);
        quern_ref_expect(ref, ARRAY_problem_sizes1, 3 * e, 3, sizes1);
        quern_ref_expect(ref, ARRAY_problem_sizes2, 3 * e, 3, sizes2);
    }
    quern_ref_expect(ref, ARRAY_expert_offsets, 0, v->experts + 1, offsets);
    if (v->blockscale)
        quern_ref_expect(ref, ARRAY_blockscale_offsets, 0, v->experts + 1, padded);
    quern_ref_expect(ref, ARRAY_input_permutation, 0, slots, tokens);
    quern_ref_expect(ref, ARRAY_output_permutation, 0, slots, rows);
}
