/* A family outside the tree, complete: a shared object for --plugin and quern_plugin_load().
 *
 *     cc -shared -fPIC -I. plugin_scale.c -o scale.so $(pkg-config --cflags --libs quern)
 *     quern run scale n=1000 factor=3 --plugin ./scale.so --check
 *
 * -I. is where scale.def is found. All it needs of quern is <quern/family_def.h>: its device source
 * is in it, and may include what templates/common/ has, which is in the library. */
#define QUERN_DEF "scale.def"
#include <quern/family_def.h>

#include <math.h>

/* The struct is said once, for this compiler and, as text, for the one at run time. */
#define SCALE_ARGS                                                                                 \
    struct scale_args {                                                                            \
        const float *x;                                                                            \
        float *out;                                                                                \
        int64_t n, block;                                                                          \
        float factor;                                                                              \
    }
#define TEXT(...) TEXT_OF(__VA_ARGS__)
#define TEXT_OF(...) #__VA_ARGS__
SCALE_ARGS;

/* Steps and #includes name a source by its path. */
static const struct quern_source sources[] = {
    { "scale/scale_args.h", "#include \"common/types.h\"\n" TEXT(SCALE_ARGS) ";\n" },
    { "scale/scale_cpu.c",
      "#include \"scale_args.h\"\n"
      "void scale_main(const struct scale_args *args, uint32_t x, uint32_t y, uint32_t z)\n"
      "{\n"
      "    int64_t begin = x * args->block, end = begin + args->block;\n"
      "    if (end > args->n) end = args->n;\n"
      "    for (int64_t i = begin; i < end; i++) args->out[i] = args->factor * args->x[i];\n"
      "}\n" },
    { NULL, NULL },
};

static const struct quern_knob knobs[] = { { "block", 1, 1 << 20, "elements of a block" } };

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[0] = 4096;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *plan)
{
    (void)problem, (void)config;
    quern_plan_kernel(plan, "scale", "scale/scale_cpu.c", "scale_main");
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct values *v = values_of(binding->spec);
    const struct scale_args args = {
        .x = binding->arrays[ARRAY_x].data,
        .out = binding->arrays[ARRAY_out].data,
        .n = v->n,
        .block = binding->config[0],
        .factor = isnan(v->factor) ? 2 : (float)v->factor,
    };
    QUERN_BIND(&launch->steps[0], args, (v->n + args.block - 1) / args.block, 1, 1);
}

static const struct quern_variant scale_cpu = {
    .name = "scale_cpu",
    .doc = "a block of the array each",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = 1,
    .supports = supports,
    .heuristic = heuristic,
    .plan = plan,
    .bind = bind,
};
static const struct quern_variant *const variants[] = { &scale_cpu, NULL };

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->n;
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    double value, factor = values_of(quern_ref_spec(ref))->factor;
    quern_ref_read(ref, ARRAY_x, unit, 1, &value);
    value *= isnan(factor) ? 2 : factor;
    quern_ref_expect(ref, ARRAY_out, unit, 1, &value);
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 2e-7; /* factor is rounded to f32 */
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    cost->flops = (double)values_of(spec)->n;
    cost->bytes = 8 * cost->flops;
}

static const struct quern_family scale = {
    QUERN_FAMILY_TABLES(scale), .folder = "scale",      .doc = "out = factor x, from a plugin",
    .variants = variants,       .sources = sources,     .units = units,
    .reference = reference,     .tolerance = tolerance, .cost = cost,
};

QUERN_API const struct quern_family *quern_plugin(int index);
QUERN_API const struct quern_family *quern_plugin(int index)
{
    return index == 0 ? &scale : NULL;
}
