/* causal_conv1d_update: the causal filter for a few tokens of each sequence, states in place.
 *
 *     causal_conv1d_update_cpu    a block is some sequences by a chunk of channels
 *     causal_conv1d_update_cuda   a thread is some sequences by the channels of one access
 */
#define QUERN_DEF "kda/causal_conv1d_update.def"
#include <quern/family_def.h>

#include <string.h>

#include "causal_conv1d_update.h"
#include "causal_conv1d_update_args.h"
#include "conv_inputs.h"
#include "kda_indices.h"

#define CHUNK_CHANNELS 512 /* FILTER_CHANNELS of conv_filter.h */

/* What the code of both kinds of kernel depends on. */
static void define_spec(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "W", v->w);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "WEIGHT", v->weight);
    quern_step_define(step, "BIAS", v->bias);
    quern_step_define(step, "ACT", v->act);
    quern_step_define(step, "SAVE", v->save);
}

/* The arguments of both. */
static struct causal_conv1d_update_args arguments(const struct quern_binding *binding,
                                                  int64_t share)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays, *x = &arrays[ARRAY_x];
    const struct quern_array *y = &arrays[ARRAY_y], *states = &arrays[ARRAY_states];
    const struct quern_array *windows = &arrays[ARRAY_windows];
    return (struct causal_conv1d_update_args){
        .x = x->data,
        .weight = arrays[ARRAY_weight].data,
        .bias = arrays[ARRAY_bias].data,
        .slots = arrays[ARRAY_slots].data,
        .y = y->data,
        .states = states->data,
        .windows = windows->data,
        .weight_pitch = arrays[ARRAY_weight].strides[0],
        .x_pitch = { x->strides[0], x->strides[1] },
        .y_pitch = { y->strides[0], y->strides[1] },
        .state_pitch = { states->strides[0], states->strides[1] },
        .window_pitch = { windows->strides[0], windows->strides[1], windows->strides[2] },
        .n = v->n,
        .steps = v->steps,
        .d = v->d,
        .capacity = v->pool ? v->capacity : v->n,
        .share = share,
    };
}

/* Without steps there is nothing to write. */
static int is_empty(const struct values *v)
{
    return v->n == 0 || v->steps == 0 || v->d == 0;
}

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { CPU_SHARE, CPU_CHUNK };
static const struct quern_knob cpu_knobs[] = {
    [CPU_SHARE] = { "share", 1, 1 << 20, "sequences of a block" },
    [CPU_CHUNK] = { "chunk", 64, CHUNK_CHANNELS, "channels of a block" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    (void)problem;
    if (conv_require_power_of_two("share", config[CPU_SHARE], why))
        return QUERN_INVALID;
    return conv_require_power_of_two("chunk", config[CPU_CHUNK], why);
}

/* All sequences in a block, which first transposes its weights, if that leaves each core a few. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 1;
    config[CPU_CHUNK] = CHUNK_CHANNELS;
    while (config[CPU_CHUNK] > 64 && conv_ceil_div(v->d, config[CPU_CHUNK]) < 2 * cores)
        config[CPU_CHUNK] /= 2;
    config[CPU_SHARE] = 1 << 20;
    while (config[CPU_SHARE] > 16 &&
           conv_ceil_div(v->d, config[CPU_CHUNK]) * conv_ceil_div(v->n, config[CPU_SHARE]) <
               2 * cores)
        config[CPU_SHARE] /= 2;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t chunks[] = { 512, 256, 128, 64 }, shares[] = { 1 << 20, 64, 16, 4 };
    int count = 0;
    (void)problem;
    for (int s = 0; s < 4; s++) {
        for (int c = 0; c < 4 && count < max; c++) {
            configs[count][CPU_CHUNK] = chunks[c];
            configs[count++][CPU_SHARE] = shares[s];
        }
    }
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step = quern_plan_kernel(plan, "update", "kda/causal_conv1d_update_cpu.c",
                                                "causal_conv1d_update_main");
    (void)config; /* launch arguments: every config shares one artifact */
    define_spec(step, problem->bucket);
}

/* A grid dimension is 32 bits. */
static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    int64_t share = binding->config[CPU_SHARE];
    while (conv_ceil_div(v->n, share) > INT32_MAX)
        share *= 2;
    struct causal_conv1d_update_args args = arguments(binding, share);
    args.chunk = binding->config[CPU_CHUNK];
    QUERN_BIND(&launch->steps[0], args, is_empty(v) ? 0 : conv_ceil_div(v->n, share),
               conv_ceil_div(v->d, args.chunk), 1);
}

static const struct quern_variant causal_conv1d_update_cpu = {
    .name = "causal_conv1d_update_cpu",
    .doc = "sequences by a chunk of channels a block",
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

/* The bounds keep every config in registers. */
enum { CUDA_THREADS, CUDA_SHARE, CUDA_UNROLL };
static const struct quern_knob cuda_knobs[] = {
    [CUDA_THREADS] = { "threads", 32, 256, "threads of a block" },
    [CUDA_SHARE] = { "share", 1, 1024, "sequences of a thread" },
    [CUDA_UNROLL] = { "unroll", 1, 4, "steps that a thread has in flight" },
};

/* What a thread steps through in accesses. */
static const int stepped[] = { ARRAY_x, ARRAY_y, ARRAY_states, ARRAY_windows };
enum { STEPPED_COUNT = sizeof(stepped) / sizeof(stepped[0]) };

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    (void)problem;
    for (int i = 0; i < (int)(sizeof(cuda_knobs) / sizeof(cuda_knobs[0])); i++) {
        if (conv_require_power_of_two(cuda_knobs[i].name, config[i], why))
            return QUERN_INVALID;
    }
    return QUERN_OK;
}

