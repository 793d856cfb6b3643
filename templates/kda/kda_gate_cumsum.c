/* kda_gate_cumsum: the decay gate, and its running sums in chunks.
 *
 *     CPU     a block of the grid is a slot for a chunk (kda_gate_cumsum_args.h) and some heads
 *     CUDA    a slot and some columns; each thread has a few tokens of a few columns
 *
 * The device finds sequences and chunks from cu_seqlens itself; the grid covers as many slots as
 * there could be chunks, t / chunk + n. */
#define QUERN_DEF "kda/kda_gate_cumsum.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "kda_gate_cumsum.h"
#include "kda_gate_cumsum_args.h"
#include "kda_indices.h"
#include "kda_kinds.h"

static int64_t chunk_of(const struct values *v)
{
    return INT64_C(16) << v->chunk;
}

/* Columns of a head. */
static int64_t width_of(const struct values *v)
{
    return v->decay == KDA_DECAY_SCALAR ? 1 : v->k;
}

/* Slots for chunks; none where there are no tokens. */
static int64_t slots_of(const struct values *v)
{
    int64_t chunk = chunk_of(v);
    if (!v->t || !v->n)
        return 0;
    return v->varlen ? v->t / chunk + v->n : v->n * ((v->t / v->n + chunk - 1) / chunk);
}

/* What the code of both kinds of kernel depends on. */
static void define_spec(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "G_DTYPE", v->g);
    quern_step_define(step, "GATE", v->gate);
    quern_step_define(step, "HAS_BIAS", v->gate && v->dt_bias);
    quern_step_define(step, "VARLEN", v->varlen);
    quern_step_define(step, "INDEX_64", v->index == QUERN_I64);
    quern_step_define(step, "HEADS", v->hv);
    quern_step_define(step, "K", width_of(v));
    quern_step_define(step, "CHUNK", chunk_of(v));
}

/* The arguments of both. */
static struct kda_gate_cumsum_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct kda_gate_cumsum_args args = {
        .g = arrays[ARRAY_g].data,
        .A_log = arrays[ARRAY_A_log].data,
        .dt_bias = arrays[ARRAY_dt_bias].data,
        .cu_seqlens = arrays[ARRAY_cu_seqlens].data,
        .out = arrays[ARRAY_out].data,
        .t = v->t,
        .n = v->n,
        .g_strides = { arrays[ARRAY_g].strides[0], arrays[ARRAY_g].strides[1] },
        .out_strides = { arrays[ARRAY_out].strides[0], arrays[ARRAY_out].strides[1] },
        .lower = (float)v->lower_bound,
    };
    if (v->gate && v->dt_bias)
        args.bias_stride = arrays[ARRAY_dt_bias].strides[0];
    if (v->n) {
        args.length = v->t / v->n;
        args.chunks = (args.length + chunk_of(v) - 1) / chunk_of(v);
    }
    return args;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { KNOB_HEADS };
