/* Every family's cases compiled for CUDA targets by every CUDA variant that serves them, with
 * no device: the config that an untuned call would take, for arrays aligned as well as can be or
 * as badly as may be, must compile without a spilled register or a serialized wgmma. The same goes
 * for random products, larger than the cases, so that large tiles are chosen. Then a random sample
 * of the other candidates for as long as time is left; those may spill or be refused, which
 * the tuner sees to, but nothing else may happen to them. QUERN_TEST_ALL=1 samples nothing, and
 * takes an hour of one processor; CK_RUN_CASE=cases leaves out products and candidates, and
 * QUERN_TEST_CASE=TEXT takes only the cases with TEXT in them, the family's name first.
 *
 *     jobs     what to compile: case, target, variant, config, alignment; no two of equal artifacts
 *     workers  as many threads as there are processors take them in order
 *
 * The figures at the end are for people. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "cuda_common.h"
#include "jit/build.h"
#include "jit/device.h"
#include "jit/target.h"

#define PRODUCT_BUILDS 60
#define SUITE_SECONDS 120 /* samples are taken until then, */
#define SAMPLE_SECONDS 10 /* and for as long at least */
#define SAMPLE_LIMIT 2000
#define MAX_CANDIDATES 1024

static const struct test_case {
    const char *family, *words, *kind;
} cases[] = {
#define QUERN_CASE(kind, words, why) { CASE_FAMILY, words, #kind },
#include "all_cases.def"
#undef QUERN_CASE
};
enum { CASE_COUNT = sizeof(cases) / sizeof(cases[0]) };

/* What arrays may be aligned to: 16 bytes each, or an element. */
enum alignment { ALIGNED, UNALIGNED, ALIGNMENTS };

static bool is_kind(const struct test_case *test, const char *kind)
{
    return !strcmp(test->kind, kind);
}

/* Where a case is compiled. */
struct place {
    struct quern_target target;
    struct quern_profile profile;
    struct qn_bucket bucket;
};

struct job {
    const struct test_case *test;
    const char *target;
    const struct quern_variant *variant;
    enum alignment alignment;
    bool is_sample;
    char config[512];
    struct place place;
    int status;
    char said[512];
    struct quern_report report;
};

struct jobs {
    struct job *list;
    int count, next;
    double deadline_ms; /* for samples */
    pthread_mutex_t lock;
};

static struct quern_context *ctx;
static double suite_start_ms;
static struct jobs jobs = { .lock = PTHREAD_MUTEX_INITIALIZER };
/* Hashes of the keys of all that was ever in the list. */
static char (*known)[QN_KEY_HEX];
static int known_count;

/* ---- What to compile ----------------------------------------------------------------------- */

static void place_init(struct place *place, const struct test_case *test, const char *target,
                       enum alignment alignment)
{
    char text[512];
    struct quern_message why;
    struct quern_shape shape;
    snprintf(text, sizeof(text), "%s %s", test->family, test->words);
    struct quern_spec spec = common_spec(ctx, text);
    ck_assert_int_eq(qn_target_parse(target, &place->target, &why), 0);
    assert_ok(ctx, qn_profile_for(ctx, &place->target, &place->profile));
    qn_bucket_make(&spec, NULL, &place->bucket);
    for (int i = 0; alignment == UNALIGNED && i < spec.family->array_count; i++) {
        spec.family->shape(&place->bucket.spec, i, &shape);
        if (shape.role != QUERN_ABSENT)
            place->bucket.alignment[i] = (uint8_t)quern_dtype_bytes(shape.dtype);
    }
}

static struct quern_problem problem_of(const struct place *place)
{
    return (struct quern_problem){ &place->bucket.spec, &place->target, &place->profile,
                                   place->bucket.alignment };
}

static struct qn_build_request request_of(const struct job *job)
{
    return (struct qn_build_request){ .bucket = &job->place.bucket,
                                      .target = &job->place.target,
                                      .profile = &job->place.profile,
                                      .variant = job->variant->name,
                                      .config = job->config };
}

