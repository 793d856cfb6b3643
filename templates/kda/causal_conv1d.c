/* causal_conv1d: a causal filter of each channel over packed sequences, with a variant for each
 * kind of device. Both cut the work into tiles of tokens by some channels, which are independent:
 * who reads and who writes a state in place is said in the kernels' own essays.
 *
 *     causal_conv1d_cpu    a block is a tile by a chunk of channels; knobs are launch arguments
 *     causal_conv1d_cuda   a thread is a tile by the channels of one access
 */
#define QUERN_DEF "kda/causal_conv1d.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "causal_conv1d.h"
#include "causal_conv1d_args.h"
#include "conv_inputs.h"
#include "kda_indices.h"

#define CHUNK_CHANNELS 512 /* FILTER_CHANNELS of conv_filter.h */
#define MOST_TILES (INT64_C(1) << 30)
#define MOST_SEQUENCES (INT64_C(1) << 30)

/* What the code of both kinds of kernel depends on. */
static void define_spec(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "W", v->w);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "WEIGHT", v->weight);
    quern_step_define(step, "BIAS", v->bias);
    quern_step_define(step, "ACT", v->act);
    quern_step_define(step, "INDEX_BYTES", v->index == QUERN_I64 ? 8 : 4);
    quern_step_define(step, "VARLEN", v->varlen);
    quern_step_define(step, "POOL", v->pool);
}

/* The arguments of both, but for how the work is cut. Tiles are doubled until a grid holds them. */
static struct causal_conv1d_args arguments(const struct quern_binding *binding, int64_t tile)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    const struct quern_array *before = &arrays[v->pool ? ARRAY_states : ARRAY_initial_state];
    const struct quern_array *after = &arrays[v->pool ? ARRAY_states : ARRAY_final_state];
    while (conv_ceil_div(v->t, tile) > MOST_TILES)
        tile *= 2;
    return (struct causal_conv1d_args){
        .x = arrays[ARRAY_x].data,
        .weight = arrays[ARRAY_weight].data,
        .bias = arrays[ARRAY_bias].data,
        .cu_seqlens = arrays[ARRAY_cu_seqlens].data,
        .slots = arrays[ARRAY_slots].data,
        .has_initial = arrays[ARRAY_has_initial].data,
        .old_state = before->data,
        .y = arrays[ARRAY_y].data,
        .new_state = after->data,
        .x_pitch = arrays[ARRAY_x].strides[0],
        .y_pitch = arrays[ARRAY_y].strides[0],
        .weight_pitch = arrays[ARRAY_weight].strides[0],
        .old_pitch = { before->strides[0], before->strides[1] },
        .new_pitch = { after->strides[0], after->strides[1] },
        .t = v->t,
        .n = v->n,
        .d = v->d,
        .capacity = v->capacity,
        .tile = tile,
        .tiles = conv_ceil_div(v->t, tile),
    };
}

/* Sequences whose states are written beside the tiles. */
static int64_t state_items(const struct values *v)
{
    return v->final && !v->pool ? v->n : 0;
}

/* ---- The CPU variant ----------------------------------------------------------------------- */

enum { CPU_TOKENS, CPU_CHUNK };
static const struct quern_knob cpu_knobs[] = {
    [CPU_TOKENS] = { "tokens", 4, 65536, "tokens of a tile" },
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
    if (conv_require_power_of_two("tokens", config[CPU_TOKENS], why))
        return QUERN_INVALID;
    return conv_require_power_of_two("chunk", config[CPU_CHUNK], why);
}

/* Tiles as long as leaves a few for each core: a block first transposes its weights. */
static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 1;
    config[CPU_CHUNK] = CHUNK_CHANNELS;
    config[CPU_TOKENS] = 256;
    while (config[CPU_TOKENS] > 32 &&
           conv_ceil_div(v->t, config[CPU_TOKENS]) * conv_ceil_div(v->d, CHUNK_CHANNELS) <
               4 * cores)
        config[CPU_TOKENS] /= 2;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    static const int32_t list[][2] = { { 256, 512 }, { 64, 512 },  { 1024, 512 }, { 256, 256 },
                                       { 64, 256 },  { 256, 128 }, { 32, 512 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "conv", "kda/causal_conv1d_cpu.c", "causal_conv1d_main");
    (void)config; /* launch arguments: every config shares one artifact */
    define_spec(step, problem->bucket);
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct causal_conv1d_args args = arguments(binding, binding->config[CPU_TOKENS]);
    args.chunk = binding->config[CPU_CHUNK];
    QUERN_BIND(&launch->steps[0], args, args.tiles + state_items(v),
               conv_ceil_div(v->d, args.chunk), 1);
}

