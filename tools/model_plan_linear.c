/* Calls of layers with linear attention: KDA, whose decay is of each channel, and GDN, whose decay
 * is of a head. Both are a filter over the projections, the delta rule with its state, and a gated
 * norm; prefill and decode have kernels of their own, decode also one of all three. */
#include "model_planner.h"

#include <math.h>

/* The recurrence's parameters behind its sizes; `more` is what only some of its calls have. */
static void append_rule(const struct planner *planner, struct params *rule)
{
    const struct model *model = planner->model;
    const char *dtype = planner->dtype;
    params_append(rule,
                  "h=%lld hv=%lld k=%lld v=%lld dtype=%s g=%s beta=%s gate=%s decay=%s l2norm=1 "
                  "beta_logits=1 dt_bias=1 layout=vk",
                  (long long)(model->linear_k_heads / planner->tp),
                  (long long)(model->linear_v_heads / planner->tp), (long long)model->linear_k_dim,
                  (long long)model->linear_v_dim, dtype, dtype, dtype,
                  isnan(model->lower_bound) ? "softplus" : "bounded",
                  model->linear == MODEL_GDN ? "scalar" : "channel");
    if (!isnan(model->lower_bound))
        params_append(rule, " lower_bound=%g", model->lower_bound);
}

static void plan_prefill(struct planner *planner, long long channels, const struct params *rule)
{
    const struct model *model = planner->model;
    const struct pairs pairs = planner_pairs(planner);
    struct place place = { .where = "linear, prefill", .layers = model->linear_layers };
    long long slots = planner->options->max_batch;
    for (int i = 0; i < pairs.count; i++) {
        const struct pair *pair = &pairs.list[i];
        place.is_extra = pair->is_extra;
        planner_add(planner, &place, "causal_conv1d",
                    "t=%lld n=%lld d=%lld w=%lld dtype=%s weight=%s varlen=1 pool=1 capacity=%lld "
                    "has_initial=1",
                    (long long)pair->t, (long long)pair->b, channels, (long long)model->conv,
                    planner->dtype, planner->dtype, slots);
        planner_add(planner, &place, "kda_prefill",
                    "t=%lld n=%lld %s varlen=1 pool=1 capacity=%lld", (long long)pair->t,
                    (long long)pair->b, rule->text, slots);
    }
}

/* Tokens that are tried leave their states aside, until it is known which of them stay. */
static void plan_verify(struct planner *planner, long long channels, const struct params *rule,
                        long long n)
{
    const struct model *model = planner->model;
    const struct place place = { .where = "MTP, verified", .layers = model->linear_layers };
    long long slots = planner->options->max_batch, steps = 1 + model->mtp;
    planner_add(planner, &place, "causal_conv1d_update",
                "n=%lld steps=%lld d=%lld w=%lld dtype=%s weight=%s capacity=%lld save=1", n, steps,
                channels, (long long)model->conv, planner->dtype, planner->dtype, slots);
    planner_add(planner, &place, "kda_decode",
                "n=%lld steps=%lld %s pool=1 capacity=%lld save=states", n, steps, rule->text,
                slots);
    planner_add(planner, &place, "mamba_state_scatter", "n=%lld steps=%lld", n, steps);
}

/* The step of all three; its bucket has the pool's size, which is its owner's choice. */
static void add_steps(struct planner *planner, const struct params *rule, long long n)
{
    const struct model *model = planner->model;
    const struct sizes pools = planner_sizes(8 * planner->options->max_batch);
    struct place place = { .where = "linear, decode (instead)", .layers = model->linear_layers };
    for (int i = 0; i < pools.count; i++) {
        place.is_extra = pools.list[i] != planner->options->max_batch;
        if (pools.list[i] < n)
            continue;
        planner_add(planner, &place, "kda_step",
                    "n=%lld %s w=%lld weight=%s norm=%s z=%s norm_weight=%s capacity=%lld", n,
                    rule->text, (long long)model->conv, planner->dtype,
                    model->linear == MODEL_GDN ? "silu" : "sigmoid", planner->dtype, planner->dtype,
                    (long long)pools.list[i]);
    }
}

