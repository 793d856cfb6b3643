/* merge_state and merge_state_v2: what is theirs together, and the variants. A row is a head of a
 * token. */
#define QUERN_DEF "attention/merge_state.def" /* merge_state_v2's has the same names in it */
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "merge_states.h"
#include "merge_states_args.h"

enum { MOST_WIDTH = 1024 };

int merge_states_is_v2(const struct quern_spec *spec)
{
    return !strcmp(spec->family->name, "merge_state_v2");
}

static struct merge_rows rows_of(const struct quern_array *array)
{
    return (struct merge_rows){ array->data, array->strides[0], array->strides[1] };
}

static struct merge_states_args arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    return (struct merge_states_args){
        .v_a = rows_of(&arrays[ARRAY_v_a]),
        .s_a = rows_of(&arrays[ARRAY_s_a]),
        .v_b = rows_of(&arrays[ARRAY_v_b]),
        .s_b = rows_of(&arrays[ARRAY_s_b]),
        .v_merged = rows_of(&arrays[ARRAY_v_merged]),
        .s_merged = rows_of(&arrays[ARRAY_s_merged]),
        .rows = v->t * v->h,
    };
}

static struct quern_step *plan_step(const struct quern_problem *problem, struct quern_plan *plan,
                                    const char *source, const char *entry)
{
    const struct values *v = values_of(problem->bucket);
    struct quern_step *step = quern_plan_kernel(plan, "merge", source, entry);
    quern_step_define(step, "H", v->h);
    quern_step_define(step, "D", v->d);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "IS_V2", merge_states_is_v2(problem->bucket));
    return step;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

enum { KNOB_BLOCK_KIB };
static const struct quern_knob cpu_knobs[] = {
    [KNOB_BLOCK_KIB] = { "block_kib", 1, 1024, "KiB of v_a that a block reads" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static void cpu_heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[KNOB_BLOCK_KIB] = 64;
}

static int cpu_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                          int max)
{
    int count = 0;
    (void)problem;
    for (int kib = 16; kib <= 256 && count < max; kib *= 4)
        configs[count++][KNOB_BLOCK_KIB] = kib;
    return count;
}

static void cpu_plan(const struct quern_problem *problem, const int32_t *config,
                     struct quern_plan *plan)
{
    (void)config; /* a launch argument */
    plan_step(problem, plan, "attention/merge_states_cpu.c", "merge_states_main");
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct merge_states_args args = arguments(binding);
    int64_t row = v->d * (int64_t)quern_dtype_bytes((int)v->dtype);
    args.block = ((int64_t)binding->config[KNOB_BLOCK_KIB] * 1024 + row - 1) / row;
    if (args.block < args.rows >> 30) /* a grid counts in 32 bits */
        args.block = args.rows >> 30;
    QUERN_BIND(&launch->steps[0], args, (args.rows + args.block - 1) / args.block, 1, 1);
}

const struct quern_variant merge_states_cpu = {
    .name = "merge_states_cpu",
    .doc = "rows of vectors, a block of them each",
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

enum { KNOB_THREADS, KNOB_UNROLL, KNOB_BLOCKS };
static const struct quern_knob cuda_knobs[] = {
    [KNOB_THREADS] = { "threads", 32, 512, "threads of a block" },
    [KNOB_UNROLL] = { "unroll", 1, 4, "rows whose loads a thread has in flight" },
    [KNOB_BLOCKS] = { "blocks", 1, 64, "blocks in the grid for each SM, at most" },
};

static int cuda_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CUDA;
}

/* Bytes of an access: what all rows are aligned to, and a row is whole accesses of. */
static int64_t access_bytes(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    int64_t bits = v->d * (int64_t)quern_dtype_bytes((int)v->dtype) | 16 |
                   problem->alignment[ARRAY_v_a] | problem->alignment[ARRAY_v_b] |
                   problem->alignment[ARRAY_v_merged];
    return bits & -bits;
}