static const struct quern_variant causal_conv1d_cpu = {
    .name = "causal_conv1d_cpu",
    .doc = "a tile of tokens by a chunk of channels a block, four tokens at a time",
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
enum { CUDA_THREADS, CUDA_TOKENS, CUDA_UNROLL };
static const struct quern_knob cuda_knobs[] = {
    [CUDA_THREADS] = { "threads", 32, 256, "threads of a block" },
    [CUDA_TOKENS] = { "tokens", 4, 4096, "tokens of a tile" },
    [CUDA_UNROLL] = { "unroll", 1, 8, "accesses that a thread has in flight" },
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
        if (conv_require_power_of_two(cuda_knobs[i].name, config[i], why))
            return QUERN_INVALID;
    }
    return QUERN_OK;
}

/* What a thread steps through in accesses. */
static const int stepped[] = { ARRAY_x, ARRAY_y, ARRAY_initial_state, ARRAY_final_state,
                               ARRAY_states };
enum { STEPPED_COUNT = sizeof(stepped) / sizeof(stepped[0]) };

/* Accesses that hold the channels. */
static int64_t columns_of(const struct values *v, int64_t access)
{
    return conv_ceil_div(v->d, access / (int64_t)quern_dtype_bytes((int)v->dtype));
}

/* Tiles as long as leaves each SM 2048 threads: the rows before a tile are read twice. */
static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t cores = problem->profile->cores > 0 ? problem->profile->cores : 64;
    int64_t columns = columns_of(v, conv_access_bytes(problem, stepped, STEPPED_COUNT));
    config[CUDA_THREADS] = 128;
    config[CUDA_UNROLL] = 4;
    config[CUDA_TOKENS] = 64;
    while (config[CUDA_TOKENS] > 8 &&
           (double)conv_ceil_div(v->t, config[CUDA_TOKENS]) * (double)columns <
               2048.0 * (double)cores)
        config[CUDA_TOKENS] /= 2;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t shapes[][2] = {
        { 128, 4 }, { 128, 8 }, { 64, 4 }, { 256, 4 }, { 128, 2 }
    };
    static const int32_t tokens[] = { 32, 16, 64, 8, 128 };
    int count = 0;
    (void)problem;
    for (int t = 0; t < (int)(sizeof(tokens) / sizeof(tokens[0])); t++) {
        for (int s = 0; s < (int)(sizeof(shapes) / sizeof(shapes[0])) && count < max; s++) {
            configs[count][CUDA_THREADS] = shapes[s][0];
            configs[count][CUDA_UNROLL] = shapes[s][1];
            configs[count++][CUDA_TOKENS] = tokens[t];
        }
    }
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step =
        quern_plan_kernel(plan, "conv", "kda/causal_conv1d_cuda.cu", "causal_conv1d_cuda");
    define_spec(step, problem->bucket);
    quern_step_define(step, "CONV_ACCESS", conv_access_bytes(problem, stepped, STEPPED_COUNT));
    quern_step_define(step, "WEIGHT_ACCESS",
                      conv_weight_access(v->w, v->weight, problem->alignment[ARRAY_weight]));
    quern_step_define(step, "THREADS", config[CUDA_THREADS]);
    quern_step_define(step, "UNROLL", config[CUDA_UNROLL]);
    step->threads[0] = (uint32_t)config[CUDA_THREADS];
}

