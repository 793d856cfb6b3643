/* Every family's cases, as its folder lists them, on the CPU: run and checked against the reference
 * in memory of their own between guard bytes, twice with equal bits; in sampled configs; for every
 * CPU target that there is. QUERN_TEST_ALL=1 samples nothing. A family that has no CPU variant is
 * passed over, which a line says; its cases are test_cuda_compile's and those of make check-gpu. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "jit/build.h"
#include "jit/dtype.h"
#include "jit/embedded.h"
#include "jit/plan.h"
#include "jit/target.h"

enum kind { typical, odd, one, empty, huge, illegal, KIND_COUNT };
static const char *const kind_names[] = { "typical", "odd", "one", "empty", "huge", "illegal" };

static const struct test_case {
    const char *family;
    enum kind kind;
    const char *words, *why;
} cases[] = {
#define QUERN_CASE(kind, words, why) { CASE_FAMILY, kind, words, why },
#include "all_cases.def"
#undef QUERN_CASE
};
enum { CASE_COUNT = sizeof(cases) / sizeof(cases[0]) };

/* Indices of the cases of some kinds, for loop tests. */
struct selection {
    int count, index[CASE_COUNT];
};
static struct selection runnable, huge_ones, illegal_ones;
static int passed_over; /* cases of families that no CPU serves */

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = common_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static bool has_cpu_variant(const struct quern_family *family)
{
    int v = 0;
    while (family->variants[v] && family->variants[v]->device != QUERN_CPU)
        v++;
    return family->variants[v] != NULL;
}

static void text_of(const struct test_case *test, char *text, size_t bytes)
{
    snprintf(text, bytes, "%s %s", test->family, test->words);
}

/* ---- One kernel on one case ---------------------------------------------------------------- */

static bool is_empty_output(const struct common_arrays *set)
{
    int64_t elements = 0;
    for (int i = 0; i < set->count; i++) {
        if (set->shapes[i].role == QUERN_OUT || set->shapes[i].role == QUERN_INOUT)
            elements += qn_shape_count(&set->shapes[i]);
    }
    return !elements;
}

/* Of inputs that are not finite a reference may say nothing at all. */
static void verify(struct quern_kernel *kernel, const struct quern_spec *spec,
                   const struct common_arrays *set, bool is_finite, const char *what)
{
    struct quern_check check;
    common_doing(what);
    assert_ok(ctx, quern_verify(ctx, kernel, spec, set->arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: rel_err %g row_err %g tol %g: %s", what, check.rel_err,
                  check.row_err, check.tol, check.why);
    ck_assert_msg(check.covered > 0 || !is_finite || is_empty_output(set),
                  "%s: nothing was compared", what);
    common_arrays_check(set, what);
}

/* Checked against the reference, and the same bits again. */
static void check_kernel(struct quern_kernel *kernel, const struct quern_spec *spec,
                         struct common_arrays *set, const char *what)
{
    struct quern_report report;
    quern_kernel_report(kernel, &report);
    verify(kernel, spec, set, true, what);
    common_arrays_keep(set);
    common_arrays_restore(set);
    assert_ok(ctx, quern_launch(ctx, kernel, spec, set->arrays, NULL));
    common_arrays_check(set, what);
    if (!qn_variant_find(spec->family, report.variant)->is_nondeterministic)
        ck_assert_msg(common_arrays_differ(set) < 0, "%s: array %d differs when run again", what,
                      common_arrays_differ(set));
    common_arrays_restore(set);
}

static const struct layout {
    struct common_layout rows;
    bool is_repeated; /* inputs, along their leading dimension */
} layouts[] = {
    { { 16, 0 }, false },  { { 0, 0 }, false }, { { 0, 3 }, false },
    { { 64, 64 }, false }, { { 0, 5 }, true },
};
enum { LAYOUT_COUNT = sizeof(layouts) / sizeof(layouts[0]), LAYOUT_REPEATED = LAYOUT_COUNT - 1 };

static void arrays_init(struct common_arrays *set, const struct quern_spec *spec,
                        const struct layout *layout)
{
    uint64_t drawn = common_random(&seed);
    if (layout->is_repeated)
        common_arrays_init_repeated(set, ctx, spec, layout->rows, drawn);
    else
        common_arrays_init(set, ctx, spec, layout->rows, drawn);
}

/* A variant and config, or the heuristic's, on arrays. */
struct job {
    const struct quern_spec *spec;
    struct common_arrays *set;
    const char *variant;
    char config[512]; /* "": as an untuned call has it */
    char what[1200];
};

static int job_prepare(const struct job *job, struct quern_kernel **kernel)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    request.spec = job->spec;
    request.arrays = job->set->arrays;
    request.variant = job->variant;
    request.config = *job->config ? job->config : NULL;
    return quern_prepare(ctx, &request, kernel);
}

