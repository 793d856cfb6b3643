/* What moe_sum, moe_sum_reduce and apply_shuffle_mul_sum do: rows of a token weighed, added in f32
 * in their order and rounded once.
 *
 *     CPU     a block of the grid is some tokens; their number is a launch argument
 *     CUDA    a thread has some columns of a token and several of its rows in flight
 *
 * All sizes are arguments: the kernels are made for dtype and alignment alone. */
#include <math.h>
#include <string.h>

#include "moe_combine.h"

struct moe_combine_spec moe_combine_spec(const struct quern_spec *spec)
{
    const char *name = spec->family->name;
    return !strcmp(name, "moe_sum")          ? moe_sum_spec(spec)
           : !strcmp(name, "moe_sum_reduce") ? moe_sum_reduce_spec(spec)
                                             : apply_shuffle_mul_sum_spec(spec);
}

int moe_combine_out(const struct quern_spec *spec)
{
    return spec->family->array_count - 1;
}

static struct moe_combine_args arguments(const struct quern_binding *binding)
{
    const struct moe_combine_spec s = moe_combine_spec(binding->spec);
    const struct quern_array *in = &binding->arrays[MOE_COMBINE_IN];
    const struct quern_array *out = &binding->arrays[moe_combine_out(binding->spec)];
    struct moe_combine_args args = {
        .in = in->data,
        .out = out->data,
        .in_token = s.perm < 0 ? in->strides[0] : 0,
        .in_row = s.perm < 0 ? in->strides[1] : in->strides[0],
        .out_token = out->strides[0],
        .tokens = s.tokens,
        .rows = s.rows,
        .topk = (int32_t)s.topk,
        .width = (int32_t)s.width,
        .scaling = (float)s.scaling,
    };
    if (s.perm >= 0) {
        args.perm = binding->arrays[s.perm].data;
        args.perm_token = binding->arrays[s.perm].strides[0];
    }
    if (s.factors >= 0) {
        args.factors = binding->arrays[s.factors].data;
        args.factors_token = binding->arrays[s.factors].strides[0];
    }
    return args;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

static const struct quern_knob cpu_knobs[] = {
    { "block_kib", 16, 65536, "KiB of rows that a block of the grid adds" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[0] = 256;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t sizes[] = { 256, 1024, 64, 4096, 16 };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "combine", "moe/moe_combine_cpu.c", "moe_combine_main");
    (void)config; /* a launch argument: every config shares one artifact */
    quern_step_define(step, "DTYPE", moe_combine_spec(problem->bucket).dtype);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct moe_combine_spec s = moe_combine_spec(binding->spec);
    struct moe_combine_args args = arguments(binding);
    int64_t bytes = s.topk * s.width * (int64_t)quern_dtype_bytes((int)s.dtype);
    int64_t tokens = (int64_t)binding->config[0] * 1024 / bytes;
    args.block = tokens ? tokens : 1;
    QUERN_BIND(&launch->steps[0], args, (s.tokens + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant moe_combine_cpu = {
    .name = "moe_combine_cpu",
    .doc = "a block of the grid adds the rows of some tokens",
    .device = QUERN_CPU,
    .knobs = cpu_knobs,
    .knob_count = sizeof(cpu_knobs) / sizeof(cpu_knobs[0]),
    .supports = cpu_supports,
    .heuristic = cpu_heuristic,
    .candidates = cpu_candidates,
    .plan = cpu_plan,
    .bind = cpu_bind,
};

/* ---- The CUDA variant ------------------------------------------------------------------------ */

enum { KNOB_THREADS, KNOB_UNROLL, CUDA_KNOBS };
static const struct quern_knob cuda_knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 256, "threads of a block" },
    [KNOB_UNROLL] = { "unroll", 1, 8, "rows that a thread has in flight" },
};
enum { ACCESS_MOST = 16, BLOCKS_MOST = 4096 /* of an SM */ };

void moe_combine_choose(int64_t topk, struct moe_combine_config *config)
{
    config->threads = 256;
    config->unroll = topk > 4 ? 8 : 4;
}

struct quern_step *moe_combine_plan(const struct quern_problem *problem,
                                    const struct moe_combine_config *config, const int dtypes[2],
                                    const int alignments[2], struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "combine", "moe/moe_combine_cuda.cu", "moe_combine");
    const int wider =
        (int)(quern_dtype_bytes(dtypes[0]) / quern_dtype_bytes(dtypes[1])); /* in than out */
    int access = alignments[0] < ACCESS_MOST ? alignments[0] : ACCESS_MOST;
    access = access < alignments[1] * wider ? access : alignments[1] * wider;
    quern_step_define(step, "DTYPE", dtypes[0]);
    quern_step_define(step, "OUT_DTYPE", dtypes[1]);
    quern_step_define(step, "ACCESS", access);
    quern_step_define(step, "THREADS", config->threads);
    quern_step_define(step, "UNROLL", config->unroll);
    step->threads[0] = (uint32_t)config->threads;
    step->is_programmatic = problem->target->sm >= 90;
    return step;
}

/* As many blocks as 16-byte accesses need; with narrower ones they walk on. */
void moe_combine_bind(const struct moe_combine_args *args, const struct moe_combine_config *config,
                      int dtype, const struct quern_profile *profile,
                      struct quern_step_launch *step)
{
    int64_t elements = ACCESS_MOST / (int64_t)quern_dtype_bytes(dtype);
    int64_t accesses = args->tokens * ((args->width + elements - 1) / elements);
    int64_t blocks = (accesses + config->threads - 1) / config->threads;
    int64_t most = (int64_t)profile->cores * BLOCKS_MOST;
    QUERN_BIND(step, *args, blocks < most ? blocks : most, 1, 1);
}

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    (void)problem;
    for (int i = 0; i < CUDA_KNOBS; i++) {
        if (config[i] & (config[i] - 1))
            return quern_refuse(why, "config %s=%d: must be a power of two", cuda_knobs[i].name,
                                config[i]);
    }
    return QUERN_OK;
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct moe_combine_config choice;
    moe_combine_choose(moe_combine_spec(problem->bucket).topk, &choice);
    config[KNOB_THREADS] = choice.threads;
    config[KNOB_UNROLL] = choice.unroll;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][CUDA_KNOBS] = { { 256, 8 }, { 256, 4 }, { 128, 8 }, { 128, 4 },
                                                { 64, 8 },  { 64, 4 },  { 256, 2 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct moe_combine_config choice = { config[KNOB_THREADS], config[KNOB_UNROLL] };
    const int dtype = (int)moe_combine_spec(problem->bucket).dtype;
    const int dtypes[] = { dtype, dtype };
    const int alignments[] = { problem->alignment[MOE_COMBINE_IN],
                               problem->alignment[moe_combine_out(problem->bucket)] };
    moe_combine_plan(problem, &choice, dtypes, alignments, plan);
}

static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct moe_combine_config choice = { binding->config[KNOB_THREADS],
                                               binding->config[KNOB_UNROLL] };
    const struct moe_combine_args args = arguments(binding);
    moe_combine_bind(&args, &choice, (int)moe_combine_spec(binding->spec).dtype, binding->profile,
                     &launch->steps[0]);
}