/* Notes the artifacts that the job would make; true if any is new. */
static bool is_new(const struct job *job)
{
    const struct qn_build_request request = request_of(job);
    char **keys, hex[QN_KEY_HEX];
    int count, at;
    bool is_any_new = false;
    assert_ok(ctx, qn_unit_keys(ctx, &request, &keys, &count));
    for (int u = 0; u < count; u++) {
        qn_key_hex(keys[u], strlen(keys[u]), hex);
        for (at = 0; at < known_count && memcmp(known[at], hex, sizeof(hex)); at++)
            continue;
        if (at == known_count) {
            known = realloc(known, (size_t)(known_count + 1) * sizeof(*known));
            ck_assert_ptr_nonnull(known);
            memcpy(known[known_count++], hex, sizeof(hex));
            is_any_new = true;
        }
        free(keys[u]);
    }
    free(keys);
    return is_any_new;
}

static void job_add(const struct job *job)
{
    if (!is_new(job))
        return;
    jobs.list = realloc(jobs.list, (size_t)(jobs.count + 1) * sizeof(*jobs.list));
    ck_assert_ptr_nonnull(jobs.list);
    jobs.list[jobs.count++] = *job;
}

/* How many variants serve the case there; each goes to add(), unless NULL, with its heuristic's
 * config. */
static int serving(const struct test_case *test, const char *target, enum alignment alignment,
                   void (*add)(const struct job *job))
{
    struct job job = { .test = test, .target = target, .alignment = alignment };
    int served = 0;
    place_init(&job.place, test, target, alignment);
    const struct quern_family *family = job.place.bucket.spec.family;
    const struct quern_problem problem = problem_of(&job.place);
    for (int v = 0; family->variants[v]; v++) {
        int32_t config[QUERN_MAX_KNOBS] = { 0 };
        struct quern_message why;
        job.variant = family->variants[v];
        if (job.variant->device != QUERN_CUDA || !job.variant->supports(&problem))
            continue;
        job.variant->heuristic(&problem, config);
        qn_config_text(job.variant, config, job.config, sizeof(job.config));
        ck_assert_msg(!qn_config_check(job.variant, &problem, config, &why),
                      "%s %s for %s: the heuristic of %s, %s: %s", test->family, test->words,
                      target, job.variant->name, job.config, why.text);
        if (add)
            add(&job);
        served++;
    }
    return served;
}

/* Candidates of a variant: one at random, or all. */
static void add_candidates(const struct test_case *test, const char *target,
                           enum alignment alignment, const struct quern_variant *variant,
                           uint64_t *seed)
{
    static int32_t configs[MAX_CANDIDATES][QUERN_MAX_KNOBS];
    struct quern_message why;
    struct job job = { .test = test,
                       .target = target,
                       .variant = variant,
                       .alignment = alignment,
                       .is_sample = true };
    place_init(&job.place, test, target, alignment);
    const struct quern_problem problem = problem_of(&job.place);
    if (variant->device != QUERN_CUDA || !variant->candidates || !variant->supports(&problem))
        return;
    memset(configs, 0, sizeof(configs));
    int count = variant->candidates(&problem, configs, MAX_CANDIDATES);
    int first = common_is_exhaustive() || !count ? 0 : (int)common_between(seed, 0, count - 1);
    int last = common_is_exhaustive() ? count : first + (count > 0);
    for (int i = first; i < last; i++) {
        if (qn_config_check(variant, &problem, configs[i], &why))
            continue;
        qn_config_text(variant, configs[i], job.config, sizeof(job.config));
        job_add(&job);
    }
}

/* ---- Compiling it -------------------------------------------------------------------------- */

