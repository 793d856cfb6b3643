/* attention_extend: attention of new tokens to a prefix in a paged cache and to themselves. The
 * family; a variant has its own files. */
#define QUERN_DEF "attention/attention_extend.def"
#include <quern/family_def.h>

#include <math.h>

#include "attention_draw.h"
#include "attention_extend.h"
#include "attention_ref.h"
#include "attention_rules.h"

#define MAX_CACHE_ROWS (INT64_C(1) << 31) /* prefix=indices: an i32 counts them */

/* ---- Rules --------------------------------------------------------------------------------- */

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void implied(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    if (v->hkv == QUERN_REQUIRED)
        v->hkv = v->hq;
    if (v->dv == QUERN_REQUIRED)
        v->dv = attention_implied_dv(v->d);
    if (v->kv_dtype == QUERN_REQUIRED)
        v->kv_dtype = v->dtype;
    if (v->max_pages == QUERN_REQUIRED && v->prefix)
        v->max_pages = 0;
    if (v->max_pages == QUERN_REQUIRED && v->pages >= 0 && v->b >= 0)
        v->max_pages = v->b ? ceil_div(v->pages, v->b) : 0;
}

static int check_cache(const struct values *v, struct quern_message *why)
{
    if (v->page & (v->page - 1) || v->page > 256)
        return quern_refuse(why, "page=%lld: must be a power of two up to 256", (long long)v->page);
    if (v->kv_dtype != v->dtype && v->kv_dtype != QUERN_E4M3)
        return quern_refuse(why, "kv_dtype=%s: must be %s, as dtype is, or e4m3",
                            quern_dtype_name((int)v->kv_dtype), quern_dtype_name((int)v->dtype));
    if (attention_check_most("pages", v->pages, ATTENTION_MAX_TOKENS, why) ||
        attention_check_most("max_pages", v->max_pages, ATTENTION_MAX_TOKENS / v->page, why) ||
        attention_check_most("indices", v->indices, ATTENTION_MAX_TOKENS, why))
        return QUERN_INVALID;
    if (v->prefix && v->pages * v->page > MAX_CACHE_ROWS)
        return quern_refuse(why, "pages=%lld: must be at most %lld with page=%lld, prefix=indices",
                            (long long)v->pages, (long long)(MAX_CACHE_ROWS / v->page),
                            (long long)v->page);
    if (v->prefix && v->max_pages)
        return quern_refuse(why, "max_pages=%lld: must be 0 with prefix=indices",
                            (long long)v->max_pages);
    if (!v->prefix && v->indices)
        return quern_refuse(why, "indices=%lld: must be 0 with prefix=table",
                            (long long)v->indices);
    return QUERN_OK;
}

/* What bucket() makes of sizes stays within the same limits. */
static int check_sizes(const struct values *v, struct quern_message *why)
{
    if (attention_check_most("b", v->b, 1 << 24, why) ||
        attention_check_most("t", v->t, ATTENTION_MAX_TOKENS, why))
        return QUERN_INVALID;
    int64_t table = quern_power_of_two_above(v->max_pages);
    if (quern_power_of_two_above(v->b) * table > ATTENTION_MAX_TOKENS)
        return quern_refuse(why, "b=%lld: must be at most %lld with max_pages=%lld",
                            (long long)v->b, (long long)(ATTENTION_MAX_TOKENS / table),
                            (long long)v->max_pages);
    if (!v->b && v->t)
        return quern_refuse(why, "t=%lld: must be 0 with b=0", (long long)v->t);
    return QUERN_OK;
}

static int validate(const struct quern_spec *spec, struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct attention_heads heads = { v->hq, v->hkv, v->d, v->dv, v->softcap };
    return check_cache(v, why) || check_sizes(v, why) || attention_check_heads(&heads, why)
               ? QUERN_INVALID
               : QUERN_OK;
}

/* 0 stays what it is: no window, no prefix. */
static int64_t rounded(int64_t value)
{
    return value ? quern_power_of_two_above(value) : 0;
}

