/* What a model computes, as its config.json says. Nothing here is of one rank yet: model_plan.h
 * divides. Sizes are 0 where the model has no such part. */
#ifndef TOOLS_MODEL_H
#define TOOLS_MODEL_H

#include <stdint.h>

enum model_norm {
    MODEL_NO_NORM,
    MODEL_NORM_HEAD, /* of each head of q and k */
    MODEL_NORM_ROW   /* of all heads together */
};
enum model_linear { MODEL_NO_LINEAR, MODEL_KDA, MODEL_GDN };

struct model {
    char name[96]; /* architectures[0], else model_type */
    int is_known;  /* an architecture whose rules are known; else it was read by its fields */
    int64_t hidden, layers, vocab;

    /* Attention: of `layers` those that are not linear. */
    int64_t heads, kv_heads, head_dim;
    int64_t rotary;           /* columns of a head that are rotated */
    int64_t window, windowed; /* its width, and how many layers have it */
    enum model_norm qk_norm;
    int has_sinks;
    int is_gated; /* o is gated: by columns of q's projection, or of one more product */
    int has_qkv_bias, has_o_bias;
    int is_rope_interleaved; /* columns 2i and 2i + 1 are a pair, not halves */
    double rope_base;        /* NaN: not said */
    double attention_scale;  /* of scores; NaN: the root of a head's width */
    double softcap;          /* of scores; NaN: none */

    /* Multi-head latent attention, if kv_lora > 0. */
    int64_t q_lora, kv_lora, nope, rope, v_dim;
    double latent_scale; /* of scores, which the width of a latent row does not tell */
    int64_t index_heads, index_dim, index_topk; /* sparse: which keys are seen */

    /* Linear attention in linear_layers of the layers. */
    enum model_linear linear;
    int64_t linear_layers, linear_k_heads, linear_v_heads, linear_k_dim, linear_v_dim, conv;
    int has_full_gate;  /* KDA: the output's gate is one more projection of full width */
    double lower_bound; /* KDA: of the gate; NaN: it is softplus */

    /* Feed-forward: dense in dense_layers of the layers, experts in the others. */
    int64_t dense_inter, dense_layers;
    int64_t experts, topk, expert_inter, shared_inter, groups, topk_group;
    int64_t latent; /* experts work on so many columns, not on hidden; 0: on hidden */
    int is_sigmoid, is_renormalized, has_shared_gate, is_router_f32;
    int has_router_bias;        /* what chooses experts and does not weigh them */
    int has_router_linear_bias; /* of the product itself */
    int has_expert_bias, has_mlp_bias;
    char activation[16]; /* silu, gelu, gelu_tanh; else the config's word for it */
    double scaling;
    double swiglu_limit; /* NaN: none */

    int64_t mtp; /* further layers that predict tokens ahead */
    int has_residual_mixing;
    int has_centred_norms; /* weights are stored less 1 */
    double norm_eps;       /* NaN: not said */
    int64_t vision_layers, vision_hidden;
    char dtype[16];           /* bf16, f16, f32: of what is not quantised */
    char quant[32];           /* quant_method; "" if none */
    int has_plain_layers;     /* only experts are quantised */
    int64_t block_n, block_k; /* of block-scaled weights */
};

/* Read config.json at `path`. 0, or -1 with one line in `why` that names the field as name=value,
 * or the file. Nothing is printed; a warning (fields that were guessed) goes to `warning`, which is
 * "" if there is none. */
int model_read(const char *path, struct model *model, char *warning, char *why, int size);
/* The same of a config.json that is at hand as text; `path` is what complaints call it. */
int model_read_text(const char *text, const char *path, struct model *model, char *warning,
                    char *why, int size);

#endif
