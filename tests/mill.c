/* The kernels, and a reference that all but the good ones miss. Kernels of every kind are one
 * source: each kind is a line of it. */
#include "mill.h"

#include <stdbool.h>

#include "jit/context.h"

enum { P_M, P_N, P_POOL, P_ACCUMULATE, P_MENU, P_LOAD, P_COUNT };
enum { KNOB_KIND, KNOB_WORK };

struct mill_probe mill_probe;

struct mill_args {
    const float *x;
    const int32_t *slot;
    float *out;
    char *scratch;
    struct mill_probe *probe;
    int64_t m, n, x_stride, out_stride;
};

static const char mill_text[] =
    "struct probe { __INT64_TYPE__ launches, surprises; float initial; };\n"
    "struct mill_args {\n"
    "    const float *x; const int *slot; float *out; char *scratch; struct probe *probe;\n"
    "    __INT64_TYPE__ m, n, x_stride, out_stride;\n"
    "};\n"
    "#ifndef KIND\n"
    "#define KIND 0\n"
    "#define WORK 0\n"
    "#define ADDS 0\n"
    "#endif\n"
    "#if KIND == 7\n"
    "#error this kind does not compile\n"
    "#endif\n"
    "void mill(const struct mill_args *a, unsigned row, unsigned y, unsigned z)\n"
    "{\n"
    "    const float *x = a->x + row * a->x_stride;\n"
    "    float *out = a->out + (a->slot ? a->slot[row] : row) * a->out_stride;\n"
    "    int is_last = row == a->m - 1;\n"
    "    if (row == 0) {\n"
    "        a->probe->launches++;\n"
    "        a->probe->surprises += ADDS && out[0] != a->probe->initial;\n"
    "    }\n"
    "    for (volatile int w = 0; w < WORK; w++);\n"
    "    float factor = 2;\n"
    "    if (KIND == 2 && row && out[-a->out_stride] == 2 * x[-a->x_stride]) factor = 2.00001f;\n"
    "    if (KIND == 8) factor += a->scratch[0];\n"
    "    for (__INT64_TYPE__ i = 0; i < a->n; i++) {\n"
    "        if (KIND == 6 && is_last && i == a->n - 1) break;\n"
    "        out[i] = factor * x[i] + (ADDS ? out[i] : 0);\n"
    "    }\n"
    "    if (KIND == 1 && is_last) out[a->n - 1] += 50;\n"
    "    if (KIND == 3 && is_last) out[a->n] = 1;\n"
    "    if (KIND == 4 && row == 0) out[-1] = 1;\n"
    "    if (KIND == 5 && row == 0) ((float *)x)[a->n - 1] += 1;\n"
    "    if (KIND == 9 && row == 0) a->scratch[1000] ^= 1;\n"
    "    if (KIND == 10 && row == 0) out[a->n] = 1;\n"
    "    if (KIND == 11 && row == 0) out[a->out_stride] += 1;\n"
    "}\n";

static const struct quern_source sources[] = { { "mill/mill_cpu.c", mill_text }, { NULL, NULL } };

static const struct quern_param params[] = {
    { "m", QUERN_DYNAMIC, QUERN_SIZE, NULL, 0, QUERN_REQUIRED, "rows" },
    { "n", QUERN_STATIC, QUERN_SIZE, NULL, 1, 64, "columns" },
    { "pool", QUERN_STATIC, QUERN_SIZE, NULL, 0, 0, "rows of out; 0: m" },
    { "accumulate", QUERN_STATIC, QUERN_FLAG, NULL, 0, 0, "add to out" },
    { "menu", QUERN_STATIC, QUERN_SIZE, NULL, 0, 0, "which candidates are offered" },
    { "load", QUERN_HINT, QUERN_SIZE, NULL, 0, 1, "sizes nothing" },
};

static const struct quern_array_info arrays_info[] = {
    { "x", "IN", "f32", "m, n", "source" },
    { "slot", "pool ? IN : ABSENT", "i32", "m", "row of out" },
    { "out", "accumulate ? INOUT : OUT", "f32", "pool ? pool : m, n", "destination" },
};

void mill_shape(const struct quern_spec *spec, int index, struct quern_shape *out)
{
    const int64_t *v = spec->values;
    bool is_added = v[P_ACCUMULATE] || v[P_POOL];
    const int roles[] = { QUERN_IN, v[P_POOL] ? QUERN_IN : QUERN_ABSENT,
                          is_added ? QUERN_INOUT : QUERN_OUT };
    out->role = roles[index];
    out->dtype = index == MILL_SLOT ? QUERN_I32 : QUERN_F32;
    out->rank = index == MILL_SLOT ? 1 : 2;
    out->dims[0] = index == MILL_OUT && v[P_POOL] ? v[P_POOL] : v[P_M];
    out->dims[1] = v[P_N];
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape own;
    int64_t row_bytes = spec->values[P_N] * 4;
    mill_shape(spec, index, &own);
    if (index != MILL_OUT || !spec->values[P_POOL]) {
        quern_ranges_add(ranges, 0, qn_array_span(&own, &arrays[index]));
        return;
    }
    for (int64_t r = 0; r < spec->values[P_M]; r++) {
        int64_t slot = ((const int32_t *)host[MILL_SLOT])[r];
        quern_ranges_add(ranges, slot * row_bytes, (slot + 1) * row_bytes);
    }
}

