/* The suites' own family. Its kernel first scales x into the workspace, then adds: a workspace that
 * is too small, shared or misaligned, or steps out of order, give a wrong sum. */
#define QUERN_DEF "tests/kinds.def"
#include <quern/family_def.h>

#include <math.h>

#include "jit/context.h"
#include "kinds.h"

struct kinds_args {
    const void *x, *bias;
    void *out;
    double *scaled;
    int64_t rows, all_rows, cols;
    int64_t x_batch, x_row, out_batch, out_row;
    double gain;
};

static const char args_text[] = "#ifndef KINDS_ARGS_H\n"
                                "#define KINDS_ARGS_H\n"
                                "typedef __INT64_TYPE__ i64;\n"
                                "typedef __UINT32_TYPE__ u32;\n"
                                "struct kinds_args {\n"
                                "    const void *x, *bias;\n"
                                "    void *out;\n"
                                "    double *scaled;\n"
                                "    i64 rows, all_rows, cols;\n"
                                "    i64 x_batch, x_row, out_batch, out_row;\n"
                                "    double gain;\n"
                                "};\n"
                                "#endif\n";

static const char kernel_text[] =
    "#include \"kinds_args.h\"\n"
    "#ifndef ELEMENT\n"
    "#define ELEMENT float\n"
    "#define ORDER 0\n"
    "#define BIASED 0\n"
    "#define ACCUMULATE 0\n"
    "#define HAS_GAIN 0\n"
    "#define WRONG 0\n"
    "#define TILE 8\n"
    "#define ADD_UNROLL 1\n"
    "#endif\n"
    "static i64 row_of(const struct kinds_args *args, u32 x, int i)\n"
    "{\n"
    "    i64 row = (i64)x * TILE + (ORDER == 1 ? TILE - 1 - i : i);\n"
    "    return row < args->all_rows ? row : -1;\n"
    "}\n"
    "void kinds_scale(const struct kinds_args *args, u32 x, u32 y, u32 z)\n"
    "{\n"
    "    for (int i = 0; i < TILE; i++) {\n"
    "        i64 row = row_of(args, x, i);\n"
    "        if (row < 0) continue;\n"
    "        const ELEMENT *from = (const ELEMENT *)args->x + row / args->rows * args->x_batch +\n"
    "                              row % args->rows * args->x_row;\n"
    "        for (i64 c = 0; c < args->cols; c++)\n"
    "            args->scaled[row * args->cols + c] = HAS_GAIN ? args->gain * from[c] : from[c];\n"
    "    }\n"
    "}\n"
    "void kinds_add(const struct kinds_args *args, u32 x, u32 y, u32 z)\n"
    "{\n"
    "    for (int i = 0; i < TILE; i++) {\n"
    "        i64 row = row_of(args, x, i);\n"
    "        if (row < 0) continue;\n"
    "        ELEMENT *to = (ELEMENT *)args->out + row / args->rows * args->out_batch +\n"
    "                      row % args->rows * args->out_row;\n"
    "        for (i64 c = 0; c < args->cols; c++) {\n"
    "            double sum = args->scaled[row * args->cols + c];\n"
    "            if (BIASED) sum += ((const ELEMENT *)args->bias)[c];\n"
    "            if (ACCUMULATE) sum += to[c];\n"
    "            if (WRONG && row == args->all_rows - 1 && c == args->cols - 1) sum += 1;\n"
    "            to[c] = (ELEMENT)sum;\n"
    "        }\n"
    "    }\n"
    "}\n";

const struct quern_source kinds_sources[] = {
    { "kinds/kinds_cpu.c", kernel_text },
    { "kinds/kinds_args.h", args_text },
    { NULL, NULL },
};

/* ---- The variants -------------------------------------------------------------------------- */

enum { KNOB_TILE, KNOB_UNROLL };
static const struct quern_knob knobs[] = {
    [KNOB_TILE] = { "tile", 1, 64, "rows of a block" },
    [KNOB_UNROLL] = { "add.unroll", 1, 4, "changes nothing" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int legal(const struct quern_problem *problem, const int32_t *config,
                 struct quern_message *why)
{
    (void)problem;
    if (config[KNOB_TILE] == 13)
        return quern_refuse(why, "config tile=13: must not be 13");
    return QUERN_OK;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_TILE] = 8;
    config[KNOB_UNROLL] = 1;
}

static void plan_as(const struct quern_problem *problem, const int32_t *config,
                    const struct quern_variant *variant, int is_wrong, struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    static const char *const names[] = { "scale", "add" };
    static const char *const entries[] = { "kinds_scale", "kinds_add" };
    for (int i = 0; i < 2; i++) {
        struct quern_step *step =
            quern_plan_kernel(plan, names[i], "kinds/kinds_cpu.c", entries[i]);
        quern_step_define_text(step, "ELEMENT", v->dtype == QUERN_F64 ? "double" : "float");
        quern_step_define(step, "ORDER", v->order);
        quern_step_define(step, "BIASED", v->biased);
        quern_step_define(step, "ACCUMULATE", v->accumulate);
        quern_step_define(step, "HAS_GAIN", !isnan(v->gain));
        quern_step_define(step, "WRONG", is_wrong);
        quern_step_define_config(step, variant, config);
    }
    if (__builtin_mul_overflow(v->batch * 8, v->rows, &plan->workspace_bytes) ||
        __builtin_mul_overflow(plan->workspace_bytes, v->cols, &plan->workspace_bytes))
        plan->workspace_bytes = INT64_MAX;
}

static const struct quern_variant kinds_cpu, kinds_wrong;

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    plan_as(problem, config, &kinds_cpu, 0, plan);
}

