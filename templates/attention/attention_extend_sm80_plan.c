/* The CUDA variant of attention_extend: which defines and arguments the kernel of
 * attention_sm80.cu gets. */
#define QUERN_DEF "attention/attention_extend.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_cuda.h"
#include "attention_extend.h"

static struct attention_work work_of(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct attention_work){
        .d = v->d,
        .dv = v->dv,
        .hq = v->hq,
        .hkv = v->hkv,
        .b = v->b,
        .queries = v->t,
        .is_varlen = 1,
        .has_prefix = 1,
        .is_converted = v->kv_dtype != v->dtype,
    };
}

static struct attention_work work_of_problem(const struct quern_problem *problem)
{
    struct attention_work work = work_of(problem->bucket);
    work.l1_bytes = problem->profile->l1_bytes;
    work.is_narrow |= problem->alignment[ARRAY_q] < 16;
    work.is_narrow |= problem->alignment[ARRAY_k] < 16;
    work.is_narrow |= problem->alignment[ARRAY_v] < 16;
    work.is_narrow |= problem->alignment[ARRAY_k_cache] < 16;
    work.is_narrow |= problem->alignment[ARRAY_v_cache] < 16;
    work.is_narrow |= problem->alignment[ARRAY_o] < 16;
    return work;
}

static int supports(const struct quern_problem *problem)
{
    const struct attention_work work = work_of_problem(problem);
    return values_of(problem->bucket)->dtype != QUERN_F32 &&
           attention_cuda_supports(problem, &work);
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct attention_work work = work_of_problem(problem);
    return attention_cuda_legal(&work, config, why);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct attention_work work = work_of_problem(problem);
    attention_cuda_heuristic(&work, config);
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    const struct attention_work work = work_of_problem(problem);
    return attention_cuda_candidates(&work, configs, max);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    const struct attention_work work = work_of_problem(problem);
    struct quern_step *step = attention_cuda_plan(&work, config, &attention_extend_sm80, plan);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "CAUSAL", v->causal);
    quern_step_define(step, "VARLEN", 1);
    quern_step_define(step, "PREFIX", v->prefix == ATTENTION_PREFIX_INDICES ? 2 : 1);
    quern_step_define(step, "CACHE_DTYPE", v->kv_dtype);
    quern_step_define(step, "KV_SCALE", v->kv_scale);
    quern_step_define(step, "ALIGN_K_CACHE", problem->alignment[ARRAY_k_cache]);
    quern_step_define(step, "ALIGN_V_CACHE", problem->alignment[ARRAY_v_cache]);
    quern_step_define(step, "HAS_SOFTCAP", !isnan(v->softcap));
    quern_step_define(step, "SINKS_DTYPE", v->sinks ? v->sinks_dtype : 0);
    quern_step_define(step, "HAS_LSE", v->lse);
    quern_step_define(step, "ALIGN_Q", problem->alignment[ARRAY_q]);
    quern_step_define(step, "ALIGN_K", problem->alignment[ARRAY_k]);
    quern_step_define(step, "ALIGN_V", problem->alignment[ARRAY_v]);
    quern_step_define(step, "ALIGN_O", problem->alignment[ARRAY_o]);
}

static struct attention_cache cache_of(const struct values *v, const struct quern_array *cache,
                                       const struct quern_array *scale)
{
    const int64_t bytes = (int64_t)quern_dtype_bytes((int)v->kv_dtype);
    return (struct attention_cache){ cache->data, cache->strides[0] * bytes,
                                     cache->strides[1] * bytes, cache->strides[2] * bytes,
                                     scale->data };
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct attention_work work = work_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct attention_cuda_args args = {
        .q = attention_cuda_rows(&arrays[ARRAY_q], 0),
        .k = attention_cuda_rows(&arrays[ARRAY_k], 0),
        .v = attention_cuda_rows(&arrays[ARRAY_v], 0),
        .o = attention_cuda_rows(&arrays[ARRAY_o], 0),
        .lse = arrays[ARRAY_lse].data,
        .lse_token = arrays[ARRAY_lse].strides[0],
        .sinks = arrays[ARRAY_sinks].data,
        .cu_seqlens_q = arrays[ARRAY_cu_seqlens_q].data,
        .cu_seqlens_k = arrays[ARRAY_cu_seqlens_q].data,
        .b = (int32_t)v->b,
        .sq = (int32_t)v->t,
        .sk = (int32_t)v->t,
        .k_cache = cache_of(v, &arrays[ARRAY_k_cache], &arrays[ARRAY_k_scale]),
        .v_cache = cache_of(v, &arrays[ARRAY_v_cache], &arrays[ARRAY_v_scale]),
        .table = arrays[v->prefix ? ARRAY_kv_indices : ARRAY_page_table].data,
        .lens = arrays[v->prefix ? ARRAY_kv_indptr : ARRAY_prefix_lens].data,
        .table_row = arrays[ARRAY_page_table].strides[0],
        .max_pages = (int32_t)v->max_pages,
        .pages = (int32_t)v->pages,
        .page_bits = __builtin_ctzll((uint64_t)v->page),
        .indices = (int32_t)v->indices,
        .hq = (int32_t)v->hq,
        .group = (int32_t)(v->hq / v->hkv),
        .window = (int32_t)(v->window < 1 << 30 ? v->window : 1 << 30),
    };
    attention_cuda_scale(&args, v->d, v->scale, v->softcap);
    int64_t blocks =
        attention_cuda_grid(&work, binding->config[ATTENTION_BM], binding->config[ATTENTION_PACK],
                            binding->profile->l2_bytes, &args);
    QUERN_BIND(&launch->steps[0], args, blocks, 1, 1);
}

const struct quern_variant attention_extend_sm80 = {
    .name = "attention_extend_sm80",
    .doc = "flash attention by mma.sync, fed by cp.async; bf16, f16",
    .device = QUERN_CUDA,
    .knobs = attention_cuda_knobs,
    .knob_count = ATTENTION_KNOBS,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
