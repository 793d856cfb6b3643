#include "decode_edges.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/context.h"
#include "jit/dtype.h"

/* ---- Arrays by name ------------------------------------------------------------------------ */

struct call {
    const struct decode_bed *bed;
    struct quern_spec spec;
    struct decode_set set;
    int slot;
    const char *text;
};

static struct call call_open(const struct decode_bed *bed, struct quern_context *ctx,
                             const char *text, int slot)
{
    struct call call = { .bed = bed, .spec = common_spec(ctx, text), .slot = slot, .text = text };
    call.set = bed->open(ctx, &call.spec, slot, common_random(bed->seed));
    return call;
}

static void call_run(const struct call *call, const char *config)
{
    assert_ok(call->bed->ctx,
              call->bed->run(call->bed->ctx, &call->spec, call->slot, config, call->text));
}

/* -1: the call has no such array. Asserts nothing, since Check writes down each claim that holds,
 * and elements are many. */
static int index_of(const struct call *call, const char *name)
{
    const struct quern_family *family = call->spec.family;
    for (int i = 0; i < family->array_count; i++) {
        if (!strcmp(family->arrays[i].name, name))
            return call->set.host->shapes[i].role != QUERN_ABSENT ? i : -1;
    }
    return -1;
}

static bool has(const struct call *call, const char *name)
{
    return index_of(call, name) >= 0;
}

static int64_t dim_of(const struct call *call, const char *name, int dim)
{
    return call->set.host->shapes[index_of(call, name)].dims[dim];
}

static int64_t count_of(const struct call *call, const char *name)
{
    return qn_shape_count(&call->set.host->shapes[index_of(call, name)]);
}

static void put(const struct call *call, const char *name, int64_t element, double value)
{
    common_arrays_put(call->set.host, index_of(call, name), element, value);
}

static double get(const struct call *call, const char *name, int64_t element)
{
    int index = index_of(call, name), dtype = call->set.host->shapes[index].dtype;
    const unsigned char *data = call->set.host->own[index].data;
    return qn_dtype_get(dtype, data + element * (int64_t)quern_dtype_bytes(dtype));
}

/* Elements [from, from + count) of one array become those of another. */
static void copy(const struct call *to, int64_t at, const struct call *from, int64_t first,
                 int64_t count, const char *name)
{
    for (int64_t i = 0; i < count; i++)
        put(to, name, at + i, get(from, name, first + i));
}

static void copy_all(const struct call *to, const struct call *from, const char *name)
{
    if (has(from, name))
        copy(to, 0, from, 0, count_of(from, name), name);
}

/* The norm of the difference of `count` elements, over that of the first. */
static double distance(const struct call *a, const char *name, const struct call *b,
                       const char *other, int64_t count)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double one = get(a, name, i), two = get(b, other, i);
        if (one == two)
            continue;
        error += (one - two) * (one - two);
    }
    for (int64_t i = 0; i < count; i++)
        norm += isfinite(get(a, name, i)) ? get(a, name, i) * get(a, name, i) : 0;
    return error == 0 ? 0 : sqrt(error / norm);
}

static double tolerance_of(const struct call *call)
{
    return call->spec.family->tolerance(&call->spec, index_of(call, "o"));
}

/* ---- Lengths and pages --------------------------------------------------------------------- */

/* Pages 3, 10, 17, ... of the pool, none twice. */
static int64_t page_number(const struct call *call, int64_t i)
{
    const int64_t pages = dim_of(call, "k_cache", 0);
    return (3 + 7 * i) % (pages % 7 ? pages : pages - 1);
}

static void put_row(const struct call *call, int64_t s, int64_t length)
{
    const int64_t width = dim_of(call, "page_table", 1), page = dim_of(call, "k_cache", 1);
    put(call, "seq_lens", s, (double)length);
    for (int64_t i = 0; i < width; i++)
        put(call, "page_table", s * width + i,
            i * page < length ? (double)page_number(call, s * width + i)
            : i % 2           ? (double)INT32_MIN
                              : (double)INT32_MAX);
}

