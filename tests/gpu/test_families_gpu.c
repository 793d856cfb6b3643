/* Every family's cases on a device, with every variant that serves them there: what an untuned call
 * would use in every layout, and sampled candidates. Each kernel is
 *
 *     checked     against the reference, on poisoned outputs
 *     guarded     guard bytes around every array, inputs and the padding between rows unchanged
 *     repeated    100 runs with the same bits, unless the variant says that they may differ
 *
 * Beside the folders' cases there are some that fill a device several times over, and some drawn at
 * random. The kernels of a case are compiled by all cores at once before the first of them runs.
 *
 * QUERN_TEST_ALL=1 samples nothing; CK_RUN_CASE=cases, large or random runs a part. For a look at
 * one kernel, under compute-sanitizer say, QUERN_TEST_CASE=TEXT takes only the cases whose words
 * contain TEXT (the family's name is the first of them), QUERN_TEST_VARIANT=NAME only that variant,
 * QUERN_TEST_REPEATS=N fewer runs. QUERN_TEST_PART=K/N takes the K-th of N parts of the cases, so
 * that N processes can share them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "jit/dtype.h"
#include "tests/gpu_arrays.h"

enum kind { typical, odd, one, empty, huge, illegal, large };

static const struct test_case {
    const char *family;
    enum kind kind;
    const char *words, *why;
} cases[] = {
#define QUERN_CASE(kind, words, why) { CASE_FAMILY, kind, words, why },
#include "all_cases.def"
#undef QUERN_CASE
#define LARGE(words, why) { "gemm", large, words, why },
    LARGE("m=4096 n=4096 k=1024 a=bf16 b=bf16 d=bf16", "several tiles a multiprocessor") LARGE(
        "m=3001 n=2999 k=1031 a=bf16 b=bf16 d=f32 bias=bf16", "the same, tails everywhere")
        LARGE("m=3000 n=2992 k=1032 a=bf16 b=bf16 d=bf16 accumulate=1",
              "partial tiles, 16-byte rows")
            LARGE("m=2048 n=5000 k=512 a=f16 b=f16 d=f16 layout=nn bias=f32", "f16, k by n") LARGE(
                "m=512 n=1024 k=256 batch=24 a=bf16 b=bf16 d=bf16", "more batch entries than tiles")
                LARGE("m=3 n=5 k=16 batch=70000 a=bf16 b=bf16 d=bf16",
                      "more than a grid's z may be")
                    LARGE("m=128 n=1000 k=16384 a=bf16 b=bf16 d=bf16", "long k: split")
                        LARGE("m=16 n=16384 k=4096 a=bf16 b=bf16 d=bf16", "decode, 16 rows")
                            LARGE("m=1 n=8192 k=8192 a=bf16 b=bf16 d=bf16", "decode, one row")
                                LARGE("m=1500 n=1300 k=1100", "f32")
                                    LARGE("m=2000 n=2048 k=768 math=tf32 layout=nn", "tf32, k by n")
#undef LARGE
};
enum { CASE_COUNT = sizeof(cases) / sizeof(cases[0]) };

/* Indices of cases, for loop tests. */
struct selection {
    int count, index[CASE_COUNT];
};
static struct selection runnable, large_ones;

static struct quern_context *ctx;
static uint64_t seed;
static int checked, rejected;

static void setup(void)
{
    ctx = gpu_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    printf("%d kernels checked, %d candidates rejected by the compiler\n", checked, rejected);
    checked = rejected = 0;
    quern_context_destroy(ctx);
}

/* ---- Jobs: a kernel on arrays -------------------------------------------------------------- */

struct job {
    const struct quern_spec *spec;
    struct gpu_arrays *set;
    const struct quern_variant *variant;
    char config[512];
    char what[1024];
    bool is_sampled; /* the compiler may refuse it: a tuning would drop it */
};

enum { MAX_JOBS = 4096, MAX_CANDIDATES = 256, SAMPLED = 2, REPEATS = 100 };
static struct job jobs[MAX_JOBS];
static int job_count;