/* Accesses that hold the channels. */
static int64_t columns_of(const struct values *v, int64_t access)
{
    return conv_ceil_div(v->d, access / (int64_t)quern_dtype_bytes((int)v->dtype));
}

/* Several sequences a thread only where each SM keeps 2048 threads. */
static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 64;
    double columns = (double)columns_of(v, conv_access_bytes(problem, stepped, STEPPED_COUNT));
    config[CUDA_THREADS] = 64;
    config[CUDA_UNROLL] = v->steps > 2 ? 4 : (int32_t)(v->steps > 0 ? v->steps : 1);
    config[CUDA_SHARE] = 1;
    while (config[CUDA_SHARE] < 4 &&
           (double)v->n / (2.0 * config[CUDA_SHARE]) * columns >= 2048.0 * (double)cores)
        config[CUDA_SHARE] *= 2;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t threads[] = { 64, 128, 32, 256 }, shares[] = { 1, 2, 4, 8 };
    int count = 0;
    int64_t steps = values_of(problem->bucket)->steps;
    for (int unroll = steps > 1 ? 4 : 1; unroll > 0; unroll /= 2) {
        for (int i = 0; i < 16 && count < max; i++) {
            configs[count][CUDA_THREADS] = threads[i % 4];
            configs[count][CUDA_SHARE] = shares[i / 4];
            configs[count++][CUDA_UNROLL] = unroll;
        }
    }
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "update", "kda/causal_conv1d_update_cuda.cu",
                                                "causal_conv1d_update_cuda");
    define_spec(step, problem->bucket);
    quern_step_define(step, "CONV_ACCESS", conv_access_bytes(problem, stepped, STEPPED_COUNT));
    quern_step_define(step, "WEIGHT_ACCESS",
                      conv_weight_access(v->w, v->weight, problem->alignment[ARRAY_weight]));
    quern_step_define(step, "THREADS", config[CUDA_THREADS]);
    quern_step_define(step, "UNROLL", config[CUDA_UNROLL]);
    step->threads[0] = (uint32_t)config[CUDA_THREADS];
}

/* Accesses by shares of sequences, up to what a grid holds: the kernel walks over the rest. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *config = binding->config;
    const struct causal_conv1d_update_args args = arguments(binding, config[CUDA_SHARE]);
    int64_t access = conv_access_bound(binding->arrays, stepped, STEPPED_COUNT, v->dtype);
    int64_t blocks = conv_ceil_div(columns_of(v, access), config[CUDA_THREADS]);
    int64_t shares = is_empty(v) ? 0 : conv_ceil_div(v->n, args.share);
    QUERN_BIND(&launch->steps[0], args, blocks < INT32_MAX ? blocks : INT32_MAX,
               shares < 65535 ? shares : 65535, 1);
}

static const struct quern_variant causal_conv1d_update_cuda = {
    .name = "causal_conv1d_update_cuda",
    .doc = "a thread moves the window of an access of channels along the steps",
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

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (!conv_is_product_small(v->n, v->d))
        return quern_refuse(why, "n=%lld: n d must be at most 2^40", (long long)v->n);
    if (!conv_is_product_small(v->steps, v->n * v->d))
        return quern_refuse(why, "steps=%lld: n steps d must be at most 2^40", (long long)v->steps);
    return conv_validate(v->d, v->w, v->n, (int)v->pool, v->capacity, why);
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_states && values_of(spec)->pool)
        conv_touch_pool(&arrays[index], &shape, host[ARRAY_slots], values_of(spec)->n, ranges);
    else
        conv_touch_whole(&arrays[index], &shape, ranges);
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return kda_check_slots(host[ARRAY_slots], v->n, v->capacity, !v->save, why);
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    seed += (uint64_t)index * UINT64_C(0xd1342543de82ef95);
    if (index == ARRAY_slots)
        conv_draw_slots(seed, v->n, v->capacity, data);
    else if (index == ARRAY_weight)
        conv_draw_filters(seed, v->d, v->w, v->weight, data);
    else if (index == ARRAY_bias)
        conv_draw_bias(seed, v->d, v->bias, data);
    else
        conv_draw_rows(seed, &shape, data);
    return 1;
}

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->n;
}

/* States are moved, not computed. */
static double tolerance(const struct quern_spec *spec, int index)
{
    return index == ARRAY_y ? conv_tolerance(values_of(spec)->dtype) : 0;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double element = (double)quern_dtype_bytes((int)v->dtype), d = (double)v->d;
    double tokens = (double)v->n * (double)v->steps, rows = (double)(v->w - 1);
    cost->flops = tokens * d * (2.0 * (double)v->w + (v->act ? 4 : 0));
    cost->bytes =
        d * (double)v->w * (double)quern_dtype_bytes((int)v->weight) +
        d * (double)quern_dtype_bytes((int)v->bias) +
        d * element * (2 * tokens + rows * (double)v->n + rows * (v->save ? tokens : (double)v->n));
}

/* No kernel is made for the pool's size: as many slots as sequences are what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->n = quern_power_of_two_above(v->n);
    v->steps = quern_power_of_two_above(v->steps);
    v->d = quern_power_of_two_above(v->d);
    v->capacity = v->capacity ? v->n : 0;
}

static const struct quern_variant *const variants[] = { &causal_conv1d_update_cuda,
                                                        &causal_conv1d_update_cpu, NULL };

const struct quern_family quern_family_causal_conv1d_update = {
    QUERN_FAMILY_TABLES(causal_conv1d_update),
    .folder = "kda",
    .doc = "causal filter of a few tokens of each sequence, states in place",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = causal_conv1d_update_reference,
    .tolerance = tolerance,
    .cost = cost,
};