/* In a worker: no claims here, Check takes them from one thread. */
static void job_run(struct job *job)
{
    const struct qn_build_request request = request_of(job);
    struct quern_kernel *kernel;
    job->status = qn_build(ctx, &request, &kernel, NULL);
    snprintf(job->said, sizeof(job->said), "%s", job->status ? quern_errmsg(ctx) : "");
    if (job->status)
        return;
    job->report = kernel->report;
    qn_kernel_destroy(ctx, kernel);
}

/* The next job; NULL when there is none, or none that is not a sample past the deadline. */
static struct job *job_take(void)
{
    struct job *job = NULL;
    pthread_mutex_lock(&jobs.lock);
    if (jobs.next < jobs.count &&
        (!jobs.list[jobs.next].is_sample || qn_now_ms() < jobs.deadline_ms))
        job = &jobs.list[jobs.next++];
    pthread_mutex_unlock(&jobs.lock);
    return job;
}

static void *worker_main(void *unused)
{
    struct job *job;
    while ((job = job_take()))
        job_run(job);
    return unused;
}

static void run_all(void)
{
    pthread_t threads[64];
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    count = count > 64 ? 64 : count;
    for (long i = 0; i < count; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, worker_main, NULL), 0);
    for (long i = 0; i < count; i++)
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
}

/* ---- What came of it ----------------------------------------------------------------------- */

static long spills_of(const struct job *job)
{
    long spills = 0;
    for (int i = 0; i < job->report.step_count; i++)
        spills += job->report.steps[i].spills > 0 ? job->report.steps[i].spills : 0;
    return spills;
}

static bool is_serialized(const struct job *job)
{
    return job->status == QUERN_COMPILE && strstr(job->said, "(C75");
}

/* Says what is wrong with a job; false if nothing is. */
static bool complain(const struct job *job)
{
    bool is_spilled = !job->status && spills_of(job);
    if (!job->status && (!is_spilled || job->is_sample))
        return false;
    if (job->is_sample && is_serialized(job))
        return false;
    printf("%s %s for %s%s, %s %s: %s", job->test->family, job->test->words, job->target,
           job->alignment == UNALIGNED ? ", unaligned" : "", job->variant->name, job->config,
           job->said);
    if (is_spilled)
        printf("spills %ld bytes of registers", spills_of(job));
    putchar('\n');
    return true;
}

struct figures {
    int done, spilled, serialized, wrong, most_registers;
    double slowest_ms, total_ms;
    const struct job *slowest;
};

static void count_job(struct figures *figures, const struct job *job)
{
    double ms = 0;
    figures->done++;
    figures->wrong += complain(job);
    figures->serialized += is_serialized(job);
    figures->spilled += !job->status && spills_of(job) > 0;
    for (int i = 0; i < job->report.step_count; i++) {
        ms += job->report.steps[i].compile_ms;
        if (job->report.steps[i].registers > figures->most_registers)
            figures->most_registers = job->report.steps[i].registers;
    }
    figures->total_ms += ms;
    if (ms > figures->slowest_ms) {
        figures->slowest_ms = ms;
        figures->slowest = job;
    }
}

/* Compiles what is in the list, says what came of it, empties it. */
static void settle(const char *what)
{
    struct figures figures = { 0 };
    double start = qn_now_ms();
    jobs.next = 0;
    jobs.deadline_ms = fmax(start + SAMPLE_SECONDS * 1e3, suite_start_ms + SUITE_SECONDS * 1e3);
    if (common_is_exhaustive())
        jobs.deadline_ms = INFINITY;
    run_all();
    for (int i = 0; i < jobs.next; i++)
        count_job(&figures, &jobs.list[i]);
    printf("%s: %d builds in %.1f s (%.0f ms each), up to %d registers, %d spill, %d serialized\n",
           what, figures.done, (qn_now_ms() - start) / 1e3,
           figures.done ? figures.total_ms / figures.done : 0, figures.most_registers,
           figures.spilled, figures.serialized);
    if (figures.slowest)
        printf("%s: slowest %.0f ms: %s %s for %s, %s %s\n", what, figures.slowest_ms,
               figures.slowest->test->family, figures.slowest->test->words, figures.slowest->target,
               figures.slowest->variant->name, figures.slowest->config);
    fflush(stdout);
    ck_assert_int_gt(figures.done, 0);
    ck_assert_msg(!figures.wrong, "%s: %d of %d builds went wrong, as listed above", what,
                  figures.wrong, figures.done);
}

