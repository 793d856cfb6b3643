/* Devices: a context runs on one, and compiles for any kind that this build has a backend for.
 *
 *     backends[]   preferred first: the default device is the first that opens
 *     ctx->device  what runs
 *     ctx->compilers[kind]   the other kinds' backends, opened without a device when first asked
 *                            for
 *
 * A new backend is one more line in the table.
 *
 * Which profile is planned with for a target:
 *
 *     options.profile named   that one, if a device of that profile executes the target; else an
 *                             error: what was asked for is never passed over in silence
 *     the device's own        if the target is of the device's kind and architecture
 *     any other target        the shipped profile that the target stands for
 */
#include "jit/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/profile.h"
#include "jit/target.h"

static const struct qn_backend *const backends[] = { &qn_backend_cuda, &qn_backend_cpu };
enum { BACKEND_COUNT = sizeof(backends) / sizeof(backends[0]) };

/* Kinds by name, also those that this build lacks. */
static const char *const kind_names[QN_DEVICE_KINDS] = {
    [QUERN_CPU] = "cpu", [QUERN_CUDA] = "cuda"
};

static const struct qn_backend *backend_of(enum quern_device_kind kind)
{
    for (int i = 0; i < BACKEND_COUNT; i++) {
        if (backends[i]->kind == kind)
            return backends[i];
    }
    return NULL;
}

/* "cuda:1" -> the kind and 1; the ordinal of a bare name is 0. */
static int parse_device(const char *name, enum quern_device_kind *kind, int *ordinal,
                        struct quern_message *why)
{
    size_t length = strcspn(name, ":");
    for (int k = 0; k < QN_DEVICE_KINDS; k++) {
        if (strlen(kind_names[k]) != length || strncmp(kind_names[k], name, length))
            continue;
        char *end = NULL;
        long number = name[length] ? strtol(name + length + 1, &end, 10) : 0;
        bool is_number = !name[length] || (end != name + length + 1 && !*end);
        if (!is_number || number < 0 || number > 1023 || (k == QUERN_CPU && name[length]))
            break;
        *kind = (enum quern_device_kind)k;
        *ordinal = (int)number;
        return QUERN_OK;
    }
    return quern_refuse(why, "device=%s: must be cpu, cuda or cuda:N", name);
}

static int open_backend(struct quern_context *ctx, const struct qn_backend *backend, int ordinal,
                        struct qn_device **device, struct quern_message *why)
{
    struct qn_backend_options options;
    qn_backend_options(ctx, &options);
    options.ordinal = ordinal;
    return backend->open(&options, device, why);
}