/* Compiled by all cores at once; what fails then fails again when it is run. */
static void jobs_check(const struct job *jobs, int count)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        struct quern_kernel *kernel;
        job_prepare(&jobs[i], &kernel);
    }
    for (int i = 0; i < count; i++) {
        struct quern_kernel *kernel;
        int status = job_prepare(&jobs[i], &kernel);
        ck_assert_msg(!status, "%s: %s", jobs[i].what, quern_errmsg(ctx));
        check_kernel(kernel, jobs[i].spec, jobs[i].set, jobs[i].what);
    }
}

START_TEST(a_case_matches_its_reference_twice_in_every_layout)
{
    static struct common_arrays sets[LAYOUT_COUNT];
    static struct job jobs[LAYOUT_COUNT];
    const struct test_case *test = &cases[runnable.index[_i]];
    char text[256];
    text_of(test, text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    for (int i = 0; i < LAYOUT_COUNT; i++) {
        jobs[i] = (struct job){ .spec = &spec, .set = &sets[i] };
        snprintf(jobs[i].what, sizeof(jobs[i].what), "%s (%s), aligned to %zu, rows padded by %d%s",
                 text, test->why, layouts[i].rows.alignment, (int)layouts[i].rows.padding,
                 layouts[i].is_repeated ? ", inputs repeated" : "");
        arrays_init(&sets[i], &spec, &layouts[i]);
    }
    jobs_check(jobs, LAYOUT_COUNT);
    for (int i = 0; i < LAYOUT_COUNT; i++)
        common_arrays_fini(&sets[i]);
}
END_TEST

static void check_drawing(const char *text)
{
    enum { BEHIND = 4096, MOST = 1 << 20 };
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_family_description family;
    quern_family_describe(spec.family, &family);
    for (int i = 0; i < family.array_count; i++) {
        struct quern_shape shape;
        assert_ok(ctx, quern_spec_shape(ctx, &spec, i, &shape));
        size_t bytes = (size_t)qn_shape_count(&shape) * quern_dtype_bytes(shape.dtype);
        if (shape.role == QUERN_ABSENT || bytes > MOST)
            continue;
        unsigned char *data = malloc(bytes + BEHIND);
        ck_assert_ptr_nonnull(data);
        memset(data + bytes, 0xa5, BEHIND);
        assert_ok(ctx, quern_fill(ctx, &spec, i, seed, data));
        for (int at = 0; at < BEHIND; at++)
            ck_assert_msg(data[bytes + (size_t)at] == 0xa5, "%s: %s, %d bytes behind it", text,
                          family.arrays[i].name, at);
        free(data);
    }
}

/* A tuning draws outputs, too. */
START_TEST(drawing_any_array_of_a_case_writes_that_array_only)
{
    for (int i = 0; i < runnable.count; i++) {
        char text[256];
        text_of(&cases[runnable.index[i]], text, sizeof(text));
        check_drawing(text);
    }
}
END_TEST

/* An infinity or a NaN in an input reaches exactly the outputs that it should. */
START_TEST(a_case_with_nan_and_infinities_among_its_inputs_matches_its_reference)
{
    static const double specials[] = { NAN, INFINITY, -INFINITY };
    char text[256], what[400];
    text_of(&cases[runnable.index[_i]], text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_kernel *kernel;
    struct common_arrays set;
    arrays_init(&set, &spec, &layouts[0]);
    for (int i = 0; i < set.count; i++) {
        const struct quern_shape *shape = &set.shapes[i];
        if (shape->role != QUERN_IN || !qn_dtype_is_float(shape->dtype) || !qn_shape_count(shape))
            continue;
        int64_t at = common_between(&seed, 0, qn_shape_count(shape) - 1);
        common_arrays_put(&set, i, at, specials[common_between(&seed, 0, 2)]);
        common_arrays_put(&set, i, qn_shape_count(shape) - 1,
                          specials[common_between(&seed, 0, 2)]);
    }
    snprintf(what, sizeof(what), "%s with NaN and Inf", text);
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    verify(kernel, &spec, &set, false, what);
    common_arrays_fini(&set);
}
END_TEST

/* ---- Configs ------------------------------------------------------------------------------- */

enum { MAX_CANDIDATES = 256 };
struct candidates {
    int count;
    int32_t configs[MAX_CANDIDATES][QUERN_MAX_KNOBS];
};

/* A legal config with knobs drawn at random around a candidate's: not one that its author chose. */
static bool config_random(const struct quern_variant *variant, const struct quern_problem *problem,
                          const struct candidates *from, int32_t *config)
{
    struct quern_message why;
    for (int tries = 0; tries < 200; tries++) {
        for (int k = 0; k < variant->knob_count; k++) {
            const struct quern_knob *knob = &variant->knobs[k];
            int32_t value = from->configs[common_between(&seed, 0, from->count - 1)][k];
            value += (int32_t)common_between(&seed, -1, 1) * (common_between(&seed, 0, 3) == 0);
            config[k] = value < knob->minimum   ? knob->minimum
                        : value > knob->maximum ? knob->maximum
                                                : value;
        }
        if (!qn_config_check(variant, problem, config, &why))
            return true;
    }
    return false;
}

static void candidates_of(const struct quern_variant *variant, const struct quern_problem *problem,
                          struct candidates *list)
{
    struct quern_message why;
    int found = 1, kept = 0;
    memset(list, 0, sizeof(*list));
    variant->heuristic(problem, list->configs[0]);
    if (variant->candidates)
        found += variant->candidates(problem, list->configs + 1, MAX_CANDIDATES - 1);
    ck_assert_int_le(found, MAX_CANDIDATES);
    for (int i = 0; i < found; i++) {
        if (!qn_config_check(variant, problem, list->configs[i], &why))
            memmove(list->configs[kept++], list->configs[i], sizeof(list->configs[0]));
    }
    ck_assert_msg(kept > 0, "%s: no candidate is legal", variant->name);
    list->count = kept;
}

static void job_init(struct job *job, const struct test_case *test, const struct quern_spec *spec,
                     const struct quern_variant *variant, const int32_t *config,
                     struct common_arrays *set)
{
    char text[512];
    qn_config_text(variant, config, text, sizeof(text));
    *job = (struct job){ .spec = spec, .set = set, .variant = variant->name };
    memcpy(job->config, text, sizeof(text));
    snprintf(job->what, sizeof(job->what), "%s %s, variant %s, config %s", test->family,
             test->words, variant->name, text);
}

static void check_variant(const struct test_case *test, const struct quern_spec *spec,
                          const struct quern_variant *variant, const struct layout *layout)
{
    static struct candidates list;
    static struct job jobs[MAX_CANDIDATES + 1];
    struct common_arrays set;
    struct qn_bucket bucket;
    int32_t config[QUERN_MAX_KNOBS] = { 0 };
    arrays_init(&set, spec, layout);
    qn_bucket_make(spec, set.arrays, &bucket);
    const struct quern_problem problem = { &bucket.spec, &ctx->target, &ctx->profile,
                                           bucket.alignment };
    if (variant->device == QUERN_CPU && variant->supports(&problem)) {
        candidates_of(variant, &problem, &list);
        int count = 0, sampled = common_is_exhaustive() ? list.count : 2;
        for (int i = 0; i < sampled; i++) {
            int pick = common_is_exhaustive() ? i : (int)common_between(&seed, 0, list.count - 1);
            job_init(&jobs[count++], test, spec, variant, list.configs[pick], &set);
        }
        if (config_random(variant, &problem, &list, config))
            job_init(&jobs[count++], test, spec, variant, config, &set);
        jobs_check(jobs, count);
    }
    common_arrays_fini(&set);
}

START_TEST(a_case_matches_its_reference_in_sampled_configs_of_every_variant)
{
    const struct test_case *test = &cases[runnable.index[_i]];
    char text[256];
    text_of(test, text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    for (int i = 0; spec.family->variants[i]; i++) {
        int layout = (int)common_between(&seed, 0, LAYOUT_COUNT - 1);
        check_variant(test, &spec, spec.family->variants[i], &layouts[layout]);
        if (common_is_exhaustive() && layout != LAYOUT_REPEATED)
            check_variant(test, &spec, spec.family->variants[i], &layouts[LAYOUT_REPEATED]);
    }
}
END_TEST

/* ---- Targets ------------------------------------------------------------------------------- */

static const char *const targets[] = {
    "cpu:x86-64-v1",     "cpu:x86-64-v2",           "cpu:x86-64-v3",
    "cpu:x86-64-v4",     "cpu:x86-64-v4+bf16",      "cpu:x86-64-v4+vnni",
    "cpu:x86-64-v4+amx", "cpu:x86-64-v4+bf16+vnni", "cpu:x86-64-v4+bf16+vnni+amx",
    "cpu:aarch64",
};
enum { TARGET_COUNT = sizeof(targets) / sizeof(targets[0]) };

/* A case in a layout, for a target: built, and run where this machine executes it. */
struct target_job {
    const struct test_case *test;
    struct quern_spec spec;
    struct qn_bucket bucket;
    const struct layout *layout;
    uint64_t seed; /* of its inputs */
};

static void target_job_init(struct target_job *job, const struct test_case *test)
{
    struct common_arrays set;
    char text[256];
    text_of(test, text, sizeof(text));
    job->test = test;
    job->spec = common_spec(ctx, text);
    job->layout = &layouts[common_between(&seed, 0, LAYOUT_COUNT - 1)];
    job->seed = seed;
    arrays_init(&set, &job->spec, job->layout);
    qn_bucket_make(&job->spec, set.arrays, &job->bucket);
    common_arrays_fini(&set);
}

static int target_job_build(const struct target_job *job, const struct quern_target *target,
                            bool is_loaded, struct quern_kernel **kernel)
{
    const struct qn_build_request request = {
        .bucket = &job->bucket, .target = target, .profile = &ctx->profile, .is_loaded = is_loaded
    };
    return qn_build(ctx, &request, kernel, NULL);
}

/* By all cores at once, into the context's store; what fails here fails again below. */
static void target_jobs_compile(const struct target_job *jobs, int count,
                                const struct quern_target *target)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < count; i++) {
        struct quern_kernel *kernel = NULL;
        if (!target_job_build(&jobs[i], target, false, &kernel))
            qn_kernel_destroy(ctx, kernel);
    }
}

static void target_job_check(const struct target_job *job, const struct quern_target *target,
                             const char *name)
{
    struct quern_message why;
    struct common_arrays set;
    struct quern_kernel *kernel;
    char what[400];
    snprintf(what, sizeof(what), "%s %s for %s", job->test->family, job->test->words, name);
    bool is_run = !ctx->backend->accepts(ctx->device, target, &why);
    int status = target_job_build(job, target, is_run, &kernel);
    ck_assert_msg(!status, "%s: %s", what, quern_errmsg(ctx));
    ck_assert_str_eq(kernel->report.target, name);
    if (is_run) {
        seed = job->seed;
        arrays_init(&set, &job->spec, job->layout);
        check_kernel(kernel, &job->spec, &set, what);
        common_arrays_fini(&set);
    }
    qn_kernel_destroy(ctx, kernel);
}

START_TEST(cases_compile_for_every_cpu_target_and_match_on_those_that_run_here)
{
    static struct target_job jobs[CASE_COUNT];
    struct quern_target target;
    struct quern_message why;
    int step = common_is_exhaustive() ? 1 : 3, start = (int)common_between(&seed, 0, step - 1);
    int count = 0;
    ck_assert_int_eq(qn_target_parse(targets[_i], &target, &why), 0);
    for (int i = start; i < runnable.count; i += step)
        target_job_init(&jobs[count++], &cases[runnable.index[i]]);
    uint64_t after = seed;
    target_jobs_compile(jobs, count, &target);
    for (int i = 0; i < count; i++)
        target_job_check(&jobs[i], &target, targets[_i]);
    seed = after;
}
END_TEST

START_TEST(this_machine_runs_its_own_target_and_the_lowest_of_its_architecture)
{
    struct quern_target lowest;
    struct quern_message why;
    const char *name = ctx->target.cpu_arch ? "cpu:aarch64" : "cpu:x86-64-v1";
    ck_assert_int_eq(qn_target_parse(name, &lowest, &why), 0);
    ck_assert_int_eq(ctx->backend->accepts(ctx->device, &lowest, &why), 0);
    ck_assert_int_eq(ctx->backend->accepts(ctx->device, &ctx->target, &why), 0);
}
END_TEST

START_TEST(what_this_machine_does_not_execute_is_built_and_never_loaded)
{
    const char *foreign = ctx->target.cpu_arch ? "cpu:x86-64-v1" : "cpu:aarch64";
    struct quern_spec spec = common_spec(ctx, "copy n=5");
    struct quern_target target;
    struct quern_message why;
    struct qn_bucket bucket;
    struct quern_kernel *kernel = NULL;
    ck_assert_int_eq(qn_target_parse(foreign, &target, &why), 0);
    qn_bucket_make(&spec, NULL, &bucket);
    const struct qn_build_request request = {
        .bucket = &bucket, .target = &target, .profile = &ctx->profile, .is_loaded = true
    };
    int status = qn_build(ctx, &request, &kernel, NULL);
    ck_assert_int_lt(status, 0);
    ck_assert_msg(strstr(quern_errmsg(ctx), foreign) != NULL, "%s", quern_errmsg(ctx));
    ck_assert_ptr_null(kernel);
}
END_TEST

/* ---- Huge and illegal ---------------------------------------------------------------------- */

/* Addresses that nothing is at, page by page after each other; false if 64 bits are too few. */
static bool arrays_place(const struct quern_spec *spec, struct quern_array *arrays)
{
    uint64_t at = 4096;
    for (int i = 0; i < spec->family->array_count; i++) {
        struct quern_shape shape;
        assert_ok(ctx, quern_spec_shape(ctx, spec, i, &shape));
        if (shape.role == QUERN_ABSENT)
            continue;
        uint64_t bytes = (uint64_t)qn_shape_count(&shape) * quern_dtype_bytes(shape.dtype);
        arrays[i].data = (void *)(uintptr_t)at;
        if (__builtin_add_overflow(at, bytes / 4096 * 4096 + 4096, &at))
            return false;
    }
    return true;
}

START_TEST(a_huge_case_is_planned_and_bound)
{
    const struct test_case *test = &cases[huge_ones.index[_i]];
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } }, bound[QUERN_MAX_ARRAYS];
    struct quern_launch *launch = calloc(1, sizeof(*launch));
    struct quern_message why;
    struct quern_kernel *kernel;
    char text[256];
    text_of(test, text, sizeof(text));
    struct quern_spec spec = common_spec(ctx, text);
    ck_assert(arrays_place(&spec, arrays));
    assert_ok(ctx, quern_dispatch(ctx, &spec, arrays, &kernel));
    ck_assert_int_ge(kernel->plan->workspace_bytes, 0);
    ck_assert_msg(!qn_arrays_bind(&spec, arrays, bound, &why), "%s", why.text);
    qn_kernel_bind(ctx, kernel, &spec, bound, (void *)(uintptr_t)4096, launch);
    int running = 0;
    for (int i = 0; i < kernel->plan->step_count; i++) {
        const struct quern_step_launch *step = &launch->steps[i];
        running += step->grid[0] && step->grid[1] && step->grid[2];
        ck_assert_uint_le(step->args_bytes, QUERN_ARGS_BYTES);
    }
    ck_assert_int_ge(running, 1);
    free(launch);
}
END_TEST

