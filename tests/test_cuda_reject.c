/* What becomes of CUDA kernels that should not be used, and of contexts that cannot compile them,
 * on a machine without a device: planted kernels through the whole pipeline up to loading. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "cuda_common.h"
#include "jit/build.h"
#include "jit/candidate.h"
#include "jit/device.h"
#include "jit/target.h"
#include "planted.h"

static struct quern_context *ctx;

static struct quern_context *context_with(const struct quern_options *options)
{
    struct quern_context *made = common_context(options);
    assert_ok(made, quern_family_register(made, &planted_family));
    return made;
}

static void setup(void)
{
    ctx = context_with(NULL);
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* Only compiles. */
static int build(struct quern_context *with, const char *target, enum planted_kind kind,
                 struct quern_report *report)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_spec spec = common_spec(with, "planted");
    char config[32];
    snprintf(config, sizeof(config), "kind=%d", kind);
    request.spec = &spec;
    request.config = config;
    request.target = target;
    return quern_build(with, &request, report);
}

/* What the tuner would note of the config as a candidate: "" if it went on to measure it. The build
 * loads nothing, since there is no device. */
static const char *outcome_of(enum planted_kind kind)
{
    static struct qn_candidate candidate;
    struct quern_target target;
    struct quern_profile profile;
    struct quern_message why;
    struct qn_bucket bucket;
    char config[32], *log = NULL;
    struct quern_spec spec = common_spec(ctx, "planted");
    snprintf(config, sizeof(config), "kind=%d", kind);
    ck_assert_int_eq(qn_target_parse("sm_90a", &target, &why), 0);
    assert_ok(ctx, qn_profile_for(ctx, &target, &profile));
    qn_bucket_make(&spec, NULL, &bucket);
    const struct qn_build_request request = {
        .bucket = &bucket, .target = &target, .profile = &profile, .config = config
    };
    memset(&candidate, 0, sizeof(candidate));
    int status = qn_build(ctx, &request, &candidate.kernel, &log);
    qn_candidate_judge(&candidate, ctx, status, log);
    free(log);
    qn_kernel_destroy(ctx, candidate.kernel);
    return candidate.outcome;
}

/* ---- Planted kernels ----------------------------------------------------------------------- */

START_TEST(a_sound_kernel_is_built_and_would_be_measured)
{
    struct quern_report report;
    assert_ok(ctx, build(ctx, "sm_90a", PLANTED_NONE, &report));
    ck_assert_str_eq(report.target, "sm_90a");
    ck_assert_int_eq(report.artifact, QUERN_FROM_COMPILER);
    ck_assert_int_gt(report.steps[0].registers, 0);
    ck_assert_int_eq(report.steps[0].spills, 0);
    ck_assert_str_eq(outcome_of(PLANTED_NONE), "");
}
END_TEST

START_TEST(a_kernel_that_spills_is_built_and_reported_and_no_candidate)
{
    struct quern_report report;
    char expected[64];
    assert_ok(ctx, build(ctx, "sm_90a", PLANTED_SPILL, &report));
    ck_assert_int_gt(report.steps[0].spills, 0);
    snprintf(expected, sizeof(expected), "spills %d bytes of registers", report.steps[0].spills);
    ck_assert_str_eq(outcome_of(PLANTED_SPILL), expected);
    /* The report comes with the stored artifact, too. */
    assert_ok(ctx, build(ctx, "sm_90a", PLANTED_SPILL, &report));
    ck_assert_int_ne(report.artifact, QUERN_FROM_COMPILER);
    ck_assert_int_gt(report.steps[0].spills, 0);
}
END_TEST

static const struct {
    enum planted_kind kind;
    const char *said;
} refused[] = {
    { PLANTED_WGMMA, "(C7511)" },
    { PLANTED_SETMAXNREG, "(C7508)" },
    { PLANTED_ERROR, "#error directive: planted" },
};

