/* In whose context a call works.
 *
 *     stream given?  its context, which must be of our device
 *     else           the current context, if it is of our device
 *     else           the device's primary context, retained when first needed
 *
 * The runtime API and PyTorch use the primary context, so streams and memory are shared with them.
 * What is not current already is pushed for the length of the call: the caller's stack of contexts
 * comes back as it was. A launch passes here: two or three driver calls of 20 ns, no lock once the
 * primary context is there.
 *
 * The primary context is retained late since making one takes 0.2 s: `quern doctor` and a build for
 * the device need none. */
#include "jit/cuda/cuda_device.h"

#include <stdio.h>

/* Handles that name the default streams: of the current context, not objects of one. */
static bool is_default_stream(const void *stream)
{
    return (uintptr_t)stream <= 2; /* NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD */
}

int qn_cuda_device_fail(const struct qn_device *device, const char *call, int code,
                        struct quern_message *why)
{
    return qn_cuda_fail(device->cu, device->subject, call, code, why);
}

static int primary_get(struct qn_device *device, struct cu_context **context,
                       struct quern_message *why)
{
    int code = 0;

    *context = atomic_load_explicit(&device->primary, memory_order_acquire);
    if (*context)
        return 0;
    pthread_mutex_lock(&device->lock);
    *context = atomic_load_explicit(&device->primary, memory_order_relaxed);
    if (!*context)
        code = device->cu->primary_retain(context, device->ordinal);
    if (!code)
        atomic_store_explicit(&device->primary, *context, memory_order_release);
    pthread_mutex_unlock(&device->lock);
    return code ? qn_cuda_device_fail(device, "cuDevicePrimaryCtxRetain", code, why) : 0;
}

void qn_cuda_context_fini(struct qn_device *device)
{
    if (atomic_load(&device->primary))
        device->cu->primary_release(device->ordinal);
}

static int push(struct qn_device *device, struct cu_context *context, struct qn_cuda_scope *scope,
                struct quern_message *why)
{
    int code = device->cu->context_push(context);

    scope->is_pushed = !code;
    return code ? qn_cuda_device_fail(device, "cuCtxPushCurrent", code, why) : 0;
}

int qn_cuda_enter(struct qn_device *device, struct qn_cuda_scope *scope, struct quern_message *why)
{
    struct cu_context *context = NULL;
    int current;

    scope->is_pushed = false;
    if (!device->cu)
        return QN_CUDA_FAIL(DEVICE, why, "device=cuda: was opened to compile only");
    if (!device->cu->context_get(&context) && context && !device->cu->context_device(&current) &&
        current == device->ordinal)
        return 0;
    int status = primary_get(device, &context, why);
    return status ? status : push(device, context, scope, why);
}

static int stream_fail(const struct qn_device *device, const void *stream, const char *call,
                       int code, struct quern_message *why)
{
    char subject[64];

    snprintf(subject, sizeof subject, "stream=%p", stream);
    return qn_cuda_fail(device->cu, subject, call, code, why);
}

/* The stream's context is current: is it of our device? */
static int check_stream_device(struct qn_device *device, void *stream, struct quern_message *why)
{
    int current;
    int code = device->cu->context_device(&current);

    if (code)
        return stream_fail(device, stream, "cuCtxGetDevice", code, why);
    if (current == device->ordinal)
        return 0;
    return quern_refuse(why, "stream=%p: is a stream of cuda:%d: must be one of cuda:%d", stream,
                        current, device->ordinal);
}

/* Streams of green contexts have no plain one, and a capture may hide it: what is wrong with such a
 * stream, the call itself will say. */
static bool is_context_hidden(int code)
{
    return code == CU_NOT_SUPPORTED || code == CU_INVALID_CONTEXT ||
           (code >= CU_STREAM_CAPTURE_UNSUPPORTED && code <= CU_STREAM_CAPTURE_WRONG_THREAD);
}

int qn_cuda_enter_stream(struct qn_device *device, void *stream, struct qn_cuda_scope *scope,
                         struct quern_message *why)
{
    struct cu_context *context = NULL, *current = NULL;

    if (is_default_stream(stream) || !device->cu)
        return qn_cuda_enter(device, scope, why);
    scope->is_pushed = false;
    int status = 0, code = device->cu->stream_context(stream, &context);
    if (is_context_hidden(code))
        return qn_cuda_enter(device, scope, why);
    if (code)
        return stream_fail(device, stream, "cuStreamGetCtx", code, why);
    if (device->cu->context_get(&current) || current != context)
        status = push(device, context, scope, why);
    if (!status)
        status = check_stream_device(device, stream, why);
    if (status)
        qn_cuda_leave(device, scope);
    return status;
}

void qn_cuda_leave(struct qn_device *device, const struct qn_cuda_scope *scope)
{
    struct cu_context *context;

    if (scope->is_pushed)
        device->cu->context_pop(&context);
}

/* ---- Streams ------------------------------------------------------------------------------- */

int qn_cuda_synchronize(struct qn_device *device, void *stream, struct quern_message *why)
{
    struct qn_cuda_scope scope;
    int status = qn_cuda_enter_stream(device, stream, &scope, why);

    if (status)
        return status;
    int code = device->cu->stream_synchronize(stream);
    qn_cuda_leave(device, &scope);
    return code ? qn_cuda_device_fail(device, "cuStreamSynchronize", code, why) : 0;
}

/* The legacy default stream cannot be captured, but is unusable while a stream that synchronises
 * with it is. */
int qn_cuda_is_capturing(struct qn_device *device, void *stream)
{
    struct qn_cuda_scope scope;
    struct quern_message why;
    int capture = 0;

    if (qn_cuda_enter_stream(device, stream, &scope, &why))
        return 0;
    int code = device->cu->stream_is_capturing(stream, &capture);
    qn_cuda_leave(device, &scope);
    return code ? code == CU_STREAM_CAPTURE_IMPLICIT : capture != 0;
}
