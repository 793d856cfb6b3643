/* The CUDA driver as the benchmark needs it: dlopen'ed, one device in its primary context, one
 * stream, and launches recorded into a graph that is replayed between two events.
 *
 *     graph_begin(gpu);  launch, launch, ...;  graph_end(gpu, &graph, count);
 *     graph_seconds(gpu, &graph)     how long one of the launches took on average
 *
 * What cannot fail on a machine that works ends the program with one line. No CUDA header is
 * needed; entry points carry the versioned names that the header's macros would give them.
 */
#ifndef BENCH_CUDA_GRAPH_H
#define BENCH_CUDA_GRAPH_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t device_pointer;

/* X(field, symbol, parameters): all return a CUresult, 0 for success. */
#define CUDA_CALLS(X)                                                                              \
    X(init, "cuInit", (unsigned))                                                                  \
    X(driver_version, "cuDriverGetVersion", (int *))                                               \
    X(error_name, "cuGetErrorName", (int, const char **))                                          \
    X(device_count, "cuDeviceGetCount", (int *))                                                   \
    X(device_get, "cuDeviceGet", (int *, int))                                                     \
    X(device_name, "cuDeviceGetName", (char *, int, int))                                          \
    X(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                                 \
    X(device_bus_id, "cuDeviceGetPCIBusId", (char *, int, int))                                    \
    X(context_retain, "cuDevicePrimaryCtxRetain", (void **, int))                                  \
    X(context_set, "cuCtxSetCurrent", (void *))                                                    \
    X(alloc, "cuMemAlloc_v2", (device_pointer *, size_t))                                          \
    X(free, "cuMemFree_v2", (device_pointer))                                                      \
    X(copy_in, "cuMemcpyHtoD_v2", (device_pointer, const void *, size_t))                          \
    X(copy_out, "cuMemcpyDtoH_v2", (void *, device_pointer, size_t))                               \
    X(copy_within, "cuMemcpyDtoDAsync_v2", (device_pointer, device_pointer, size_t, void *))       \
    X(fill, "cuMemsetD8Async", (device_pointer, unsigned char, size_t, void *))                    \
    X(stream_create, "cuStreamCreate", (void **, unsigned))                                        \
    X(stream_wait, "cuStreamSynchronize", (void *))                                                \
    X(capture_begin, "cuStreamBeginCapture_v2", (void *, int))                                     \
    X(capture_end, "cuStreamEndCapture", (void *, void **))                                        \
    X(graph_make, "cuGraphInstantiateWithFlags", (void **, void *, unsigned long long))            \
    X(graph_launch, "cuGraphLaunch", (void *, void *))                                             \
    X(graph_destroy, "cuGraphDestroy", (void *))                                                   \
    X(graph_exec_destroy, "cuGraphExecDestroy", (void *))                                          \
    X(event_create, "cuEventCreate", (void **, unsigned))                                          \
    X(event_record, "cuEventRecord", (void *, void *))                                             \
    X(event_wait, "cuEventSynchronize", (void *))                                                  \
    X(event_ms, "cuEventElapsedTime", (float *, void *, void *))

enum { CUDA_CLOCK_RATE = 13, CUDA_SM_COUNT = 16, CUDA_L2_BYTES = 38, CUDA_MAJOR = 75 };
enum { CUDA_NON_BLOCKING = 1, CUDA_CAPTURE_THREAD_LOCAL = 1 };

struct gpu {
#define X(field, symbol, parameters) int(*field) parameters;
    CUDA_CALLS(X)
#undef X
    int device, version, sm, cores;
    int64_t l2_bytes;
    char name[96], bus_id[32];
    void *stream, *events[2];
};

struct graph {
    void *exec;
    int launches;
};

#define GPU_MUST(gpu, call) gpu_must(gpu, (gpu)->call, #call)

static void gpu_must(const struct gpu *gpu, int result, const char *call)
{
    const char *name = "?";
    if (!result)
        return;
    gpu->error_name(result, &name);
    fprintf(stderr, "cuda_peers: %.*s: %s\n", (int)strcspn(call, "("), call, name);
    exit(1);
}

/* ---- The device ---------------------------------------------------------------------------- */

/* 0, or why there is none. */
static const char *gpu_load(struct gpu *gpu)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return "no NVIDIA driver (libcuda.so.1)";
#define X(field, symbol, parameters)                                                               \
    if (!(*(void **)&gpu->field = dlsym(library, symbol)))                                         \
        return "the driver is too old: it has no " symbol;
    CUDA_CALLS(X)
#undef X
    return NULL;
}

static int gpu_attribute(const struct gpu *gpu, int attribute)
{
    int value = 0;
    GPU_MUST(gpu, device_attribute(&value, attribute, gpu->device));
    return value;
}