static const struct quern_variant moe_combine_cuda = {
    .name = "moe_combine_cuda",
    .doc = "accesses as wide as the alignment allows, several rows in flight a thread",
    .device = QUERN_CUDA,
    .knobs = cuda_knobs,
    .knob_count = CUDA_KNOBS,
    .supports = cuda_supports,
    .legal = cuda_legal,
    .heuristic = cuda_heuristic,
    .candidates = cuda_candidates,
    .plan = cuda_plan,
    .bind = cuda_bind,
};

const struct quern_variant *const moe_combine_variants[] = { &moe_combine_cuda, &moe_combine_cpu,
                                                             NULL };

/* ---- Rules, units, cost ---------------------------------------------------------------------- */

int moe_combine_validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct moe_combine_spec s = moe_combine_spec(spec);
    const char *width = s.perm < 0 ? "hidden" : "width";
    if (s.topk > MOE_COMBINE_TOPK_MOST)
        return quern_refuse(why, "topk=%lld: must be at most %d", (long long)s.topk,
                            MOE_COMBINE_TOPK_MOST);
    if (s.width > MOE_COMBINE_WIDTH_MOST)
        return quern_refuse(why, "%s=%lld: must be at most %d", width, (long long)s.width,
                            MOE_COMBINE_WIDTH_MOST);
    if (s.tokens > (INT64_C(1) << 39) / (s.topk * s.width) || s.tokens > INT32_MAX)
        return quern_refuse(why, "tokens=%lld: must be below 2^31, tokens * topk * %s at most 2^39",
                            (long long)s.tokens, width);
    if (s.rows > (INT64_C(1) << 39) / s.width || s.rows > INT32_MAX)
        return quern_refuse(why, "rows=%lld: must be below 2^31, rows * %s at most 2^39",
                            (long long)s.rows, width);
    return QUERN_OK;
}

int64_t moe_combine_units(const struct quern_spec *spec)
{
    return moe_combine_spec(spec).tokens;
}

double moe_combine_tolerance(const struct quern_spec *spec, int index)
{
    const struct moe_combine_spec s = moe_combine_spec(spec);
    (void)index;
    return s.dtype == QUERN_BF16  ? 2.5e-3
           : s.dtype == QUERN_F16 ? 4e-4
                                  : fmax(1e-6, 5e-8 * sqrt((double)s.topk));
}

void moe_combine_cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct moe_combine_spec s = moe_combine_spec(spec);
    const double slots = (double)s.tokens * (double)s.topk, width = (double)s.width;
    cost->flops = slots * width * (s.factors < 0 ? 1 : 2);
    cost->bytes = (slots + (double)s.tokens) * width * (double)quern_dtype_bytes((int)s.dtype) +
                  4 * slots * ((s.perm >= 0) + (s.factors >= 0));
}
