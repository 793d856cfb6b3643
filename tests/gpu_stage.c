/* The workspace is set to zero, x is added to it twice, and then it is added to out: steps out of
 * order, a workspace that is too small, shared or not zeroed, give a wrong sum. Of the candidates
 * every one with `flaw` is wrong: 1 leaves the last element out, 2 writes one element too many. */
#define QUERN_DEF "tests/gpu_stage.def"
#include <quern/family_def.h>

#include "gpu_stage.h"

struct stage_args {
    const float *x;
    float *out, *staged;
    int64_t n;
};

static const char kernel_text[] =
    "struct stage_args {\n"
    "    const float *x;\n"
    "    float *out, *staged;\n"
    "    long long n;\n"
    "};\n"
    "#define INDEX ((long long)blockIdx.x * THREADS + threadIdx.x)\n"
    "extern \"C\" __global__ void __launch_bounds__(THREADS)\n"
    "    stage_in(const __grid_constant__ struct stage_args args)\n"
    "{\n"
    "    if (INDEX < args.n) {\n"
    "        args.staged[INDEX] += args.x[INDEX];\n"
    "        args.staged[INDEX] += args.x[INDEX];\n"
    "    }\n"
    "}\n"
    "extern \"C\" __global__ void __launch_bounds__(THREADS)\n"
    "    stage_out(const __grid_constant__ struct stage_args args)\n"
    "{\n"
    "    if (INDEX < args.n - (FLAW == 1))\n"
    "        args.out[INDEX] = args.staged[INDEX] + (ACCUMULATE ? args.out[INDEX] : 0);\n"
    "    if (FLAW == 2 && INDEX == 0)\n"
    "        args.out[args.n] = 1;\n"
    "}\n";

static const struct quern_source sources[] = { { "stage/stage.cu", kernel_text }, { NULL, NULL } };

enum { KNOB_THREADS, KNOB_FLAW };
static const struct quern_knob knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 1024, "threads of a block" },
    [KNOB_FLAW] = { "flaw", 0, 2, "what is wrong" },
};

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_THREADS] = 128;
    config[KNOB_FLAW] = 0;
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int32_t list[][2] = {
        { 256, 0 }, { 256, 1 }, { 512, 0 }, { 128, 2 }, { 1024, 0 }
    };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++) {
        configs[count][KNOB_THREADS] = list[count][0];
        configs[count][KNOB_FLAW] = list[count][1];
    }
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    quern_plan_memset(plan, "zero");
    for (int i = 0; i < 2; i++) {
        const char *entry = i ? "stage_out" : "stage_in";
        struct quern_step *step = quern_plan_kernel(plan, entry, "stage/stage.cu", entry);
        quern_step_define(step, "THREADS", config[KNOB_THREADS]);
        quern_step_define(step, "FLAW", config[KNOB_FLAW]);
        quern_step_define(step, "ACCUMULATE", v->accumulate);
        step->threads[0] = (uint32_t)config[KNOB_THREADS];
        step->threads[1] = step->threads[2] = 1;
    }
    plan->workspace_bytes = v->n * (int64_t)sizeof(float);
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct stage_args args = { binding->arrays[ARRAY_x].data, binding->arrays[ARRAY_out].data,
                                     binding->workspace, v->n };
    int64_t threads = binding->config[KNOB_THREADS], blocks = (v->n + threads - 1) / threads;
    launch->steps[0].memset_data = binding->workspace;
    launch->steps[0].memset_bytes = v->n * (int64_t)sizeof(float);
    QUERN_BIND(&launch->steps[1], args, blocks, 1, 1);
    QUERN_BIND(&launch->steps[2], args, blocks, 1, 1);
}

static const struct quern_variant stage_cuda = {
    .name = "stage_cuda",
    .doc = "a memset and two kernels",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = sizeof(knobs) / sizeof(knobs[0]),
    .supports = supports,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    if (values_of(spec)->n > 1 << 30)
        return quern_refuse(why, "n=%lld: must be at most 2^30", (long long)values_of(spec)->n);
    return QUERN_OK;
}

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->n;
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    double x, out = 0;
    quern_ref_read(ref, ARRAY_x, unit, 1, &x);
    if (values_of(quern_ref_spec(ref))->accumulate)
        quern_ref_read(ref, ARRAY_out, unit, 1, &out);
    out += 2 * x;
    quern_ref_expect(ref, ARRAY_out, unit, 1, &out);
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 1e-7;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    cost->flops = 2.0 * (double)values_of(spec)->n;
    cost->bytes = 8.0 * (double)values_of(spec)->n;
}

static const struct quern_variant *const variants[] = { &stage_cuda, NULL };

const struct quern_family gpu_stage_family = {
    QUERN_FAMILY_TABLES(stage),
    .folder = "stage",
    .doc = "out = 2 x (+ out), for the suites",
    .variants = variants,
    .sources = sources,
    .validate = validate,
    .units = units,
    .reference = reference,
    .tolerance = tolerance,
    .cost = cost,
};
