/* Measuring.
 *
 *     restore copies i .. i+b   launch on i   launch on i+1   ...   (untimed | timed | timed | ...)
 *
 * - Restore-value stays outside the timed interval: the backend times one launch at a time, and
 *   every copy of a batch is restored before the batch's first launch, so that restoring one copy
 *   does not leave the next launch's inputs in the cache.
 * - Copies are used in turn. With enough of them a launch finds nothing of the last one on its copy
 *   in the cache, which is what a kernel meets inside a model.
 * - Scratch is filled before every launch; the workspace is shared by the copies.
 *
 * quern_measure() is the same machinery on one kernel and the caller's arrays, which come back bit
 * for bit: private copies are what runs.
 */
#include "jit/measure.h"

#include <math.h>
#include <stdlib.h>

#define WARM_UP_SHARE 0.25 /* of the budget */
#define WARM_UP_AGREE 0.1  /* two launches this close are warm */
#define LEAST_SAMPLES 3
#define ROTATE_MAX (INT64_C(192) << 20)

int64_t qn_rotate_bytes(const struct quern_profile *profile)
{
    int64_t cache = profile->l3_bytes > profile->l2_bytes ? profile->l3_bytes : profile->l2_bytes;
    return cache > ROTATE_MAX / 2 ? ROTATE_MAX : 2 * cache;
}

static int time_one(struct qn_workset *set, const struct quern_kernel *kernel, int copy, double *us,
                    struct quern_message *why)
{
    struct quern_context *ctx = set->map->ctx;
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct quern_launch launch;
    struct qn_place place;
    double nanoseconds;
    QN_TRY(qn_workset_scratch(set, why));
    qn_workset_place(set, copy, &place);
    qn_place_arrays(set->map, &place, arrays);
    qn_kernel_bind(ctx, kernel, &set->map->spec, arrays, set->workspace, &launch);
    QN_TRY(ctx->backend->time_launch(ctx->device, kernel->plan, kernel->functions, &launch, NULL,
                                     &nanoseconds, why));
    *us = nanoseconds * 1e-3;
    return QUERN_OK;
}

int qn_measure_batch(struct qn_workset *set, const struct quern_kernel *kernel, int count,
                     struct qn_samples *samples, struct quern_message *why)
{
    while (count > 0 && samples->count < QN_MAX_SAMPLES) {
        int room = QN_MAX_SAMPLES - samples->count;
        int batch = qn_workset_batch(set);
        batch = batch < count ? batch : count;
        batch = batch < room ? batch : room;
        for (int i = 0; i < batch; i++)
            QN_TRY(qn_workset_restore(set, (set->next + i) % set->copies, why));
        for (int i = 0; i < batch; i++) {
            QN_TRY(time_one(set, kernel, set->next, &samples->us[samples->count], why));
            samples->count++;
            set->next = (set->next + 1) % set->copies;
        }
        count -= batch;
    }
    return QUERN_OK;
}

/* Launches until two in a row agree; *us is the last one's time. */
static int warm_up(struct qn_workset *set, const struct quern_kernel *kernel, double budget_ms,
                   double *us, struct quern_message *why)
{
    double start = qn_now_ms(), last = INFINITY;
    for (;;) {
        struct qn_samples samples = { .count = 0 };
        QN_TRY(qn_measure_batch(set, kernel, 1, &samples, why));
        *us = samples.us[0];
        if (fabs(*us - last) <= WARM_UP_AGREE * fmin(*us, last) ||
            qn_now_ms() - start > budget_ms * WARM_UP_SHARE)
            return QUERN_OK;
        last = *us;
    }
}

/* Of the samples, without disturbing their order. */
static double median_so_far(const struct qn_samples *samples)
{
    struct qn_samples copy = *samples;
    return qn_stat_of(copy.us, copy.count).median;
}

int qn_measure_adaptive(struct qn_workset *set, const struct quern_kernel *kernel, double budget_ms,
                        double give_up_us, struct qn_samples *samples, struct quern_message *why)
{
    double start = qn_now_ms(), us;
    QN_TRY(warm_up(set, kernel, budget_ms, &us, why));
    QN_TRY(qn_measure_batch(set, kernel, LEAST_SAMPLES, samples, why));
    if (give_up_us > 0 && median_so_far(samples) > give_up_us)
        return QUERN_OK;
    while (qn_now_ms() - start < budget_ms && samples->count < QN_MAX_SAMPLES)
        QN_TRY(qn_measure_batch(set, kernel, LEAST_SAMPLES, samples, why));
    return QUERN_OK;
}

/* ---- quern_measure ------------------------------------------------------------------------- */

static int measure_iterations(struct qn_workset *set, const struct quern_kernel *kernel,
                              int iterations, double *us, struct quern_message *why)
{
    double warm;
    QN_TRY(qn_workset_workspace(set, (size_t)kernel->plan->workspace_bytes, why));
    QN_TRY(warm_up(set, kernel, 200, &warm, why));
    for (int done = 0; done < iterations;) {
        struct qn_samples samples = { .count = 0 };
        int part = iterations - done < QN_MAX_SAMPLES ? iterations - done : QN_MAX_SAMPLES;
        QN_TRY(qn_measure_batch(set, kernel, part, &samples, why));
        for (int i = 0; i < part; i++)
            us[done + i] = samples.us[i];
        done += part;
    }
    return QUERN_OK;
}

static int measure_on(struct quern_context *ctx, const struct quern_kernel *kernel,
                      const struct qn_regions *map, int iterations, double *us,
                      struct quern_message *why)
{
    struct qn_workset_options options = { .rotate_bytes = qn_rotate_bytes(&ctx->profile) };
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
    QN_TRY(qn_arrays_bind(spec, arrays, bound, why));
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
