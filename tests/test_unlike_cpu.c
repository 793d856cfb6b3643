/* What the pipeline does for a device that is not like the CPU: streams that are captured, memory
 * that is not the host's, a compiler that reports, recordings, a cache that must be flushed, blocks
 * in no order of ours. The device is the CPU backend with some of its functions replaced, so that
 * this needs no GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "jit/measure.h"
#include "jit/testbed.h"
#include "kinds.h"
#include "mill.h"

static struct quern_context *ctx;
static struct qn_backend unlike;
static const struct qn_backend *own;

static void setup(void)
{
    const struct quern_options options = { .size = sizeof(options), .threads = 1 };
    memset(&mill_probe, 0, sizeof(mill_probe));
    ctx = common_context(&options);
    assert_ok(ctx, quern_family_register(ctx, &mill_family));
    own = ctx->backend;
    unlike = *own;
}

static void teardown(void)
{
    ctx->backend = own;
    quern_context_destroy(ctx);
}

static struct quern_kernel *prepare(const struct quern_spec *spec, const char *config)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    request.spec = spec;
    request.config = config;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    return kernel;
}

/* ---- Capture ------------------------------------------------------------------------------- */

static char captured;

static int is_capturing(struct qn_device *device, void *stream)
{
    (void)device;
    return stream == &captured;
}

START_TEST(a_captured_miss_is_an_error_and_a_prepared_call_runs)
{
    struct quern_spec spec = common_spec(ctx, "copy n=100");
    struct quern_call call = { .stream = &captured };
    struct common_arrays set;
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_seed());
    unlike.is_capturing = is_capturing;
    ctx->backend = &unlike;
    int status = quern_run(ctx, &spec, set.arrays, &call);
    assert_refused(ctx, status, QUERN_INVALID, ": is being captured, and copy n=");
    ck_assert_ptr_nonnull(
        strstr(quern_errmsg(ctx), " is not prepared: call quern_prepare() first"));
    ck_assert_int_eq(kinds_compiles(ctx), 0);
    prepare(&spec, NULL);
    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, &call));
    common_arrays_fini(&set);
}
END_TEST

START_TEST(a_captured_call_must_bring_its_workspace)
{
    static char workspace[4096] __attribute__((aligned(QN_MEMORY_ALIGN)));
    struct quern_spec spec = common_spec(ctx, "kinds rows=8 cols=4 gain=2");
    struct quern_call call = { .stream = &captured };
    struct quern_kernel *kernel = prepare(&spec, NULL);
    struct common_arrays set;
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_seed());
    unlike.is_capturing = is_capturing;
    ctx->backend = &unlike;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace=NULL: stream=");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), "workspace_bytes=256"));
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL));
    call.workspace = workspace;
    call.workspace_bytes = sizeof(workspace);
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call));
    ck_assert(kinds_is_scaled(&set, 2));
    common_arrays_fini(&set);
}
END_TEST

/* ---- Memory that is not the device's ------------------------------------------------------- */

static const void *foreign;

static int check_pointer(struct qn_device *device, const void *data, struct quern_message *why)
{
    (void)device;
    return data == foreign ? quern_refuse(why, "host memory") : QUERN_OK;
}

START_TEST(memory_that_the_device_cannot_reach_is_refused_by_name)
{
    static char workspace[4096] __attribute__((aligned(QN_MEMORY_ALIGN)));
    struct quern_spec spec = common_spec(ctx, "kinds rows=8 cols=4 gain=2");
    struct quern_spec empty = common_spec(ctx, "kinds rows=0 cols=4 gain=2");
    struct quern_call call = { .workspace = workspace, .workspace_bytes = sizeof(workspace) };
    struct quern_kernel *kernel = prepare(&spec, NULL), *none = prepare(&empty, NULL);
    struct common_arrays set;
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_seed());
    unlike.kind = QUERN_CUDA;
    unlike.name = "cuda";
    unlike.check_pointer = check_pointer;
    ctx->ordinal = 3;
    ctx->backend = &unlike;
    foreign = set.arrays[KINDS_OUT].data;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL), QUERN_INVALID,
                   "out=0x");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), ": host memory; must be memory of cuda:3"));
    assert_refused(ctx, quern_run(ctx, &spec, set.arrays, NULL), QUERN_INVALID, "host memory");
    assert_ok(ctx, quern_launch(ctx, none, &empty, set.arrays, NULL));
    foreign = workspace;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace=0x");
    foreign = NULL;
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call));
    ck_assert(kinds_is_scaled(&set, 2));
    common_arrays_fini(&set);
}
END_TEST

/* ---- A compiler that reports --------------------------------------------------------------- */