static const struct quern_knob cpu_knobs[] = {
    [KNOB_HEADS] = { "heads", 1, 256, "heads that a block handles, a token at a time" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

/* A token's row in half of the L1, so that the next one finds it there; fewer heads where there
 * would be too few blocks for the cores. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t row = 16384 / (4 * width_of(v)), heads = least(256, row > 1 ? row : 1);
    while (heads > 1 &&
           slots_of(v) * ((v->hv + heads - 1) / heads) < 4 * (int64_t)problem->profile->cores)
        heads /= 2;
    config[KNOB_HEADS] = (int32_t)heads;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t heads[] = { 32, 8, 256, 2, 64, 16, 4, 1 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(heads) / sizeof(heads[0])); count++)
        configs[count][KNOB_HEADS] = heads[count];
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "cumsum", "kda/kda_gate_cumsum_cpu.c", "kda_gate_cumsum_main");
    (void)config; /* heads are a launch argument: every config shares one artifact */
    define_spec(step, problem->bucket);
    quern_step_define(step, "SCALAR_DECAY", values_of(problem->bucket)->decay);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct kda_gate_cumsum_args args = arguments(binding);
    args.block = binding->config[KNOB_HEADS];
    QUERN_BIND(&launch->steps[0], args, slots_of(v), (v->hv + args.block - 1) / args.block, 1);
}

static const struct quern_variant kda_gate_cumsum_cpu = {
    .name = "kda_gate_cumsum_cpu",
    .doc = "a chunk of some heads a block, along its rows",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = sizeof(cpu_knobs) / sizeof(cpu_knobs[0]),
    .supports = cpu_supports,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- The CUDA variant ---------------------------------------------------------------------- */

enum { KNOB_COLUMNS, KNOB_SEGMENT };
static const struct quern_knob cuda_knobs[] = {
    [KNOB_COLUMNS] = { "columns", 32, 128, "pieces of a row, up to 4 columns each, of a block" },
    [KNOB_SEGMENT] = { "segment", 2, 16, "tokens of a thread" },
};

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

/* 4096 tokens and pieces a block leave a thread 16 registers for each of its tokens: no spills. */
static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    int64_t segments = chunk_of(values_of(problem->bucket)) / config[KNOB_SEGMENT];
    for (int i = 0; i < (int)(sizeof(cuda_knobs) / sizeof(cuda_knobs[0])); i++) {
        if (config[i] & (config[i] - 1))
            return quern_refuse(why, "config %s=%d: must be a power of two", cuda_knobs[i].name,
                                config[i]);
    }
    if (segments * config[KNOB_COLUMNS] * config[KNOB_SEGMENT] > 4096 ||
        segments * config[KNOB_COLUMNS] > 1024)
        return quern_refuse(why, "config columns=%d segment=%d: too many threads a block",
                            config[KNOB_COLUMNS], config[KNOB_SEGMENT]);
    return QUERN_OK;
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_COLUMNS] = 32;
    config[KNOB_SEGMENT] = 8;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][2] = { { 32, 8 }, { 32, 4 },  { 64, 8 },   { 32, 16 }, { 64, 16 },
                                       { 64, 4 }, { 128, 8 }, { 128, 16 }, { 32, 2 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step =
        quern_plan_kernel(plan, "cumsum", "kda/kda_gate_cumsum_cuda.cu", "kda_gate_cumsum");
    int64_t columns = width_of(v) & -width_of(v);
    int64_t loads = problem->alignment[ARRAY_g] / (int64_t)quern_dtype_bytes((int)v->g);
    int64_t vec = least(4, least(columns, loads));
    define_spec(step, problem->bucket);
    quern_step_define(step, "VEC", vec);
    quern_step_define(step, "OUT_ACCESS", least(4 * vec, problem->alignment[ARRAY_out]));
    quern_step_define(step, "COLUMNS", config[KNOB_COLUMNS]);
    quern_step_define(step, "SEGMENT", config[KNOB_SEGMENT]);
    step->threads[0] = (uint32_t)(config[KNOB_COLUMNS] * (chunk_of(v) / config[KNOB_SEGMENT]));
}

/* The width of a piece depends on the alignment, which bind() does not see: blocks walk on where
 * pieces are narrower. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct kda_gate_cumsum_args args = arguments(binding);
    int64_t columns = width_of(v) & -width_of(v);
    int64_t pieces = v->hv * width_of(v) / least(4, columns), share = binding->config[KNOB_COLUMNS];
    QUERN_BIND(&launch->steps[0], args, slots_of(v), least((pieces + share - 1) / share, 65535), 1);
}

static const struct quern_variant kda_gate_cumsum_cuda = {
    .name = "kda_gate_cumsum_cuda",
    .doc = "a chunk and some columns a block, sums of segments through shared memory",
    .device = QUERN_CUDA,
    .knobs = cuda_knobs,
    .knob_count = sizeof(cuda_knobs) / sizeof(cuda_knobs[0]),
    .supports = cuda_supports,
    .legal = cuda_legal,
    .heuristic = cuda_heuristic,
    .candidates = cuda_candidates,
    .plan = cuda_plan,
    .bind = cuda_bind,
};

/* ---- The family ---------------------------------------------------------------------------- */

static int validate_gate(const struct values *v, struct quern_message *why)
{
    if (v->gate != KDA_GATE_BOUNDED && !isnan(v->lower_bound))
        return quern_refuse(why, "lower_bound=%g: only with gate=bounded", v->lower_bound);
    if (v->gate == KDA_GATE_BOUNDED && !(v->lower_bound >= -5 && v->lower_bound < 0))
        return quern_refuse(why, "lower_bound=%g: must be given, from -5 to below 0",
                            v->lower_bound);
    return QUERN_OK;
}

/* The grids have 31 bits of slots, and rows are counted in int. */
static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int64_t most = INT64_C(1) << 30, width = width_of(v);
    if (v->hv > most)
        return quern_refuse(why, "hv=%lld: must be at most 2^30", (long long)v->hv);
    if (width > most / v->hv)
        return quern_refuse(why, "k=%lld: hv k must be at most 2^30", (long long)v->k);
    if (v->t > INT64_C(1) << 34 || v->t > (INT64_C(1) << 39) / (v->hv * width))
        return quern_refuse(why, "t=%lld: must be at most 2^34, and t hv k at most 2^39",
                            (long long)v->t);
    if (v->varlen && v->index == QUERN_I32 && v->t > INT32_MAX)
        return quern_refuse(why, "t=%lld: must be below 2^31 with index=i32", (long long)v->t);
    if (v->n > INT64_C(1) << 29)
        return quern_refuse(why, "n=%lld: must be at most 2^29", (long long)v->n);
    if (v->n ? !v->varlen && v->t % v->n : v->t > 0)
        return quern_refuse(why, "n=%lld: t=%lld is no such number of sequences", (long long)v->n,
                            (long long)v->t);
    return validate_gate(v, why);
}

static int64_t units(const struct quern_spec *spec)
{
    return slots_of(values_of(spec));
}

/* Terms of one sign, `chunk` of them: each of the sum's roundings is 2^-24 of it at most. 16 more
 * of them bound the error of the gate (exponentials of 5, the rest once each) and of the unit. */
static double tolerance(const struct quern_spec *spec, int index)
{
    (void)index;
    return (double)(chunk_of(values_of(spec)) + 16) * 0x1p-24;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double elements = (double)(v->t * v->hv * width_of(v));
    cost->flops = elements * (v->gate ? 6 : 2); /* an exponential counted as one */
    cost->bytes = elements * (4 + (double)quern_dtype_bytes((int)v->g));
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return kda_check_borders(host[ARRAY_cu_seqlens], v->index, v->n, v->t, why);
}

static const struct quern_variant *const variants[] = { &kda_gate_cumsum_cuda, &kda_gate_cumsum_cpu,
                                                        NULL };

const struct quern_family quern_family_kda_gate_cumsum = {
    QUERN_FAMILY_TABLES(kda_gate_cumsum),
    .folder = "kda",
    .doc = "the decay gate and its running sums in chunks, in base 2",
    .variants = variants,
    .validate = validate,
    .check_indices = check_indices,
    .inputs = kda_gate_cumsum_inputs,
    .units = units,
    .reference = kda_gate_cumsum_reference,
    .tolerance = tolerance,
    .cost = cost,
};
