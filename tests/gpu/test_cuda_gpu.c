/* The CUDA backend on a device: what is compiled, found and refused, memory and workspaces, tuning
 * and timing, and a context that is lost. Streams, graphs, contexts and threads are in
 * test_stream_gpu.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "tests/gpu_arrays.h"
#include "tests/gpu_driver.h"
#include "tests/gpu_kernel.h"
#include "tests/gpu_stage.h"

#define PRODUCT "gemm m=200 n=136 k=264 a=bf16 b=bf16 d=bf16 accumulate=1"
#define STAGE "stage n=100000 accumulate=1"

static struct quern_context *ctx;
static uint64_t seed;

static struct quern_context *context_make(const struct quern_options *options)
{
    struct quern_context *made = gpu_context(options);
    assert_ok(made, quern_family_register(made, &gpu_stage_family));
    return made;
}

static void setup(void)
{
    ctx = context_make(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static void arrays_make(struct gpu_arrays *set, struct quern_context *with,
                        const struct quern_spec *spec)
{
    gpu_arrays_init(set, with, spec, &gpu_layouts[0], common_random(&seed));
}

static struct quern_kernel *prepared(struct quern_context *with, const struct quern_spec *spec,
                                     const struct gpu_arrays *set)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    request.spec = spec;
    request.arrays = set->arrays;
    assert_ok(with, quern_prepare(with, &request, &kernel));
    return kernel;
}

/* A call of `text` gives what the reference does. */
static void check_works(struct quern_context *with, const char *text)
{
    struct quern_spec spec = common_spec(with, text);
    struct quern_check check;
    struct gpu_arrays set;
    arrays_make(&set, with, &spec);
    struct quern_kernel *kernel = prepared(with, &spec, &set);
    assert_ok(with, quern_verify(with, kernel, &spec, set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", text, check.why);
    gpu_arrays_check(&set, text);
    gpu_arrays_fini(&set);
}

/* ---- Devices and artifacts ----------------------------------------------------------------- */

START_TEST(a_device_that_is_not_there_is_refused_saying_how_many_are)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *none;
    options.cache = "";
    options.device = "cuda:999";
    int status = quern_context_create(&options, &none);
    assert_refused(none, status, QUERN_DEVICE, "cuda:999");
    quern_context_destroy(none);
}
END_TEST

static int artifact_of(struct quern_context *with, const char *text)
{
    struct quern_spec spec = common_spec(with, text);
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_report report;
    struct quern_kernel *kernel;
    request.spec = &spec;
    assert_ok(with, quern_prepare(with, &request, &kernel));
    quern_kernel_report(kernel, &report);
    printf("%s: %s, first call %.1f ms\n", text, report.variant, report.first_call_ms);
    return report.artifact;
}

START_TEST(a_first_call_compiles_and_a_later_context_finds_it_on_disk_sealed_or_with_no_nvrtc)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = common_scratch_path("first/quern.db");
    struct quern_context *first = context_make(&options);
    ck_assert_int_eq(artifact_of(first, PRODUCT), QUERN_FROM_COMPILER);
    check_works(first, PRODUCT);
    quern_context_destroy(first);

    options.mode = "sealed";
    struct quern_context *sealed = context_make(&options);
    struct quern_spec other = common_spec(sealed, "gemm m=8 n=8 k=8 bias=f16");
    struct quern_kernel *kernel;
    ck_assert_int_eq(artifact_of(sealed, PRODUCT), QUERN_FROM_DISK);
    check_works(sealed, PRODUCT);
    ck_assert_int_eq(quern_dispatch(sealed, &other, NULL, &kernel), QUERN_SEALED);
    quern_context_destroy(sealed);

    options.mode = "normal";
    options.nvrtc = "/nonexistent/libnvrtc.so.13";
    struct quern_context *poor = context_make(&options);
    ck_assert_int_eq(artifact_of(poor, PRODUCT), QUERN_FROM_DISK);
    check_works(poor, PRODUCT);
    assert_refused(poor, quern_dispatch(poor, &other, NULL, &kernel), QUERN_NO_COMPILER,
                   "/nonexistent/libnvrtc.so.13");
    quern_context_destroy(poor);
    free((char *)options.cache);
}
END_TEST