static int job_prepare(const struct job *job, struct quern_kernel **kernel)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    request.spec = job->spec;
    request.arrays = job->set->arrays;
    request.variant = job->variant->name;
    request.config = job->config;
    return quern_prepare(ctx, &request, kernel);
}

/* What fails here fails again when it is run, and is told then. */
static void jobs_prepare(void)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < job_count; i++) {
        struct quern_kernel *kernel;
        job_prepare(&jobs[i], &kernel);
    }
}

/* A kernel that faults takes the process's CUDA with it: what comes after it is not blamed. */
static char lost[1200];

static void job_done(const struct job *job, int status)
{
    if (status == QUERN_DEVICE && !*lost)
        snprintf(lost, sizeof(lost), "%s", job->what);
    ck_assert_msg(!status, "%s: %s", job->what, quern_errmsg(ctx));
}

static void jobs_run(void (*check)(const struct job *job, struct quern_kernel *kernel))
{
    jobs_prepare();
    for (int i = 0; i < job_count; i++) {
        struct quern_kernel *kernel;
        int status = job_prepare(&jobs[i], &kernel);
        if (status == QUERN_COMPILE && jobs[i].is_sampled && strstr(quern_errmsg(ctx), "C75")) {
            rejected++;
            continue;
        }
        job_done(&jobs[i], status);
        common_doing(jobs[i].what);
        gpu_watch(jobs[i].what);
        check(&jobs[i], kernel);
        gpu_watch(NULL);
        checked++;
    }
    job_count = 0;
}

/* What is said when a job fails. */
static void job_describe(struct job *job, const struct gpu_layout *layout)
{
    char text[320], how[64];
    quern_spec_text(job->spec, text, sizeof(text));
    gpu_layout_text(layout, how, sizeof(how));
    snprintf(job->what, sizeof(job->what), "%s, %s, variant %s, config %.500s", text, how,
             job->variant->name, job->config);
}

static void job_add(const struct quern_spec *spec, struct gpu_arrays *set,
                    const struct gpu_layout *layout, const struct quern_variant *variant,
                    const int32_t *config, bool is_sampled)
{
    ck_assert_int_lt(job_count, MAX_JOBS);
    struct job *job = &jobs[job_count++];
    job->spec = spec;
    job->set = set;
    job->variant = variant;
    job->is_sampled = is_sampled;
    qn_config_text(variant, config, job->config, sizeof(job->config));
    job_describe(job, layout);
}

/* ---- What is asked of a kernel ------------------------------------------------------------- */

static bool has_role(const struct gpu_arrays *set, int role)
{
    for (int i = 0; i < set->host.count; i++) {
        if (set->host.shapes[i].role == role && qn_shape_count(&set->host.shapes[i]))
            return true;
    }
    return false;
}

/* Of inputs that are not finite a reference may say nothing at all. */
static void verify(const struct job *job, struct quern_kernel *kernel, bool is_finite)
{
    struct quern_check check;
    int status = quern_verify(ctx, kernel, job->spec, job->set->arrays, seed, &check);
    job_done(job, status);
    ck_assert_msg(check.ok, "%s: rel_err %g row_err %g tol %g: %s", job->what, check.rel_err,
                  check.row_err, check.tol, check.why);
    bool is_empty = !has_role(job->set, QUERN_OUT) && !has_role(job->set, QUERN_INOUT);
    ck_assert_msg(check.covered > 0 || !is_finite || is_empty, "%s: nothing was compared",
                  job->what);
    gpu_arrays_check(job->set, job->what);
}

