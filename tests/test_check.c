/* The check against the reference: what it accepts, and that each way of being wrong is seen and
 * named. Outputs are written by the tests themselves; kernels run only under quern_verify(). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "jit/check.h"
#include "jit/dtype.h"

/* ---- A family without kernels: out[m, n] = 2 x[m, n] or 2/3 x[m, n], a unit a row ---------- */

enum { P_M, P_N, P_DTYPE, P_COSTLY, P_BROKEN, P_THIRDS, P_COUNT };
enum { A_X, A_OUT, A_COUNT };
enum {
    BROKEN_NOT,
    BROKEN_READ,
    BROKEN_EXPECT,
    BROKEN_MEMORY,
    BROKEN_SILENT,
    BROKEN_TOUCHED,
    TELLS_TERMS /* of row 3, of norm 1000 */
};

static const struct quern_param params[] = {
    { "m", QUERN_DYNAMIC, QUERN_SIZE, NULL, 0, QUERN_REQUIRED, "rows" },
    { "n", QUERN_STATIC, QUERN_SIZE, NULL, 0, QUERN_REQUIRED, "columns" },
    { "dtype", QUERN_STATIC, QUERN_DTYPE, "f32 bf16 f16 e4m3 i32 i8", 0, QUERN_F32, "of both" },
    { "costly", QUERN_STATIC, QUERN_SIZE, NULL, 0, 0, "GFLOP that it claims to cost" },
    { "broken", QUERN_STATIC, QUERN_SIZE, NULL, 0, 0, "how its reference misbehaves" },
    { "thirds", QUERN_STATIC, QUERN_FLAG, NULL, 0, 0, "2/3 x, which no float dtype has" },
};

static const struct quern_array_info arrays_info[] = {
    { "x", "IN", "dtype", "m, n", "source" },
    { "out", "OUT", "dtype", "m, n", "destination" },
};

static void shape(const struct quern_spec *spec, int index, struct quern_shape *out)
{
    out->role = index == A_X ? QUERN_IN : QUERN_OUT;
    out->dtype = (int)spec->values[P_DTYPE];
    out->rank = 2;
    out->dims[0] = spec->values[P_M];
    out->dims[1] = spec->values[P_N];
}

static int64_t units(const struct quern_spec *spec)
{
    return spec->values[P_M];
}

static void misbehave(struct quern_ref *ref, int64_t how, int64_t n)
{
    double *huge;
    if (how == BROKEN_READ)
        quern_ref_read(ref, A_X, quern_ref_spec(ref)->values[P_M] * n - 1, 2, (double[2]){ 0 });
    if (how == BROKEN_EXPECT)
        quern_ref_expect(ref, 7, 0, 1, (double[1]){ 0 });
    if (how == BROKEN_MEMORY) {
        huge = quern_ref_scratch(ref, INT64_C(1) << 58);
        huge[0] = 1;
    }
}

static void reference(struct quern_ref *ref, int64_t unit)
{
    int64_t n = quern_ref_spec(ref)->values[P_N], how = quern_ref_spec(ref)->values[P_BROKEN];
    double *row = quern_ref_scratch(ref, n);
    if (how == BROKEN_SILENT)
        return;
    misbehave(ref, how, n);
    quern_ref_read(ref, A_X, unit * n, n, row);
    for (int64_t i = 0; i < n; i++)
        row[i] *= quern_ref_spec(ref)->values[P_THIRDS] ? 2.0 / 3 : 2;
    if (how == TELLS_TERMS)
        quern_ref_expect_sums(ref, A_OUT, unit * n, n, row, unit == 3 ? 1000 : 0);
    else
        quern_ref_expect(ref, A_OUT, unit * n, n, row);
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)index;
    return spec->values[P_DTYPE] >= QUERN_I8 ? 0 : 1e-3;
}

static void cost(const struct quern_spec *spec, struct quern_cost *out)
{
    out->flops = (double)spec->values[P_COSTLY] * 1e9;
    out->bytes = 0;
}