/* No kernel is made for the cache's size: what a call's sequences can fill is what it needs. */
static void bucket(struct quern_spec *spec)
{
    struct values *v = (struct values *)(void *)spec->values;
    v->b = rounded(v->b);
    v->t = rounded(v->t);
    v->window = rounded(v->window);
    v->max_pages = rounded(v->max_pages);
    v->indices = rounded(v->indices);
    v->pages = v->prefix ? ceil_div(v->indices, v->page) : v->b * v->max_pages;
}

/* ---- Which bytes --------------------------------------------------------------------------- */

static struct attention_pages pages_of(const struct values *v)
{
    return (struct attention_pages){ "prefix_lens", v->b, v->pages, v->page, v->max_pages };
}

static void touch_indices(const struct values *v, const struct quern_array *cache,
                          const struct quern_shape *shape, const void *const *host,
                          struct quern_ranges *ranges)
{
    const int32_t *indptr = host[ARRAY_kv_indptr], *indices = host[ARRAY_kv_indices];
    const int64_t rows = v->pages * v->page;
    for (int64_t s = 0; indptr && indices && s < v->b; s++) {
        int64_t end = attention_border(indptr, s + 1, v->indices);
        for (int64_t i = attention_border(indptr, s, v->indices); rows && i < end; i++) {
            int64_t row = attention_border(indices, i, rows - 1);
            attention_touch_token(cache, shape, row / v->page, row % v->page, ranges);
        }
    }
}

static void touch_table(const struct values *v, const struct quern_array *cache,
                        const struct quern_shape *shape, const void *const *host,
                        struct quern_ranges *ranges)
{
    const int32_t *table = host[ARRAY_page_table], *lens = host[ARRAY_prefix_lens];
    const struct attention_pages pages = pages_of(v);
    for (int64_t s = 0; table && lens && s < v->b; s++) {
        int64_t length = attention_length(&pages, lens, s);
        for (int64_t j = 0; j < length; j++) {
            int64_t at = s * v->max_pages + j / v->page;
            attention_touch_token(cache, shape, attention_border(table, at, v->pages - 1),
                                  j % v->page, ranges);
        }
    }
}

/* Of the cache the rows of prefixes. */
static void touched(const struct quern_spec *spec, const struct quern_array *arrays,
                    const void *const *host, int index, struct quern_ranges *ranges)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    if (index != ARRAY_k_cache && index != ARRAY_v_cache)
        attention_touch_all(&arrays[index], &shape, ranges);
    else if (v->prefix)
        touch_indices(v, &arrays[index], &shape, host, ranges);
    else
        touch_table(v, &arrays[index], &shape, host, ranges);
}

static int check_rows(const struct values *v, const int32_t *indptr, const int32_t *indices,
                      struct quern_message *why)
{
    const struct attention_borders of = { "kv_indptr", "indices", v->b, v->indices, 1 };
    int status = attention_check_borders(&of, indptr, why);
    for (int64_t i = 0; !status && indptr && indices && i < indptr[v->b]; i++) {
        if (indices[i] < 0 || indices[i] >= v->pages * v->page)
            return quern_refuse(why,
                                "kv_indices[%lld]=%d: must be from 0 to below pages * page = %lld",
                                (long long)i, indices[i], (long long)(v->pages * v->page));
    }
    return status;
}

static int check_indices(const struct quern_spec *spec, const void *const *host,
                         struct quern_message *why)
{
    const struct values *v = values_of(spec);
    const struct attention_borders q = { "cu_seqlens_q", "t", v->b, v->t, 0 };
    const struct attention_pages pages = pages_of(v);
    int status = attention_check_borders(&q, host[ARRAY_cu_seqlens_q], why);
    if (status)
        return status;
    return v->prefix ? check_rows(v, host[ARRAY_kv_indptr], host[ARRAY_kv_indices], why)
                     : attention_check_pages(&pages, host[ARRAY_page_table],
                                             host[ARRAY_prefix_lens], why);
}

/* ---- Contents ------------------------------------------------------------------------------ */

