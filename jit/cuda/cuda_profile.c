/* What a device is: its target, its profile, its limits, and which artifacts run on it.
 *
 * A device that a shipped profile is of (jit/profile.c) has that one, whose rates were measured.
 * For others the rates are estimated from what the driver says of clocks and widths and from the
 * architecture; its name then says what it is: "NVIDIA L4, 58 SMs". */
#include "jit/cuda/cuda_device.h"

#include <stdio.h>
#include <string.h>

#include "jit/profile.h"
#include "jit/target.h"

/* Of one SM in one clock; the last row at or below a device's architecture is its own. */
static const struct architecture {
    int sm;
    double tensor_flops; /* bf16, dense, f32 sums */
    double f32_flops;
    double l2_bytes;
} architectures[] = {
    { 80, 2048, 128, 26 },  { 86, 1024, 256, 13 },  { 90, 4096, 256, 30 },
    { 100, 8192, 256, 40 }, { 110, 4096, 256, 20 }, { 120, 512, 256, 15 },
};
enum { ARCHITECTURE_COUNT = sizeof architectures / sizeof architectures[0] };

/* Of the peak, what is sustained. */
static const double MEMORY_SHARE = 0.85, TENSOR_SHARE = 0.75, F32_SHARE = 0.8;
static const double LAUNCH_US = 1.5;

/* 0 where the driver does not say. */
static int attribute(const struct qn_device *device, int which)
{
    int value = 0;

    return device->cu->device_attribute(&value, which, device->ordinal) ? 0 : value;
}

static void estimate(const struct qn_device *device, struct quern_profile *profile)
{
    const struct architecture *row = &architectures[0];
    double clocks = profile->cores * 1e3 * attribute(device, CU_CLOCK_KHZ); /* all SMs, a second */

    for (int i = 1; i < ARCHITECTURE_COUNT; i++)
        if (architectures[i].sm <= profile->sm)
            row = &architectures[i];
    profile->tensor_tflops = clocks * row->tensor_flops * TENSOR_SHARE * 1e-12;
    profile->f32_tflops = clocks * row->f32_flops * F32_SHARE * 1e-12;
    profile->l2_gbps = clocks * row->l2_bytes * 1e-9;
    /* Two transfers a clock. */
    profile->memory_gbps = 2e3 * attribute(device, CU_MEMORY_CLOCK_KHZ) *
                           attribute(device, CU_MEMORY_BUS_BITS) / 8 * MEMORY_SHARE * 1e-9;
    profile->launch_us = LAUNCH_US;
}

static void profile_read(struct qn_device *device, const char *name)
{
    struct quern_profile *profile = &device->profile;
    int cores = attribute(device, CU_SM_COUNT);

    if (!qn_profile_of_device(name, device->target.sm, cores, profile))
        return;
    memset(profile, 0, sizeof *profile);
    snprintf(profile->name, sizeof profile->name, "%.100s, %d SMs", name, cores);
    profile->kind = QUERN_CUDA;
    profile->sm = device->target.sm;
    profile->cores = cores;
    profile->l1_bytes = device->shared_optin;
    profile->l2_bytes = attribute(device, CU_L2_BYTES);
    estimate(device, profile);
}

int qn_cuda_device_read(struct qn_device *device, struct quern_message *why)
{
    char name[128] = "";
    int code = device->cu->device_name(name, sizeof name, device->ordinal);
    int sm = 10 * attribute(device, CU_COMPUTE_MAJOR) + attribute(device, CU_COMPUTE_MINOR);

    if (code)
        return qn_cuda_device_fail(device, "cuDeviceGetName", code, why);
    memset(&device->target, 0, sizeof device->target);
    device->target.kind = QUERN_CUDA;
    device->target.sm = sm;
    device->target.sm_suffix = sm >= 90 ? 'a' : 0;
    device->shared_optin = attribute(device, CU_SHARED_BYTES_OPTIN);
    device->has_pools = attribute(device, CU_MEMORY_POOLS_SUPPORTED);
    device->has_host_pages = attribute(device, CU_PAGEABLE_MEMORY_ACCESS);
    profile_read(device, name);
    return 0;
}

/* Code with a suffix runs on its own architecture only; other code on the newer ones of its major
 * version too. */
int qn_cuda_accepts(const struct qn_device *device, const struct quern_target *target,
                    struct quern_message *why)
{
    const struct quern_target *own = &device->target;
    char asked[QN_TARGET_TEXT_BYTES], here[QN_TARGET_TEXT_BYTES];
    bool is_own = target->sm == own->sm && target->sm_suffix == own->sm_suffix;
    bool is_older = !target->sm_suffix && target->sm / 10 == own->sm / 10 && target->sm <= own->sm;

    if (device->cu && target->kind == QUERN_CUDA && (is_own || is_older))
        return 0;
    qn_target_format(target, asked, sizeof asked);
    if (!device->cu)
        return quern_refuse(why, "target=%s: device=cuda was opened to compile only", asked);
    qn_target_format(own, here, sizeof here);
    return quern_refuse(why, "target=%s: this device is %s", asked, here);
}