static void plan_wrong(const struct quern_problem *problem, const int32_t *config,
                       struct quern_plan *plan)
{
    plan_as(problem, config, &kinds_wrong, 1, plan);
}

/* Without columns the product need not fit. */
static int64_t row_count(const struct values *v)
{
    return v->cols ? v->batch * v->rows : 0;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int64_t *x = binding->arrays[ARRAY_x].strides, *out = binding->arrays[ARRAY_out].strides;
    const struct kinds_args args = {
        .x = binding->arrays[ARRAY_x].data,
        .bias = binding->arrays[ARRAY_bias].data,
        .out = binding->arrays[ARRAY_out].data,
        .scaled = binding->workspace,
        .rows = v->rows,
        .all_rows = row_count(v),
        .cols = v->cols,
        .x_batch = x[0],
        .x_row = x[1],
        .out_batch = out[0],
        .out_row = out[1],
        .gain = v->gain,
    };
    int64_t tile = binding->config[KNOB_TILE], blocks = (args.all_rows + tile - 1) / tile;
    QUERN_BIND(&launch->steps[0], args, blocks, 1, 1);
    QUERN_BIND(&launch->steps[1], args, blocks, 1, 1);
}

#define KINDS_VARIANT(name_, doc_, plan_)                                                          \
    {                                                                                              \
        .name = #name_, .doc = doc_, .device = QUERN_CPU, .knobs = knobs, .knob_count = 2,         \
        .supports = supports, .legal = legal, .heuristic = heuristic, .plan = plan_, .bind = bind  \
    }
static const struct quern_variant kinds_cpu = KINDS_VARIANT(kinds_cpu, "two steps", plan);
static const struct quern_variant kinds_wrong =
    KINDS_VARIANT(kinds_wrong, "the last element is off by one", plan_wrong);

/* ---- The family ---------------------------------------------------------------------------- */

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->cols == 4095)
        return quern_refuse(why, "cols=4095: must not be 4095");
    return QUERN_OK;
}

static int64_t units(const struct quern_spec *spec)
{
    return row_count(values_of(spec));
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    const struct values *v = values_of(quern_ref_spec(ref));
    int64_t first = unit * v->cols;
    double *x = quern_ref_scratch(ref, v->cols), *bias = quern_ref_scratch(ref, v->cols);
    double *out = quern_ref_scratch(ref, v->cols);
    quern_ref_read(ref, ARRAY_x, first, v->cols, x);
    if (v->biased)
        quern_ref_read(ref, ARRAY_bias, 0, v->cols, bias);
    if (v->accumulate)
        quern_ref_read(ref, ARRAY_out, first, v->cols, out);
    for (int64_t c = 0; c < v->cols; c++)
        out[c] += (isnan(v->gain) ? x[c] : v->gain * x[c]) + bias[c];
    quern_ref_expect(ref, ARRAY_out, first, v->cols, out);
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)index;
    return values_of(spec)->dtype == QUERN_F64 ? 1e-15 : 1e-7;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    cost->flops = 2.0 * (double)v->batch * (double)v->rows * (double)v->cols;
    cost->bytes = cost->flops * (double)quern_dtype_bytes((int)v->dtype);
}

static const struct quern_variant *const variants[] = { &kinds_cpu, &kinds_wrong, NULL };

const struct quern_family kinds_family = {
    QUERN_FAMILY_TABLES(kinds),
    .folder = "kinds",
    .doc = "out = gain x + bias (+ out), for the suites",
    .variants = variants,
    .sources = kinds_sources,
    .validate = validate,
    .units = units,
    .reference = reference,
    .tolerance = tolerance,
    .cost = cost,
};

/* ---- What several suites ask of it --------------------------------------------------------- */

struct quern_kernel *kinds_dispatch(struct quern_context *with, const char *text,
                                    const struct quern_array *arrays)
{
    struct quern_spec spec = common_spec(with, text);
    struct quern_kernel *kernel;
    assert_ok(with, quern_dispatch(with, &spec, arrays, &kernel));
    return kernel;
}

struct quern_report kinds_report(const struct quern_kernel *kernel)
{
    struct quern_report report;
    quern_kernel_report(kernel, &report);
    return report;
}

bool kinds_is_scaled(const struct common_arrays *set, double gain)
{
    const float *x = set->arrays[KINDS_X].data, *out = set->arrays[KINDS_OUT].data;
    int64_t count = qn_shape_count(&set->shapes[KINDS_X]);
    for (int64_t i = 0; i < count; i++) {
        if (out[i] != (float)(gain * x[i]))
            return false;
    }
    return true;
}

int64_t kinds_compiles(struct quern_context *with)
{
    struct qn_store_counters counters;
    ck_assert_int_eq(qn_store_counters(with->store, &counters), QN_STORE_OK);
    return counters.compiles;
}
