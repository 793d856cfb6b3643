/* grouped_gemm: rows of each expert times its own matrix. The family; a variant has its own
 * files. */
#define QUERN_DEF "moe/grouped_gemm.def"
#include <quern/family_def.h>

#include <math.h>

#include "grouped_gemm.h"
#include "grouped_gemm_sm90_plan.h"

/* ---- Rules --------------------------------------------------------------------------------- */

/* Grids count rows and columns in 32 bits, row_ids are i32. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "experts", v->experts, GROUPED_GEMM_MAX_EXPERTS },
                  { "m", v->m, INT64_C(1) << 30 },
                  { "n", v->n, INT64_C(1) << 29 },
                  { "k", v->k, INT64_C(1) << 30 },
                  { "block", v->block, GROUPED_GEMM_MAX_BLOCK },
                  { "source_rows", v->gather ? v->source_rows : 0, INT64_C(1) << 30 },
                  { "share", v->share, INT64_C(1) << 30 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    if (v->form == GROUPED_GEMM_MASKED && v->m * v->experts > INT64_C(1) << 30)
        return quern_refuse(why, "m=%lld experts=%lld: their product must be at most %lld",
                            (long long)v->m, (long long)v->experts, (long long)1 << 30);
    if (v->gather && v->source_rows * v->share > INT32_MAX)
        return quern_refuse(why, "source_rows=%lld share=%lld: their product must be at most %d",
                            (long long)v->source_rows, (long long)v->share, INT32_MAX);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why))
        return QUERN_INVALID;
    if (v->gather && v->form == GROUPED_GEMM_MASKED)
        return quern_refuse(why, "gather=1: must be 0 with form=masked");
    if (v->d != v->dtype && v->d != QUERN_F32)
        return quern_refuse(why, "d=%s: must be dtype=%s or f32", quern_dtype_name((int)v->d),
                            quern_dtype_name((int)v->dtype));
    if (!isnan(v->limit) && !v->activation)
        return quern_refuse(why, "limit=%g: must not be given with activation=none", v->limit);
    if (!isnan(v->limit) && !(v->limit > 0))
        return quern_refuse(why, "limit=%g: must be above 0", v->limit);
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->source_rows == QUERN_REQUIRED)
        v->source_rows = v->m;
    if (v->d == QUERN_REQUIRED)
        v->d = v->dtype;
}

/* Rows vary from call to call; the rest is a layer's. No kernel is made for the rows of a that are
 * gathered: they become as many as rows of d name. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->form == GROUPED_GEMM_BLOCKS)
        v->m = v->m < v->block ? v->block : v->m;
    v->m = quern_power_of_two_above(v->m);
    v->source_rows = v->gather ? grouped_gemm_ceil_div(v->m, v->share) : v->m;
}

/* ---- Index arrays -------------------------------------------------------------------------- */

static int64_t between(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* Of rows `first` to `last` of d, the latter not among them. */
static void touch_rows(const struct values *v, const struct quern_array *d, int64_t expert,
                       int64_t first, int64_t last, struct quern_ranges *ranges)
{
    int64_t bytes = (int64_t)quern_dtype_bytes((int)v->d), at = expert * d->strides[0];
    if (first < last && v->n)
        quern_ranges_add(ranges, (at + first * d->strides[1]) * bytes,
                         (at + (last - 1) * d->strides[1] + v->n) * bytes);
}

static void touch_d(const struct values *v, const struct quern_array *d, const void *const *host,
                    struct quern_ranges *ranges)
{
    const int32_t *offsets = host[ARRAY_offsets], *counts = host[ARRAY_counts];
    const int32_t *num_rows = host[ARRAY_num_rows];
    if (v->form == GROUPED_GEMM_OFFSETS && offsets) {
        int64_t end = 0;
        for (int64_t i = 0; i <= v->experts; i++)
            end = offsets[i] > end ? offsets[i] : end;
        touch_rows(v, d, 0, between(offsets[0], 0, v->m), between(end, 0, v->m), ranges);
    }
    if (v->form == GROUPED_GEMM_BLOCKS && num_rows)
        touch_rows(v, d, 0, 0, between(num_rows[0], 0, v->m), ranges);
    for (int64_t e = 0; v->form == GROUPED_GEMM_MASKED && counts && e < v->experts; e++)
        touch_rows(v, d, e, 0, between(counts[e], 0, v->m), ranges);
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape;
    int64_t last = 0;
    if (index == ARRAY_d) {
        touch_d(values_of(spec), &arrays[index], host, ranges);
        return;
    }
    quern_def_shape(spec, index, &shape);
    for (int i = 0; i < shape.rank; i++)
        last += (shape.dims[i] - 1) * arrays[index].strides[i];
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape.dtype));
}

