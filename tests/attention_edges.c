#include "attention_edges.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bad_indices.h"
#include "jit/context.h"
#include "jit/dtype.h"

/* ---- Arrays by name ------------------------------------------------------------------------ */

struct call {
    const struct attention_bed *bed;
    struct quern_spec spec;
    struct attention_set set;
    int slot;
};

static struct call call_open(const struct attention_bed *bed, struct quern_context *ctx,
                             const char *text, int slot)
{
    struct call call = { .bed = bed, .spec = common_spec(ctx, text), .slot = slot };
    call.set = bed->open(ctx, &call.spec, slot, common_random(bed->seed));
    return call;
}

static int index_of(const struct call *call, const char *name)
{
    return bad_indices_array(call->bed->ctx, &call->spec, name);
}

static const struct quern_shape *shape_of(const struct call *call, const char *name)
{
    return &call->set.host->shapes[index_of(call, name)];
}

static int64_t count_of(const struct call *call, const char *name)
{
    return qn_shape_count(shape_of(call, name));
}

static void put(const struct call *call, const char *name, int64_t element, double value)
{
    common_arrays_put(call->set.host, index_of(call, name), element, value);
}

static double get(const struct call *call, const char *name, int64_t element)
{
    int index = index_of(call, name);
    int dtype = call->set.host->shapes[index].dtype;
    const unsigned char *data = call->set.host->own[index].data;
    return qn_dtype_get(dtype, data + element * (int64_t)quern_dtype_bytes(dtype));
}

static bool has(const struct call *call, const char *name)
{
    return index_of(call, name) >= 0;
}

/* ---- Edges --------------------------------------------------------------------------------- */

/* Whole numbers, whose products and sums no format rounds: scores up to most * most * d. */
static void put_whole(const struct call *call, int64_t most)
{
    static const char *const names[] = { "q", "k", "k_cache" };
    for (int i = 0; i < 3; i++) {
        for (int64_t e = 0; has(call, names[i]) && e < count_of(call, names[i]); e++)
            put(call, names[i], e, (double)common_between(call->bed->seed, -most, most));
    }
}

static void put_large(const struct call *call)
{
    put_whole(call, 12);
}

/* One key takes all: its row of k is the query's own, eight times. */
static void put_one_hot(const struct call *call)
{
    const int64_t d = shape_of(call, "k")->dims[3];
    for (int64_t e = 0; e < count_of(call, "k"); e++)
        put(call, "k", e, e / d % 17 == 3 ? 64 : get(call, "k", e));
}

static const int lengths[] = { 0,  1,  15,  16,  17,  31,  32,  33,  63, 64,
                               65, 79, 127, 128, 129, 255, 256, 257, 1 };
enum { LENGTHS = sizeof(lengths) / sizeof(lengths[0]) }; /* together 1569 */

static void put_borders(const struct call *call, const char *name, int turn)
{
    int64_t at = 0;
    put(call, name, 0, 0);
    for (int i = 0; i < LENGTHS; i++)
        put(call, name, i + 1, (double)(at += lengths[(i + turn) % LENGTHS]));
}

static void put_lengths_alike(const struct call *call)
{
    put_borders(call, "cu_seqlens_q", 0);
    put_borders(call, "cu_seqlens_k", 0);
}

static void put_lengths_apart(const struct call *call)
{
    put_borders(call, "cu_seqlens_q", 0);
    put_borders(call, "cu_seqlens_k", 7);
}

/* [b, h, s, d] in memory, as torch has it, behind the strides of [b, s, h, d]. */
static void put_heads_first(const struct call *call)
{
    static const char *const names[] = { "q", "k", "v" };
    for (int i = 0; i < 3; i++) {
        struct quern_array *array = &call->set.arrays[index_of(call, names[i])];
        const int64_t *dims = shape_of(call, names[i])->dims;
        array->rank = 4;
        array->strides[0] = dims[1] * dims[2] * dims[3];
        array->strides[1] = dims[3];
        array->strides[2] = dims[1] * dims[3];
        array->strides[3] = 1;
    }
}

