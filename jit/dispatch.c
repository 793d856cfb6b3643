/* Dispatch: from a call to a kernel, and from a kernel to a launch.
 *
 *     quern_run(spec, arrays)
 *        1. check and bind the arrays            qn_arrays_bind(); QUERN_CHECK=1: qn_call_check()
 *        2. bucket and hash                      a few multiplications
 *        3. the thread's recent kernels          no lock: found here when warm
 *        4. the context's table                  a lock
 *        5. qn_build()                           once a bucket
 *        6. bind the plan and launch             arithmetic only
 *
 * A recent entry is good while the context's epoch is the one it was remembered in: tuning moves
 * the epoch, so every thread picks up the new winner at its next call. Kernels are never freed
 * before the context, since a thread may be launching one; a replaced kernel goes to the retired
 * list.
 *
 * Kernels that quern_prepare() makes with a variant or config of the caller's are in a table of
 * their own, by what the request came to: quern_run() never finds them, the same request does.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/build.h"
#include "jit/device.h"
#include "jit/indices.h"

/* ---- The context's table ------------------------------------------------------------------- */

static struct quern_kernel **chain_of(struct quern_context *ctx, uint64_t hash)
{
    return &ctx->kernels[hash % QN_KERNEL_CHAINS];
}

static struct quern_kernel **given_chain_of(struct quern_context *ctx, uint64_t hash)
{
    return &ctx->given[hash % QN_KERNEL_CHAINS];
}

static struct quern_kernel *table_find(struct quern_context *ctx, const struct qn_bucket *bucket,
                                       uint64_t hash)
{
    struct quern_kernel *kernel = *chain_of(ctx, hash);
    while (kernel && !qn_bucket_equal(&kernel->bucket, bucket))
        kernel = kernel->next;
    return kernel;
}

/* Of two threads that built the same bucket, the first one's kernel is everybody's. One whose build
 * began before the last refresh may not be the best any more: it serves its own call only. */
static struct quern_kernel *table_put(struct quern_context *ctx, struct quern_kernel *kernel,
                                      uint64_t hash, unsigned epoch)
{
    pthread_mutex_lock(&ctx->lock);
    struct quern_kernel *winner = table_find(ctx, &kernel->bucket, hash);
    if (!winner && atomic_load(&ctx->epoch) != epoch) {
        kernel->next = ctx->retired;
        ctx->retired = winner = kernel;
    } else if (!winner) {
        kernel->next = *chain_of(ctx, hash);
        *chain_of(ctx, hash) = winner = kernel;
    }
    pthread_mutex_unlock(&ctx->lock);
    if (winner != kernel)
        qn_kernel_destroy(ctx, kernel);
    return winner;
}

void qn_kernels_refresh(struct quern_context *ctx, const struct qn_bucket *bucket)
{
    pthread_mutex_lock(&ctx->lock);
    struct quern_kernel **link = chain_of(ctx, qn_bucket_hash(bucket));
    while (*link && !qn_bucket_equal(&(*link)->bucket, bucket))
        link = &(*link)->next;
    struct quern_kernel *old = *link;
    if (old) {
        *link = old->next;
        old->next = ctx->retired;
        ctx->retired = old;
    }
    atomic_fetch_add(&ctx->epoch, 1);
    pthread_mutex_unlock(&ctx->lock);
}

static void chain_destroy(struct quern_context *ctx, struct quern_kernel *kernel)
{
    while (kernel) {
        struct quern_kernel *next = kernel->next;
        qn_kernel_destroy(ctx, kernel);
        kernel = next;
    }
}

void qn_kernels_fini(struct quern_context *ctx)
{
    for (int i = 0; i < QN_KERNEL_CHAINS; i++) {
        chain_destroy(ctx, ctx->kernels[i]);
        chain_destroy(ctx, ctx->given[i]);
    }
    chain_destroy(ctx, ctx->retired);
}

/* ---- Finding a kernel ---------------------------------------------------------------------- */

/* A miss while the call's stream is being captured: building would allocate, load and wait. */
static int check_capture(struct quern_context *ctx, const struct qn_bucket *bucket,
                         const struct quern_call *call)
{
    char text[512];
    if (!call || !ctx->backend->is_capturing(ctx->device, call->stream))
        return QUERN_OK;
    quern_spec_text(&bucket->spec, text, sizeof(text));
    return qn_fail(ctx, QUERN_INVALID,
                   "stream=%p: is being captured, and %s is not prepared: call quern_prepare() "
                   "first",
                   call->stream, text);
}

