/* set_kv_buffer: keys and values of new tokens into a paged cache. The family, what its variants
 * share, and which bytes a call touches:
 *
 *     k, v    --[rope]--[/ factor, e4m3]-->    rows loc[i] of k_cache, v_cache
 *     q       --[rope]-->                      q
 *
 * Every step rounds as if it were alone: a rotated key is rounded to dtype before it is divided, a
 * quotient to f32 before it becomes e4m3. So the result is one, to the bit, on every device. */
#define QUERN_DEF "kv_cache/set_kv_buffer.def"
#include <quern/family_def.h>

#include <stdlib.h>

#include "set_kv_buffer.h"

/* ---- What the variants share ----------------------------------------------------------------- */

int64_t set_kv_buffer_rope_dim(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return !v->rope ? 0 : v->rope_dim ? v->rope_dim : v->d;
}

int64_t set_kv_buffer_rope_first(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->layout == KV_MLA ? v->d - set_kv_buffer_rope_dim(spec) : 0;
}

void set_kv_buffer_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "HKV", v->hkv);
    quern_step_define(step, "D", v->d);
    quern_step_define(step, "DV", v->dv);
    quern_step_define(step, "HQ", v->hq);
    quern_step_define(step, "PAGE", v->page);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "KV_DTYPE", v->kv_dtype);
    quern_step_define(step, "IS_MLA", v->layout == KV_MLA);
    quern_step_define(step, "KV_SCALE", v->kv_scale);
    quern_step_define(step, "IS_INDEX_64", v->index == QUERN_I64);
    quern_step_define(step, "ROPE", v->rope);
    quern_step_define(step, "ROPE_DIM", set_kv_buffer_rope_dim(bucket));
    quern_step_define(step, "ROPE_FIRST", set_kv_buffer_rope_first(bucket));
    quern_step_define(step, "ROPE_DTYPE", v->rope_dtype);
}

static struct kv_rows rows_of(const struct quern_array *array)
{
    return (struct kv_rows){ array->data, array->strides[0], array->strides[1] };
}

static struct kv_cache cache_of(const struct quern_array *array)
{
    return (struct kv_cache){ array->data, array->strides[0], array->strides[1],
                              array->strides[2] };
}

struct set_kv_buffer_args set_kv_buffer_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct set_kv_buffer_args args = {
        .k = rows_of(&arrays[ARRAY_k]),
        .k_cache = cache_of(&arrays[ARRAY_k_cache]),
        .loc = arrays[ARRAY_loc].data,
        .positions = arrays[ARRAY_positions].data,
        .cos_sin = arrays[ARRAY_cos_sin].data,
        .k_scale = arrays[ARRAY_k_scale].data,
        .v_scale = arrays[ARRAY_v_scale].data,
        .t = v->t,
        .rows = v->pages * v->page,
        .max_position = v->max_position,
    };
    if (v->dv) {
        args.v = rows_of(&arrays[ARRAY_v]);
        args.v_cache = cache_of(&arrays[ARRAY_v_cache]);
    }
    if (v->hq)
        args.q = rows_of(&arrays[ARRAY_q]);
    if (v->rope)
        args.cos_sin_row = arrays[ARRAY_cos_sin].strides[0];
    return args;
}

/* ---- Rules ----------------------------------------------------------------------------------- */

static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "t", v->t, 1 << 26 },
                  { "hkv", v->hkv, 1024 },
                  { "d", v->d, 1024 },
                  { "dv", v->dv, 1024 },
                  { "page", v->page, 256 },
                  { "pages", v->pages, 1 << 30 },
                  { "hq", v->hq, 1024 },
                  { "max_position", v->max_position, 1 << 30 },
                  { "rope_dim", v->rope_dim, v->d } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    if (v->page & (v->page - 1))
        return quern_refuse(why, "page=%lld: must be a power of two up to 256", (long long)v->page);
    if (v->d % 8)
        return quern_refuse(why, "d=%lld: must be a multiple of 8", (long long)v->d);
    if (v->dv % 8)
        return quern_refuse(why, "dv=%lld: must be a multiple of 8", (long long)v->dv);
    return QUERN_OK;
}