/* Rows of the caches that no prefix has hold NaN; those that one has are drawn anew. */
static void poison_caches(const struct call *call)
{
    static const char *const names[] = { "k_cache", "v_cache" };
    const int64_t page = shape_of(call, "k_cache")->dims[1];
    const int64_t rows = shape_of(call, "k_cache")->dims[0] * page;
    bool *is_used = calloc((size_t)rows, 1);
    for (int64_t i = 0; has(call, "kv_indices") && i < count_of(call, "kv_indices"); i++)
        is_used[(int64_t)get(call, "kv_indices", i)] = true;
    for (int64_t s = 0; has(call, "page_table") && s < count_of(call, "prefix_lens"); s++) {
        const int64_t width = shape_of(call, "page_table")->dims[1];
        for (int64_t j = 0; j < (int64_t)get(call, "prefix_lens", s); j++)
            is_used[(int64_t)get(call, "page_table", s * width + j / page) * page + j % page] =
                true;
    }
    for (int i = 0; i < 2; i++) {
        const int64_t row = count_of(call, names[i]) / rows;
        for (int64_t e = 0; e < count_of(call, names[i]); e++) {
            if (!is_used[e / row])
                put(call, names[i], e, NAN);
        }
    }
    free(is_used);
}

/* Prefixes of 0, 1, and about the edges of pages; the table beyond them holds no pages. */
static void put_prefixes(const struct call *call)
{
    const int64_t page = shape_of(call, "k_cache")->dims[1], b = count_of(call, "prefix_lens");
    const int64_t width = shape_of(call, "page_table")->dims[1], most = width * page;
    const int64_t lens[] = { 0, 1, page - 1, page, page + 1, 2 * page + 1, most - 1, most };
    for (int64_t s = 0; s < b; s++) {
        int64_t length = lens[s % 8] > most ? most : lens[s % 8];
        put(call, "prefix_lens", s, (double)length);
        for (int64_t i = 0; i < width; i++)
            put(call, "page_table", s * width + i,
                i * page < length ? (double)(b * i + (s * 3) % b)
                                  : (i % 2 ? (double)INT32_MIN : (double)INT32_MAX));
    }
    poison_caches(call);
}

/* Caches [pages, heads, page, d] in memory behind the strides of [pages, page, heads, d]. */
static void put_pages_by_head(const struct call *call)
{
    static const char *const names[] = { "k_cache", "v_cache" };
    for (int i = 0; i < 2; i++) {
        struct quern_array *array = &call->set.arrays[index_of(call, names[i])];
        const int64_t *dims = shape_of(call, names[i])->dims;
        array->rank = 4;
        array->strides[0] = dims[1] * dims[2] * dims[3];
        array->strides[1] = dims[3];
        array->strides[2] = dims[1] * dims[3];
        array->strides[3] = 1;
    }
}

static void put_large_extend(const struct call *call)
{
    put_whole(call, 12);
    poison_caches(call);
}