/* ---- The suite ----------------------------------------------------------------------------- */

static void setup(void)
{
    ctx = common_context(NULL);
    suite_start_ms = qn_now_ms();
    common_seed(); /* the same in each test's process */
}

static void teardown(void)
{
    quern_context_destroy(ctx);
    free(jobs.list);
    free(known);
}

/* Whether some target serves the case at all: none does what only a CPU has, such as a layout of
 * its own. */
static bool is_for_cuda(const struct test_case *test)
{
    bool is_served = false;
    for (int t = 0; t < CUDA_TARGET_COUNT && !is_kind(test, "illegal"); t++)
        is_served |= serving(test, cuda_targets[t], ALIGNED, NULL) > 0;
    return is_served;
}

START_TEST(a_case_that_one_target_serves_every_target_serves_in_every_alignment)
{
    int legal = 0, served = 0;
    for (int c = 0; c < CASE_COUNT; c++) {
        legal += !is_kind(&cases[c], "illegal");
        if (!is_for_cuda(&cases[c]))
            continue;
        served++;
        for (int t = 0; t < CUDA_TARGET_COUNT; t++)
            for (int alignment = 0; alignment < ALIGNMENTS; alignment++)
                ck_assert_msg(serving(&cases[c], cuda_targets[t], alignment, NULL) > 0,
                              "%s %s: no variant serves it on %s%s", cases[c].family,
                              cases[c].words, cuda_targets[t],
                              alignment == UNALIGNED ? ", unaligned" : "");
    }
    printf("%d of %d legal cases are served by CUDA variants\n", served, legal);
    ck_assert_int_gt(2 * served, legal);
}
END_TEST

/* Typical cases for every target, in alignments that take turns; the others for one target, which
 * the seed picks. */
static bool is_compiled(int c, int target, int alignment)
{
    int offset = (int)(common_seed() % CUDA_TARGET_COUNT);
    bool is_turn = alignment == (c + target) % ALIGNMENTS;
    const char *wanted = getenv("QUERN_TEST_CASE");
    char text[256];
    snprintf(text, sizeof(text), "%s %s", cases[c].family, cases[c].words);
    if (is_kind(&cases[c], "illegal") || (wanted && !strstr(text, wanted)))
        return false;
    return common_is_exhaustive() || (is_turn && (is_kind(&cases[c], "typical") ||
                                                  (c + offset) % CUDA_TARGET_COUNT == target));
}

START_TEST(a_target_compiles_cases_as_untuned_calls_would_have_them)
{
    jobs.count = 0;
    for (int c = 0; c < CASE_COUNT; c++) {
        for (int alignment = 0; alignment < ALIGNMENTS; alignment++)
            if (is_compiled(c, _i, alignment))
                serving(&cases[c], cuda_targets[_i], alignment, job_add);
    }
    settle(cuda_targets[_i]);
}
END_TEST

