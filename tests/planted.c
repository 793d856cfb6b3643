#include "planted.h"

/* An accumulator is touched between commit and wait when PLANT is 1. */
const char planted_wgmma[] =
    "extern \"C\" __global__ void __launch_bounds__(128, 1)\n"
    "planted(float *out, unsigned long long a, unsigned long long b, int count)\n"
    "{\n"
    "    float d[4] = { 0, 0, 0, 0 };\n"
    "    for (int i = 0; i < count; i++) {\n"
    "        asm volatile(\"wgmma.fence.sync.aligned;\" ::: \"memory\");\n"
    "        asm volatile(\"{ .reg .pred p; setp.ne.b32 p, 1, 0;\\n\"\n"
    "            \"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 \"\n"
    "            \"{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }\"\n"
    "            : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3])\n"
    "            : \"l\"(a + i), \"l\"(b) : \"memory\");\n"
    "        asm volatile(\"wgmma.commit_group.sync.aligned;\" ::: \"memory\");\n"
    "        if (PLANT) d[3] += 1;\n"
    "        asm volatile(\"wgmma.wait_group.sync.aligned 0;\"\n"
    "            : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) :: \"memory\");\n"
    "    }\n"
    "    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];\n"
    "}\n";

/* The number of registers at entry is not known when PLANT is 1. */
const char planted_setmaxnreg[] =
    "extern \"C\" __global__ void\n"
    "#if PLANT\n"
    "__launch_bounds__(384)\n"
    "#else\n"
    "__launch_bounds__(384, 1)\n"
    "#endif\n"
    "planted(float *out)\n"
    "{\n"
    "    if (threadIdx.x < 128) asm volatile(\"setmaxnreg.dec.sync.aligned.u32 40;\");\n"
    "    else asm volatile(\"setmaxnreg.inc.sync.aligned.u32 232;\");\n"
    "    out[threadIdx.x] = 1;\n"
    "}\n";

/* 96 values live at once, in 32 registers when PLANT is 1. */
const char planted_spill[] =
    "extern \"C\" __global__ void\n"
    "#if PLANT\n"
    "__launch_bounds__(1024, 2)\n"
    "#else\n"
    "__launch_bounds__(128, 1)\n"
    "#endif\n"
    "planted(float *p)\n"
    "{\n"
    "    float a[96];\n"
    "    _Pragma(\"unroll\") for (int i = 0; i < 96; i++) a[i] = p[i * 32 + threadIdx.x];\n"
    "    __syncthreads();\n"
    "    _Pragma(\"unroll\") for (int i = 0; i < 96; i++) p[i * 32 + threadIdx.x] = a[i] * a[127 "
    "- i];\n"
    "}\n";

static const char error_text[] = "#error planted\n";

static const struct quern_source sources[] = {
    { "planted/wgmma.cu", planted_wgmma },
    { "planted/setmaxnreg.cu", planted_setmaxnreg },
    { "planted/spill.cu", planted_spill },
    { "planted/error.cu", error_text },
    { NULL, NULL },
};

static const struct quern_param params[] = {
    { "n", QUERN_STATIC, QUERN_SIZE, NULL, 1, 1, "elements" },
};
static const struct quern_array_info arrays_info[] = {
    { "out", "OUT", "f32", "n", "destination" },
};

static void shape(const struct quern_spec *spec, int index, struct quern_shape *out)
{
    (void)index;
    *out = (struct quern_shape){
        .role = QUERN_OUT, .dtype = QUERN_F32, .rank = 1, .dims = { spec->values[0] }
    };
}

static int64_t units(const struct quern_spec *spec)
{
    (void)spec;
    return 0;
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    (void)ref, (void)unit;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0;
}

static void cost(const struct quern_spec *spec, struct quern_cost *out)
{
    out->flops = out->bytes = (double)spec->values[0];
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[0] = PLANTED_NONE;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *made)
{
    static const char *const paths[] = { "planted/wgmma.cu", "planted/wgmma.cu",
                                         "planted/setmaxnreg.cu", "planted/spill.cu",
                                         "planted/error.cu" };
    struct quern_step *step = quern_plan_kernel(made, "planted", paths[config[0]], "planted");
    (void)problem;
    quern_step_define(step, "PLANT", config[0] != PLANTED_NONE);
    step->threads[0] = 128;
    step->threads[1] = step->threads[2] = 1;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    QUERN_BIND(&launch->steps[0], binding->arrays[0].data, 0, 1, 1);
}

static const struct quern_knob knobs[] = { { "kind", PLANTED_NONE, PLANTED_ERROR,
                                             "what is wrong" } };

static const struct quern_variant planted_cuda = {
    .name = "planted_cuda",
    .doc = "the one",
    .device = QUERN_CUDA,
    .knobs = knobs,
    .knob_count = 1,
    .supports = supports,
    .heuristic = heuristic,
    .plan = plan,
    .bind = bind,
};
static const struct quern_variant *const variants[] = { &planted_cuda, NULL };

const struct quern_family planted_family = {
    .abi = QUERN_FAMILY_ABI,
    .name = "planted",
    .folder = "planted",
    .doc = "kernels that ptxas has something to say of",
    .params = params,
    .param_count = 1,
    .arrays = arrays_info,
    .array_count = 1,
    .shape = shape,
    .variants = variants,
    .sources = sources,
    .units = units,
    .reference = reference,
    .tolerance = tolerance,
    .cost = cost,
};