static const struct edge {
    const char *text;
    void (*put)(const struct call *call);
} edges[] = {
    { "attention_prefill sq=70 sk=150 hq=2 d=64 causal=1 scale=1 lse=1", put_large },
    { "attention_prefill sq=70 sk=150 hq=2 d=64 causal=1 scale=1 lse=1 dtype=f16", put_large },
    { "attention_prefill sq=70 sk=150 hq=2 d=64 scale=-1 lse=1 dtype=f32", put_large },
    { "attention_prefill sq=300 sk=260 hq=2 window=40 scale=1 lse=1", put_large },
    { "attention_prefill sq=90 sk=90 hq=2 scale=1 softcap=50 lse=1", put_large },
    { "attention_prefill sq=90 sk=90 hq=2 causal=1 lse=1", put_one_hot },
    { "attention_prefill b=19 sq=1569 sk=1569 hq=2 hkv=1 d=64 varlen=1 causal=1 lse=1",
      put_lengths_alike },
    { "attention_prefill b=19 sq=1569 sk=1569 hq=2 d=64 varlen=1 causal=1 lse=1 dtype=f16",
      put_lengths_apart },
    { "attention_prefill b=19 sq=1569 sk=1569 hq=3 hkv=1 d=64 varlen=1 lse=1 sinks=1",
      put_lengths_apart },
    { "attention_prefill b=19 sq=1569 sk=1569 hq=1 d=128 varlen=1 lse=1 window=30 dtype=f32",
      put_lengths_apart },
    { "attention_prefill sq=200 hq=1 d=64 causal=1 window=1 lse=1", NULL },
    { "attention_prefill sq=200 hq=1 d=64 causal=1 window=2 lse=1", NULL },
    { "attention_prefill sq=200 hq=1 d=64 causal=1 window=31 lse=1", NULL },
    { "attention_prefill sq=200 hq=1 d=64 causal=1 window=33 lse=1", NULL },
    { "attention_prefill sq=300 hq=1 d=64 causal=1 window=127 lse=1", NULL },
    { "attention_prefill sq=300 hq=1 d=64 causal=1 window=129 lse=1", NULL },
    { "attention_prefill sq=200 hq=1 d=64 window=1 lse=1", NULL },
    { "attention_prefill sq=200 sk=170 hq=1 d=64 window=16 sinks=1 lse=1", NULL },
    { "attention_prefill sq=300 sk=700 hq=1 d=64 window=65 lse=1", NULL },
    { "attention_prefill sq=200 hq=1 d=64 causal=1 window=1000000 lse=1", NULL },
    { "attention_prefill sq=64 sk=0 hq=4 hkv=2 sinks=1 lse=1", NULL }, /* sinks alone */
    { "attention_prefill b=3 sq=77 sk=91 hq=4 hkv=2 causal=1 lse=1", put_heads_first },
    { "attention_prefill b=2 sq=33 sk=64 hq=2 hkv=2 d=96 dtype=f16 lse=1", put_heads_first },
    { "attention_prefill b=2 sq=33 sk=64 hq=2 hkv=2 d=192 dtype=f32 lse=1", put_heads_first },
    { "attention_extend b=8 t=90 hq=4 hkv=2 page=16 pages=40 max_pages=5 lse=1", put_prefixes },
    { "attention_extend b=8 t=90 hq=4 hkv=2 page=1 pages=320 max_pages=40 lse=1", put_prefixes },
    { "attention_extend b=8 t=90 hq=4 hkv=1 d=64 page=64 pages=24 max_pages=3 kv_dtype=e4m3 "
      "kv_scale=head lse=1",
      put_prefixes },
    { "attention_extend b=8 t=90 hq=2 hkv=2 page=128 pages=16 max_pages=2 dtype=f16 causal=0 lse=1",
      put_prefixes },
    { "attention_extend b=8 t=90 hq=2 hkv=1 page=4 pages=56 max_pages=7 dtype=f32 window=9 sinks=1",
      put_prefixes },
    { "attention_extend b=3 t=90 hq=2 hkv=1 page=16 pages=40 prefix=indices indices=200 lse=1",
      poison_caches },
    { "attention_extend b=3 t=90 hq=2 hkv=1 page=1 pages=900 prefix=indices indices=500 "
      "kv_dtype=e4m3 dtype=f16 lse=1",
      poison_caches },
    { "attention_extend b=4 t=90 hq=4 hkv=4 page=16 pages=40 max_pages=10 lse=1",
      put_pages_by_head },
    { "attention_extend b=4 t=90 hq=4 hkv=4 d=64 page=32 pages=40 max_pages=10 kv_dtype=e4m3",
      put_pages_by_head },
    { "attention_extend b=4 t=90 hq=4 hkv=2 d=64 page=16 pages=40 max_pages=10 scale=1 lse=1",
      put_large_extend },
};
static const int edge_count = sizeof(edges) / sizeof(edges[0]);

static void edge_check(const struct attention_bed *bed, int edge)
{
    if (!bed->is_served(edges[edge].text))
        return;
    struct call call = call_open(bed, bed->ctx, edges[edge].text, 0);
    if (edges[edge].put)
        edges[edge].put(&call);
    struct quern_check check = bed->verify(bed->ctx, &call.spec, 0, edges[edge].text);
    ck_assert_msg(check.ok, "edge %d, %s: %s", edge, edges[edge].text, check.why);
}

/* ---- NaN ----------------------------------------------------------------------------------- */

enum { SEQUENCES = 4, LENGTH = 40, HIT = 1 };

