/* mla_decode: absorbed latent attention over a paged cache. The family, and what its variants
 * share:
 *
 *     topk = 0    a sequence's rows are page_table[s][t / page], place t % page, t < seq_lens[s]
 *     topk > 0    a query's rows are indices[s][i][...]; there are no lengths
 *
 * A unit of the reference is a query token, all its heads. */
#define QUERN_DEF "mla/mla_decode.def"
#include <quern/family_def.h>

#include <math.h>

#include "mla_decode.h"

/* ---- What the variants share ----------------------------------------------------------------- */

int64_t mla_decode_length(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->topk ? v->topk : v->max_pages * v->page;
}

void mla_decode_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "SQ", v->sq);
    quern_step_define(step, "HQ", v->hq);
    quern_step_define(step, "PAGE", v->page);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "KV_DTYPE", v->kv_dtype);
    quern_step_define(step, "CAUSAL", v->causal && v->sq > 1 && !v->topk);
    quern_step_define(step, "HAS_TOPK", v->topk > 0);
    quern_step_define(step, "HAS_LSE", v->lse);
    quern_step_define(step, "DETERMINISTIC", v->deterministic);
}

static struct mla_heads heads_of(const struct quern_array *array)
{
    return (struct mla_heads){ array->data, array->strides[0], array->strides[1],
                               array->strides[2] };
}

struct mla_decode_args mla_decode_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    struct mla_decode_args args = {
        .q = heads_of(&arrays[ARRAY_q]),
        .o = heads_of(&arrays[ARRAY_o]),
        .kv_cache = arrays[ARRAY_kv_cache].data,
        .cache_page = arrays[ARRAY_kv_cache].strides[0],
        .cache_token = arrays[ARRAY_kv_cache].strides[1],
        .b = v->b,
        .pages = v->pages,
        .topk = v->topk,
        .scale = (float)(isnan(v->scale) ? 1 / sqrt((double)MLA_DK) : v->scale),
    };
    if (v->lse)
        args.lse = heads_of(&arrays[ARRAY_lse]);
    if (v->topk) {
        args.indices = arrays[ARRAY_indices].data;
        args.indices_sequence = arrays[ARRAY_indices].strides[0];
        args.indices_token = arrays[ARRAY_indices].strides[1];
    } else {
        args.page_table = arrays[ARRAY_page_table].data;
        args.seq_lens = arrays[ARRAY_seq_lens].data;
        args.table_sequence = arrays[ARRAY_page_table].strides[0];
        args.max_pages = v->max_pages;
    }
    return args;
}

/* ---- Rules ----------------------------------------------------------------------------------- */

/* Queries and rows are counted in 31 bits. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "b", v->b, 1 << 20 },         { "sq", v->sq, 8 },
                  { "hq", v->hq, 128 },           { "page", v->page, 256 },
                  { "pages", v->pages, 1 << 30 }, { "max_pages", v->max_pages, 1 << 22 },
                  { "topk", v->topk, 1 << 20 } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (check_sizes(v, why))
        return QUERN_INVALID;
    if (v->page & (v->page - 1))
        return quern_refuse(why, "page=%lld: must be a power of two up to 256", (long long)v->page);
    if (v->kv_dtype != v->dtype && v->kv_dtype != QUERN_E4M3)
        return quern_refuse(why, "kv_dtype=%s: must be %s, as dtype is, or e4m3",
                            quern_dtype_name((int)v->kv_dtype), quern_dtype_name((int)v->dtype));
    return QUERN_OK;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->max_pages == QUERN_REQUIRED && v->b >= 0 && v->pages >= 0)
        v->max_pages = v->b ? (v->pages + v->b - 1) / v->b : v->pages;
    if (v->kv_dtype == QUERN_REQUIRED)
        v->kv_dtype = v->dtype;
}

/* No kernel is made for the cache's size: it becomes what a call needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    const int64_t most = 1 << 30;
    v->b = quern_power_of_two_above(v->b);
    v->topk = v->topk ? quern_power_of_two_above(v->topk) : 0;
    v->max_pages = quern_power_of_two_above(v->max_pages);
    v->pages = v->b * (v->topk ? (v->topk + v->page - 1) / v->page : v->max_pages);
    v->pages = v->pages < most ? v->pages : most;
}

/* ---- Indices --------------------------------------------------------------------------------- */

static int64_t length_of(const struct values *v, const int32_t *seq_lens, int64_t sequence)
{
    const int64_t most = v->pages ? v->max_pages * v->page : 0, length = seq_lens[sequence];
    return length < 0 ? 0 : length < most ? length : most;
}

static void touch_run(const struct quern_array *array, int64_t page, int64_t tokens, int64_t row,
                      int64_t bytes, struct quern_ranges *ranges)
{
    const int64_t *strides = array->strides;
    for (int64_t i = 0; i < tokens; i++) {
        int64_t begin = (page * strides[0] + i * strides[1]) * bytes;
        if (strides[1] == row) { /* dense: all at once */
            quern_ranges_add(ranges, begin, begin + tokens * row * bytes);
            return;
        }
        quern_ranges_add(ranges, begin, begin + row * bytes);
    }
}

