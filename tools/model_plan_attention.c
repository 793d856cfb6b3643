/* Calls of layers that attend: grouped queries over keys and values in pages, and latent attention
 * (MLA), which has two forms:
 *
 *     expanded   keys and values of every head are made of latent rows: prefill. A prefix is
 *                expanded and seen chunk by chunk, and the results are merged
 *     absorbed   queries are brought to the latent rows, which are then keys and values: decode,
 *                and where an indexer says which rows are seen
 */
#include "model_planner.h"

#include <math.h>
#include <string.h>

static int64_t kv_heads(const struct planner *planner)
{
    int64_t heads = planner->model->kv_heads / planner->tp;
    return heads > 0 ? heads : 1;
}

/* Pages of the longest sequence. */
static int64_t pages_of_sequence(const struct planner *planner)
{
    return (planner->options->max_seq + planner->options->page - 1) / planner->options->page;
}

/* Of a cache that holds `sequences` of the longest; no more than families count. */
static int64_t pages_of(const struct planner *planner, int64_t sequences)
{
    int64_t pages = sequences * pages_of_sequence(planner), most = INT64_C(1) << 30;
    return pages < most ? pages : most;
}

/* ---- The cache ------------------------------------------------------------------------------- */

/* A layer's keys and values, with `scale` the factors of what the cache holds. */
static void store_heads(struct planner *planner, int64_t layers, const char *scale)
{
    const struct model *model = planner->model;
    long long hkv = kv_heads(planner), d = model->head_dim;
    struct params rope = { .used = 0 };
    if (model->rotary && model->qk_norm != MODEL_NORM_HEAD)
        params_append(&rope, " rope=%s rope_dim=%lld max_position=%lld hq=%lld",
                      model->is_rope_interleaved ? "gptj" : "neox", (long long)model->rotary,
                      (long long)planner->options->max_seq,
                      (long long)(model->heads / planner->tp));
    planner_add_steps(planner, PLACE(.where = "cache", .layers = layers), "set_kv_buffer t",
                      "hkv=%lld d=%lld dv=%lld page=%lld pages=%lld dtype=%s kv_dtype=%s%s%s", hkv,
                      d, d, (long long)planner->options->page,
                      (long long)pages_of(planner, planner->options->max_batch), planner->dtype,
                      planner->kv_dtype, scale, rope.text);
}

static void store_latent(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct place place = { .where = "cache", .layers = layers };
    planner_add_steps(planner, &place, "set_kv_buffer t",
                      "hkv=1 d=%lld dv=0 page=%lld pages=%lld dtype=%s kv_dtype=%s%s",
                      (long long)(model->kv_lora + model->rope), (long long)planner->options->page,
                      (long long)pages_of(planner, planner->options->max_batch), planner->dtype,
                      planner->kv_dtype, strcmp(planner->kv_dtype, "e4m3") ? "" : " layout=mla");
}

/* ---- Grouped queries ------------------------------------------------------------------------- */

/* What the calls of a kind of layer have behind their sizes: no cache, or one with `scale`. */
static void append_kind(const struct planner *planner, int64_t window, struct params *more)
{
    const struct model *model = planner->model;
    if (window)
        params_append(more, " window=%lld", (long long)window);
    if (model->has_sinks)
        params_append(more, " sinks=1 sinks_dtype=%s", planner->dtype);
    if (!isnan(model->attention_scale))
        params_append(more, " scale=%g", model->attention_scale);
    if (!isnan(model->softcap))
        params_append(more, " softcap=%g", model->softcap);
}

struct kind {
    struct place place;
    struct params more;
    const char *scale;
    long long hq, hkv, d;
};

static void add_extend(struct planner *planner, const struct kind *kind, const struct pair *pair)
{
    const struct sizes tables = planner_sizes(pages_of_sequence(planner));
    struct place place = kind->place;
    for (int i = 0; i < tables.count; i++) {
        place.is_extra = pair->is_extra || i + 1 < tables.count;
        planner_add(planner, &place, "attention_extend",
                    "b=%lld t=%lld hq=%lld hkv=%lld d=%lld dv=%lld page=%lld pages=%lld "
                    "max_pages=%lld dtype=%s kv_dtype=%s%s%s",
                    (long long)pair->b, (long long)pair->t, kind->hq, kind->hkv, kind->d, kind->d,
                    (long long)planner->options->page, (long long)(pair->b * tables.list[i]),
                    (long long)tables.list[i], planner->dtype, planner->kv_dtype, kind->scale,
                    kind->more.text);
    }
}