static const char *const nan_specs[] = {
    "attention_prefill b=4 sq=40 hq=4 hkv=2 d=64 causal=1 lse=1",
    "attention_prefill b=4 sq=40 hq=2 hkv=1 d=128 dtype=f16",
    "attention_prefill b=4 sq=40 hq=2 hkv=1 d=64 dtype=f32 causal=1 lse=1",
    "attention_prefill b=4 sq=160 hq=4 hkv=2 d=64 varlen=1 causal=1 lse=1",
    "attention_prefill b=4 sq=160 hq=2 d=96 varlen=1 window=9 dtype=f16",
    "attention_extend b=4 t=160 hq=4 hkv=2 d=64 page=16 pages=12 max_pages=3 lse=1",
    "attention_extend b=4 t=160 hq=2 hkv=1 page=1 pages=160 max_pages=40 kv_dtype=e4m3",
    "attention_extend b=4 t=160 hq=2 hkv=1 d=64 page=4 pages=40 max_pages=10 dtype=f32",
};
static const int nan_count = sizeof(nan_specs) / sizeof(nan_specs[0]);

static void nan_put_indices(const struct call *call)
{
    static const char *const borders[] = { "cu_seqlens_q", "cu_seqlens_k" };
    for (int i = 0; i < 2; i++) {
        for (int64_t s = 0; has(call, borders[i]) && s <= SEQUENCES; s++)
            put(call, borders[i], s, (double)(s * LENGTH));
    }
    if (!has(call, "page_table"))
        return;
    const int64_t width = shape_of(call, "page_table")->dims[1];
    for (int64_t i = 0; i < SEQUENCES * width; i++)
        put(call, "page_table", i, (double)i);
    for (int64_t s = 0; s < SEQUENCES; s++)
        put(call, "prefix_lens", s,
            (double)(width * shape_of(call, "k_cache")->dims[1] - (s == 2)));
}

/* An element of the sequence in q, k, v or a cache: each is the sequences' one after another. */
static void nan_put(const struct call *call, const char *name)
{
    int64_t part = count_of(call, name) / SEQUENCES;
    put(call, name, HIT * part + common_between(call->bed->seed, 0, part - 1), NAN);
}

static void nan_compare(const struct call *call, const char *name, const unsigned char *kept,
                        const char *what)
{
    const int64_t count = count_of(call, name), part = count / SEQUENCES;
    const int64_t bytes = (int64_t)quern_dtype_bytes(shape_of(call, name)->dtype);
    const unsigned char *now = call->set.host->own[index_of(call, name)].data;
    int found = 0;
    for (int64_t e = 0; e < count; e++) {
        if (e / part == HIT)
            found += isnan(get(call, name, e));
        else
            ck_assert_msg(!memcmp(now + e * bytes, kept + e * bytes, (size_t)bytes),
                          "%s: element %lld of %s, in another sequence, changed", what,
                          (long long)e, name);
    }
    ck_assert_msg(found > 0 || strcmp(name, "o"), "%s: o has none", what);
}

static void nan_check(const struct attention_bed *bed, int spec)
{
    static const char *const inputs[] = { "q", "k", "v", "k_cache", "v_cache" };
    static const char *const outputs[] = { "o", "lse" };
    if (!bed->is_served(nan_specs[spec]))
        return;
    struct call call = call_open(bed, bed->ctx, nan_specs[spec], 0);
    nan_put_indices(&call);
    unsigned char *kept[2] = { NULL, NULL };
    assert_ok(bed->ctx, bed->run(bed->ctx, &call.spec, 0, nan_specs[spec]));
    for (int i = 0; i < 2; i++) {
        if (!has(&call, outputs[i]))
            continue;
        size_t bytes = (size_t)count_of(&call, outputs[i]) *
                       quern_dtype_bytes(shape_of(&call, outputs[i])->dtype);
        kept[i] = malloc(bytes);
        memcpy(kept[i], call.set.host->own[index_of(&call, outputs[i])].data, bytes);
    }
    for (int i = 0; i < 5; i++) {
        char what[300];
        if (!has(&call, inputs[i]))
            continue;
        snprintf(what, sizeof(what), "%s with NaN in %s", nan_specs[spec], inputs[i]);
        double *before = malloc((size_t)count_of(&call, inputs[i]) * sizeof(double));
        for (int64_t e = 0; e < count_of(&call, inputs[i]); e++)
            before[e] = get(&call, inputs[i], e);
        nan_put(&call, inputs[i]);
        assert_ok(bed->ctx, bed->run(bed->ctx, &call.spec, 0, what));
        for (int o = 0; o < 2; o++) {
            if (kept[o])
                nan_compare(&call, outputs[o], kept[o], what);
        }
        for (int64_t e = 0; e < count_of(&call, inputs[i]); e++)
            put(&call, inputs[i], e, before[e]);
        free(before);
    }
    free(kept[0]);
    free(kept[1]);
}

