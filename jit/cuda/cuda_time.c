/* Time on the device: one launch between two events, or many in a graph.
 *
 *     time_launch   order -> start -> launch -> stop                          on a stream
 *     record        graph { start -> launch 0 -> launch 1 ... -> stop }
 *     replay        order -> graph
 *
 * The stream of a clock does not synchronise with the default stream: a blocking one that is being
 * captured would make the default stream unusable for the whole process. What callers did on the
 * default stream before (copies, fills) is waited for on the device, by an event ("order"): the
 * host does not wait, so the launch is queued behind that work rather than seen to arrive. Both
 * functions wait for the clock's stream at their end, so that what follows on the default stream is
 * ordered too.
 *
 * In a recording the events are nodes of the graph. They measure from the first launch's start to
 * the last one's end; how long the host took to launch the graph is not in it. Its capture is
 * relaxed: no other thread's calls are forbidden meanwhile, and none of ours is unsafe.
 *
 * A clock is of one context. The primary context's is kept, under a lock that is held while it is
 * used; in a context of the caller's own one is made for each call, since nothing says when such a
 * context ends. */
#include <stdlib.h>

#include "jit/cuda/cuda_device.h"

struct qn_cuda_clock {
    struct cu_stream *stream;
    struct cu_event *order, *start, *stop;
};

struct qn_recording {
    struct qn_cuda_clock clock;
    struct cu_graph_exec *exec;
};

/* ---- Clocks -------------------------------------------------------------------------------- */

static void clock_fini(const struct qn_device *device, struct qn_cuda_clock *clock)
{
    const struct qn_cuda_driver *cu = device->cu;

    if (clock->stop)
        cu->event_destroy(clock->stop);
    if (clock->start)
        cu->event_destroy(clock->start);
    if (clock->order)
        cu->event_destroy(clock->order);
    if (clock->stream)
        cu->stream_destroy(clock->stream);
}

/* In the current context. */
static int clock_init(const struct qn_device *device, struct qn_cuda_clock *clock,
                      struct quern_message *why)
{
    const struct qn_cuda_driver *cu = device->cu;
    const char *call = "cuStreamCreate";

    *clock = (struct qn_cuda_clock){ 0 };
    int code = cu->stream_create(&clock->stream, CU_STREAM_NON_BLOCKING);
    if (!code) {
        call = "cuEventCreate";
        code = cu->event_create(&clock->order, CU_EVENT_DISABLE_TIMING);
    }
    if (!code)
        code = cu->event_create(&clock->start, 0);
    if (!code)
        code = cu->event_create(&clock->stop, 0);
    if (!code)
        return 0;
    clock_fini(device, clock);
    return qn_cuda_device_fail(device, call, code, why);
}

/* The clock's stream goes on after what is in the default stream now. */
static int clock_order(const struct qn_device *device, const struct qn_cuda_clock *clock,
                       struct quern_message *why)
{
    int code = device->cu->event_record(clock->order, NULL);

    if (code)
        return qn_cuda_device_fail(device, "cuEventRecord", code, why);
    code = device->cu->stream_wait(clock->stream, clock->order, 0);
    return code ? qn_cuda_device_fail(device, "cuStreamWaitEvent", code, why) : 0;
}

static int clock_read(const struct qn_device *device, const struct qn_cuda_clock *clock,
                      double *nanoseconds, struct quern_message *why)
{
    float milliseconds;
    int code = device->cu->event_elapsed(&milliseconds, clock->start, clock->stop);

    if (code)
        return qn_cuda_device_fail(device, "cuEventElapsedTime", code, why);
    *nanoseconds = 1e6 * (double)milliseconds;
    return 0;
}

/* ---- One launch ---------------------------------------------------------------------------- */

struct work {
    const struct quern_plan *plan;
    struct qn_function *const *functions;
};

static int run(struct qn_device *device, const struct work *work, struct quern_launch *launch,
               struct cu_stream *stream, struct quern_message *why)
{
    return qn_cuda_launch(device, work->plan, work->functions, launch, stream, QN_GRID_PARALLEL,
                          why);
}