/* Sums of rows: cheap, and blind to what cancels. */
static void linear_expect(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                          double *wanted)
{
    int64_t n = quern_ref_spec(ref)->values[P_N];
    double *row = quern_ref_scratch(ref, n);
    (void)seed;
    for (int64_t unit = first; unit < first + count; unit++) {
        quern_ref_read(ref, A_X, unit * n, n, row);
        wanted[unit - first] = 0;
        for (int64_t i = 0; i < n; i++)
            wanted[unit - first] += 2 * row[i];
    }
}

static void linear_actual(struct quern_ref *ref, uint64_t seed, int64_t first, int64_t count,
                          double *got)
{
    int64_t n = quern_ref_spec(ref)->values[P_N];
    double *row = quern_ref_scratch(ref, n);
    (void)seed;
    for (int64_t unit = first; unit < first + count; unit++) {
        quern_ref_actual(ref, A_OUT, unit * n, n, row);
        got[unit - first] = 0;
        for (int64_t i = 0; i < n; i++)
            got[unit - first] += row[i];
    }
}

/* Rows backwards, each as two halves that overlap, then some of them again. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    int64_t m = spec->values[P_M], n = spec->values[P_N];
    int64_t bytes = (int64_t)quern_dtype_bytes((int)spec->values[P_DTYPE]);
    int64_t stride = arrays[index].strides[0] * bytes;
    (void)host;
    for (int64_t row = m - 1; row >= 0; row--) {
        quern_ranges_add(ranges, row * stride + n / 3 * bytes, row * stride + n * bytes);
        quern_ranges_add(ranges, row * stride, row * stride + n / 2 * bytes);
    }
    for (int64_t row = 0; row < m; row += 3)
        quern_ranges_add(ranges, row * stride, row * stride + n * bytes);
    quern_ranges_add(ranges, 0, 0);
    if (spec->values[P_BROKEN] == BROKEN_TOUCHED)
        quern_ranges_add(ranges, 8, (m - 1) * stride + n * bytes + 1);
}

static int supports(const struct quern_problem *problem)
{
    (void)problem;
    return 0;
}

static void heuristic(const struct quern_problem *problem, int32_t *config)
{
    (void)problem, (void)config;
}

static void plan(const struct quern_problem *problem, const int32_t *config,
                 struct quern_plan *made)
{
    (void)problem, (void)config, (void)made;
}

static void bind(const struct quern_binding *binding, struct quern_launch *launch)
{
    (void)binding, (void)launch;
}

static const struct quern_variant nowhere = {
    .name = "nowhere",
    .doc = "runs on no target",
    .supports = supports,
    .heuristic = heuristic,
    .plan = plan,
    .bind = bind,
};
static const struct quern_variant *const variants[] = { &nowhere, NULL };

#define DOUBLE_FAMILY(family_name)                                                                 \
    .abi = QUERN_FAMILY_ABI, .name = family_name, .folder = family_name, .doc = "out = 2 x",       \
    .params = params, .param_count = P_COUNT, .arrays = arrays_info, .array_count = A_COUNT,       \
    .shape = shape, .variants = variants, .units = units, .reference = reference,                  \
    .tolerance = tolerance, .cost = cost

static const struct quern_family doubled = { DOUBLE_FAMILY("doubled") };
static const struct quern_family doubled_linear = { DOUBLE_FAMILY("doubled_linear"),
                                                    .linear_expect = linear_expect,
                                                    .linear_actual = linear_actual };
static const struct quern_family doubled_touched = { DOUBLE_FAMILY("doubled_touched"),
                                                     .touched = touched };

/* ---- One call that never happens ----------------------------------------------------------- */

struct call {
    struct quern_context *ctx;
    struct quern_spec spec;
    int64_t m, n, stride; /* of a row, in elements, of both arrays */
    size_t element, bytes;
    bool is_beside; /* out lies in x's memory, behind each of its rows */
    char *x, *out;
    struct qn_regions map;
    struct qn_place place;
    struct qn_image before, after;
    struct qn_expectation *expectation;
    struct quern_check check;
    struct quern_message why;
};

static void put(struct call *call, char *array, int64_t row, int64_t column, double value)
{
    qn_dtype_encode((int)call->spec.values[P_DTYPE], &value, 1,
                    array + (size_t)(row * call->stride + column) * call->element);
}

