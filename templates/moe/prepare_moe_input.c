/* prepare_moe_input: its kernels and rules are moe_align's, with blocks of one row. */
#define QUERN_DEF "moe/prepare_moe_input.def"
#include <quern/family_def.h>

#include "prepare_moe_input.h"
#include "moe_rows.h"

enum { WIDTH_MOST = 1 << 29 };

struct moe_align_args prepare_moe_input_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct moe_align_args args = {
        .slots = (int32_t)(v->tokens * v->topk),
        .topk = (int32_t)v->topk,
        .experts = (int32_t)v->experts,
        .block = 1,
        .rows = (int32_t)(v->tokens * v->topk),
        .share = (int32_t)v->topk,
        .padding = -1,
        .n = (int32_t)v->n,
        .k = (int32_t)v->k,
    };
    args.ids = arrays[ARRAY_ids].data;
    args.ids_token = arrays[ARRAY_ids].strides[0];
    args.sorted = arrays[ARRAY_input_permutation].data;
    args.offsets = arrays[ARRAY_expert_offsets].data;
    args.positions = arrays[ARRAY_output_permutation].data;
    args.positions_token = arrays[ARRAY_output_permutation].strides[0];
    args.problem_sizes1 = arrays[ARRAY_problem_sizes1].data;
    args.sizes1_row = arrays[ARRAY_problem_sizes1].strides[0];
    args.problem_sizes2 = arrays[ARRAY_problem_sizes2].data;
    args.sizes2_row = arrays[ARRAY_problem_sizes2].strides[0];
    args.blockscale_offsets = v->blockscale ? arrays[ARRAY_blockscale_offsets].data : NULL;
    return args;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (moe_align_check_sizes(v->tokens, v->topk, v->experts, why))
        return QUERN_INVALID;
    if (v->n > WIDTH_MOST)
        return quern_refuse(why, "n=%lld: must be at most 2^29", (long long)v->n);
    if (v->k > WIDTH_MOST)
        return quern_refuse(why, "k=%lld: must be at most 2^29", (long long)v->k);
    return QUERN_OK;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return moe_rows_check("ids", host[ARRAY_ids], v->tokens * v->topk, "experts", v->experts, why);
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_ids)
        moe_align_draw_ids(seed, v->tokens, v->topk, v->experts, data);
    return 1;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    cost->flops = 0;
    cost->bytes = 4 * (3 * (double)v->tokens * (double)v->topk +
                       (double)(v->experts + 1) * (v->blockscale ? 2 : 1) + 6 * (double)v->experts);
}

const struct quern_family quern_family_prepare_moe_input = {
    QUERN_FAMILY_TABLES(prepare_moe_input),
    .folder = "moe",
    .doc = "offsets, sizes and permutations for a grouped GEMM over routed tokens",
    .variants = moe_align_variants,
    .validate = validate,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = moe_align_units,
    .reference = prepare_moe_input_reference,
    .tolerance = moe_align_tolerance,
    .cost = cost,
};
