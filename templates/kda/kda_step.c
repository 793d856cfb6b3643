/* kda_step: filter, gated delta rule and norm of one token of each sequence. The family, what its
 * variants share, and the CPU variant.
 *
 *     group    a head of q and k of a sequence, with its hv / h value heads: the least that can be
 *              computed apart, since all of a group read the filter's states of q and k, which the
 *              call overwrites
 *
 * A unit of the reference is a value head of a sequence. */
#define QUERN_DEF "kda/kda_step.def"
#include <quern/family_def.h>

#include <math.h>

#include "conv_inputs.h"
#include "kda_draw.h"
#include "kda_indices.h"
#include "kda_kinds.h"
#include "kda_norm_args.h"
#include "kda_step.h"

/* ---- What both variants share ---------------------------------------------------------------- */

void kda_step_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "H", v->h);
    quern_step_define(step, "HV", v->hv);
    quern_step_define(step, "K", v->k);
    quern_step_define(step, "V", v->v);
    quern_step_define(step, "W", v->w);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "WEIGHT", v->weight);
    quern_step_define(step, "BIAS", v->bias);
    quern_step_define(step, "ACT", v->act);
    quern_step_define(step, "STATE", v->state);
    quern_step_define(step, "L2NORM", v->l2norm);
    quern_step_define(step, "BETA_LOGITS", v->beta_logits);
    quern_step_define(step, "NEG_EIGVAL", v->neg_eigval);
    quern_step_define(step, "IS_SCALAR", v->decay == KDA_DECAY_SCALAR);
    quern_step_define(step, "IS_VK", v->layout == KDA_LAYOUT_VK);
    quern_step_define(step, "NORM_ACT", v->norm ? v->norm - 1 : KDA_NORM_UNGATED);
    quern_step_define(step, "Z_DTYPE", v->z);
    quern_step_define(step, "NORM_WEIGHT", v->norm_weight);
}

/* Of an array [n, hv, width], or [n, hv]. */
static struct kda_rows rows_of(const struct quern_array *array)
{
    return (struct kda_rows){ array->data, array->strides[0], 0, array->strides[1] };
}

static struct kda_decode_args decode_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays, *states = &arrays[ARRAY_states];
    const struct kda_states pool = { .data = states->data,
                                     .sequence = states->strides[0],
                                     .head = states->strides[1],
                                     .row = states->strides[2] };
    return (struct kda_decode_args){
        .g = rows_of(&arrays[ARRAY_g]),
        .beta = rows_of(&arrays[ARRAY_beta]),
        .o = rows_of(&arrays[ARRAY_o]),
        .from = pool,
        .to = pool,
        .A_log = arrays[ARRAY_A_log].data,
        .dt_bias = arrays[ARRAY_dt_bias].data,
        .dt_bias_head = arrays[ARRAY_dt_bias].data ? arrays[ARRAY_dt_bias].strides[0] : 0,
        .slots = arrays[ARRAY_slots].data,
        .n = v->n,
        .capacity = v->capacity,
        .scale = (float)(isnan(v->scale) ? 1 / sqrt((double)v->k) : v->scale),
        .lower_bound = (float)v->lower_bound,
    };
}

struct kda_step_args kda_step_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct kda_step_args args = {
        .decode = decode_arguments(binding),
        .x = arrays[ARRAY_x].data,
        .weight = arrays[ARRAY_weight].data,
        .bias = arrays[ARRAY_bias].data,
        .norm_weight = arrays[ARRAY_norm_weight].data,
        .conv_states = arrays[ARRAY_conv_states].data,
        .x_sequence = arrays[ARRAY_x].strides[0],
        .weight_pitch = arrays[ARRAY_weight].strides[0],
        .conv_slot = arrays[ARRAY_conv_states].strides[0],
        .conv_row = arrays[ARRAY_conv_states].strides[1],
        .eps = isnan(v->eps) ? 1e-5f : (float)v->eps,
    };
    if (v->norm)
        args.z = rows_of(&arrays[ARRAY_z]);
    return args;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

enum { BV, SHARE, KNOB_COUNT };
static const struct quern_knob cpu_knobs[] = {
    [BV] = { "bv", 16, 256, "columns of v of a state that go through together" },
    [SHARE] = { "share", 1, KDA_STEP_SHARE, "sequences of a block, which transposes its filters" },
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
    return conv_require_power_of_two("share", config[SHARE], why);
}