/* The primary context is up and current afterwards. 0, or why there is no such device. */
static const char *gpu_open(struct gpu *gpu, int ordinal)
{
    const char *why;
    int count = 0;
    void *context;
    memset(gpu, 0, sizeof *gpu);
    if ((why = gpu_load(gpu)))
        return why;
    if (gpu->init(0) || gpu->device_count(&count) || ordinal >= count)
        return count ? "no such device" : "no CUDA device";
    GPU_MUST(gpu, driver_version(&gpu->version));
    GPU_MUST(gpu, device_get(&gpu->device, ordinal));
    GPU_MUST(gpu, device_name(gpu->name, sizeof gpu->name, gpu->device));
    GPU_MUST(gpu, device_bus_id(gpu->bus_id, sizeof gpu->bus_id, gpu->device));
    gpu->cores = gpu_attribute(gpu, CUDA_SM_COUNT);
    gpu->l2_bytes = gpu_attribute(gpu, CUDA_L2_BYTES);
    gpu->sm = 10 * gpu_attribute(gpu, CUDA_MAJOR) + gpu_attribute(gpu, CUDA_MAJOR + 1);
    GPU_MUST(gpu, context_retain(&context, gpu->device));
    GPU_MUST(gpu, context_set(context));
    GPU_MUST(gpu, stream_create(&gpu->stream, CUDA_NON_BLOCKING));
    for (int i = 0; i < 2; i++)
        GPU_MUST(gpu, event_create(&gpu->events[i], 0));
    return NULL;
}

static void *gpu_alloc(const struct gpu *gpu, size_t bytes)
{
    device_pointer data = 0;
    if (bytes)
        GPU_MUST(gpu, alloc(&data, bytes));
    return (void *)(uintptr_t)data;
}

static void gpu_free(const struct gpu *gpu, void *data)
{
    if (data)
        GPU_MUST(gpu, free((device_pointer)(uintptr_t)data));
}

static void gpu_wait(const struct gpu *gpu)
{
    GPU_MUST(gpu, stream_wait(gpu->stream));
}

/* ---- Graphs -------------------------------------------------------------------------------- */

static void graph_begin(const struct gpu *gpu)
{
    GPU_MUST(gpu, capture_begin(gpu->stream, CUDA_CAPTURE_THREAD_LOCAL));
}

/* What was launched on gpu->stream since graph_begin(), `launches` times; run once to warm it.
 * Not 0 if something in it cannot be captured. */
static int graph_end(const struct gpu *gpu, struct graph *graph, int launches)
{
    void *captured = NULL;
    if (gpu->capture_end(gpu->stream, &captured) || !captured)
        return -1;
    GPU_MUST(gpu, graph_make(&graph->exec, captured, 0));
    GPU_MUST(gpu, graph_destroy(captured));
    graph->launches = launches;
    GPU_MUST(gpu, graph_launch(graph->exec, gpu->stream));
    gpu_wait(gpu);
    return 0;
}

static void graph_free(const struct gpu *gpu, struct graph *graph)
{
    if (graph->exec)
        GPU_MUST(gpu, graph_exec_destroy(graph->exec));
    graph->exec = NULL;
}

static double graph_seconds(const struct gpu *gpu, const struct graph *graph)
{
    float ms = 0;
    GPU_MUST(gpu, event_record(gpu->events[0], gpu->stream));
    GPU_MUST(gpu, graph_launch(graph->exec, gpu->stream));
    GPU_MUST(gpu, event_record(gpu->events[1], gpu->stream));
    GPU_MUST(gpu, event_wait(gpu->events[1]));
    GPU_MUST(gpu, event_ms(&ms, gpu->events[0], gpu->events[1]));
    return (double)ms * 1e-3 / graph->launches;
}

/* ---- Clocks, where NVML is there ----------------------------------------------------------- */

struct clocks {
    unsigned sm_mhz, memory_mhz, milliwatts;
};

static void clocks_read(const struct gpu *gpu, struct clocks *clocks)
{
    static void *library, *handle; /* looked for once */
    static int (*clock)(void *, int, unsigned *), (*power)(void *, unsigned *);
    int (*init)(void), (*find)(const char *, void **);
    memset(clocks, 0, sizeof *clocks);
    if (!library && (library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL))) {
        *(void **)&init = dlsym(library, "nvmlInit_v2");
        *(void **)&find = dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
        *(void **)&clock = dlsym(library, "nvmlDeviceGetClockInfo");
        *(void **)&power = dlsym(library, "nvmlDeviceGetPowerUsage");
        if (!init || !find || !clock || !power || init() || find(gpu->bus_id, &handle))
            handle = NULL;
    }
    if (!handle)
        return;
    clock(handle, 1, &clocks->sm_mhz); /* NVML_CLOCK_SM, NVML_CLOCK_MEM */
    clock(handle, 2, &clocks->memory_mhz);
    power(handle, &clocks->milliwatts);
}
#endif
