/* A launch: the steps of a plan, in order, on the caller's stream.
 *
 *     memset   cuMemsetD8Async
 *     kernel   tensor maps into the arguments (cuda_map.c), cuLaunchKernelEx
 *
 * This is on the path of every call: no lock, no allocation, no text unless something fails. The
 * driver says no more than "invalid value" of a launch that it does not take, so the reasons are
 * looked for afterwards, in explain().
 *
 * The kernel is given as a CUkernel, which the driver takes where it takes a CUfunction: it is run
 * in the context that is current, so that one function serves every context of the device. */
#include "jit/cuda/cuda_device.h"

#include <stdio.h>

enum { MAX_ATTRIBUTES = 2, MAX_GRID_YZ = 65535, MAX_THREADS = 1024, SHAPE_BYTES = 160 };

/* An extent that a step left out. */
static uint32_t or_one(uint32_t extent)
{
    return extent ? extent : 1;
}

/* ---- What went wrong ----------------------------------------------------------------------- */

static bool is_cluster_multiple(const struct quern_step *step, const struct quern_step_launch *at)
{
    for (int i = 0; i < 3; i++)
        if (step->cluster[i] && at->grid[i] % step->cluster[i])
            return false;
    return true;
}

/* The limit that a refused launch is over, as far as it is known here. */
static const char *explain(const struct quern_step *step, const struct qn_function *function,
                           const struct quern_step_launch *at)
{
    uint64_t threads =
        (uint64_t)step->threads[0] * or_one(step->threads[1]) * or_one(step->threads[2]);

    if (at->grid[0] > INT32_MAX)
        return ", a grid's x may be at most 2^31 - 1";
    if (at->grid[1] > MAX_GRID_YZ || at->grid[2] > MAX_GRID_YZ)
        return ", a grid's y and z may be at most 65535";
    if (!threads || threads > MAX_THREADS)
        return ", a block may have 1 to 1024 threads";
    if (step->shared_bytes > (uint32_t)function->shared_limit)
        return ", more shared memory than a block may have";
    if (!is_cluster_multiple(step, at))
        return ", the grid must be a multiple of the cluster";
    return "";
}

static int launch_failed(const struct qn_device *device, const struct quern_step *step,
                         const struct qn_function *function, const struct quern_step_launch *at,
                         int code, struct quern_message *why)
{
    char shape[SHAPE_BYTES + sizeof step->name];

    snprintf(shape, sizeof shape,
             "step=%.31s grid=%ux%ux%u threads=%ux%ux%u shared=%u "
             "cluster=%ux%ux%u%s",
             step->name, at->grid[0], at->grid[1], at->grid[2], step->threads[0], step->threads[1],
             step->threads[2], step->shared_bytes, step->cluster[0], step->cluster[1],
             step->cluster[2], code == CU_INVALID_VALUE ? explain(step, function, at) : "");
    return qn_cuda_fail(device->cu, shape, "cuLaunchKernelEx", code, why);
}

/* ---- Steps --------------------------------------------------------------------------------- */

static int run_memset(const struct qn_device *device, const struct quern_step_launch *at,
                      const char *name, struct cu_stream *stream, struct quern_message *why)
{
    if (at->memset_bytes < 0 || (at->memset_bytes && !at->memset_data))
        return quern_refuse(why, "step=%s: memset of %lld bytes at %p", name,
                            (long long)at->memset_bytes, at->memset_data);
    if (!at->memset_bytes)
        return 0;
    int code =
        device->cu->memory_set((uintptr_t)at->memset_data, 0, (size_t)at->memset_bytes, stream);
    return code ? qn_cuda_device_fail(device, "cuMemsetD8Async", code, why) : 0;
}

/* Before sm_90 no kernel starts early, and none waits; before CUDA 12.3 a launch that may is not
 * captured as such. Without the attribute a kernel starts after the one ahead: slower, as right. */
static bool may_start_early(const struct qn_device *device, const struct quern_step *step)
{
    return step->is_programmatic && device->target.sm >= 90 && device->cu->version >= 12030;
}

static uint32_t set_attributes(const struct qn_device *device, const struct quern_step *step,
                               struct cu_launch_attribute *list)
{
    uint32_t count = 0;

    if (step->cluster[0] || step->cluster[1] || step->cluster[2]) {
        list[count].id = CU_LAUNCH_CLUSTER;
        for (int i = 0; i < 3; i++)
            list[count].value.cluster[i] = or_one(step->cluster[i]);
        count++;
    }
    if (may_start_early(device, step)) {
        list[count].id = CU_LAUNCH_PROGRAMMATIC;
        list[count].value.is_programmatic = 1;
        count++;
    }
    return count;
}

static int run_kernel(const struct qn_device *device, const struct quern_step *step,
                      struct qn_function *function, struct quern_step_launch *at,
                      struct cu_stream *stream, struct quern_message *why)
{
    struct cu_launch_attribute attributes[MAX_ATTRIBUTES];
    struct cu_launch launch = { .threads = { step->threads[0], or_one(step->threads[1]),
                                             or_one(step->threads[2]) },
                                .grid = { at->grid[0], at->grid[1], at->grid[2] },
                                .shared_bytes = step->shared_bytes,
                                .stream = stream,
                                .attributes = attributes,
                                .attribute_count = set_attributes(device, step, attributes) };
    void *parameters[] = { at->args };

    if (function->args_bytes && function->args_bytes != at->args_bytes)
        return QN_CUDA_FAIL(INTERNAL, why, "step=%s: its kernel takes %zu bytes, bind() gave %u",
                            step->name, function->args_bytes, at->args_bytes);
    if (at->map_count) {
        int status = qn_cuda_maps_encode(device->cu, &function->maps, at, step->name, why);
        if (status)
            return status;
    }
    int code =
        device->cu->launch(&launch, (struct cu_function *)function->kernel, parameters, NULL);
    return code ? launch_failed(device, step, function, at, code, why) : 0;
}

int qn_cuda_launch(struct qn_device *device, const struct quern_plan *plan,
                   struct qn_function *const *functions, struct quern_launch *launch, void *stream,
                   enum qn_grid_order order, struct quern_message *why)
{
    struct qn_cuda_scope scope;
    int status = qn_cuda_enter_stream(device, stream, &scope, why);

    (void)order;
    if (status)
        return status;
    for (int i = 0; i < plan->step_count && !status; i++) {
        struct quern_step_launch *at = &launch->steps[i];
        if (plan->steps[i].kind == QUERN_STEP_MEMSET)
            status = run_memset(device, at, plan->steps[i].name, stream, why);
        else if (at->grid[0] && at->grid[1] && at->grid[2])
            status = run_kernel(device, &plan->steps[i], functions[i], at, stream, why);
    }
    qn_cuda_leave(device, &scope);
    return status;
}