static int build_bucket(struct quern_context *ctx, const struct qn_bucket *bucket, uint64_t hash,
                        unsigned epoch, const struct quern_call *call, struct quern_kernel **kernel)
{
    struct quern_profile profile;
    struct quern_kernel *built;
    pthread_mutex_lock(&ctx->lock);
    *kernel = table_find(ctx, bucket, hash);
    pthread_mutex_unlock(&ctx->lock);
    if (*kernel)
        return QUERN_OK;
    QN_TRY(check_capture(ctx, bucket, call));
    QN_TRY(qn_profile_for(ctx, &ctx->target, &profile));
    const struct qn_build_request request = { bucket, &ctx->target, &profile, NULL,
                                              NULL,   true,         false };
    QN_TRY(qn_build(ctx, &request, &built, NULL));
    *kernel = table_put(ctx, built, hash, epoch);
    return QUERN_OK;
}

/* spec was checked, arrays are NULL or the caller's; call is NULL where none is made. */
static int find_kernel(struct quern_context *ctx, const struct quern_spec *spec,
                       const struct quern_array *arrays, const struct quern_call *call,
                       struct quern_kernel **kernel)
{
    struct qn_thread *thread = qn_thread_get(ctx);
    struct qn_bucket bucket;
    unsigned epoch = atomic_load_explicit(&ctx->epoch, memory_order_acquire);

    if (!thread)
        return QUERN_NO_MEMORY;
    qn_bucket_make(spec, arrays, &bucket);
    uint64_t hash = qn_bucket_hash(&bucket);
    struct qn_recent *recent = &thread->recent[hash & (QN_RECENT - 1)];
    if (recent->kernel && recent->hash == hash && recent->epoch == epoch &&
        qn_bucket_equal(&recent->bucket, &bucket)) {
        *kernel = recent->kernel;
        return QUERN_OK;
    }
    struct quern_kernel *found;
    QN_TRY(build_bucket(ctx, &bucket, hash, epoch, call, &found));
    recent->hash = hash;
    recent->epoch = epoch;
    recent->bucket = bucket;
    recent->kernel = *kernel = found;
    return QUERN_OK;
}

int quern_dispatch(struct quern_context *ctx, const struct quern_spec *spec,
                   const struct quern_array *arrays, struct quern_kernel **kernel)
{
    QN_TRY(quern_spec_validate(ctx, spec));
    QN_TRY(qn_require(ctx, "kernel", kernel));
    return find_kernel(ctx, spec, arrays, NULL, kernel);
}

/* ---- With a variant or config of the caller's ---------------------------------------------- */

/* Under the lock. */
static struct quern_kernel *given_find(struct quern_context *ctx, const struct qn_bucket *bucket,
                                       const struct qn_choice *choice)
{
    struct quern_kernel *kernel = *given_chain_of(ctx, qn_bucket_hash(bucket));
    size_t knobs = (size_t)choice->variant->knob_count * sizeof(choice->config[0]);
    while (kernel &&
           (!qn_bucket_equal(&kernel->bucket, bucket) || kernel->variant != choice->variant ||
            kernel->report.config_from != (int)choice->from ||
            memcmp(kernel->config, choice->config, knobs)))
        kernel = kernel->next;
    return kernel;
}

/* Keeps `built`, or gives the one that is there already. */
static struct quern_kernel *given_put(struct quern_context *ctx, struct quern_kernel *built)
{
    struct quern_kernel **chain = given_chain_of(ctx, qn_bucket_hash(&built->bucket));
    struct qn_choice choice = { .variant = built->variant,
                                .from = (enum quern_config_from)built->report.config_from };
    memcpy(choice.config, built->config, sizeof(choice.config));
    pthread_mutex_lock(&ctx->lock);
    struct quern_kernel *kept = given_find(ctx, &built->bucket, &choice);
    if (!kept) {
        built->next = *chain;
        *chain = kept = built;
    }
    pthread_mutex_unlock(&ctx->lock);
    if (kept != built)
        qn_kernel_destroy(ctx, built);
    return kept;
}

