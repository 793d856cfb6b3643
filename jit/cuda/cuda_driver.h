/* The CUDA driver API, dlopen'ed: its types and numbers as of cuda.h 13.0, a table of its entry
 * points (cuda_driver.def), and its errors as ours. No CUDA header is needed to build. */
#ifndef QN_CUDA_DRIVER_H
#define QN_CUDA_DRIVER_H

#include "jit/backend.h"

/* Write the line into `why` and give the status that says what kind of failure it is. */
#define QN_CUDA_FAIL(status, why, ...) (quern_refuse(why, __VA_ARGS__), (int)QUERN_##status)

/* ---- Numbers and layouts ------------------------------------------------------------------- */

enum cu_result {
    CU_INVALID_VALUE = 1,
    CU_OUT_OF_MEMORY = 2,
    CU_INVALID_IMAGE = 200,
    CU_INVALID_CONTEXT = 201,
    CU_NO_BINARY_FOR_GPU = 209,
    CU_ECC_UNCORRECTABLE = 214,
    CU_INVALID_PTX = 218,
    CU_NVLINK_UNCORRECTABLE = 220,
    CU_JIT_COMPILER_NOT_FOUND = 221,
    CU_UNSUPPORTED_PTX_VERSION = 222,
    CU_CONTAINED = 226,
    CU_INVALID_SOURCE = 300,
    CU_SHARED_OBJECT_SYMBOL_NOT_FOUND = 302,
    CU_SHARED_OBJECT_INIT_FAILED = 303,
    CU_INVALID_HANDLE = 400,
    CU_NOT_FOUND = 500,
    CU_ILLEGAL_ADDRESS = 700,
    CU_LAUNCH_OUT_OF_RESOURCES = 701,
    CU_LAUNCH_TIMEOUT = 702,
    CU_CONTEXT_IS_DESTROYED = 709,
    CU_ASSERT = 710,
    CU_HARDWARE_STACK_ERROR = 714,
    CU_LAUNCH_FAILED = 719,
    CU_TENSOR_MEMORY_LEAK = 721,
    CU_NOT_SUPPORTED = 801,
    CU_STREAM_CAPTURE_UNSUPPORTED = 900,
    CU_STREAM_CAPTURE_IMPLICIT = 906,
    CU_STREAM_CAPTURE_WRONG_THREAD = 908,
    CU_INVALID_CLUSTER_SIZE = 912,
    CU_INVALID_RESOURCE_CONFIGURATION = 915
};

enum cu_device_attribute {
    CU_CLOCK_KHZ = 13,
    CU_SM_COUNT = 16,
    CU_MEMORY_CLOCK_KHZ = 36,
    CU_MEMORY_BUS_BITS = 37,
    CU_L2_BYTES = 38,
    CU_COMPUTE_MAJOR = 75,
    CU_COMPUTE_MINOR = 76,
    CU_PAGEABLE_MEMORY_ACCESS = 88,
    CU_SHARED_BYTES_OPTIN = 97,
    CU_MEMORY_POOLS_SUPPORTED = 115
};

enum cu_kernel_attribute {
    CU_KERNEL_SHARED_BYTES = 1,
    CU_KERNEL_MAX_DYNAMIC_SHARED_BYTES = 8,
    CU_KERNEL_NON_PORTABLE_CLUSTER = 14
};

enum cu_pointer_attribute {
    CU_POINTER_MEMORY_TYPE = 2,
    CU_POINTER_IS_MANAGED = 8,
    CU_POINTER_DEVICE_ORDINAL = 9
};
enum cu_memory_type { CU_MEMORY_UNKNOWN = 0, CU_MEMORY_HOST = 1 };

enum {
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_EVENT_RECORD_EXTERNAL = 1,
    CU_CAPTURE_RELAXED = 2
};

enum cu_launch_attribute_id { CU_LAUNCH_CLUSTER = 4, CU_LAUNCH_PROGRAMMATIC = 6 };

struct cu_launch_attribute { /* CUlaunchAttribute */
    int id;
    char reserved[4];
    union {
        uint32_t cluster[3];
        int is_programmatic;
        char pad[64];
    } value;
};

struct cu_launch { /* CUlaunchConfig */
    uint32_t grid[3], threads[3];
    uint32_t shared_bytes;
    struct cu_stream *stream;
    struct cu_launch_attribute *attributes;
    uint32_t attribute_count;
};

/* ---- The table ----------------------------------------------------------------------------- */

struct cu_context;
struct cu_stream;
struct cu_event;
struct cu_library;
struct cu_module;
struct cu_kernel;
struct cu_function;
struct cu_graph;
struct cu_graph_exec;

struct qn_cuda_driver {
#define REQUIRED(field, symbol, parameters) int(*field) parameters;
#include "jit/cuda/cuda_driver.def"
    int version; /* 13000: CUDA 13.0 */
};

/* The process's driver, initialised. QUERN_DEVICE: none, too old, or it does not start. */
int qn_cuda_driver_get(const struct qn_cuda_driver **cu, struct quern_message *why);
/* 13000; 0 if there is no driver. Does not initialise it. */
int qn_cuda_driver_version(void);

/* A CUresult as one of our statuses, with one line "SUBJECT: CALL: NAME (text)". */
int qn_cuda_fail(const struct qn_cuda_driver *cu, const char *subject, const char *call, int code,
                 struct quern_message *why);

#endif