/* ---- Index arrays -------------------------------------------------------------------------- */

#define PACKED "attention_prefill b=4 sq=48 hq=2 hkv=1 d=64 varlen=1 causal=1 lse=1"
#define PAGED "attention_extend b=3 t=20 hq=2 hkv=1 d=64 page=4 pages=9 max_pages=3 lse=1"
#define INDEXED                                                                                    \
    "attention_extend b=3 t=20 hq=2 hkv=1 d=64 page=4 pages=9 prefix=indices indices=8 lse=1"

static const struct bad {
    const char *text, *array;
    int count;
    int32_t values[12];
    const char *said; /* NULL: legal */
} bads[] = {
    { PACKED, "cu_seqlens_q", 5, { 3, 9, 20, 30, 48 }, "cu_seqlens_q[0]=3: must be 0" },
    { PACKED, "cu_seqlens_q", 5, { -7, 9, 20, 30, 48 }, "cu_seqlens_q[0]=-7: must be 0" },
    { PACKED,
      "cu_seqlens_q",
      5,
      { 0, 9, 5, 20, 48 },
      "cu_seqlens_q[2]=5: must be at least cu_seqlens_q[1]=9" },
    { PACKED, "cu_seqlens_q", 5, { 0, 9, 20, 30, 47 }, "cu_seqlens_q[4]=47: must be sq=48" },
    { PACKED,
      "cu_seqlens_q",
      5,
      { 0, 2147483647, 2147483647, 2147483647, 2147483647 },
      "cu_seqlens_q[1]=2147483647: must be at most sq=48" },
    { PACKED,
      "cu_seqlens_k",
      5,
      { 0, 9, -2000000000, 20, 48 },
      "cu_seqlens_k[2]=-2000000000: must be at least cu_seqlens_k[1]=9" },
    { PACKED,
      "cu_seqlens_k",
      5,
      { 0, 9, 49, 49, 49 },
      "cu_seqlens_k[2]=49: must be at most sk=48" },
    { PACKED, "cu_seqlens_k", 5, { 0, 0, 0, 48, 48 }, NULL },
    { PAGED, "cu_seqlens_q", 4, { 0, 30, 30, 20 }, "cu_seqlens_q[1]=30: must be at most t=20" },
    { PAGED, "prefix_lens", 3, { 5, 13, 0 }, "prefix_lens[1]=13: must be from 0 to" },
    { PAGED, "prefix_lens", 3, { -1, 2147483647, 0 }, "prefix_lens[0]=-1: must be from 0 to" },
    { PAGED,
      "page_table",
      9,
      { 0, 9, 2147483647, -1, -2147483647, 8, 77, 100000, 3 },
      "must be from 0 to below pages=9" },
    { INDEXED, "kv_indptr", 4, { 1, 2, 3, 8 }, "kv_indptr[0]=1: must be 0" },
    { INDEXED, "kv_indptr", 4, { 0, 5, 2, 8 }, "kv_indptr[2]=2: must be at least kv_indptr[1]=5" },
    { INDEXED,
      "kv_indptr",
      4,
      { 0, 5, 8, 2147483647 },
      "kv_indptr[3]=2147483647: must be at most indices=8" },
    { INDEXED, "kv_indptr", 4, { 0, 1, 2, 3 }, NULL }, /* the rest of kv_indices: padding */
    { INDEXED,
      "kv_indices",
      8,
      { 0, 36, -1, 2147483647, -2147483647, 35, 4, 4 },
      "kv_indices[1]=36: must be from 0 to below pages * page = 36" },
};
static const int bad_count = sizeof(bads) / sizeof(bads[0]);

static struct call bad_open(const struct attention_bed *bed, struct quern_context *ctx,
                            const struct bad *bad)
{
    struct call call = call_open(bed, ctx, bad->text, 0);
    if (!strcmp(bad->array, "page_table")) {
        for (int i = 0; i < 3; i++)
            put(&call, "prefix_lens", i, 12);
    }
    for (int i = 0; i < bad->count; i++)
        put(&call, bad->array, i, bad->values[i]);
    return call;
}