static const char *said_report, *said_failure;

/* Of kernels that do no extra work it says what the test wants. */
static int compile(struct qn_device *device, const struct qn_compile_request *request,
                   struct qn_compile_result *result, struct quern_message *why)
{
    int status = own->compile(device, request, result, why);
    const char *work = strstr(request->source, "#define WORK 0\n");
    if (status || !work || work > strstr(request->source, "#ifndef KIND"))
        return status;
    free(result->report);
    result->report = strdup(said_report);
    if (!said_failure)
        return QUERN_OK;
    free(result->log);
    result->log = strdup("ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry");
    quern_refuse(why, "%s", said_failure);
    return QUERN_COMPILE;
}

START_TEST(a_step_reports_its_own_entry)
{
    struct quern_spec spec = common_spec(ctx, "mill m=4 n=8");
    struct quern_report report;
    said_failure = NULL;
    said_report = "entry=mill_two registers=11 spills=12 shared=13\n"
                  "entry=mil registers=21 spills=22 shared=23\n"
                  "entry=mill registers=40 spills=0 shared=16\n"
                  "entry=other registers=31 spills=32 shared=33\n";
    unlike.compile = compile;
    ctx->backend = &unlike;
    report = kinds_report(prepare(&spec, "kind=0,work=0"));
    ck_assert_int_eq(report.steps[0].registers, 40);
    ck_assert_int_eq(report.steps[0].spills, 0);
    ck_assert_int_eq(report.steps[0].shared_bytes, 16);
    report = kinds_report(prepare(&spec, "kind=0,work=1")); /* of which nothing is reported */
    ck_assert_int_eq(report.steps[0].registers, -1);
    ck_assert_int_eq(report.steps[0].spills, -1);
    ck_assert_int_eq(report.steps[0].shared_bytes, 0);
}
END_TEST

START_TEST(an_entry_that_the_compiler_does_not_report_is_refused_and_nothing_stored)
{
    struct quern_spec spec = common_spec(ctx, "mill m=4 n=8");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel = NULL;
    request.spec = &spec;
    request.config = "kind=0,work=0";
    said_failure = NULL;
    said_report = "entry=mil registers=21 spills=22 shared=23\n"
                  "entry=mill_two registers=11 spills=12 shared=13\n";
    unlike.compile = compile;
    ctx->backend = &unlike;
    assert_refused(ctx, quern_prepare(ctx, &request, &kernel), QUERN_COMPILE,
                   "entry=mill: not in mill");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), ", which has mil, mill_two"));
    ck_assert_ptr_null(kernel);
    ck_assert_int_eq(kinds_compiles(ctx), 0);
    said_report = "entry=mill registers=40 spills=0 shared=16\n";
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
}
END_TEST

static int keep_outcome(void *user, const struct quern_tune_progress *progress)
{
    if (!strcmp(progress->config, "kind=0,work=0"))
        snprintf(user, 256, "%s", progress->outcome);
    return 0;
}

/* The outcome of the one candidate that the compiler above has something to say of. */
static void tune_reported(char outcome[256])
{
    struct quern_spec spec = common_spec(ctx, "mill m=4 n=8");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result result;
    request.spec = &spec;
    options.memory_bytes = 1 << 20;
    options.max_configs = 3;
    options.progress = keep_outcome;
    options.user = outcome;
    unlike.compile = compile;
    ctx->backend = &unlike;
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_int_eq(result.failed, 1);
    ck_assert_str_ne(result.best.config, "kind=0,work=0");
}

START_TEST(a_candidate_that_spills_is_rejected)
{
    char outcome[256] = "";
    said_report = "entry=mill registers=255 spills=24 shared=0\n";
    said_failure = NULL;
    tune_reported(outcome);
    ck_assert_str_eq(outcome, "spills 24 bytes of registers");
}
END_TEST

START_TEST(a_rejected_candidates_outcome_is_the_line_that_says_why)
{
    char outcome[256] = "";
    said_report = "";
    said_failure = "ptxas info : (C7511) Potential Performance Loss: wgmma is serialized";
    tune_reported(outcome);
    ck_assert_str_eq(outcome, said_failure);
}
END_TEST

/* ---- Artifacts that do not load ------------------------------------------------------------ */

static int failing_loads, failing_compiles;

static int load(struct qn_device *device, const struct quern_target *target, const void *blob,
                size_t blob_bytes, struct qn_module **module, struct quern_message *why)
{
    if (failing_loads-- <= 0)
        return own->load(device, target, blob, blob_bytes, module, why);
    quern_refuse(why, "artifact: load %d fails", failing_loads);
    return QUERN_LOAD;
}

