/* Device memory: taken and given back in stream order, copied, filled, recognised.
 *
 * Memory comes from the device's default pool, whose settings belong to the process. On a stream it
 * is ready for what follows there, and free() lets it go after what came before; nothing waits.
 * Whoever takes memory on the default stream and uses it on another synchronises in between, as
 * quern_memory_alloc() does. free() without a stream is ordered after the default stream and those
 * that synchronise with it: work on others must have ended.
 *
 * A copy between any two of host and device is one call, since addresses are unified; it has ended
 * when copy() returns. A device without pools (vGPU, old ones) gets plain allocations. */
#include "jit/cuda/cuda_device.h"

/* NULL while the stream is captured: memory of a graph is no memory of a launch. */
void *qn_cuda_alloc(struct qn_device *device, size_t bytes, void *stream)
{
    struct qn_cuda_scope scope;
    struct quern_message why;
    uint64_t data = 0;

    if (qn_cuda_is_capturing(device, stream) || qn_cuda_enter_stream(device, stream, &scope, &why))
        return NULL;
    const struct qn_cuda_driver *cu = device->cu;
    int code = device->has_pools ? cu->memory_alloc_async(&data, bytes, stream)
                                 : cu->memory_alloc(&data, bytes);
    qn_cuda_leave(device, &scope);
    return code ? NULL : (void *)(uintptr_t)data;
}

void qn_cuda_free(struct qn_device *device, void *data, size_t bytes, void *stream)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    (void)bytes;
    if (!data || qn_cuda_enter_stream(device, stream, &scope, &why))
        return;
    if (device->has_pools)
        device->cu->memory_free_async((uintptr_t)data, stream);
    else
        device->cu->memory_free((uintptr_t)data);
    qn_cuda_leave(device, &scope);
}

static int status_only(const struct qn_device *device, const char *call, int code)
{
    struct quern_message why;

    return code ? qn_cuda_device_fail(device, call, code, &why) : 0;
}

/* The driver may return before a copy from pageable memory has arrived, and before one within the
 * device has begun: hence the wait. */
int qn_cuda_copy(struct qn_device *device, void *to, const void *from, size_t bytes, void *stream)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    if (!bytes)
        return 0;
    int status = qn_cuda_enter_stream(device, stream, &scope, &why);
    if (status)
        return status;
    int code = device->cu->memory_copy((uintptr_t)to, (uintptr_t)from, bytes, stream);
    if (!code)
        code = device->cu->stream_synchronize(stream);
    qn_cuda_leave(device, &scope);
    return status_only(device, "cuMemcpyAsync", code);
}

/* Ordered by the stream, not waited for. */
int qn_cuda_fill(struct qn_device *device, void *data, int byte, size_t bytes, void *stream)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    if (!bytes)
        return 0;
    int status = qn_cuda_enter_stream(device, stream, &scope, &why);
    if (status)
        return status;
    int code = device->cu->memory_set((uintptr_t)data, (unsigned char)byte, bytes, stream);
    qn_cuda_leave(device, &scope);
    return status_only(device, "cuMemsetD8Async", code);
}

size_t qn_cuda_free_bytes(struct qn_device *device)
{
    struct qn_cuda_scope scope;
    struct quern_message why;
    size_t free_bytes = 0, total_bytes;

    if (qn_cuda_enter(device, &scope, &why))
        return 0;
    if (device->cu->memory_info(&free_bytes, &total_bytes))
        free_bytes = 0;
    qn_cuda_leave(device, &scope);
    return free_bytes;
}

/* ---- Whose memory -------------------------------------------------------------------------- */

/* What is not plainly memory of our device. */
static int check_foreign(const struct qn_device *device, const void *data,
                         struct quern_message *why)
{
    static const int attributes[] = { CU_POINTER_MEMORY_TYPE, CU_POINTER_IS_MANAGED,
                                      CU_POINTER_DEVICE_ORDINAL };
    unsigned type = CU_MEMORY_UNKNOWN, is_managed = 0;
    int ordinal = -1;
    void *values[] = { &type, &is_managed, &ordinal };
    int code = device->cu->pointer_attributes(3, attributes, values, (uintptr_t)data);

    if (code)
        return qn_cuda_device_fail(device, "cuPointerGetAttributes", code, why);
    if (is_managed || type == CU_MEMORY_HOST) /* registered or allocated pinned */
        return 0;
    if (type == CU_MEMORY_UNKNOWN)
        return device->has_host_pages ? 0 : quern_refuse(why, "host memory");
    return ordinal == device->ordinal ? 0 : quern_refuse(why, "memory of cuda:%d", ordinal);
}

/* One question of 50 ns settles the usual case, and needs no context. */
int qn_cuda_check_pointer(struct qn_device *device, const void *data, struct quern_message *why)
{
    struct qn_cuda_scope scope;
    int ordinal;

    if (!data || !device->cu)
        return 0;
    if (!device->cu->pointer_attribute(&ordinal, CU_POINTER_DEVICE_ORDINAL, (uintptr_t)data) &&
        ordinal == device->ordinal)
        return 0;
    int status = qn_cuda_enter(device, &scope, why);
    if (status)
        return status;
    status = check_foreign(device, data, why);
    qn_cuda_leave(device, &scope);
    return status;
}
