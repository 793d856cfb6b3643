/* From a call to a kernel: buckets, threads, workspaces, retuning, sealed mode. jit/dispatch.c,
 * jit/context.c. */
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "jit/build.h"
#include "kinds.h"

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

static const struct common_layout dense = { 16, 0 };

/* ---- Buckets ------------------------------------------------------------------------------- */

START_TEST(members_of_a_bucket_share_a_kernel_and_others_do_not)
{
    struct quern_kernel *kernel = kinds_dispatch(ctx, "kinds rows=1000 batch=3", NULL);
    ck_assert_ptr_eq(kernel, kinds_dispatch(ctx, "kinds rows=513 batch=4", NULL));
    ck_assert_ptr_eq(kernel, kinds_dispatch(ctx, "kinds rows=1024 batch=3", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "kinds rows=1025 batch=3", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "kinds rows=512 batch=3", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "kinds rows=1000 batch=3 cols=9", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "kinds rows=1000 batch=3 gain=1", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "kinds rows=1000 batch=3 longest=17", NULL));
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "copy n=1000", NULL));
    ck_assert_ptr_eq(kinds_dispatch(ctx, "kinds rows=7 gain=1", NULL),
                     kinds_dispatch(ctx, "kinds rows=7 gain=-3", NULL));
}
END_TEST

START_TEST(another_alignment_is_another_kernel)
{
    static float memory[256] __attribute__((aligned(64)));
    struct quern_array arrays[2] = { { .data = memory }, { .data = memory + 128 } };
    struct quern_kernel *kernel = kinds_dispatch(ctx, "copy n=64", arrays);
    ck_assert_ptr_eq(kernel, kinds_dispatch(ctx, "copy n=64", NULL));
    arrays[0].data = memory + 16;
    ck_assert_ptr_eq(kernel, kinds_dispatch(ctx, "copy n=64", arrays));
    arrays[0].data = memory + 1;
    struct quern_kernel *unaligned = kinds_dispatch(ctx, "copy n=64", arrays);
    ck_assert_ptr_ne(kernel, unaligned);
    arrays[0].data = memory;
    arrays[1].data = memory + 129;
    ck_assert_ptr_ne(kernel, kinds_dispatch(ctx, "copy n=64", arrays));
    ck_assert_ptr_ne(unaligned, kinds_dispatch(ctx, "copy n=64", arrays));
}
END_TEST

START_TEST(more_buckets_than_a_thread_remembers_are_all_found_again)
{
    struct quern_kernel *kernels[3 * QN_RECENT];
    char text[64];
    int64_t before;
    for (int round = 0; round < 2; round++) {
        before = kinds_compiles(ctx);
        for (int i = 0; i < 3 * QN_RECENT; i++) {
            snprintf(text, sizeof(text), "kinds rows=1 cols=%d", i + 1);
            struct quern_kernel *kernel = kinds_dispatch(ctx, text, NULL);
            ck_assert(!round || kernel == kernels[i]);
            kernels[i] = kernel;
        }
    }
    ck_assert_int_eq(kinds_compiles(ctx), before);
}
END_TEST

START_TEST(launch_refuses_a_spec_outside_the_kernels_bucket)
{
    struct quern_kernel *kernel = kinds_dispatch(ctx, "kinds rows=8", NULL);
    static const char *const outside[] = { "kinds rows=9",
                                           "kinds rows=4",
                                           "kinds rows=8 cols=7",
                                           "kinds rows=8 order=down",
                                           "kinds rows=8 gain=1",
                                           "kinds rows=8 batch=2",
                                           "copy n=8" };
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        struct quern_spec spec = common_spec(ctx, outside[i]);
        struct common_arrays set;
        common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
        assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL), QUERN_INVALID,
                       "not in the kernel's bucket");
        char text[256];
        quern_spec_text(&spec, text, sizeof(text));
        ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), text));
        common_arrays_keep(&set);
        common_arrays_restore(&set);
        ck_assert_int_lt(common_arrays_differ(&set), 0); /* nothing was run */
        common_arrays_fini(&set);
    }
}
END_TEST