static double get(const struct call *call, const char *array, int64_t row, int64_t column)
{
    return qn_dtype_get((int)call->spec.values[P_DTYPE],
                        array + (size_t)(row * call->stride + column) * call->element);
}

/* Arrays with `padding` elements after each row, x random. What qn_regions_init() gives. */
static int call_lay(struct call *call, const char *text, int64_t padding, bool is_beside)
{
    struct quern_array arrays[A_COUNT] = { { 0 } }, bound[QUERN_MAX_ARRAYS];
    uint64_t seed = common_seed();
    memset(call, 0, sizeof(*call));
    call->ctx = common_context(NULL);
    assert_ok(call->ctx, quern_family_register(call->ctx, &doubled));
    assert_ok(call->ctx, quern_family_register(call->ctx, &doubled_linear));
    assert_ok(call->ctx, quern_family_register(call->ctx, &doubled_touched));
    call->spec = common_spec(call->ctx, text);
    call->m = call->spec.values[P_M];
    call->n = call->spec.values[P_N];
    call->is_beside = is_beside;
    call->stride = (is_beside ? 2 : 1) * call->n + padding;
    call->stride = call->stride > 0 ? call->stride : 1;
    call->element = quern_dtype_bytes((int)call->spec.values[P_DTYPE]);
    call->bytes = (size_t)(call->m * call->stride) * call->element;
    call->x = malloc(call->bytes + 1);
    call->out = is_beside ? call->x + (size_t)call->n * call->element : malloc(call->bytes + 1);
    for (int64_t row = 0; row < call->m; row++) {
        for (int64_t i = 0; i < call->stride; i++)
            put(call, call->x, row, i, (double)common_between(&seed, -40, 40) + 0.5);
    }
    if (!is_beside)
        memset(call->out, 0x33, call->bytes);
    for (int i = 0; i < A_COUNT; i++)
        arrays[i] =
            (struct quern_array){ i == A_X ? call->x : call->out, 0, 2, { call->stride, 1 } };
    ck_assert_msg(!qn_arrays_bind(&call->spec, arrays, bound, &call->why), "%s", call->why.text);
    int status = qn_regions_init(&call->map, call->ctx, &call->spec, bound, &call->why);
    if (status)
        return status;
    qn_place_bound(&call->map, &call->place);
    ck_assert(!qn_image_init(&call->map, QN_IMAGE_ALL, &call->before, &call->why));
    ck_assert(!qn_image_init(&call->map, QN_IMAGE_WRITTEN, &call->after, &call->why));
    return QUERN_OK;
}

static int call_init(struct call *call, const char *text, int64_t padding)
{
    return call_lay(call, text, padding, false);
}

static int call_expect(struct call *call, uint64_t seed)
{
    ck_assert(!qn_image_read(&call->map, &call->place, &call->before, &call->why));
    qn_expect_destroy(call->expectation);
    call->expectation = NULL;
    return qn_expect_create(&call->map, &call->before, seed, &call->expectation, &call->why);
}

/* Poison, then what a right kernel writes. */
static void call_run(struct call *call)
{
    qn_image_copy(&call->map, &call->before, &call->after);
    qn_image_poison(&call->map, &call->after, 0);
    ck_assert(!qn_image_write(&call->map, &call->place, &call->after, &call->why));
    for (int64_t row = 0; row < call->m; row++) {
        for (int64_t i = 0; i < call->n; i++)
            put(call, call->out, row, i, 2 * get(call, call->x, row, i));
    }
}

static bool is_passed(struct call *call)
{
    ck_assert(!qn_image_read(&call->map, &call->place, &call->after, &call->why));
    int status = qn_expect_compare(call->expectation, &call->after, &call->check, &call->why);
    ck_assert_msg(!status, "%s", call->why.text);
    ck_assert(call->check.ok == !call->check.why[0]);
    return call->check.ok;
}

static void passes(struct call *call)
{
    ck_assert_msg(is_passed(call), "%s", call->check.why);
}