/* Lanes of a warp that a row has: enough for its accesses, a power of two. */
static int64_t lanes_of(const struct quern_problem *problem)
{
    const struct values *v = values_of(problem->bucket);
    int64_t row = v->d * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t lanes = quern_power_of_two_above(row / access_bytes(problem));
    return lanes < 32 ? lanes : 32;
}

static int cuda_legal(const struct quern_problem *problem, const int32_t *config,
                      struct quern_message *why)
{
    const struct values *v = values_of(problem->bucket);
    const int64_t access = access_bytes(problem), lanes = lanes_of(problem);
    int64_t row = v->d * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t passes = (row / access + lanes - 1) / lanes;
    int64_t held = 2 * config[KNOB_UNROLL] * passes * ((access + 3) / 4); /* words */
    if (config[KNOB_THREADS] & (config[KNOB_THREADS] - 1))
        return quern_refuse(why, "config threads=%d: must be a power of two", config[KNOB_THREADS]);
    if (config[KNOB_UNROLL] > 1 && held > 64)
        return quern_refuse(why, "config unroll=%d: must be 1 with rows as wide as d=%lld",
                            config[KNOB_UNROLL], (long long)v->d);
    return QUERN_OK;
}

static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    struct quern_message why;
    config[KNOB_THREADS] = 256;
    config[KNOB_UNROLL] = 2;
    config[KNOB_BLOCKS] = 16;
    if (cuda_legal(problem, config, &why))
        config[KNOB_UNROLL] = 1;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][3] = { { 256, 1, 16 }, { 256, 2, 8 },  { 128, 2, 16 },
                                       { 128, 1, 32 }, { 256, 4, 16 }, { 512, 1, 8 } };
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
        plan_step(problem, plan, "attention/merge_states_cuda.cu", "merge_states_cuda");
    quern_step_define(step, "ACCESS", access_bytes(problem));
    quern_step_define(step, "LANES", lanes_of(problem));
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

/* As many blocks as there are rows for, up to the config's share of the SMs. A row has at most 32
 * lanes; that it may have fewer is not known here, and costs a few blocks without work. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct merge_states_args args = arguments(binding);
    const int32_t *config = binding->config;
    int64_t rows = (int64_t)config[KNOB_THREADS] / 32 * config[KNOB_UNROLL];
    int64_t blocks = (args.rows + rows - 1) / rows;
    int64_t most = (int64_t)binding->profile->cores * config[KNOB_BLOCKS];
    QUERN_BIND(&launch->steps[0], args, blocks < most ? blocks : most, 1, 1);
}

const struct quern_variant merge_states_cuda = {
    .name = "merge_states_cuda",
    .doc = "a row is a few lanes of a warp, several rows in flight",
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

/* ---- The families ---------------------------------------------------------------------------- */

int merge_states_validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "t", v->t, INT64_C(1) << 31 },
                  { "h", v->h, 1 << 16 },
                  { "d", v->d, MOST_WIDTH } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

/* splitmix64: from 0 to 1. */
static double draw(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

/* Logarithms from -4 to 12; of every seventh row one is empty, of every 49th both. */
int merge_states_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    uint64_t state = seed ^ (uint64_t)(index + 1) * UINT64_C(0xd1342543de82ef95);
    if (index != ARRAY_s_a && index != ARRAY_s_b)
        return 0;
    for (int64_t i = 0; i < v->t * v->h; i++) {
        int is_empty = i % 7 == 3 && (i % 49 == 3 || (i / 7 + index) % 2);
        ((float *)data)[i] = is_empty ? -INFINITY : (float)(16 * draw(&state) - 4);
    }
    return 1;
}

int64_t merge_states_units(const struct quern_spec *spec)
{
    return values_of(spec)->t * values_of(spec)->h;
}

/* Of s a rounding of each of two terms; of v that of the output. */
double merge_states_tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_s_merged || v->dtype == QUERN_F32)
        return 1e-6;
    return v->dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

void merge_states_cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double rows = (double)v->t * (double)v->h;
    cost->flops = 3 * rows * (double)v->d;
    cost->bytes = 3 * rows * ((double)v->d * (double)quern_dtype_bytes((int)v->dtype) + 4);
}
