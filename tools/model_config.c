/* config.json of Hugging Face models. The same thing has many names there: model_size() takes a
 * list of them, first come first served. Fields are read in groups, as struct model has them, and
 * checked where they are read; what contradicts itself is refused at the end. */
#include "model.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SIZE_MOST (INT64_C(1) << 31)

struct reader {
    const json_t *root, *text; /* text: text_config where there is one */
    struct model *model;
    char *warning, *why;
    int size, has_failed;
};

static void fail(struct reader *reader, const char *format, ...)
{
    va_list list;
    if (reader->has_failed)
        return;
    va_start(list, format);
    vsnprintf(reader->why, (size_t)reader->size, format, list);
    va_end(list);
    reader->has_failed = 1;
}

static void warn(struct reader *reader, const char *format, ...)
{
    size_t used = strlen(reader->warning);
    va_list list;
    if (used && used + 2 < (size_t)reader->size)
        used += (size_t)snprintf(reader->warning + used, (size_t)reader->size - used, "; ");
    va_start(list, format);
    vsnprintf(reader->warning + used, (size_t)reader->size - used, format, list);
    va_end(list);
}

/* ---- One field ------------------------------------------------------------------------------- */

/* The first of the blank-separated names that is there and not null. */
static const json_t *find(const json_t *object, const char *names, char *found)
{
    for (; *names; names += strspn(names, " ")) {
        size_t length = strcspn(names, " ");
        snprintf(found, 64, "%.*s", (int)length, names);
        const json_t *value = json_object_get(object, found);
        if (value && !json_is_null(value))
            return value;
        names += length;
    }
    return NULL;
}

/* A whole number of [least, 2^31]; `otherwise` if no name is there. least > 0: it must be. */
static int64_t size_in(struct reader *reader, const json_t *object, const char *names,
                       int64_t otherwise, int64_t least)
{
    char found[64];
    const json_t *value = find(object, names, found);
    if (!value)
        return otherwise;
    if (!json_is_integer(value)) {
        fail(reader, "%s: must be a whole number", found);
        return otherwise;
    }
    int64_t number = json_integer_value(value);
    if (number < least || number > SIZE_MOST)
        fail(reader, "%s=%lld: must be %lld to 2^31", found, (long long)number, (long long)least);
    return number;
}

static int64_t size_of(struct reader *reader, const char *names, int64_t otherwise, int64_t least)
{
    return size_in(reader, reader->text, names, otherwise, least);
}

static int64_t required(struct reader *reader, const char *names)
{
    int64_t value = size_of(reader, names, 0, 1);
    if (!value)
        fail(reader, "%.*s: must be given", (int)strcspn(names, " "), names);
    return value;
}

/* Far beyond what models have: what is outside is a mistake, or of another kind. */
static const struct bound {
    const char *name;
    double least, most;
} bounds[] = {
    { "partial_rotary_factor", 0, 1 },
    { "rope_theta", 1, 1e12 },
    { "factor", 1e-6, 1e6 },
    { "mscale_all_dim", 0, 1e6 },
    { "query_pre_attn_scalar", 1e-6, 1e6 },
    { "attention_multiplier", 1e-6, 1e6 },
    { "attn_logit_softcapping", 0, 1e6 },
    { "gate_lower_bound", -1e3, 0 },
    { "routed_scaling_factor", 1e-6, 1e6 },
    { "swiglu_limit", 1e-6, 1e6 },
    { "rms_norm_eps", 0, 1 },
};

static double real_of(struct reader *reader, const json_t *object, const char *name,
                      double otherwise)
{
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value))
        return otherwise;
    if (!json_is_number(value))
        fail(reader, "%s: must be a number", name);
    double number = json_number_value(value);
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        const struct bound *bound = &bounds[i];
        if (!strcmp(name, bound->name) && !(number >= bound->least && number <= bound->most))
            fail(reader, "%s=%g: must be %g to %g", name, number, bound->least, bound->most);
    }
    return number;
}

static int flag_of(struct reader *reader, const char *name, int otherwise)
{
    const json_t *value = json_object_get(reader->text, name);
    if (!value || json_is_null(value))
        return otherwise;
    if (!json_is_boolean(value))
        fail(reader, "%s: must be true or false", name);
    return json_is_true(value);
}

static const char *text_of(const json_t *object, const char *names)
{
    char found[64];
    const json_t *value = find(object, names, found);
    return json_is_string(value) ? json_string_value(value) : "";
}

