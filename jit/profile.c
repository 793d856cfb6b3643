/* The shipped device profiles. A profile says what choices depend on beyond the target; its name is
 * part of every tuning key, so a name is never given a second meaning. CPU rows are generic
 * classes: a real machine's profile is read from the machine. */
#include "jit/profile.h"

#include "jit/text.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (KIB * KIB)

/* A GPU's row is that GPU: `device` is its name in CUDA, and a device of that name with as many SMs
 * (a slice of one has fewer) has this profile, on every host. `sm` of the last row of a kind is
 * what a target stands for where no device is present. The rates of h200 are measured (2026-11-20
 * and 21: a device copy, cuBLAS bf16 and f32 products, a kernel of one element in a graph), but
 * L2's is what gemm_sm90's model fits best: a copy within it moves 5800. The others are
 * estimates. */
static const struct shipped {
    struct quern_profile profile;
    const char *device;
} shipped[] = {
    { { .name = "cpu-server-16",
        .kind = QUERN_CPU,
        .cores = 16,
        .l1_bytes = 48 * KIB,
        .l2_bytes = 2 * MIB,
        .l3_bytes = 64 * MIB,
        .memory_gbps = 150 },
      NULL },
    { { .name = "cpu-server-64",
        .kind = QUERN_CPU,
        .cores = 64,
        .l1_bytes = 48 * KIB,
        .l2_bytes = 2 * MIB,
        .l3_bytes = 256 * MIB,
        .memory_gbps = 300 },
      NULL },
    { { .name = "cpu-desktop-8",
        .kind = QUERN_CPU,
        .cores = 8,
        .l1_bytes = 32 * KIB,
        .l2_bytes = 1 * MIB,
        .l3_bytes = 32 * MIB,
        .memory_gbps = 60 },
      NULL },
    { { .name = "a100",
        .kind = QUERN_CUDA,
        .sm = 80,
        .cores = 108,
        .l1_bytes = 166912,
        .l2_bytes = 40 * MIB,
        .memory_gbps = 1750,
        .l2_gbps = 4000,
        .tensor_tflops = 270,
        .f32_tflops = 18,
        .launch_us = 1.5 },
      "NVIDIA A100-SXM4-80GB" },
    { { .name = "a10",
        .kind = QUERN_CUDA,
        .sm = 86,
        .cores = 72,
        .l1_bytes = 101376,
        .l2_bytes = 6 * MIB,
        .memory_gbps = 500,
        .l2_gbps = 1500,
        .tensor_tflops = 90,
        .f32_tflops = 20,
        .launch_us = 1.5 },
      "NVIDIA A10" },
    { { .name = "l40s",
        .kind = QUERN_CUDA,
        .sm = 89,
        .cores = 142,
        .l1_bytes = 101376,
        .l2_bytes = 96 * MIB,
        .memory_gbps = 750,
        .l2_gbps = 4500,
        .tensor_tflops = 300,
        .f32_tflops = 70,
        .launch_us = 1.5 },
      "NVIDIA L40S" },
    { { .name = "h100-pcie",
        .kind = QUERN_CUDA,
        .sm = 90,
        .cores = 114,
        .l1_bytes = 232448,
        .l2_bytes = 50 * MIB,
        .memory_gbps = 1750,
        .l2_gbps = 5500,
        .tensor_tflops = 500,
        .f32_tflops = 40,
        .launch_us = 1.2 },
      "NVIDIA H100 PCIe" },
    { { .name = "h100",
        .kind = QUERN_CUDA,
        .sm = 90,
        .cores = 132,
        .l1_bytes = 232448,
        .l2_bytes = 50 * MIB,
        .memory_gbps = 3000,
        .l2_gbps = 7000,
        .tensor_tflops = 700,
        .f32_tflops = 55,
        .launch_us = 1.2 },
      "NVIDIA H100 80GB HBM3" },
    { { .name = "h200",
        .kind = QUERN_CUDA,
        .sm = 90,
        .cores = 132,
        .l1_bytes = 232448,
        .l2_bytes = 60 * MIB,
        .memory_gbps = 4270,
        .l2_gbps = 9000,
        .tensor_tflops = 790,
        .f32_tflops = 51,
        .launch_us = 1.2 },
      "NVIDIA H200" },
    { { .name = "b200",
        .kind = QUERN_CUDA,
        .sm = 100,
        .cores = 148,
        .l1_bytes = 232448,
        .l2_bytes = 126 * MIB,
        .memory_gbps = 7000,
        .l2_gbps = 12000,
        .tensor_tflops = 1600,
        .f32_tflops = 60,
        .launch_us = 1.2 },
      "NVIDIA B200" },
    { { .name = "rtx5090",
        .kind = QUERN_CUDA,
        .sm = 120,
        .cores = 170,
        .l1_bytes = 101376,
        .l2_bytes = 96 * MIB,
        .memory_gbps = 1550,
        .l2_gbps = 6000,
        .tensor_tflops = 200,
        .f32_tflops = 90,
        .launch_us = 1.5 },
      "NVIDIA GeForce RTX 5090" },
};
enum { SHIPPED = sizeof(shipped) / sizeof(shipped[0]) };

int qn_profile_find(const char *name, struct quern_profile *profile, struct quern_message *why)
{
    char known[512] = "";
    for (int i = 0; i < SHIPPED; i++) {
        if (!strcmp(shipped[i].profile.name, name)) {
            *profile = shipped[i].profile;
            return QUERN_OK;
        }
        qn_list_add(known, sizeof(known), shipped[i].profile.name);
    }
    return quern_refuse(why, "device-profile=%s: must be one of %s", name, known);
}

int qn_profile_of_device(const char *device, int sm, int cores, struct quern_profile *profile)
{
    for (int i = 0; i < SHIPPED; i++) {
        const struct quern_profile *row = &shipped[i].profile;
        if (shipped[i].device && !strcmp(shipped[i].device, device) && row->sm == sm &&
            row->cores == cores) {
            *profile = *row;
            return QUERN_OK;
        }
    }
    return QUERN_MISS;
}

void qn_profile_of_target(const struct quern_target *target, struct quern_profile *profile)
{
    const struct quern_profile *best = NULL;
    for (int i = 0; i < SHIPPED; i++) {
        const struct quern_profile *row = &shipped[i].profile;
        bool is_nearer = !best || (row->sm <= target->sm && row->sm >= best->sm);
        if (row->kind == target->kind && is_nearer)
            best = row;
    }
    *profile = *best;
}