static void fails(struct call *call, const char *text)
{
    ck_assert_msg(!is_passed(call), "passed, without \"%s\"", text);
    ck_assert_msg(strstr(call->check.why, text), "said \"%s\", without \"%s\"", call->check.why,
                  text);
    ck_assert(!strchr(call->check.why, '\n'));
}

static void call_fini(struct call *call)
{
    qn_expect_destroy(call->expectation);
    qn_image_fini(&call->before);
    qn_image_fini(&call->after);
    qn_regions_fini(&call->map);
    free(call->x);
    if (!call->is_beside)
        free(call->out);
    quern_context_destroy(call->ctx);
}

static void call_start(struct call *call, const char *text, int64_t padding)
{
    ck_assert_msg(!call_init(call, text, padding), "%s", call->why.text);
    ck_assert_msg(!call_expect(call, 1), "%s", call->why.text);
    call_run(call);
}

/* ---- Values -------------------------------------------------------------------------------- */

START_TEST(a_right_output_passes_and_is_covered_whole)
{
    static const char *const texts[] = {
        "doubled m=33 n=65", "doubled m=1 n=1 dtype=i32", "doubled m=7 n=3 dtype=bf16",
        "doubled m=5 n=0",   "doubled m=0 n=9",           "doubled m=9 n=2000 dtype=f16"
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct call call;
        call_start(&call, texts[i], (int64_t)i % 3);
        passes(&call);
        ck_assert_double_eq(call.check.covered, 1);
        ck_assert_double_eq(call.check.rel_err, 0);
        call_fini(&call);
    }
}
END_TEST

START_TEST(one_wrong_element_is_named)
{
    struct call call;
    call_start(&call, "doubled m=33 n=65", 3);
    put(&call, call.x, 20, 64, 3.5);
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    put(&call, call.out, 20, 64, 1e6);
    fails(&call, "out: row 20, element 64: wanted 7, got 1000000");
    ck_assert_double_gt(call.check.rel_err, call.check.tol);
    call_fini(&call);
}
END_TEST

START_TEST(nan_and_inf_must_stand_where_the_reference_has_them)
{
    struct call call;
    call_start(&call, "doubled m=4 n=9", 1);
    put(&call, call.out, 2, 3, (double)NAN);
    fails(&call, "row 2, element 3");
    put(&call, call.out, 2, 3, (double)INFINITY);
    fails(&call, "got inf");

    put(&call, call.x, 1, 8, (double)NAN);
    put(&call, call.x, 3, 0, -(double)INFINITY);
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    passes(&call);
    put(&call, call.out, 3, 0, (double)INFINITY);
    fails(&call, "row 3, element 0: wanted -inf, got inf");
    put(&call, call.out, 3, 0, -(double)INFINITY);
    put(&call, call.out, 1, 8, 5);
    fails(&call, "row 1, element 8: wanted nan, got 5");
    call_fini(&call);
}
END_TEST

START_TEST(what_overflows_the_dtype_may_be_inf_and_nothing_else)
{
    struct call call;
    call_start(&call, "doubled m=2 n=4 dtype=f16", 0);
    put(&call, call.x, 0, 1, 40000); /* 80000 is past f16 */
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    passes(&call);
    put(&call, call.out, 0, 1, -(double)INFINITY);
    fails(&call, "element 1");
    put(&call, call.out, 0, 1, 65504);
    fails(&call, "out: row 0");
    call_fini(&call);
}
END_TEST

START_TEST(poison_that_is_left_is_unwritten)
{
    static const char *const texts[] = { "doubled m=6 n=8", "doubled m=6 n=8 dtype=bf16",
                                         "doubled m=6 n=8 dtype=e4m3", "doubled m=6 n=8 dtype=i8",
                                         "doubled m=6 n=8 dtype=i32" };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct call call;
        call_start(&call, texts[i], 2);
        unsigned char poison = qn_poison_byte((int)call.spec.values[P_DTYPE], 0);
        memset(call.out + (size_t)(5 * call.stride + 7) * call.element, poison, call.element);
        fails(&call, "(unwritten)");
        call_fini(&call);
    }
}
END_TEST

