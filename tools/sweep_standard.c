/* The standard set: one rank's calls of models that between them have most operators.
 *
 *     Llama-3.1-8B         products; attention with eight keys' heads, RoPE
 *     Kimi-Linear-48B      KDA, latent attention, experts chosen by a sigmoid
 *     Qwen3-Next-80B       GDN, attention of 256 columns with normalised heads, softmax routing
 *
 * A model's plan has every power of two of tokens or sequences. Of a product's sizes every second
 * one stays, since a winner also serves what is a factor of two away; of another family's calls
 * every fourth; and the last of each. Of the later models no product is taken: there are enough.
 */
#include "sweep_standard.h"

#include <stdio.h>
#include <string.h>

enum { PRODUCT_STEP = 2, STEP = 4 };

#define JSON(...) #__VA_ARGS__

struct source {
    const char *config; /* what of its config.json is looked at */
    int64_t tp;
    int has_products;
};

/* clang-format off */
static const struct source sources[] = {
    { JSON({ "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
             "vocab_size": 128256, "hidden_act": "silu", "torch_dtype": "bfloat16" }),
      1, 1 },
    { JSON({ "architectures": ["KimiLinearForCausalLM"], "hidden_size": 2304,
             "num_hidden_layers": 27, "num_attention_heads": 32, "num_key_value_heads": 32,
             "head_dim": 72, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
             "v_head_dim": 128, "mla_use_nope": true, "num_experts": 256,
             "num_experts_per_token": 8, "moe_intermediate_size": 1024, "num_shared_experts": 1,
             "intermediate_size": 9216, "first_k_dense_replace": 1, "vocab_size": 163840,
             "moe_router_activation_func": "sigmoid", "moe_renormalize": true,
             "num_expert_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446,
             "dtype": "bfloat16",
             "linear_attn_config": {
                 "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23,
                                25, 26],
                 "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                 "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4 } }),
      8, 0 },
    { JSON({ "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048,
             "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
             "head_dim": 256, "partial_rotary_factor": 0.25, "full_attention_interval": 4,
             "linear_num_key_heads": 16, "linear_num_value_heads": 32,
             "linear_key_head_dim": 128, "linear_value_head_dim": 128,
             "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10,
             "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
             "vocab_size": 151936, "norm_topk_prob": true, "torch_dtype": "bfloat16" }),
      2, 0 },
};
/* clang-format on */

static int is_product(const struct plan_call *call)
{
    return !strcmp(call->family, "gemm");
}

/* Of one series: a product's sizes, all calls of another family. */
static int is_like(const struct plan_call *a, const struct plan_call *b)
{
    return !strcmp(a->family, b->family) && !a->is_extra && !a->is_repeat &&
           (!is_product(a) || !strcmp(a->where, b->where));
}

static int is_chosen(const struct plan *plan, int index)
{
    const struct plan_call *call = &plan->calls[index];
    int before = 0, after = 0;
    if (!is_like(call, call))
        return 0;
    for (int i = 0; i < plan->count; i++)
        if (i != index && is_like(&plan->calls[i], call))
            *(i < index ? &before : &after) += 1;
    return before % (is_product(call) ? PRODUCT_STEP : STEP) == 0 || !after;
}

static int add_plan(struct plan *plan, const struct plan *all, int has_products)
{
    int status = 0;
    for (int i = 0; i < all->count && !status; i++) {
        const struct plan_call *call = &all->calls[i];
        if ((has_products || !is_product(call)) && is_chosen(all, i))
            status = plan_add(plan, call);
    }
    return status;
}

static int add_source(struct plan *plan, const struct source *source, char *why, int size)
{
    const struct plan_options options = {
        .tp = source->tp, .ep = 1, .max_tokens = 8192, .max_batch = 64, .max_seq = 4096, .page = 16
    };
    struct plan all = { .calls = NULL };
    struct model model;
    char warning[512];
    int status = model_read_text(source->config, "standard", &model, warning, why, size);
    if (!status)
        status = plan_model(&model, &options, &all, why, size);
    if (!status && add_plan(plan, &all, source->has_products)) {
        snprintf(why, (size_t)size, "memory ran out");
        status = -1;
    }
    plan_fini(&all);
    return status;
}

int sweep_standard(struct plan *plan, char *why, int size)
{
    int status = 0;
    memset(plan, 0, sizeof(*plan));
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]) && !status; i++)
        status = add_source(plan, &sources[i], why, size);
    return status;
}