START_TEST(another_architectures_code_is_built_and_not_loaded)
{
    struct quern_spec spec = common_spec(ctx, PRODUCT);
    struct quern_request request = QUERN_REQUEST_INIT;
    const char *foreign = ctx->target.sm == 100 ? "sm_90a" : "sm_100a";
    struct quern_report report;
    struct quern_message why;
    request.spec = &spec;
    request.target = foreign;
    assert_ok(ctx, quern_build(ctx, &request, &report));
    ck_assert_str_eq(report.target, foreign);
    ck_assert_int_eq(gpu_source_load(ctx, "fact_convert.cu", foreign, 0, &why), QUERN_LOAD);
    ck_assert_str_ne(why.text, "");
    check_works(ctx, PRODUCT);
}
END_TEST

START_TEST(damaged_code_is_refused_and_the_context_lives_on)
{
    static const char garbage[4096] = "no code of any kind";
    struct qn_module *module;
    struct quern_message why;
    char target[64];
    snprintf(target, sizeof(target), "sm_%d%.1s", ctx->target.sm, &ctx->target.sm_suffix);
    ck_assert_int_eq(
        ctx->backend->load(ctx->device, &ctx->target, garbage, sizeof(garbage), &module, &why),
        QUERN_LOAD);
    for (size_t bytes = 1; bytes < 4096; bytes = bytes * 3 + 1) {
        ck_assert_int_eq(gpu_source_load(ctx, "fact_convert.cu", target, bytes, &why), QUERN_LOAD);
        ck_assert(*why.text && !strchr(why.text, '\n'));
    }
    ck_assert_int_eq(gpu_source_load(ctx, "fact_convert.cu", target, 0, &why), QUERN_OK);
    check_works(ctx, PRODUCT);
}
END_TEST

/* ---- Memory -------------------------------------------------------------------------------- */

/* Where the kernel driver lets devices read all that a process can, there is nothing to refuse. */
static bool takes_host_memory(void)
{
    int is_pageable;
    assert_cuda(gpu_driver()->device_get_attribute(&is_pageable, GPU_PAGEABLE_MEMORY_ACCESS,
                                                   gpu_ordinal()));
    return is_pageable;
}

START_TEST(host_memory_is_refused_by_name_where_kernels_cannot_read_it)
{
    struct quern_spec spec = common_spec(ctx, "stage n=1000");
    struct gpu_arrays set;
    struct quern_call call = { .workspace = aligned_alloc(256, 65536), .workspace_bytes = 65536 };
    arrays_make(&set, ctx, &spec);
    struct quern_array on_host[2] = { set.host.arrays[STAGE_X], set.arrays[STAGE_OUT] };
    if (takes_host_memory()) {
        assert_ok(ctx, quern_run(ctx, &spec, on_host, &call));
    } else {
        assert_refused(ctx, quern_run(ctx, &spec, on_host, NULL), QUERN_INVALID, "host memory");
        ck_assert_msg(!strncmp(quern_errmsg(ctx), "x=", 2), "%s", quern_errmsg(ctx));
        assert_refused(ctx, quern_run(ctx, &spec, set.arrays, &call), QUERN_INVALID, "host memory");
        ck_assert_msg(!strncmp(quern_errmsg(ctx), "workspace=", 10), "%s", quern_errmsg(ctx));
    }
    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    gpu_arrays_check(&set, "stage");
    gpu_arrays_fini(&set);
    free(call.workspace);
}
END_TEST

