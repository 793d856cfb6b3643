/* The testbed: is a candidate right?
 *
 *     1. before image     what the arrays hold, on the host
 *     2. expectation      the reference on it, once
 *     3. per candidate, on copy 0 of the workset, for each grid order
 *          restore the written regions and poison outputs; fill the workspace with NaN; launch
 *          PARALLEL   compared with the expectation
 *          FORWARD    bit-equal to the first run; compared, if the variant may differ in rounding
 *          REVERSE    likewise
 *     4. at last, whatever no element of an output covers is as it was: inputs, the padding between
 *        rows, guards of arrays and of the workspace
 *
 * A GPU runs blocks in what order it likes: there the further runs are a test that runs repeat, one
 * for each candidate and two for the default and the winner.
 *
 * The serial orders of a large problem take as many times longer as there are cores: the caller
 * says from where on they are left out, and has the winner checked in full.
 *
 * Blocks that depend on each other give different results forwards and backwards; blocks that leave
 * part of an integer output alone give different poison. A candidate that damaged anything costs a
 * reset of every copy, so that the next one starts clean.
 *
 * Step 4 sees a write that a guard, padding or an input catches, not one to a random address. A
 * kernel that crashes takes the process with it, and one that never ends is waited for: on the CPU
 * a kernel is ordinary code in this process. Candidates come from a variant's own legal configs,
 * not from strangers.
 */
#include "jit/testbed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jit/measure.h"

/* ---- Arrays that nobody gave --------------------------------------------------------------- */

static int draw_contents(struct quern_context *ctx, const struct quern_spec *spec, int index,
                         uint64_t seed, const struct qn_drawn *drawn, struct quern_message *why)
{
    void *host = malloc(drawn->bytes);
    if (!host) {
        quern_refuse(why, "out of memory: no %zu bytes to draw %s", drawn->bytes,
                     spec->family->arrays[index].name);
        return QUERN_NO_MEMORY;
    }
    int status = quern_fill(ctx, spec, index, seed, host);
    if (status)
        quern_refuse(why, "%s", quern_errmsg(ctx));
    else
        status = qn_copy(ctx, drawn->data, host, drawn->bytes, why);
    free(host);
    return status;
}

/* Outputs are drawn too: what they hold before a call is no matter, but must be something. */
static int draw_arrays(struct qn_testbed *bed, const struct quern_spec *spec, uint64_t seed,
                       struct quern_array *bound, struct quern_message *why)
{
    struct quern_array arrays[QUERN_MAX_ARRAYS] = { { 0 } };
    for (int i = 0; i < spec->family->array_count; i++) {
        struct quern_shape shape;
        struct qn_drawn *drawn = &bed->drawn[i];
        spec->family->shape(spec, i, &shape);
        int64_t count = shape.role == QUERN_ABSENT ? 0 : qn_shape_count(&shape);
        if (!count)
            continue;
        drawn->bytes = (size_t)count * quern_dtype_bytes(shape.dtype);
        int status = qn_memory_get(bed->ctx, drawn->bytes, NULL, &arrays[i].data, why);
        if (status == QUERN_NO_MEMORY)
            quern_refuse(why, "the device has no %zu bytes for %s", drawn->bytes,
                         spec->family->arrays[i].name);
        if (status)
            return status;
        drawn->data = arrays[i].data;
        QN_TRY(draw_contents(bed->ctx, spec, i, seed, drawn, why));
    }
    return qn_arrays_bind(spec, arrays, bound, why);
}

/* ---- Life ---------------------------------------------------------------------------------- */

static int64_t drawn_bytes(const struct qn_testbed *bed)
{
    int64_t bytes = 0;
    for (int i = 0; i < QUERN_MAX_ARRAYS; i++)
        bytes += (int64_t)bed->drawn[i].bytes;
    return bytes;
}

