/* attention_decode: one query of each sequence against a paged cache. The family, and what its
 * variants share.
 *
 *     page_table[s]  ->  pages  ->  rows [token of the page, head]     seq_lens[s] tokens are used
 *     shared_table   ->  pages of a prefix that every sequence sees before its own tokens
 *
 * Positions count on from the prefix to the sequence's own tokens; the query stands at the last, so
 * a window is the last tokens of both together.
 *
 * A unit of the reference is a query head of a sequence. */
#define QUERN_DEF "decode/attention_decode.def"
#include <quern/family_def.h>

#include <math.h>
#include <stdio.h>

#include "attention_decode.h"

#define TOKENS_MOST (1 << 30) /* of a table: a sum of two lengths is an int32_t */

/* ---- What both variants share ---------------------------------------------------------------- */

static int64_t clamp(int64_t x, int64_t least, int64_t most)
{
    return x < least ? least : x > most ? most : x;
}

struct decode_seen attention_decode_seen(const struct quern_spec *spec, int64_t shared_len,
                                         int64_t seq_len)
{
    const struct values *v = values_of(spec);
    int64_t shared = clamp(shared_len, 0, v->shared_pages * v->page);
    int64_t own = clamp(seq_len, 0, v->max_pages * v->page);
    int64_t first = v->window ? clamp(shared + own - v->window, 0, shared + own) : 0;
    return (struct decode_seen){ .shared = { clamp(first, 0, shared), shared },
                                 .own = { clamp(first - shared, 0, own), own } };
}

void attention_decode_define(struct quern_step *step, const struct quern_spec *bucket)
{
    const struct values *v = values_of(bucket);
    quern_step_define(step, "D", v->d);
    quern_step_define(step, "DV", v->dv);
    quern_step_define(step, "GROUP", v->hq / v->hkv);
    quern_step_define(step, "HKV", v->hkv);
    quern_step_define(step, "PAGE", v->page);
    quern_step_define(step, "DTYPE", v->dtype);
    quern_step_define(step, "KV_DTYPE", v->kv_dtype);
    quern_step_define(step, "KV_SCALE", v->kv_scale);
    quern_step_define(step, "SINKS", v->sinks);
    quern_step_define(step, "SINKS_DTYPE", v->sinks_dtype);
    quern_step_define(step, "HAS_LSE", v->lse);
    quern_step_define(step, "HAS_SOFTCAP", !isnan(v->softcap));
    quern_step_define(step, "HAS_SHARED", v->shared_pages > 0);
    quern_step_define(step, "HAS_WINDOW", v->window > 0);
}

static struct decode_rows rows_of(const struct quern_array *array)
{
    return (struct decode_rows){ array->data, array->strides[0], array->strides[1] };
}

static struct decode_cache cache_of(const struct quern_array *array)
{
    return (struct decode_cache){ array->data, array->strides[0], array->strides[1],
                                  array->strides[2] };
}

struct decode_args attention_decode_arguments(const struct quern_binding *binding)
{
    const struct values *v = values_of(binding->spec);
    const struct quern_array *arrays = binding->arrays;
    return (struct decode_args){
        .q = rows_of(&arrays[ARRAY_q]),
        .o = rows_of(&arrays[ARRAY_o]),
        .lse = rows_of(&arrays[ARRAY_lse]),
        .k = cache_of(&arrays[ARRAY_k_cache]),
        .v = cache_of(&arrays[ARRAY_v_cache]),
        .page_table = arrays[ARRAY_page_table].data,
        .seq_lens = arrays[ARRAY_seq_lens].data,
        .shared_table = arrays[ARRAY_shared_table].data,
        .shared_len = arrays[ARRAY_shared_len].data,
        .k_scale = arrays[ARRAY_k_scale].data,
        .v_scale = arrays[ARRAY_v_scale].data,
        .sinks = arrays[ARRAY_sinks].data,
        .table_row = arrays[ARRAY_page_table].strides[0],
        .b = v->b,
        .pages = v->pages,
        .max_pages = v->max_pages,
        .shared_pages = v->shared_pages,
        .window = v->window,
        .scale = (float)(isnan(v->scale) ? 1 / sqrt((double)v->d) : v->scale),
        .softcap = isnan(v->softcap) ? 0 : (float)v->softcap,
    };
}

/* ---- Rules ----------------------------------------------------------------------------------- */