static int starts(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

/* ---- Which model ----------------------------------------------------------------------------- */

static void read_name(struct reader *reader)
{
    static const char *const known[] = { "Llama",    "Mistral",   "Qwen3",   "Qwen3_5",
                                         "Deepseek", "Kimi",      "Mixtral", "GptOss",
                                         "Glm4Moe",  "GlmMoeDsa", "MiniMax" };
    struct model *model = reader->model;
    const json_t *list = json_object_get(reader->root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name)
        name = text_of(reader->root, "model_type");
    snprintf(model->name, sizeof(model->name), "%s", *name ? name : "unknown");
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        model->is_known |= starts(model->name, known[i]);
    if (!model->is_known)
        warn(reader, "architecture %s is not known: its operators follow from its fields",
             model->name);
    const char *dtype = text_of(reader->text, "dtype torch_dtype");
    if (!*dtype)
        dtype = text_of(reader->root, "dtype torch_dtype");
    if (*dtype && strcmp(dtype, "bfloat16") && strcmp(dtype, "float16") && strcmp(dtype, "float32"))
        warn(reader, "dtype %.32s is not known: bf16 stands for it", dtype);
    snprintf(model->dtype, sizeof(model->dtype), "%s",
             !strcmp(dtype, "float16")   ? "f16"
             : !strcmp(dtype, "float32") ? "f32"
                                         : "bf16");
}

/* ---- Attention ------------------------------------------------------------------------------- */

static void read_rotary(struct reader *reader)
{
    struct model *model = reader->model;
    const json_t *rope = json_object_get(reader->text, "rope_parameters");
    double part = real_of(reader, reader->text, "partial_rotary_factor",
                          real_of(reader, rope, "partial_rotary_factor", 1.0));
    if (reader->has_failed)
        return;
    int64_t head = model->kv_lora ? model->rope : model->head_dim;
    model->rotary = size_of(reader, "rotary_dim", (int64_t)(part * (double)head), 0);
    if (model->rotary > head)
        fail(reader, "rotary_dim=%lld: must be at most the head's %lld", (long long)model->rotary,
             (long long)head);
    if (flag_of(reader, "mla_use_nope", 0))
        model->rotary = 0;
    model->is_rope_interleaved = model->kv_lora > 0;
    model->rope_base =
        real_of(reader, reader->text, "rope_theta", real_of(reader, rope, "rope_theta", NAN));
}

/* What scores are multiplied by. With yarn, DeepSeek's models have a factor for longer contexts. */
static void read_scale(struct reader *reader)
{
    struct model *model = reader->model;
    const json_t *rope = json_object_get(reader->text, "rope_scaling");
    double factor = real_of(reader, rope, "factor", 1.0);
    double all = real_of(reader, rope, "mscale_all_dim", 0.0);
    double width = real_of(reader, reader->text, "query_pre_attn_scalar", NAN);
    double longer = factor > 1 && all > 0 ? 0.1 * all * log(factor) + 1 : 1;
    model->attention_scale =
        real_of(reader, reader->text, "attention_multiplier", width > 0 ? 1 / sqrt(width) : NAN);
    model->softcap = real_of(reader, reader->text, "attn_logit_softcapping", NAN);
    if (!model->kv_lora)
        return;
    model->latent_scale = longer * longer / sqrt((double)model->head_dim);
    if (longer > 1)
        model->attention_scale = model->latent_scale;
}

/* Layers with a window, of layer_types; without the list all that attend. */
static void read_window(struct reader *reader, int64_t attending)
{
    struct model *model = reader->model;
    const json_t *types = json_object_get(reader->text, "layer_types");
    model->window = size_of(reader, "sliding_window", 0, 0);
    if (!model->window || !flag_of(reader, "use_sliding_window", 1))
        model->window = 0;
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        model->windowed += type && !strcmp(type, "sliding_attention");
    }
    if (!json_is_array(types) && model->window)
        model->windowed = attending;
    if (!model->window)
        model->windowed = 0;
}

