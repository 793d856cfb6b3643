/* The CUDA backend among the caller's streams, graphs, contexts and threads: capture and replay,
 * whatever context is current, launches from many threads, what a warm launch costs, and memory and
 * streams of another device where there is one. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "tests/gpu_arrays.h"
#include "tests/gpu_driver.h"
#include "tests/gpu_stage.h"

static struct quern_context *ctx;
static uint64_t seed;

/* With tensor maps or without, accumulating in place, with a workspace. */
static const char *const calls[] = {
    "gemm m=512 n=512 k=512 a=bf16 b=bf16 d=bf16",
    "gemm m=200 n=136 k=264 a=bf16 b=bf16 d=bf16 bias=f32 accumulate=1",
    "gemm m=67 n=131 k=257 a=f16 b=f16 d=f32",
    "gemm m=100 n=90 k=80",
    "gemm m=8 n=128 k=16384 a=bf16 b=bf16 d=bf16",
    "stage n=100000 accumulate=1",
};
enum { CALL_COUNT = sizeof(calls) / sizeof(calls[0]) };

static void setup(void)
{
    ctx = gpu_context(NULL);
    assert_ok(ctx, quern_family_register(ctx, &gpu_stage_family));
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

/* ---- A call with all that it needs --------------------------------------------------------- */

struct prepared {
    struct quern_spec spec;
    struct gpu_arrays set;
    struct quern_kernel *kernel;
    struct quern_call call; /* with a workspace if the kernel needs one */
};

static void prepared_init(struct prepared *p, const char *text)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    memset(p, 0, sizeof(*p));
    p->spec = common_spec(ctx, text);
    gpu_arrays_init(&p->set, ctx, &p->spec, &gpu_layouts[0], common_random(&seed));
    request.spec = &p->spec;
    request.arrays = p->set.arrays;
    assert_ok(ctx, quern_prepare(ctx, &request, &p->kernel));
    p->call.workspace_bytes = quern_kernel_workspace(p->kernel);
    if (p->call.workspace_bytes)
        assert_ok(ctx, quern_memory_alloc(ctx, p->call.workspace_bytes, &p->call.workspace));
}