/* A thread for each item, up to what a grid holds. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const int32_t *config = binding->config;
    struct causal_conv1d_args args = arguments(binding, config[CUDA_TOKENS]);
    int64_t access = conv_access_bound(binding->arrays, stepped, STEPPED_COUNT, v->dtype);
    double items = (double)(args.tiles + state_items(v)) * (double)columns_of(v, access);
    double blocks = ceil(items / config[CUDA_THREADS]);
    QUERN_BIND(&launch->steps[0], args, blocks < INT32_MAX ? blocks : INT32_MAX, 1, 1);
}

static const struct quern_variant causal_conv1d_cuda = {
    .name = "causal_conv1d_cuda",
    .doc = "a thread walks down a tile of tokens with its inputs in registers",
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
    if (!conv_is_product_small(v->t, v->d))
        return quern_refuse(why, "t=%lld: t d must be at most 2^40", (long long)v->t);
    if (v->n > MOST_SEQUENCES)
        return quern_refuse(why, "n=%lld: must be at most 2^30", (long long)v->n);
    if (v->t && !v->n)
        return quern_refuse(why, "n=0: must be at least 1 for t=%lld", (long long)v->t);
    if (!v->varlen && v->n && v->t % v->n)
        return quern_refuse(why, "t=%lld: must be a multiple of n=%lld without varlen=1",
                            (long long)v->t, (long long)v->n);
    if (v->varlen && v->index == QUERN_I32 && v->t > INT32_MAX)
        return quern_refuse(why, "index=i32: must be i64 for t=%lld", (long long)v->t);
    if (v->has_initial && !v->pool && !v->initial)
        return quern_refuse(why, "has_initial=1: must be 0 without pool=1 or initial=1");
    return conv_validate(v->d, v->w, v->n, (int)v->pool, v->capacity, why);
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_states) {
        conv_touch_pool(&arrays[index], &shape, host[ARRAY_slots], values_of(spec)->n, ranges);
        return;
    }
    conv_touch_whole(&arrays[index], &shape, ranges);
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    int status = kda_check_borders(host[ARRAY_cu_seqlens], v->index, v->n, v->t, why);
    return status ? status : kda_check_slots(host[ARRAY_slots], v->n, v->capacity, 1, why);
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    seed += (uint64_t)index * UINT64_C(0xd1342543de82ef95);
    if (index == ARRAY_slots)
        conv_draw_slots(seed, v->n, v->capacity, data);
    else if (index == ARRAY_cu_seqlens)
        conv_draw_cu_seqlens(seed, v->n, v->t, (int)v->index, data);
    else if (index == ARRAY_has_initial)
        return 0;
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
    const struct values *v = values_of(spec);
    return v->t + (v->pool || v->final ? v->n : 0);
}

/* States are moved, not computed. */
static double tolerance(const struct quern_spec *spec, int index)
{
    return index == ARRAY_y ? conv_tolerance(values_of(spec)->dtype) : 0;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double element = (double)quern_dtype_bytes((int)v->dtype), t = (double)v->t, d = (double)v->d;
    double states = (double)v->n * (double)(v->w - 1) * d * element;
    cost->flops = t * d * (2.0 * (double)v->w + (v->act ? 4 : 0));
    cost->bytes = 2 * t * d * element +
                  d * (double)v->w * (double)quern_dtype_bytes((int)v->weight) +
                  d * (double)quern_dtype_bytes((int)v->bias) +
                  states * (double)(v->pool ? 2 : v->initial + v->final);
}

/* t is a multiple of n. No kernel is made for the pool's size: as many slots as sequences are what
 * a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->n = quern_power_of_two_above(v->n);
    v->t = quern_power_of_two_above(v->t < v->n ? v->n : v->t);
    v->d = quern_power_of_two_above(v->d);
    v->capacity = v->capacity ? v->n : 0;
}

static const struct quern_variant *const variants[] = { &causal_conv1d_cuda, &causal_conv1d_cpu,
                                                        NULL };

const struct quern_family quern_family_causal_conv1d = {
    QUERN_FAMILY_TABLES(causal_conv1d),
    .folder = "kda",
    .doc = "causal filter of each channel over packed sequences, with states",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = causal_conv1d_reference,
    .tolerance = tolerance,
    .cost = cost,
};
