/* gemm_pack: b of a gemm brought into panels, once, for many products with packed=P. The family,
 * and its CPU variant: the step that packs b within a gemm, gemm_pack_b of gemm_cpu.c, which writes
 * to the caller's array instead of the workspace. */
#define QUERN_DEF "gemm/gemm_pack.def"
#include <quern/family_def.h>

#include "gemm.h"
#include "gemm_args.h"

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { KC, KNOB_COUNT };

static const struct quern_knob knobs[] = {
    [KC] = { "kc", 32, 8192, "k that a block packs" },
};

/* Columns that a block packs where b is [k,n]: a row of b is read in runs of them. */
static int block_columns(const struct values *v)
{
    return 8 * (int)gemm_panel_width(v->panel);
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[KC] % GEMM_PACKED_K)
        return quern_refuse(why, "config kc=%d: must be a multiple of %d", config[KC],
                            GEMM_PACKED_K);
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KC] = 256;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t sizes[] = { 256, 1024, 64, 4096 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][KC] = sizes[count];
    return count;
}

/* PACK_B and NR make the panels; the other parameters of gemm_cpu.c have their defaults. */
static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "pack", "gemm/gemm_cpu.c", "gemm_pack_b");
    quern_step_define(step, "A_DTYPE", v->b);
    quern_step_define(step, "B_DTYPE", v->b);
    quern_step_define(step, "B_IS_NK", v->layout == 0);
    quern_step_define(step, "PACK_B", 1);
    quern_step_define(step, "NR", gemm_panel_width(v->panel));
    quern_step_define(step, "NC", block_columns(v));
    quern_step_define(step, "KC", config[KC]);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *b = &binding->arrays[ARRAY_b];
    const struct quern_array *packed = &binding->arrays[ARRAY_packed];
    int64_t element_bytes = (int64_t)quern_dtype_bytes((int)v->b);
    int64_t columns = v->layout ? block_columns(v) : gemm_panel_width(v->panel);
    const struct gemm_args args = {
        .n = v->n,
        .k = v->k,
        .batch = v->batch,
        .b = b->data,
        .b_batch_stride = b->strides[0],
        .b_row_stride = b->strides[1],
        .packed_b = packed->data,
        .packed_batch_bytes = packed->strides[0] * element_bytes,
        .packed_panel_bytes = packed->strides[1] * element_bytes,
    };
    QUERN_BIND(&launch->steps[0], args, gemm_ceil_div(v->k, binding->config[KC]),
               gemm_ceil_div(v->n, columns), v->batch);
}

static const struct quern_variant gemm_pack_cpu = {
    .name = "gemm_pack_cpu",
    .doc = "squares of vectors transposed in registers, or rows copied",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = KNOB_COUNT,
    .supports = supports,
    .legal = legal,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};

/* ---- The family ---------------------------------------------------------------------------- */

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    int status = gemm_check_sizes(0, v->n, v->k, v->batch, why);
    return status ? status : gemm_check_panel("panel", gemm_panel_width(v->panel), (int)v->b, why);
}

static int64_t units(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->batch * gemm_ceil_div(v->n, gemm_panel_width(v->panel));
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0; /* nothing is computed */
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double columns = (double)gemm_round_up(v->n, gemm_panel_width(v->panel));
    double rows = (double)gemm_round_up(v->k, GEMM_PACKED_K);
    cost->flops = 0;
    cost->bytes = (double)v->batch * ((double)v->n * (double)v->k + columns * rows) *
                  (double)quern_dtype_bytes((int)v->b);
}

static const struct quern_variant *const variants[] = { &gemm_pack_cpu, NULL };

const struct quern_family quern_family_gemm_pack = {
    QUERN_FAMILY_TABLES(gemm_pack),
    .folder = "gemm",
    .doc = "b of a gemm into the panels that gemm takes with packed=P",
    .variants = variants,
    .validate = validate,
    .units = units,
    .reference = gemm_pack_reference,
    .tolerance = tolerance,
    .cost = cost,
};