START_TEST(a_zero_row_must_be_zero)
{
    struct call call;
    call_start(&call, "doubled m=5 n=16", 0);
    for (int64_t i = 0; i < call.n; i++)
        put(&call, call.x, 2, i, 0);
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    passes(&call);
    put(&call, call.out, 2, 6, 1e-30);
    fails(&call, "row 2, element 6: wanted 0");
    for (int64_t row = 0; row < call.m; row++) {
        for (int64_t i = 0; i < call.n; i++)
            put(&call, call.x, row, i, 0);
    }
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    passes(&call);
    put(&call, call.out, 4, 0, -1e-30);
    fails(&call, "wanted 0");
    call_fini(&call);
}
END_TEST

START_TEST(a_bad_row_is_not_hidden_by_good_ones)
{
    struct call call;
    call_start(&call, "doubled m=1000 n=16", 0);
    for (int64_t i = 0; i < call.n; i++)
        put(&call, call.out, 500, i, 1.005 * 2 * get(&call, call.x, 500, i));
    fails(&call, "the row's error is 0.005, at most 0.004");
    ck_assert_double_lt(call.check.rel_err, call.check.tol);
    call_run(&call);
    for (int64_t i = 0; i < call.n; i++)
        put(&call, call.out, 500, i, 1.003 * 2 * get(&call, call.x, 500, i));
    passes(&call); /* four tolerances are a row's due */
    ck_assert_double_gt(call.check.row_err, 0.002);
    call_fini(&call);
}
END_TEST

/* In row 3 terms of norm 1000 leave little: its error is measured against them. */
START_TEST(a_row_whose_terms_cancel_is_measured_against_them)
{
    struct call call;
    call_start(&call, "doubled m=1000 n=16 broken=6", 0);
    for (int64_t i = 0; i < call.n; i++)
        put(&call, call.out, 3, i, 1.005 * 2 * get(&call, call.x, 3, i));
    passes(&call);
    call_run(&call);
    for (int64_t i = 0; i < call.n; i++)
        put(&call, call.out, 4, i, 1.005 * 2 * get(&call, call.x, 4, i));
    fails(&call, "row 4");
    call_run(&call);
    put(&call, call.out, 3, 0, get(&call, call.out, 3, 0) + 4.5);
    fails(&call, "row 3, element 0");
    for (int row = 3; row <= 4; row++) { /* where nothing at all is left; row 4 tells no terms */
        for (int64_t i = 0; i < call.n; i++)
            put(&call, call.x, row, i, 0);
    }
    ck_assert(!call_expect(&call, 1));
    call_run(&call);
    put(&call, call.out, 3, 0, 1e-6);
    passes(&call);
    call_run(&call);
    put(&call, call.out, 4, 0, 1e-6);
    fails(&call, "row 4, element 0");
    call_fini(&call);
}
END_TEST

START_TEST(a_small_error_everywhere_is_past_the_total_bound)
{
    struct call call;
    call_start(&call, "doubled m=50 n=16", 0);
    for (int64_t row = 0; row < call.m; row++) {
        for (int64_t i = 0; i < call.n; i++)
            put(&call, call.out, row, i, 1.002 * 2 * get(&call, call.x, row, i));
    }
    fails(&call, "of the norm, at most 0.001");
    call_fini(&call);
}
END_TEST

/* At 1.979166.. a bf16 step is 4e-3 of the value: the nearest one, 1.9765625, is off by 1.3e-3 and
 * the next by 2.6e-3. Both are past tol, and within what a row may be off. */
START_TEST(one_rounded_element_passes_past_the_bound_and_its_neighbour_does_not)
{
    struct call call;
    call_start(&call, "doubled m=1 n=1 dtype=bf16 thirds=1", 0);
    put(&call, call.x, 0, 0, 2.96875);
    ck_assert(!call_expect(&call, 1));
    put(&call, call.out, 0, 0, 1.9765625);
    passes(&call);
    ck_assert_double_gt(call.check.rel_err, call.check.tol);
    ck_assert_double_gt(call.check.tol, 0);
    put(&call, call.out, 0, 0, 1.984375);
    fails(&call, "of the norm, at most 0.001");
    call_fini(&call);
}
END_TEST