START_TEST(a_kernel_that_cannot_be_good_is_refused_never_stored_and_no_candidate)
{
    struct quern_report report;
    for (int again = 0; again < 2; again++)
        assert_refused(ctx, build(ctx, "sm_90a", refused[_i].kind, &report), QUERN_COMPILE,
                       refused[_i].said);
    ck_assert_ptr_nonnull(strstr(outcome_of(refused[_i].kind), refused[_i].said));
    assert_ok(ctx, build(ctx, "sm_90a", PLANTED_NONE, &report));
}
END_TEST

START_TEST(a_target_that_the_compiler_does_not_know_is_refused_by_name)
{
    struct quern_report report;
    assert_refused(ctx, build(ctx, "sm_77", PLANTED_NONE, &report), QUERN_UNSUPPORTED,
                   "target=sm_77: NVRTC ");
}
END_TEST

/* ---- Contexts that cannot compile ---------------------------------------------------------- */

START_TEST(without_nvrtc_what_is_stored_is_served_and_the_rest_says_what_is_missing)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_report report;
    char *cache = common_scratch_path("reject.db");
    options.cache = cache;
    struct quern_context *with = context_with(&options);
    assert_ok(with, build(with, "sm_90a", PLANTED_NONE, &report));
    quern_context_destroy(with);

    options.nvrtc = "/nonexistent/libnvrtc.so.13";
    struct quern_context *without = context_with(&options);
    assert_ok(without, build(without, "sm_90a", PLANTED_NONE, &report));
    ck_assert_int_eq(report.artifact, QUERN_FROM_DISK);
    ck_assert_int_gt(report.steps[0].registers, 0);
    assert_refused(without, build(without, "sm_90a", PLANTED_SPILL, &report), QUERN_NO_COMPILER,
                   "nvrtc=/nonexistent/libnvrtc.so.13: no such file");
    quern_context_destroy(without);

    options.mode = "sealed";
    options.nvrtc = NULL;
    struct quern_context *sealed = context_with(&options);
    assert_ok(sealed, build(sealed, "sm_90a", PLANTED_NONE, &report));
    assert_refused(sealed, build(sealed, "sm_90a", PLANTED_SPILL, &report), QUERN_SEALED,
                   "mode=sealed: artifact ");
    quern_context_destroy(sealed);
    free(cache);
}
END_TEST

/* A cubin is found under the compiler that made it, whose identity is remembered in the store. */
START_TEST(an_artifact_names_the_nvrtc_that_made_it)
{
    struct quern_target target;
    struct quern_message why;
    const struct qn_backend *backend;
    struct qn_device *device;
    char identity[128];
    ck_assert_int_eq(qn_target_parse("sm_90a", &target, &why), 0);
    assert_ok(ctx, qn_device_for(ctx, &target, &backend, &device));
    int status = backend->compiler(device, identity, sizeof(identity), &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_int_eq(strncmp(identity, "nvrtc ", 6), 0);
    ck_assert_ptr_null(strchr(identity, '/'));
}
END_TEST

/* ---- The suite ----------------------------------------------------------------------------- */

enum { REFUSED_COUNT = sizeof(refused) / sizeof(refused[0]) };

static Suite *suite_make(void)
{
    Suite *suite = suite_create("cuda_reject");
    TCase *tcase = tcase_create("planted");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_sound_kernel_is_built_and_would_be_measured);
    tcase_add_test(tcase, a_kernel_that_spills_is_built_and_reported_and_no_candidate);
    tcase_add_loop_test(tcase,
                        a_kernel_that_cannot_be_good_is_refused_never_stored_and_no_candidate, 0,
                        REFUSED_COUNT);
    tcase_add_test(tcase, a_target_that_the_compiler_does_not_know_is_refused_by_name);
    tcase_add_test(tcase, without_nvrtc_what_is_stored_is_served_and_the_rest_says_what_is_missing);
    tcase_add_test(tcase, an_artifact_names_the_nvrtc_that_made_it);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return cuda_is_skipped(REFUSED_COUNT + 5) ? 0 : common_main(suite_make());
}
