/* moe_align_block_size: its kernels and rules are moe_align's. */
#define QUERN_DEF "moe/moe_align_block_size.def"
#include <quern/family_def.h>

#include <stddef.h>

#include "moe_align_block_size.h"
#include "moe_rows.h"

QUERN_STATIC_ASSERT(offsetof(struct values, tokens) == 0 &&
                        offsetof(struct values, topk) == sizeof(int64_t) &&
                        offsetof(struct values, experts) == 2 * sizeof(int64_t),
                    "prepare_moe_input's order, for moe_align");

struct moe_align_args moe_align_block_size_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    const int64_t slots = v->tokens * v->topk;
    struct moe_align_args args = {
        .slots = (int32_t)slots,
        .topk = (int32_t)v->topk,
        .experts = (int32_t)v->experts,
        .global = (int32_t)v->global,
        .block = (int32_t)v->block,
        .rows = (int32_t)moe_align_rows(slots, v->experts, v->block),
        .share = 1,
        .padding = (int32_t)slots,
        .is_filtered_kept = 1,
    };
    args.ids = arrays[ARRAY_ids].data;
    args.ids_token = arrays[ARRAY_ids].strides[0];
    args.expert_map = v->mapped ? arrays[ARRAY_expert_map].data : NULL;
    args.sorted = arrays[ARRAY_sorted_ids].data;
    args.expert_ids = arrays[ARRAY_expert_ids].data;
    args.rows_used = arrays[ARRAY_num_tokens_post_pad].data;
    return args;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (moe_align_check_sizes(v->tokens, v->topk, v->experts, why))
        return QUERN_INVALID;
    if (v->block > MOE_BLOCK_MOST)
        return quern_refuse(why, "block=%lld: must be at most %d", (long long)v->block,
                            MOE_BLOCK_MOST);
    if (v->global > 1 << 20)
        return quern_refuse(why, "global=%lld: must be at most 2^20", (long long)v->global);
    if (!v->mapped && v->global != v->experts)
        return quern_refuse(why, "global=%lld: must be experts=%lld without mapped=1",
                            (long long)v->global, (long long)v->experts);
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->global == QUERN_REQUIRED)
        v->global = v->experts;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->mapped &&
        moe_rows_check("expert_map", host[ARRAY_expert_map], v->global, "experts", v->experts, why))
        return QUERN_INVALID;
    return moe_rows_check("ids", host[ARRAY_ids], v->tokens * v->topk, "global", v->global, why);
}

/* Every third id of a map is elsewhere; what is left goes round the experts. */
static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_ids)
        moe_align_draw_ids(seed, v->tokens, v->topk, v->global, data);
    for (int64_t i = 0; index == ARRAY_expert_map && i < v->global; i++)
        ((int32_t *)data)[i] = i % 3 == 1 ? -1 : (int32_t)((i + (int64_t)(seed & 7)) % v->experts);
    return 1;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double slots = (double)v->tokens * (double)v->topk;
    const double rows = (double)moe_align_rows(v->tokens * v->topk, v->experts, v->block);
    cost->flops = 0;
    cost->bytes =
        4 * (slots + (v->mapped ? (double)v->global : 0) + rows + rows / (double)v->block + 1);
}

const struct quern_family quern_family_moe_align_block_size = {
    QUERN_FAMILY_TABLES(moe_align_block_size),
    .folder = "moe",
    .doc = "routed tokens sorted by expert, in padded blocks",
    .variants = moe_align_variants,
    .validate = validate,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = moe_align_units,
    .reference = moe_align_block_size_reference,
    .tolerance = moe_align_tolerance,
    .cost = cost,
    .implied = implied,
};
