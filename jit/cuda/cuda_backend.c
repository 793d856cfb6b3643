/* A CUDA GPU as a device: the table of jit/backend.h over the modules of this folder.
 *
 *     source --nvrtc.c--> cubin --cuda_image.c--> cuda_module.c --> cuda_launch.c --> run
 *                           |         ^                                 |
 *                           +- store -+                                 +-- cuda_map.c
 *
 *     cuda_driver.[ch] .def  libcuda, dlopen'ed, and its errors as ours
 *     cuda_context.c         in whose context a call works
 *     cuda_profile.c         what the device is, which artifacts it runs
 *     cuda_memory.c          memory, and whose a pointer is
 *     cuda_time.c            events and graphs
 *     cuda_doctor.c          what is here and what is missing
 *
 * A device is opened without making a context, and without loading NVRTC. One opened with the
 * ordinal -1 compiles, for any target, with no GPU and no driver; all else refuses there.
 *
 * Invariants
 *  - Every failure of the driver becomes a status and a line at the call that saw it.
 *  - A launch takes no lock and allocates nothing.
 *  - No function leaves another context current than it found. */
#include <stdio.h>
#include <stdlib.h>

#include "jit/cuda/cuda_device.h"

/* ---- The device ---------------------------------------------------------------------------- */

static int find_device(struct qn_device *device, struct quern_message *why)
{
    int count = 0, handle;
    int status = qn_cuda_driver_get(&device->cu, why);

    if (status)
        return status;
    int code = device->cu->device_count(&count);
    if (code)
        return qn_cuda_device_fail(device, "cuDeviceGetCount", code, why);
    if (!count)
        return QN_CUDA_FAIL(DEVICE, why, "%s: the driver sees no device", device->subject);
    if (device->ordinal >= count)
        return QN_CUDA_FAIL(DEVICE, why, "%s: must be below cuda:%d", device->subject, count);
    code = device->cu->device_get(&handle, device->ordinal);
    if (code)
        return qn_cuda_device_fail(device, "cuDeviceGet", code, why);
    device->ordinal = handle;
    return qn_cuda_device_read(device, why);
}

static void cuda_close(struct qn_device *device)
{
    if (!device)
        return;
    if (device->cu) {
        qn_cuda_time_fini(device);
        qn_cuda_context_fini(device);
    }
    qn_nvrtc_close(device->nvrtc);
    pthread_mutex_destroy(&device->clock_lock);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

/* To compile only, the driver still says which NVRTC's cubins it takes, if there is one. */
static int cuda_open(const struct qn_backend_options *options, struct qn_device **device,
                     struct quern_message *why)
{
    struct qn_device *made = calloc(1, sizeof *made);

    if (!made)
        return QN_CUDA_FAIL(NO_MEMORY, why, "device=cuda: out of host memory");
    pthread_mutex_init(&made->lock, NULL);
    pthread_mutex_init(&made->clock_lock, NULL);
    made->ordinal = options->ordinal;
    made->target.kind = made->profile.kind = QUERN_CUDA;
    snprintf(made->subject, sizeof made->subject, "device=cuda:%d", made->ordinal);
    int status = made->ordinal >= 0 ? find_device(made, why) : 0;
    if (!status)
        status = qn_nvrtc_open(options, qn_cuda_driver_version(), &made->nvrtc, why);
    if (status) {
        cuda_close(made);
        return status;
    }
    *device = made;
    return 0;
}

static void cuda_describe(const struct qn_device *device, struct quern_target *target,
                          struct quern_profile *profile)
{
    *target = device->target;
    *profile = device->profile;
}

/* ---- Compile ------------------------------------------------------------------------------- */

static int cuda_compiler(struct qn_device *device, char *identity, size_t bytes,
                         struct quern_message *why)
{
    return qn_nvrtc_identity(device->nvrtc, identity, bytes, why);
}

static void cuda_driver(struct qn_device *device, char *text, size_t bytes)
{
    int number = qn_cuda_driver_version();
    (void)device;
    snprintf(text, bytes, ", driver %d.%d", number / 1000, number / 10 % 100);
}

static int cuda_compile(struct qn_device *device, const struct qn_compile_request *request,
                        struct qn_compile_result *result, struct quern_message *why)
{
    return qn_nvrtc_compile(device->nvrtc, request, result, why);
}

const struct qn_backend qn_backend_cuda = {
    .name = "cuda",
    .kind = QUERN_CUDA,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .accepts = qn_cuda_accepts,
    .options = qn_nvrtc_options,
    .compiler = cuda_compiler,
    .driver = cuda_driver,
    .compile = cuda_compile,
    .load = qn_cuda_load,
    .unload = qn_cuda_unload,
    .function = qn_cuda_function,
    .launch = qn_cuda_launch,
    .synchronize = qn_cuda_synchronize,
    .is_capturing = qn_cuda_is_capturing,
    .check_pointer = qn_cuda_check_pointer,
    .alloc = qn_cuda_alloc,
    .free = qn_cuda_free,
    .copy = qn_cuda_copy,
    .fill = qn_cuda_fill,
    .free_bytes = qn_cuda_free_bytes,
    .time_launch = qn_cuda_time_launch,
    .record = qn_cuda_record,
    .replay = qn_cuda_replay,
    .forget = qn_cuda_forget,
    .doctor = qn_cuda_doctor,
};