/* A cache smaller than all tables together is another bucket, down to one table's. */
static void add_decode(struct planner *planner, const struct kind *kind, int64_t b)
{
    const struct sizes tables = planner_sizes(pages_of_sequence(planner));
    struct place place = kind->place;
    for (int i = 0; i < tables.count; i++) {
        const struct sizes pages = planner_sizes(b);
        for (int j = 0; j < pages.count; j++) {
            place.is_extra = i + 1 < tables.count || j + 1 < pages.count;
            planner_add(planner, &place, "attention_decode",
                        "b=%lld hq=%lld hkv=%lld d=%lld dv=%lld page=%lld pages=%lld "
                        "max_pages=%lld dtype=%s kv_dtype=%s%s%s",
                        (long long)b, kind->hq, kind->hkv, kind->d, kind->d,
                        (long long)planner->options->page,
                        (long long)(pages.list[j] * tables.list[i]), (long long)tables.list[i],
                        planner->dtype, planner->kv_dtype, kind->scale, kind->more.text);
        }
    }
}

static void plan_cached(struct planner *planner, const struct kind *kind)
{
    const struct sizes batches = planner_sizes(planner->options->max_batch);
    const struct pairs pairs = planner_pairs(planner);
    for (int i = 0; i < pairs.count; i++)
        add_extend(planner, kind, &pairs.list[i]);
    for (int i = 0; i < batches.count; i++)
        add_decode(planner, kind, batches.list[i]);
}

/* The calls of one kind of layer: with a window or without. */
static void plan_softmax(struct planner *planner, int64_t layers, int64_t window)
{
    const struct model *model = planner->model;
    const struct pairs pairs = planner_pairs(planner);
    struct kind kind = { .place = { .where = window ? "attention, window" : "attention",
                                    .layers = layers },
                         .scale = "",
                         .hq = model->heads / planner->tp,
                         .hkv = kv_heads(planner),
                         .d = model->head_dim };
    append_kind(planner, window, &kind.more);
    for (int i = 0; i < pairs.count; i++) {
        const struct pair *pair = &pairs.list[i];
        struct place place = kind.place;
        place.is_extra = pair->is_extra;
        planner_add(planner, &place, "attention_prefill",
                    "b=%lld sq=%lld sk=%lld hq=%lld hkv=%lld d=%lld dv=%lld dtype=%s causal=1 "
                    "varlen=1%s",
                    (long long)pair->b, (long long)pair->t, (long long)pair->t, kind.hq, kind.hkv,
                    kind.d, kind.d, planner->dtype, kind.more.text);
    }
    plan_cached(planner, &kind);
    if (!strcmp(planner->kv_dtype, "e4m3")) { /* some engines always give factors, some never */
        kind.scale = " kv_scale=tensor";
        plan_cached(planner, &kind);
    }
}

static void plan_qk_norm(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    long long hq = model->heads / planner->tp, hkv = kv_heads(planner), d = model->head_dim;
    const struct place place = { .where = "q and k", .layers = layers };
    struct params more = { .used = 0 };
    if (!isnan(model->norm_eps) && model->norm_eps != 1e-6)
        params_append(&more, " eps=%g", model->norm_eps);
    if (!isnan(model->rope_base) && model->rope_base != 10000)
        params_append(&more, " base=%.9g", model->rope_base);
    if (model->qk_norm == MODEL_NORM_HEAD)
        planner_add_steps(planner, &place, "fused_qk_norm_rope tokens",
                          "hq=%lld hk=%lld hv=%lld d=%lld rotary_dim=%lld dtype=%s%s", hq, hkv, hkv,
                          d, (long long)model->rotary, planner->dtype, more.text);
    if (model->qk_norm == MODEL_NORM_ROW) /* of all heads, so of all ranks */
        planner_add_steps(planner, &place, "rmsnorm_tp tokens", "q=%lld k=%lld ranks=%lld dtype=%s",
                          hq * d, hkv * d, (long long)planner->tp, planner->dtype);
}