/* Rows of the caches that no sequence sees hold NaN. */
static void poison(const struct call *call, int64_t window)
{
    static const char *const names[] = { "k_cache", "v_cache" };
    const int64_t page = dim_of(call, "k_cache", 1), rows = dim_of(call, "k_cache", 0) * page;
    const int64_t width = dim_of(call, "page_table", 1);
    bool *is_seen = calloc((size_t)rows + 1, 1);
    for (int64_t s = 0; s < count_of(call, "seq_lens"); s++) {
        int64_t length = (int64_t)get(call, "seq_lens", s);
        for (int64_t j = window && length > window ? length - window : 0; j < length; j++)
            is_seen[(int64_t)get(call, "page_table", s * width + j / page) * page + j % page] =
                true;
    }
    for (int i = 0; i < 2; i++) {
        const int64_t row = count_of(call, names[i]) / rows;
        for (int64_t e = 0; e < count_of(call, names[i]); e++) {
            if (!is_seen[e / row])
                put(call, names[i], e, NAN);
        }
    }
    free(is_seen);
}

static void put_lengths(const struct call *call)
{
    const int64_t page = dim_of(call, "k_cache", 1), width = dim_of(call, "page_table", 1);
    const int64_t most = width * page;
    const int64_t lengths[] = { 0,  1,  page - 1, page, page + 1, 2 * page + 1, most - 1, most,
                                15, 16, 17,       63,   64,       65,           127,      129 };
    for (int64_t s = 0; s < count_of(call, "seq_lens"); s++)
        put_row(call, s, lengths[s % 16] > most ? most : lengths[s % 16]);
}

static void put_lengths_and_poison(const struct call *call)
{
    put_lengths(call);
    poison(call, 0);
}

static void put_window(const struct call *call)
{
    put_lengths(call);
    poison(call, 9);
}

/* Caches [pages, heads, page, d] in memory behind the strides of [pages, page, heads, d]. */
static void put_heads_first(const struct call *call)
{
    static const char *const names[] = { "k_cache", "v_cache" };
    put_lengths(call);
    for (int i = 0; i < 2; i++) {
        struct quern_array *array = &call->set.arrays[index_of(call, names[i])];
        array->rank = 4;
        array->strides[0] =
            dim_of(call, names[i], 1) * dim_of(call, names[i], 2) * dim_of(call, names[i], 3);
        array->strides[1] = dim_of(call, names[i], 3);
        array->strides[2] = dim_of(call, names[i], 1) * dim_of(call, names[i], 3);
        array->strides[3] = 1;
    }
}

/* Whole numbers, whose products and sums no format rounds: scores of thousands. */
static void put_large(const struct call *call)
{
    static const char *const names[] = { "q", "k_cache" };
    put_lengths(call);
    for (int i = 0; i < 2; i++) {
        for (int64_t e = 0; e < count_of(call, names[i]); e++)
            put(call, names[i], e, (double)common_between(call->bed->seed, -12, 12));
    }
}

static const struct edge {
    const char *text;
    void (*put)(const struct call *call);
} edges[] = {
    { "attention_decode b=16 hq=4 hkv=2 page=16 pages=200 max_pages=9 lse=1",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=8 hkv=1 d=64 page=1 pages=2300 max_pages=140 lse=1",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=3 hkv=3 page=64 pages=60 max_pages=3 dtype=f16 lse=1",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=6 hkv=2 page=32 pages=90 max_pages=5 kv_dtype=e4m3 kv_scale=head",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=2 hkv=1 d=256 page=128 pages=40 max_pages=2 deterministic=1",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=4 hkv=2 d=96 page=4 pages=700 max_pages=40 dtype=f32 lse=1 sinks=1",
      put_lengths_and_poison },
    { "attention_decode b=16 hq=4 hkv=2 d=192 dv=128 page=8 pages=400 max_pages=20 window=9 lse=1",
      put_window },
    { "attention_decode b=16 hq=4 hkv=2 page=256 pages=40 max_pages=2 window=9 dtype=f16",
      put_window },
    { "attention_decode b=16 hq=8 hkv=4 page=16 pages=200 max_pages=9 lse=1", put_heads_first },
    { "attention_decode b=16 hq=2 hkv=2 d=64 page=64 pages=60 max_pages=3 kv_dtype=e4m3",
      put_heads_first },
    { "attention_decode b=16 hq=4 hkv=2 d=64 page=16 pages=200 max_pages=9 scale=1 lse=1",
      put_large },
    { "attention_decode b=16 hq=4 hkv=2 d=64 page=16 pages=200 max_pages=9 scale=-1 dtype=f16",
      put_large },
};
static const int edge_count = sizeof(edges) / sizeof(edges[0]);

