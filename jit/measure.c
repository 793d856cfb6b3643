/* Measuring.
 *
 *     singly      restore copies i .. i+b   launch on i   launch on i+1   ...
 *                 untimed                   timed         timed
 *     recorded    restore copies i .. i+b   launch on i, i+1, ... i+b
 *                 untimed                   timed together: one sample, a b-th of it
 *
 * - Restore-value stays outside the timed interval: every copy of a batch is restored before the
 *   batch's first launch, so that restoring one copy does not leave the next launch's inputs in the
 *   cache.
 * - Copies are used in turn. With enough of them a launch finds nothing of the last one on its copy
 *   in the cache, which is what a kernel meets inside a model. Where there are not enough, a GPU's
 *   cache is flushed before each launch.
 * - Scratch is filled before every launch, or every replay of a recording; the workspace is shared
 *   by the copies.
 * - Events around one launch on a GPU also measure some microseconds of their own, so short kernels
 *   are recorded (a CUDA graph) and replayed. A recording is as long as it takes to go through the
 *   copies and to make those microseconds small, whichever is more; where a call reads what it
 *   writes, a copy is good for one launch only. Which way a kernel goes is known from its warm-up.
 *
 * quern_measure() is the same machinery on one kernel and the caller's arrays, which come back bit
 * for bit: private copies are what runs.
 */
#include "jit/measure.h"

#include <math.h>
#include <stdlib.h>

#define WARM_UP_SHARE 0.25 /* of the budget */
#define WARM_UP_AGREE 0.1  /* two launches this close are warm */
#define WARM_UP_MS 200.0   /* the budget of quern_measure() */
#define LEAST_SAMPLES 3
#define STEADY_SAMPLES 6 /* of which so little spread, as a share of the median, is enough */
#define STEADY_SPREAD 0.005
#define RECORDED_BELOW_US 300.0 /* of longer kernels, what events cost is less than noise */
#define RECORDING_US 1000.0     /* how long a recording should be */
#define MAX_RECORDED 256        /* launches */
#define ROTATE_MAX (INT64_C(192) << 20)

int64_t qn_rotate_bytes(const struct quern_profile *profile)
{
    int64_t cache = profile->l3_bytes > profile->l2_bytes ? profile->l3_bytes : profile->l2_bytes;
    return cache > ROTATE_MAX / 2 ? ROTATE_MAX : 2 * cache;
}

/* A kernel being timed. */
struct timing {
    struct qn_workset *set;
    const struct quern_kernel *kernel;
    struct qn_recording *recording; /* NULL: singly */
    int first, count;               /* the recording's copies; launches in it */
};

/* ---- Singly -------------------------------------------------------------------------------- */

static void bind_copy(const struct timing *timing, int copy, struct quern_launch *launch)
{
    const struct qn_workset *set = timing->set;
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct qn_place place;
    qn_workset_place(set, copy, &place);
    qn_place_arrays(set->map, &place, arrays);
    qn_kernel_bind(set->map->ctx, timing->kernel, &set->map->spec, arrays, set->workspace, launch);
}

static int time_one(const struct timing *timing, int copy, double *us, struct quern_message *why)
{
    struct quern_context *ctx = timing->set->map->ctx;
    const struct quern_kernel *kernel = timing->kernel;
    struct quern_launch launch;
    double nanoseconds;
    QN_TRY(qn_workset_scratch(timing->set, why));
    QN_TRY(qn_workset_flush(timing->set, why));
    bind_copy(timing, copy, &launch);
    QN_TRY(ctx->backend->time_launch(ctx->device, kernel->plan, kernel->functions, &launch, NULL,
                                     &nanoseconds, why));
    *us = nanoseconds * 1e-3;
    return QUERN_OK;
}

static int time_batch(const struct timing *timing, int count, double *us, struct quern_message *why)
{
    struct qn_workset *set = timing->set;
    for (int done = 0; done < count;) {
        int batch = qn_workset_batch(set);
        batch = batch < count - done ? batch : count - done;
        for (int i = 0; i < batch; i++)
            QN_TRY(qn_workset_restore(set, (set->next + i) % set->copies, why));
        for (int i = 0; i < batch; i++) {
            QN_TRY(time_one(timing, set->next, &us[done++], why));
            set->next = (set->next + 1) % set->copies;
        }
    }
    return QUERN_OK;
}

/* ---- Recorded ------------------------------------------------------------------------------ */