START_TEST(launch_accepts_every_member_and_better_alignment_but_no_worse)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=5 cols=4 gain=2");
    struct common_layout worse = { 4, 0 }, better = { 64, 0 };
    struct common_arrays set, other;
    struct quern_kernel *kernel;
    common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL));
    ck_assert(kinds_is_scaled(&set, 2));
    common_arrays_check(&set, "aligned");
    common_arrays_init(&other, ctx, &spec, better, common_random(&seed));
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, other.arrays, NULL));
    ck_assert(kinds_is_scaled(&other, 2));
    common_arrays_fini(&other);
    common_arrays_init(&other, ctx, &spec, worse, common_random(&seed));
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, other.arrays, NULL), QUERN_INVALID,
                   "x: its base and strides are multiples of 4 bytes");
    common_arrays_fini(&other);
    common_arrays_fini(&set);
}
END_TEST

START_TEST(an_absent_real_is_absent_whatever_nan_it_is)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=3");
    struct common_arrays set;
    struct quern_kernel *kernel;
    double nan = -NAN;
    common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    memcpy(&spec.values[KINDS_GAIN], &nan, sizeof(nan));
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, NULL));
    ck_assert(kinds_is_scaled(&set, 1));
    common_arrays_fini(&set);
}
END_TEST

/* ---- Threads ------------------------------------------------------------------------------- */

enum { THREADS = 8, RUNS = 20 };

struct worker {
    struct quern_context *ctx;
    pthread_barrier_t *start;
    struct quern_spec spec;
    struct common_arrays set;
    struct quern_kernel *kernel;
    int status, wrong, number;
    char error[1024];
};

static void *run_many(void *data)
{
    struct worker *worker = data;
    pthread_barrier_wait(worker->start);
    for (int i = 0; i < RUNS && !worker->status; i++) {
        worker->status = quern_run(worker->ctx, &worker->spec, worker->set.arrays, NULL);
        worker->wrong += !kinds_is_scaled(&worker->set, 3);
    }
    if (!worker->status)
        worker->status =
            quern_dispatch(worker->ctx, &worker->spec, worker->set.arrays, &worker->kernel);
    snprintf(worker->error, sizeof(worker->error), "%s", quern_errmsg(worker->ctx));
    return NULL;
}

/* Runs `work` on THREADS threads that start at once. */
static void run_threads(struct worker workers[THREADS], void *(*work)(void *))
{
    pthread_t threads[THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        workers[i].start = &start;
        workers[i].number = i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
}

static void eight_threads(const char *cache)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct worker workers[THREADS] = { { 0 } };
    options.cache = cache;
    struct quern_context *shared = common_context(&options);
    for (int i = 0; i < THREADS; i++) {
        workers[i].ctx = shared;
        workers[i].spec = common_spec(shared, "kinds rows=50 cols=33 gain=3");
        workers[i].spec.values[KINDS_ROWS] = common_between(&seed, 33, 64); /* one bucket */
        common_arrays_init(&workers[i].set, shared, &workers[i].spec, dense, common_random(&seed));
    }
    run_threads(workers, run_many);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_msg(!workers[i].status, "thread %d: %s", i, workers[i].error);
        ck_assert_int_eq(workers[i].wrong, 0);
        ck_assert_ptr_eq(workers[i].kernel, workers[0].kernel);
        common_arrays_check(&workers[i].set, "a thread's arrays");
        common_arrays_fini(&workers[i].set);
    }
    ck_assert_int_eq(kinds_compiles(shared), 1);
    quern_context_destroy(shared);
}

START_TEST(eight_threads_that_start_cold_compile_once_and_compute)
{
    char *cache = common_scratch_path("threads/quern.db");
    eight_threads(cache);
    eight_threads("");
    free(cache);
}
END_TEST

static void *fail_own_way(void *data)
{
    struct worker *worker = data;
    char value[32], expected[64];
    snprintf(value, sizeof(value), "-%d", worker->number + 1);
    snprintf(expected, sizeof(expected), "rows=%s:", value);
    for (int i = 0; i < 2000; i++) {
        struct quern_spec spec = worker->spec;
        worker->status |= quern_spec_set(worker->ctx, &spec, "rows", value) != QUERN_INVALID;
        worker->wrong += strncmp(quern_errmsg(worker->ctx), expected, strlen(expected)) != 0;
    }
    return NULL;
}