/* Of large outputs every 20th run is compared; what is added to is always put back first. */
static void check_repeats(const struct job *job, struct quern_kernel *kernel)
{
    const char *given = getenv("QUERN_TEST_REPEATS");
    int repeats = given ? atoi(given) : REPEATS;
    int step = gpu_arrays_written(job->set) > 1 << 18 && repeats >= 20 ? 20 : 1;
    gpu_arrays_keep(job->set);
    for (int run = 1; run <= repeats; run++) {
        if (run % step == 0 || has_role(job->set, QUERN_INOUT))
            gpu_arrays_rewind(job->set);
        int status = quern_launch(ctx, kernel, job->spec, job->set->arrays, NULL);
        job_done(job, status);
        int differs = run % step == 0 ? gpu_arrays_differ(job->set) : -1;
        ck_assert_msg(differs < 0, "%s: array %d differs in run %d", job->what, differs, run);
    }
}

static void check_all(const struct job *job, struct quern_kernel *kernel)
{
    verify(job, kernel, true);
    if (!job->variant->is_nondeterministic)
        check_repeats(job, kernel);
    gpu_arrays_check(job->set, job->what);
    gpu_arrays_restore(job->set);
}

static void check_not_finite(const struct job *job, struct quern_kernel *kernel)
{
    verify(job, kernel, false);
    gpu_arrays_restore(job->set);
}

/* ---- Which kernels ------------------------------------------------------------------------- */

static bool is_asked_for(const struct quern_variant *variant)
{
    const char *name = getenv("QUERN_TEST_VARIANT");
    return variant->device == ctx->target.kind && (!name || !strcmp(name, variant->name));
}

static bool is_served(const struct quern_variant *variant, const struct qn_bucket *bucket,
                      struct quern_problem *problem)
{
    *problem =
        (struct quern_problem){ &bucket->spec, &ctx->target, &ctx->profile, bucket->alignment };
    return is_asked_for(variant) && variant->supports(problem);
}

/* The heuristic's config of every variant. */
static int jobs_add_untuned(const struct quern_spec *spec, struct gpu_arrays *set,
                            const struct gpu_layout *layout)
{
    struct qn_bucket bucket;
    struct quern_problem problem;
    struct quern_message why;
    int added = 0;
    qn_bucket_make(spec, set->arrays, &bucket);
    for (int i = 0; spec->family->variants[i]; i++) {
        const struct quern_variant *variant = spec->family->variants[i];
        int32_t config[QUERN_MAX_KNOBS] = { 0 };
        if (!is_served(variant, &bucket, &problem))
            continue;
        variant->heuristic(&problem, config);
        ck_assert_msg(!qn_config_check(variant, &problem, config, &why), "%s: heuristic: %s",
                      variant->name, why.text);
        job_add(spec, set, layout, variant, config, false);
        added++;
    }
    return added;
}

/* Of every variant some of its candidates, or all. */
static void jobs_add_candidates(const struct quern_spec *spec, struct gpu_arrays *set,
                                const struct gpu_layout *layout)
{
    static int32_t configs[MAX_CANDIDATES][QUERN_MAX_KNOBS];
    struct qn_bucket bucket;
    struct quern_problem problem;
    struct quern_message why;
    qn_bucket_make(spec, set->arrays, &bucket);
    for (int i = 0; spec->family->variants[i]; i++) {
        const struct quern_variant *variant = spec->family->variants[i];
        if (!is_served(variant, &bucket, &problem) || !variant->candidates)
            continue;
        memset(configs, 0, sizeof(configs));
        int count = variant->candidates(&problem, configs, MAX_CANDIDATES);
        for (int n = 0; n < (common_is_exhaustive() ? count : SAMPLED) && count; n++) {
            int pick = common_is_exhaustive() ? n : (int)common_between(&seed, 0, count - 1);
            if (!qn_config_check(variant, &problem, configs[pick], &why))
                job_add(spec, set, layout, variant, configs[pick], true);
        }
    }
}

static struct quern_spec spec_of(const struct test_case *test)
{
    char text[256];
    snprintf(text, sizeof(text), "%s %s", test->family, test->words);
    return common_spec(ctx, text);
}