START_TEST(managed_and_pinned_memory_serve_like_the_devices_own)
{
    enum { COUNT = 1000 };
    struct quern_spec spec = common_spec(ctx, "stage n=1000");
    uint64_t managed;
    void *pinned;
    gpu_driver_enter();
    assert_cuda(gpu_driver()->managed_alloc(&managed, COUNT * 4, GPU_MANAGED_GLOBAL));
    assert_cuda(gpu_driver()->pinned_alloc(&pinned, COUNT * 4, 0));
    float *x = (float *)(uintptr_t)managed, *out = pinned;
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)i;
    struct quern_array arrays[2] = { { .data = x }, { .data = out } };
    assert_ok(ctx, quern_run(ctx, &spec, arrays, NULL));
    assert_cuda(gpu_driver()->ctx_synchronize());
    for (int i = 0; i < COUNT; i++)
        assert_each(out[i] == (float)(2 * i), "element %d is %g", i, (double)out[i]);
    assert_cuda(gpu_driver()->memory_free(managed));
    assert_cuda(gpu_driver()->pinned_free(pinned));
    gpu_driver_leave();
}
END_TEST

START_TEST(more_memory_than_there_is_is_refused_and_the_context_lives_on)
{
    void *data = NULL;
    for (int shift = 41; shift <= 60; shift += 6) {
        int status = quern_memory_alloc(ctx, (size_t)1 << shift, &data);
        assert_refused(ctx, status, QUERN_NO_MEMORY, "bytes=");
        ck_assert_ptr_null(data);
    }
    check_works(ctx, PRODUCT);
    check_works(ctx, STAGE);
}
END_TEST

/* ---- Workspaces ---------------------------------------------------------------------------- */

START_TEST(a_workspace_is_used_as_given_or_refused_saying_why)
{
    struct quern_spec spec = common_spec(ctx, STAGE);
    struct gpu_arrays set;
    struct quern_call call = { 0 };
    unsigned char *space, last;
    arrays_make(&set, ctx, &spec);
    struct quern_kernel *kernel = prepared(ctx, &spec, &set);
    size_t bytes = quern_kernel_workspace(kernel);
    ck_assert_uint_ge(bytes, 400000);
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL)); /* from the pool */
    gpu_arrays_keep(&set);
    gpu_arrays_rewind(&set);

    space = gpu_memory_make(ctx, NULL, bytes + 256);
    call.workspace = space;
    call.workspace_bytes = bytes;
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call));
    ck_assert_int_lt(gpu_arrays_differ(&set), 0);
    gpu_memory_read(ctx, &last, space + bytes, 1);
    ck_assert_int_eq(last, 0xa5);

    call.workspace_bytes = bytes - 1;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace_bytes=");
    call.workspace_bytes = bytes;
    call.workspace = space + 128;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace=");
    gpu_arrays_check(&set, STAGE);
    quern_memory_free(ctx, space, bytes + 256);
    gpu_arrays_fini(&set);
}
END_TEST

struct hook {
    struct quern_context *backing;
    int allocs, frees, device;
    void *stream;
};

static void *hook_alloc(size_t bytes, int device, void *stream, void *user)
{
    struct hook *hook = user;
    void *data = NULL;
    hook->allocs++;
    hook->device = device;
    hook->stream = stream;
    quern_memory_alloc(hook->backing, bytes, &data);
    return data;
}

static void hook_free(void *data, size_t bytes, int device, void *stream, void *user)
{
    struct hook *hook = user;
    hook->frees += device == hook->device && stream == hook->stream;
    quern_memory_free(hook->backing, data, bytes);
}

START_TEST(the_allocator_hook_is_told_device_and_stream)
{
    struct hook hook = { .backing = ctx, .device = -1 };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_call call = { 0 };
    struct gpu_arrays set;
    options.alloc = hook_alloc;
    options.free = hook_free;
    options.alloc_user = &hook;
    struct quern_context *hooked = context_make(&options);
    struct quern_spec spec = common_spec(hooked, STAGE);
    arrays_make(&set, ctx, &spec);
    gpu_driver_enter();
    assert_cuda(gpu_driver()->stream_create(&call.stream, 0));
    assert_ok(hooked, quern_run(hooked, &spec, set.arrays, &call));
    assert_cuda(gpu_driver()->stream_synchronize(call.stream));
    ck_assert_int_eq(hook.allocs, 1);
    ck_assert_int_eq(hook.frees, 1);
    ck_assert_int_eq(hook.device, gpu_ordinal());
    ck_assert_ptr_eq(hook.stream, call.stream);
    assert_cuda(gpu_driver()->stream_destroy(call.stream));
    gpu_driver_leave();
    gpu_arrays_fini(&set);
    quern_context_destroy(hooked);
}
END_TEST