static void plan_decode(struct planner *planner, long long channels, const struct params *rule)
{
    const struct model *model = planner->model;
    const struct sizes batches = planner_sizes(planner->options->max_batch);
    const struct place place = { .where = "linear, decode", .layers = model->linear_layers };
    long long slots = planner->options->max_batch;
    for (int i = 0; i < batches.count; i++) {
        long long n = batches.list[i];
        planner_add(planner, &place, "causal_conv1d_update",
                    "n=%lld d=%lld w=%lld dtype=%s weight=%s capacity=%lld", n, channels,
                    (long long)model->conv, planner->dtype, planner->dtype, slots);
        planner_add(planner, &place, "kda_decode", "n=%lld %s pool=1 capacity=%lld", n, rule->text,
                    slots);
        add_steps(planner, rule, n);
        if (model->mtp)
            plan_verify(planner, channels, rule, n);
    }
}

static void plan_recurrence(struct planner *planner, long long channels)
{
    const struct model *model = planner->model;
    struct params rule = { .used = 0 };
    append_rule(planner, &rule);
    plan_prefill(planner, channels, &rule);
    plan_decode(planner, channels, &rule);
    planner_add_steps(planner, PLACE(.where = "linear", .layers = model->linear_layers),
                      "gated_rmsnorm t", "h=%lld d=%lld dtype=%s z=%s weight=%s act=%s",
                      (long long)(model->linear_v_heads / planner->tp),
                      (long long)model->linear_v_dim, planner->dtype, planner->dtype,
                      planner->dtype, model->linear == MODEL_GDN ? "silu" : "sigmoid");
}

void plan_kda(struct planner *planner)
{
    const struct model *model = planner->model;
    int64_t layers = model->linear_layers, heads = model->linear_k_heads / planner->tp;
    int64_t width = heads * model->linear_k_dim, low = model->linear_k_dim;
    if (model->has_full_gate) {
        PRODUCT(.where = "KDA q, k, v, gate", .layers = layers, .n = 4 * width, .k = model->hidden);
        PRODUCT(.where = "KDA b_proj", .layers = layers, .n = heads, .k = model->hidden);
        PRODUCT(.where = "KDA f_a", .layers = layers, .n = low, .k = model->hidden);
        PRODUCT(.where = "KDA f_b", .layers = layers, .n = width, .k = low);
    } else {
        PRODUCT(.where = "KDA q, k, v, beta, f_a, g_a", .layers = layers,
                .n = 3 * width + heads + 2 * low, .k = model->hidden);
        PRODUCT(.where = "KDA q, k, v (instead)", .layers = layers, .n = 3 * width,
                .k = model->hidden, .is_quantised = 1);
        PRODUCT(.where = "KDA b_proj (instead)", .layers = layers, .n = heads, .k = model->hidden);
        PRODUCT(.where = "KDA f_a, g_a (instead)", .layers = layers, .times = 2, .n = low,
                .k = model->hidden);
        PRODUCT(.where = "KDA f_b, g_b", .layers = layers, .batch = 2, .n = width, .k = low);
    }
    PRODUCT(.where = "KDA o_proj", .layers = layers, .n = model->hidden, .k = width,
            .is_quantised = !model->has_full_gate);
    plan_recurrence(planner, 3 * width);
}

void plan_gdn(struct planner *planner)
{
    const struct model *model = planner->model;
    int64_t layers = model->linear_layers, heads = model->linear_v_heads / planner->tp;
    int64_t keys = model->linear_k_heads / planner->tp * model->linear_k_dim;
    int64_t values = heads * model->linear_v_dim;
    PRODUCT(.where = "GDN q, k, v, z", .layers = layers, .n = 2 * keys + 2 * values,
            .k = model->hidden, .is_quantised = 1);
    PRODUCT(.where = "GDN b, a", .layers = layers, .n = 2 * heads, .k = model->hidden);
    PRODUCT(.where = "GDN out_proj", .layers = layers, .n = model->hidden, .k = values,
            .is_quantised = 1);
    plan_recurrence(planner, 2 * keys + values);
}