/* Families and features that CUDA variants are for. */
static bool must_be_served(const struct test_case *test)
{
    bool is_cuda = ctx->target.kind == QUERN_CUDA && !getenv("QUERN_TEST_VARIANT");
    return is_cuda && (!strcmp(test->family, "copy") ||
                       (!strcmp(test->family, "gemm") && !strstr(test->words, "packed=")));
}

/* ---- Cases --------------------------------------------------------------------------------- */

START_TEST(a_case_is_right_and_repeatable_with_every_variant_in_every_layout)
{
    const struct test_case *test = &cases[runnable.index[_i]];
    static struct gpu_arrays sets[GPU_LAYOUT_COUNT];
    struct quern_spec spec = spec_of(test);
    int sampled = (int)common_between(&seed, 0, GPU_LAYOUT_COUNT - 1), served = 0;
    for (int i = 0; i < GPU_LAYOUT_COUNT; i++) {
        gpu_arrays_init(&sets[i], ctx, &spec, &gpu_layouts[i], common_random(&seed));
        served += jobs_add_untuned(&spec, &sets[i], &gpu_layouts[i]);
    }
    ck_assert_msg(served > 0 || !must_be_served(test), "%s: no variant serves it", test->words);
    jobs_add_candidates(&spec, &sets[sampled], &gpu_layouts[sampled]);
    jobs_add_candidates(&spec, &sets[0], &gpu_layouts[0]);
    jobs_run(check_all);
    for (int i = 0; i < GPU_LAYOUT_COUNT; i++)
        gpu_arrays_fini(&sets[i]);
}
END_TEST

START_TEST(a_large_case_is_right_and_repeatable_with_every_variant)
{
    const struct test_case *test = &cases[large_ones.index[_i]];
    struct quern_spec spec = spec_of(test);
    struct gpu_arrays set;
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    int served = jobs_add_untuned(&spec, &set, &gpu_layouts[0]);
    ck_assert_msg(served > 0 || !must_be_served(test), "%s: no variant serves it", test->words);
    jobs_add_candidates(&spec, &set, &gpu_layouts[0]);
    jobs_run(check_all);
    gpu_arrays_fini(&set);
}
END_TEST

/* An infinity or a NaN in an input reaches exactly the outputs that it should. */
START_TEST(a_case_with_nan_and_infinities_among_its_inputs_matches_its_reference)
{
    static const double specials[] = { NAN, INFINITY, -INFINITY };
    struct quern_spec spec = spec_of(&cases[runnable.index[_i]]);
    struct gpu_arrays set;
    gpu_arrays_init(&set, ctx, &spec, &gpu_layouts[0], common_random(&seed));
    for (int i = 0; i < set.host.count; i++) {
        const struct quern_shape *shape = &set.host.shapes[i];
        if (shape->role != QUERN_IN || !qn_dtype_is_float(shape->dtype) || !qn_shape_count(shape))
            continue;
        int64_t at = common_between(&seed, 0, qn_shape_count(shape) - 1);
        common_arrays_put(&set.host, i, at, specials[common_between(&seed, 0, 2)]);
        common_arrays_put(&set.host, i, qn_shape_count(shape) - 1,
                          specials[common_between(&seed, 0, 2)]);
    }
    gpu_arrays_upload(&set);
    jobs_add_untuned(&spec, &set, &gpu_layouts[0]);
    jobs_run(check_not_finite);
    gpu_arrays_fini(&set);
}
END_TEST

/* ---- Random specs -------------------------------------------------------------------------- */

static const char *pick(const char *const *words, int count)
{
    return words[common_between(&seed, 0, count - 1)];
}