START_TEST(where_the_outputs_are_empty_no_unit_is_evaluated)
{
    struct call call; /* its reference would fail */
    call_start(&call, "doubled m=9 n=0 broken=2", 1);
    passes(&call);
    ck_assert_double_eq(call.check.covered, 1);
    call_fini(&call);
}
END_TEST

/* ---- Sampling ------------------------------------------------------------------------------ */

START_TEST(a_costly_problem_is_sampled_and_its_edges_always_seen)
{
    static const int64_t edges[] = { 0,   7,   8,    15,   16,   127,  128,
                                     255, 256, 4863, 4864, 4991, 4992, 4999 };
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct call call;
        call_init(&call, "doubled m=5000 n=8 costly=40", 0);
        ck_assert(!call_expect(&call, seed));
        call_run(&call);
        passes(&call);
        ck_assert_double_gt(call.check.covered, 0.08);
        ck_assert_double_lt(call.check.covered, 0.12);
        for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
            put(&call, call.out, edges[i], 3, 1e5);
            fails(&call, "element 3");
            call_run(&call);
        }
        call_fini(&call);
    }
}
END_TEST

/* A row that the sample leaves out. */
static int64_t unsampled_row(struct call *call)
{
    for (int64_t row = 1000; row < call->m; row++) {
        double value = get(call, call->out, row, 0);
        put(call, call->out, row, 0, 1e5);
        bool is_seen = !is_passed(call);
        put(call, call->out, row, 0, value);
        if (!is_seen)
            return row;
    }
    return -1;
}

START_TEST(the_sample_follows_the_seed)
{
    struct call call;
    call_start(&call, "doubled m=5000 n=8 costly=40", 0);
    int64_t row = unsampled_row(&call);
    ck_assert_int_gt(row, 0);
    put(&call, call.out, row, 0, 1e5);
    passes(&call);
    bool is_seen = false;
    for (uint64_t seed = 2; seed < 200 && !is_seen; seed++) {
        double value = get(&call, call.out, row, 0);
        ck_assert(!call_expect(&call, seed));
        put(&call, call.out, row, 0, value);
        is_seen = !is_passed(&call);
    }
    ck_assert(is_seen);
    call_fini(&call);
}
END_TEST

START_TEST(the_linear_check_sees_what_the_sample_leaves_out)
{
    struct call plain, linear;
    call_start(&plain, "doubled m=5000 n=8 costly=40", 0);
    call_start(&linear, "doubled_linear m=5000 n=8 costly=40", 0);
    int64_t row = unsampled_row(&plain);
    passes(&linear);
    put(&linear, linear.out, row, 0, 1e5);
    fails(&linear, "linear check");
    call_fini(&plain);
    call_fini(&linear);
}
END_TEST

START_TEST(unwritten_rows_between_sampled_ones_are_seen)
{
    struct call call;
    call_start(&call, "doubled m=5000 n=8 costly=40", 0);
    int64_t row = unsampled_row(&call);
    memset(call.out + (size_t)(row * call.stride) * call.element, 0xff, call.element);
    fails(&call, "was not written");
    call_fini(&call);
}
END_TEST

/* ---- Memory -------------------------------------------------------------------------------- */

static void untouched_fails(struct call *call, const char *text)
{
    ck_assert(!qn_image_read(&call->map, &call->place, &call->after, &call->why));
    int status =
        qn_regions_compare(&call->map, &call->place, &call->before, &call->after, &call->why);
    ck_assert_int_eq(status, QUERN_CHECK_FAILED);
    ck_assert_msg(strstr(call->why.text, text), "said \"%s\"", call->why.text);
}

START_TEST(writes_into_padding_and_inputs_are_seen)
{
    struct call call;
    call_start(&call, "doubled m=6 n=8", 3);
    ck_assert(!qn_image_read(&call.map, &call.place, &call.after, &call.why));
    ck_assert_msg(!qn_regions_compare(&call.map, &call.place, &call.before, &call.after, &call.why),
                  "%s", call.why.text);
    char *padding = call.out + (size_t)(2 * call.stride + 9) * call.element, old = *padding;
    *padding ^= 1;
    untouched_fails(&call, "out: byte 124 was written, which no element of an output covers");
    *padding = old;
    call.x[40] ^= 1;
    untouched_fails(&call, "x: byte 40 was written, but it is an input");
    call_fini(&call);
}
END_TEST

