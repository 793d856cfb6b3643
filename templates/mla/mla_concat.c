/* What concat_mla_k and concat_mla_absorb_q do: rows of two arrays behind each other, as bits.
 *
 *     CPU     a block of the grid is some rows; their number is a launch argument
 *     CUDA    blocks walk over the accesses of the output together; what divides is compiled in
 *
 * The right array has one head or as many as the left: one head is read for all, by a stride of 0.
 * Both lists have their parameters in one order, so one list's `values` serves both. */
#define QUERN_DEF "mla/concat_mla_absorb_q.def"
#include <quern/family_def.h>

#include <string.h>

#include "mla_concat.h"
#include "mla_concat_args.h"

enum { WIDTH_MOST = 4096 };

static void define_rows(struct quern_step *step, const struct values *v)
{
    quern_step_define(step, "HEADS", v->h);
    quern_step_define(step, "LEFT", v->nope);
    quern_step_define(step, "RIGHT", v->rope);
    quern_step_define(step, "SIZE", (int64_t)quern_dtype_bytes((int)v->dtype));
}

static struct mla_concat_args arguments(const struct quern_binding *binding)
{
    const struct quern_spec *spec = binding->spec;
    const struct quern_array *left = &binding->arrays[MLA_CONCAT_LEFT];
    const struct quern_array *right = &binding->arrays[MLA_CONCAT_RIGHT];
    const struct quern_array *out = &binding->arrays[MLA_CONCAT_OUT];
    struct quern_shape shape;
    spec->family->shape(spec, MLA_CONCAT_RIGHT, &shape);
    return (struct mla_concat_args){
        .left = left->data,
        .right = right->data,
        .out = out->data,
        .left_token = left->strides[0],
        .left_head = left->strides[1],
        .right_token = right->strides[0],
        .right_head = shape.dims[1] > 1 ? right->strides[1] : 0,
        .out_token = out->strides[0],
        .out_head = out->strides[1],
        .t = values_of(spec)->t,
    };
}

static int require_power_of_two(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

/* ---- The CPU variant ------------------------------------------------------------------------- */

static const struct quern_knob cpu_knobs[] = {
    { "block_kib", 16, 65536, "KiB of the output that a block writes" },
};

static int cpu_supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static int cpu_legal(const struct quern_problem *problem, const int32_t *config,
                     struct quern_message *why)
{
    (void)problem;
    return require_power_of_two("block_kib", config[0], why);
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
    (void)config; /* a launch argument: every config shares one artifact */
    define_rows(quern_plan_kernel(plan, "concat", "mla/mla_concat_cpu.c", "mla_concat_main"),
                values_of(problem->bucket));
}

static void cpu_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    struct mla_concat_args args = arguments(binding);
    int64_t row = (v->nope + v->rope) * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t rows = (int64_t)binding->config[0] * 1024 / row;
    args.block = rows ? rows : 1;
    QUERN_BIND(&launch->steps[0], args, (v->t * v->h + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant mla_concat_cpu = {
    .name = "mla_concat_cpu",
    .doc = "a block of the grid copies some rows",
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

/* ---- The CUDA variant ------------------------------------------------------------------------ */

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

/* Few tokens: more blocks of less. */
static void cuda_heuristic(const struct quern_problem *problem, int32_t *config)
{
    const struct values *v = values_of(problem->bucket);
    int64_t bytes = (v->nope + v->rope) * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t accesses = v->t * v->h * bytes / 16;
    config[KNOB_THREADS] = 256;
    config[KNOB_UNROLL] = accesses < (int64_t)problem->profile->cores * 256 * 8 ? 1 : 4;
    config[KNOB_BLOCKS] = 1024;
}

static int cuda_candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                           int max)
{
    static const int32_t list[][3] = { { 256, 4, 1024 }, { 256, 2, 1024 }, { 256, 1, 1024 },
                                       { 512, 4, 1024 }, { 128, 4, 1024 }, { 128, 1, 1024 },
                                       { 256, 4, 8 },    { 256, 8, 8 },    { 512, 2, 4 } };
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
        quern_plan_kernel(plan, "concat", "mla/mla_concat_cuda.cu", "mla_concat");
    int64_t access = 16;
    for (int i = 0; i <= MLA_CONCAT_OUT; i++)
        access = problem->alignment[i] < access ? problem->alignment[i] : access;
    define_rows(step, values_of(problem->bucket));
    quern_step_define(step, "ACCESS", access);
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

/* As many blocks as there are tiles of 16-byte accesses, up to the config's share of the SMs; with
 * narrower ones they walk on. */
static void cuda_bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct mla_concat_args args = arguments(binding);
    const int32_t *config = binding->config;
    int64_t row = (v->nope + v->rope) * (int64_t)quern_dtype_bytes((int)v->dtype);
    int64_t tile = (int64_t)config[KNOB_THREADS] * config[KNOB_UNROLL] * 16;
    int64_t tiles = (v->t * v->h * row + tile - 1) / tile;
    int64_t most = (int64_t)binding->profile->cores * config[KNOB_BLOCKS];
    QUERN_BIND(&launch->steps[0], args, tiles < most ? tiles : most, 1, 1);
}

static const struct quern_variant mla_concat_cuda = {
    .name = "mla_concat_cuda",
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

const struct quern_variant *const mla_concat_variants[] = { &mla_concat_cuda, &mla_concat_cpu,
                                                            NULL };

/* ---- Rules, units, cost ---------------------------------------------------------------------- */

static int check_width(const char *name, int64_t value, struct quern_message *why)
{
    if (value % 8 || value > WIDTH_MOST)
        return quern_refuse(why, "%s=%lld: must be a multiple of 8, at most %d", name,
                            (long long)value, WIDTH_MOST);
    return QUERN_OK;
}

/* A CPU block covers at least 16 KiB or a row, and a grid dimension is 32 bits. */
int mla_concat_validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->h > 65536)
        return quern_refuse(why, "h=%lld: must be at most 65536", (long long)v->h);
    if (check_width("nope", v->nope, why) || check_width("rope", v->rope, why))
        return QUERN_INVALID;
    if (v->t > (INT64_C(1) << 39) / (v->h * (v->nope + v->rope)))
        return quern_refuse(why, "t=%lld: t h (nope + rope) must be at most 2^39", (long long)v->t);
    return QUERN_OK;
}

int64_t mla_concat_units(const struct quern_spec *spec)
{
    return values_of(spec)->t;
}

double mla_concat_tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0; /* a copy is exact */
}

void mla_concat_cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    double elements = 0;
    for (int i = 0; i <= MLA_CONCAT_OUT; i++) {
        spec->family->shape(spec, i, &shape);
        elements += (double)shape.dims[0] * (double)shape.dims[1] * (double)shape.dims[2];
    }
    cost->flops = 0;
    cost->bytes = elements * (double)quern_dtype_bytes((int)v->dtype);
}
