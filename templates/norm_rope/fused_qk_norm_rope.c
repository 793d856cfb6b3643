/* fused_qk_norm_rope: queries and keys normalised and rotated in place. The family, and what its
 * variants share:
 *
 *     head    | d columns |  --x / sqrt(mean x^2 + eps), times the weight-->  y, in f32
 *     pair i  (a, b) of y's first rotary_dim columns  -->  (a c - b s, b c + a s), rounded to dtype
 *     c, s    cosine and sine of position * turn[i], both f32 and so is their product, times
 *             attention_factor
 *
 * turn[i] = base^(-2i / rotary_dim), with yarn (1 - ramp) of it and ramp of it / factor, in f64,
 * then rounded to f32. The table is made here, so that no device computes powers. */
#define QUERN_DEF "norm_rope/fused_qk_norm_rope.def"
#include <quern/family_def.h>

#include <math.h>

#include "fused_qk_norm_rope.h"

/* ---- What the variants share ----------------------------------------------------------------- */

static double given(double value, double otherwise)
{
    return isnan(value) ? otherwise : value;
}

struct norm_rope_scalars norm_rope_scalars_of(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return (struct norm_rope_scalars){
        .eps = given(v->eps, 1e-6),
        .base = given(v->base, 10000),
        .factor = given(v->factor, 1),
        .low = given(v->low, 0),
        .high = given(v->high, 0),
        .attention_factor = given(v->attention_factor, 1),
    };
}

double norm_rope_ramp(const struct norm_rope_scalars *scalars, int64_t pair)
{
    double span = scalars->high - scalars->low;
    double ramp = ((double)pair - scalars->low) / (fabs(span) <= 1e-6 ? 1e-3 : span);
    return ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
}

void fused_qk_norm_rope_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "D", v->d);
    quern_step_define(step, "ROTARY_DIM", v->rotary_dim);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "IS_INDEX_64", v->index == QUERN_I64);
    quern_step_define(step, "IS_INTERLEAVED", v->interleaved);
}

struct fused_qk_norm_rope_args fused_qk_norm_rope_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    const struct norm_rope_scalars scalars = norm_rope_scalars_of(binding->spec);
    struct fused_qk_norm_rope_args args = {
        .qkv = arrays[ARRAY_qkv].data,
        .q_weight = arrays[ARRAY_q_weight].data,
        .k_weight = arrays[ARRAY_k_weight].data,
        .positions = arrays[ARRAY_positions].data,
        .tokens = v->tokens,
        .token = arrays[ARRAY_qkv].strides[0],
        .head = arrays[ARRAY_qkv].strides[1],
        .hq = v->hq,
        .heads = v->hq + v->hk,
        .eps = (float)scalars.eps,
        .attention_factor = (float)scalars.attention_factor,
    };
    const double step = v->rotary_dim ? pow(scalars.base, -2.0 / (double)v->rotary_dim) : 1;
    double turn = 1;
    for (int64_t i = 0; i < v->rotary_dim / 2; i++, turn *= step) {
        double ramp = norm_rope_ramp(&scalars, i);
        args.turns[i] = (float)(turn * (1 - ramp) + turn / scalars.factor * ramp);
    }
    return args;
}

/* ---- Rules ----------------------------------------------------------------------------------- */

static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "tokens", v->tokens, 1 << 30 },
                  { "hq", v->hq, 1024 },
                  { "hk", v->hk, 1024 },
                  { "hv", v->hv, 1024 },
                  { "rotary_dim", v->rotary_dim, v->d } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    if (v->d != 64 && v->d != 128 && v->d != 256)
        return quern_refuse(why, "d=%lld: must be 64, 128 or 256", (long long)v->d);
    if (v->rotary_dim % 16)
        return quern_refuse(why, "rotary_dim=%lld: must be a multiple of 16",
                            (long long)v->rotary_dim);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why))
        return QUERN_INVALID;
    if (v->eps < 0)
        return quern_refuse(why, "eps=%g: must be at least 0", v->eps);
    if (v->base <= 0)
        return quern_refuse(why, "base=%g: must be above 0", v->base);
    if (v->factor <= 0)
        return quern_refuse(why, "factor=%g: must be above 0", v->factor);
    if (!isnan(v->factor) && v->factor != 1 && (isnan(v->low) || isnan(v->high)))
        return quern_refuse(why, "factor=%g: must be 1 unless low and high are given", v->factor);
    if (v->high < v->low)
        return quern_refuse(why, "high=%g: must be at least low=%g", v->high, v->low);
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->hv == QUERN_REQUIRED && v->hk != QUERN_REQUIRED)
        v->hv = v->hk;
    if (v->rotary_dim == QUERN_REQUIRED)
        v->rotary_dim = v->d;
}

/* Heads are few: they are not rounded up. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->tokens = quern_power_of_two_above(v->tokens);
}

/* Of qkv the heads of queries and keys; of the other arrays everything. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    const struct values *v = values_of(spec);
    const int64_t size = (int64_t)quern_dtype_bytes((int)v->dtype);
    const int64_t *strides = arrays[index].strides;
    (void)host;
    if (index == ARRAY_positions) {
        int64_t bytes = (int64_t)quern_dtype_bytes((int)v->index);
        int64_t last = v->tokens > 1 ? (v->tokens - 1) * strides[0] : 0;
        if (v->tokens)
            quern_ranges_add(ranges, 0, (last + 1) * bytes);
    } else if (index != ARRAY_qkv) {
        quern_ranges_add(ranges, 0, ((v->d - 1) * strides[0] + 1) * size);
    } else {
        const int64_t heads = v->hq + v->hk, is_dense = strides[1] == v->d;
        const int64_t runs = is_dense ? heads > 0 : heads, run = is_dense ? heads * v->d : v->d;
        for (int64_t i = 0; i < v->tokens * runs; i++) {
            int64_t begin = i / runs * strides[0] + i % runs * strides[1];
            quern_ranges_add(ranges, begin * size, (begin + run) * size);
        }
    }
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->tokens;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    const int64_t dtype = values_of(spec)->dtype;
    (void)index;
    return dtype == QUERN_F32 ? 1e-6 : dtype == QUERN_F16 ? 4e-4 : 2.5e-3;
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double heads = (double)v->tokens * (double)(v->hq + v->hk);
    const double size = (double)quern_dtype_bytes((int)v->dtype);
    cost->bytes = 2 * heads * (double)v->d * size + 2 * (double)v->d * size +
                  (double)v->tokens * (double)quern_dtype_bytes((int)v->index);
    cost->flops = heads * (4 * (double)v->d + 3 * (double)v->rotary_dim);
}

static const struct quern_variant *const variants[] = { &fused_qk_norm_rope_cuda,
                                                        &fused_qk_norm_rope_cpu, NULL };

const struct quern_family quern_family_fused_qk_norm_rope = {
    QUERN_FAMILY_TABLES(fused_qk_norm_rope),
    .folder = "norm_rope",
    .doc = "queries and keys normalised by head and rotated, in place",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .inputs = fused_qk_norm_rope_inputs,
    .units = units,
    .reference = fused_qk_norm_rope_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