static void edge_check(const struct decode_bed *bed, int edge)
{
    if (!bed->is_served(edges[edge].text))
        return;
    struct call call = call_open(bed, bed->ctx, edges[edge].text, 0);
    edges[edge].put(&call);
    struct quern_check check = bed->verify(bed->ctx, &call.spec, 0, edges[edge].text);
    ck_assert_msg(check.ok, "edge %d, %s: %s", edge, edges[edge].text, check.why);
}

/* ---- Alone --------------------------------------------------------------------------------- */

static const struct {
    const char *batch, *alone;
} alone[] = {
    { "attention_decode b=5 hq=8 hkv=2 page=16 pages=700 max_pages=130 deterministic=1 lse=1",
      "attention_decode b=1 hq=8 hkv=2 page=16 pages=700 max_pages=130 deterministic=1 lse=1" },
    { "attention_decode b=5 hq=6 hkv=2 d=64 page=64 pages=90 max_pages=17 dtype=f16 "
      "deterministic=1 lse=1",
      "attention_decode b=1 hq=6 hkv=2 d=64 page=64 pages=90 max_pages=17 dtype=f16 "
      "deterministic=1 lse=1" },
    { "attention_decode b=5 hq=8 hkv=1 page=16 pages=700 max_pages=130 kv_dtype=e4m3 "
      "deterministic=1 lse=1 window=700",
      "attention_decode b=1 hq=8 hkv=1 page=16 pages=700 max_pages=130 kv_dtype=e4m3 "
      "deterministic=1 lse=1 window=700" },
};
static const int alone_count = sizeof(alone) / sizeof(alone[0]);

/* Bits of `count` elements from `first` of one are those from 0 of the other. */
static void assert_bits(const struct call *batch, int64_t first, const struct call *one,
                        int64_t count, const char *name)
{
    int index = index_of(batch, name);
    size_t bytes = quern_dtype_bytes(batch->set.host->shapes[index].dtype);
    ck_assert_msg(!memcmp(batch->set.host->own[index].data + (size_t)first * bytes,
                          one->set.host->own[index].data, (size_t)count * bytes),
                  "%s: %s from element %lld on differs", batch->text, name, (long long)first);
}

static void alone_check(const struct decode_bed *bed, int spec)
{
    struct call batch = call_open(bed, bed->ctx, alone[spec].batch, 0);
    struct call one = call_open(bed, bed->ctx, alone[spec].alone, 1);
    const int64_t heads = dim_of(&batch, "q", 1), d = dim_of(&batch, "q", 2);
    const int64_t dv = dim_of(&batch, "o", 2), width = dim_of(&batch, "page_table", 1);
    const int64_t most = width * dim_of(&batch, "k_cache", 1);
    const int64_t lengths[] = { most, 1, 700, most - 3, 1000 };
    for (int64_t s = 0; s < 5; s++)
        put_row(&batch, s, lengths[s]);
    copy_all(&one, &batch, "k_cache");
    copy_all(&one, &batch, "v_cache");
    call_run(&batch, NULL);
    for (int64_t s = 0; s < 5; s++) {
        copy(&one, 0, &batch, s * heads * d, heads * d, "q");
        copy(&one, 0, &batch, s * width, width, "page_table");
        copy(&one, 0, &batch, s, 1, "seq_lens");
        call_run(&one, NULL);
        assert_bits(&batch, s * heads * dv, &one, heads * dv, "o");
        assert_bits(&batch, s * heads, &one, heads, "lse");
    }
}

enum { CONFIGS = 64 };

static void configs_check(const struct decode_bed *bed, int spec)
{
    static int32_t configs[CONFIGS][QUERN_MAX_KNOBS];
    struct call first = call_open(bed, bed->ctx, alone[spec].batch, 0);
    struct qn_bucket bucket;
    struct quern_message why;
    char text[512];
    const struct quern_variant *variant = NULL;
    qn_bucket_make(&first.spec, first.set.arrays, &bucket);
    const struct quern_problem problem = { &bucket.spec, &bed->ctx->target, &bed->ctx->profile,
                                           bucket.alignment };
    for (int i = 0; first.spec.family->variants[i] && !variant; i++) {
        const struct quern_variant *other = first.spec.family->variants[i];
        if (other->device == bed->ctx->target.kind && other->supports(&problem))
            variant = other;
    }
    ck_assert_ptr_nonnull(variant);
    call_run(&first, NULL);
    common_arrays_keep(first.set.host);
    int count = variant->candidates(&problem, configs, CONFIGS);
    for (int i = 0; i < count; i++) {
        if (qn_config_check(variant, &problem, configs[i], &why))
            continue;
        qn_config_text(variant, configs[i], text, sizeof(text));
        call_run(&first, text);
        ck_assert_msg(common_arrays_differ(first.set.host) < 0, "%s: other bits with %s",
                      first.text, text);
    }
}