static void read_attention(struct reader *reader)
{
    struct model *model = reader->model;
    char found[64];
    model->heads = required(reader, "num_attention_heads");
    model->kv_heads = size_of(reader, "num_key_value_heads", model->heads, 1);
    model->kv_lora = size_of(reader, "kv_lora_rank", 0, 0);
    if (model->kv_lora) {
        model->q_lora = size_of(reader, "q_lora_rank", 0, 0);
        model->nope = required(reader, "qk_nope_head_dim");
        model->rope = required(reader, "qk_rope_head_dim");
        model->v_dim = required(reader, "v_head_dim");
        model->kv_heads = model->heads;
        model->head_dim = model->nope + model->rope;
        model->index_heads = size_of(reader, "index_n_heads", 0, 0);
        model->index_dim = size_of(reader, "index_head_dim", 0, 0);
        model->index_topk = size_of(reader, "index_topk", 0, 0);
        if (model->index_heads && !(model->index_dim && model->index_topk))
            fail(reader, "index_n_heads=%lld: must come with index_head_dim and index_topk",
                 (long long)model->index_heads);
    } else {
        if (model->heads && model->hidden % model->heads && !find(reader->text, "head_dim", found))
            fail(reader,
                 "num_attention_heads=%lld: must divide hidden_size=%lld, or head_dim be "
                 "given",
                 (long long)model->heads, (long long)model->hidden);
        model->head_dim =
            size_of(reader, "head_dim", model->heads ? model->hidden / model->heads : 0, 1);
    }
    if (model->kv_heads && model->heads % model->kv_heads)
        fail(reader, "num_key_value_heads=%lld: must divide num_attention_heads=%lld",
             (long long)model->kv_heads, (long long)model->heads);
    const char *name = model->name;
    model->is_gated = flag_of(reader, "attn_output_gate",
                              starts(name, "Qwen3Next") || starts(name, "Qwen3_5") ||
                                  (starts(name, "KimiK3") && model->kv_lora));
    model->has_sinks = starts(name, "GptOss");
    model->has_qkv_bias = flag_of(reader, "attention_bias", 0);
    model->has_o_bias = model->has_qkv_bias && !starts(name, "Glm");
    if (!model->kv_lora && (starts(name, "Qwen3") || flag_of(reader, "use_qk_norm", 0)))
        model->qk_norm = !strcmp(text_of(reader->text, "qk_norm_type"), "per_layer")
                             ? MODEL_NORM_ROW
                             : MODEL_NORM_HEAD;
    read_rotary(reader);
    read_scale(reader);
}

/* ---- Linear attention ------------------------------------------------------------------------ */

static void read_kda(struct reader *reader, const json_t *config)
{
    struct model *model = reader->model;
    const json_t *layers = json_object_get(config, "kda_layers");
    model->linear = MODEL_KDA;
    model->linear_layers = (int64_t)json_array_size(layers);
    model->linear_k_heads = size_in(reader, config, "num_heads", model->heads, 1);
    model->linear_v_heads = model->linear_k_heads;
    model->linear_k_dim = size_in(reader, config, "head_dim", 128, 1);
    model->linear_v_dim = model->linear_k_dim;
    model->conv = size_in(reader, config, "short_conv_kernel_size", 4, 1);
    model->lower_bound = real_of(reader, config, "gate_lower_bound",
                                 real_of(reader, reader->text, "gate_lower_bound", NAN));
    model->has_full_gate = json_is_true(json_object_get(config, "use_full_rank_gate")) ||
                           flag_of(reader, "use_full_rank_gate", 0);
}

static void read_gdn(struct reader *reader)
{
    struct model *model = reader->model;
    const json_t *types = json_object_get(reader->text, "layer_types");
    int64_t interval = size_of(reader, "full_attention_interval", 4, 1);
    model->linear = MODEL_GDN;
    model->linear_v_heads = required(reader, "linear_num_value_heads");
    model->linear_k_heads = required(reader, "linear_num_key_heads");
    model->linear_k_dim = size_of(reader, "linear_key_head_dim", 128, 1);
    model->linear_v_dim = size_of(reader, "linear_value_head_dim", 128, 1);
    model->conv = size_of(reader, "linear_conv_kernel_dim", 4, 1);
    for (int64_t i = 0; i < model->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        model->linear_layers += type ? !strcmp(type, "linear_attention") : (i + 1) % interval != 0;
    }
    if (model->linear_k_heads && model->linear_v_heads % model->linear_k_heads)
        fail(reader, "linear_num_value_heads=%lld: must be a multiple of linear_num_key_heads=%lld",
             (long long)model->linear_v_heads, (long long)model->linear_k_heads);
}

static void read_linear(struct reader *reader)
{
    struct model *model = reader->model;
    const json_t *config = json_object_get(reader->text, "linear_attn_config");
    char found[64];
    model->lower_bound = NAN;
    if (json_is_object(config) && json_array_size(json_object_get(config, "kda_layers")))
        read_kda(reader, config);
    else if (find(reader->text, "linear_num_value_heads", found))
        read_gdn(reader);
    if (model->linear_layers > model->layers)
        fail(reader, "num_hidden_layers=%lld: must be at least the %lld layers of linear attention",
             (long long)model->layers, (long long)model->linear_layers);
}

/* ---- Feed-forward ---------------------------------------------------------------------------- */