void plan_grouped_query(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    int64_t q = model->heads / planner->tp * model->head_dim, d = model->head_dim;
    const char *bias = model->has_o_bias ? planner->dtype : NULL;
    PRODUCT(.where = model->is_gated ? "qkv and gate" : "qkv", .layers = layers,
            .n = q * (1 + model->is_gated) + 2 * kv_heads(planner) * d, .k = model->hidden,
            .is_quantised = 1, .bias = model->has_qkv_bias ? planner->dtype : NULL);
    PRODUCT(.where = "o_proj", .layers = layers, .n = model->hidden, .k = q, .is_quantised = 1,
            .bias = bias);
    if (bias && planner->tp > 1) /* sums of ranks get the bias once */
        PRODUCT(.where = "o_proj, ranks after the first", .layers = layers, .n = model->hidden,
                .k = q, .is_quantised = 1);
    plan_qk_norm(planner, layers);
    store_heads(planner, layers, "");
    if (!strcmp(planner->kv_dtype, "e4m3"))
        store_heads(planner, layers, " kv_scale=tensor");
    plan_softmax(planner, layers - model->windowed, 0);
    plan_softmax(planner, model->windowed, model->window);
    if (model->is_gated)
        planner_add_steps(planner, PLACE(.where = "output gate", .layers = layers),
                          "sigmoid_mul tokens", "width=%lld dtype=%s", (long long)q,
                          planner->dtype);
}

/* ---- Latent rows ----------------------------------------------------------------------------- */

static void plan_sparse_index(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct place place = { .where = "indexer", .layers = layers };
    long long heads = model->index_heads, d = model->index_dim, topk = model->index_topk;
    const char *dtype = planner->dtype;
    if (!heads)
        return;
    PRODUCT(.where = "indexer wq_b", .layers = layers, .n = heads * d, .k = model->q_lora,
            .is_quantised = 1);
    PRODUCT(.where = "indexer wk", .layers = layers, .n = d, .k = model->hidden, .is_quantised = 1);
    PRODUCT(.where = "indexer weights_proj", .layers = layers, .n = heads, .k = model->hidden);
    PRODUCT(.where = "indexer wk and weights_proj (instead)", .layers = layers, .n = d + heads,
            .k = model->hidden);
    planner_add_steps(planner, &place, "layernorm tokens", "hidden=%lld dtype=%s", d, dtype);
    planner_add_steps(planner, &place, "rotary_embedding tokens",
                      "hq=%lld hk=1 d=%lld rotary_dim=%lld dtype=%s", heads, d,
                      (long long)model->rope, dtype);
    planner_add_steps(planner, &place, "hadamard_transform tokens", "heads=%lld d=%lld dtype=%s",
                      heads + 1, d, dtype);
    planner_add_steps(planner, &place, "act_quant tokens", "heads=%lld d=%lld group=128 dtype=%s",
                      heads + 1, d, dtype);
    planner_add_steps(planner, &place, "fp8_mqa_logits tokens", "heads=%lld d=%lld", heads, d);
    planner_add_steps(planner, &place, "fp8_paged_mqa_logits tokens", "heads=%lld d=%lld", heads,
                      d);
    planner_add_steps(planner, &place, "fast_topk tokens", "topk=%lld", topk);
}

/* Tokens of a prefix that are expanded at once, at most. */
static int64_t chunk_most(const struct planner *planner)
{
    const struct plan_options *options = planner->options;
    return options->max_seq > options->max_tokens ? options->max_seq : options->max_tokens;
}