static void touch_cache(const struct values *v, const struct quern_array *array,
                        const struct quern_shape *shape, const void *const *host,
                        struct quern_ranges *ranges)
{
    const int64_t row = shape->dims[2], bytes = (int64_t)quern_dtype_bytes(shape->dtype);
    const int32_t *table = host[ARRAY_page_table], *indices = host[ARRAY_indices];
    for (int64_t i = 0; v->topk && i < v->b * v->sq * v->topk; i++) {
        int64_t page = indices[i] / v->page, place = indices[i] % v->page;
        if (indices[i] < 0 || page >= v->pages)
            continue;
        int64_t begin = (page * array->strides[0] + place * array->strides[1]) * bytes;
        quern_ranges_add(ranges, begin, begin + row * bytes);
    }
    for (int64_t s = 0; !v->topk && s < v->b; s++) {
        int64_t length = length_of(v, host[ARRAY_seq_lens], s);
        for (int64_t first = 0; first < length; first += v->page) {
            int64_t page = table[s * v->max_pages + first / v->page];
            int64_t tokens = length - first < v->page ? length - first : v->page;
            touch_run(array, page >= 0 && page < v->pages ? page : 0, tokens, row, bytes, ranges);
        }
    }
}

/* Of the cache the rows that are seen; of the other arrays everything. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape = { 0 };
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_kv_cache) {
        touch_cache(values_of(spec), &arrays[index], &shape, host, ranges);
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

static int check_table(const struct values *v, const int32_t *table, const int32_t *seq_lens,
                       struct quern_message *why)
{
    const int64_t most = v->pages ? v->max_pages * v->page : 0;
    for (int64_t s = 0; s < v->b; s++) {
        if (seq_lens[s] < 0 || seq_lens[s] > most)
            return quern_refuse(why, "seq_lens[%lld]=%d: must be from 0 to %lld, max_pages * page",
                                (long long)s, seq_lens[s], (long long)most);
        for (int64_t i = 0; i * v->page < seq_lens[s]; i++) {
            int32_t page = table[s * v->max_pages + i];
            if (page < 0 || page >= v->pages)
                return quern_refuse(why,
                                    "page_table[%lld, %lld]=%d: must be from 0 to below "
                                    "pages=%lld",
                                    (long long)s, (long long)i, page, (long long)v->pages);
        }
    }
    return QUERN_OK;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int32_t *indices = host[ARRAY_indices];
    if (!v->topk)
        return check_table(v, host[ARRAY_page_table], host[ARRAY_seq_lens], why);
    for (int64_t i = 0; i < v->b * v->sq * v->topk; i++) {
        if (indices[i] < -1 || indices[i] >= v->pages * v->page)
            return quern_refuse(why,
                                "indices[%lld, %lld, %lld]=%d: must be -1, or from 0 to below "
                                "pages * page=%lld",
                                (long long)(i / v->topk / v->sq), (long long)(i / v->topk % v->sq),
                                (long long)(i % v->topk), indices[i],
                                (long long)(v->pages * v->page));
    }
    return QUERN_OK;
}

/* ---- The family ------------------------------------------------------------------------------ */

static int64_t units(const struct quern_spec *spec)
{
    const struct values *v = values_of(spec);
    return v->b * v->sq;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    const int64_t dtype = values_of(spec)->dtype;
    if (index == ARRAY_lse)
        return (dtype == QUERN_F32 ? 1e-5 : 1e-3) / (4 * MLA_LSE_NORM);
    return dtype == QUERN_F32 ? 1e-5 : dtype == QUERN_F16 ? 1e-3 : 6e-3;
}

/* Full sequences, that share no page unless they must. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const int kv_dtype = (int)v->kv_dtype;
    const double queries = (double)v->b * (double)v->sq, length = (double)mla_decode_length(spec);
    const double rows = fmin((double)v->b * length, (double)v->pages * (double)v->page);
    const double row =
        kv_dtype == QUERN_E4M3 ? MLA_TOKEN_BYTES : MLA_DK * (double)quern_dtype_bytes(kv_dtype);
    const double heads = queries * (double)v->hq;
    cost->flops = 2 * heads * length * (MLA_DK + MLA_DV);
    cost->bytes = rows * row + heads * (MLA_DK + MLA_DV) * (double)quern_dtype_bytes((int)v->dtype);
    cost->bytes += v->topk ? 4 * queries * length : 4 * (double)v->b * (1 + (double)v->max_pages);
    cost->bytes += v->lse ? 4 * heads : 0;
}

static const struct quern_variant *const variants[] = { &mla_decode_sm90, &mla_decode_sm80,
                                                        &mla_decode_cpu, NULL };

const struct quern_family quern_family_mla_decode = {
    QUERN_FAMILY_TABLES(mla_decode),
    .folder = "mla",
    .doc = "multi-head latent attention of a few tokens over a paged cache of latent rows",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = mla_decode_inputs,
    .units = units,
    .reference = mla_decode_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