/* ---- NaN ----------------------------------------------------------------------------------- */

static const char *const nan_specs[] = {
    "attention_decode b=4 hq=4 hkv=2 d=64 page=16 pages=200 max_pages=40 lse=1",
    "attention_decode b=4 hq=8 hkv=1 page=64 pages=60 max_pages=10 dtype=f16 lse=1",
    "attention_decode b=4 hq=2 hkv=2 page=1 pages=700 max_pages=150 kv_dtype=e4m3 lse=1",
    "attention_decode b=4 hq=6 hkv=2 d=96 page=16 pages=90 max_pages=20 dtype=f32 lse=1 sinks=1",
};
static const int nan_count = sizeof(nan_specs) / sizeof(nan_specs[0]);

static void nan_check(const struct decode_bed *bed, int spec)
{
    static const char *const inputs[] = { "q", "k_cache", "v_cache" };
    enum { HIT = 1 };
    for (int i = 0; i < 3 && bed->is_served(nan_specs[spec]); i++) {
        struct call call = call_open(bed, bed->ctx, nan_specs[spec], 0);
        const int64_t width = dim_of(&call, "page_table", 1), page = dim_of(&call, "k_cache", 1);
        const int64_t o = count_of(&call, "o") / 4, lse = count_of(&call, "lse") / 4;
        for (int64_t s = 0; s < 4; s++)
            put_row(&call, s, width * page - s);
        call_run(&call, NULL);
        struct call before = call_open(bed, bed->ctx, nan_specs[spec], 1);
        memcpy(before.set.host->own[index_of(&call, "o")].data,
               call.set.host->own[index_of(&call, "o")].data,
               (size_t)(4 * o) *
                   quern_dtype_bytes(call.set.host->shapes[index_of(&call, "o")].dtype));
        memcpy(before.set.host->own[index_of(&call, "lse")].data,
               call.set.host->own[index_of(&call, "lse")].data, (size_t)(4 * lse) * sizeof(float));
        int64_t row = i == 0 ? HIT : (int64_t)get(&call, "page_table", HIT * width + 1) * page;
        int64_t elements =
            count_of(&call, inputs[i]) / (i == 0 ? 4 : dim_of(&call, "k_cache", 0) * page);
        put(&call, inputs[i], row * elements + common_between(bed->seed, 0, elements - 1), NAN);
        call_run(&call, NULL);
        int found = 0;
        for (int64_t e = 0; e < 4 * o; e++) {
            double now = get(&call, "o", e), then = get(&before, "o", e);
            found += isnan(now);
            if (e / o != HIT && now != then)
                ck_abort_msg("%s: NaN in %s reaches sequence %d", call.text, inputs[i],
                             (int)(e / o));
        }
        for (int64_t e = 0; e < 4 * lse; e++)
            ck_assert_msg(e / lse == HIT || get(&call, "lse", e) == get(&before, "lse", e),
                          "%s: NaN in %s reaches lse %d", call.text, inputs[i], (int)e);
        ck_assert_msg(found > 0, "%s: no output has the NaN of %s", call.text, inputs[i]);
    }
}

/* ---- Bad indices --------------------------------------------------------------------------- */

#define BAD_SPEC                                                                                   \
    "attention_decode b=4 hq=4 hkv=2 d=64 page=16 pages=20 max_pages=4 shared_pages=2 lse=1"