/* What a call on the default stream gives is what later ones are compared with. */
static void prepared_keep(struct prepared *p, const char *text)
{
    struct quern_check check;
    assert_ok(ctx, quern_verify(ctx, p->kernel, &p->spec, p->set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", text, check.why);
    gpu_arrays_check(&p->set, text);
    gpu_arrays_keep(&p->set);
    gpu_arrays_rewind(&p->set);
}

static void prepared_fini(struct prepared *p)
{
    quern_memory_free(ctx, p->call.workspace, p->call.workspace_bytes);
    gpu_arrays_fini(&p->set);
}

static int prepared_launch(struct prepared *p)
{
    return quern_launch(ctx, p->kernel, &p->spec, p->set.arrays, &p->call);
}

static void *stream_make(void)
{
    void *stream;
    assert_cuda(gpu_driver()->stream_create(&stream, GPU_STREAM_NON_BLOCKING));
    return stream;
}

/* ---- Capture ------------------------------------------------------------------------------- */

START_TEST(a_prepared_call_is_captured_and_every_replay_gives_the_same_bits)
{
    const struct gpu_driver *cuda = gpu_driver();
    struct prepared p;
    void *graph, *executable;
    gpu_driver_enter();
    prepared_init(&p, calls[_i]);
    prepared_keep(&p, calls[_i]);
    p.call.stream = stream_make();
    assert_cuda(cuda->capture_begin(p.call.stream, GPU_CAPTURE_THREAD_LOCAL));
    assert_ok(ctx, prepared_launch(&p));
    assert_ok(ctx, quern_run(ctx, &p.spec, p.set.arrays, &p.call)); /* the same kernel, found */
    assert_cuda(cuda->capture_end(p.call.stream, &graph));
    ck_assert_ptr_nonnull(graph);
    gpu_arrays_check(&p.set, calls[_i]);
    gpu_arrays_rewind(&p.set);
    assert_cuda(cuda->graph_destroy(graph));

    assert_cuda(cuda->capture_begin(p.call.stream, GPU_CAPTURE_THREAD_LOCAL));
    assert_ok(ctx, prepared_launch(&p));
    assert_cuda(cuda->capture_end(p.call.stream, &graph));
    assert_cuda(cuda->graph_instantiate(&executable, graph, 0));
    for (int replay = 0; replay < 5; replay++) {
        assert_cuda(cuda->graph_launch(executable, p.call.stream));
        assert_cuda(cuda->stream_synchronize(p.call.stream));
        ck_assert_msg(gpu_arrays_differ(&p.set) < 0, "%s: replay %d differs", calls[_i], replay);
        gpu_arrays_rewind(&p.set);
    }
    assert_cuda(cuda->executable_destroy(executable));
    assert_cuda(cuda->graph_destroy(graph));
    assert_cuda(cuda->stream_destroy(p.call.stream));
    prepared_fini(&p);
    gpu_driver_leave();
}
END_TEST

/* The capture itself goes on, and so does the context. */
START_TEST(a_captured_miss_or_a_missing_workspace_is_refused_and_the_capture_goes_on)
{
    const struct gpu_driver *cuda = gpu_driver();
    struct prepared p, other;
    void *graph, *stream;
    gpu_driver_enter();
    prepared_init(&p, "stage n=100000");
    prepared_keep(&p, "stage");
    memset(&other, 0, sizeof(other));
    other.spec = common_spec(ctx, "gemm m=24 n=40 k=48 a=bf16 b=bf16 d=f16 bias=bf16");
    gpu_arrays_init(&other.set, ctx, &other.spec, &gpu_layouts[0], common_random(&seed));
    stream = stream_make();
    struct quern_call bare = { .stream = stream };
    p.call.stream = stream;
    assert_cuda(cuda->capture_begin(stream, GPU_CAPTURE_THREAD_LOCAL));
    assert_refused(ctx, quern_run(ctx, &other.spec, other.set.arrays, &bare), QUERN_INVALID,
                   "is being captured");
    assert_refused(ctx, quern_launch(ctx, p.kernel, &p.spec, p.set.arrays, &bare), QUERN_INVALID,
                   "workspace_bytes=");
    assert_ok(ctx, prepared_launch(&p));
    assert_cuda(cuda->capture_end(stream, &graph));
    ck_assert_ptr_nonnull(graph);
    assert_cuda(cuda->graph_destroy(graph));
    assert_ok(ctx, quern_run(ctx, &other.spec, other.set.arrays, &bare));
    assert_cuda(cuda->stream_synchronize(stream));
    assert_ok(ctx, quern_launch(ctx, p.kernel, &p.spec, p.set.arrays, &bare));
    assert_cuda(cuda->stream_synchronize(stream));
    ck_assert_int_lt(gpu_arrays_differ(&p.set), 0);
    assert_cuda(cuda->stream_destroy(stream));
    prepared_fini(&other);
    prepared_fini(&p);
    gpu_driver_leave();
}
END_TEST

/* ---- Contexts ------------------------------------------------------------------------------ */

/* The kernel is loaded and run in whatever context is current, which the calls leave current. */
static void check_in_context(void *current, const char *text)
{
    const struct gpu_driver *cuda = gpu_driver();
    struct quern_time time;
    struct prepared p;
    void *after;
    assert_cuda(cuda->ctx_set_current(current));
    prepared_init(&p, text);
    prepared_keep(&p, text);
    assert_ok(ctx, prepared_launch(&p));
    ck_assert_int_lt(gpu_arrays_differ(&p.set), 0);
    assert_ok(ctx, quern_measure(ctx, p.kernel, &p.spec, p.set.arrays, 5, &time));
    ck_assert_int_lt(gpu_arrays_differ(&p.set), 0);
    prepared_fini(&p);
    assert_cuda(cuda->ctx_get_current(&after));
    ck_assert_ptr_eq(after, current);
}

START_TEST(calls_work_with_no_current_context_and_leave_none)
{
    check_in_context(NULL, calls[_i]);
}
END_TEST

/* The kernel comes from the primary context's time or is loaded in the other's; either runs in
 * both. */
START_TEST(calls_work_in_a_context_of_the_callers_own_and_leave_it_current)
{
    const struct gpu_driver *cuda = gpu_driver();
    void *own;
    assert_cuda(cuda->ctx_create(&own, 0, gpu_ordinal()));
    check_in_context(own, calls[_i]);
    check_in_context(NULL, calls[_i]);
    check_in_context(own, calls[_i]);
    assert_cuda(cuda->ctx_set_current(NULL));
    assert_cuda(cuda->ctx_destroy(own));
    check_in_context(NULL, calls[_i]);
}
END_TEST

/* ---- Threads ------------------------------------------------------------------------------- */

enum { THREADS = 8, ROUNDS = 50 };

struct worker {
    pthread_t thread;
    struct prepared p;
    int failures; /* rounds in which something failed or the bits were others */
    char text[256];
};

/* One launch, from what the output held at first to a comparison with what a call has given. Claims
 * of Check's are not for threads. */
static bool work_once(struct worker *worker, int written)
{
    struct prepared *p = &worker->p;
    const struct common_array *own = &p->set.host.own[written];
    const struct quern_array *array = &p->set.arrays[written];
    size_t skip = (size_t)(own->data - own->pages), bytes = array->size_bytes;
    void *found = malloc(bytes);
    bool is_right = found && !quern_memory_copy(ctx, array->data, own->before + skip, bytes) &&
                    !prepared_launch(p) && !gpu_driver()->stream_synchronize(p->call.stream) &&
                    !quern_memory_copy(ctx, found, array->data, bytes);
    if (!is_right)
        snprintf(worker->text, sizeof(worker->text), "%s", quern_errmsg(ctx));
    is_right = is_right && !memcmp(found, own->kept + skip, bytes);
    free(found);
    return is_right;
}

static void *work(void *user)
{
    struct worker *worker = user;
    int written = 0;
    while (worker->p.set.host.shapes[written].role != QUERN_OUT &&
           worker->p.set.host.shapes[written].role != QUERN_INOUT)
        written++;
    for (int round = 0; round < ROUNDS; round++)
        worker->failures += !work_once(worker, written);
    return NULL;
}

START_TEST(threads_launch_the_same_kernels_at_once_on_streams_of_their_own)
{
    static struct worker workers[THREADS];
    gpu_driver_enter();
    for (int i = 0; i < THREADS; i++) {
        prepared_init(&workers[i].p, calls[i % CALL_COUNT]);
        prepared_keep(&workers[i].p, calls[i % CALL_COUNT]);
        workers[i].p.call.stream = stream_make();
        workers[i].failures = 0;
        *workers[i].text = '\0';
    }
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_msg(!workers[i].failures, "%s: %d of %d failed: %s", calls[i % CALL_COUNT],
                      workers[i].failures, ROUNDS,
                      *workers[i].text ? workers[i].text : "bits differ");
        assert_cuda(gpu_driver()->stream_destroy(workers[i].p.call.stream));
        prepared_fini(&workers[i].p);
    }
    gpu_driver_leave();
}
END_TEST

/* ---- Time ---------------------------------------------------------------------------------- */

/* The least of some batches, each shorter than what a stream queues. */
static double launch_us(struct prepared *p, bool is_run)
{
    enum { BATCHES = 20, BATCH = 200 };
    double least = 1e9;
    for (int batch = 0; batch < BATCHES; batch++) {
        double start = qn_now_ms();
        int failed = 0;
        for (int i = 0; i < BATCH; i++)
            failed |=
                is_run ? quern_run(ctx, &p->spec, p->set.arrays, &p->call) : prepared_launch(p);
        double us = (qn_now_ms() - start) * 1e3 / BATCH;
        ck_assert_msg(!failed, "%s", quern_errmsg(ctx));
        assert_cuda(gpu_driver()->stream_synchronize(p->call.stream));
        least = us < least ? us : least;
    }
    return least;
}

START_TEST(a_warm_launch_costs_a_few_microseconds_of_host_time)
{
    struct prepared p;
    gpu_driver_enter();
    prepared_init(&p, calls[_i]);
    p.call.stream = stream_make();
    double launch = launch_us(&p, false), run = launch_us(&p, true);
    printf("%s: quern_launch %.2f us, quern_run %.2f us of host time\n", calls[_i], launch, run);
    ck_assert_double_lt(launch, 20);
    ck_assert_double_lt(run, 20);
    assert_cuda(gpu_driver()->stream_destroy(p.call.stream));
    prepared_fini(&p);
    gpu_driver_leave();
}
END_TEST

/* ---- Another device ------------------------------------------------------------------------ */

START_TEST(memory_and_streams_of_another_device_are_refused)
{
    const struct gpu_driver *cuda = gpu_driver();
    int count, other;
    uint64_t foreign;
    void *primary;
    struct prepared p;
    assert_cuda(cuda->device_get_count(&count));
    if (count < 2)
        return;
    other = gpu_ordinal() ? 0 : 1;
    prepared_init(&p, "stage n=100000");
    assert_cuda(cuda->primary_retain(&primary, other));
    assert_cuda(cuda->ctx_set_current(primary));
    assert_cuda(cuda->memory_alloc(&foreign, 400000));
    struct quern_array arrays[2] = { p.set.arrays[STAGE_X], p.set.arrays[STAGE_OUT] };
    arrays[STAGE_X].data = (void *)(uintptr_t)foreign;
    assert_refused(ctx, quern_launch(ctx, p.kernel, &p.spec, arrays, &p.call), QUERN_INVALID,
                   "memory of cuda:");
    assert_ok(ctx, prepared_launch(&p)); /* the other device's context is current */
    p.call.stream = stream_make();
    int status = prepared_launch(&p);
    ck_assert_msg(status < 0, "a stream of cuda:%d was taken", other);
    ck_assert_msg(strstr(quern_errmsg(ctx), "stream"), "%s", quern_errmsg(ctx));
    assert_cuda(cuda->stream_destroy(p.call.stream));
    p.call.stream = NULL;
    assert_cuda(cuda->memory_free(foreign));
    assert_cuda(cuda->ctx_set_current(NULL));
    assert_cuda(cuda->primary_release(other));
    assert_ok(ctx, prepared_launch(&p));
    prepared_fini(&p);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("stream_gpu");
    TCase *tcase = tcase_create("stream_gpu");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, calls_work_with_no_current_context_and_leave_none, 0, CALL_COUNT);
    tcase_add_loop_test(tcase, a_prepared_call_is_captured_and_every_replay_gives_the_same_bits, 0,
                        CALL_COUNT);
    tcase_add_test(tcase,
                   a_captured_miss_or_a_missing_workspace_is_refused_and_the_capture_goes_on);
    tcase_add_loop_test(tcase, calls_work_in_a_context_of_the_callers_own_and_leave_it_current, 0,
                        CALL_COUNT);
    tcase_add_test(tcase, threads_launch_the_same_kernels_at_once_on_streams_of_their_own);
    tcase_add_loop_test(tcase, a_warm_launch_costs_a_few_microseconds_of_host_time, 0, CALL_COUNT);
    tcase_add_test(tcase, memory_and_streams_of_another_device_are_refused);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
