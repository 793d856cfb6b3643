/* Loading libcuda and translating its errors.
 *
 *     libcuda.so.1 --dlopen, dlsym of cuda_driver.def--> one table a process --cuInit--> callers
 *
 * The table is the backend's only static state. It is filled once and constant from then on: a
 * process has one driver, whose own state is global, so that a table a context would be copies of
 * the same addresses. The library is never closed: it keeps threads and exit handlers.
 *
 * cuInit is asked every time a device is opened. It costs nothing when it has succeeded before, and
 * in a forked child it says CUDA_ERROR_NOT_INITIALIZED, where anything else would be a guess. */
#include "jit/cuda/cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define DRIVER_FILE "libcuda.so.1"

static const struct entry {
    const char *symbol;
    size_t offset;
    int is_required;
} entries[] = {
#define REQUIRED(field, symbol, parameters) { symbol, offsetof(struct qn_cuda_driver, field), 1 },
#define OPTIONAL(field, symbol, parameters) { symbol, offsetof(struct qn_cuda_driver, field), 0 },
#include "jit/cuda/cuda_driver.def"
};
enum { ENTRY_COUNT = sizeof entries / sizeof entries[0] };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct {
    struct qn_cuda_driver cu;
    int status;
    struct quern_message why;
} loaded;

/* ---- Loading ------------------------------------------------------------------------------- */

static void fill_table(void *library)
{
    const char *missing = NULL;

    for (int i = 0; i < ENTRY_COUNT; i++) {
        void *address = dlsym(library, entries[i].symbol);
        memcpy((char *)&loaded.cu + entries[i].offset, &address, sizeof address);
        if (!address && entries[i].is_required && !missing)
            missing = entries[i].symbol;
    }
    if (loaded.cu.driver_version && loaded.cu.driver_version(&loaded.cu.version))
        loaded.cu.version = 0;
    if (missing)
        loaded.status =
            QN_CUDA_FAIL(DEVICE, &loaded.why,
                         "device=cuda: the NVIDIA driver (CUDA %d.%d) lacks %s: it must "
                         "be for CUDA 12.0 or newer",
                         loaded.cu.version / 1000, loaded.cu.version / 10 % 100, missing);
}

static void load_once(void)
{
    void *library = dlopen(DRIVER_FILE, RTLD_NOW | RTLD_LOCAL);
    const char *reason;

    if (library) {
        fill_table(library);
        return;
    }
    reason = dlerror();
    loaded.status =
        QN_CUDA_FAIL(DEVICE, &loaded.why,
                     "device=cuda: no NVIDIA driver (" DRIVER_FILE ") can be loaded: %.300s",
                     reason ? reason : "no reason given");
}

int qn_cuda_driver_get(const struct qn_cuda_driver **cu, struct quern_message *why)
{
    pthread_once(&once, load_once);
    if (loaded.status) {
        *why = loaded.why;
        return loaded.status;
    }
    int code = loaded.cu.init(0);
    if (code) {
        qn_cuda_fail(&loaded.cu, "device=cuda", "cuInit", code, why);
        return QUERN_DEVICE;
    }
    *cu = &loaded.cu;
    return 0;
}

int qn_cuda_driver_version(void)
{
    pthread_once(&once, load_once);
    return loaded.cu.version;
}

/* ---- Errors -------------------------------------------------------------------------------- */

/* Errors after which every call in the context fails: what ran has corrupted it. */
static int is_context_lost(int code)
{
    switch (code) {
    case CU_ECC_UNCORRECTABLE:
    case CU_NVLINK_UNCORRECTABLE:
    case CU_CONTAINED:
    case CU_ILLEGAL_ADDRESS:
    case CU_LAUNCH_TIMEOUT:
    case CU_CONTEXT_IS_DESTROYED:
    case CU_ASSERT:
    case CU_TENSOR_MEMORY_LEAK:
        return 1;
    default: /* illegal instruction, misaligned address, ... launch failed */
        return code >= CU_HARDWARE_STACK_ERROR && code <= CU_LAUNCH_FAILED;
    }
}

static int status_of(int code)
{
    switch (code) {
    case CU_OUT_OF_MEMORY:
        return QUERN_NO_MEMORY;
    case CU_INVALID_VALUE:
    case CU_INVALID_HANDLE:
    case CU_LAUNCH_OUT_OF_RESOURCES:
    case CU_INVALID_CLUSTER_SIZE:
    case CU_INVALID_RESOURCE_CONFIGURATION:
        return QUERN_INVALID;
    case CU_INVALID_IMAGE:
    case CU_NO_BINARY_FOR_GPU:
    case CU_INVALID_PTX:
    case CU_JIT_COMPILER_NOT_FOUND:
    case CU_UNSUPPORTED_PTX_VERSION:
    case CU_INVALID_SOURCE:
    case CU_SHARED_OBJECT_SYMBOL_NOT_FOUND:
    case CU_SHARED_OBJECT_INIT_FAILED:
    case CU_NOT_FOUND:
        return QUERN_LOAD;
    default:
        return code >= CU_STREAM_CAPTURE_UNSUPPORTED && code <= CU_STREAM_CAPTURE_WRONG_THREAD
                   ? QUERN_INVALID
                   : QUERN_DEVICE;
    }
}

int qn_cuda_fail(const struct qn_cuda_driver *cu, const char *subject, const char *call, int code,
                 struct quern_message *why)
{
    const char *name = NULL, *text = NULL;
    char number[32];

    snprintf(number, sizeof number, "CUDA error %d", code);
    if (cu->error_name(code, &name) || !name)
        name = number;
    if (cu->error_text(code, &text) || !text)
        text = "unknown";
    if (is_context_lost(code))
        return QN_CUDA_FAIL(DEVICE, why,
                            "%.200s: %s: %s (%d): the CUDA context is lost: only a new process or "
                            "context can go on",
                            subject, call, name, code);
    quern_refuse(why, "%.200s: %s: %s (%.150s)", subject, call, name, text);
    return status_of(code);
}