static void bad_text(const struct bad *bad, char *text, size_t bytes)
{
    snprintf(text, bytes, "%s with %s={%d, %d, %d ...}", bad->text, bad->array, bad->values[0],
             bad->values[1], bad->values[2]);
}

static void bad_check_refused(const struct attention_bed *bed, int number)
{
    const struct bad *bad = &bads[number];
    char what[300];
    bad_text(bad, what, sizeof(what));
    struct call call = bad_open(bed, bed->checking, bad);
    common_arrays_keep(call.set.host);
    int status = bed->run(bed->checking, &call.spec, 0, what);
    if (!bad->said) {
        assert_ok(bed->checking, status);
        return;
    }
    assert_refused(bed->checking, status, QUERN_INVALID, bad->said);
    ck_assert_msg(common_arrays_differ(call.set.host) < 0, "%s: array %d was written", what,
                  common_arrays_differ(call.set.host));
}

static void bad_check_runs(const struct attention_bed *bed, int number)
{
    char what[300];
    bad_text(&bads[number], what, sizeof(what));
    struct call call = bad_open(bed, bed->ctx, &bads[number]);
    assert_ok(bed->ctx, bed->run(bed->ctx, &call.spec, 0, what));
}

/* ---- Agreement ----------------------------------------------------------------------------- */

static const struct agreement {
    const char *extend, *words; /* words: what attention_prefill has of it */
    double tolerance;
} agreements[] = {
    { "page=16 pages=20 max_pages=5 hq=4 hkv=2", "hq=4 hkv=2", 6e-3 },
    { "page=1 pages=200 max_pages=50 hq=2 d=64 causal=0 window=30 sinks=1",
      "hq=2 d=64 causal=0 window=30 sinks=1", 6e-3 },
    { "page=64 pages=8 max_pages=2 hq=2 hkv=1 dtype=f16 softcap=3",
      "hq=2 hkv=1 dtype=f16 softcap=3", 1e-3 },
    { "page=8 pages=30 prefix=indices indices=130 hq=2 d=192", "hq=2 d=192", 6e-3 },
    { "page=32 pages=12 max_pages=3 hq=2 hkv=1 d=96 dtype=f32", "hq=2 hkv=1 d=96 dtype=f32", 1e-5 },
};
static const int agreement_count = sizeof(agreements) / sizeof(agreements[0]);

enum { B = 4, T = 75 };

/* The cache's row that holds token j of sequence s's prefix. */
static int64_t cache_row(const struct call *extend, int64_t s, int64_t j)
{
    const int64_t page = shape_of(extend, "k_cache")->dims[1];
    if (has(extend, "kv_indices"))
        return (int64_t)get(extend, "kv_indices", (int64_t)get(extend, "kv_indptr", s) + j);
    const int64_t width = shape_of(extend, "page_table")->dims[1];
    return (int64_t)get(extend, "page_table", s * width + j / page) * page + j % page;
}

static int64_t prefix_of(const struct call *extend, int64_t s)
{
    if (has(extend, "prefix_lens"))
        return (int64_t)get(extend, "prefix_lens", s);
    return (int64_t)(get(extend, "kv_indptr", s + 1) - get(extend, "kv_indptr", s));
}

/* A row of all heads. */
static void copy_row(const struct call *to, const char *to_name, int64_t to_row,
                     const struct call *from, const char *from_name, int64_t from_row)
{
    const struct quern_shape *shape = shape_of(from, from_name);
    const int64_t row = shape->dims[shape->rank - 2] * shape->dims[shape->rank - 1];
    for (int64_t e = 0; e < row; e++)
        put(to, to_name, to_row * row + e, get(from, from_name, from_row * row + e));
}

