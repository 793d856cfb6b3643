/* attention_prefill_sm80, host side: the defines and arguments that attention_sm80.cu gets, which
 * for the most part are those of attention_sm90.cu too. */
#define QUERN_DEF "attention/attention_prefill.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_prefill_cuda.h"

struct attention_work attention_prefill_work(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct attention_work){
        .d = v->d,
        .dv = v->dv,
        .hq = v->hq,
        .hkv = v->hkv,
        .b = v->b,
        .queries = v->sq,
        .is_varlen = (int)v->varlen,
    };
}

static struct attention_work work_of_problem(const struct quern_problem *problem)
{
    struct attention_work work = attention_prefill_work(problem->bucket);
    work.l1_bytes = problem->profile->l1_bytes;
    work.is_narrow |= problem->alignment[ARRAY_q] < 16;
    work.is_narrow |= problem->alignment[ARRAY_k] < 16;
    work.is_narrow |= problem->alignment[ARRAY_v] < 16;
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

void attention_prefill_define(const struct quern_problem *problem, struct quern_step *step)
{
    const struct values *v = values_of(problem->bucket);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "CAUSAL", v->causal);
    quern_step_define(step, "VARLEN", v->varlen);
    quern_step_define(step, "HAS_SOFTCAP", !isnan(v->softcap));
    quern_step_define(step, "SINKS_DTYPE", v->sinks ? v->sinks_dtype : 0);
    quern_step_define(step, "HAS_LSE", v->lse);
    quern_step_define(step, "ALIGN_Q", problem->alignment[ARRAY_q]);
    quern_step_define(step, "ALIGN_K", problem->alignment[ARRAY_k]);
    quern_step_define(step, "ALIGN_V", problem->alignment[ARRAY_v]);
    quern_step_define(step, "ALIGN_O", problem->alignment[ARRAY_o]);
}

struct attention_cuda_args attention_prefill_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct attention_cuda_args args = {
        .q = attention_cuda_rows(&arrays[ARRAY_q], 1),
        .k = attention_cuda_rows(&arrays[ARRAY_k], 1),
        .v = attention_cuda_rows(&arrays[ARRAY_v], 1),
        .o = attention_cuda_rows(&arrays[ARRAY_o], 1),
        .lse = arrays[ARRAY_lse].data,
        .lse_sequence = arrays[ARRAY_lse].strides[0],
        .lse_token = arrays[ARRAY_lse].strides[1],
        .sinks = arrays[ARRAY_sinks].data,
        .cu_seqlens_q = arrays[ARRAY_cu_seqlens_q].data,
        .cu_seqlens_k = arrays[ARRAY_cu_seqlens_k].data,
        .b = (int32_t)v->b,
        .sq = (int32_t)v->sq,
        .sk = (int32_t)v->sk,
        .hq = (int32_t)v->hq,
        .group = (int32_t)(v->hq / v->hkv),
        .window = (int32_t)(v->window < 1 << 30 ? v->window : 1 << 30),
    };
    attention_cuda_scale(&args, v->d, v->scale, v->softcap);
    return args;
}

/* ---- attention_prefill_sm80 ------------------------------------------------------------------ */

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct attention_work work = work_of_problem(problem);
    attention_prefill_define(problem,
                             attention_cuda_plan(&work, config, &attention_prefill_sm80, plan));
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct attention_work work = attention_prefill_work(binding->spec);
    const int32_t *config = binding->config;
    struct attention_cuda_args args = attention_prefill_arguments(binding);
    int64_t blocks = attention_cuda_grid(&work, config[ATTENTION_BM], config[ATTENTION_PACK],
                                         binding->profile->l2_bytes, &args);
    QUERN_BIND(&launch->steps[0], args, blocks, 1, 1);
}

const struct quern_variant attention_prefill_sm80 = {
    .name = "attention_prefill_sm80",
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