static int workset_init(struct qn_testbed *bed, size_t memory_bytes, uint64_t seed,
                        struct quern_message *why)
{
    size_t drawn = (size_t)drawn_bytes(bed);
    struct qn_workset_options options = {
        /* 0 would mean no limit was given */
        .memory_bytes = !memory_bytes          ? 0
                        : memory_bytes > drawn ? memory_bytes - drawn
                                               : 1,
        .rotate_bytes = qn_rotate_bytes(&bed->ctx->profile),
        .is_flushable = bed->ctx->backend->kind == QUERN_CUDA,
        .seed = seed,
    };
    return qn_workset_init(&bed->set, &bed->map, &options, why);
}

static int testbed_fill(struct qn_testbed *bed, const struct quern_spec *spec,
                        const struct quern_array *given, size_t memory_bytes, uint64_t seed,
                        struct quern_message *why)
{
    struct quern_array drawn[QUERN_MAX_ARRAYS];
    struct qn_place place;
    if (!given)
        QN_TRY(draw_arrays(bed, spec, seed, drawn, why));
    QN_TRY(qn_regions_init(&bed->map, bed->ctx, spec, given ? given : drawn, why));
    qn_place_bound(&bed->map, &place);
    QN_TRY(qn_image_init(&bed->map, QN_IMAGE_ALL, &bed->before, why));
    QN_TRY(qn_image_init(&bed->map, QN_IMAGE_WRITTEN, &bed->after, why));
    QN_TRY(qn_image_init(&bed->map, QN_IMAGE_WRITTEN, &bed->first, why));
    QN_TRY(qn_image_read(&bed->map, &place, &bed->before, why));
    QN_TRY(qn_expect_create(&bed->map, &bed->before, seed, &bed->expectation, why));
    return workset_init(bed, memory_bytes, seed, why);
}

int qn_testbed_init(struct qn_testbed *bed, struct quern_context *ctx,
                    const struct quern_spec *spec, const struct quern_array *bound,
                    size_t memory_bytes, uint64_t seed, struct quern_message *why)
{
    struct quern_message lost;
    memset(bed, 0, sizeof(*bed));
    bed->ctx = ctx;
    int status = testbed_fill(bed, spec, bound, memory_bytes, seed, why);
    if (status)
        qn_testbed_fini(bed, &lost);
    return status;
}

int qn_testbed_fini(struct qn_testbed *bed, struct quern_message *why)
{
    int status = qn_workset_fini(&bed->set, why);
    qn_expect_destroy(bed->expectation);
    qn_image_fini(&bed->first);
    qn_image_fini(&bed->after);
    qn_image_fini(&bed->before);
    qn_regions_fini(&bed->map);
    for (int i = 0; i < QUERN_MAX_ARRAYS; i++)
        qn_free(bed->ctx, bed->drawn[i].data, bed->drawn[i].bytes, NULL);
    memset(bed, 0, sizeof(*bed));
    return status;
}

int64_t qn_testbed_bytes(const struct qn_testbed *bed)
{
    return drawn_bytes(bed) + qn_workset_bytes(&bed->set);
}

/* ---- Checking a candidate ------------------------------------------------------------------ */

static int candidate_failed(int status)
{
    return status ? QUERN_CHECK_FAILED : QUERN_OK;
}

/* One launch on copy 0 from poisoned outputs; the result is read into bed->after. */
static int run_once(struct qn_testbed *bed, const struct quern_kernel *kernel, int round,
                    enum qn_grid_order order, double *ms, struct quern_message *why)
{
    struct quern_context *ctx = bed->ctx;
    struct quern_array arrays[QUERN_MAX_ARRAYS];
    struct qn_place place;
    qn_workset_place(&bed->set, 0, &place);
    qn_place_arrays(&bed->map, &place, arrays);
    QN_TRY(qn_place_poison(&bed->map, &place, &bed->before, &bed->after, round, why));
    QN_TRY(qn_workset_scratch(&bed->set, why));

    double start = qn_now_ms();
    QN_TRY(candidate_failed(qn_kernel_launch(ctx, kernel, &bed->map.spec, arrays,
                                             bed->set.workspace, NULL, order, why)));
    QN_TRY(candidate_failed(ctx->backend->synchronize(ctx->device, NULL, why)));
    *ms = qn_now_ms() - start;
    return qn_image_read(&bed->map, &place, &bed->after, why);
}