/* A product whose dtypes and layout are as random as its sizes, which are round or odd. */
static void draw_product(uint64_t *seed, char *words, size_t size)
{
    static const char *const dtypes[] = { "f32", "bf16", "f16" };
    static const char *const biases[] = { "none", "none", "f32", "bf16", "f16" };
    static const char *const batches[] = { "1", "1", "3" };
    long sizes[3];
    for (int i = 0; i < 3; i++) {
        sizes[i] = 1L << common_between(seed, 3, 13);
        sizes[i] -= common_between(seed, 0, 4) ? 0 : common_between(seed, 1, 7);
    }
    const char *a = dtypes[common_between(seed, 0, 2)];
    const char *b = common_between(seed, 0, 2) ? a : dtypes[common_between(seed, 0, 2)];
    bool is_tf32 = !strcmp(a, "f32") && !strcmp(b, "f32") && !common_between(seed, 0, 3);
    snprintf(words, size, "m=%ld n=%ld k=%ld batch=%s a=%s b=%s d=%s bias=%s layout=%s%s%s",
             sizes[0], sizes[1], sizes[2], batches[common_between(seed, 0, 2)], a, b,
             dtypes[common_between(seed, 0, 2)], biases[common_between(seed, 0, 4)],
             common_between(seed, 0, 1) ? "nn" : "nt",
             common_between(seed, 0, 2) ? "" : " accumulate=1", is_tf32 ? " math=tf32" : "");
}

START_TEST(random_products_compile_for_some_target_as_an_untuned_call_would_have_them)
{
    static struct product {
        struct test_case test;
        char words[128];
    } products[PRODUCT_BUILDS * 10];
    int builds = common_is_exhaustive() ? PRODUCT_BUILDS * 10 : PRODUCT_BUILDS;
    uint64_t seed = common_seed();
    jobs.count = 0;
    for (int i = 0; i < builds && jobs.count < builds; i++) {
        draw_product(&seed, products[i].words, sizeof(products[i].words));
        products[i].test = (struct test_case){ "gemm", products[i].words, false };
        serving(&products[i].test, cuda_targets[common_between(&seed, 0, CUDA_TARGET_COUNT - 1)],
                common_between(&seed, 0, 3) ? ALIGNED : UNALIGNED, job_add);
    }
    settle("random products");
}
END_TEST

static void add_candidates_everywhere(const struct test_case *test, uint64_t *seed)
{
    const struct quern_family *family = quern_family_find(ctx, test->family);
    for (int t = 0; t < CUDA_TARGET_COUNT; t++)
        for (int alignment = 0; alignment < ALIGNMENTS; alignment++)
            for (int v = 0; family->variants[v]; v++)
                add_candidates(test, cuda_targets[t], alignment, family->variants[v], seed);
}

static void add_candidate_somewhere(const struct test_case *test, uint64_t *seed)
{
    const struct quern_family *family = quern_family_find(ctx, test->family);
    int count = 0;
    while (family->variants[count])
        count++;
    add_candidates(test, cuda_targets[common_between(seed, 0, CUDA_TARGET_COUNT - 1)],
                   common_between(seed, 0, 3) ? ALIGNED : UNALIGNED,
                   family->variants[common_between(seed, 0, count - 1)], seed);
}

START_TEST(candidates_compile_or_are_refused_for_what_they_are)
{
    uint64_t seed = common_seed();
    jobs.count = 0;
    for (int c = 0; common_is_exhaustive() && c < CASE_COUNT; c++) {
        if (!is_kind(&cases[c], "illegal"))
            add_candidates_everywhere(&cases[c], &seed);
    }
    for (int tries = 0; !common_is_exhaustive() && tries < SAMPLE_LIMIT; tries++) {
        const struct test_case *test = &cases[common_between(&seed, 0, CASE_COUNT - 1)];
        if (!is_kind(test, "illegal"))
            add_candidate_somewhere(test, &seed);
    }
    settle("candidates");
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("cuda_compile");
    TCase *tcase = tcase_create("cases");
    tcase_set_timeout(tcase, 0);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_case_that_one_target_serves_every_target_serves_in_every_alignment);
    tcase_add_loop_test(tcase, a_target_compiles_cases_as_untuned_calls_would_have_them, 0,
                        CUDA_TARGET_COUNT);
    tcase_add_test(tcase,
                   random_products_compile_for_some_target_as_an_untuned_call_would_have_them);
    tcase_add_test(tcase, candidates_compile_or_are_refused_for_what_they_are);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return cuda_is_skipped(CUDA_TARGET_COUNT + 3) ? 0 : common_main(suite_make());
}