/* Layers without experts: a prefix, those listed, and with a step those between. */
static int64_t count_dense(struct reader *reader)
{
    const struct model *model = reader->model;
    const json_t *only = json_object_get(reader->text, "mlp_only_layers");
    int64_t first = size_of(reader, "first_k_dense_replace", 0, 0), count = 0;
    int64_t step = size_of(reader, "decoder_sparse_step moe_layer_freq", 1, 1);
    for (int64_t i = 0; i < model->layers; i++) {
        int is_listed = 0;
        for (size_t j = 0; j < json_array_size(only); j++)
            is_listed |= json_integer_value(json_array_get(only, j)) == i;
        count += i < first || is_listed || (i + 1 - first) % step != 0;
    }
    return count;
}

static void read_shared(struct reader *reader)
{
    struct model *model = reader->model;
    char found[64];
    int64_t width = size_of(reader, "shared_expert_intermediate_size", 0, 0);
    int64_t count = size_of(reader, "n_shared_experts num_shared_experts", 0, 0);
    if (width && count && find(reader->text, "n_shared_experts num_shared_experts", found))
        fail(reader, "shared_expert_intermediate_size=%lld: must not come with %s",
             (long long)width, found);
    model->shared_inter = width ? width : count * model->expert_inter;
    model->has_shared_gate = width > 0;
}

static void read_router(struct reader *reader)
{
    struct model *model = reader->model;
    const char *scoring = text_of(reader->text, "scoring_func moe_router_activation_func");
    const char *name = model->name;
    int is_biased = starts(name, "Deepseek") || starts(name, "Kimi") || starts(name, "Glm") ||
                    starts(name, "MiniMax");
    model->is_sigmoid = *scoring ? !strcmp(scoring, "sigmoid") : is_biased;
    model->has_router_bias = is_biased || flag_of(reader, "use_routing_bias", 0);
    model->has_router_linear_bias = starts(name, "GptOss");
    model->has_expert_bias = starts(name, "GptOss");
    model->is_renormalized =
        flag_of(reader, "norm_topk_prob", flag_of(reader, "moe_renormalize", 1));
    model->groups = size_of(reader, "n_group num_expert_group", 1, 1);
    model->topk_group = size_of(reader, "topk_group", 1, 1);
    model->scaling = real_of(reader, reader->text, "routed_scaling_factor", 1.0);
    model->is_router_f32 = starts(name, "MiniMax") || starts(name, "KimiK3");
    if (model->experts % model->groups)
        fail(reader, "n_group=%lld: must divide the %lld experts", (long long)model->groups,
             (long long)model->experts);
    if (model->topk_group > model->groups)
        fail(reader, "topk_group=%lld: must be at most n_group=%lld", (long long)model->topk_group,
             (long long)model->groups);
}

