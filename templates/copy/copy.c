/* copy: the smallest complete family. One dynamic size, one dtype, a flag that makes the output an
 * inout array, a scalar, one variant with one knob. Copy this folder to start a family. */
#define QUERN_DEF "copy/copy.def"
#include <quern/family_def.h>

#include <math.h>

#include "copy.h"
#include "copy_args.h"

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { KNOB_BLOCK_KIB };
static const struct quern_knob knobs[] = {
    [KNOB_BLOCK_KIB] = { "block_kib", 1, 65536, "KiB of the output that a block writes" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[KNOB_BLOCK_KIB] & (config[KNOB_BLOCK_KIB] - 1))
        return quern_refuse(why, "config block_kib=%d: must be a power of two",
                            config[KNOB_BLOCK_KIB]);
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_BLOCK_KIB] = 256;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t sizes[] = { 256, 1024, 64, 4096, 16 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][KNOB_BLOCK_KIB] = sizes[count];
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "copy", "copy/copy_cpu.c", "copy_main");
    (void)config; /* the block size is a launch argument: every config shares one artifact */
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "INPLACE", v->inplace);
    quern_step_define(step, "HAS_ALPHA", !isnan(v->alpha));
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct copy_args args = {
        .x = binding->arrays[ARRAY_x].data,
        .out = binding->arrays[ARRAY_out].data,
        .n = v->n,
        .block = (int64_t)binding->config[KNOB_BLOCK_KIB] * 1024 /
                 (int64_t)quern_dtype_bytes((int)v->dtype),
        .alpha = (float)v->alpha,
    };
    QUERN_BIND(&launch->steps[0], args, (v->n + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant copy_cpu = {
    .name = "copy_cpu",
    .doc = "vector loads and stores, a block of the array each",
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

/* ---- The family ---------------------------------------------------------------------------- */

/* A block covers at least 1 KiB, and a grid dimension is 32 bits. */
static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->n > INT64_C(1) << 39)
        return quern_refuse(why, "n=%lld: must be at most 2^39", (long long)v->n);
    return QUERN_OK;
}

static int64_t units(const struct quern_spec *spec)
{
    return (values_of(spec)->n + COPY_UNIT - 1) / COPY_UNIT;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    (void)index;
    if (!v->inplace && isnan(v->alpha))
        return 0; /* a copy is exact */
    return v->dtype == QUERN_F32 ? 1e-7 : v->dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double element = (double)quern_dtype_bytes((int)v->dtype);
    cost->flops = (double)v->n * (double)(v->inplace + !isnan(v->alpha));
    cost->bytes = (double)v->n * element * (v->inplace ? 3 : 2);
}

static const struct quern_variant *const variants[] = { &copy_cpu, NULL };

const struct quern_family quern_family_copy = {
    QUERN_FAMILY_TABLES(copy),
    .folder = "copy",
    .doc = "out = alpha x, or out += alpha x in place",
    .variants = variants,
    .aliasable = 1u << ARRAY_out, /* over x: a block reads before it writes */
    .validate = validate,
    .units = units,
    .reference = copy_reference,
    .tolerance = tolerance,
    .cost = cost,
};