static int compile_once(struct qn_device *device, const struct qn_compile_request *request,
                        struct qn_compile_result *result, struct quern_message *why)
{
    if (failing_compiles-- <= 0)
        return own->compile(device, request, result, why);
    quern_refuse(why, "the compiler was killed");
    return QUERN_COMPILE;
}

START_TEST(what_the_caller_reads_is_why_the_stored_artifact_did_not_load)
{
    struct quern_spec spec = common_spec(ctx, "copy n=100");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_report report;
    struct quern_kernel *kernel = NULL;
    request.spec = &spec;
    assert_ok(ctx, quern_build(ctx, &request, &report));
    unlike.load = load;
    unlike.compile = compile_once;
    ctx->backend = &unlike;
    failing_loads = failing_compiles = 1;
    assert_refused(ctx, quern_prepare(ctx, &request, &kernel), QUERN_LOAD, "artifact: load 0");
    ck_assert_ptr_null(kernel);
    assert_ok(ctx, quern_build(ctx, &request, &report));
    failing_loads = 2;
    assert_refused(ctx, quern_prepare(ctx, &request, &kernel), QUERN_LOAD, "artifact: load 0");
    failing_loads = 1;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    ck_assert_int_eq(kinds_report(kernel).artifact, QUERN_FROM_COMPILER);
}
END_TEST

/* ---- A device that is lost ----------------------------------------------------------------- */

static struct qn_testbed *testbed_make(const struct quern_spec *spec, size_t memory_bytes)
{
    struct qn_testbed *bed = calloc(1, sizeof(*bed));
    struct quern_message why;
    unlike.kind = QUERN_CUDA;
    ctx->backend = &unlike;
    int status = qn_testbed_init(bed, ctx, spec, NULL, memory_bytes, common_seed(), &why);
    ck_assert_msg(!status, "%s", why.text);
    return bed;
}

static void testbed_free(struct qn_testbed *bed)
{
    struct quern_message why;
    ck_assert(!qn_testbed_fini(bed, &why));
    free(bed);
    ctx->backend = own;
}

static int synchronizations;

static void *alloc_none(struct qn_device *device, size_t bytes, void *stream)
{
    (void)device, (void)bytes, (void)stream;
    return NULL;
}

static int fill_none(struct qn_device *device, void *data, int byte, size_t bytes, void *stream)
{
    (void)device, (void)data, (void)byte, (void)bytes, (void)stream;
    return QUERN_DEVICE;
}

static int synchronize_lost(struct qn_device *device, void *stream, struct quern_message *why)
{
    (void)device, (void)stream;
    synchronizations++;
    quern_refuse(why, "device=cuda:0: cuStreamSynchronize: the context is lost");
    return QUERN_DEVICE;
}

START_TEST(a_lost_device_does_not_read_as_one_without_memory)
{
    struct qn_workset_options options = { .memory_bytes = 1 << 20, .seed = common_seed() };
    struct quern_spec spec = common_spec(ctx, "mill m=4 n=8");
    struct quern_message why;
    struct qn_workset set;
    void *data = NULL;
    struct qn_testbed *bed = testbed_make(&spec, 1 << 20);
    unlike.alloc = alloc_none;
    assert_refused(ctx, quern_memory_alloc(ctx, 100, &data), QUERN_NO_MEMORY, "no such memory");
    ck_assert_int_eq(qn_workset_init(&set, &bed->map, &options, &why), QUERN_NO_MEMORY);
    unlike.synchronize = synchronize_lost;
    assert_refused(ctx, quern_memory_alloc(ctx, 100, &data), QUERN_DEVICE, "context is lost");
    ck_assert_int_eq(qn_workset_init(&set, &bed->map, &options, &why), QUERN_DEVICE);
    ck_assert_msg(strstr(why.text, "context is lost"), "%s", why.text);
    unlike.fill = fill_none;
    ck_assert_int_eq(qn_fill(ctx, &data, 0, 1, &why), QUERN_DEVICE);
    ck_assert_msg(strstr(why.text, "context is lost"), "%s", why.text);
    ck_assert_ptr_null(data);
    unlike = *own;
    testbed_free(bed);
}
END_TEST

START_TEST(a_captured_stream_without_memory_is_said_to_be_captured_and_left_alone)
{
    struct quern_message why;
    void *data = NULL;
    unlike.alloc = alloc_none;
    unlike.is_capturing = is_capturing;
    unlike.synchronize = synchronize_lost;
    ctx->backend = &unlike;
    synchronizations = 0;
    ck_assert_int_eq(qn_memory_get(ctx, 100, &captured, &data, &why), QUERN_INVALID);
    ck_assert_msg(strstr(why.text, "is being captured"), "%s", why.text);
    ck_assert_int_eq(synchronizations, 0);
}
END_TEST