static int check_rope(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value;
    } unused[] = { { "rope_dim", v->rope_dim },
                   { "hq", v->hq },
                   { "max_position", v->max_position } };
    for (int i = 0; !v->rope && i < 3; i++) {
        if (unused[i].value)
            return quern_refuse(why, "%s=%lld: must be 0 with rope=none", unused[i].name,
                                (long long)unused[i].value);
    }
    if (!v->rope)
        return QUERN_OK;
    if (v->max_position < 1)
        return quern_refuse(why, "max_position=%lld: must be at least 1 with rope",
                            (long long)v->max_position);
    if (v->layout == KV_MLA && v->rope_dim != KV_MLA_TAIL)
        return quern_refuse(why, "rope_dim=%lld: must be %d with layout=mla",
                            (long long)v->rope_dim, KV_MLA_TAIL);
    if ((v->rope_dim ? v->rope_dim : v->d) % 16)
        return quern_refuse(why, "rope_dim=%lld: must be a multiple of 16, as d=%lld if it is 0",
                            (long long)v->rope_dim, (long long)v->d);
    return QUERN_OK;
}

static int check_layout(const struct values *v, struct quern_message *why)
{
    const int is_e4m3 = v->kv_dtype == QUERN_E4M3, is_mla = v->layout == KV_MLA;
    if (is_mla && !is_e4m3)
        return quern_refuse(why, "kv_dtype=%s: must be e4m3 with layout=mla",
                            quern_dtype_name((int)v->kv_dtype));
    if (v->kv_dtype != v->dtype && !is_e4m3)
        return quern_refuse(why, "kv_dtype=%s: must be %s, as dtype is, or e4m3",
                            quern_dtype_name((int)v->kv_dtype), quern_dtype_name((int)v->dtype));
    if (v->kv_scale && (!is_e4m3 || is_mla))
        return quern_refuse(why, "kv_scale=%s: must be none unless kv_dtype=e4m3 and layout=plain",
                            v->kv_scale == KV_SCALE_HEAD ? "head" : "tensor");
    if (!is_mla)
        return QUERN_OK;
    if (v->hkv != 1)
        return quern_refuse(why, "hkv=%lld: must be 1 with layout=mla", (long long)v->hkv);
    if (v->d != KV_MLA_WIDTH)
        return quern_refuse(why, "d=%lld: must be %d with layout=mla", (long long)v->d,
                            KV_MLA_WIDTH);
    if (v->dv)
        return quern_refuse(why, "dv=%lld: must be 0 with layout=mla", (long long)v->dv);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why) || check_layout(v, why))
        return QUERN_INVALID;
    return check_rope(v, why);
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    const int is_mla = v->layout == KV_MLA;
    if (v->hkv == QUERN_REQUIRED && is_mla)
        v->hkv = 1;
    if (v->d == QUERN_REQUIRED && is_mla)
        v->d = KV_MLA_WIDTH;
    if (v->dv == QUERN_REQUIRED && v->d != QUERN_REQUIRED)
        v->dv = is_mla ? 0 : v->d;
    if (v->kv_dtype == QUERN_REQUIRED)
        v->kv_dtype = is_mla ? QUERN_E4M3 : v->dtype;
}

/* No kernel is made for the cache's size, nor for cos_sin's: they become what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->t = quern_power_of_two_above(v->t);
    v->pages = (v->t + v->page - 1) / v->page;
    v->max_position = v->rope ? v->t : 0;
}

/* ---- Indices --------------------------------------------------------------------------------- */

static int64_t index_at(const struct values *v, const void *indices, int64_t i)
{
    return v->index == QUERN_I64 ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
}

static void touch_cache(const struct values *v, const struct quern_array *array,
                        const struct quern_shape *shape, const void *loc,
                        struct quern_ranges *ranges)
{
    const int64_t *strides = array->strides, heads = shape->dims[2], width = shape->dims[3];
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    const int is_dense = heads == 1 || strides[2] == width;
    const int64_t runs = is_dense ? 1 : heads, run = is_dense ? heads * width : width;
    for (int64_t i = 0; i < v->t * runs; i++) {
        int64_t row = index_at(v, loc, i / runs);
        if (row < 0 || row >= v->pages * v->page)
            continue;
        int64_t begin = row / v->page * strides[0] + row % v->page * strides[1];
        begin += runs > 1 ? i % runs * strides[2] : 0;
        quern_ranges_add(ranges, begin * bytes, (begin + run) * bytes);
    }
}