/* The length of a prefix, which page_table and prefix_lens agree on. */
static int64_t draw_length(const struct values *v, uint64_t seed, int64_t sequence)
{
    return attention_draw_length(seed, sequence, v->pages ? v->max_pages * v->page : 0);
}

static void draw_lengths(const struct values *v, uint64_t seed, int32_t *lengths)
{
    for (int64_t s = 0; s < v->b; s++)
        lengths[s] = (int32_t)draw_length(v, seed, s);
}

/* Beyond a prefix's pages the table holds what is no page. */
static void draw_table(const struct values *v, uint64_t seed, int32_t *table)
{
    attention_draw_ids(seed + 1, v->b * v->max_pages, v->pages, table);
    for (int64_t s = 0; s < v->b; s++) {
        for (int64_t i = ceil_div(draw_length(v, seed, s), v->page); i < v->max_pages; i++)
            table[s * v->max_pages + i] = i % 2 ? INT32_MAX : -1;
    }
}

static int inputs(const struct quern_spec *spec, int index, uint64_t seed, void *data)
{
    const struct values *v = values_of(spec);
    struct quern_shape shape;
    quern_def_shape(spec, index, &shape);
    const uint64_t own = seed ^ (uint64_t)(index + 1) << 56;
    if (index == ARRAY_cu_seqlens_q)
        attention_draw_borders(own, v->b, v->t, data);
    else if (index == ARRAY_prefix_lens)
        draw_lengths(v, seed, data);
    else if (index == ARRAY_page_table)
        draw_table(v, seed, data);
    else if (index == ARRAY_kv_indptr)
        attention_draw_borders(own, v->b, v->pages ? v->indices : 0, data);
    else if (index == ARRAY_kv_indices)
        attention_draw_ids(own, v->indices, v->pages * v->page, data);
    else if (index == ARRAY_k_scale || index == ARRAY_v_scale)
        attention_draw_factors(&shape, own, data);
    else
        attention_draw_normal(&shape, own, 1, data);
    return 1;
}

/* ---- The check ----------------------------------------------------------------------------- */

static int64_t units(const struct quern_spec *spec)
{
    return values_of(spec)->t * values_of(spec)->hkv;
}

static double tolerance(const struct quern_spec *spec, int index)
{
    return attention_tolerance(values_of(spec)->dtype, index == ARRAY_lse);
}

/* Sequences are taken to have one number of new tokens each, prefixes to be as long as the table
 * or their share of the indices. */
static void cost(const struct quern_spec *spec, struct quern_cost *cost)
{
    const struct values *v = values_of(spec);
    const double b = v->b ? (double)v->b : 1, new_tokens = (double)v->t / b;
    const double prefix = !v->pages   ? 0
                          : v->prefix ? (double)v->indices / b
                                      : (double)(v->max_pages * v->page);
    const double hq = (double)v->hq, hkv = (double)v->hkv, width = (double)(v->d + v->dv);
    const double size = (double)quern_dtype_bytes((int)v->dtype);
    double pairs = attention_pairs(new_tokens, prefix + new_tokens, v->causal, v->window);
    cost->flops = 2 * b * hq * width * pairs;
    cost->bytes = b * width *
                      (new_tokens * (hq + hkv) * size +
                       prefix * hkv * (double)quern_dtype_bytes((int)v->kv_dtype)) +
                  (v->lse ? (double)v->t * hq * 4 : 0);
}

static const struct quern_variant *const variants[] = { &attention_extend_sm80,
                                                        &attention_extend_cpu, NULL };

const struct quern_family quern_family_attention_extend = {
    QUERN_FAMILY_TABLES(attention_extend),
    .folder = "attention",
    .doc = "attention of new tokens to a paged prefix and to themselves (chunked prefill)",
    .variants = variants,
    .validate = validate,
    .bucket = bucket,
    .touched = touched,
    .check_indices = check_indices,
    .inputs = inputs,
    .units = units,
    .reference = attention_extend_reference,
    .tolerance = tolerance,
    .cost = cost,
    .implied = implied,
};