/* ---- Recordings ---------------------------------------------------------------------------- */

struct qn_recording {
    const struct quern_plan *plan;
    struct qn_function *const *functions;
    struct quern_launch *launches;
    int count;
};

static struct {
    int made, forgotten, replays, longest;
    bool is_repeated; /* two launches of one recording had the same arguments */
} recorded;

static int record(struct qn_device *device, const struct quern_plan *plan,
                  struct qn_function *const *functions, struct quern_launch *launches, int count,
                  struct qn_recording **recording, struct quern_message *why)
{
    size_t bytes = (size_t)count * sizeof(*launches);
    struct qn_recording *made = malloc(sizeof(*made));
    (void)device, (void)why;
    *made = (struct qn_recording){ plan, functions, aligned_alloc(64, bytes), count };
    memcpy(made->launches, launches, bytes);
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < i; j++) {
            const struct quern_step_launch *a = &launches[i].steps[0], *b = &launches[j].steps[0];
            recorded.is_repeated |= !memcmp(a->args, b->args, a->args_bytes);
        }
    }
    recorded.made++;
    recorded.longest = count > recorded.longest ? count : recorded.longest;
    *recording = made;
    return QUERN_OK;
}

static int replay(struct qn_device *device, struct qn_recording *recording, double *nanoseconds,
                  struct quern_message *why)
{
    *nanoseconds = 0;
    recorded.replays++;
    for (int i = 0; i < recording->count; i++) {
        double one;
        int status = own->time_launch(device, recording->plan, recording->functions,
                                      &recording->launches[i], NULL, &one, why);
        if (status)
            return status;
        *nanoseconds += one;
    }
    return QUERN_OK;
}

static void forget(struct qn_device *device, struct qn_recording *recording)
{
    (void)device;
    recorded.forgotten++;
    free(recording->launches);
    free(recording);
}

static void use_recordings(void)
{
    memset(&recorded, 0, sizeof(recorded));
    unlike.record = record;
    unlike.replay = replay;
    unlike.forget = forget;
    ctx->backend = &unlike;
}

/* A spec's kernel is timed on arrays of its own, which come back as they were. */
static void measure(const char *text, const char *config)
{
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_kernel *kernel = prepare(&spec, config);
    struct quern_time time;
    struct common_arrays set;
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_seed());
    if (set.shapes[MILL_OUT].role == QUERN_INOUT)
        common_arrays_put(&set, MILL_OUT, 0, mill_probe.initial = 1.5f);
    common_arrays_keep(&set);
    use_recordings();
    assert_ok(ctx, quern_measure(ctx, kernel, &spec, set.arrays, 5, &time));
    ck_assert_int_lt(common_arrays_differ(&set), 0);
    ck_assert_int_eq(time.samples, 5);
    ck_assert_double_gt(time.median_us, 0);
    ck_assert_int_eq(recorded.made, recorded.forgotten);
    common_arrays_fini(&set);
    ctx->backend = own;
}

START_TEST(short_kernels_are_timed_as_recordings)
{
    measure("mill m=4 n=8", "kind=0,work=0");
    ck_assert_int_eq(recorded.made, 1);
    ck_assert_int_eq(recorded.replays, 5);
    ck_assert_int_gt(recorded.longest, 1);
}
END_TEST

START_TEST(long_kernels_are_timed_singly)
{
    measure("mill m=4 n=8", "kind=0,work=3000000");
    ck_assert_int_eq(recorded.made, 0);
}
END_TEST

START_TEST(every_launch_of_a_recording_finds_its_array_restored)
{
    measure("mill m=4 n=8 accumulate=1", "kind=0,work=0");
    ck_assert_int_eq(recorded.made, 1);
    ck_assert(!recorded.is_repeated);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_int_ge(mill_probe.launches, 5 * recorded.longest);
}
END_TEST

START_TEST(tuning_by_recordings_finds_the_fastest)
{
    struct quern_spec spec = common_spec(ctx, "mill m=64 n=64 accumulate=1");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result result;
    struct common_arrays set;
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 16, 0 }, common_seed());
    common_arrays_put(&set, MILL_OUT, 0, mill_probe.initial = 1.5f);
    common_arrays_keep(&set);
    request.spec = &spec;
    request.arrays = set.arrays;
    options.memory_bytes = 4 << 20;
    use_recordings();
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_str_eq(result.best.config, "kind=0,work=0");
    ck_assert_int_lt(common_arrays_differ(&set), 0);
    ck_assert_int_eq(mill_probe.surprises, 0);
    ck_assert_int_gt(recorded.made, 0);
    ck_assert_int_eq(recorded.made, recorded.forgotten);
    common_arrays_fini(&set);
}
END_TEST

