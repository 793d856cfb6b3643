/* kda_decode: the gated delta rule for one or a few tokens of each sequence. The family, what its
 * variants share, and the CPU variant:
 *
 *     from    initial_state, or the pool, or nothing: states begin as 0
 *     to      final_state, or the pool in place, or step_states, or nothing
 *
 *     a head's state   [k, v] or [v, k]; columns of v are independent of each other, so that any
 *                      slab of them can be computed apart: the one thing that variants choose
 *
 * A unit of the reference is a value head of a sequence. */
#define QUERN_DEF "kda/kda_decode.def"
#include <quern/family_def.h>

#include <math.h>

#include "kda_decode.h"
#include "kda_draw.h"
#include "kda_indices.h"
#include "kda_kinds.h"

/* ---- What both variants share ---------------------------------------------------------------- */

int kda_decode_from(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->pool ? ARRAY_states : v->initial ? ARRAY_initial_state : -1;
}

int kda_decode_to(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    if (v->save)
        return ARRAY_step_states;
    return v->pool ? ARRAY_states : v->final ? ARRAY_final_state : -1;
}

void kda_decode_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "STEPS", v->steps);
    quern_step_define(step, "H", v->h);
    quern_step_define(step, "HV", v->hv);
    quern_step_define(step, "K", v->k);
    quern_step_define(step, "V", v->v);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "STATE", v->state);
    quern_step_define(step, "G_DTYPE", v->g);
    quern_step_define(step, "BETA_DTYPE", v->beta);
    quern_step_define(step, "GATE", v->gate);
    quern_step_define(step, "IS_SCALAR", v->decay == KDA_DECAY_SCALAR);
    quern_step_define(step, "L2NORM", v->l2norm);
    quern_step_define(step, "BETA_LOGITS", v->beta_logits);
    quern_step_define(step, "NEG_EIGVAL", v->neg_eigval);
    quern_step_define(step, "HAS_BIAS", v->gate && v->dt_bias);
    quern_step_define(step, "IS_VK", v->layout == KDA_LAYOUT_VK);
    quern_step_define(step, "POOL", v->pool);
    quern_step_define(step, "HAS_FROM", kda_decode_from(bucket) >= 0);
    quern_step_define(step, "HAS_TO", kda_decode_to(bucket) >= 0);
    quern_step_define(step, "SAVE", v->save);
    quern_step_define(step, "TREE", v->tree);
}

static struct kda_rows rows_of(const struct quern_array *array)
{
    return (struct kda_rows){ array->data, array->strides[0], array->strides[1],
                              array->strides[2] };
}

/* Of an array [n, hv, rows, width], or with tokens after n; index -1: none. */
static struct kda_states states_of(const struct quern_array *arrays, int index)
{
    if (index < 0)
        return (struct kda_states){ 0 };
    const struct quern_array *array = &arrays[index];
    const int has_tokens = index == ARRAY_step_states;
    return (struct kda_states){ .data = array->data,
                                .sequence = array->strides[0],
                                .token = has_tokens ? array->strides[1] : 0,
                                .head = array->strides[1 + has_tokens],
                                .row = array->strides[2 + has_tokens] };
}

struct kda_decode_args kda_decode_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct kda_decode_args args = {
        .q = rows_of(&arrays[ARRAY_q]),
        .k = rows_of(&arrays[ARRAY_k]),
        .v = rows_of(&arrays[ARRAY_v]),
        .g = rows_of(&arrays[ARRAY_g]),
        .beta = rows_of(&arrays[ARRAY_beta]),
        .o = rows_of(&arrays[ARRAY_o]),
        .from = states_of(arrays, kda_decode_from(binding->spec)),
        .to = states_of(arrays, kda_decode_to(binding->spec)),
        .A_log = arrays[ARRAY_A_log].data,
        .dt_bias = arrays[ARRAY_dt_bias].data,
        .slots = arrays[ARRAY_slots].data,
        .parents = arrays[ARRAY_parents].data,
        .n = v->n,
        .capacity = v->capacity,
        .scale = (float)(isnan(v->scale) ? 1 / sqrt((double)v->k) : v->scale),
        .lower_bound = (float)v->lower_bound,
    };
    if (args.dt_bias)
        args.dt_bias_head = arrays[ARRAY_dt_bias].strides[0];
    if (args.parents)
        args.parents_sequence = arrays[ARRAY_parents].strides[0];
    return args;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

