/* copy: the smallest complete family. One dynamic size, one dtype, a flag that makes the output an
 * inout array, a scalar, and a variant for each kind of device:
 *
 *     copy_cpu    a block of the grid is a piece of the array; one knob, a launch argument
 *     copy_cuda   blocks walk over the array together; knobs that are #defines, and one that is not
 *
 * Copy this folder to start a family. */
#define QUERN_DEF "copy/copy.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "copy.h"
#include "copy_args.h"

/* What the code of both kinds of kernel depends on. */
static void define_spec(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "INPLACE", v->inplace);
    quern_step_define(step, "HAS_ALPHA", !isnan(v->alpha));
}

/* The arguments of both. */
static struct copy_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    return (struct copy_args){
        .x = binding->arrays[ARRAY_x].data,
        .out = binding->arrays[ARRAY_out].data,
        .n = v->n,
        .alpha = (float)v->alpha,
    };
}

static int require_power_of_two(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { KNOB_BLOCK_KIB };
static const struct quern_knob cpu_knobs[] = {
    [KNOB_BLOCK_KIB] = { "block_kib", 1, 65536, "KiB of the output that a block writes" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    (void)problem;
    return require_power_of_two("block_kib", config[KNOB_BLOCK_KIB], why);
}

static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_BLOCK_KIB] = 256;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t sizes[] = { 256, 1024, 64, 4096, 16 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][KNOB_BLOCK_KIB] = sizes[count];
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step = quern_plan_kernel(plan, "copy", "copy/copy_cpu.c", "copy_main");
    (void)config; /* the block size is a launch argument: every config shares one artifact */
    define_spec(step, problem->bucket);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct copy_args args = arguments(binding);
    args.block = (int64_t)binding->config[KNOB_BLOCK_KIB] * 1024 /
                 (int64_t)quern_dtype_bytes((int)values_of(binding->spec)->dtype);
    QUERN_BIND(&launch->steps[0], args, (args.n + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant copy_cpu = {
    .name = "copy_cpu",
    .doc = "vector loads and stores, a block of the array each",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = sizeof(cpu_knobs) / sizeof(cpu_knobs[0]),
    .supports = cpu_supports,
    .legal = cpu_legal,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- The CUDA variant ---------------------------------------------------------------------- */

/* The bounds keep every config in registers, whatever the flags. */
enum { KNOB_THREADS, KNOB_UNROLL, KNOB_BLOCKS };
static const struct quern_knob cuda_knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 512, "threads of a block" },
    [KNOB_UNROLL] = { "unroll", 1, 8, "accesses that a thread has in flight" },
    [KNOB_BLOCKS] = { "blocks", 1, 1024, "blocks in the grid for each SM, at most" },
};

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    (void)problem;
    for (int i = 0; i < (int)(sizeof(cuda_knobs) / sizeof(cuda_knobs[0])); i++) {
        if (require_power_of_two(cuda_knobs[i].name, config[i], why))
            return QUERN_INVALID;
    }
    return QUERN_OK;
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_THREADS] = 256;
    config[KNOB_UNROLL] = 4;
    config[KNOB_BLOCKS] = 32;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][3] = { { 256, 4, 32 },   { 256, 4, 1024 }, { 256, 2, 32 },
                                       { 512, 4, 1024 }, { 512, 2, 4 },    { 128, 8, 32 },
                                       { 256, 1, 8 },    { 256, 8, 8 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

/* Bytes of an access: what both arrays are aligned to. */
static int64_t access_bytes(const struct quern_problem *problem)
{
    int x = problem->alignment[ARRAY_x], out = problem->alignment[ARRAY_out];
    return x < out ? x : out;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    struct quern_step *step = quern_plan_kernel(plan, "copy", "copy/copy_cuda.cu", "copy_cuda");
    define_spec(step, problem->bucket);
    quern_step_define(step, "ACCESS", access_bytes(problem));
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

/* As many blocks as there are tiles of 16-byte accesses, up to the config's share of the SMs. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct copy_args args = arguments(binding);
    const int32_t *config = binding->config;
    int64_t element = (int64_t)quern_dtype_bytes((int)values_of(binding->spec)->dtype);
    int64_t tile = (int64_t)config[KNOB_THREADS] * config[KNOB_UNROLL] * 16 / element;
    int64_t tiles = (args.n + tile - 1) / tile;
    int64_t most = (int64_t)binding->profile->cores * config[KNOB_BLOCKS];
    QUERN_BIND(&launch->steps[0], args, tiles < most ? tiles : most, 1, 1);
}

static const struct quern_variant copy_cuda = {
    .name = "copy_cuda",
    .doc = "accesses as wide as the alignment allows, several in flight a thread",
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

/* A CPU block covers at least 1 KiB, and a grid dimension is 32 bits. */
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

static const struct quern_variant *const variants[] = { &copy_cuda, &copy_cpu, NULL };

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