START_TEST(each_thread_has_its_own_error_text)
{
    struct worker workers[THREADS] = { { 0 } };
    struct quern_spec spec = common_spec(ctx, "kinds rows=1");
    for (int i = 0; i < THREADS; i++)
        workers[i] = (struct worker){ .ctx = ctx, .spec = spec };
    assert_refused(ctx, quern_spec_set(ctx, &spec, "cols", "none"), QUERN_INVALID, "cols=none");
    run_threads(workers, fail_own_way);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(workers[i].wrong + workers[i].status, 0);
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), "cols=none"));
}
END_TEST

/* ---- Workspaces ---------------------------------------------------------------------------- */

START_TEST(the_callers_workspace_is_used_and_nothing_beside_it)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=20 cols=7 gain=2");
    struct quern_call call = { 0 };
    struct common_arrays set;
    struct quern_kernel *kernel;
    common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    size_t bytes = quern_kernel_workspace(kernel), guard = 256;
    ck_assert_uint_ge(bytes, 32 * 7 * sizeof(double)); /* for the bucket, not only this spec */
    unsigned char *memory = aligned_alloc(256, (bytes + 2 * guard + 255) / 256 * 256);
    memset(memory, 0xa5, bytes + 2 * guard);
    call.workspace = memory + guard;
    call.workspace_bytes = bytes;
    assert_ok(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call));
    ck_assert(kinds_is_scaled(&set, 2));
    for (size_t i = 0; i < guard; i++)
        ck_assert(memory[i] == 0xa5 && memory[guard + bytes + i] == 0xa5);
    double first;
    memcpy(&first, call.workspace, sizeof(first));
    ck_assert_double_eq(first, 2.0 * *(float *)set.arrays[KINDS_X].data);

    common_arrays_restore(&set);
    call.workspace_bytes = bytes - 1;
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace_bytes=");
    char least[64];
    snprintf(least, sizeof(least), "must be at least %zu", bytes);
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), least));
    assert_refused(ctx, quern_run(ctx, &spec, set.arrays, &call), QUERN_INVALID,
                   "workspace_bytes=");
    call.workspace_bytes = bytes + 64;
    call.workspace = memory + guard + 64;
    assert_refused(ctx, quern_run(ctx, &spec, set.arrays, &call), QUERN_INVALID,
                   "must be a multiple of 256");
    common_arrays_keep(&set);
    common_arrays_restore(&set);
    ck_assert_int_lt(common_arrays_differ(&set), 0);
    free(memory);
    common_arrays_fini(&set);
}
END_TEST

struct hook {
    int allocs, frees;
    size_t live_bytes, largest, offset;
    bool is_empty, is_wrong;
};

static void *hook_alloc(size_t bytes, int device, void *stream, void *user)
{
    struct hook *hook = user;
    hook->is_wrong |= device != 0 || stream != NULL || !bytes;
    if (hook->is_empty)
        return NULL;
    hook->allocs++;
    hook->live_bytes += bytes;
    hook->largest = bytes > hook->largest ? bytes : hook->largest;
    return (char *)aligned_alloc(256, (bytes + hook->offset + 255) / 256 * 256) + hook->offset;
}

static void hook_free(void *data, size_t bytes, int device, void *stream, void *user)
{
    struct hook *hook = user;
    hook->is_wrong |= device != 0 || stream != NULL || !data || bytes > hook->live_bytes;
    hook->frees++;
    hook->live_bytes -= bytes;
    free((char *)data - hook->offset);
}

static void log_not_wanted(void *user, int level, const char *line)
{
    (void)level, (void)line;
    ++*(int *)user;
}