/* A word of a blank-separated list. */
static void word_random(const char *list, char *word, size_t bytes)
{
    int count = 1;
    for (const char *p = list; *p; p++)
        count += *p == ' ';
    for (int64_t skip = common_between(&seed, 0, count - 1); skip > 0; skip--)
        list = strchr(list, ' ') + 1;
    snprintf(word, bytes, "%.*s", (int)strcspn(list, " "), list);
}

/* Sizes of every magnitude, 0 and powers of two and one beside them among them. */
static void value_random(const struct quern_param *param, char *text, size_t bytes)
{
    int64_t size = INT64_C(1) << common_between(&seed, 0, 40);
    switch (param->kind) {
    case QUERN_CHOICE:
    case QUERN_DTYPE:
        word_random(param->domain, text, bytes);
        break;
    case QUERN_FLAG:
        snprintf(text, bytes, "%d", (int)common_between(&seed, 0, 1));
        break;
    case QUERN_REAL:
        snprintf(text, bytes, "%d", (int)common_between(&seed, -9, 9));
        break;
    case QUERN_SIZE:
        size = common_between(&seed, 0, 3) ? size + common_between(&seed, -1, 1)
                                           : common_between(&seed, 0, size);
        snprintf(text, bytes, "%lld", (long long)size);
        break;
    }
}