static void add_expanded(struct planner *planner, const struct place *place,
                         const struct pair *pair, int64_t keys, const char *flags)
{
    const struct model *model = planner->model;
    long long h = model->heads / planner->tp;
    struct params more = { .used = 0 };
    if (!isnan(model->attention_scale)) /* else it is the root of d, as the family has it */
        params_append(&more, " scale=%g", model->attention_scale);
    planner_add(planner, place, "attention_prefill",
                "b=%lld sq=%lld sk=%lld hq=%lld hkv=%lld d=%lld dv=%lld dtype=%s varlen=1 %s%s",
                (long long)pair->b, (long long)pair->t, (long long)keys, h, h,
                (long long)model->head_dim, (long long)model->v_dim, planner->dtype, flags,
                more.text);
}

/* Chunks of prefixes have any number of keys for any number of new tokens. */
static void plan_expanded(struct planner *planner, int64_t layers)
{
    const struct pairs pairs = planner_pairs(planner);
    const struct sizes chunks = planner_sizes(chunk_most(planner));
    struct place alone = { .where = "prefill, no prefix", .layers = layers };
    struct place after = { .where = "prefill after a prefix", .layers = layers };
    struct place prefix = { .where = "prefill, a prefix's chunk", .layers = layers };
    for (int i = 0; i < pairs.count; i++) {
        const struct pair *pair = &pairs.list[i];
        alone.is_extra = after.is_extra = pair->is_extra;
        add_expanded(planner, &alone, pair, pair->t, "causal=1");
        add_expanded(planner, &after, pair, pair->t, "causal=1 lse=1");
        for (int j = 0; j < chunks.count; j++) {
            prefix.is_extra = pair->is_extra || chunks.list[j] != pair->t;
            add_expanded(planner, &prefix, pair, chunks.list[j], "causal=0 lse=1");
        }
    }
}

/* What makes keys of heads, and merges what was seen of them. */
static void plan_expansion(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct sizes tokens = planner_sizes(planner->options->max_tokens);
    const struct sizes expanded = planner_sizes(chunk_most(planner));
    struct place place = { .where = "prefill, expanded", .layers = layers };
    long long h = model->heads / planner->tp;
    for (int i = 0; i < tokens.count; i++)
        planner_add(planner, &place, "merge_state_v2", "t=%lld h=%lld d=%lld dtype=%s",
                    (long long)tokens.list[i], h, (long long)model->v_dim, planner->dtype);
    for (int i = 0; i < expanded.count; i++) {
        place.is_extra = expanded.list[i] > planner->options->max_tokens;
        planner_add(planner, &place, "concat_mla_k", "t=%lld h=%lld nope=%lld rope=%lld dtype=%s",
                    (long long)expanded.list[i], h, (long long)model->nope, (long long)model->rope,
                    planner->dtype);
    }
    planner_add(planner, PLACE(.where = "prefill, a prefix's chunk", .layers = layers),
                "gather_and_maybe_dequant_cache", "tokens=%lld d=%lld kv_dtype=%s dtype=%s",
                (long long)chunk_most(planner), (long long)(model->kv_lora + model->rope),
                planner->kv_dtype, planner->dtype);
}

/* Each of b sequences has sq queries. */
static void add_absorbed(struct planner *planner, const struct place *given, int64_t b, int64_t sq)
{
    const struct sizes tables = planner_sizes(pages_of_sequence(planner));
    const struct model *model = planner->model;
    struct place place = *given;
    for (int i = 0; i < tables.count; i++) {
        place.is_extra = i + 1 < tables.count;
        planner_add(planner, &place, "mla_decode",
                    "b=%lld sq=%lld hq=%lld page=%lld pages=%lld max_pages=%lld dtype=%s "
                    "kv_dtype=%s scale=%.6g",
                    (long long)b, (long long)sq, (long long)(model->heads / planner->tp),
                    (long long)planner->options->page, (long long)(b * tables.list[i]),
                    (long long)tables.list[i], planner->dtype, planner->kv_dtype,
                    model->latent_scale);
    }
}

