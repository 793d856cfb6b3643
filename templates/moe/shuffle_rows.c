/* shuffle_rows: rows in another order, as bytes.
 *
 *     CPU     a block of the grid is some rows; their number is a launch argument
 *     CUDA    blocks walk over the accesses of the output together
 *
 * All sizes are arguments: one kernel serves all dtypes, one for each alignment on CUDA. */
#define QUERN_DEF "moe/shuffle_rows.def"
#include <quern/family_def.h>

#include <string.h>

#include "moe_rows.h"
#include "shuffle_rows.h"
#include "shuffle_rows_args.h"

enum { WIDTH_MOST = 1 << 20 };

static struct shuffle_rows_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const int64_t size = (int64_t)quern_dtype_bytes((int)v->dtype);
    return (struct shuffle_rows_args){
        .in = binding->arrays[ARRAY_in].data,
        .map = binding->arrays[ARRAY_map].data,
        .out = binding->arrays[ARRAY_out].data,
        .in_row = binding->arrays[ARRAY_in].strides[0] * size,
        .out_row = binding->arrays[ARRAY_out].strides[0] * size,
        .rows = v->rows,
        .inputs = v->inputs,
        .width = (int32_t)(v->width * size),
    };
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

static const struct quern_knob cpu_knobs[] = {
    { "block_kib", 16, 65536, "KiB of the output that a block writes" },
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
    (void)problem, (void)config;
    quern_plan_kernel(plan, "shuffle", "moe/shuffle_rows_cpu.c", "shuffle_rows_main");
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    struct shuffle_rows_args args = arguments(binding);
    int64_t rows = (int64_t)binding->config[0] * 1024 / args.width;
    args.block = rows ? rows : 1;
    QUERN_BIND(&launch->steps[0], args, (args.rows + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant shuffle_rows_cpu = {
    .name = "shuffle_rows_cpu",
    .doc = "a block of the grid copies some rows",
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

enum { KNOB_THREADS, KNOB_UNROLL, KNOB_BLOCKS, CUDA_KNOBS };
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
    for (int i = 0; i < CUDA_KNOBS; i++) {
        if (config[i] & (config[i] - 1))
            return quern_refuse(why, "config %s=%d: must be a power of two", cuda_knobs[i].name,
                                config[i]);
    }
    return QUERN_OK;
}

/* Few rows: more blocks of less. */
static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t accesses = v->rows * v->width * (int64_t)quern_dtype_bytes((int)v->dtype) / 16;
    config[KNOB_THREADS] = 256;
    config[KNOB_UNROLL] = accesses < (int64_t)problem->profile->cores * 256 * 8 ? 1 : 4;
    config[KNOB_BLOCKS] = 1024;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][CUDA_KNOBS] = { { 256, 4, 1024 }, { 256, 2, 1024 },
                                                { 256, 1, 1024 }, { 512, 4, 1024 },
                                                { 128, 4, 1024 }, { 256, 4, 8 },
                                                { 256, 8, 8 } };
    int count = 0;
    (void)problem;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

static void cuda_plan(const struct quern_problem *problem, const int32_t *config,
                      struct quern_plan *plan)
{
    struct quern_step *step =
        quern_plan_kernel(plan, "shuffle", "moe/shuffle_rows_cuda.cu", "shuffle_rows");
    int in = problem->alignment[ARRAY_in], out = problem->alignment[ARRAY_out];
    quern_step_define(step, "ACCESS", in < out ? in : out);
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
    step->is_programmatic = problem->target->sm >= 90;
}

/* As many blocks as there are tiles of 16-byte accesses, up to the config's share of the SMs; with
 * narrower ones they walk on. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct shuffle_rows_args args = arguments(binding);
    const int32_t *config = binding->config;
    int64_t tile = (int64_t)config[KNOB_THREADS] * config[KNOB_UNROLL];
    int64_t tiles = (args.rows * ((args.width + 15) / 16) + tile - 1) / tile;
    int64_t most = (int64_t)binding->profile->cores * config[KNOB_BLOCKS];
    QUERN_BIND(&launch->steps[0], args, tiles < most ? tiles : most, 1, 1);
}

static const struct quern_variant shuffle_rows_cuda = {
    .name = "shuffle_rows_cuda",
    .doc = "accesses as wide as the alignment allows, several in flight a thread",
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

/* ---- The family ------------------------------------------------------------------------------ */

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int64_t most = (INT64_C(1) << 39) / v->width;
    if (v->width > WIDTH_MOST)
        return quern_refuse(why, "width=%lld: must be at most %d", (long long)v->width, WIDTH_MOST);
    if (v->rows > most)
        return quern_refuse(why, "rows=%lld: rows * width must be at most 2^39",
                            (long long)v->rows);
    if (v->inputs > most || v->inputs > INT32_MAX)
        return quern_refuse(why, "inputs=%lld: must be below 2^31, inputs * width at most 2^39",
                            (long long)v->inputs);
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->inputs == QUERN_REQUIRED)
        v->inputs = v->rows;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    return moe_rows_check("map", host[ARRAY_map], v->rows, "inputs", v->inputs, why);
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    if (index != ARRAY_map)
        return 0;
    moe_rows_draw(seed, v->rows, v->inputs, data);
    return 1;
}

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->rows;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0; /* a copy is exact */
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double row = (double)v->width * (double)quern_dtype_bytes((int)v->dtype);
    cost->flops = 0;
    cost->bytes = (double)v->rows * (2 * row + 4);
}

static const struct quern_variant *const variants[] = { &shuffle_rows_cuda, &shuffle_rows_cpu,
                                                        NULL };

const struct quern_family quern_family_shuffle_rows = {
    QUERN_FAMILY_TABLES(shuffle_rows),
    .folder = "moe",
    .doc = "rows in the order that a map says",
    .variants = variants,
    .validate = validate,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = shuffle_rows_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
