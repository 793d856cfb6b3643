/* gemm: d = a b^T (+ old d) (+ bias), batched and strided. The family; a variant has its
 * own files. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>
#include <string.h>

#include "gemm.h"

/* Grids count rows, columns and batch entries in 32 bits. */
int gemm_check_sizes(int64_t m, int64_t n, int64_t k, int64_t batch, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "m", m, INT64_C(1) << 30 },
                  { "n", n, INT64_C(1) << 30 },
                  { "k", k, INT64_C(1) << 30 },
                  { "batch", batch, INT64_C(1) << 24 } };
    for (int i = 0; i < 4; i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

int gemm_check_panel(const char *name, int64_t width, int dtype, struct quern_message *why)
{
    if (dtype != QUERN_F32 && dtype != QUERN_BF16)
        return quern_refuse(why, "%s=%lld b=%s: only f32 and bf16 have a packed form", name,
                            (long long)width, quern_dtype_name(dtype));
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    long long width = gemm_packed_width(v->packed);
    int status = gemm_check_sizes(v->m, v->n, v->k, v->batch, why);
    if (!status && v->math && (v->a != QUERN_F32 || v->b != QUERN_F32))
        return quern_refuse(why, "math=tf32 a=%s b=%s: both must be f32",
                            quern_dtype_name((int)v->a), quern_dtype_name((int)v->b));
    if (status || !v->packed)
        return status;
    if (v->a != v->b)
        return quern_refuse(why, "packed=%lld a=%s b=%s: a must have the dtype of a packed b",
                            width, quern_dtype_name((int)v->a), quern_dtype_name((int)v->b));
    if (v->layout)
        return quern_refuse(why, "packed=%lld layout=nn: must be nt; gemm_pack takes either",
                            width);
    return gemm_check_panel("packed", width, (int)v->b, why);
}

/* m and batch vary from call to call; n and k are a layer's, few and worth tuning exactly. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->m = quern_power_of_two_above(v->m);
    v->batch = quern_power_of_two_above(v->batch);
}

/* splitmix64: a number from -1 to 1 for element `index` of a stream. */
static float draw(uint64_t stream, uint64_t index)
{
    uint64_t x = stream + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (float)(x >> 40) * 0x1p-23f - 1;
}

/* A packed b is more than random numbers: its padding is zero. */
static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    if (index != ARRAY_b || !v->packed)
        return 0;
    int64_t width = gemm_packed_width(v->packed), panels = gemm_ceil_div(v->n, width);
    int64_t panel_size = gemm_round_up(v->k, GEMM_PACKED_K) * width;
    int unit_k = gemm_unit_k((int)v->b);
    memset(data, 0, (size_t)(v->batch * panels * panel_size) * quern_dtype_bytes((int)v->b));
    for (int64_t row = 0; row < v->batch * v->k; row++)
        for (int64_t j = 0; j < v->n; j++) {
            int64_t panel = row / v->k * panels + j / width;
            int64_t at =
                panel * panel_size + gemm_panel_offset(row % v->k, j % width, width, unit_k);
            float value = draw(seed, (uint64_t)at);
            uint32_t bits;
            memcpy(&bits, &value, sizeof(bits));
            if (v->b == QUERN_F32)
                ((float *)data)[at] = value;
            else
                ((uint16_t *)data)[at] = (uint16_t)(bits >> 16); /* bf16, rounded to zero */
        }
    return 1;
}

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->batch * values_of(spec)->m;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    (void)index;
    if (v->d == QUERN_BF16)
        return 2.5e-3;
    double bound = v->d == QUERN_F16 ? 4e-4 : fmax(1e-6, 5e-8 * sqrt((double)v->k));
    return v->math ? fmax(bound, 6e-4) : bound; /* rounding gives 3e-4, cutting off would 8e-4 */
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double m = (double)v->m, n = (double)v->n, k = (double)v->k, batch = (double)v->batch;
    cost->flops = 2 * batch * m * n * k;
    cost->bytes = batch * (m * k * (double)quern_dtype_bytes((int)v->a) +
                           n * k * (double)quern_dtype_bytes((int)v->b) +
                           m * n * (double)quern_dtype_bytes((int)v->d) * (v->accumulate ? 2 : 1)) +
                  n * (double)quern_dtype_bytes((int)v->bias);
}

static const struct quern_variant *const variants[] = { &gemm_sm90, &gemm_sm80, &gemm_ffma,
                                                        &gemm_cpu, NULL };

const struct quern_family quern_family_gemm = {
    QUERN_FAMILY_TABLES(gemm),
    .folder = "gemm",
    .doc = "matrix product, batched: d = a b^T (+ old d) (+ bias)",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .inputs = inputs,
    .units = units,
    .reference = gemm_reference,
    .tolerance = tolerance,
    .cost = cost,
    .linear_expect = gemm_linear_expect,
    .linear_actual = gemm_linear_actual,
};