/* Grids, pages and tokens are counted in 31 bits. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    const struct {
        const char *name;
        int64_t value, most;
    } sizes[] = { { "b", v->b, 1 << 24 },
                  { "hq", v->hq, 1 << 12 },
                  { "pages", v->pages, TOKENS_MOST },
                  { "max_pages", v->max_pages, TOKENS_MOST / v->page },
                  { "shared_pages", v->shared_pages, TOKENS_MOST / v->page },
                  { "window", v->window, INT64_C(2) * TOKENS_MOST } };
    for (int i = 0; i < (int)(sizeof(sizes) / sizeof(sizes[0])); i++) {
        if (sizes[i].value > sizes[i].most)
            return quern_refuse(why, "%s=%lld: must be at most %lld", sizes[i].name,
                                (long long)sizes[i].value, (long long)sizes[i].most);
    }
    return QUERN_OK;
}

static int check_heads(const struct values *v, struct quern_message *why)
{
    if (v->hq % v->hkv)
        return quern_refuse(why, "hkv=%lld: must be a divisor of hq=%lld", (long long)v->hkv,
                            (long long)v->hq);
    if (v->d != 64 && v->d != 96 && v->d != 128 && v->d != 192 && v->d != 256)
        return quern_refuse(why, "d=%lld: must be 64, 96, 128, 192 or 256", (long long)v->d);
    if (v->dv != v->d && !(v->d == 192 && v->dv == 128))
        return quern_refuse(why, "dv=%lld: must be %s", (long long)v->dv,
                            v->d == 192 ? "192 or 128 with d=192" : "as d is");
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    if (v->page & (v->page - 1) || v->page > 256)
        return quern_refuse(why, "page=%lld: must be a power of two, at most 256",
                            (long long)v->page);
    if (check_sizes(v, why) || check_heads(v, why))
        return QUERN_INVALID;
    if (v->kv_dtype != v->dtype && v->kv_dtype != QUERN_E4M3)
        return quern_refuse(why, "kv_dtype=%s: must be %s, as dtype is, or e4m3",
                            quern_dtype_name((int)v->kv_dtype), quern_dtype_name((int)v->dtype));
    if (v->softcap < 0)
        return quern_refuse(why, "softcap=%g: must be at least 0", v->softcap);
    return QUERN_OK;
}

/* As many heads of the cache as of queries, values as wide as keys or MLA's, and a table that
 * shares out the pages that are not the prefix's. */
static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->hkv == QUERN_REQUIRED)
        v->hkv = v->hq;
    if (v->dv == QUERN_REQUIRED)
        v->dv = v->d == 192 ? 128 : v->d;
    if (v->max_pages == QUERN_REQUIRED && v->pages >= 0 && v->b >= 0)
        v->max_pages = v->b ? (v->pages + v->b - 1) / v->b : 0;
    if (v->kv_dtype == QUERN_REQUIRED)
        v->kv_dtype = v->dtype;
}

/* No kernel is made for the size of the pool: at most what a call may need. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    int64_t need;
    v->b = quern_power_of_two_above(v->b);
    v->max_pages = quern_power_of_two_above(v->max_pages);
    v->shared_pages = v->shared_pages ? quern_power_of_two_above(v->shared_pages) : 0;
    v->window = v->window ? quern_power_of_two_above(v->window) : 0;
    need = v->b * v->max_pages + v->shared_pages;
    v->pages = quern_power_of_two_above(v->pages);
    v->pages = v->pages < need ? v->pages : need;
}

/* ---- Which bytes ----------------------------------------------------------------------------- */

/* Rows [begin, end) of a page, of all heads. */
static void touch_rows(const struct quern_array *cache, const struct quern_shape *shape,
                       int64_t page, struct decode_span rows, struct quern_ranges *ranges)
{
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape->dtype), *strides = cache->strides;
    const int64_t heads = shape->dims[2], width = shape->dims[3];
    const int64_t first = page * strides[0] + rows.begin * strides[1];
    const int64_t count = rows.end - rows.begin;
    if (strides[1] == heads * width && strides[2] == width) {
        quern_ranges_add(ranges, first * bytes, (first + count * strides[1]) * bytes);
        return;
    }
    const int is_run = strides[1] == width; /* a head's rows lie together */
    for (int64_t i = 0; i < heads * (is_run ? 1 : count); i++) {
        int64_t at = first + i % heads * strides[2] + i / heads * strides[1];
        quern_ranges_add(ranges, at * bytes, (at + (is_run ? count : 1) * width) * bytes);
    }
}

static void touch_span(const struct values *v, const struct quern_array *cache,
                       const struct quern_shape *shape, const int32_t *table,
                       struct decode_span span, struct quern_ranges *ranges)
{
    for (int64_t at = span.begin; at < span.end;) {
        int64_t in_page = at % v->page, page = table[at / v->page];
        int64_t count = v->page - in_page < span.end - at ? v->page - in_page : span.end - at;
        if (page >= 0 && page < v->pages)
            touch_rows(cache, shape, page, (struct decode_span){ in_page, in_page + count },
                       ranges);
        at += count;
    }
}

/* What any sequence sees of the prefix. */
static struct decode_span shared_seen(const struct quern_spec *spec, const void *const *host)
{
    const int32_t *lengths = host[ARRAY_seq_lens], *shared = host[ARRAY_shared_len];
    struct decode_span all = { 0, 0 };
    for (int64_t i = 0; shared && i < values_of(spec)->b; i++) {
        struct decode_span one = attention_decode_seen(spec, *shared, lengths[i]).shared;
        all.begin = i == 0 || one.begin < all.begin ? one.begin : all.begin;
        all.end = one.end;
    }
    return all;
}