static void read_feed_forward(struct reader *reader)
{
    struct model *model = reader->model;
    const char *act = text_of(reader->text, "hidden_act hidden_activation");
    int is_tanh = !strcmp(act, "gelu_pytorch_tanh") || !strcmp(act, "gelu_new");
    if (!*act)
        act = starts(model->name, "KimiK3") ? "situ" : "silu";
    snprintf(model->activation, sizeof(model->activation), "%s",
             is_tanh                 ? "gelu_tanh"
             : !strcmp(act, "swish") ? "silu"
                                     : act);
    model->has_mlp_bias = flag_of(reader, "mlp_bias", 0);
    model->swiglu_limit = NAN;
    model->experts = size_of(reader, "n_routed_experts num_experts num_local_experts", 0, 0);
    if (!model->experts) {
        model->dense_inter = required(reader, "intermediate_size");
        model->dense_layers = model->layers;
        return;
    }
    model->topk = required(reader, "num_experts_per_tok num_experts_per_token experts_per_token");
    model->expert_inter = size_of(reader, "moe_intermediate_size", 0, 1);
    if (!model->expert_inter)
        model->expert_inter = required(reader, "intermediate_size");
    if (model->topk > model->experts)
        fail(reader, "num_experts_per_tok=%lld: must be at most the %lld experts",
             (long long)model->topk, (long long)model->experts);
    model->dense_layers = count_dense(reader);
    if (model->dense_layers)
        model->dense_inter = required(reader, "intermediate_size");
    model->latent = size_of(reader, "routed_expert_hidden_size", 0, 0);
    model->swiglu_limit = real_of(reader, reader->text, "swiglu_limit", NAN);
    read_shared(reader);
    read_router(reader);
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* Whether only experts are quantised: mxfp4 is made for them, and of other methods the list of
 * what is left out tells, if there is one. */
static int is_of_experts(const json_t *config)
{
    const json_t *ignored = json_object_get(config, "ignore");
    int is_attention_out = !json_is_array(ignored);
    for (size_t i = 0; i < json_array_size(ignored); i++) {
        const char *name = json_string_value(json_array_get(ignored, i));
        is_attention_out |= name && strstr(name, "self_attn");
    }
    const char *method = text_of(config, "quant_method");
    return !strcmp(method, "mxfp4") || (!strcmp(method, "compressed-tensors") && is_attention_out);
}

static void read_quantisation(struct reader *reader)
{
    struct model *model = reader->model;
    const json_t *config = json_object_get(reader->root, "quantization_config");
    if (!json_is_object(config))
        config = json_object_get(reader->text, "quantization_config");
    snprintf(model->quant, sizeof(model->quant), "%s", text_of(config, "quant_method"));
    const json_t *block = json_object_get(config, "weight_block_size");
    if (json_array_size(block) == 2) {
        model->block_n = json_integer_value(json_array_get(block, 0));
        model->block_k = json_integer_value(json_array_get(block, 1));
        if (model->block_n < 1 || model->block_k < 1)
            fail(reader, "weight_block_size=[%lld, %lld]: must be positive",
                 (long long)model->block_n, (long long)model->block_k);
    }
    model->has_plain_layers = model->experts && !model->block_n && is_of_experts(config);
}

/* The part that reads images is not planned, but said. */
static void read_vision(struct reader *reader)
{
    const json_t *vision = json_object_get(reader->root, "vision_config");
    struct model *model = reader->model;
    if (!json_is_object(vision))
        return;
    model->vision_layers =
        size_in(reader, vision, "depth num_hidden_layers vt_num_hidden_layers", 1, 1);
    model->vision_hidden = size_in(reader, vision, "hidden_size vt_hidden_size", 0, 0);
}

static void read_all(struct reader *reader)
{
    struct model *model = reader->model;
    read_name(reader);
    model->hidden = required(reader, "hidden_size");
    model->layers = required(reader, "num_hidden_layers");
    model->vocab = required(reader, "vocab_size");
    if (model->layers > 10000)
        fail(reader, "num_hidden_layers=%lld: must be at most 10000", (long long)model->layers);
    if (reader->has_failed)
        return;
    read_attention(reader);
    read_linear(reader);
    read_window(reader, model->layers - model->linear_layers);
    read_feed_forward(reader);
    read_quantisation(reader);
    model->mtp =
        size_of(reader, "num_nextn_predict_layers mtp_num_hidden_layers num_mtp_modules", 0, 0);
    model->has_residual_mixing = starts(model->name, "KimiK3");
    model->has_centred_norms = starts(model->name, "Qwen3Next") || starts(model->name, "Qwen3_5");
    model->norm_eps = real_of(reader, reader->text, "rms_norm_eps", NAN);
    read_vision(reader);
    if (starts(model->name, "MiniMax"))
        model->mtp = 0; /* declared, and not loaded by engines */
}

/* Takes root, which is NULL with an error of jansson's if there is none. */
static int read_root(json_t *root, const json_error_t *error, const char *path,
                     struct reader *reader)
{
    char *why = reader->why;
    int size = reader->size;
    memset(reader->model, 0, sizeof(*reader->model));
    reader->warning[0] = why[0] = 0;
    if (!root && error->line < 0) {
        snprintf(why, (size_t)size, "model=%s: %s", path, error->text);
        return -1;
    }
    if (!root) {
        snprintf(why, (size_t)size, "model=%s: must be a JSON object: line %d: %s", path,
                 error->line, error->text);
        return -1;
    }
    if (!json_is_object(root)) {
        snprintf(why, (size_t)size, "model=%s: must be a JSON object, and is an array", path);
        json_decref(root);
        return -1;
    }
    reader->root = root;
    reader->text = json_object_get(root, "text_config");
    if (!json_is_object(reader->text))
        reader->text = root;
    read_all(reader);
    json_decref(root);
    return reader->has_failed ? -1 : 0;
}

int model_read(const char *path, struct model *model, char *warning, char *why, int size)
{
    struct reader reader = { .model = model, .warning = warning, .why = why, .size = size };
    json_error_t error;
    struct stat info;
    char inside[PATH_MAX];
    if (!stat(path, &info) && S_ISDIR(info.st_mode)) {
        snprintf(inside, sizeof(inside), "%s/config.json", path);
        path = inside;
    }
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    return read_root(root, &error, path, &reader);
}

int model_read_text(const char *text, const char *path, struct model *model, char *warning,
                    char *why, int size)
{
    struct reader reader = { .model = model, .warning = warning, .why = why, .size = size };
    json_error_t error;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    return read_root(root, &error, path, &reader);
}
