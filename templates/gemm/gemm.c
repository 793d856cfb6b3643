/* gemm: d = a b^T (+ old d) (+ bias), batched and strided. The family; a variant has its
 * own files. */
#define QUERN_DEF "gemm/gemm.def"
#include <quern/family_def.h>

#include <math.h>

#include "gemm.h"

/* Grids count rows, columns and batch entries in 32 bits. */
static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "m", v->m, INT64_C(1) << 30 },
                  { "n", v->n, INT64_C(1) << 30 },
                  { "k", v->k, INT64_C(1) << 30 },
                  { "batch", v->batch, INT64_C(1) << 24 } };
    for (int i = 0; i < 4; i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

static int64_t power_of_two_above(int64_t x)
{
    int64_t power = 1;
    while (power < x)
        power *= 2;
    return power;
}

/* m and batch vary from call to call; n and k are a layer's, few and worth tuning exactly. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->m = power_of_two_above(v->m);
    v->batch = power_of_two_above(v->batch);
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
    return v->d == QUERN_F16 ? 4e-4 : fmax(1e-6, 5e-8 * sqrt((double)v->k));
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

static const struct quern_variant *const variants[] = { &gemm_cpu, NULL };

const struct quern_family quern_family_gemm = {
    QUERN_FAMILY_TABLES(gemm),
    .folder = "gemm",
    .doc = "matrix product, batched: d = a b^T (+ old d) (+ bias)",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .units = units,
    .reference = gemm_reference,
    .tolerance = tolerance,
    .cost = cost,
    .linear_check = gemm_linear_check,
};
