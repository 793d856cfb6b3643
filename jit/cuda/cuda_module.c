/* Cubins in the driver.
 *
 *     qn_module    a copy of the blob, the CUlibrary made of it, its functions
 *       qn_function  a CUkernel: no context is part of it, the driver loads it into one when it is
 *                    launched there
 *
 * Every kernel may have all the dynamic shared memory that its static one leaves, and clusters
 * beyond the portable 8 blocks: what a step asks for is known to be legal from its plan, and the
 * attributes cost nothing where they are not used. That large clusters are not to be had is no
 * reason to refuse a kernel, which may use none: the launch of one that does will say so.
 *
 * A function is loaded into the current context at once: the driver would do so on the first
 * launch, which may be one that is captured into a graph. Functions live until the module goes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/cuda/cuda_device.h"
#include "jit/target.h"

struct qn_module {
    void *blob; /* the driver copies it, but need not have on return */
    struct cu_library *library;
    struct qn_function *functions; /* under the device's lock */
};

/* ---- Modules ------------------------------------------------------------------------------- */

/* What the driver cannot make use of: made by a toolkit that it does not know yet, or damaged. */
static bool is_unreadable(int code)
{
    return code == CU_INVALID_IMAGE || code == CU_NO_BINARY_FOR_GPU ||
           code == CU_UNSUPPORTED_PTX_VERSION;
}

static int load_failed(const struct qn_device *device, const struct quern_target *target, int code,
                       struct quern_message *why)
{
    char text[QN_TARGET_TEXT_BYTES], cause[96] = "", subject[256];
    int version = device->cu->version;

    qn_target_format(target, text, sizeof text);
    if (is_unreadable(code))
        snprintf(cause, sizeof cause,
                 ": the driver (CUDA %d.%d) is older than it, or it is damaged", version / 1000,
                 version / 10 % 100);
    snprintf(subject, sizeof subject, "%s: artifact for %s%s", device->subject, text, cause);
    int status = qn_cuda_fail(device->cu, subject, "cuLibraryLoadData", code, why);
    return status == QUERN_INVALID ? QUERN_LOAD : status; /* nothing but the blob can be */
}

static int module_load(struct qn_device *device, const struct quern_target *target,
                       struct qn_module *module, struct quern_message *why)
{
    struct qn_cuda_scope scope;
    struct cu_module *loaded;
    int status = qn_cuda_enter(device, &scope, why);

    if (status)
        return status;
    int code =
        device->cu->library_load(&module->library, module->blob, NULL, NULL, 0, NULL, NULL, 0);
    if (!code) { /* loading is lazy: code for another device is refused only here */
        code = device->cu->library_module(&loaded, module->library);
        if (code)
            device->cu->library_unload(module->library);
    }
    qn_cuda_leave(device, &scope);
    return code ? load_failed(device, target, code, why) : 0;
}

int qn_cuda_load(struct qn_device *device, const struct quern_target *target, const void *blob,
                 size_t blob_bytes, struct qn_module **module, struct quern_message *why)
{
    if (qn_cuda_accepts(device, target, why))
        return QUERN_LOAD;
    int status = qn_cuda_image_check(blob, blob_bytes, why);
    if (status)
        return status;
    struct qn_module *made = calloc(1, sizeof *made);
    if (made)
        made->blob = malloc(blob_bytes);
    if (!made || !made->blob) {
        free(made);
        return QN_CUDA_FAIL(NO_MEMORY, why, "%s: out of host memory", device->subject);
    }
    memcpy(made->blob, blob, blob_bytes);
    status = module_load(device, target, made, why);
    if (!status) {
        *module = made;
        return 0;
    }
    free(made->blob);
    free(made);
    return status;
}

/* Kernels of it may still run: the caller's stream is not known here, so the context is waited
 * for. Where that fails there is nothing left to wait for. */