/* Between the clock's events, on `stream`. */
static int time_on(struct qn_device *device, const struct qn_cuda_clock *clock,
                   struct cu_stream *stream, const struct work *work, struct quern_launch *launch,
                   double *nanoseconds, struct quern_message *why)
{
    const struct qn_cuda_driver *cu = device->cu;
    int code = cu->event_record(clock->start, stream);

    if (code)
        return qn_cuda_device_fail(device, "cuEventRecord", code, why);
    int status = run(device, work, launch, stream, why);
    const char *call = "cuEventRecord";
    code = cu->event_record(clock->stop, stream);
    if (!code) {
        call = "cuEventSynchronize";
        code = cu->event_synchronize(clock->stop);
    }
    if (status)
        return status;
    if (code)
        return qn_cuda_device_fail(device, call, code, why);
    return clock_read(device, clock, nanoseconds, why);
}

/* On the caller's stream, or on the clock's own behind the default stream. */
static int time_with(struct qn_device *device, const struct qn_cuda_clock *clock,
                     struct cu_stream *stream, const struct work *work, struct quern_launch *launch,
                     double *nanoseconds, struct quern_message *why)
{
    int status = stream ? 0 : clock_order(device, clock, why);

    if (status)
        return status;
    return time_on(device, clock, stream ? stream : clock->stream, work, launch, nanoseconds, why);
}

/* The device's clock, made when first asked for; with the lock held. NULL: the current context is
 * not the primary one. */
static int clock_kept(struct qn_device *device, struct qn_cuda_clock **clock,
                      struct quern_message *why)
{
    struct cu_context *context = NULL;

    *clock = NULL;
    if (device->cu->context_get(&context) || context != atomic_load(&device->primary))
        return 0;
    if (!device->clock) {
        struct qn_cuda_clock *made = malloc(sizeof *made);
        if (!made)
            return QN_CUDA_FAIL(NO_MEMORY, why, "%s: out of host memory", device->subject);
        int status = clock_init(device, made, why);
        if (status) {
            free(made);
            return status;
        }
        device->clock = made;
    }
    *clock = device->clock;
    return 0;
}

/* In the current context. */
static int time_here(struct qn_device *device, struct cu_stream *stream, const struct work *work,
                     struct quern_launch *launch, double *nanoseconds, struct quern_message *why)
{
    struct qn_cuda_clock *kept, own;

    pthread_mutex_lock(&device->clock_lock);
    int status = clock_kept(device, &kept, why);
    if (!status && kept)
        status = time_with(device, kept, stream, work, launch, nanoseconds, why);
    pthread_mutex_unlock(&device->clock_lock);
    if (status || kept)
        return status;
    status = clock_init(device, &own, why);
    if (status)
        return status;
    status = time_with(device, &own, stream, work, launch, nanoseconds, why);
    clock_fini(device, &own);
    return status;
}

int qn_cuda_time_launch(struct qn_device *device, const struct quern_plan *plan,
                        struct qn_function *const *functions, struct quern_launch *launch,
                        void *stream, double *nanoseconds, struct quern_message *why)
{
    const struct work work = { plan, functions };
    struct qn_cuda_scope scope;
    int status = qn_cuda_enter_stream(device, stream, &scope, why);

    if (status)
        return status;
    status = time_here(device, stream, &work, launch, nanoseconds, why);
    qn_cuda_leave(device, &scope);
    return status;
}

void qn_cuda_time_fini(struct qn_device *device)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    if (!device->clock)
        return;
    if (!qn_cuda_enter(device, &scope, &why)) {
        clock_fini(device, device->clock);
        qn_cuda_leave(device, &scope);
    }
    free(device->clock);
    device->clock = NULL;
}

/* ---- Recordings ---------------------------------------------------------------------------- */

/* What the capture consists of. */
static int capture_body(struct qn_device *device, const struct qn_cuda_clock *clock,
                        const struct work *work, struct quern_launch *launches, int count,
                        struct quern_message *why)
{
    const struct qn_cuda_driver *cu = device->cu;
    int status = 0;
    int code = cu->event_record_flags(clock->start, clock->stream, CU_EVENT_RECORD_EXTERNAL);

    for (int i = 0; i < count && !code && !status; i++)
        status = run(device, work, &launches[i], clock->stream, why);
    if (!code && !status)
        code = cu->event_record_flags(clock->stop, clock->stream, CU_EVENT_RECORD_EXTERNAL);
    return code ? qn_cuda_device_fail(device, "cuEventRecordWithFlags", code, why) : status;
}

