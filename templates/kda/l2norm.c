/* l2norm: out = x / sqrt(sum of x^2 + eps), a row at a time. The kernels and most of what the
 * variants do are kda_norm's, shared with gated_rmsnorm. */
#define QUERN_DEF "kda/l2norm.def"
#include <quern/family_def.h>

#include <math.h>

#include "l2norm.h"
#include "kda_norm.h"

/* Without alignment: of arrays aligned to 16 bytes, where it does not matter. */
static struct kda_norm norm_of(const struct quern_spec *spec, const uint8_t *alignment)
{
    const struct values *v = values_of(spec);
    return (struct kda_norm){
        .t = v->t,
        .h = v->h,
        .d = v->d,
        .dtype = (int)v->dtype,
        .z = (int)v->dtype,
        .weight = (int)v->dtype,
        .act = KDA_NORM_UNGATED,
        .x_alignment = alignment ? alignment[ARRAY_x] : 16,
        .z_alignment = 16,
        .out_alignment = alignment ? alignment[ARRAY_out] : 16,
    };
}

static struct kda_norm_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    return (struct kda_norm_args){
        .x = arrays[ARRAY_x].data,
        .out = arrays[ARRAY_out].data,
        .t = v->t,
        .x_strides = { arrays[ARRAY_x].strides[0], arrays[ARRAY_x].strides[1] },
        .out_strides = { arrays[ARRAY_out].strides[0], arrays[ARRAY_out].strides[1] },
        .eps = isnan(v->eps) ? 1e-6f : (float)v->eps,
    };
}

/* ---- The CPU variant ----------------------------------------------------------------------- */

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    (void)problem;
    return kda_norm_cpu_legal(config, why);
}

static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    kda_norm_cpu_heuristic(config);
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    (void)problem;
    return kda_norm_cpu_candidates(configs, max);
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    const struct kda_norm norm = norm_of(problem->bucket, problem->alignment);
    (void)config; /* the block size is a launch argument: every config shares one artifact */
    kda_norm_cpu_plan(&norm, plan);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct kda_norm norm = norm_of(binding->spec, NULL);
    struct kda_norm_args args = arguments(binding);
    kda_norm_cpu_bind(&norm, binding->config, &args, &launch->steps[0]);
}

static const struct quern_variant l2norm_cpu = {
    .name = "l2norm_cpu",
    .doc = "rows in vectors, a piece of the array each block",
    .device = QUERN_CPU,
    .knobs = kda_norm_cpu_knobs,
    .knob_count = KDA_NORM_CPU_KNOBS,
    .supports = cpu_supports,
    .legal = cpu_legal,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- The CUDA variant ---------------------------------------------------------------------- */

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    const struct kda_norm norm = norm_of(problem->bucket, problem->alignment);
    return kda_norm_cuda_legal(&norm, config, why);
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct kda_norm norm = norm_of(problem->bucket, problem->alignment);
    kda_norm_cuda_heuristic(&norm, config);
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    (void)problem;
    return kda_norm_cuda_candidates(configs, max);
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct kda_norm norm = norm_of(problem->bucket, problem->alignment);
    kda_norm_cuda_plan(&norm, config, plan);
}

static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct kda_norm norm = norm_of(binding->spec, NULL);
    const struct kda_norm_args args = arguments(binding);
    kda_norm_cuda_bind(&norm, binding->config, binding->profile->cores, &args, &launch->steps[0]);
}

static const struct quern_variant l2norm_cuda = {
    .name = "l2norm_cuda",
    .doc = "part of a warp a row, several rows in flight",
    .device = QUERN_CUDA,
    .knobs = kda_norm_cuda_knobs,
    .knob_count = KDA_NORM_CUDA_KNOBS,
    .supports = cuda_supports,
    .legal = cuda_legal,
    .heuristic = cuda_heuristic,
    .candidates = cuda_candidates,
    .plan = cuda_plan,
    .bind = cuda_bind,
};

/* ---- The family ---------------------------------------------------------------------------- */

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return kda_norm_validate(v->t, v->h, v->d, v->eps, why);
}

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->t * values_of(spec)->h;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)index;
    return kda_norm_tolerance(values_of(spec)->dtype);
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double elements = (double)(v->t * v->h * v->d);
    cost->flops = 3 * elements;
    cost->bytes = 2 * elements * (double)quern_dtype_bytes((int)v->dtype);
}

static const struct quern_variant *const variants[] = { &l2norm_cuda, &l2norm_cpu, NULL };

const struct quern_family quern_family_l2norm = {
    QUERN_FAMILY_TABLES(l2norm),
    .folder = "kda",
    .doc = "x / sqrt(sum of x^2 + eps), a head at a time",
    .variants = variants,
    .aliasable = 1u << ARRAY_out, /* over x: an element is read before it is written */
    .validate = validate,
    .units = units,
    .reference = l2norm_reference,
    .tolerance = tolerance,
    .cost = cost,
};