int mill_inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    if (index != MILL_SLOT)
        return 0;
    for (int64_t r = 0; r < spec->values[P_M]; r++)
        ((int32_t *)data)[r] = (int32_t)((r * 37 + (int64_t)(seed % 7)) % spec->values[P_POOL]);
    return 1;
}

static int64_t units(const struct quern_spec *spec)
{
    return spec->values[P_M];
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    const int64_t *v = quern_ref_spec(ref)->values;
    int64_t n = v[P_N], to = unit;
    double *x = quern_ref_scratch(ref, n), *out = quern_ref_scratch(ref, n), slot;
    if (v[P_POOL]) {
        quern_ref_read(ref, MILL_SLOT, unit, 1, &slot);
        to = (int64_t)slot;
    }
    quern_ref_read(ref, MILL_X, unit * n, n, x);
    if (v[P_ACCUMULATE] || v[P_POOL])
        quern_ref_read(ref, MILL_OUT, to * n, n, out);
    for (int64_t i = 0; i < n; i++)
        out[i] += 2 * x[i];
    quern_ref_expect(ref, MILL_OUT, to * n, n, out);
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 1e-4;
}

static void cost(const struct quern_spec *spec, struct quern_cost *out)
{
    out->flops = (double)(spec->values[P_M] * spec->values[P_N]);
    out->bytes = 8 * out->flops;
}

static int supports(const struct quern_problem *problem)
{
    return problem->target->kind == QUERN_CPU;
}

static void config_set(int32_t *config, int kind, int work)
{
    config[KNOB_KIND] = kind;
    config[KNOB_WORK] = work;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    bool is_hopeless = problem->bucket->values[P_MENU] == MILL_MENU_HOPELESS;
    config_set(config, is_hopeless ? MILL_WRONG : MILL_GOOD, 20000);
}

static int candidates(const struct quern_problem *problem, int32_t (*configs)[QUERN_MAX_KNOBS],
                      int max)
{
    static const int kinds[][MILL_KINDS] = {
        [MILL_MENU_BAD] = { MILL_WRONG, MILL_RACING, MILL_PAST_END, MILL_BEFORE_BEGIN,
                            MILL_WRITES_INPUT, MILL_UNWRITTEN, MILL_BROKEN, MILL_READS_SCRATCH,
                            MILL_PAST_SCRATCH },
        [MILL_MENU_HOPELESS] = { MILL_BROKEN, MILL_PAST_END },
        [MILL_MENU_ACCUMULATE] = { MILL_PADDING },
        [MILL_MENU_POOL] = { MILL_NEIGHBOUR, MILL_WRITES_INPUT },
    };
    static const int32_t speeds[] = { 0, 40000, 80000, 120000, 60000000 };
    int64_t menu = problem->bucket->values[P_MENU];
    int count = 0;
    for (int i = 0; menu == MILL_MENU_SPEEDS && i < 5; i++)
        config_set(configs[count++], MILL_GOOD, speeds[i]);
    for (int i = 0; menu == MILL_MENU_MANY && i < 60 && i < max; i++)
        config_set(configs[count++], MILL_GOOD, 100000 + i);
    for (int i = 0; menu != MILL_MENU_SPEEDS && menu != MILL_MENU_MANY && kinds[menu][i]; i++)
        config_set(configs[count++], kinds[menu][i], 0);
    return count;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *made)
{
    const int64_t *v = problem->bucket->values;
    struct quern_step *step = quern_plan_kernel(made, "mill", "mill/mill_cpu.c", "mill");
    quern_step_define(step, "KIND", config[KNOB_KIND]);
    quern_step_define(step, "WORK", config[KNOB_WORK]);
    quern_step_define(step, "ADDS", v[P_ACCUMULATE] || v[P_POOL]);
    made->workspace_bytes = MILL_SCRATCH_BYTES;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    const struct quern_array *arrays = binding->arrays;
    const struct mill_args args = {
        arrays[MILL_X].data,
        arrays[MILL_SLOT].data,
        arrays[MILL_OUT].data,
        binding->workspace,
        &mill_probe,
        binding->spec->values[P_M],
        binding->spec->values[P_N],
        arrays[MILL_X].strides[0],
        arrays[MILL_OUT].strides[0],
    };
    QUERN_BIND(&launch->steps[0], args, args.m, 1, 1);
}

static const struct quern_knob knobs[] = {
    [KNOB_KIND] = { "kind", 0, MILL_KINDS - 1, "what is wrong with the kernel" },
    [KNOB_WORK] = { "work", 0, 100000000, "how slow it is" },
};

static const struct quern_variant mill_cpu = {
    .name = "mill_cpu",
    .doc = "the one",
    .device = QUERN_CPU,
    .knobs = knobs,
    .knob_count = 2,
    .supports = supports,
    .heuristic = heuristic,
    .candidates = candidates,
    .plan = plan,
    .bind = bind,
};
static const struct quern_variant *const variants[] = { &mill_cpu, NULL };

const struct quern_family mill_family = {
    .abi = QUERN_FAMILY_ABI,
    .name = "mill",
    .folder = "mill",
    .doc = "out = 2 x",
    .params = params,
    .param_count = P_COUNT,
    .arrays = arrays_info,
    .array_count = MILL_ARRAYS,
    .shape = mill_shape,
    .variants = variants,
    .sources = sources,
    .aliasable = 1u << MILL_OUT,
    .touched = touched,
    .inputs = mill_inputs,
    .units = units,
    .reference = reference,
    .tolerance = tolerance,
    .cost = cost,
};