/* Of few tiles and of many, long in any one direction. */
static void gemm_random(char *text, size_t bytes)
{
    static const char *const dtypes[] = { "f32", "bf16", "f16" };
    static const char *const biases[] = { "none", "f32", "bf16", "f16" };
    static const char *const layouts[] = { "nt", "nn" };
    int most[3] = { 600, 600, 600 }, side = (int)common_between(&seed, 0, 5);
    const char *a = pick(dtypes, 3), *b = common_between(&seed, 0, 3) ? a : pick(dtypes, 3);
    bool is_f32 = !strcmp(a, "f32") && !strcmp(b, "f32");
    if (side < 3) {
        most[side] = 3000;
        most[(side + 1) % 3] = 40;
    }
    snprintf(text, bytes,
             "gemm m=%d n=%d k=%d batch=%d a=%s b=%s d=%s bias=%s layout=%s accumulate=%d math=%s",
             (int)common_between(&seed, 1, most[0]), (int)common_between(&seed, 1, most[1]),
             (int)common_between(&seed, 1, most[2]),
             (int)(common_between(&seed, 0, 3) ? 1 : common_between(&seed, 2, 5)), a, b,
             pick(dtypes, 3), pick(biases, 4), pick(layouts, 2), (int)common_between(&seed, 0, 1),
             is_f32 && common_between(&seed, 0, 1) ? "tf32" : "f32");
}

START_TEST(random_products_are_right_with_every_variant_in_any_layout)
{
    enum { DRAWN = 48 };
    static struct gpu_arrays sets[DRAWN];
    static struct quern_spec specs[DRAWN];
    for (int i = 0; i < DRAWN; i++) {
        const struct gpu_layout *layout =
            &gpu_layouts[common_between(&seed, 0, GPU_LAYOUT_COUNT - 1)];
        char text[256];
        gemm_random(text, sizeof(text));
        specs[i] = common_spec(ctx, text);
        gpu_arrays_init(&sets[i], ctx, &specs[i], layout, common_random(&seed));
        jobs_add_untuned(&specs[i], &sets[i], layout);
    }
    jobs_run(check_not_finite);
    for (int i = 0; i < DRAWN; i++)
        gpu_arrays_fini(&sets[i]);
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

static void select_cases(void)
{
    const char *words = getenv("QUERN_TEST_CASE"), *part = getenv("QUERN_TEST_PART");
    int which = 1, parts = 1;
    if (part && (sscanf(part, "%d/%d", &which, &parts) != 2 || which < 1 || which > parts)) {
        fprintf(stderr, "QUERN_TEST_PART=%s is not K/N with 1 <= K <= N\n", part);
        exit(EXIT_FAILURE);
    }
    for (int i = 0; i < CASE_COUNT; i++) {
        struct selection *selection = cases[i].kind == large ? &large_ones : &runnable;
        bool is_run = cases[i].kind != illegal && cases[i].kind != huge;
        char text[256];
        snprintf(text, sizeof(text), "%s %s", cases[i].family, cases[i].words);
        if (is_run && i % parts == which - 1 && (!words || strstr(text, words)))
            selection->index[selection->count++] = i;
    }
}

/* A test that failed leaves its jobs and its watch behind. */
static void test_setup(void)
{
    job_count = 0;
    gpu_watch(NULL);
    ck_assert_msg(!*lost, "not run, since the device was lost by: %s", lost);
}

static TCase *tcase_make(Suite *suite, const char *name)
{
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_checked_fixture(tcase, test_setup, NULL);
    suite_add_tcase(suite, tcase);
    return tcase;
}

int main(void)
{
    Suite *suite = suite_create("families_gpu");
    select_cases();
    TCase *tcase = tcase_make(suite, "cases");
    tcase_add_loop_test(tcase, a_case_is_right_and_repeatable_with_every_variant_in_every_layout, 0,
                        runnable.count);
    tcase_add_loop_test(tcase,
                        a_case_with_nan_and_infinities_among_its_inputs_matches_its_reference, 0,
                        runnable.count);
    tcase = tcase_make(suite, "large");
    tcase_add_loop_test(tcase, a_large_case_is_right_and_repeatable_with_every_variant, 0,
                        large_ones.count);
    tcase = tcase_make(suite, "random");
    tcase_add_test(tcase, random_products_are_right_with_every_variant_in_any_layout);
    return common_main(suite);
}