/* ---- The testbed on a device without orders ------------------------------------------------ */

static size_t flushed_bytes;
static int flushes, launches;

static int fill(struct qn_device *device, void *data, int byte, size_t bytes, void *stream)
{
    flushes += bytes == flushed_bytes;
    return own->fill(device, data, byte, bytes, stream);
}

static int time_launch(struct qn_device *device, const struct quern_plan *plan,
                       struct qn_function *const *functions, struct quern_launch *launch,
                       void *stream, double *nanoseconds, struct quern_message *why)
{
    launches++;
    ck_assert_int_eq(flushes, launches);
    return own->time_launch(device, plan, functions, launch, stream, nanoseconds, why);
}

START_TEST(the_cache_is_flushed_where_copies_are_too_few)
{
    struct quern_spec spec = common_spec(ctx, "mill m=64 n=64");
    struct quern_kernel *kernel = prepare(&spec, "kind=0,work=0");
    struct qn_samples samples = { .count = 0 };
    struct quern_message why;
    flushed_bytes = (size_t)qn_rotate_bytes(&ctx->profile);
    unlike.fill = fill;
    unlike.time_launch = time_launch;
    struct qn_testbed *bed = testbed_make(&spec, 1 << 20);
    ck_assert(!qn_workset_workspace(&bed->set, MILL_SCRATCH_BYTES, &why));
    int status = qn_measure_adaptive(&bed->set, kernel, 20, 0, &samples, &why);
    ck_assert_msg(!status, "%s", why.text);
    ck_assert_int_ge(samples.count, 3);
    ck_assert_int_ge(launches, samples.count);
    testbed_free(bed);
}
END_TEST

START_TEST(what_differs_between_runs_is_rejected_in_those_words)
{
    static const struct qn_check_limits quick = { 0, 500 }, full = { 0, 0 };
    struct quern_spec spec = common_spec(ctx, "mill m=64 n=64");
    struct quern_kernel *good = prepare(&spec, "kind=0,work=0");
    struct quern_kernel *racing = prepare(&spec, "kind=2,work=0");
    struct quern_message why;
    bool is_complete;
    struct qn_testbed *bed = testbed_make(&spec, 1 << 20);
    mill_probe.launches = 0;
    ck_assert(!qn_testbed_check(bed, good, &quick, &is_complete, &why));
    ck_assert(!is_complete);
    ck_assert_int_eq(mill_probe.launches, 2);
    ck_assert(!qn_testbed_check(bed, good, &full, &is_complete, &why));
    ck_assert(is_complete);
    ck_assert_int_eq(mill_probe.launches, 5);
    ck_assert_int_eq(qn_testbed_check(bed, racing, &full, &is_complete, &why), QUERN_CHECK_FAILED);
    ck_assert_msg(strstr(why.text, "differs between runs"), "%s", why.text);
    testbed_free(bed);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("unlike_cpu");
    TCase *tests = tcase_create("unlike_cpu");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, a_captured_miss_is_an_error_and_a_prepared_call_runs);
    tcase_add_test(tests, a_captured_call_must_bring_its_workspace);
    tcase_add_test(tests, memory_that_the_device_cannot_reach_is_refused_by_name);
    tcase_add_test(tests, a_step_reports_its_own_entry);
    tcase_add_test(tests, an_entry_that_the_compiler_does_not_report_is_refused_and_nothing_stored);
    tcase_add_test(tests, what_the_caller_reads_is_why_the_stored_artifact_did_not_load);
    tcase_add_test(tests, a_lost_device_does_not_read_as_one_without_memory);
    tcase_add_test(tests, a_captured_stream_without_memory_is_said_to_be_captured_and_left_alone);
    tcase_add_test(tests, a_candidate_that_spills_is_rejected);
    tcase_add_test(tests, a_rejected_candidates_outcome_is_the_line_that_says_why);
    tcase_add_test(tests, short_kernels_are_timed_as_recordings);
    tcase_add_test(tests, long_kernels_are_timed_singly);
    tcase_add_test(tests, every_launch_of_a_recording_finds_its_array_restored);
    tcase_add_test(tests, tuning_by_recordings_finds_the_fastest);
    tcase_add_test(tests, the_cache_is_flushed_where_copies_are_too_few);
    tcase_add_test(tests, what_differs_between_runs_is_rejected_in_those_words);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