static const struct bad {
    const char *name;
    int64_t element;
    double value;
    const char *said; /* NULL: nothing is refused */
} bad_values[] = {
    { "page_table", 5, 20, "page_table[1, 1]=20: must be from 0 to below pages=20" },
    { "page_table", 0, -1, "page_table[0, 0]=-1: must be from 0 to below pages=20" },
    { "page_table", 15, INT32_MAX, "page_table[3, 3]=2147483647: must be from 0 to below" },
    { "page_table", 8, INT32_MIN, "page_table[2, 0]=-2147483648: must be from 0 to below" },
    { "seq_lens", 0, -1, "seq_lens[0]=-1: must be from 0 to 64" },
    { "seq_lens", 3, 65, "seq_lens[3]=65: must be from 0 to 64" },
    { "seq_lens", 2, INT32_MAX, "seq_lens[2]=2147483647: must be from 0 to 64" },
    { "seq_lens", 1, INT32_MIN, "seq_lens[1]=-2147483648: must be from 0 to 64" },
    { "shared_table", 1, 20, "shared_table[1]=20: must be from 0 to below pages=20" },
    { "shared_table", 0, INT32_MIN, "shared_table[0]=-2147483648: must be from 0 to below" },
    { "shared_len", 0, 33, "shared_len[0]=33: must be from 0 to 32" },
    { "shared_len", 0, INT32_MAX, "shared_len[0]=2147483647: must be from 0 to 32" },
    { "shared_len", 0, -5, "shared_len[0]=-5: must be from 0 to 32" },
};
static const int bad_count = sizeof(bad_values) / sizeof(bad_values[0]);

static struct call bad_open(const struct decode_bed *bed, struct quern_context *ctx,
                            const struct bad *bad)
{
    struct call call = call_open(bed, ctx, BAD_SPEC, 0);
    for (int64_t s = 0; s < 4; s++)
        put_row(&call, s, 64);
    put(&call, "shared_len", 0, 32);
    put(&call, "shared_table", 0, 4);
    put(&call, "shared_table", 1, 0);
    put(&call, bad->name, bad->element, bad->value);
    return call;
}

static void bad_check_refused(const struct decode_bed *bed, int bad)
{
    struct call call = bad_open(bed, bed->checking, &bad_values[bad]);
    int status = bed->run(bed->checking, &call.spec, 0, NULL, bad_values[bad].said);
    assert_refused(bed->checking, status, QUERN_INVALID, bad_values[bad].said);
}

static void bad_check_runs(const struct decode_bed *bed, int bad)
{
    struct call call = bad_open(bed, bed->ctx, &bad_values[bad]);
    call_run(&call, NULL);
}

/* ---- Prefix -------------------------------------------------------------------------------- */

/* The prefix is of 5 pages; every sequence's table has it in front in the second spec. */
static const struct {
    const char *shared, *plain;
} prefixes[] = {
    { "attention_decode b=6 hq=8 hkv=2 page=16 pages=200 max_pages=20 shared_pages=5 lse=1",
      "attention_decode b=6 hq=8 hkv=2 page=16 pages=200 max_pages=25 lse=1" },
    { "attention_decode b=6 hq=4 hkv=4 d=64 page=64 pages=60 max_pages=4 shared_pages=5 dtype=f16 "
      "window=300 lse=1",
      "attention_decode b=6 hq=4 hkv=4 d=64 page=64 pages=60 max_pages=9 dtype=f16 window=300 "
      "lse=1" },
    { "attention_decode b=6 hq=3 hkv=1 page=256 pages=40 max_pages=2 shared_pages=5 kv_dtype=e4m3 "
      "kv_scale=head lse=1",
      "attention_decode b=6 hq=3 hkv=1 page=256 pages=40 max_pages=7 kv_dtype=e4m3 kv_scale=head "
      "lse=1" },
};
static const int prefix_count = sizeof(prefixes) / sizeof(prefixes[0]);

static void prefix_check(const struct decode_bed *bed, int spec)
{
    static const char *const same[] = { "q", "k_cache", "v_cache", "k_scale", "v_scale" };
    enum { PREFIX = 5 };
    struct call shared = call_open(bed, bed->ctx, prefixes[spec].shared, 0);
    struct call plain = call_open(bed, bed->ctx, prefixes[spec].plain, 1);
    const int64_t page = dim_of(&shared, "k_cache", 1), width = dim_of(&shared, "page_table", 1);
    for (int64_t s = 0; s < 6; s++) {
        put_row(&shared, s, s == 2 ? 0 : width * page - 11 * s);
        copy(&plain, s * (width + PREFIX) + PREFIX, &shared, s * width, width, "page_table");
        put(&plain, "seq_lens", s, get(&shared, "seq_lens", s) + (double)(PREFIX * page));
    }
    put(&shared, "shared_len", 0, (double)(PREFIX * page));
    for (int64_t i = 0; i < PREFIX; i++) {
        put(&shared, "shared_table", i, (double)page_number(&shared, 6 * width + i));
        for (int64_t s = 0; s < 6; s++)
            put(&plain, "page_table", s * (width + PREFIX) + i, get(&shared, "shared_table", i));
    }
    for (int i = 0; i < 5; i++)
        copy_all(&plain, &shared, same[i]);
    call_run(&shared, NULL);
    call_run(&plain, NULL);
    ck_assert_double_le(distance(&shared, "o", &plain, "o", count_of(&plain, "o")),
                        2 * tolerance_of(&plain));
    for (int64_t i = 0; i < count_of(&plain, "lse"); i++)
        ck_assert_double_eq_tol(get(&shared, "lse", i), get(&plain, "lse", i), 2e-3);
}