/* One of the family's cases that are not refused; NULL if it has none. */
static const struct test_case *case_random(const struct quern_family *family)
{
    int start = (int)common_between(&seed, 0, CASE_COUNT - 1);
    for (int i = 0; i < CASE_COUNT; i++) {
        const struct test_case *test = &cases[(start + i) % CASE_COUNT];
        if (test->kind != illegal && !strcmp(test->family, family->name))
            return test;
    }
    return NULL;
}

/* Every parameter drawn, or a few of a case's: what rules tie together is seldom met by chance.
 * False if that is not legal. */
static bool spec_random(const struct quern_family *family, struct quern_spec *spec)
{
    const struct test_case *from = common_between(&seed, 0, 1) ? case_random(family) : NULL;
    char text[256];
    assert_ok(ctx, quern_spec_init(ctx, family->name, spec));
    if (from) {
        text_of(from, text, sizeof(text));
        *spec = common_spec(ctx, text);
    }
    for (int i = 0; i < family->param_count; i++) {
        const struct quern_param *param = &family->params[i];
        if (from && common_between(&seed, 0, 7))
            continue;
        value_random(param, text, sizeof(text));
        if (param->kind == QUERN_REAL && common_between(&seed, 0, 1))
            continue;
        if (quern_spec_set(ctx, spec, param->name, text))
            return false;
    }
    return !quern_spec_validate(ctx, spec);
}