START_TEST(the_allocator_hook_gives_the_workspace_and_gets_it_back)
{
    struct hook hook = { 0 };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct common_arrays set;
    struct quern_kernel *kernel;
    options.alloc = hook_alloc;
    options.free = hook_free;
    options.alloc_user = &hook;
    struct quern_context *hooked = common_context(&options);
    struct quern_spec spec = common_spec(hooked, "kinds rows=20 cols=7 gain=2");
    common_arrays_init(&set, hooked, &spec, dense, common_random(&seed));
    assert_ok(hooked, quern_dispatch(hooked, &spec, set.arrays, &kernel));
    for (int i = 1; i <= 5; i++) {
        assert_ok(hooked, quern_run(hooked, &spec, set.arrays, NULL));
        ck_assert(kinds_is_scaled(&set, 2));
        ck_assert_int_eq(hook.allocs, i);
        ck_assert_int_eq(hook.frees, i);
    }
    ck_assert_uint_eq(hook.largest, quern_kernel_workspace(kernel));
    void *memory;
    assert_ok(hooked, quern_memory_alloc(hooked, 100, &memory));
    quern_memory_free(hooked, memory, 100);
    hook.is_empty = true;
    assert_refused(hooked, quern_run(hooked, &spec, set.arrays, NULL), QUERN_NO_MEMORY,
                   "workspace: bytes=1792: options.alloc has no such memory");
    ck_assert_int_eq(hook.allocs, hook.frees);
    common_arrays_fini(&set);
    quern_context_destroy(hooked);
    ck_assert_uint_eq(hook.live_bytes, 0);
    ck_assert_int_eq(hook.allocs, hook.frees);
    ck_assert(!hook.is_wrong);
}
END_TEST

START_TEST(misaligned_memory_of_a_hook_is_handed_back_and_the_hook_named)
{
    int lines = 0;
    struct hook hook = { .offset = 128 };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct common_arrays set;
    void *memory = &set;
    options.alloc = hook_alloc;
    options.free = hook_free;
    options.alloc_user = &hook;
    options.log = log_not_wanted; /* the log's user is another */
    options.log_level = QUERN_LOG_INFO;
    options.user = &lines;
    struct quern_context *hooked = common_context(&options);
    struct quern_spec spec = common_spec(hooked, "kinds rows=20 cols=7 gain=2");
    common_arrays_init(&set, hooked, &spec, dense, common_random(&seed));
    assert_refused(hooked, quern_run(hooked, &spec, set.arrays, NULL), QUERN_INVALID,
                   "workspace: options.alloc=0x");
    assert_refused(hooked, quern_memory_alloc(hooked, 100, &memory), QUERN_INVALID,
                   "for 100 bytes: must be a multiple of 256");
    ck_assert_ptr_eq(memory, &set);
    ck_assert_int_gt(lines, 0);
    ck_assert_int_eq(hook.allocs, 2);
    ck_assert_int_eq(hook.frees, 2);
    ck_assert(!hook.is_wrong);
    common_arrays_fini(&set);
    quern_context_destroy(hooked);
}
END_TEST

START_TEST(a_kernel_without_workspace_asks_the_hook_for_nothing)
{
    struct hook hook = { .is_empty = true };
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct common_arrays set;
    options.alloc = hook_alloc;
    options.free = hook_free;
    options.alloc_user = &hook;
    struct quern_context *hooked = common_context(&options);
    struct quern_spec spec = common_spec(hooked, "copy n=77");
    common_arrays_init(&set, hooked, &spec, dense, common_random(&seed));
    assert_ok(hooked, quern_run(hooked, &spec, set.arrays, NULL));
    ck_assert_int_eq(hook.allocs + hook.frees, 0);
    common_arrays_fini(&set);
    quern_context_destroy(hooked);
}
END_TEST

START_TEST(a_copy_may_run_in_place)
{
    static float memory[1000];
    struct quern_array arrays[2] = { { .data = memory }, { .data = memory } };
    static const char *const texts[] = { "copy n=1000", "copy n=1000 alpha=3",
                                         "copy n=999 inplace=1 alpha=2", "copy n=1000 inplace=1" };
    static const double factors[] = { 1, 3, 3, 2 };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct quern_spec spec = common_spec(ctx, texts[i]);
        for (int j = 0; j < 1000; j++)
            memory[j] = (float)j;
        assert_ok(ctx, quern_run(ctx, &spec, arrays, NULL));
        for (int j = 0; j < 999; j++)
            ck_assert_double_eq(memory[j], factors[i] * j);
    }
}
END_TEST

/* ---- Kernels of the caller's choice -------------------------------------------------------- */

static struct quern_kernel *prepare(const char *text, const char *variant, const char *config)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_spec spec = common_spec(ctx, text);
    struct quern_kernel *kernel;
    request.spec = &spec;
    request.variant = variant;
    request.config = config;
    assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
    return kernel;
}