static void touch_cache(const struct quern_spec *spec, const struct quern_array *cache,
                        const struct quern_shape *shape, const void *const *host,
                        struct quern_ranges *ranges)
{
    const struct values *v = values_of(spec);
    const int32_t *table = host[ARRAY_page_table], *lengths = host[ARRAY_seq_lens];
    const int32_t *shared_table = host[ARRAY_shared_table], *shared = host[ARRAY_shared_len];
    for (int64_t i = 0; table && lengths && i < v->b; i++)
        touch_span(v, cache, shape, table + i * v->max_pages,
                   attention_decode_seen(spec, shared ? *shared : 0, lengths[i]).own, ranges);
    if (shared_table && lengths)
        touch_span(v, cache, shape, shared_table, shared_seen(spec, host), ranges);
}

static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    struct quern_shape shape;
    int64_t last = 0;
    quern_def_shape(spec, index, &shape);
    if (index == ARRAY_k_cache || index == ARRAY_v_cache) {
        touch_cache(spec, &arrays[index], &shape, host, ranges);
        return;
    }
    for (int i = 0; i < shape.rank; i++)
        last += (shape.dims[i] - 1) * arrays[index].strides[i];
    quern_ranges_add(ranges, 0, (last + 1) * (int64_t)quern_dtype_bytes(shape.dtype));
}

/* ---- Index arrays ---------------------------------------------------------------------------- */

static int check_length(const char *name, int64_t i, int32_t length, int64_t most,
                        struct quern_message *why)
{
    if (length < 0 || length > most)
        return quern_refuse(why, "%s[%lld]=%d: must be from 0 to %lld, the tokens of its pages",
                            name, (long long)i, length, (long long)most);
    return QUERN_OK;
}

/* Of the pages that hold the span. */
static int check_pages(const struct values *v, const char *name, const int32_t *table,
                       struct decode_span span, struct quern_message *why)
{
    for (int64_t i = span.begin / v->page; span.begin < span.end && i <= (span.end - 1) / v->page;
         i++) {
        if (table[i] < 0 || table[i] >= v->pages)
            return quern_refuse(why, "%s%lld]=%d: must be from 0 to below pages=%lld", name,
                                (long long)i, table[i], (long long)v->pages);
    }
    return QUERN_OK;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const int32_t *table = host[ARRAY_page_table], *lengths = host[ARRAY_seq_lens];
    const int32_t *shared_table = host[ARRAY_shared_table], *shared = host[ARRAY_shared_len];
    if (shared && check_length("shared_len", 0, *shared, v->shared_pages * v->page, why))
        return QUERN_INVALID;
    for (int64_t i = 0; i < v->b; i++) {
        char name[48];
        if (check_length("seq_lens", i, lengths[i], v->max_pages * v->page, why))
            return QUERN_INVALID;
        snprintf(name, sizeof(name), "page_table[%lld, ", (long long)i);
        if (check_pages(v, name, table + i * v->max_pages,
                        attention_decode_seen(spec, shared ? *shared : 0, lengths[i]).own, why))
            return QUERN_INVALID;
    }
    return check_pages(v, "shared_table[", shared_table, shared_seen(spec, host), why);
}

/* ---- The check ------------------------------------------------------------------------------- */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->b * values_of(spec)->hq;
}

/* An lse is a row, stated with a norm of ATTENTION_DECODE_LSE: four times the tolerance of that, as
 * a row may be off, is 1e-3, or 1e-5 in f32. */
static double tolerance(const struct quern_spec *spec, int index)
{
    const struct values *v = values_of(spec);
    if (index == ARRAY_lse)
        return (v->dtype == QUERN_F32 ? 1e-5 : 1e-3) / (4 * ATTENTION_DECODE_LSE);
    return v->dtype == QUERN_F32 ? 1e-5 : v->dtype == QUERN_F16 ? 1e-3 : 6e-3;
}

/* Of the lengths that are drawn. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const int64_t shared_length = attention_decode_shared_length(spec);
    double scores = 0, rows = 0, first = (double)shared_length;
    for (int64_t i = 0; i < v->b; i++) {
        struct decode_seen seen =
            attention_decode_seen(spec, shared_length, attention_decode_length(spec, i));
        rows += (double)(seen.own.end - seen.own.begin);
        scores += (double)(seen.own.end - seen.own.begin + seen.shared.end - seen.shared.begin);
        first = (double)seen.shared.begin < first ? (double)seen.shared.begin : first;
    }
    rows += v->b ? (double)shared_length - first : 0;
    cost->flops = 2 * scores * (double)v->hq * (double)(v->d + v->dv);
    cost->bytes = (rows * (double)v->hkv * (double)quern_dtype_bytes((int)v->kv_dtype) +
                   (double)v->b * (double)v->hq * (double)quern_dtype_bytes((int)v->dtype)) *
                  (double)(v->d + v->dv);
}

static const struct quern_variant *const variants[] = { &attention_decode_sm80,
                                                        &attention_decode_cpu, NULL };

const struct quern_family quern_family_attention_decode = {
    QUERN_FAMILY_TABLES(attention_decode),
    .folder = "decode",
    .doc = "attention of one query of each sequence to a paged cache",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = attention_decode_inputs,
    .units = units,
    .reference = attention_decode_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