static int open_named(struct quern_context *ctx, const char *name)
{
    enum quern_device_kind kind = QUERN_CPU;
    struct quern_message why;
    int ordinal = 0;
    if (parse_device(name, &kind, &ordinal, &why))
        return qn_fail_why(ctx, QUERN_INVALID, &why);
    ctx->backend = backend_of(kind);
    ctx->ordinal = ordinal;
    if (!ctx->backend)
        return qn_fail(ctx, QUERN_DEVICE, "device=%s: this build has no backend for it", name);
    int status = open_backend(ctx, ctx->backend, ordinal, &ctx->device, &why);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

/* A machine without a driver is an ordinary one; a driver that does not serve is a surprise to
 * whoever then runs on the CPU. */
static void log_passed_over(struct quern_context *ctx, const struct quern_message *why,
                            const char *next)
{
    bool is_ordinary = strstr(why->text, "no NVIDIA driver") != NULL;
    qn_log(ctx, is_ordinary ? QUERN_LOG_INFO : QUERN_LOG_WARN, "%s; trying device=%s", why->text,
           next);
}

static int open_first(struct quern_context *ctx)
{
    struct quern_message why;
    int status = QUERN_DEVICE;
    for (int i = 0; i < BACKEND_COUNT && status; i++) {
        ctx->backend = backends[i];
        status = open_backend(ctx, ctx->backend, 0, &ctx->device, &why);
        if (status && i + 1 < BACKEND_COUNT)
            log_passed_over(ctx, &why, backends[i + 1]->name);
    }
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

/* ---- Profiles ------------------------------------------------------------------------------ */

/* Code for sm_80 runs on every device of the same generation from there on, sm_90a's on none but
 * sm_90. A CPU's profile says nothing of its instruction set. */
static bool is_fitting(const struct quern_profile *profile, const struct quern_target *target)
{
    if (profile->kind != target->kind)
        return false;
    if (target->kind == QUERN_CPU || profile->sm == target->sm)
        return true;
    return !target->sm_suffix && profile->sm / 10 == target->sm / 10 && profile->sm > target->sm;
}

static int refuse_profile(struct quern_context *ctx, const struct quern_profile *profile,
                          const struct quern_target *target)
{
    char text[96], made_for[32] = "cpu";
    qn_target_format(target, text, sizeof(text));
    if (profile->kind == QUERN_CUDA)
        snprintf(made_for, sizeof(made_for), "sm_%d", profile->sm);
    return qn_fail(ctx, QUERN_INVALID, "device-profile=%s: is for %s, target=%s", profile->name,
                   made_for, text);
}

int qn_profile_for(struct quern_context *ctx, const struct quern_target *target,
                   struct quern_profile *profile)
{
    if (ctx->options.profile) {
        *profile = ctx->named;
        return is_fitting(profile, target) ? QUERN_OK : refuse_profile(ctx, profile, target);
    }
    if (target->kind == ctx->target.kind && target->sm == ctx->target.sm)
        *profile = ctx->profile;
    else
        qn_profile_of_target(target, profile);
    return QUERN_OK;
}

/* A named profile that does not fit the device may be meant for another target. */
static int profile_choose(struct quern_context *ctx)
{
    struct quern_message why;
    if (!ctx->options.profile)
        return QUERN_OK;
    if (qn_profile_get(ctx->options.profile, &ctx->named, &why))
        return qn_fail_why(ctx, QUERN_INVALID, &why);
    if (is_fitting(&ctx->named, &ctx->target))
        ctx->profile = ctx->named;
    return QUERN_OK;
}

/* ---- Opening ------------------------------------------------------------------------------- */

int qn_device_open(struct quern_context *ctx)
{
    QN_TRY(ctx->options.device ? open_named(ctx, ctx->options.device) : open_first(ctx));
    ctx->backend->describe(ctx->device, &ctx->target, &ctx->profile);
    return profile_choose(ctx);
}

void qn_devices_close(struct quern_context *ctx)
{
    if (ctx->device)
        ctx->backend->close(ctx->device);
    for (int k = 0; k < QN_DEVICE_KINDS; k++) {
        if (ctx->compilers[k])
            backend_of((enum quern_device_kind)k)->close(ctx->compilers[k]);
    }
}

int qn_device_for(struct quern_context *ctx, const struct quern_target *target,
                  const struct qn_backend **backend, struct qn_device **device)
{
    struct quern_message why;
    int status = QUERN_OK;
    bool is_own = target->kind == ctx->backend->kind;
    *backend = is_own ? ctx->backend : backend_of(target->kind);
    if (!*backend) {
        char text[96];
        qn_target_format(target, text, sizeof(text));
        return qn_fail(ctx, QUERN_UNSUPPORTED, "target=%s: this build has no backend for it", text);
    }
    if (is_own) {
        *device = ctx->device;
        return QUERN_OK;
    }
    pthread_mutex_lock(&ctx->lock);
    struct qn_device **compiler = &ctx->compilers[target->kind];
    if (!*compiler)
        status = open_backend(ctx, *backend, -1, compiler, &why);
    *device = *compiler;
    pthread_mutex_unlock(&ctx->lock);
    return status ? qn_fail_why(ctx, status, &why) : QUERN_OK;
}

void qn_devices_doctor(struct quern_context *ctx,
                       void (*fact)(void *user, const char *section, const char *name,
                                    const char *value),
                       void *user)
{
    struct qn_backend_options options;
    qn_backend_options(ctx, &options);
    for (int k = 0; k < QN_DEVICE_KINDS; k++) {
        const struct qn_backend *backend = backend_of((enum quern_device_kind)k);
        if (backend) {
            backend->doctor(&options, backend == ctx->backend ? ctx->device : NULL, fact, user);
        } else {
            fact(user, kind_names[k], "usable", "no");
            fact(user, kind_names[k], "reason", "this build has no backend for it");
        }
    }
}
