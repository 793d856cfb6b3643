/* The host side of attention_prefill_cpu. */
#define QUERN_DEF "attention/attention_prefill.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_cpu_knobs.h"
#include "attention_prefill.h"

static struct attention_cpu_shape shape_of(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    const int64_t group = v->hq / v->hkv, parts = v->varlen && v->b ? v->b : 1;
    return (struct attention_cpu_shape){ .dtype = v->dtype,
                                         .d = v->d,
                                         .dv = v->dv,
                                         .group = group,
                                         .lines = v->b * v->hkv,
                                         .rows = v->sq / parts * group };
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    const struct attention_cpu_shape shape = shape_of(problem->bucket);
    return attention_cpu_legal(problem->target, &shape, config, why);
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct attention_cpu_shape shape = shape_of(problem->bucket);
    attention_cpu_heuristic(problem, &shape, config);
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    (void)problem;
    return attention_cpu_candidates(configs, max);
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "attention", "attention/attention_cpu.c", "attention_main");
    const struct values *v = values_of(problem->bucket);
    const struct {
        const char *name;
        int64_t value;
    } defines[] = {
        { "DTYPE", v->dtype },     { "KEY_WIDTH", v->d },
        { "VALUE_WIDTH", v->dv },  { "CAUSAL", v->causal },
        { "VARLEN", v->varlen },   { "HAS_SOFTCAP", !isnan(v->softcap) },
        { "HAS_SINKS", v->sinks }, { "SINKS_DTYPE", v->sinks_dtype },
        { "HAS_LSE", v->lse },     { "HAS_WINDOW", v->window > 0 },
    };
    for (int i = 0; i < (int)(sizeof(defines) / sizeof(defines[0])); i++)
        quern_step_define(step, defines[i].name, defines[i].value);
    quern_step_define_config(step, &attention_prefill_cpu, config);
}

static struct attention_strides strides_of(const struct quern_array *array)
{
    return (struct attention_strides){ array->strides[0], array->strides[1], array->strides[2] };
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct attention_cpu_args args = {
        .q = arrays[ARRAY_q].data,
        .k = arrays[ARRAY_k].data,
        .v = arrays[ARRAY_v].data,
        .sinks = arrays[ARRAY_sinks].data,
        .o = arrays[ARRAY_o].data,
        .lse = arrays[ARRAY_lse].data,
        .cu_seqlens_q = arrays[ARRAY_cu_seqlens_q].data,
        .cu_seqlens_k = arrays[ARRAY_cu_seqlens_k].data,
        .q_step = strides_of(&arrays[ARRAY_q]),
        .k_step = strides_of(&arrays[ARRAY_k]),
        .v_step = strides_of(&arrays[ARRAY_v]),
        .o_step = strides_of(&arrays[ARRAY_o]),
        .lse_step = strides_of(&arrays[ARRAY_lse]),
        .b = v->b,
        .sq = v->sq,
        .sk = v->sk,
        .group = v->hq / v->hkv,
        .window = v->window,
        .scale = isnan(v->scale) ? (float)(1 / sqrt((double)v->d)) : (float)v->scale,
        .softcap = isnan(v->softcap) ? 0 : (float)v->softcap,
    };
    attention_cpu_set_tiles(&args, (int)v->varlen, binding->config[ATTENTION_CPU_BM]);
    ATTENTION_CPU_BIND(&launch->steps[0], args, v->hkv);
}

const struct quern_variant attention_prefill_cpu = {
    .name = "attention_prefill_cpu",
    .doc = "blocks of rows and keys; AMX tiles, bf16 pairs or f32 vectors",
    .device = QUERN_CPU,
    .knobs = attention_cpu_knobs,
    .knob_count = ATTENTION_CPU_KNOBS,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