/* ---- Halves -------------------------------------------------------------------------------- */

static const struct {
    const char *all, *half, *merge;
} halves[] = {
    { "attention_decode b=6 hq=8 hkv=2 page=16 pages=300 max_pages=40 lse=1",
      "attention_decode b=6 hq=8 hkv=2 page=16 pages=300 max_pages=20 lse=1",
      "merge_state_v2 t=6 h=8" },
    { "attention_decode b=6 hq=8 hkv=2 page=16 pages=300 max_pages=40 lse=1",
      "attention_decode b=6 hq=8 hkv=2 page=16 pages=300 max_pages=20 lse=1",
      "merge_state t=6 h=8" },
    { "attention_decode b=6 hq=4 hkv=1 d=64 page=64 pages=90 max_pages=12 dtype=f16 lse=1",
      "attention_decode b=6 hq=4 hkv=1 d=64 page=64 pages=90 max_pages=6 dtype=f16 lse=1",
      "merge_state_v2 t=6 h=4 d=64 dtype=f16" },
};
static const int halves_count = sizeof(halves) / sizeof(halves[0]);

/* Lengths that leave the second half empty, with one token, full; and nothing at all. */
static void put_halves(const struct call *all, const struct call *first, const struct call *second)
{
    const int64_t page = dim_of(all, "k_cache", 1), width = dim_of(first, "page_table", 1);
    const int64_t half = width * page;
    const int64_t lengths[] = { 2 * half, half, half + 1, 0, half - 3, half + page / 2 };
    for (int64_t s = 0; s < 6; s++) {
        int64_t before = lengths[s] < half ? lengths[s] : half;
        put_row(all, s, lengths[s]);
        copy(first, s * width, all, 2 * s * width, width, "page_table");
        copy(second, s * width, all, (2 * s + 1) * width, width, "page_table");
        put(first, "seq_lens", s, (double)before);
        put(second, "seq_lens", s, (double)(lengths[s] - before));
    }
}

static void put_state(const struct call *merge, const struct call *half, const char *values,
                      const char *logarithm)
{
    const double factor = strstr(merge->text, "merge_state_v2") ? 1 : M_LOG2E;
    for (int64_t i = 0; i < count_of(half, "o"); i++)
        put(merge, values, i, get(half, "o", i));
    for (int64_t i = 0; i < count_of(half, "lse"); i++)
        put(merge, logarithm, i, get(half, "lse", i) * factor);
}

static void halves_check(const struct decode_bed *bed, int spec)
{
    static const char *const same[] = { "q", "k_cache", "v_cache" };
    struct call all = call_open(bed, bed->ctx, halves[spec].all, 0);
    struct call first = call_open(bed, bed->ctx, halves[spec].half, 1);
    struct call second = call_open(bed, bed->ctx, halves[spec].half, 2);
    struct call merge = call_open(bed, bed->ctx, halves[spec].merge, 3);
    const double factor = strstr(halves[spec].merge, "merge_state_v2") ? 1 : M_LOG2E;
    put_halves(&all, &first, &second);
    for (int i = 0; i < 3; i++) {
        copy_all(&first, &all, same[i]);
        copy_all(&second, &all, same[i]);
    }
    call_run(&all, NULL);
    call_run(&first, NULL);
    call_run(&second, NULL);
    put_state(&merge, &first, "v_a", "s_a");
    put_state(&merge, &second, "v_b", "s_b");
    call_run(&merge, NULL);
    ck_assert_double_le(distance(&all, "o", &merge, "v_merged", count_of(&all, "o")),
                        2 * tolerance_of(&all));
    for (int64_t i = 0; i < count_of(&all, "lse"); i++) {
        double wanted = get(&all, "lse", i) * factor, got = get(&merge, "s_merged", i);
        ck_assert_msg(wanted == got || fabs(wanted - got) <= 3e-3, "%s: s_merged %lld: %g, not %g",
                      merge.text, (long long)i, got, wanted);
    }
}

