/* The host side of kda_prefill_cpu: a block of the grid is a value head of a sequence. */
#define QUERN_DEF "kda/kda_prefill.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_prefill.h"
#include "kda_prefill_args.h"

enum { KNOB_CHUNK, KNOB_AMX };
static const struct quern_knob knobs[] = {
    [KNOB_CHUNK] = { "chunk", 16, 64, "tokens that are worked on together" },
    [KNOB_AMX] = { "amx", 0, 1, "products of bf16 on AMX tiles; else of f32 in vectors" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int has_tiles(const struct quern_problem *problem)
{
    return problem->target->cpu_features & QUERN_CPU_AMX &&
           values_of(problem->bucket)->dtype == QUERN_BF16;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    int32_t chunk = config[KNOB_CHUNK];
    if (chunk & (chunk - 1))
        return quern_refuse(why, "config chunk=%d: must be 16, 32 or 64", chunk);
    if (config[KNOB_AMX] && !has_tiles(problem))
        return quern_refuse(why, "config amx=1: must be 0 unless the target has AMX and "
                                 "dtype=bf16");
    if (config[KNOB_AMX] && chunk < 32)
        return quern_refuse(why, "config chunk=%d: must be 32 or 64 with amx=1", chunk);
    if (config[KNOB_AMX] && values_of(problem->bucket)->neg_eigval)
        return quern_refuse(why, "config amx=1: must be 0 with neg_eigval=1: tiles round too much");
    return QUERN_OK;
}

/* Tiles make the chunk's own products cheap; in vectors a longer chunk has more of them. A chunk
 * costs tiles the same however few its tokens are. */
static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t length = v->t / (v->n ? v->n : 1);
    config[KNOB_AMX] = has_tiles(problem) && !v->neg_eigval && length > 16;
    config[KNOB_CHUNK] = !config[KNOB_AMX] ? 16 : length > 64 ? 64 : 32;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = { { 64, 1 }, { 32, 1 }, { 16, 0 }, { 32, 0 }, { 64, 0 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "prefill", "kda/kda_prefill_cpu.c", "kda_prefill_main");
    const struct values *v = values_of(problem->bucket);
    const struct {
        const char *name;
        int64_t value;
    } defines[] = {
        { "KEY_WIDTH", v->k },
        { "VALUE_WIDTH", v->v },
        { "DTYPE", v->dtype },
        { "STATE_DTYPE", v->state },
        { "G_DTYPE", v->g },
        { "BETA_DTYPE", v->beta },
        { "IS_INDEX_64", v->index == QUERN_I64 },
        { "GATE", v->gate },
        { "DECAY", v->decay },
        { "L2NORM", v->l2norm },
        { "BETA_LOGITS", v->beta_logits },
        { "NEG_EIGVAL", v->neg_eigval },
        { "HAS_BIAS", v->gate && v->dt_bias },
        { "LAYOUT", v->layout },
        { "VARLEN", v->varlen },
        { "POOL", v->pool },
        { "HAS_BEFORE", v->pool || v->initial },
        { "HAS_AFTER", v->pool || v->final },
        { "CHUNK_STATES", v->chunk_states },
    };
    for (int i = 0; i < (int)(sizeof(defines) / sizeof(defines[0])); i++)
        quern_step_define(step, defines[i].name, defines[i].value);
    quern_step_define_config(step, &kda_prefill_cpu, config);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays, *before, *after, *chunks;
    before = &arrays[v->pool ? ARRAY_states : ARRAY_initial_state];
    after = &arrays[v->pool ? ARRAY_states : ARRAY_final_state];
    chunks = &arrays[ARRAY_chunk_states];
    const struct kda_prefill_args args = {
        .q = arrays[ARRAY_q].data,
        .k = arrays[ARRAY_k].data,
        .v = arrays[ARRAY_v].data,
        .g = arrays[ARRAY_g].data,
        .beta = arrays[ARRAY_beta].data,
        .A_log = arrays[ARRAY_A_log].data,
        .dt_bias = arrays[ARRAY_dt_bias].data,
        .cu_seqlens = arrays[ARRAY_cu_seqlens].data,
        .slots = arrays[ARRAY_slots].data,
        .before = before->data,
        .after = after->data,
        .o = arrays[ARRAY_o].data,
        .chunk_states = chunks->data,
        .t = v->t,
        .n = v->n,
        .h = v->h,
        .hv = v->hv,
        .capacity = v->capacity,
        .q_t = arrays[ARRAY_q].strides[0],
        .q_h = arrays[ARRAY_q].strides[1],
        .k_t = arrays[ARRAY_k].strides[0],
        .k_h = arrays[ARRAY_k].strides[1],
        .v_t = arrays[ARRAY_v].strides[0],
        .v_h = arrays[ARRAY_v].strides[1],
        .g_t = arrays[ARRAY_g].strides[0],
        .g_h = arrays[ARRAY_g].strides[1],
        .beta_t = arrays[ARRAY_beta].strides[0],
        .beta_h = arrays[ARRAY_beta].strides[1],
        .o_t = arrays[ARRAY_o].strides[0],
        .o_h = arrays[ARRAY_o].strides[1],
        .bias_h = arrays[ARRAY_dt_bias].strides[0],
        .before_n = before->strides[0],
        .before_h = before->strides[1],
        .before_row = before->strides[2],
        .after_n = after->strides[0],
        .after_h = after->strides[1],
        .after_row = after->strides[2],
        .chunk_n = chunks->strides[0],
        .chunk_h = chunks->strides[1],
        .chunk_row = chunks->strides[2],
        .scale = isnan(v->scale) ? (float)(1 / sqrt((double)v->k)) : (float)v->scale,
        .lower_bound = (float)v->lower_bound,
    };
    QUERN_BIND(&launch->steps[0], args, v->hv, v->n, 1);
}

const struct quern_variant kda_prefill_cpu = {
    .name = "kda_prefill_cpu",
    .doc = "chunks, their decays as running products; AMX tiles or f32 vectors",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