/* Of the caches the rows in loc; of the other arrays everything. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_k_cache || index == ARRAY_v_cache) {
        touch_cache(values_of(spec), &arrays[index], &shape, host[ARRAY_loc], ranges);
        return;
    }
    int64_t last = 0;
    for (int i = 0; i < shape.rank; i++) {
        if (!shape.dims[i])
            return;
        last += (shape.dims[i] - 1) * (shape.dims[i] > 1 ? arrays[index].strides[i] : 0);
    }
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape.dtype));
}

struct use {
    int64_t row, token;
};

static int use_compare(const void *a, const void *b)
{
    const struct use *left = a, *right = b;
    int order = (left->row > right->row) - (left->row < right->row);
    return order ? order : (left->token > right->token) - (left->token < right->token);
}

/* Two tokens of one row, of all such the first by the second's number. */
static int check_distinct(const struct values *v, const void *loc, struct quern_message *why)
{
    struct use *uses = malloc((size_t)v->t * sizeof(*uses)), *found = NULL;
    int64_t count = 0;
    if (!uses) {
        quern_refuse(why, "out of memory: loc cannot be compared");
        return QUERN_NO_MEMORY;
    }
    for (int64_t i = 0; i < v->t; i++) {
        if (index_at(v, loc, i) >= 0)
            uses[count++] = (struct use){ index_at(v, loc, i), i };
    }
    qsort(uses, (size_t)count, sizeof(*uses), use_compare);
    for (int64_t i = 1; i < count; i++) {
        if (uses[i].row == uses[i - 1].row && (!found || uses[i].token < found->token))
            found = &uses[i];
    }
    if (found)
        quern_refuse(why, "loc[%lld]=%lld: must not be used twice, and loc[%lld] is %lld too",
                     (long long)found->token, (long long)found->row, (long long)found[-1].token,
                     (long long)found->row);
    int status = found ? QUERN_INVALID : QUERN_OK;
    free(uses);
    return status;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    for (int64_t i = 0; i < v->t; i++) {
        int64_t row = index_at(v, host[ARRAY_loc], i);
        if (row < -1 || row >= v->pages * v->page)
            return quern_refuse(why,
                                "loc[%lld]=%lld: must be -1, or from 0 to below pages * page=%lld",
                                (long long)i, (long long)row, (long long)(v->pages * v->page));
    }
    for (int64_t i = 0; v->rope && i < v->t; i++) {
        int64_t position = index_at(v, host[ARRAY_positions], i);
        if (position < 0 || position >= v->max_position)
            return quern_refuse(why,
                                "positions[%lld]=%lld: must be from 0 to below max_position=%lld",
                                (long long)i, (long long)position, (long long)v->max_position);
    }
    return v->t > 1 ? check_distinct(v, host[ARRAY_loc], why) : QUERN_OK;
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->t;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    (void)spec, (void)index;
    return 0; /* every rounding is defined */
}

static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double size = (double)quern_dtype_bytes((int)v->dtype);
    const double kept = (double)quern_dtype_bytes((int)v->kv_dtype);
    const double rotated = (double)(set_kv_buffer_rope_dim(spec) * (v->hkv + v->hq));
    double token = (double)(v->hkv * (v->d + v->dv)) * size +
                   (v->layout == KV_MLA ? KV_MLA_BYTES : (double)(v->hkv * (v->d + v->dv)) * kept);
    token += 2 * (double)(v->hq * set_kv_buffer_rope_dim(spec)) * size;
    token += (double)quern_dtype_bytes((int)v->index) * (v->rope ? 2 : 1);
    token += (double)set_kv_buffer_rope_dim(spec) * (double)quern_dtype_bytes((int)v->rope_dtype);
    cost->bytes = (double)v->t * token;
    cost->flops = 3 * (double)v->t * rotated;
}

static const struct quern_variant *const variants[] = { &set_kv_buffer_cuda, &set_kv_buffer_cpu,
                                                        NULL };

const struct quern_family quern_family_set_kv_buffer = {
    QUERN_FAMILY_TABLES(set_kv_buffer),
    .folder = "kv_cache",
    .doc = "keys and values of new tokens into a paged cache, rotated and cast on the way",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = set_kv_buffer_inputs,
    .units = units,
    .reference = set_kv_buffer_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