START_TEST(a_kernel_with_a_config_of_the_callers_is_found_again_and_by_nobody_else)
{
    struct quern_kernel *plain = kinds_dispatch(ctx, "kinds rows=100", NULL);
    struct quern_kernel *given = prepare("kinds rows=100", NULL, "tile=16");
    ck_assert_ptr_ne(plain, given);
    ck_assert_int_eq(kinds_report(given).config_from, QUERN_CONFIG_GIVEN);
    ck_assert_ptr_eq(given, prepare("kinds rows=100", NULL, "tile=16"));
    ck_assert_ptr_eq(given, prepare("kinds rows=128", NULL, "add.unroll=1,tile=16"));
    ck_assert_ptr_eq(given, prepare("kinds rows=100", "kinds_cpu", "tile=16"));
    ck_assert_ptr_ne(given, prepare("kinds rows=100", NULL, "tile=32"));
    ck_assert_ptr_ne(given, prepare("kinds rows=129", NULL, "tile=16"));
    ck_assert_ptr_ne(given, prepare("kinds rows=100", "kinds_wrong", "tile=16"));
    /* the same choices, but not given: another report */
    struct quern_kernel *variant = prepare("kinds rows=100", "kinds_cpu", NULL);
    ck_assert_ptr_eq(variant, prepare("kinds rows=100", "kinds_cpu", NULL));
    ck_assert_int_eq(kinds_report(variant).config_from, QUERN_CONFIG_HEURISTIC);
    ck_assert_ptr_ne(variant, prepare("kinds rows=100", "kinds_cpu", "tile=8"));
    ck_assert_ptr_eq(plain, kinds_dispatch(ctx, "kinds rows=100", NULL));
    ck_assert_ptr_eq(plain, prepare("kinds rows=100", NULL, NULL));
    ck_assert_ptr_null(ctx->retired);
}
END_TEST

START_TEST(null_arguments_are_refused_by_name_and_a_null_context_without_a_text)
{
    struct quern_spec spec = common_spec(ctx, "copy n=3");
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel = kinds_dispatch(ctx, "copy n=3", NULL);
    struct quern_array arrays[2] = { { 0 } };
    struct quern_report report = { .step_count = 77 };
    request.spec = &spec;
    assert_refused(ctx, quern_launch(ctx, NULL, &spec, arrays, NULL), QUERN_INVALID,
                   "kernel=NULL: must be given");
    assert_refused(ctx, quern_launch(ctx, kernel, NULL, arrays, NULL), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_launch(ctx, kernel, &spec, NULL, NULL), QUERN_INVALID, "arrays=NULL");
    assert_refused(ctx, quern_run(ctx, NULL, arrays, NULL), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_run(ctx, &spec, NULL, NULL), QUERN_INVALID, "arrays=NULL");
    assert_refused(ctx, quern_dispatch(ctx, NULL, NULL, &kernel), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_dispatch(ctx, &spec, NULL, NULL), QUERN_INVALID,
                   "kernel=NULL: must be given");
    assert_refused(ctx, quern_prepare(ctx, NULL, &kernel), QUERN_INVALID,
                   "request=NULL: must be given");
    assert_refused(ctx, quern_prepare(ctx, &request, NULL), QUERN_INVALID, "kernel=NULL");
    request.spec = NULL;
    assert_refused(ctx, quern_prepare(ctx, &request, &kernel), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_memory_alloc(ctx, 8, NULL), QUERN_INVALID, "data=NULL");
    assert_refused(ctx, quern_memory_copy(ctx, NULL, &spec, 8), QUERN_INVALID, "to=NULL");
    assert_refused(ctx, quern_memory_copy(ctx, &spec, NULL, 8), QUERN_INVALID, "from=NULL");
    assert_ok(ctx, quern_memory_copy(ctx, NULL, NULL, 0));
    quern_kernel_report(NULL, &report);
    quern_kernel_report(kernel, NULL);
    ck_assert_int_eq(report.step_count, 77);
    ck_assert_uint_eq(quern_kernel_workspace(NULL), 0);

    request.spec = &spec;
    void *data;
    const int statuses[] = {
        quern_spec_init(NULL, "copy", &spec),
        quern_spec_set(NULL, &spec, "n", "1"),
        quern_spec_parse(NULL, "copy n=3", &spec),
        quern_spec_validate(NULL, &spec),
        quern_spec_shape(NULL, &spec, 0, &(struct quern_shape){ 0 }),
        quern_memory_alloc(NULL, 8, &data),
        quern_memory_copy(NULL, &spec, &spec, 8),
        quern_prepare(NULL, &request, &kernel),
        quern_launch(NULL, kernel, &spec, arrays, NULL),
        quern_run(NULL, &spec, arrays, NULL),
        quern_dispatch(NULL, &spec, arrays, &kernel),
        quern_fill(NULL, &spec, 0, 1, &data),
        quern_context_create(NULL, NULL),
    };
    for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
        ck_assert_msg(statuses[i] == QUERN_INVALID, "call %zu: %d", i, statuses[i]);
    quern_memory_free(NULL, &data, 8);
    quern_context_destroy(NULL);
}
END_TEST