/* Launches that a recording should have; 1: none. */
static int recording_count(const struct qn_workset *set, double expected_us)
{
    int copies = set->copies < MAX_RECORDED ? set->copies : MAX_RECORDED;
    if (!set->map->ctx->backend->record || set->flush || expected_us > RECORDED_BELOW_US)
        return 1;
    if (qn_workset_restores(set))
        return qn_workset_batch(set) < copies ? qn_workset_batch(set) : copies;
    int long_enough = (int)fmin(RECORDING_US / fmax(expected_us, 1), MAX_RECORDED);
    return copies > long_enough ? copies : long_enough;
}

static int recording_make(struct timing *timing, struct quern_message *why)
{
    struct quern_context *ctx = timing->set->map->ctx;
    const struct quern_kernel *kernel = timing->kernel;
    size_t bytes = (size_t)timing->count * sizeof(struct quern_launch);
    struct quern_launch *launches = aligned_alloc(_Alignof(struct quern_launch), bytes);
    if (!launches) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    for (int i = 0; i < timing->count; i++)
        bind_copy(timing, (timing->first + i) % timing->set->copies, &launches[i]);
    int status = ctx->backend->record(ctx->device, kernel->plan, kernel->functions, launches,
                                      timing->count, &timing->recording, why);
    free(launches);
    return status;
}

static int replay(const struct timing *timing, double *us, struct quern_message *why)
{
    struct qn_workset *set = timing->set;
    struct quern_context *ctx = set->map->ctx;
    double nanoseconds;
    for (int i = 0; i < timing->count && qn_workset_restores(set); i++)
        QN_TRY(qn_workset_restore(set, (timing->first + i) % set->copies, why));
    QN_TRY(qn_workset_scratch(set, why));
    QN_TRY(ctx->backend->replay(ctx->device, timing->recording, &nanoseconds, why));
    *us = nanoseconds * 1e-3 / timing->count;
    return QUERN_OK;
}

/* ---- Either way ---------------------------------------------------------------------------- */

/* expected_us 0: not known yet, so singly. */
static int timing_init(struct timing *timing, struct qn_workset *set,
                       const struct quern_kernel *kernel, double expected_us,
                       struct quern_message *why)
{
    *timing = (struct timing){ set, kernel, NULL, set->next, 1 };
    if (expected_us > 0)
        timing->count = recording_count(set, expected_us);
    if (timing->count < 2)
        return QUERN_OK;
    set->next = (set->next + timing->count) % set->copies;
    return recording_make(timing, why);
}

static void timing_fini(const struct timing *timing)
{
    struct quern_context *ctx = timing->set->map->ctx;
    if (timing->recording)
        ctx->backend->forget(ctx->device, timing->recording);
}

/* `count` samples. */
static int timing_take(const struct timing *timing, int count, double *us,
                       struct quern_message *why)
{
    if (!timing->recording)
        return time_batch(timing, count, us, why);
    for (int i = 0; i < count; i++)
        QN_TRY(replay(timing, &us[i], why));
    return QUERN_OK;
}

static int samples_add(const struct timing *timing, int count, struct qn_samples *samples,
                       struct quern_message *why)
{
    int room = QN_MAX_SAMPLES - samples->count;
    count = count < room ? count : room;
    QN_TRY(timing_take(timing, count, samples->us + samples->count, why));
    samples->count += count;
    return QUERN_OK;
}

int qn_measure_turn(struct qn_workset *set, const struct quern_kernel *kernel, double expected_us,
                    double budget_ms, int most, struct qn_samples *samples,
                    struct quern_message *why)
{
    struct timing timing;
    QN_TRY(timing_init(&timing, set, kernel, expected_us, why));
    double sample_us = fmax(expected_us, 0.1) * timing.count;
    int count = (int)fmin(fmax(budget_ms * 1e3 / sample_us, 1), most);
    int status = samples_add(&timing, count, samples, why);
    timing_fini(&timing);
    return status;
}

/* Launches until two in a row agree; *us is the last one's time. */
static int warm_up(struct qn_workset *set, const struct quern_kernel *kernel, double budget_ms,
                   double *us, struct quern_message *why)
{
    double start = qn_now_ms(), last = INFINITY;
    struct timing timing;
    QN_TRY(timing_init(&timing, set, kernel, 0, why));
    for (;;) {
        QN_TRY(timing_take(&timing, 1, us, why));
        if (fabs(*us - last) <= WARM_UP_AGREE * fmin(*us, last) ||
            qn_now_ms() - start > budget_ms * WARM_UP_SHARE)
            return QUERN_OK;
        last = *us;
    }
}

/* Of the samples, without disturbing their order. */
static struct qn_stat stat_so_far(const struct qn_samples *samples)
{
    struct qn_samples copy = *samples;
    return qn_stat_of(copy.us, copy.count);
}