static int prepare_given(struct quern_context *ctx, const struct quern_request *request,
                         struct quern_kernel **kernel)
{
    struct quern_profile profile;
    struct qn_bucket bucket;
    struct qn_choice choice;
    struct quern_kernel *found;
    QN_TRY(qn_profile_for(ctx, &ctx->target, &profile));
    qn_bucket_make(request->spec, request->arrays, &bucket);
    const struct qn_build_request build = {
        &bucket, &ctx->target, &profile, request->variant, request->config, true, false
    };
    QN_TRY(qn_choose(ctx, &build, &choice));
    pthread_mutex_lock(&ctx->lock);
    found = given_find(ctx, &bucket, &choice);
    pthread_mutex_unlock(&ctx->lock);
    if (!found) {
        QN_TRY(qn_build(ctx, &build, &found, NULL));
        found = given_put(ctx, found);
    }
    *kernel = found;
    return QUERN_OK;
}

/* ---- Preparing ----------------------------------------------------------------------------- */

int qn_request_check(struct quern_context *ctx, const struct quern_request *request)
{
    QN_TRY(qn_require(ctx, "request", request));
    if (request->size != sizeof(*request))
        return qn_fail(ctx, QUERN_INVALID, "request.size=%zu: must be %zu (QUERN_REQUEST_INIT)",
                       request->size, sizeof(*request));
    return quern_spec_validate(ctx, request->spec);
}

int quern_prepare(struct quern_context *ctx, const struct quern_request *request,
                  struct quern_kernel **kernel)
{
    QN_TRY(qn_request_check(ctx, request));
    QN_TRY(qn_require(ctx, "kernel", kernel));
    if (request->target)
        return qn_fail(ctx, QUERN_INVALID,
                       "request.target=%s: must be NULL: kernels are prepared "
                       "for the context's device",
                       request->target);
    if (request->variant || request->config)
        return prepare_given(ctx, request, kernel);
    return find_kernel(ctx, request->spec, request->arrays, NULL, kernel);
}

void quern_kernel_report(const struct quern_kernel *kernel, struct quern_report *report)
{
    if (kernel && report)
        *report = kernel->report;
}

size_t quern_kernel_workspace(const struct quern_kernel *kernel)
{
    return kernel ? (size_t)kernel->plan->workspace_bytes : 0;
}

/* ---- Launching ----------------------------------------------------------------------------- */

void qn_kernel_bind(const struct quern_context *ctx, const struct quern_kernel *kernel,
                    const struct quern_spec *spec, const struct quern_array *bound, void *workspace,
                    struct quern_launch *launch)
{
    const struct quern_binding binding = { spec, bound, &ctx->profile, kernel->config, workspace };
    kernel->variant->bind(&binding, launch);
}

int qn_kernel_launch(struct quern_context *ctx, const struct quern_kernel *kernel,
                     const struct quern_spec *spec, const struct quern_array *bound,
                     void *workspace, void *stream, enum qn_grid_order order,
                     struct quern_message *why)
{
    struct quern_launch launch;
    qn_kernel_bind(ctx, kernel, spec, bound, workspace, &launch);
    return ctx->backend->launch(ctx->device, kernel->plan, kernel->functions, &launch, stream,
                                order, why);
}

static int check_workspace(struct quern_context *ctx, const struct quern_kernel *kernel,
                           const struct quern_call *call, struct quern_message *why)
{
    size_t needed = (size_t)kernel->plan->workspace_bytes;
    if (call->workspace_bytes < needed)
        return quern_refuse(why, "workspace_bytes=%zu: must be at least %zu", call->workspace_bytes,
                            needed);
    if ((uintptr_t)call->workspace % QN_MEMORY_ALIGN)
        return quern_refuse(why, "workspace=%p: must be a multiple of %d", call->workspace,
                            QN_MEMORY_ALIGN);
    return needed ? qn_pointer_check(ctx, "workspace", call->workspace, why) : QUERN_OK;
}

/* For the length of one call, from the hook, else from the backend: that is nothing to do while a
 * graph is captured. A hook may know how. */
static int get_workspace(struct quern_context *ctx, size_t bytes, void *stream, void **data)
{
    struct quern_message why;
    if (!ctx->options.alloc && ctx->backend->is_capturing(ctx->device, stream))
        return qn_fail(
            ctx, QUERN_INVALID,
            "workspace=NULL: stream=%p is being captured, so workspace must be given, of "
            "workspace_bytes=%zu",
            stream, bytes);
    int status = qn_memory_get(ctx, bytes, stream, data, &why);
    return status ? qn_fail(ctx, status, "workspace: %s", why.text) : QUERN_OK;
}