/* The stream leaves capture whatever happens within. */
static int capture(struct qn_device *device, const struct qn_cuda_clock *clock,
                   const struct work *work, struct quern_launch *launches, int count,
                   struct cu_graph **graph, struct quern_message *why)
{
    int code = device->cu->capture_begin(clock->stream, CU_CAPTURE_RELAXED);

    *graph = NULL;
    if (code)
        return qn_cuda_device_fail(device, "cuStreamBeginCapture", code, why);
    int status = capture_body(device, clock, work, launches, count, why);
    code = device->cu->capture_end(clock->stream, graph);
    if (status)
        return status;
    return code ? qn_cuda_device_fail(device, "cuStreamEndCapture", code, why) : 0;
}

static int instantiate(const struct qn_device *device, struct qn_recording *recording,
                       struct cu_graph *graph, struct quern_message *why)
{
    const struct qn_cuda_driver *cu = device->cu;
    int code = cu->graph_instantiate(&recording->exec, graph, 0);

    if (code)
        return qn_cuda_device_fail(device, "cuGraphInstantiate", code, why);
    code = cu->graph_upload(recording->exec, recording->clock.stream);
    if (code)
        return qn_cuda_device_fail(device, "cuGraphUpload", code, why);
    code = cu->stream_synchronize(recording->clock.stream);
    return code ? qn_cuda_device_fail(device, "cuStreamSynchronize", code, why) : 0;
}

static void recording_fini(const struct qn_device *device, struct qn_recording *recording)
{
    if (recording->exec)
        device->cu->graph_exec_destroy(recording->exec);
    clock_fini(device, &recording->clock);
}

/* In the current context. */
static int recording_init(struct qn_device *device, struct qn_recording *recording,
                          const struct work *work, struct quern_launch *launches, int count,
                          struct quern_message *why)
{
    struct cu_graph *graph;

    recording->exec = NULL;
    int status = clock_init(device, &recording->clock, why);
    if (status)
        return status;
    status = capture(device, &recording->clock, work, launches, count, &graph, why);
    if (!status)
        status = instantiate(device, recording, graph, why);
    if (graph)
        device->cu->graph_destroy(graph);
    if (status)
        recording_fini(device, recording);
    return status;
}

int qn_cuda_record(struct qn_device *device, const struct quern_plan *plan,
                   struct qn_function *const *functions, struct quern_launch *launches, int count,
                   struct qn_recording **recording, struct quern_message *why)
{
    const struct work work = { plan, functions };
    struct qn_cuda_scope scope;
    struct qn_recording *made;
    int status = qn_cuda_enter(device, &scope, why);

    if (status)
        return status;
    made = malloc(sizeof *made);
    status = made ? recording_init(device, made, &work, launches, count, why)
                  : QN_CUDA_FAIL(NO_MEMORY, why, "%s: out of host memory", device->subject);
    qn_cuda_leave(device, &scope);
    if (status)
        free(made);
    else
        *recording = made;
    return status;
}

/* To its end. */
static int graph_run(const struct qn_device *device, const struct qn_recording *recording,
                     struct quern_message *why)
{
    int code = device->cu->graph_launch(recording->exec, recording->clock.stream);

    if (code)
        return qn_cuda_device_fail(device, "cuGraphLaunch", code, why);
    code = device->cu->stream_synchronize(recording->clock.stream);
    return code ? qn_cuda_device_fail(device, "cuStreamSynchronize", code, why) : 0;
}

int qn_cuda_replay(struct qn_device *device, struct qn_recording *recording, double *nanoseconds,
                   struct quern_message *why)
{
    const struct qn_cuda_clock *clock = &recording->clock;
    struct qn_cuda_scope scope;
    int status = qn_cuda_enter_stream(device, clock->stream, &scope, why);

    if (status)
        return status;
    status = clock_order(device, clock, why);
    if (!status)
        status = graph_run(device, recording, why);
    if (!status)
        status = clock_read(device, clock, nanoseconds, why);
    qn_cuda_leave(device, &scope);
    return status;
}

void qn_cuda_forget(struct qn_device *device, struct qn_recording *recording)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    if (!recording)
        return;
    if (!qn_cuda_enter_stream(device, recording->clock.stream, &scope, &why)) {
        recording_fini(device, recording);
        qn_cuda_leave(device, &scope);
    }
    free(recording);
}
