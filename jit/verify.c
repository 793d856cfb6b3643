/* quern_verify(): one kernel, once, on the caller's own arrays.
 *
 *     before image -> expectation -> poison the outputs -> launch -> after image -> verdict
 *
 * Beside the values it is checked that no byte but those of output elements changed within the
 * arrays' spans: inputs and the padding between rows. What lies outside the spans is the caller's
 * to guard. Inputs are never written, not even with what they hold: they may be mapped read-only.
 */
#include <stdio.h>
#include <stdlib.h>

#include "jit/check.h"

struct verification {
    struct qn_regions map;
    struct qn_place place;
    struct qn_image before, after;
    struct qn_expectation *expectation;
};

/* spec and arrays were checked. */
static int verify_prepare(struct quern_context *ctx, struct verification *work,
                          const struct quern_spec *spec, const struct quern_array *bound,
                          uint64_t seed, struct quern_message *why)
{
    QN_TRY(qn_regions_init(&work->map, ctx, spec, bound, why));
    qn_place_bound(&work->map, &work->place);
    QN_TRY(qn_image_init(&work->map, QN_IMAGE_ALL, &work->before, why));
    QN_TRY(qn_image_init(&work->map, QN_IMAGE_WRITTEN, &work->after, why));
    QN_TRY(qn_image_read(&work->map, &work->place, &work->before, why));
    return qn_expect_create(&work->map, &work->before, seed, &work->expectation, why);
}

static int verify_run(struct quern_context *ctx, struct verification *work,
                      struct quern_kernel *kernel, const struct quern_array *arrays,
                      struct quern_message *why)
{
    QN_TRY(qn_place_poison(&work->map, &work->place, &work->before, &work->after, 0, why));
    int status = quern_launch(ctx, kernel, &work->map.spec, arrays, NULL);
    if (status) {
        quern_refuse(why, "%s", quern_errmsg(ctx));
        struct quern_message lost;
        qn_image_copy(&work->map, &work->before, &work->after);
        qn_image_write(&work->map, &work->place, &work->after, &lost);
        return status;
    }
    QN_TRY(ctx->backend->synchronize(ctx->device, NULL, why));
    return qn_image_read(&work->map, &work->place, &work->after, why);
}

/* The verdict, and that nothing but elements of outputs has changed. */
static int verify_judge(struct verification *work, struct quern_check *check,
                        struct quern_message *why)
{
    struct quern_check verdict;
    QN_TRY(qn_expect_compare(work->expectation, &work->after, &verdict, why));
    int status = qn_regions_compare(&work->map, &work->place, &work->before, &work->after, why);
    if (status && status != QUERN_CHECK_FAILED)
        return status;
    if (status && verdict.ok) {
        verdict.ok = 0;
        snprintf(verdict.why, sizeof(verdict.why), "%.255s", why->text);
    }
    *check = verdict;
    return QUERN_OK;
}

int quern_verify(struct quern_context *ctx, struct quern_kernel *kernel,
                 const struct quern_spec *spec, const struct quern_array *arrays, uint64_t seed,
                 struct quern_check *check)
{
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_message why = { "" };
    if (!ctx)
        return QUERN_INVALID;
    if (!kernel || !spec || !check)
        return qn_fail(ctx, QUERN_INVALID, "%s=NULL: must be given",
                       !kernel ? "kernel"
                       : !spec ? "spec"
                               : "check");
    int status = qn_spec_check(spec, &why);
    if (!status)
        status = qn_call_bind(ctx, spec, arrays, bound, &why);
    if (!status)
        status = qn_kernel_accepts(kernel, spec, arrays, &why);
    if (status)
        return qn_fail_why(ctx, status, &why);
    struct verification *work = calloc(1, sizeof(*work));
    if (!work)
        return qn_fail(ctx, QUERN_NO_MEMORY, "out of memory");
    status = verify_prepare(ctx, work, spec, bound, seed, &why);
    if (!status)
        status = verify_run(ctx, work, kernel, arrays, &why);
    if (!status)
        status = verify_judge(work, check, &why);
    qn_expect_destroy(work->expectation);
    qn_image_fini(&work->after);
    qn_image_fini(&work->before);
    qn_regions_fini(&work->map);
    free(work);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}