enum { BV, HEADS, KNOB_COUNT };
static const struct quern_knob cpu_knobs[] = {
    [BV] = { "bv", 16, 256, "columns of v that a block computes" },
    [HEADS] = { "heads", 1, 16, "value heads that it computes them of" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    if (config[BV] & (config[BV] - 1) || config[BV] > v->v)
        return quern_refuse(why, "config bv=%d: must be a power of two, at most v=%lld", config[BV],
                            (long long)v->v);
    return QUERN_OK;
}

/* Whole heads, and several, which memory gives best; less where threads would have no work. Slabs
 * of several tokens fit a first-level cache twice. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t least = 4 * (int64_t)problem->profile->cores;
    config[BV] = v->steps == 1 ? (int32_t)v->v : v->k < 256 ? 64 : 32;
    config[HEADS] = 8;
    while (config[HEADS] > 1 && v->n * (v->hv / config[HEADS]) * (v->v / config[BV]) < least)
        config[HEADS] /= 2;
    while (config[BV] > 32 && v->n * v->hv * (v->v / config[BV]) < least)
        config[BV] /= 2;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t list[][KNOB_COUNT] = { { 128, 8 }, { 128, 4 }, { 128, 16 }, { 64, 8 },
                                                { 128, 1 }, { 64, 1 },  { 256, 4 },  { 256, 1 },
                                                { 32, 1 },  { 16, 1 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][BV] = list[count][BV];
        configs[count][HEADS] = list[count][HEADS];
    }
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "decode", "kda/kda_decode_cpu.c", "kda_decode_main");
    kda_decode_define(step, problem->bucket);
    quern_step_define_config(step, &kda_decode_cpu, config);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct kda_decode_args args = kda_decode_arguments(binding);
    int64_t groups = (v->hv + binding->config[HEADS] - 1) / binding->config[HEADS];
    QUERN_BIND(&launch->steps[0], args, groups * (v->v / binding->config[BV]), v->n, 1);
}

const struct quern_variant kda_decode_cpu = {
    .name = "kda_decode_cpu",
    .doc = "a block is a slab of one head's state, read and written once",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = KNOB_COUNT,
    .supports = cpu_supports,
    .legal = cpu_legal,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- Rules ----------------------------------------------------------------------------------- */

/* Grids and slots are counted in 31 bits. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "n", v->n, 1 << 30 },
                  { "steps", v->steps, KDA_DECODE_STEPS },
                  { "h", v->h, 1 << 16 },
                  { "hv", v->hv, 1 << 16 },
                  { "capacity", v->capacity, 1 << 30 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

static int check_heads(const struct values *v, struct quern_message *why)
{
    if (v->hv % v->h)
        return quern_refuse(why, "hv=%lld: must be a multiple of h=%lld", (long long)v->hv,
                            (long long)v->h);
    if (v->k != 64 && v->k != 128 && v->k != 256)
        return quern_refuse(why, "k=%lld: must be 64, 128 or 256", (long long)v->k);
    if (v->v != 64 && v->v != 128 && v->v != 256)
        return quern_refuse(why, "v=%lld: must be 64, 128 or 256", (long long)v->v);
    return QUERN_OK;
}

static int check_gate(const struct values *v, struct quern_message *why)
{
    if (v->gate == KDA_GATE_BOUNDED && !(v->lower_bound >= -5 && v->lower_bound < 0))
        return quern_refuse(why, "lower_bound=%g: must be from -5 up to, not including, 0",
                            v->lower_bound);
    if (v->gate != KDA_GATE_BOUNDED && !isnan(v->lower_bound))
        return quern_refuse(why, "lower_bound=%g: must not be given unless gate=bounded",
                            v->lower_bound);
    if (v->dt_bias && v->gate == KDA_GATE_NONE)
        return quern_refuse(why, "dt_bias=1: must be 0 with gate=none");
    return QUERN_OK;
}

static int check_states(const struct values *v, struct quern_message *why)
{
    if (v->pool && v->capacity < 1)
        return quern_refuse(why, "capacity=%lld: must be at least 1 with pool=1",
                            (long long)v->capacity);
    if (!v->pool && v->capacity)
        return quern_refuse(why, "capacity=%lld: must be 0 without pool=1", (long long)v->capacity);
    if (v->pool && v->initial)
        return quern_refuse(why, "initial=1: must be 0 with pool=1");
    if (v->tree && !v->save)
        return quern_refuse(why, "tree=1: must be 0 unless save=states");
    return QUERN_OK;
}

/* As many value heads as heads, unless it is said. */
static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->hv == QUERN_REQUIRED)
        v->hv = v->h;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why) || check_heads(v, why) || check_gate(v, why))
        return QUERN_INVALID;
    return check_states(v, why);
}