/* ---- Tuning and timing --------------------------------------------------------------------- */

static void check_tuning(const char *text, int max_configs, int least_failed)
{
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_tune_result first, again;
    struct gpu_arrays set;
    arrays_make(&set, ctx, &spec);
    gpu_arrays_keep(&set);
    request.spec = &spec;
    request.arrays = set.arrays;
    options.seed = seed;
    options.max_configs = max_configs;
    assert_ok(ctx, quern_tune(ctx, &request, &options, &first));
    printf("%s: %d candidates, %d failed, best %s %s %.2f us, heuristic %.2f us, %.1f s\n", text,
           first.candidates, first.failed, first.best.variant, first.best.config,
           first.best.time_us, first.heuristic.time_us, first.seconds);
    ck_assert_int_eq(first.is_reused, 0);
    ck_assert_int_eq(first.is_drawn, 0);
    ck_assert_int_ge(first.failed, least_failed);
    ck_assert_double_gt(first.best.time_us, 0.5);
    ck_assert_double_le(first.best.time_us, first.heuristic.time_us * 1.1);
    ck_assert_int_lt(gpu_arrays_differ(&set), 0);
    gpu_arrays_check(&set, text);

    assert_ok(ctx, quern_tune(ctx, &request, &options, &again));
    ck_assert_int_eq(again.is_reused, 1);
    ck_assert_str_eq(again.best.variant, first.best.variant);
    ck_assert_str_eq(again.best.config, first.best.config);
    gpu_arrays_fini(&set);
}

START_TEST(tuning_drops_what_is_wrong_keeps_its_winner_and_leaves_the_arrays_as_they_were)
{
    check_tuning("stage n=131072 accumulate=1", 0, 2);
}
END_TEST

START_TEST(tuning_a_product_in_place_leaves_every_bit_as_it_was)
{
    check_tuning("gemm m=256 n=256 k=256 a=bf16 b=bf16 d=bf16 accumulate=1", 8, 0);
}
END_TEST

/* Between what the device could possibly do and something absurd. */
static void check_time(const char *text, double least_us, double most_us)
{
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_time time;
    struct gpu_arrays set;
    arrays_make(&set, ctx, &spec);
    struct quern_kernel *kernel = prepared(ctx, &spec, &set);
    gpu_arrays_keep(&set);
    assert_ok(ctx, quern_measure(ctx, kernel, &spec, set.arrays, 20, &time));
    printf("%s: %.2f us +- %.2f, %.1f TFLOPS, %.0f GB/s, %d samples\n", text, time.median_us,
           time.spread_us, time.flops / time.median_us * 1e-6, time.bytes / time.median_us * 1e-3,
           (int)time.samples);
    ck_assert_int_ge(time.samples, 3);
    ck_assert_double_gt(time.median_us, least_us);
    ck_assert_double_lt(time.median_us, most_us);
    ck_assert_int_lt(gpu_arrays_differ(&set), 0);
    gpu_arrays_check(&set, text);
    gpu_arrays_fini(&set);
}

START_TEST(what_is_measured_is_possible)
{
    double tflops = ctx->profile.tensor_tflops > 0 ? ctx->profile.tensor_tflops : 1000;
    check_time("gemm m=2048 n=2048 k=2048 a=bf16 b=bf16 d=bf16", 17.2e3 / tflops * 0.5, 5000);
    check_time("gemm m=16 n=4096 k=4096 a=bf16 b=bf16 d=bf16 accumulate=1", 2, 500);
    check_time("gemm m=1 n=8 k=8", 0.5, 50);
    check_time("stage n=1000 accumulate=1", 1, 200);
}
END_TEST

/* ---- A lost context ------------------------------------------------------------------------ */