void qn_cuda_unload(struct qn_device *device, struct qn_module *module)
{
    struct qn_cuda_scope scope;
    struct quern_message why;

    if (!module)
        return;
    if (!qn_cuda_enter(device, &scope, &why)) {
        device->cu->context_synchronize();
        device->cu->library_unload(module->library);
        qn_cuda_leave(device, &scope);
    }
    while (module->functions) {
        struct qn_function *next = module->functions->next;
        free(module->functions);
        module->functions = next;
    }
    free(module->blob);
    free(module);
}

/* ---- Functions ----------------------------------------------------------------------------- */

/* A launch hands over one struct. That there is no second parameter is not asked: for the right
 * answer the driver reports an error, which memory checkers show. */
static int read_parameters(const struct qn_device *device, struct qn_function *function,
                           const char *entry, struct quern_message *why)
{
    size_t offset, bytes;

    if (!device->cu->kernel_parameter)
        return 0;
    if (!device->cu->kernel_parameter(function->kernel, 0, &offset, &bytes))
        function->args_bytes = bytes;
    if (function->args_bytes > QUERN_ARGS_BYTES)
        return QN_CUDA_FAIL(LOAD, why, "entry=%s: its argument has %zu bytes: at most %d are given",
                            entry, function->args_bytes, QUERN_ARGS_BYTES);
    return 0;
}

static int set_limits(const struct qn_device *device, struct qn_function *function,
                      struct quern_message *why)
{
    const struct qn_cuda_driver *cu = device->cu;
    int shared = 0;
    int code = cu->kernel_get(&shared, CU_KERNEL_SHARED_BYTES, function->kernel, device->ordinal);

    if (code)
        return qn_cuda_device_fail(device, "cuKernelGetAttribute", code, why);
    function->shared_limit = device->shared_optin > shared ? device->shared_optin - shared : 0;
    code = cu->kernel_set(CU_KERNEL_MAX_DYNAMIC_SHARED_BYTES, function->shared_limit,
                          function->kernel, device->ordinal);
    if (code)
        return qn_cuda_device_fail(device, "cuKernelSetAttribute", code, why);
    if (device->target.sm >= 90)
        cu->kernel_set(CU_KERNEL_NON_PORTABLE_CLUSTER, 1, function->kernel, device->ordinal);
    return 0;
}

/* In a current context. */
static int function_init(const struct qn_device *device, struct qn_module *module,
                         const char *entry, struct qn_function *function, struct quern_message *why)
{
    struct cu_function *loaded;
    int code = device->cu->library_kernel(&function->kernel, module->library, entry);

    if (code == CU_NOT_FOUND)
        return QN_CUDA_FAIL(LOAD, why, "entry=%s: the artifact has no such kernel", entry);
    if (code)
        return qn_cuda_device_fail(device, "cuLibraryGetKernel", code, why);
    code = device->cu->kernel_function(&loaded, function->kernel);
    if (code)
        return qn_cuda_device_fail(device, "cuKernelGetFunction", code, why);
    int status = read_parameters(device, function, entry, why);
    return status ? status : set_limits(device, function, why);
}

int qn_cuda_function(struct qn_device *device, struct qn_module *module, const char *entry,
                     struct qn_function **function, struct quern_message *why)
{
    struct qn_cuda_scope scope;
    int status = qn_cuda_enter(device, &scope, why);

    if (status)
        return status;
    struct qn_function *made = aligned_alloc(_Alignof(struct qn_function), sizeof *made);
    if (made) {
        memset(made, 0, sizeof *made);
        atomic_flag_clear(&made->maps.is_busy);
        status = function_init(device, module, entry, made, why);
    } else {
        status = QN_CUDA_FAIL(NO_MEMORY, why, "%s: out of host memory", device->subject);
    }
    qn_cuda_leave(device, &scope);
    if (status) {
        free(made);
        return status;
    }
    pthread_mutex_lock(&device->lock);
    made->next = module->functions;
    module->functions = made;
    pthread_mutex_unlock(&device->lock);
    *function = made;
    return 0;
}
