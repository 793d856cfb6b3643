/* The operators of a layer, one function a part of it, each with its sizes divided over the ranks:
 *
 *     columns   a projection whose outputs are divided (q, k, v, gate, up)
 *     rows      one whose inputs are (o, down); its sums then go over all ranks
 *     whole     the same on every rank (latents, routers)
 *
 * Every size that a family rounds up to a power of two is planned at each of these up to the most
 * that the options allow, so that no call of a server lies between two planned ones. Most of those
 * share kernels. The ones that serving rarely makes are marked as extra: they must not miss, but
 * are not worth a tuning.
 *
 * What quern has no family for is listed under the name that engines have for it, so that a plan is
 * the whole model: who reads it finds out which are there. */
#include "model_planner.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Calls ----------------------------------------------------------------------------------- */

static void add_text(struct planner *planner, const struct place *place, const char *family,
                     const char *params)
{
    int64_t times = place->times ? place->times : 1;
    struct plan_call call = { .layers = place->layers,
                              .count = place->layers * times,
                              .is_extra = place->is_extra };
    if (place->layers < 1)
        return;
    snprintf(call.family, sizeof(call.family), "%s", family);
    snprintf(call.where, sizeof(call.where), "%s", place->where);
    snprintf(call.params, sizeof(call.params), "%s", params);
    planner->plan->is_out_of_memory |= plan_add(planner->plan, &call);
}

void planner_add(struct planner *planner, const struct place *place, const char *family,
                 const char *format, ...)
{
    char params[PLAN_PARAMS];
    va_list list;
    va_start(list, format);
    vsnprintf(params, sizeof(params), format, list);
    va_end(list);
    add_text(planner, place, family, params);
}

void params_append(struct params *params, const char *format, ...)
{
    size_t left = sizeof(params->text) - params->used;
    va_list list;
    va_start(list, format);
    int length = vsnprintf(params->text + params->used, left, format, list);
    va_end(list);
    if (length > 0)
        params->used += (size_t)length < left ? (size_t)length : left - 1;
}

void planner_add_steps(struct planner *planner, const struct place *place, const char *family,
                       const char *format, ...)
{
    struct sizes steps = planner_steps(planner);
    char params[PLAN_PARAMS], rest[PLAN_PARAMS - 48], name[32], count[16];
    va_list list;
    va_start(list, format);
    vsnprintf(rest, sizeof(rest), format, list);
    va_end(list);
    sscanf(family, "%31s %15s", name, count);
    for (int i = 0; i < steps.count; i++) {
        snprintf(params, sizeof(params), "%s=%lld %s", count, (long long)steps.list[i], rest);
        add_text(planner, place, name, params);
    }
}

