/* What the variants of l2norm and gated_rmsnorm do: one kernel for each kind of device.
 *
 *     CPU     a block of the grid is some rows; their number is a launch argument
 *     CUDA    the part of a warp that a row gets, and the width of its accesses, follow from d and
 *             the alignment of the arrays; the knobs are copy's
 *
 * h and d are constants of the device code, which divides by the one and unrolls over the other. */
#include "kda_norm.h"

#include <math.h>
#include <string.h>

static int require_power_of_two(const char *name, int32_t value, struct quern_message *why)
{
    if (value & (value - 1))
        return quern_refuse(why, "config %s=%d: must be a power of two", name, value);
    return QUERN_OK;
}

/* A CPU block covers at least 4 KiB or a row, and a grid dimension is 32 bits. */
int kda_norm_validate(int64_t t, int64_t h, int64_t d, double eps, struct quern_message *why)
{
    if (d > 1024)
        return quern_refuse(why, "d=%lld: must be at most 1024", (long long)d);
    if (h > 65536)
        return quern_refuse(why, "h=%lld: must be at most 65536", (long long)h);
    if (t > (INT64_C(1) << 39) / (h * d))
        return quern_refuse(why, "t=%lld: t h d must be at most 2^39", (long long)t);
    if (eps < 0)
        return quern_refuse(why, "eps=%g: must be at least 0", eps);
    return QUERN_OK;
}

double kda_norm_tolerance(int64_t dtype)
{
    return dtype == QUERN_F32 ? 1e-6 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

/* What the code of both kinds of kernel depends on. */
static void define_norm(struct quern_step *step, const struct kda_norm *norm)
{
    quern_step_define(step, "DTYPE", norm->dtype);
    quern_step_define(step, "Z_DTYPE", norm->z);
    quern_step_define(step, "WEIGHT_DTYPE", norm->weight);
    quern_step_define(step, "ACT", norm->act);
    quern_step_define(step, "HEADS", norm->h);
    quern_step_define(step, "D", norm->d);
}

/* ---- CPU ----------------------------------------------------------------------------------- */

const struct quern_knob kda_norm_cpu_knobs[KDA_NORM_CPU_KNOBS] = {
    { "block_kib", 4, 65536, "KiB of the output that a block writes" },
};

int kda_norm_cpu_legal(const int32_t *config, struct quern_message *why)
{
    return require_power_of_two("block_kib", config[0], why);
}

void kda_norm_cpu_heuristic(int32_t *config)
{
    config[0] = 64;
}

int kda_norm_cpu_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    static const int32_t sizes[] = { 64, 256, 16, 1024, 4 };
    int count = 0;
    for (; count < max && count < (int)(sizeof(sizes) / sizeof(sizes[0])); count++)
        configs[count][0] = sizes[count];
    return count;
}

void kda_norm_cpu_plan(const struct kda_norm *norm, struct quern_plan *plan)
{
    define_norm(quern_plan_kernel(plan, "norm", "kda/kda_norm_cpu.c", "kda_norm_main"), norm);
}

void kda_norm_cpu_bind(const struct kda_norm *norm, const int32_t *config,
                       struct kda_norm_args *args, struct quern_step_launch *launch)
{
    int64_t row_bytes = norm->d * (int64_t)quern_dtype_bytes(norm->dtype);
    int64_t rows = (int64_t)config[0] * 1024 / row_bytes;
    args->block = rows > 1 ? rows : 1;
    QUERN_BIND(launch, *args, (norm->t * norm->h + args->block - 1) / args->block, 1, 1);
}

/* ---- CUDA ---------------------------------------------------------------------------------- */