/* The first that serves the problem on the CPU. */
static const struct quern_variant *variant_here(const struct quern_family *family,
                                                const struct quern_problem *problem)
{
    int v = 0;
    while (family->variants[v] && (family->variants[v]->device != problem->target->kind ||
                                   !family->variants[v]->supports(problem)))
        v++;
    ck_assert_msg(family->variants[v], "%s: no variant serves it", family->name);
    return family->variants[v];
}

static void plan_and_bind(const struct quern_spec *spec)
{
    static struct quern_plan plan;
    static struct quern_launch launch;
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } }, bound[QUERN_MAX_ARRAYS];
    struct quern_message why;
    struct qn_bucket bucket;
    int32_t config[QUERN_MAX_KNOBS] = { 0 };
    char text[512];
    quern_spec_text(spec, text, sizeof(text));
    if (!arrays_place(spec, arrays))
        return;
    qn_bucket_make(spec, arrays, &bucket);
    const struct quern_problem problem = { &bucket.spec, &ctx->target, &ctx->profile,
                                           bucket.alignment };
    const struct quern_variant *variant = variant_here(spec->family, &problem);
    variant->heuristic(&problem, config);
    ck_assert_msg(!qn_config_check(variant, &problem, config, &why), "%s: %s", text, why.text);
    memset(&plan, 0, sizeof(plan));
    variant->plan(&problem, config, &plan);
    ck_assert_msg(!qn_plan_check(&plan, variant->name, &why), "%s: %s", text, why.text);
    ck_assert_msg(!qn_arrays_bind(spec, arrays, bound, &why), "%s: %s", text, why.text);
    const struct quern_binding binding = { spec, bound, &ctx->profile, config,
                                           (void *)(uintptr_t)4096 };
    variant->bind(&binding, &launch);
}