static int check_values(struct qn_testbed *bed, struct quern_message *why)
{
    struct quern_check check;
    QN_TRY(qn_expect_compare(bed->expectation, &bed->after, &check, why));
    if (check.ok)
        return QUERN_OK;
    quern_refuse(why, "%s", check.why);
    return QUERN_CHECK_FAILED;
}

/* Step 4 of the essay; uses up bed->after. */
static int check_untouched(struct qn_testbed *bed, struct quern_message *why)
{
    struct qn_place place;
    qn_workset_place(&bed->set, 0, &place);
    QN_TRY(qn_workset_guards(&bed->set, why));
    return qn_regions_compare(&bed->map, &place, &bed->before, &bed->after, why);
}

static bool has_orders(const struct qn_testbed *bed)
{
    return bed->ctx->backend->kind == QUERN_CPU;
}

/* A run in another order, against the first. A kernel that changed its inputs differs too, but for
 * that reason. */
static int check_order(struct qn_testbed *bed, const struct quern_kernel *kernel,
                       enum qn_grid_order order, struct quern_message *why)
{
    static const char *const names[] = { "in parallel", "forwards", "backwards" };
    struct quern_message where;
    double ms;
    QN_TRY(run_once(bed, kernel, (int)order, order, &ms, why));
    if (qn_images_equal(&bed->map, &bed->first, &bed->after, &where))
        return QUERN_OK;
    if (kernel->variant->is_nondeterministic)
        return check_values(bed, why);
    QN_TRY(check_untouched(bed, why));
    if (has_orders(bed))
        quern_refuse(why, "%.300s differs when blocks run %s: they depend on each other",
                     where.text, names[order]);
    else
        quern_refuse(why, "%.300s differs between runs", where.text);
    return QUERN_CHECK_FAILED;
}

/* Both serial orders, unless they would take too long. Where there are no orders, one repetition,
 * or two of whoever is checked without limits. */
static int check_orders(struct qn_testbed *bed, const struct quern_kernel *kernel, double ms,
                        const struct qn_check_limits *limits, bool *is_complete,
                        struct quern_message *why)
{
    double serial_ms = ms * fmax(bed->ctx->profile.cores, 1);
    bool is_limited = limits->serial_ms > 0;
    *is_complete = !is_limited || (has_orders(bed) && serial_ms <= limits->serial_ms);
    if (!*is_complete && has_orders(bed))
        return QUERN_OK;
    const struct qn_image swapped = bed->first;
    bed->first = bed->after;
    bed->after = swapped;
    QN_TRY(check_order(bed, kernel, QN_GRID_FORWARD, why));
    return *is_complete ? check_order(bed, kernel, QN_GRID_REVERSE, why) : QUERN_OK;
}

static int check_all(struct qn_testbed *bed, const struct quern_kernel *kernel,
                     const struct qn_check_limits *limits, bool *is_complete,
                     struct quern_message *why)
{
    double ms;
    QN_TRY(candidate_failed(
        qn_workset_workspace(&bed->set, (size_t)kernel->plan->workspace_bytes, why)));
    QN_TRY(run_once(bed, kernel, QN_GRID_PARALLEL, QN_GRID_PARALLEL, &ms, why));
    QN_TRY(check_values(bed, why));
    if (limits->slow_ms > 0 && ms > limits->slow_ms) {
        quern_refuse(why, "slow: its first run took %.3g ms, at most %.3g ms is worth more", ms,
                     limits->slow_ms);
        return QUERN_CHECK_FAILED;
    }
    QN_TRY(check_orders(bed, kernel, ms, limits, is_complete, why));
    return check_untouched(bed, why);
}

int qn_testbed_check(struct qn_testbed *bed, const struct quern_kernel *kernel,
                     const struct qn_check_limits *limits, bool *is_complete,
                     struct quern_message *why)
{
    struct quern_message lost;
    int status = check_all(bed, kernel, limits, is_complete, why);
    if (status != QUERN_CHECK_FAILED)
        return status;
    QN_TRY(qn_workset_mend(&bed->set, &bed->before, &lost));
    QN_TRY(qn_workset_reset(&bed->set, &lost));
    return QUERN_CHECK_FAILED;
}