enum { KNOB_THREADS, KNOB_UNROLL, KNOB_BLOCKS };
const struct quern_knob kda_norm_cuda_knobs[KDA_NORM_CUDA_KNOBS] = {
    [KNOB_THREADS] = { "threads", 32, 512, "threads of a block" },
    [KNOB_UNROLL] = { "unroll", 1, 8, "rows that a part of a warp has in flight" },
    [KNOB_BLOCKS] = { "blocks", 1, 1024, "blocks in the grid for each SM, at most" },
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Elements of an access: up to 16 bytes of each array, as their alignment allows, in whole rows. */
static int64_t access_elements(const struct kda_norm *norm)
{
    int64_t size = (int64_t)quern_dtype_bytes(norm->dtype);
    int64_t z_size = (int64_t)quern_dtype_bytes(norm->z);
    int64_t elements =
        least(least(norm->x_alignment, norm->out_alignment) / size, norm->z_alignment / z_size);
    return least(elements, norm->d & -norm->d);
}

/* Lanes of a warp that share a row. */
static int64_t row_lanes(const struct kda_norm *norm)
{
    return least(32, quern_power_of_two_above(norm->d / access_elements(norm)));
}

/* 32-bit registers that a thread's rows take: x and z as they come, weight as f32. */
static int64_t row_registers(const struct kda_norm *norm, int32_t unroll)
{
    int64_t vec = access_elements(norm), lanes = row_lanes(norm);
    int64_t passes = (norm->d + vec * lanes - 1) / (vec * lanes);
    int64_t x = (vec * (int64_t)quern_dtype_bytes(norm->dtype) + 3) / 4;
    int64_t z = (vec * (int64_t)quern_dtype_bytes(norm->z) + 3) / 4;
    if (norm->act == KDA_NORM_UNGATED)
        return unroll * passes * x;
    return unroll * passes * (x + z) + passes * vec;
}

/* Half of what a thread may have is left to addresses and sums: no config spills. */
int kda_norm_cuda_legal(const struct kda_norm *norm, const int32_t *config,
                        struct quern_message *why)
{
    int32_t threads = config[KNOB_THREADS], unroll = config[KNOB_UNROLL];
    int64_t registers = row_registers(norm, unroll);
    for (int i = 0; i < KDA_NORM_CUDA_KNOBS; i++) {
        if (require_power_of_two(kda_norm_cuda_knobs[i].name, config[i], why))
            return QUERN_INVALID;
    }
    if (unroll > 1 && registers > least(96, 32768 / threads))
        return quern_refuse(why, "config unroll=%d: rows of %lld registers, with threads=%d",
                            unroll, (long long)registers, threads);
    if (threads > 256 && registers > 32768 / threads)
        return quern_refuse(why, "config threads=%d: rows of %lld registers", threads,
                            (long long)registers);
    return QUERN_OK;
}

void kda_norm_cuda_heuristic(const struct kda_norm *norm, int32_t *config)
{
    struct quern_message why;
    config[KNOB_THREADS] = 256;
    config[KNOB_BLOCKS] = 1024;
    config[KNOB_UNROLL] = 4;
    while (config[KNOB_UNROLL] > 1 && kda_norm_cuda_legal(norm, config, &why))
        config[KNOB_UNROLL] /= 2;
}

int kda_norm_cuda_candidates(int32_t (*configs)[QUERN_MAX_KNOBS], int max)
{
    static const int32_t list[][3] = { { 256, 4, 1024 }, { 256, 2, 1024 }, { 128, 4, 1024 },
                                       { 256, 4, 8 },    { 256, 2, 16 },   { 128, 2, 1024 },
                                       { 512, 2, 1024 }, { 128, 8, 32 },   { 256, 1, 1024 },
                                       { 256, 8, 8 },    { 128, 1, 1024 }, { 64, 2, 1024 } };
    int count = 0;
    for (; count < max && count < (int)(sizeof(list) / sizeof(list[0])); count++)
        memcpy(configs[count], list[count], sizeof(list[count]));
    return count;
}

void kda_norm_cuda_plan(const struct kda_norm *norm, const int32_t *config, struct quern_plan *plan)
{
    struct quern_step *step = quern_plan_kernel(plan, "norm", "kda/kda_norm_cuda.cu", "kda_norm");
    define_norm(step, norm);
    quern_step_define(step, "VEC", access_elements(norm));
    quern_step_define(step, "LANES", row_lanes(norm));
    quern_step_define(step, "THREADS", config[KNOB_THREADS]);
    quern_step_define(step, "UNROLL", config[KNOB_UNROLL]);
    step->threads[0] = (uint32_t)config[KNOB_THREADS];
}

/* As many blocks as hold the rows of aligned arrays, up to the config's share of the SMs. Rows that
 * take more lanes, for lack of an alignment that bind() does not see, make blocks walk on. */
void kda_norm_cuda_bind(const struct kda_norm *norm, const int32_t *config, int cores,
                        const struct kda_norm_args *args, struct quern_step_launch *launch)
{
    int64_t vec = 16 / (int64_t)quern_dtype_bytes(norm->dtype);
    int64_t lanes = least(32, quern_power_of_two_above((norm->d + vec - 1) / vec));
    int64_t rows = config[KNOB_THREADS] / lanes * config[KNOB_UNROLL];
    int64_t blocks = (norm->t * norm->h + rows - 1) / rows;
    QUERN_BIND(launch, *args, least(blocks, (int64_t)cores * config[KNOB_BLOCKS]), 1, 1);
}