/* Under UBSan, that none of it overflows; here, that every plan is one. */
START_TEST(legal_specs_of_every_magnitude_are_planned_and_bound)
{
    for (int f = 0; f < quern_family_count(ctx); f++) {
        int legal_count = 0;
        if (!has_cpu_variant(quern_family_at(ctx, f)))
            continue;
        for (int i = 0; i < 5000; i++) {
            struct quern_spec spec;
            if (!spec_random(quern_family_at(ctx, f), &spec))
                continue;
            plan_and_bind(&spec);
            legal_count++;
        }
        ck_assert_int_gt(legal_count, 100);
    }
}
END_TEST

START_TEST(an_illegal_case_is_refused_saying_what)
{
    const struct test_case *test = &cases[illegal_ones.index[_i]];
    struct quern_spec spec;
    char text[256];
    text_of(test, text, sizeof(text));
    assert_refused(ctx, quern_spec_parse(ctx, text, &spec), QUERN_INVALID, test->why);
}
END_TEST

START_TEST(every_family_has_cases_of_every_kind)
{
    for (int f = 0; f < quern_family_count(ctx); f++) {
        struct quern_family_description family;
        int has[KIND_COUNT] = { 0 };
        quern_family_describe(quern_family_at(ctx, f), &family);
        if (!strcmp(family.name, "kinds"))
            continue;
        for (int i = 0; i < CASE_COUNT; i++)
            has[cases[i].kind] += !strcmp(cases[i].family, family.name);
        for (int kind = 0; kind < KIND_COUNT; kind++)
            ck_assert_msg(has[kind], "%s has no case of kind %s", family.name, kind_names[kind]);
    }
}
END_TEST