static int check_range(const char *name, const int32_t *values, int64_t count, int64_t least,
                       int64_t most, struct quern_message *why)
{
    for (int64_t i = 0; values && i < count; i++) {
        if (values[i] < least || values[i] > most)
            return quern_refuse(why, "%s[%lld]=%d: must be from %lld to %lld", name, (long long)i,
                                values[i], (long long)least, (long long)most);
    }
    return QUERN_OK;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int32_t *offsets = host[ARRAY_offsets];
    if (check_range("offsets", offsets, v->experts + 1, 0, v->m, why) ||
        check_range("expert_ids", host[ARRAY_expert_ids], grouped_gemm_ceil_div(v->m, v->block), -1,
                    v->experts - 1, why) ||
        check_range("num_rows", host[ARRAY_num_rows], 1, 0, v->m, why) ||
        check_range("counts", host[ARRAY_counts], v->experts, 0, v->m, why) ||
        check_range("row_ids", host[ARRAY_row_ids], v->m, -1, v->source_rows * v->share, why))
        return QUERN_INVALID;
    for (int64_t i = 1; offsets && i <= v->experts; i++) {
        if (offsets[i] < offsets[i - 1])
            return quern_refuse(why, "offsets[%lld]=%d: must be at least offsets[%lld]=%d",
                                (long long)i, offsets[i], (long long)i - 1, offsets[i - 1]);
    }
    return QUERN_OK;
}

/* ---- Contents ------------------------------------------------------------------------------ */

/* splitmix64: from 0 to 1. */
static double draw(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)(x >> 11) * 0x1p-53;
}

/* How many rows an expert likes to have, of a mean of 1: now and then none. */
static double draw_weight(const struct values *v, uint64_t *state)
{
    double weight = 0.25 + 1.5 * draw(state);
    return draw(state) < 0.1 && v->experts > 2 ? 0 : weight;
}

/* All rows, unless m is odd: then one before and one behind are nobody's. */
static void draw_offsets(const struct values *v, uint64_t state, int32_t *offsets)
{
    uint64_t again = state;
    double sum = 0, so_far = 0;
    int64_t first = v->m % 2 && v->m > 2, rows = v->m - 2 * first;
    for (int64_t e = 0; e < v->experts; e++)
        sum += draw_weight(v, &state);
    for (int64_t e = 0; e < v->experts; e++) {
        offsets[e] = (int32_t)(first + (int64_t)(sum > 0 ? so_far / sum * (double)rows : 0));
        so_far += draw_weight(v, &again);
    }
    offsets[v->experts] = (int32_t)(first + rows);
}

/* In order, as a sort leaves them; the first may be nobody's. The last is not in use. */
static void draw_experts(const struct values *v, uint64_t state, int32_t *ids)
{
    int64_t blocks = grouped_gemm_ceil_div(v->m, v->block);
    int64_t none = blocks > 2 && draw(&state) < 0.5;
    for (int64_t i = 0; i < blocks; i++)
        ids[i] = i < none || i + 1 == blocks ? -1 : (int32_t)((i - none) * v->experts / blocks);
    if (blocks <= 2)
        ids[0] = (int32_t)(draw(&state) * (double)v->experts);
}