START_TEST(an_output_between_the_rows_of_an_input_is_poisoned_and_they_are_watched)
{
    struct call call;
    ck_assert_msg(!call_lay(&call, "doubled m=6 n=8", 3, true), "%s", call.why.text);
    ck_assert_int_eq(call.map.count, 1);
    ck_assert(qn_is_poisoned(&call.map, A_OUT));
    ck_assert_msg(!call_expect(&call, 1), "%s", call.why.text);
    call_run(&call);
    passes(&call);
    ck_assert_double_eq(call.check.covered, 1);
    ck_assert_msg(!qn_regions_compare(&call.map, &call.place, &call.before, &call.after, &call.why),
                  "%s", call.why.text);
    char *last = call.x + (size_t)(5 * call.stride + 7) * call.element;
    *last ^= 1;
    untouched_fails(&call, "x: byte 408 was written, but it is an input");
    *last ^= 1;
    call.x[(size_t)(16 * call.element)] ^= 1;
    untouched_fails(&call, "byte 64 was written");
    call.x[(size_t)(16 * call.element)] ^= 1;
    qn_image_poison(&call.map, &call.after, 0);
    memset(call.out + (size_t)call.stride * call.element, 0xff, call.element);
    fails(&call, "out: row 1, element 0: wanted");
    ck_assert_ptr_nonnull(strstr(call.check.why, "(unwritten)"));
    call_fini(&call);
}
END_TEST

START_TEST(touched_ranges_are_any_number_in_any_order)
{
    for (int64_t padding = 0; padding < 2; padding++) {
        struct call call;
        call_start(&call, "doubled_touched m=3000 n=7", padding);
        ck_assert_int_eq(call.map.touched[A_OUT].count, padding ? 3000 : 1);
        for (int64_t r = 0; r < call.map.touched[A_OUT].count; r++)
            ck_assert_int_eq(call.map.touched[A_OUT].list[r].begin, r * 32);
        passes(&call);
        ck_assert_double_eq(call.check.covered, 1);
        ck_assert_msg(
            !qn_regions_compare(&call.map, &call.place, &call.before, &call.after, &call.why), "%s",
            call.why.text);
        call.out[(2998 * (7 + padding) + 7) * 4] ^= (char)padding;
        if (padding)
            untouched_fails(&call, "which no element of an output covers");
        memset(call.out + 2999 * (7 + padding) * 4, 0xff, 4);
        fails(&call, "row 2999, element 0: wanted");
        call_fini(&call);
    }
}
END_TEST

START_TEST(a_touched_range_outside_its_array_is_an_error)
{
    struct call call;
    ck_assert_int_eq(call_init(&call, "doubled_touched m=4 n=8 broken=5", 1), QUERN_INTERNAL);
    ck_assert_str_eq(call.why.text, "x: its family says that bytes [8, 141) are touched, of 140");
    call_fini(&call);
}
END_TEST

START_TEST(a_reference_that_breaks_its_contract_is_an_error_and_no_crash)
{
    static const struct {
        const char *text, *said;
        int status;
    } cases[] = {
        { "doubled m=4 n=8 broken=1", "reads x[31..33) of 32 elements", QUERN_INTERNAL },
        { "doubled m=4 n=8 broken=2", "expects array 7 of 2", QUERN_INTERNAL },
        { "doubled m=4 n=8 broken=3", "out of memory", QUERN_NO_MEMORY },
        { "doubled m=4 n=8 broken=4", "expects nothing of any output", QUERN_INTERNAL },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct call call;
        call_init(&call, cases[i].text, 0);
        ck_assert_int_eq(call_expect(&call, 1), cases[i].status);
        ck_assert_msg(strstr(call.why.text, cases[i].said), "said \"%s\"", call.why.text);
        call_fini(&call);
    }
}
END_TEST