/* Slabs that fit a first-level cache twice; as many sequences as leave each thread four blocks, but
 * two with rows of v: states that follow each other in memory, heads of a slot, are faster. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    config[BV] = v->k < 256 ? 64 : 32;
    config[SHARE] = v->layout == KDA_LAYOUT_VK ? KDA_STEP_SHARE : 2;
    while (config[SHARE] > 1 &&
           conv_ceil_div(v->n, config[SHARE]) * v->h < 4 * problem->profile->cores)
        config[SHARE] /= 2;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t widths[] = { 64, 32, 128, 256, 16 }, shares[] = { 16, 4, 1 };
    int count = 0;
    (void)problem;
    for (int w = 0; w < (int)(sizeof(widths) / sizeof(widths[0])); w++) {
        for (int s = 0; s < (int)(sizeof(shares) / sizeof(shares[0])) && count < max; s++) {
            configs[count][BV] = widths[w];
            configs[count++][SHARE] = shares[s];
        }
    }
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step =
        quern_plan_kernel(plan, "step", "kda/kda_step_cpu.c", "kda_step_main");
    kda_step_define(step, problem->bucket);
    quern_step_define(step, "G_DTYPE", v->g);
    quern_step_define(step, "BETA_DTYPE", v->beta);
    quern_step_define(step, "GATE", v->gate);
    quern_step_define(step, "HAS_BIAS", v->gate && v->dt_bias);
    quern_step_define(step, "SHARE", KDA_STEP_SHARE);
    quern_step_define(step, "BV", config[BV]);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct kda_step_args args = kda_step_arguments(binding);
    args.share = binding->config[SHARE];
    QUERN_BIND(&launch->steps[0], args, v->h, conv_ceil_div(v->n, args.share), 1);
}

const struct quern_variant kda_step_cpu = {
    .name = "kda_step_cpu",
    .doc = "a group of heads of some sequences a block",
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
                  { "h", v->h, 1 << 16 },
                  { "hv", v->hv, 1 << 16 },
                  { "w", v->w, 4 },
                  { "capacity", v->capacity, 1 << 30 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    if (v->capacity < 1)
        return quern_refuse(why, "capacity=%lld: must be at least 1", (long long)v->capacity);
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

static int check_norm(const struct values *v, struct quern_message *why)
{
    if (v->eps < 0)
        return quern_refuse(why, "eps=%g: must be at least 0", v->eps);
    if (!v->norm && !isnan(v->eps))
        return quern_refuse(why, "eps=%g: must not be given with norm=none", v->eps);
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
    return check_norm(v, why);
}

/* ---- Arrays ---------------------------------------------------------------------------------- */

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return kda_check_slots(host[ARRAY_slots], v->n, v->capacity, 1, why);
}

/* Of the pools the slots in use; of the other arrays everything. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_states)
        kda_touch_slots(&arrays[index], &shape, host[ARRAY_slots], values_of(spec)->n, ranges);
    else if (index == ARRAY_conv_states)
        conv_touch_pool(&arrays[index], &shape, host[ARRAY_slots], values_of(spec)->n, ranges);
    else
        conv_touch_whole(&arrays[index], &shape, ranges);
}

/* Keys of length below 1 after the filter, with which the recurrence does not grow. Inputs and taps
 * lean to one side, as those of kda_prefill: where a head has forgotten all else o is a multiple of
 * query and key, and of two that are nearly orthogonal an element that the filter rounds to the
 * other side of a tie is any part. Decays from hardly any to nearly total; slots in no order, some
 * outside. */
static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    const double unit = v->l2norm ? 1 : sqrt(3 / (double)v->k) / 2;
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    seed = kda_mix(seed + (uint64_t)index);
    if (index == ARRAY_x || index == ARRAY_conv_states || index == ARRAY_bias)
        kda_draw_floats(&shape, seed, -unit / 2, unit, 0, data);
    else if (index == ARRAY_weight)
        kda_draw_floats(&shape, seed, -0.5, 1, 0, data);
    else if (index == ARRAY_g && v->gate == KDA_GATE_NONE)
        kda_draw_floats(&shape, seed, log(1e-3), log(8), 1, data);
    else if (index == ARRAY_g)
        kda_draw_floats(&shape, seed, -3, 3, 0, data);
    else if (index == ARRAY_beta)
        kda_draw_floats(&shape, seed, v->beta_logits ? -3 : 0.01, v->beta_logits ? 3 : 0.99, 0,
                        data);
    else if (index == ARRAY_A_log)
        kda_draw_floats(&shape, seed, log(0.05), log(16), 0, data);
    else if (index == ARRAY_slots)
        kda_draw_slots(seed, v->n, v->capacity, data);
    else
        return 0;
    return 1;
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->n * values_of(spec)->hv;
}

static double rounding(int64_t dtype)
{
    return dtype == QUERN_F32 ? 1e-4 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

/* An array's own rounding. Of states also what an element of a key makes of a row when the filter's
 * sum was rounded to the other side of a tie: an element of a quarter of the key's length moves by
 * a unit in its last place. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_conv_states)
        return 0;
    if (index == ARRAY_o)
        return rounding(v->dtype);
    double other_side = v->dtype == QUERN_BF16  ? 0x1p-8 / 4
                        : v->dtype == QUERN_F16 ? 0x1p-11 / 4
                                                : 0;
    return fmax(rounding(v->state), other_side);
}

/* Each array once, of the pools what the call touches, twice. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double n = (double)v->n, heads = n * (double)v->hv, size = (double)(v->k * v->v);
    const double channels = (double)(2 * v->h * v->k + v->hv * v->v);
    cost->flops = 7 * heads * size + n * channels * (2.0 * (double)v->w + (v->act ? 4 : 0)) +
                  (v->norm ? 10 * heads * (double)v->v : 0);
    cost->bytes = 2 * heads * size * (double)quern_dtype_bytes((int)v->state) +
                  2 * n * channels * (double)((v->w - 1) * quern_dtype_bytes((int)v->dtype));
    for (int i = 0; i < ARRAY_COUNT; i++) {
        struct quern_shape shape = { 0 };
        quern_def_shape(spec, i, &shape);
        if (shape.role == QUERN_ABSENT || shape.role == QUERN_INOUT)
            continue;
        double bytes = (double)quern_dtype_bytes(shape.dtype);
        for (int d = 0; d < shape.rank; d++)
            bytes *= (double)shape.dims[d];
        cost->bytes += bytes;
    }
}

/* No kernel is made for the pools' size: as many slots as sequences are what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->n = quern_power_of_two_above(v->n);
    v->capacity = v->n;
}

static const struct quern_variant *const variants[] = { &kda_step_cuda, &kda_step_cpu, NULL };

const struct quern_family quern_family_kda_step = {
    QUERN_FAMILY_TABLES(kda_step),
    .folder = "kda",
    .doc = "a decode step of a KDA or GDN layer: filter, delta rule, gated norm",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = kda_step_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