/* bound arrays; the workspace is the call's, else got for the length of this call. */
static int launch_bound(struct quern_context *ctx, struct quern_kernel *kernel,
                        const struct quern_spec *spec, const struct quern_array *bound,
                        const struct quern_call *call)
{
    size_t bytes = (size_t)kernel->plan->workspace_bytes;
    void *stream = call ? call->stream : NULL;
    void *workspace = call ? call->workspace : NULL, *owned = NULL;
    struct quern_message why;

    int status = workspace ? check_workspace(ctx, kernel, call, &why) : QUERN_OK;
    if (status)
        return qn_fail_why(ctx, status, &why);
    if (!workspace && bytes) {
        QN_TRY(get_workspace(ctx, bytes, stream, &owned));
        workspace = owned;
    }
    status = qn_kernel_launch(ctx, kernel, spec, bound, workspace, stream, QN_GRID_PARALLEL, &why);
    qn_free(ctx, owned, bytes, stream);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

int qn_kernel_accepts(const struct quern_kernel *kernel, const struct quern_spec *spec,
                      const struct quern_array *arrays, struct quern_message *why)
{
    struct qn_bucket bucket;
    char text[400];
    qn_bucket_make(spec, arrays, &bucket);
    const struct quern_family *family = kernel->family;
    if (bucket.spec.family != family || memcmp(bucket.spec.values, kernel->bucket.spec.values,
                                               (size_t)family->param_count * sizeof(int64_t))) {
        quern_spec_text(spec, text, sizeof(text));
        return quern_refuse(why, "spec=%s: not in the kernel's bucket", text);
    }
    for (int i = 0; i < family->array_count; i++) {
        if (bucket.alignment[i] < kernel->bucket.alignment[i])
            return quern_refuse(why,
                                "%s: its base and strides are multiples of %d bytes, and the "
                                "kernel was prepared for multiples of %d: prepare with the arrays",
                                family->arrays[i].name, bucket.alignment[i],
                                kernel->bucket.alignment[i]);
    }
    return QUERN_OK;
}

/* qn_spec_check(), once for calls in a row that have the same spec. */
static int check_spec(struct quern_context *ctx, const struct quern_spec *spec,
                      struct quern_message *why)
{
    struct qn_thread *thread = qn_thread_get(ctx);
    if (thread && spec && spec->family && thread->checked.family == spec->family &&
        !memcmp(thread->checked.values, spec->values,
                (size_t)spec->family->param_count * sizeof(spec->values[0])))
        return QUERN_OK;
    QN_TRY(qn_spec_check(spec, why));
    if (thread) {
        thread->checked.family = spec->family;
        memcpy(thread->checked.values, spec->values,
               (size_t)spec->family->param_count * sizeof(spec->values[0]));
    }
    return QUERN_OK;
}

int quern_launch(struct quern_context *ctx, struct quern_kernel *kernel,
                 const struct quern_spec *spec, const struct quern_array *arrays,
                 const struct quern_call *call)
{
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_message why;
    QN_TRY(qn_require(ctx, "kernel", kernel));
    int status = check_spec(ctx, spec, &why);
    if (!status)
        status = qn_call_bind(ctx, spec, arrays, bound, &why);
    if (!status)
        status = qn_kernel_accepts(kernel, spec, arrays, &why);
    if (!status && ctx->is_checking)
        status = qn_call_check(ctx, spec, bound, call ? call->stream : NULL, &why);
    return status ? qn_fail_why(ctx, status, &why) : launch_bound(ctx, kernel, spec, bound, call);
}

int quern_run(struct quern_context *ctx, const struct quern_spec *spec,
              const struct quern_array *arrays, const struct quern_call *call)
{
    struct quern_array bound[QUERN_MAX_ARRAYS];
    struct quern_kernel *kernel;
    struct quern_message why;
    if (!ctx)
        return QUERN_INVALID;
    int status = check_spec(ctx, spec, &why);
    if (!status)
        status = qn_call_bind(ctx, spec, arrays, bound, &why);
    if (!status && ctx->is_checking)
        status = qn_call_check(ctx, spec, bound, call ? call->stream : NULL, &why);
    if (status)
        return qn_fail_why(ctx, status, &why);
    QN_TRY(find_kernel(ctx, spec, arrays, call, &kernel));
    return launch_bound(ctx, kernel, spec, bound, call);
}