/* ---- quern_verify -------------------------------------------------------------------------- */

START_TEST(verify_runs_a_kernel_on_the_callers_arrays)
{
    static const char *const texts[] = { "copy n=100001 dtype=f32",
                                         "copy n=4097 dtype=bf16 alpha=3",
                                         "copy n=513 dtype=f16 inplace=1 alpha=0.5", "copy n=0" };
    struct quern_context *ctx = common_context(NULL);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct quern_spec spec = common_spec(ctx, texts[i]);
        struct quern_request request = QUERN_REQUEST_INIT;
        struct quern_kernel *kernel;
        struct common_arrays set;
        struct quern_check check;
        common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 0 }, common_seed());
        request.spec = &spec;
        request.arrays = set.arrays;
        assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
        assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, 5, &check));
        ck_assert_msg(check.ok, "%s: %s", texts[i], check.why);
        ck_assert_uint_eq(check.seed, 5);
        ck_assert_double_eq(check.covered, 1);
        common_arrays_check(&set, texts[i]);
        common_arrays_fini(&set);
    }
    quern_context_destroy(ctx);
}
END_TEST

START_TEST(verify_refuses_before_it_poisons)
{
    struct quern_context *ctx = common_context(NULL);
    struct quern_spec spec = common_spec(ctx, "copy n=100"), other = common_spec(ctx, "copy n=300");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_array arrays[2] = { { 0 } };
    static float x[300], out[300];
    struct quern_kernel *kernel;
    struct quern_check check;
    request.spec = &spec;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    assert_refused(ctx, quern_verify(ctx, kernel, &spec, NULL, 1, &check), QUERN_INVALID,
                   "arrays=NULL");
    assert_refused(ctx, quern_verify(ctx, NULL, &spec, arrays, 1, &check), QUERN_INVALID,
                   "kernel=NULL");
    arrays[0].data = x;
    arrays[1].data = out;
    assert_refused(ctx, quern_verify(ctx, kernel, &other, arrays, 1, &check), QUERN_INVALID,
                   "not in the kernel's bucket");
    for (int i = 0; i < 300; i++)
        ck_assert_float_eq(out[i], 0);
    quern_context_destroy(ctx);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("check");
    TCase *tests = tcase_create("check");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, a_right_output_passes_and_is_covered_whole);
    tcase_add_test(tests, one_wrong_element_is_named);
    tcase_add_test(tests, nan_and_inf_must_stand_where_the_reference_has_them);
    tcase_add_test(tests, what_overflows_the_dtype_may_be_inf_and_nothing_else);
    tcase_add_test(tests, poison_that_is_left_is_unwritten);
    tcase_add_test(tests, a_zero_row_must_be_zero);
    tcase_add_test(tests, a_bad_row_is_not_hidden_by_good_ones);
    tcase_add_test(tests, a_row_whose_terms_cancel_is_measured_against_them);
    tcase_add_test(tests, a_small_error_everywhere_is_past_the_total_bound);
    tcase_add_test(tests, one_rounded_element_passes_past_the_bound_and_its_neighbour_does_not);
    tcase_add_test(tests, where_the_outputs_are_empty_no_unit_is_evaluated);
    tcase_add_test(tests, a_costly_problem_is_sampled_and_its_edges_always_seen);
    tcase_add_test(tests, the_sample_follows_the_seed);
    tcase_add_test(tests, the_linear_check_sees_what_the_sample_leaves_out);
    tcase_add_test(tests, unwritten_rows_between_sampled_ones_are_seen);
    tcase_add_test(tests, writes_into_padding_and_inputs_are_seen);
    tcase_add_test(tests, an_output_between_the_rows_of_an_input_is_poisoned_and_they_are_watched);
    tcase_add_test(tests, touched_ranges_are_any_number_in_any_order);
    tcase_add_test(tests, a_touched_range_outside_its_array_is_an_error);
    tcase_add_test(tests, a_reference_that_breaks_its_contract_is_an_error_and_no_crash);
    tcase_add_test(tests, verify_runs_a_kernel_on_the_callers_arrays);
    tcase_add_test(tests, verify_refuses_before_it_poisons);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