static void merge_in_place_check(const struct decode_bed *bed, int is_v2)
{
    static const char *const onto[][2] = { { "v_a", "s_a" }, { "v_b", "s_b" } };
    const char *text = is_v2 ? "merge_state_v2 t=37 h=6 d=520" : "merge_state t=37 h=6 d=520";
    for (int i = 0; i < 2; i++) {
        struct call apart = call_open(bed, bed->ctx, text, 0);
        call_run(&apart, NULL);
        struct call onto_one = call_open(bed, bed->ctx, text, 1);
        static const char *const inputs[] = { "v_a", "s_a", "v_b", "s_b" };
        for (int k = 0; k < 4; k++)
            copy_all(&onto_one, &apart, inputs[k]);
        for (int k = 0; k < 2; k++) {
            const char *out = k ? "s_merged" : "v_merged";
            copy(&onto_one, 0, &onto_one, 0, 0, out);
            for (int64_t e = 0; e < count_of(&onto_one, out); e++)
                put(&onto_one, out, e, get(&apart, onto[i][k], e));
            onto_one.set.arrays[index_of(&onto_one, onto[i][k])] =
                onto_one.set.arrays[index_of(&onto_one, out)];
        }
        call_run(&onto_one, NULL);
        assert_bits(&apart, 0, &onto_one, count_of(&apart, "v_merged"), "v_merged");
        assert_bits(&apart, 0, &onto_one, count_of(&apart, "s_merged"), "s_merged");
    }
}

/* ---- The tests ------------------------------------------------------------------------------ */

static const struct decode_bed *bed_of_suite;

START_TEST(an_edge_matches_its_reference)
{
    edge_check(bed_of_suite, _i);
}
END_TEST

START_TEST(a_sequence_alone_has_the_bits_that_it_has_in_a_batch)
{
    alone_check(bed_of_suite, _i);
}
END_TEST

START_TEST(deterministic_bits_are_the_same_in_every_config)
{
    configs_check(bed_of_suite, _i);
}
END_TEST

START_TEST(a_nan_in_any_input_of_a_sequence_stays_in_it)
{
    nan_check(bed_of_suite, _i);
}
END_TEST

START_TEST(with_quern_check_bad_pages_and_lengths_are_refused_saying_where)
{
    bad_check_refused(bed_of_suite, _i);
}
END_TEST

START_TEST(without_it_the_call_runs_and_no_byte_but_the_outputs_is_written)
{
    bad_check_runs(bed_of_suite, _i);
}
END_TEST

START_TEST(a_shared_prefix_gives_what_its_tokens_give_in_every_table)
{
    prefix_check(bed_of_suite, _i);
}
END_TEST

START_TEST(halves_of_the_keys_merged_are_attention_to_all)
{
    halves_check(bed_of_suite, _i);
}
END_TEST

START_TEST(states_merged_in_place_have_the_same_bits)
{
    merge_in_place_check(bed_of_suite, _i);
}
END_TEST

TCase *decode_tcase(const struct decode_bed *bed)
{
    TCase *tcase = tcase_create("decode");
    bed_of_suite = bed;
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, an_edge_matches_its_reference, 0, edge_count);
    tcase_add_loop_test(tcase, a_sequence_alone_has_the_bits_that_it_has_in_a_batch, 0,
                        alone_count);
    tcase_add_loop_test(tcase, deterministic_bits_are_the_same_in_every_config, 0, alone_count);
    tcase_add_loop_test(tcase, a_nan_in_any_input_of_a_sequence_stays_in_it, 0, nan_count);
    tcase_add_loop_test(tcase, with_quern_check_bad_pages_and_lengths_are_refused_saying_where, 0,
                        bad_count);
    tcase_add_loop_test(tcase, without_it_the_call_runs_and_no_byte_but_the_outputs_is_written, 0,
                        bad_count);
    tcase_add_loop_test(tcase, a_shared_prefix_gives_what_its_tokens_give_in_every_table, 0,
                        prefix_count);
    tcase_add_loop_test(tcase, halves_of_the_keys_merged_are_attention_to_all, 0, halves_count);
    tcase_add_loop_test(tcase, states_merged_in_place_have_the_same_bits, 0, 2);
    return tcase;
}