static void draw_rows(const struct values *v, uint64_t state, int32_t *ids)
{
    double count = (double)(v->source_rows * v->share);
    for (int64_t i = 0; i < v->m; i++) {
        double chance = draw(&state);
        ids[i] = (int32_t)(draw(&state) * count);
        ids[i] = chance < 0.02 ? -1 : chance < 0.04 ? (int32_t)count : ids[i];
    }
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    int32_t *values = data;
    if (index == ARRAY_offsets)
        draw_offsets(v, seed, values);
    else if (index == ARRAY_expert_ids)
        draw_experts(v, seed, values);
    else if (index == ARRAY_num_rows)
        values[0] = (int32_t)(v->m > 2 * v->block ? v->m - v->block : v->m);
    else if (index == ARRAY_row_ids)
        draw_rows(v, seed, values);
    else if (index != ARRAY_counts)
        return 0;
    for (int64_t e = 0; index == ARRAY_counts && e < v->experts; e++)
        values[e] = (int32_t)(draw_weight(v, &seed) / 1.75 * (double)(v->m + 1));
    return 1;
}

/* ---- The check ----------------------------------------------------------------------------- */

static int64_t units(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->form == GROUPED_GEMM_MASKED ? v->m * v->experts : v->m;
}

/* gemm's; a product of two sums errs by both. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    (void)index;
    if (v->d != QUERN_F32)
        return v->d == QUERN_BF16 ? 2.5e-3 : 4e-4;
    return fmax(1e-6, 5e-8 * sqrt((double)v->k)) * (v->activation ? 2 : 1);
}

/* Every row in use, every expert hit. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    double size = (double)quern_dtype_bytes((int)v->dtype), experts = (double)v->experts;
    double rows = (double)v->m * (v->form == GROUPED_GEMM_MASKED ? experts : 1);
    double n = (double)v->n, k = (double)v->k, width = n * (v->activation ? 2 : 1);
    double sources = v->gather ? fmin((double)v->source_rows, rows) : rows;
    cost->flops = 2 * rows * width * k;
    cost->bytes = sources * k * size + fmin(experts, rows) * width * k * size +
                  rows * n * (double)quern_dtype_bytes((int)v->d);
}

/* ---- What variants start from -------------------------------------------------------------- */

void grouped_gemm_work_of(const struct quern_spec *spec, const uint8_t *alignment,
                          struct grouped_gemm_work *work)
{
    const struct values *v = values_of(spec);
    *work = (struct grouped_gemm_work){
        .experts = v->experts,
        .m = v->m,
        .n = v->n,
        .k = v->k,
        .source_rows = v->gather ? v->source_rows : v->m,
        .share = v->share,
        .form = (int)v->form,
        .block = (int)v->block,
        .gather = (int)v->gather,
        .dtype = (int)v->dtype,
        .d = (int)v->d,
        .activation = (int)v->activation,
        .align_a = alignment ? alignment[ARRAY_a] : 1,
        .align_b = alignment ? alignment[ARRAY_b] : 1,
        .align_d = alignment ? alignment[ARRAY_d] : 1,
        .limit = grouped_gemm_limit(v->activation, v->limit),
    };
}

void grouped_gemm_place_of(const struct quern_binding *binding, struct grouped_gemm_place *place)
{
    const struct quern_array *arrays = binding->arrays;
    const struct quern_array *a = &arrays[ARRAY_a], *b = &arrays[ARRAY_b], *d = &arrays[ARRAY_d];
    *place = (struct grouped_gemm_place){
        .a = a->data,
        .b = b->data,
        .d = d->data,
        .offsets = arrays[ARRAY_offsets].data,
        .expert_ids = arrays[ARRAY_expert_ids].data,
        .num_rows = arrays[ARRAY_num_rows].data,
        .counts = arrays[ARRAY_counts].data,
        .row_ids = arrays[ARRAY_row_ids].data,
        .a_row_stride = a->strides[1],
        .b_row_stride = b->strides[1],
        .d_row_stride = d->strides[1],
        .a_expert_stride = a->strides[0],
        .b_expert_stride = b->strides[0],
        .d_expert_stride = d->strides[0],
    };
}

static const struct quern_variant *const variants[] = { &grouped_gemm_sm90, &grouped_gemm_sm80,
                                                        &grouped_gemm_cpu, NULL };

const struct quern_family quern_family_grouped_gemm = {
    QUERN_FAMILY_TABLES(grouped_gemm),
    .folder = "moe",
    .doc = "rows of each expert times its own matrix, with an activation of gate and up",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = grouped_gemm_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