/* ---- The check itself ---------------------------------------------------------------------- */

START_TEST(a_variant_that_is_off_in_its_last_element_fails_the_check)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=37 cols=11");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    struct quern_check check;
    struct common_arrays set;
    arrays_init(&set, &spec, &layouts[2]);
    request.spec = &spec;
    request.arrays = set.arrays;
    request.variant = "kinds_wrong";
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    ck_assert(!check.ok);
    ck_assert_double_gt(check.rel_err, check.tol);
    ck_assert_str_ne(check.why, "");
    common_arrays_restore(&set);
    request.variant = "kinds_cpu";
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    check_kernel(kernel, &spec, &set, "kinds");
    common_arrays_fini(&set);
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

static bool is_cpu_case(const struct test_case *test)
{
    const struct quern_family *const *family = qn_builtin_families;
    while (strcmp((*family)->name, test->family))
        family++;
    return has_cpu_variant(*family);
}

static void select_cases(void)
{
    for (int i = 0; i < CASE_COUNT; i++) {
        struct selection *selection = cases[i].kind == illegal ? &illegal_ones
                                      : cases[i].kind == huge  ? &huge_ones
                                                               : &runnable;
        if (selection == &illegal_ones || is_cpu_case(&cases[i]))
            selection->index[selection->count++] = i;
        else
            passed_over++;
    }
}

static Suite *suite_make(void)
{
    Suite *suite = suite_create("families");
    TCase *tcase = tcase_create("families");
    select_cases();
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, every_family_has_cases_of_every_kind);
    tcase_add_test(tcase, a_variant_that_is_off_in_its_last_element_fails_the_check);
    tcase_add_loop_test(tcase, an_illegal_case_is_refused_saying_what, 0, illegal_ones.count);
    tcase_add_loop_test(tcase, a_huge_case_is_planned_and_bound, 0, huge_ones.count);
    tcase_add_test(tcase, legal_specs_of_every_magnitude_are_planned_and_bound);
    tcase_add_loop_test(tcase, a_case_matches_its_reference_twice_in_every_layout, 0,
                        runnable.count);
    tcase_add_test(tcase, drawing_any_array_of_a_case_writes_that_array_only);
    tcase_add_loop_test(tcase,
                        a_case_with_nan_and_infinities_among_its_inputs_matches_its_reference, 0,
                        runnable.count);
    tcase_add_loop_test(tcase, a_case_matches_its_reference_in_sampled_configs_of_every_variant, 0,
                        runnable.count);
    tcase_add_test(tcase, this_machine_runs_its_own_target_and_the_lowest_of_its_architecture);
    tcase_add_test(tcase, what_this_machine_does_not_execute_is_built_and_never_loaded);
    tcase_add_loop_test(tcase, cases_compile_for_every_cpu_target_and_match_on_those_that_run_here,
                        0, TARGET_COUNT);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    Suite *suite = suite_make();
    if (passed_over)
        printf("Families without a CPU variant:\n0 passed, 0 failed, %d skipped\n", passed_over);
    return common_main(suite);
}