/* ---- Slots ----------------------------------------------------------------------------------- */

/* Of the pool the slots in use; of the other arrays everything. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    const struct values *v = values_of(spec);
    const struct quern_array *array = &arrays[index];
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_states && v->pool) {
        kda_touch_slots(array, &shape, host[ARRAY_slots], v->n, ranges);
        return;
    }
    int64_t last = 0;
    for (int i = 0; i < shape.rank; i++) {
        if (!shape.dims[i])
            return;
        last += (shape.dims[i] - 1) * (shape.dims[i] > 1 ? array->strides[i] : 0);
    }
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape.dtype));
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    int status = kda_check_slots(host[ARRAY_slots], v->n, v->capacity, !v->save, why);
    return status ? status : kda_check_parents(host[ARRAY_parents], v->n, v->steps, why);
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->n * v->hv;
}

static double rounding(int64_t dtype)
{
    return dtype == QUERN_F32 ? 1e-4 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

/* An array's own rounding. The states of a tree are rounded at every token on the way to theirs,
 * independently, and an error does not grow from there. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    int is_rounded_again = v->tree && v->state != QUERN_F32;
    double path = is_rounded_again ? rounding(v->state) * sqrt((double)v->steps) : 0;
    if (index == ARRAY_o)
        return rounding(v->dtype) + path;
    return is_rounded_again ? path : rounding(v->state);
}

static double array_bytes(const struct quern_spec *spec, int index)
{
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    if (shape.role == QUERN_ABSENT || index == ARRAY_states)
        return 0;
    double bytes = (double)quern_dtype_bytes(shape.dtype);
    for (int i = 0; i < shape.rank; i++)
        bytes *= (double)shape.dims[i];
    return bytes;
}

/* A state a token: decayed, read with the key, updated, read with the query. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double heads = (double)v->n * (double)v->hv, size = (double)(v->k * v->v);
    cost->flops = 7 * heads * size * (double)v->steps;
    cost->bytes = 0;
    for (int i = 0; i < ARRAY_COUNT; i++)
        cost->bytes += array_bytes(spec, i);
    if (v->pool)
        cost->bytes += heads * size * (double)quern_dtype_bytes((int)v->state) * (v->save ? 1 : 2);
}

/* No kernel is made for the pool's size: as many slots as sequences are what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->n = quern_power_of_two_above(v->n);
    v->capacity = v->capacity ? v->n : 0;
}

static const struct quern_variant *const variants[] = { &kda_decode_cuda, &kda_decode_cpu, NULL };

const struct quern_family quern_family_kda_decode = {
    QUERN_FAMILY_TABLES(kda_decode),
    .folder = "kda",
    .doc = "gated delta rule (KDA, GDN): one or a few tokens of each sequence",
    .variants = variants,
    .aliasable = 1u << ARRAY_final_state, /* over initial_state: each element by who reads it */
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = kda_decode_inputs,
    .units = units,
    .reference = kda_decode_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