/* Replays on a GPU mostly are after a few; on a CPU single calls seldom. */
static bool is_steady(const struct qn_samples *samples)
{
    struct qn_stat stat = stat_so_far(samples);
    return stat.samples >= STEADY_SAMPLES && stat.spread <= STEADY_SPREAD * stat.median;
}

static int take_adaptively(const struct timing *timing, double end_ms, double give_up_us,
                           struct qn_samples *samples, struct quern_message *why)
{
    QN_TRY(samples_add(timing, LEAST_SAMPLES, samples, why));
    if (give_up_us > 0 && stat_so_far(samples).median > give_up_us)
        return QUERN_OK;
    while (qn_now_ms() < end_ms && samples->count < QN_MAX_SAMPLES && !is_steady(samples))
        QN_TRY(samples_add(timing, LEAST_SAMPLES, samples, why));
    return QUERN_OK;
}

int qn_measure_adaptive(struct qn_workset *set, const struct quern_kernel *kernel, double budget_ms,
                        double give_up_us, struct qn_samples *samples, struct quern_message *why)
{
    double start = qn_now_ms(), us;
    struct timing timing;
    QN_TRY(warm_up(set, kernel, budget_ms, &us, why));
    QN_TRY(timing_init(&timing, set, kernel, us, why));
    int status = take_adaptively(&timing, start + budget_ms, give_up_us, samples, why);
    timing_fini(&timing);
    return status;
}

/* ---- quern_measure ------------------------------------------------------------------------- */

static int measure_iterations(struct qn_workset *set, const struct quern_kernel *kernel,
                              int iterations, double *us, struct quern_message *why)
{
    struct timing timing;
    double warm;
    QN_TRY(qn_workset_workspace(set, (size_t)kernel->plan->workspace_bytes, why));
    QN_TRY(warm_up(set, kernel, WARM_UP_MS, &warm, why));
    QN_TRY(timing_init(&timing, set, kernel, warm, why));
    int status = timing_take(&timing, iterations, us, why);
    timing_fini(&timing);
    return status;
}

static int measure_on(struct quern_context *ctx, const struct quern_kernel *kernel,
                      const struct qn_regions *map, int iterations, double *us,
                      struct quern_message *why)
{
    struct qn_workset_options options = { .rotate_bytes = qn_rotate_bytes(&ctx->profile),
                                          .is_flushable = ctx->backend->kind == QUERN_CUDA };
    struct qn_workset set;
    QN_TRY(qn_workset_init(&set, map, &options, why));
    int status = measure_iterations(&set, kernel, iterations, us, why);
    int undone = qn_workset_fini(&set, why);
    return status ? status : undone;
}

static int measure(struct quern_context *ctx, const struct quern_kernel *kernel,
                   const struct quern_spec *spec, const struct quern_array *arrays, int iterations,
                   double *us, struct quern_message *why)
{
    struct quern_array bound[QUERN_MAX_ARRAYS];
    QN_TRY(qn_spec_check(spec, why));
    QN_TRY(qn_call_bind(ctx, spec, arrays, bound, why));
    QN_TRY(qn_kernel_accepts(kernel, spec, arrays, why));
    struct qn_regions *map = malloc(sizeof(*map));
    if (!map) {
        quern_refuse(why, "out of memory");
        return QUERN_NO_MEMORY;
    }
    int status = qn_regions_init(map, ctx, spec, bound, why);
    if (!status) {
        status = measure_on(ctx, kernel, map, iterations, us, why);
        qn_regions_fini(map);
    }
    free(map);
    return status;
}

int quern_measure(struct quern_context *ctx, struct quern_kernel *kernel,
                  const struct quern_spec *spec, const struct quern_array *arrays, int iterations,
                  struct quern_time *result)
{
    struct quern_message why = { "" };
    if (!ctx)
        return QUERN_INVALID;
    if (!kernel || !spec || !result)
        return qn_fail(ctx, QUERN_INVALID, "%s=NULL: must be given",
                       !kernel ? "kernel"
                       : !spec ? "spec"
                               : "result");
    if (iterations < 1)
        return qn_fail(ctx, QUERN_INVALID, "iterations=%d: must be at least 1", iterations);
    double *us = malloc((size_t)iterations * sizeof(*us));
    if (!us)
        return qn_fail(ctx, QUERN_NO_MEMORY, "iterations=%d: out of memory", iterations);
    int status = measure(ctx, kernel, spec, arrays, iterations, us, &why);
    if (!status) {
        struct qn_stat stat = qn_stat_of(us, iterations);
        struct quern_cost cost = { 0, 0 };
        spec->family->cost(spec, &cost);
        *result =
            (struct quern_time){ stat.median, stat.spread, stat.samples, cost.flops, cost.bytes };
    }
    free(us);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}