void planner_add_norm(struct planner *planner, const char *where, int64_t layers, int64_t times,
                      int64_t width)
{
    planner_add_steps(planner, PLACE(.where = where, .layers = layers, .times = times),
                      "rmsnorm tokens", "hidden=%lld dtype=%s%s", (long long)width, planner->dtype,
                      planner->model->has_centred_norms ? " weight=1+w" : "");
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

struct sizes planner_sizes(int64_t most)
{
    struct sizes sizes = { .count = 0 };
    for (int64_t i = 1; i < most && sizes.count < SIZES_MOST - 1; i *= 2)
        sizes.list[sizes.count++] = i;
    if (most > 0)
        sizes.list[sizes.count++] = most;
    return sizes;
}

/* The power of two that is a size's bucket. */
static int64_t bucket_of(int64_t size)
{
    int64_t power = 1;
    while (power < size)
        power *= 2;
    return power;
}

struct pairs planner_pairs(const struct planner *planner)
{
    struct sizes tokens = planner_sizes(planner->options->max_tokens);
    struct sizes batches = planner_sizes(planner->options->max_batch);
    struct pairs pairs = { .count = 0 };
    for (int i = 0; i < tokens.count; i++) {
        int64_t t = tokens.list[i];
        for (int j = 0; j < batches.count && pairs.count < PAIRS_MOST; j++) {
            int64_t b = batches.list[j];
            if (bucket_of(b) > bucket_of(t))
                break;
            pairs.list[pairs.count++] =
                (struct pair){ b < t ? b : t, t, j || (t < 64 && i + 1 < tokens.count) };
        }
    }
    return pairs;
}

int64_t planner_decode_tokens(const struct planner *planner)
{
    return planner->options->max_batch * (1 + planner->model->mtp);
}

struct sizes planner_steps(const struct planner *planner)
{
    int64_t prefill = planner->options->max_tokens, decode = planner_decode_tokens(planner);
    return planner_sizes(prefill > decode ? prefill : decode);
}

/* ---- Products -------------------------------------------------------------------------------- */

int planner_is_quantised(const struct planner *planner, int is_expert)
{
    const struct model *model = planner->model;
    return *model->quant && !planner->options->dtype && (is_expert || !model->has_plain_layers);
}

static void append_block(const struct model *model, struct params *params)
{
    params_append(params, " quant=%s", model->quant);
    if (model->block_n)
        params_append(params, " block_n=%lld block_k=%lld", (long long)model->block_n,
                      (long long)model->block_k);
}

static void add_rows(struct planner *planner, const struct product *product, int64_t m,
                     int is_extra)
{
    const struct model *model = planner->model;
    const struct place place = { product->where, product->layers, product->times, is_extra };
    const char *ab = product->ab ? product->ab : planner->dtype;
    struct params more = { .used = 0 };
    int is_block = product->is_quantised && planner_is_quantised(planner, 0);
    if (is_block)
        append_block(model, &more);
    else
        params_append(&more, " a=%s b=%s", ab, ab);
    params_append(&more, " d=%s", product->d ? product->d : planner->dtype);
    if (product->batch > 1)
        params_append(&more, " batch=%lld", (long long)product->batch);
    if (product->bias)
        params_append(&more, " bias=%s", product->bias);
    planner_add(planner, &place, is_block ? "gemm_block_scaled" : "gemm", "m=%lld n=%lld k=%lld%s",
                (long long)m, (long long)product->n, (long long)product->k, more.text);
    if (is_block && model->block_k)
        planner_add(planner, &place, "per_token_group_quant_fp8",
                    "tokens=%lld width=%lld group=%lld dtype=%s", (long long)m,
                    (long long)product->k, (long long)model->block_k, planner->dtype);
}

void planner_add_product(struct planner *planner, struct product product)
{
    struct sizes rows = product.is_per_sequence ? planner_sizes(planner_decode_tokens(planner))
                                                : planner_steps(planner);
    int64_t usual = rows.list[rows.count - 1];
    for (int i = 0; i < rows.count; i++)
        add_rows(planner, &product, rows.list[i], 0);
    if (product.most > usual)
        rows = planner_sizes(product.most);
    for (int i = 0; i < rows.count; i++)
        if (rows.list[i] > usual)
            add_rows(planner, &product, rows.list[i], 1);
}

/* ---- Feed-forward ---------------------------------------------------------------------------- */

/* Both products of a gated layer and what is between them. Sums of ranks get the bias once. */
static void plan_gated(struct planner *planner, const char *up, const char *down, int64_t layers,
                       int64_t inter)
{
    const struct model *model = planner->model;
    const char *bias = model->has_mlp_bias ? planner->dtype : NULL, *act = model->activation;
    int is_gelu = !strncmp(act, "gelu", 4);
    struct params more = { .used = 0 }, others = { .used = 0 };
    char name[64];
    if (!inter)
        return;
    PRODUCT(.where = up, .layers = layers, .n = 2 * inter, .k = model->hidden, .is_quantised = 1,
            .bias = bias);
    PRODUCT(.where = down, .layers = layers, .n = model->hidden, .k = inter, .is_quantised = 1,
            .bias = bias);
    params_append(&others, "%s, ranks after the first", down);
    if (bias && planner->tp > 1)
        PRODUCT(.where = others.text, .layers = layers, .n = model->hidden, .k = inter,
                .is_quantised = 1);
    if (is_gelu)
        params_append(&more, " activation=%s", act);
    snprintf(name, sizeof(name), "%.16s_and_mul tokens", is_gelu ? "silu" : act);
    planner_add_steps(planner, PLACE(.where = up, .layers = layers), name, "width=%lld dtype=%s%s",
                      (long long)inter, planner->dtype, more.text);
}

/* What the experts' call has beside its sizes. */
static void append_routing(const struct planner *planner, struct params *more)
{
    const struct model *model = planner->model;
    if (model->is_sigmoid)
        params_append(more, " scoring=sigmoid");
    if (model->has_router_bias)
        params_append(more, " bias=1");
    if (model->groups > 1)
        params_append(more, " groups=%lld topk_group=%lld", (long long)model->groups,
                      (long long)model->topk_group);
    if (model->scaling != 1.0)
        params_append(more, " scaling=%g", model->scaling);
    if (planner->options->ep > 1)
        params_append(more, " mapped=1 local=%lld",
                      (long long)(model->experts / planner->options->ep));
    if (!isnan(model->swiglu_limit))
        params_append(more, " activation=swiglu_oai limit=%g", model->swiglu_limit);
    else if (strcmp(model->activation, "silu"))
        params_append(more, " activation=%s", model->activation);
    if (model->has_expert_bias)
        params_append(more, " expert_bias=%s", planner->dtype);
}

/* Ranks that attend each to sequences of their own, and share experts, get all their tokens. */
static void plan_routed(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct plan_options *options = planner->options;
    const struct sizes steps = planner_steps(planner);
    int64_t usual = steps.list[steps.count - 1];
    int64_t apart = options->ep > planner->tp ? options->ep / planner->tp : 1;
    const struct sizes tokens = planner_sizes(usual * apart);
    int is_quantised = planner_is_quantised(planner, 1);
    struct params more = { .used = 0 };
    append_routing(planner, &more);
    if (is_quantised)
        append_block(model, &more);
    for (int i = 0; i < tokens.count; i++)
        planner_add(
            planner,
            PLACE(.where = "experts", .layers = layers, .is_extra = tokens.list[i] > usual),
            is_quantised ? "moe_block_scaled" : "moe",
            "tokens=%lld experts=%lld topk=%lld hidden=%lld inter=%lld dtype=%s "
            "renormalize=%d%s",
            (long long)tokens.list[i], (long long)model->experts, (long long)model->topk,
            (long long)(model->latent ? model->latent : model->hidden),
            (long long)(options->ep > 1 ? model->expert_inter : model->expert_inter / planner->tp),
            planner->dtype, model->is_renormalized, more.text);
    if (apart > 1)
        for (int i = 0; i < 2; i++)
            planner_add_steps(planner, PLACE(.where = "experts", .layers = layers),
                              i ? "deepep_combine tokens" : "deepep_dispatch tokens",
                              "hidden=%lld topk=%lld ranks=%lld dtype=%s", (long long)model->hidden,
                              (long long)model->topk, (long long)options->ep, planner->dtype);
}

static void plan_shared(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct place place = { .where = "shared and routed experts", .layers = layers };
    if (!model->shared_inter)
        return;
    plan_gated(planner, "shared gate_up", "shared down", layers, model->shared_inter / planner->tp);
    if (model->has_shared_gate) {
        PRODUCT(.where = "shared gate", .layers = layers, .n = 1, .k = model->hidden);
        planner_add_steps(planner, PLACE(.where = "shared gate", .layers = layers),
                          "sigmoid_mul tokens", "width=%lld gate=1 dtype=%s",
                          (long long)model->hidden, planner->dtype);
    }
    planner_add_steps(planner, &place, "add tokens", "hidden=%lld dtype=%s",
                      (long long)model->hidden, planner->dtype);
}

static void plan_experts(struct planner *planner)
{
    const struct model *model = planner->model;
    int64_t layers = model->layers - model->dense_layers;
    const char *router = model->is_router_f32 ? "f32" : NULL;
    PRODUCT(.where = "router", .layers = layers, .n = model->experts, .k = model->hidden,
            .ab = router, .d = "f32",
            .bias = model->has_router_linear_bias ? planner->dtype : NULL);
    plan_routed(planner, layers);
    plan_shared(planner, layers);
    if (model->latent) {
        PRODUCT(.where = "latent down", .layers = layers, .n = model->latent, .k = model->hidden);
        planner_add_norm(planner, "latent", layers, 1, model->latent);
        PRODUCT(.where = "latent up", .layers = layers, .n = model->hidden, .k = model->latent);
    }
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* Heads that predict tokens ahead: a layer of the model's kind, whose calls are planned, after a
 * product of their own, and what checks the tokens that they drew. */
static void plan_ahead(struct planner *planner)
{
    const struct model *model = planner->model;
    const struct place place = { .where = "MTP", .layers = 1 };
    long long drawn = 1 + model->mtp, batch = planner->options->max_batch;
    if (!model->mtp)
        return;
    PRODUCT(.where = "MTP fusion", .layers = model->mtp, .n = model->hidden,
            .k = 2 * model->hidden);
    planner_add_norm(planner, "MTP, embedding and hidden", model->mtp, 2, model->hidden);
    planner_add(planner, &place, "build_tree_kernel_efficient", "b=%lld tokens=%lld", batch, drawn);
    planner_add(planner, &place, "verify_tree_greedy", "b=%lld tokens=%lld vocab=%lld", batch,
                drawn, (long long)model->vocab);
}

static void plan_norms(struct planner *planner)
{
    const struct model *model = planner->model;
    planner_add_norm(planner, "first norm", 1, 1, model->hidden);
    planner_add_steps(
        planner, PLACE(.where = "norms, the last too", .layers = model->layers, .times = 2),
        "fused_add_rmsnorm tokens", "hidden=%lld dtype=%s%s", (long long)model->hidden,
        planner->dtype, model->has_centred_norms ? " weight=1+w" : "");
    if (!model->has_residual_mixing)
        return;
    PRODUCT(.where = "residual mixing", .layers = model->layers, .times = 2, .n = 1,
            .k = model->hidden);
    planner_add_steps(planner,
                      PLACE(.where = "residual mixing", .layers = model->layers, .times = 2),
                      "attention_residual tokens", "hidden=%lld dtype=%s", (long long)model->hidden,
                      planner->dtype);
}

static void plan_ranks(struct planner *planner, long long vocab)
{
    const struct model *model = planner->model;
    if (planner->tp < 2)
        return;
    const struct place places[] = {
        { .where = "after embedding", .layers = 1 },
        { .where = "after o_proj and down", .layers = model->layers, .times = 2 },
    };
    for (int i = 0; i < 2; i++)
        planner_add_steps(planner, &places[i], "all_reduce tokens",
                          "hidden=%lld ranks=%lld dtype=%s", (long long)model->hidden,
                          (long long)planner->tp, planner->dtype);
    planner_add(planner, PLACE(.where = "after lm_head", .layers = 1), "all_gather",
                "b=%lld vocab=%lld ranks=%lld", (long long)planner_decode_tokens(planner), vocab,
                (long long)planner->tp);
}

static void plan_rest(struct planner *planner)
{
    const struct model *model = planner->model;
    long long vocab = (model->vocab + 63) / 64 * 64;
    PRODUCT(.where = "lm_head", .layers = 1, .n = vocab / planner->tp, .k = model->hidden,
            .is_per_sequence = 1);
    planner_add_steps(planner, PLACE(.where = "embedding", .layers = 1), "embedding tokens",
                      "hidden=%lld vocab=%lld dtype=%s", (long long)model->hidden,
                      vocab / planner->tp, planner->dtype);
    plan_norms(planner);
    plan_ranks(planner, vocab);
    plan_ahead(planner);
    planner_add(planner, PLACE(.where = "sampling", .layers = 1), "top_k_top_p_sampling_from_probs",
                "b=%lld vocab=%lld", (long long)planner_decode_tokens(planner), vocab);
    if (model->vision_layers)
        planner_add(planner, PLACE(.where = "images", .layers = model->vision_layers),
                    "vision_tower", "hidden=%lld", (long long)model->vision_hidden);
}

/* ---- What does not divide -------------------------------------------------------------------- */

static int refuse(char *why, int size, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(why, (size_t)size, format, list);
    va_end(list);
    return -1;
}

/* Weights with a factor for each block are divided between blocks: the outputs of each projection
 * that is divided by columns, also of those that are one product, and the inputs of the others. */
static int check_blocks(const struct model *model, const struct plan_options *options, char *why,
                        int size)
{
    int64_t tp = options->tp, is_latent = model->kv_lora > 0;
    int64_t heads = model->heads / tp, kv = model->kv_heads > tp ? model->kv_heads / tp : 1;
    const struct {
        const char *name;
        int64_t width, is_input; /* of rows: the next product's inputs, too */
    } parts[] = {
        { "experts", model->experts ? model->expert_inter / (options->ep > 1 ? 1 : tp) : 0, 1 },
        { "intermediate_size", model->dense_inter / tp, 1 },
        { "shared experts", model->shared_inter / tp, 1 },
        { "queries", heads * model->head_dim, !is_latent },
        { "keys", is_latent ? 0 : kv * model->head_dim, 0 },
        { "kv_b", is_latent ? heads * (model->nope + model->v_dim) : 0, 0 },
        { "values", is_latent ? heads * model->v_dim : 0, 1 },
        { "keys of linear attention", model->linear_k_heads / tp * model->linear_k_dim, 0 },
        { "values of linear attention", model->linear_v_heads / tp * model->linear_v_dim, 1 },
    };
    if (!model->block_n || options->dtype)
        return 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        int is_bad = parts[i].width % model->block_n ||
                     (parts[i].is_input && parts[i].width % model->block_k);
        if (is_bad)
            return refuse(why, size,
                          "tp=%lld: leaves %s a width of %lld, no multiple of the weights' block "
                          "of %lld by %lld; engines refuse that%s",
                          (long long)tp, parts[i].name, (long long)parts[i].width,
                          (long long)model->block_n, (long long)model->block_k,
                          i ? "" : ", and take ep or pad");
    }
    return 0;
}

static int check_ranks(const struct model *model, const struct plan_options *options, char *why,
                       int size)
{
    const struct {
        int64_t value;
        const char *name;
    } divided[] = { { model->heads, "num_attention_heads" },
                    { model->linear_k_heads, "heads of linear attention" },
                    { model->linear_v_heads, "value heads of linear attention" },
                    { model->dense_inter, "intermediate_size" },
                    { model->shared_inter, "width of shared experts" },
                    { (model->vocab + 63) / 64 * 64, "vocab_size, rounded up to 64" } };
    for (size_t i = 0; i < sizeof(divided) / sizeof(divided[0]); i++) {
        if (divided[i].value % options->tp)
            return refuse(why, size, "tp=%lld: must divide %lld (%s); engines refuse it",
                          (long long)options->tp, (long long)divided[i].value, divided[i].name);
    }
    if (!model->kv_lora && model->kv_heads % options->tp && options->tp % model->kv_heads)
        return refuse(why, size,
                      "tp=%lld: must divide %lld (num_key_value_heads) or be a multiple of it, "
                      "when engines repeat heads",
                      (long long)options->tp, (long long)model->kv_heads);
    if (options->ep > 1 && !model->experts)
        return refuse(why, size, "ep=%lld: must be 1: the model has no experts",
                      (long long)options->ep);
    if (model->experts && model->experts % options->ep)
        return refuse(why, size, "ep=%lld: must divide %lld experts; engines add redundant ones",
                      (long long)options->ep, (long long)model->experts);
    if (options->ep % options->tp && options->tp % options->ep)
        return refuse(why, size,
                      "ep=%lld: must divide tp=%lld or be a multiple of it; engines make their "
                      "groups of experts of whole groups of ranks",
                      (long long)options->ep, (long long)options->tp);
    if (model->experts && options->ep == 1 && model->expert_inter % options->tp)
        return refuse(why, size,
                      "tp=%lld: must divide %lld (width of an expert); engines refuse it",
                      (long long)options->tp, (long long)model->expert_inter);
    return check_blocks(model, options, why, size);
}

static int check_dtypes(const struct planner *planner, char *why, int size)
{
    const char *dtype = planner->dtype, *kv = planner->kv_dtype;
    if (strcmp(dtype, "bf16") && strcmp(dtype, "f16") && strcmp(dtype, "f32"))
        return refuse(why, size, "dtype=%s: must be bf16, f16 or f32", dtype);
    if (strcmp(kv, dtype) && strcmp(kv, "e4m3"))
        return refuse(why, size, "kv-dtype=%s: must be %s, as the rest, or e4m3", kv, dtype);
    return 0;
}

int plan_model(const struct model *model, const struct plan_options *options, struct plan *plan,
               char *why, int size)
{
    struct planner planner = { .model = model, .options = options, .plan = plan };
    memset(plan, 0, sizeof(*plan));
    planner.tp = options->tp;
    planner.dtype = options->dtype ? options->dtype : model->dtype;
    planner.kv_dtype = options->kv_dtype ? options->kv_dtype : planner.dtype;
    if (check_dtypes(&planner, why, size) || check_ranks(model, options, why, size))
        return -1;
    int64_t attending = model->layers - model->linear_layers;
    if (model->kv_lora)
        plan_latent(&planner, attending);
    else
        plan_grouped_query(&planner, attending);
    if (model->linear == MODEL_KDA)
        plan_kda(&planner);
    if (model->linear == MODEL_GDN)
        plan_gdn(&planner);
    plan_gated(&planner, "dense gate_up", "dense down", model->dense_layers,
               model->dense_inter / options->tp);
    if (model->experts)
        plan_experts(&planner);
    plan_rest(&planner);
    return plan->is_out_of_memory ? refuse(why, size, "memory ran out") : 0;
}