/* Said by a process of its own, which goes on calling after a fault and ends as processes do. */
static void say(const char *call, int status, const char *text)
{
    printf("%s: %s: %s\n", call, quern_status_name(status), text);
}

START_TEST(lose)
{
    static struct gpu_kernel kernel;
    struct fact_args args = { .out = (void *)(uintptr_t)16 };
    struct quern_spec spec = common_spec(ctx, "stage n=1000");
    struct quern_message why = { "" };
    unsigned char byte = 0;
    unsigned char *memory = gpu_memory_make(ctx, NULL, 16384);
    struct quern_array arrays[2] = { { .data = memory }, { .data = memory + 4096 } };
    const struct quern_call call = { .workspace = memory + 8192, .workspace_bytes = 8192 };
    void *data = NULL;
    assert_ok(ctx, quern_run(ctx, &spec, arrays, &call));
    gpu_kernel_open(&kernel, ctx, "fact_launch.cu", "fault");
    int status = gpu_kernel_try(&kernel, &args, &why);
    say("fault", status, why.text);
    status = quern_run(ctx, &spec, arrays, &call);
    say("run", status, quern_errmsg(ctx));
    status = quern_memory_copy(ctx, &byte, memory, 1);
    say("copy", status, quern_errmsg(ctx));
    status = quern_memory_alloc(ctx, 4096, &data);
    say("alloc", status, quern_errmsg(ctx));
    quern_memory_free(ctx, memory, 16384);
    gpu_kernel_close(&kernel);
    printf("ended\n");
}
END_TEST

START_TEST(a_lost_context_is_named_in_every_later_call_and_nothing_crashes)
{
    int code;
    char *command, *said;
    ck_assert_int_gt(asprintf(&command, "QUERN_TEST_LOSE=1 %s/test_cuda_gpu", common_directory()),
                     0);
    said = common_shell(command, &code);
    ck_assert_msg(code == 0, "exit %d: %s", code, said);
    ck_assert_msg(strstr(said, "fault: DEVICE: ") && strstr(said, "ILLEGAL_ADDRESS"), "%s", said);
    ck_assert_msg(strstr(said, "run: DEVICE: ") && strstr(said, "copy: DEVICE: "), "%s", said);
    ck_assert_msg(strstr(said, "alloc: DEVICE: ") && strstr(said, "\nended\n"), "%s", said);
    printf("%s", said);
    free(said);
    free(command);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("cuda_gpu");
    TCase *tcase = tcase_create("cuda_gpu");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    suite_add_tcase(suite, tcase);
    if (getenv("QUERN_TEST_LOSE")) {
        tcase_add_test(tcase, lose);
        return suite;
    }
    tcase_add_test(tcase, a_device_that_is_not_there_is_refused_saying_how_many_are);
    tcase_add_test(
        tcase, a_first_call_compiles_and_a_later_context_finds_it_on_disk_sealed_or_with_no_nvrtc);
    tcase_add_test(tcase, another_architectures_code_is_built_and_not_loaded);
    tcase_add_test(tcase, damaged_code_is_refused_and_the_context_lives_on);
    tcase_add_test(tcase, host_memory_is_refused_by_name_where_kernels_cannot_read_it);
    tcase_add_test(tcase, managed_and_pinned_memory_serve_like_the_devices_own);
    tcase_add_test(tcase, more_memory_than_there_is_is_refused_and_the_context_lives_on);
    tcase_add_test(tcase, a_workspace_is_used_as_given_or_refused_saying_why);
    tcase_add_test(tcase, the_allocator_hook_is_told_device_and_stream);
    tcase_add_test(tcase,
                   tuning_drops_what_is_wrong_keeps_its_winner_and_leaves_the_arrays_as_they_were);
    tcase_add_test(tcase, tuning_a_product_in_place_leaves_every_bit_as_it_was);
    tcase_add_test(tcase, what_is_measured_is_possible);
    tcase_add_test(tcase, a_lost_context_is_named_in_every_later_call_and_nothing_crashes);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