/* ---- Cost ---------------------------------------------------------------------------------- */

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median_dispatch_ns(const char *text)
{
    enum { BLOCKS = 301, CALLS = 100 };
    struct quern_spec spec = common_spec(ctx, text);
    struct common_arrays set;
    struct quern_kernel *kernel;
    double times[BLOCKS];
    int failed = 0;
    common_arrays_init(&set, ctx, &spec, dense, common_random(&seed));
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    for (int block = 0; block < BLOCKS; block++) {
        double start = now_ns();
        for (int i = 0; i < CALLS; i++)
            failed |= quern_dispatch(ctx, &spec, set.arrays, &kernel);
        times[block] = (now_ns() - start) / CALLS;
    }
    ck_assert_int_eq(failed, 0);
    common_arrays_fini(&set);
    qsort(times, BLOCKS, sizeof(times[0]), compare_doubles);
    return times[BLOCKS / 2];
}

/* The promise is 200 ns on a quiet machine and without sanitizers; this need be neither. */
START_TEST(a_warm_dispatch_takes_less_than_a_microsecond)
{
    static const char *const texts[] = { "copy n=1000", "kinds rows=5 gain=1",
                                         "gemm m=5 n=64 k=64" };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    double most = 1e5;
#else
    double most = 1e3;
#endif
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        double median = median_dispatch_ns(texts[i]);
        printf("warm dispatch of %s: %.0f ns\n", texts[i], median);
        ck_assert_double_lt(median, most);
    }
}
END_TEST

/* ---- Contexts ------------------------------------------------------------------------------ */

static void one_context(const char *cache)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = cache;
    struct quern_context *brief = common_context(&options);
    struct quern_spec spec = common_spec(brief, "kinds rows=30 gain=2");
    struct common_arrays set;
    common_arrays_init(&set, brief, &spec, dense, 1);
    assert_ok(brief, quern_run(brief, &spec, set.arrays, NULL));
    quern_spec_set(brief, &spec, "rows", "-1");
    common_arrays_fini(&set);
    quern_context_destroy(brief);
}

START_TEST(fifty_contexts_come_and_go_without_a_leak)
{
    char *cache = common_scratch_path("fifty/quern.db");
    for (int i = 0; i < 5; i++)
        one_context(cache); /* what libraries keep */
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < 50; i++)
        one_context(cache);
    size_t after = mallinfo2().uordblks, grown = after > before ? after - before : 0;
    printf("50 contexts: %zu bytes more\n", grown);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    ck_assert_uint_lt(grown, 50 * 1024);
#endif
    free(cache);
}
END_TEST

START_TEST(a_context_that_failed_can_be_asked_why_and_destroyed)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    struct quern_context *bad = (struct quern_context *)&options;
    options.cache = "";
    options.device = "tpu";
    assert_refused(bad, quern_context_create(&options, &bad), QUERN_INVALID, "device=tpu");
    quern_context_destroy(bad);
    options.device = "cpu";
    options.profile = "no-such-machine";
    assert_refused(bad, quern_context_create(&options, &bad), QUERN_INVALID,
                   "device-profile=no-such-machine");
    quern_context_destroy(bad);
    options.profile = NULL;
    options.size = 3;
    assert_refused(bad, quern_context_create(&options, &bad), QUERN_INVALID, "options.size=3");
    quern_context_destroy(bad);
    quern_context_destroy(NULL);
}
END_TEST

