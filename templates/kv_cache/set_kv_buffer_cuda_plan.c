/* The host side of set_kv_buffer_cuda: a kernel for rows of heads, another for tokens of 656 bytes.
 */
#define QUERN_DEF "kv_cache/set_kv_buffer.def"
#include <quern/family_def.h>

#include "set_kv_buffer.h"

static const struct quern_knob knobs[] = {
    { "threads", 32, 512, "threads of a block" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[0] & (config[0] - 1))
        return quern_refuse(why, "config threads=%d: must be a power of two", config[0]);
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    config[0] = values_of(problem->bucket)->layout == KV_MLA ? 128 : 256;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t sizes[] = { 256, 128, 64, 512, 32 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    static const struct {
        const char *name;
        int array;
    } accesses[] = { { "K_ACCESS", ARRAY_k },
                     { "V_ACCESS", ARRAY_v },
                     { "Q_ACCESS", ARRAY_q },
                     { "COS_ACCESS", ARRAY_cos_sin },
                     { "K_CACHE_ACCESS", ARRAY_k_cache },
                     { "V_CACHE_ACCESS", ARRAY_v_cache } };
    const int is_mla = values_of(problem->bucket)->layout == KV_MLA;
    struct quern_step *step = quern_plan_kernel(
        plan, "set", is_mla ? "kv_cache/set_kv_buffer_mla.cu" : "kv_cache/set_kv_buffer_cuda.cu",
        is_mla ? "set_kv_buffer_mla" : "set_kv_buffer");
    set_kv_buffer_define(step, problem->bucket);
    for (int i = 0; i < (int)(sizeof(accesses) / sizeof(accesses[0])); i++) {
        int alignment = problem->alignment[accesses[i].array];
        quern_step_define(step, accesses[i].name, alignment ? alignment : 16);
    }
    quern_step_define(step, "THREADS", config[0]);
    step->threads[0] = (uint32_t)config[0];
}

/* As many blocks as the threads' items need; beyond 1024 a multiprocessor they walk on. */
static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct set_kv_buffer_args args = set_kv_buffer_arguments(binding);
    const int64_t rotated = set_kv_buffer_rope_dim(binding->spec);
    const int64_t part = v->rope == KV_ROPE_NEOX ? 16 : 8;
    int64_t items = v->hkv * (rotated / part + (v->d - rotated) / 8 + v->dv / 8);
    items += v->hq * (rotated / part);
    items = v->layout == KV_MLA ? (1 + v->hq) * 32 : items;
    int64_t blocks = (v->t * items + binding->config[0] - 1) / binding->config[0];
    int64_t most = (int64_t)binding->profile->cores * 1024;
    QUERN_BIND(&launch->steps[0], args, blocks < most ? blocks : most, 1, 1);
}

const struct quern_variant set_kv_buffer_cuda = {
    .name = "set_kv_buffer_cuda",
    .doc = "a thread has 8 columns of a head; a warp a token of 656 bytes",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