/* The keys and values of each sequence, one after another: the prefix's, then the new. */
static void copy_keys(const struct call *extend, const struct call *prefill)
{
    int64_t at = 0;
    for (int64_t s = 0; s < B; s++) {
        int64_t first = (int64_t)get(extend, "cu_seqlens_q", s);
        int64_t end = (int64_t)get(extend, "cu_seqlens_q", s + 1), prefix = prefix_of(extend, s);
        put(prefill, "cu_seqlens_q", s, (double)first);
        put(prefill, "cu_seqlens_k", s, (double)at);
        for (int64_t j = 0; j < prefix; j++, at++) {
            copy_row(prefill, "k", at, extend, "k_cache", cache_row(extend, s, j));
            copy_row(prefill, "v", at, extend, "v_cache", cache_row(extend, s, j));
        }
        for (int64_t i = first; i < end; i++, at++) {
            copy_row(prefill, "k", at, extend, "k", i);
            copy_row(prefill, "v", at, extend, "v", i);
        }
    }
    put(prefill, "cu_seqlens_q", B, T);
    put(prefill, "cu_seqlens_k", B, (double)at);
}

static double distance(const struct call *a, const struct call *b, const char *name)
{
    double error = 0, norm = 0;
    for (int64_t e = 0; e < count_of(a, name); e++) {
        double x = get(a, name, e), y = get(b, name, e);
        error += (x - y) * (x - y);
        norm += y * y;
    }
    return sqrt(error / norm);
}

static void agreement_check(const struct attention_bed *bed, int number)
{
    const struct agreement *of = &agreements[number];
    char text[300], prefill_text[300];
    snprintf(text, sizeof(text), "attention_extend b=%d t=%d lse=1 %s", B, T, of->extend);
    if (!bed->is_served(text))
        return;
    struct call extend = call_open(bed, bed->ctx, text, 0);
    int64_t keys = T;
    for (int64_t s = 0; s < B; s++)
        keys += prefix_of(&extend, s);
    snprintf(prefill_text, sizeof(prefill_text),
             "attention_prefill b=%d sq=%d sk=%d varlen=1 lse=1 %s %s", B, T, (int)keys, of->words,
             strstr(of->words, "causal") ? "" : "causal=1");
    struct call prefill = call_open(bed, bed->ctx, prefill_text, 1);
    copy_keys(&extend, &prefill);
    for (int64_t e = 0; e < count_of(&extend, "q"); e++)
        put(&prefill, "q", e, get(&extend, "q", e));
    for (int64_t e = 0; has(&extend, "sinks") && e < count_of(&extend, "sinks"); e++)
        put(&prefill, "sinks", e, get(&extend, "sinks", e));
    assert_ok(bed->ctx, bed->run(bed->ctx, &extend.spec, 0, text));
    assert_ok(bed->ctx, bed->run(bed->ctx, &prefill.spec, 1, prefill_text));
    double o = distance(&extend, &prefill, "o"), lse = distance(&extend, &prefill, "lse");
    ck_assert_msg(o <= of->tolerance, "%s: o differs by %g", text, o);
    ck_assert_msg(lse <= 1e-5, "%s: lse differs by %g", text, lse);
}

/* ---- The tests ------------------------------------------------------------------------------ */

static const struct attention_bed *bed_of_suite;

START_TEST(an_edge_matches_its_reference)
{
    edge_check(bed_of_suite, _i);
}
END_TEST

START_TEST(a_nan_in_any_input_of_a_sequence_stays_in_it)
{
    nan_check(bed_of_suite, _i);
}
END_TEST

START_TEST(with_quern_check_index_arrays_are_refused_saying_where_and_nothing_is_written)
{
    bad_check_refused(bed_of_suite, _i);
}
END_TEST

START_TEST(without_it_the_call_runs_and_no_byte_but_the_outputs_is_written)
{
    bad_check_runs(bed_of_suite, _i);
}
END_TEST

START_TEST(extend_gives_what_prefill_gives_on_the_same_keys)
{
    agreement_check(bed_of_suite, _i);
}
END_TEST

TCase *attention_tcase(const struct attention_bed *bed)
{
    TCase *tcase = tcase_create("attention");
    bed_of_suite = bed;
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, an_edge_matches_its_reference, 0, edge_count);
    tcase_add_loop_test(tcase, a_nan_in_any_input_of_a_sequence_stays_in_it, 0, nan_count);
    tcase_add_loop_test(
        tcase, with_quern_check_index_arrays_are_refused_saying_where_and_nothing_is_written, 0,
        bad_count);
    tcase_add_loop_test(tcase, without_it_the_call_runs_and_no_byte_but_the_outputs_is_written, 0,
                        bad_count);
    tcase_add_loop_test(tcase, extend_gives_what_prefill_gives_on_the_same_keys, 0,
                        agreement_count);
    return tcase;
}