static void *end_with_context(void *data)
{
    struct worker *worker = data;
    quern_errmsg(worker->ctx); /* now this thread has a part of it */
    pthread_barrier_wait(worker->start);
    return NULL;
}

/* Threads end while the context is destroyed: their last call is over, so that is allowed. */
START_TEST(a_context_may_be_destroyed_while_threads_that_used_it_end)
{
    for (int round = 0; round < 200; round++) {
        struct quern_options options = QUERN_OPTIONS_INIT;
        struct worker workers[THREADS];
        pthread_t threads[THREADS];
        pthread_barrier_t start;
        options.cache = "";
        struct quern_context *brief = common_context(&options);
        pthread_barrier_init(&start, NULL, THREADS + 1);
        for (int i = 0; i < THREADS; i++) {
            workers[i] = (struct worker){ .ctx = brief, .start = &start };
            ck_assert_int_eq(pthread_create(&threads[i], NULL, end_with_context, &workers[i]), 0);
        }
        pthread_barrier_wait(&start);
        quern_context_destroy(brief);
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
    }
}
END_TEST

static void *use_two(void *data)
{
    struct worker *workers = data;
    quern_errmsg(workers[0].ctx);
    quern_errmsg(workers[1].ctx);
    pthread_barrier_wait(workers[0].start);
    pthread_barrier_wait(workers[0].start); /* the first one is gone */
    workers[1].status = quern_spec_set(workers[1].ctx, &workers[1].spec, "rows", "-1");
    snprintf(workers[1].error, sizeof(workers[1].error), "%s", quern_errmsg(workers[1].ctx));
    return NULL;
}

START_TEST(a_thread_that_outlives_a_context_keeps_its_part_of_others)
{
    struct worker workers[2] = { { .ctx = common_context(NULL) }, { .ctx = ctx } };
    pthread_t thread;
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, 2);
    workers[0].start = &start;
    workers[1].spec = common_spec(ctx, "kinds rows=1");
    ck_assert_int_eq(pthread_create(&thread, NULL, use_two, workers), 0);
    pthread_barrier_wait(&start);
    quern_context_destroy(workers[0].ctx);
    pthread_barrier_wait(&start);
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&start);
    ck_assert_int_eq(workers[1].status, QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(workers[1].error, "rows=-1"));
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("dispatch");
    TCase *tcase = tcase_create("dispatch");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, members_of_a_bucket_share_a_kernel_and_others_do_not);
    tcase_add_test(tcase, another_alignment_is_another_kernel);
    tcase_add_test(tcase, more_buckets_than_a_thread_remembers_are_all_found_again);
    tcase_add_test(tcase, launch_refuses_a_spec_outside_the_kernels_bucket);
    tcase_add_test(tcase, launch_accepts_every_member_and_better_alignment_but_no_worse);
    tcase_add_test(tcase, an_absent_real_is_absent_whatever_nan_it_is);
    tcase_add_test(tcase, eight_threads_that_start_cold_compile_once_and_compute);
    tcase_add_test(tcase, each_thread_has_its_own_error_text);
    tcase_add_test(tcase, the_callers_workspace_is_used_and_nothing_beside_it);
    tcase_add_test(tcase, the_allocator_hook_gives_the_workspace_and_gets_it_back);
    tcase_add_test(tcase, misaligned_memory_of_a_hook_is_handed_back_and_the_hook_named);
    tcase_add_test(tcase, a_kernel_without_workspace_asks_the_hook_for_nothing);
    tcase_add_test(tcase, a_copy_may_run_in_place);
    tcase_add_test(tcase, a_kernel_with_a_config_of_the_callers_is_found_again_and_by_nobody_else);
    tcase_add_test(tcase, null_arguments_are_refused_by_name_and_a_null_context_without_a_text);
    tcase_add_test(tcase, a_warm_dispatch_takes_less_than_a_microsecond);
    tcase_add_test(tcase, fifty_contexts_come_and_go_without_a_leak);
    tcase_add_test(tcase, a_context_that_failed_can_be_asked_why_and_destroyed);
    tcase_add_test(tcase, a_context_may_be_destroyed_while_threads_that_used_it_end);
    tcase_add_test(tcase, a_thread_that_outlives_a_context_keeps_its_part_of_others);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