/* Queries of sparse layers see rows of their own each: a prefill's tokens are sequences, too. */
static void plan_sparse(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    long long page = planner->options->page;
    const struct sizes steps = planner_steps(planner);
    const struct place place = { .where = "sparse", .layers = layers };
    for (int i = 0; model->index_heads && i < steps.count; i++)
        planner_add(planner, &place, "mla_decode",
                    "b=%lld hq=%lld page=%lld pages=%lld max_pages=0 topk=%lld dtype=%s "
                    "kv_dtype=%s scale=%.6g",
                    (long long)steps.list[i], (long long)(model->heads / planner->tp), page,
                    (long long)pages_of(planner, planner->options->max_batch),
                    (long long)model->index_topk, planner->dtype, planner->kv_dtype,
                    model->latent_scale);
}

static void plan_absorbed(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    const struct sizes batches = planner_sizes(planner->options->max_batch);
    const struct place decode = { .where = "decode, absorbed", .layers = layers };
    const struct place verify = { .where = "MTP, verified", .layers = layers };
    const struct sizes tokens =
        model->index_heads ? planner_steps(planner) : planner_sizes(planner_decode_tokens(planner));
    for (int i = 0; i < tokens.count; i++)
        planner_add(planner, &decode, "concat_mla_absorb_q",
                    "t=%lld h=%lld nope=%lld rope=%lld dtype=%s", (long long)tokens.list[i],
                    (long long)(model->heads / planner->tp), (long long)model->kv_lora,
                    (long long)model->rope, planner->dtype);
    for (int i = 0; i < batches.count; i++) {
        add_absorbed(planner, &decode, batches.list[i], 1);
        if (model->mtp)
            add_absorbed(planner, &verify, batches.list[i], 1 + model->mtp);
    }
    plan_sparse(planner, layers);
}

static void plan_latent_products(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    int64_t h = model->heads / planner->tp, latent = model->kv_lora + model->rope;
    if (model->q_lora) {
        PRODUCT(.where = "fused_qkv_a", .layers = layers, .n = model->q_lora + latent,
                .k = model->hidden, .is_quantised = 1);
        planner_add_norm(planner, "q_a", layers, 1, model->q_lora);
        PRODUCT(.where = "q_b", .layers = layers, .n = h * model->head_dim, .k = model->q_lora,
                .is_quantised = 1);
    } else {
        PRODUCT(.where = "q_proj", .layers = layers, .n = h * model->head_dim, .k = model->hidden,
                .is_quantised = 1);
        PRODUCT(.where = "kv_a", .layers = layers, .n = latent, .k = model->hidden,
                .is_quantised = 1);
    }
    planner_add_norm(planner, "kv_a", layers, 1, model->kv_lora);
    PRODUCT(.where = "kv_b", .layers = layers, .n = h * (model->nope + model->v_dim),
            .k = model->kv_lora, .is_quantised = 1, .most = chunk_most(planner));
    PRODUCT(.where = "w_kc", .layers = layers, .batch = h, .n = model->kv_lora, .k = model->nope);
    PRODUCT(.where = "w_vc", .layers = layers, .batch = h, .n = model->v_dim, .k = model->kv_lora);
    PRODUCT(.where = "o_proj", .layers = layers, .n = model->hidden, .k = h * model->v_dim,
            .is_quantised = 1);
    if (!model->is_gated)
        return;
    PRODUCT(.where = "output gate", .layers = layers, .n = h * model->v_dim, .k = model->hidden);
    planner_add_steps(planner, PLACE(.where = "output gate", .layers = layers),
                      "sigmoid_mul tokens", "width=%lld dtype=%s", (long long)(h * model->v_dim),
                      planner->dtype);
}

void plan_latent(struct planner *planner, int64_t layers)
{
    const struct model *model = planner->model;
    plan_latent_products(planner, layers);
    if (model->rotary)
        planner_add_steps(
            planner, PLACE(.where = "q and k", .layers = layers), "rotary_embedding tokens",
            "hq=%lld hk=1 d=%lld rotary_dim=%lld rope=%s dtype=%s",
            (long long)(model->heads / planner->tp), (long long)model->rope,
            (long long)model->rotary, model->is_rope_interleaved ? "gptj" : "neox", planner->dtype);
    plan_sparse_index(planner, layers);
    plan_expanded(planner, layers);
    plan_expansion(planner, layers);
    plan_absorbed(planner, layers);
    store_latent(planner, layers);
}
