/* The CUDA driver API as a program beside the library would use it: contexts, streams, graphs.
 * Found by name, with no CUDA header; handles are void pointers. */
#ifndef GPU_DRIVER_H
#define GPU_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#define GPU_DRIVER_LIST(X)                                                                         \
    X(init, cuInit, (unsigned flags))                                                              \
    X(device_get_count, cuDeviceGetCount, (int *count))                                            \
    X(device_get_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))         \
    X(primary_retain, cuDevicePrimaryCtxRetain, (void **context, int device))                      \
    X(primary_release, cuDevicePrimaryCtxRelease_v2, (int device))                                 \
    X(ctx_create, cuCtxCreate_v2, (void **context, unsigned flags, int device))                    \
    X(ctx_destroy, cuCtxDestroy_v2, (void *context))                                               \
    X(ctx_set_current, cuCtxSetCurrent, (void *context))                                           \
    X(ctx_get_current, cuCtxGetCurrent, (void **context))                                          \
    X(ctx_synchronize, cuCtxSynchronize, (void))                                                   \
    X(stream_create, cuStreamCreate, (void **stream, unsigned flags))                              \
    X(stream_destroy, cuStreamDestroy_v2, (void *stream))                                          \
    X(stream_synchronize, cuStreamSynchronize, (void *stream))                                     \
    X(capture_begin, cuStreamBeginCapture_v2, (void *stream, int mode))                            \
    X(capture_end, cuStreamEndCapture, (void *stream, void **graph))                               \
    X(graph_instantiate, cuGraphInstantiateWithFlags,                                              \
      (void **executable, void *graph, unsigned long long flags))                                  \
    X(graph_launch, cuGraphLaunch, (void *executable, void *stream))                               \
    X(executable_destroy, cuGraphExecDestroy, (void *executable))                                  \
    X(graph_destroy, cuGraphDestroy, (void *graph))                                                \
    X(memory_alloc, cuMemAlloc_v2, (uint64_t * data, size_t bytes))                                \
    X(memory_free, cuMemFree_v2, (uint64_t data))                                                  \
    X(managed_alloc, cuMemAllocManaged, (uint64_t * data, size_t bytes, unsigned flags))           \
    X(pinned_alloc, cuMemHostAlloc, (void **data, size_t bytes, unsigned flags))                   \
    X(pinned_free, cuMemFreeHost, (void *data))

struct gpu_driver {
#define X(name, symbol, parameters) int(*name) parameters;
    GPU_DRIVER_LIST(X)
#undef X
};

enum {
    GPU_STREAM_NON_BLOCKING = 1,
    GPU_CAPTURE_THREAD_LOCAL = 1,
    GPU_MANAGED_GLOBAL = 1,
    GPU_PAGEABLE_MEMORY_ACCESS = 88 /* attribute: kernels may be given any host pointer */
};

/* Loaded and initialised once; fails the test if that fails. */
const struct gpu_driver *gpu_driver(void);

/* The primary context of gpu_ordinal() is current in this thread from enter to leave; leave makes
 * none current. */
void gpu_driver_enter(void);
void gpu_driver_leave(void);

/* The call gives CUDA_SUCCESS. */
#define assert_cuda(expression) ck_assert_int_eq(expression, 0)

#endif
