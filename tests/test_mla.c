/* mla_decode beyond its cases: lists of rows and page tables are two ways to one result, a query
 * sees what it should and nothing else, and with deterministic=1 its bits depend on its sequence
 * alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

static struct quern_context *ctx;
static uint64_t seed;

static void setup(void)
{
    ctx = common_context(NULL);
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

enum { DK = 576, DV = 512, TOKEN_BYTES = 656 };

/* The number of the family's array of that name. */
static int array_of(const struct quern_spec *spec, const char *name)
{
    struct quern_family_description family;
    int i = 0;
    quern_family_describe(spec->family, &family);
    while (strcmp(family.arrays[i].name, name))
        i++;
    return i;
}

static struct quern_spec arrays_draw(struct common_arrays *set, const char *text)
{
    struct quern_spec spec = common_spec(ctx, text);
    common_arrays_init(set, ctx, &spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    return spec;
}

static void run(const struct quern_spec *spec, const struct quern_array *arrays)
{
    struct quern_kernel *kernel;
    assert_ok(ctx, quern_dispatch(ctx, spec, arrays, &kernel));
    assert_ok(ctx, quern_launch(ctx, kernel, spec, arrays, NULL));
}

static void *data_of(const struct common_arrays *set, const struct quern_spec *spec,
                     const char *name)
{
    return set->arrays[array_of(spec, name)].data;
}

static void put(struct common_arrays *set, const struct quern_spec *spec, const char *name,
                int64_t element, double value)
{
    common_arrays_put(set, array_of(spec, name), element, value);
}

static float value_at(const void *data, int64_t i, bool is_bf16)
{
    if (!is_bf16)
        return ((const float *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* ||a - b|| / ||b|| of rows of o. */
static double distance(const void *a, const void *b, int64_t count, bool is_bf16)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double x = value_at(a, i, is_bf16), y = value_at(b, i, is_bf16);
        error += (x - y) * (x - y);
        norm += y * y;
    }
    return sqrt(error / norm);
}

/* On AMX or other units of bf16, where there are such, and on f32. */
static const char *const kinds[] = { "dtype=bf16", "dtype=f32", "dtype=bf16 kv_dtype=e4m3",
                                     "dtype=f32 kv_dtype=e4m3" };
enum { KIND_COUNT = sizeof(kinds) / sizeof(kinds[0]) };
static const double near_enough[] = { 8e-3, 1e-5, 8e-3, 1e-5 };

/* ---- Lists of rows --------------------------------------------------------------------------- */

START_TEST(a_list_of_a_sequences_rows_gives_what_its_pages_give)
{
    enum { B = 3, PAGE = 16, MAX_PAGES = 9, TOPK = 150 };
    char text[256];
    struct common_arrays paged, listed;
    snprintf(text, sizeof(text),
             "mla_decode b=3 hq=20 page=16 pages=27 max_pages=9 lse=1 deterministic=1 %s",
             kinds[_i]);
    const struct quern_spec by_page = arrays_draw(&paged, text);
    strcat(text, " topk=150");
    const struct quern_spec by_row = arrays_draw(&listed, text);
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "kv_cache" : "q";
        const struct quern_array *from = &paged.arrays[array_of(&by_page, name)];
        memcpy(data_of(&listed, &by_row, name), from->data, from->size_bytes);
    }
    const int32_t *table = data_of(&paged, &by_page, "page_table");
    const int32_t *lengths = data_of(&paged, &by_page, "seq_lens");
    int32_t *indices = data_of(&listed, &by_row, "indices");
    for (int i = 0; i < B * TOPK; i++) {
        int s = i / TOPK, token = i % TOPK - 6 + s; /* with some that are none before and behind */
        bool is_row = token >= 0 && token < lengths[s];
        indices[i] = is_row ? table[s * MAX_PAGES + token / PAGE] * PAGE + token % PAGE : -1;
    }
    run(&by_page, paged.arrays);
    run(&by_row, listed.arrays);
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "lse" : "o";
        const struct quern_array *wanted = &paged.arrays[array_of(&by_page, name)];
        ck_assert_mem_eq(data_of(&listed, &by_row, name), wanted->data, wanted->size_bytes);
    }
    common_arrays_fini(&paged);
    common_arrays_fini(&listed);
}
END_TEST

START_TEST(a_query_of_no_row_gives_zeros_and_an_lse_of_minus_infinity)
{
    static const char *const forms[] = { "topk=40", "max_pages=2" };
    for (int kind = 0; kind < KIND_COUNT; kind++) {
        char text[256];
        struct common_arrays set;
        snprintf(text, sizeof(text), "mla_decode b=2 sq=2 hq=3 page=32 pages=4 lse=1 %s %s",
                 forms[_i], kinds[kind]);
        const struct quern_spec spec = arrays_draw(&set, text);
        const bool is_bf16 = strstr(kinds[kind], "dtype=bf16") != NULL;
        for (int i = 0; _i == 0 && i < 160; i++)
            put(&set, &spec, "indices", i, i < 80 ? -1 : i % 3 ? 128 : -1 - i);
        for (int i = 0; _i == 1 && i < 2; i++)
            put(&set, &spec, "seq_lens", i, -i);
        run(&spec, set.arrays);
        for (int i = 0; i < 12; i++)
            ck_assert(((float *)data_of(&set, &spec, "lse"))[i] == -INFINITY);
        for (int i = 0; i < 12 * DV; i++)
            ck_assert(value_at(data_of(&set, &spec, "o"), i, is_bf16) == 0);
        common_arrays_fini(&set);
    }
}
END_TEST

/* ---- What a query sees ----------------------------------------------------------------------- */

/* Query i of four is the one query of a sequence that ends with its token. */
START_TEST(a_query_among_several_sees_what_it_sees_alone)
{
    enum { SQ = 4, HQ = 6, LENGTH = 131 };
    char text[256];
    struct common_arrays several, alone;
    const bool is_bf16 = strstr(kinds[_i], "dtype=bf16") != NULL;
    snprintf(text, sizeof(text), "mla_decode b=1 hq=6 page=16 pages=9 sq=4 %s", kinds[_i]);
    const struct quern_spec four = arrays_draw(&several, text);
    snprintf(text, sizeof(text), "mla_decode b=1 hq=6 page=16 pages=9 %s", kinds[_i]);
    const struct quern_spec one = arrays_draw(&alone, text);
    const int cache = array_of(&four, "kv_cache"), q = array_of(&four, "q");
    put(&several, &four, "seq_lens", 0, LENGTH);
    run(&four, several.arrays);
    memcpy(alone.arrays[cache].data, several.arrays[cache].data, alone.arrays[cache].size_bytes);
    memcpy(data_of(&alone, &one, "page_table"), data_of(&several, &four, "page_table"), 36);
    for (int i = 0; i < SQ; i++) {
        const size_t bytes = alone.arrays[q].size_bytes, o_bytes = bytes / DK * DV;
        memcpy(alone.arrays[q].data, (char *)several.arrays[q].data + (size_t)i * bytes, bytes);
        put(&alone, &one, "seq_lens", 0, LENGTH - SQ + 1 + i);
        run(&one, alone.arrays);
        double error = distance((char *)data_of(&several, &four, "o") + (size_t)i * o_bytes,
                                data_of(&alone, &one, "o"), HQ * DV, is_bf16);
        ck_assert_msg(error <= near_enough[_i], "query %d: %g", i, error);
    }
    common_arrays_fini(&several);
    common_arrays_fini(&alone);
}
END_TEST

static bool is_nan_row(const void *o, int64_t row, bool is_bf16)
{
    return isnan(value_at(o, row * DV, is_bf16));
}

static char *row_of(struct common_arrays *set, const struct quern_spec *spec, int64_t row,
                    size_t *bytes)
{
    const int cache = array_of(spec, "kv_cache");
    const struct quern_shape *shape = &set->shapes[cache];
    *bytes = set->arrays[cache].size_bytes / (size_t)(shape->dims[0] * shape->dims[1]);
    return (char *)set->arrays[cache].data + (size_t)row * *bytes;
}

/* A row of the cache: bytes of ones are NaN in every dtype. */
static void spoil(struct common_arrays *set, const struct quern_spec *spec, int64_t row)
{
    size_t bytes;
    char *data = row_of(set, spec, row, &bytes);
    memset(data, 0xff, bytes);
}

/* Bytes below 0x40 are values up to 2 in every dtype. */
static void refill(struct common_arrays *set, const struct quern_spec *spec, int64_t row)
{
    size_t bytes;
    char *data = row_of(set, spec, row, &bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (char)common_between(&seed, 0x38, 0x3f);
}

START_TEST(a_nan_in_the_last_row_reaches_the_last_query_of_its_sequence_alone)
{
    enum { B = 3, SQ = 3, HQ = 5, PAGE = 16, MAX_PAGES = 5, LENGTH = 66 };
    char text[256];
    struct common_arrays set;
    const bool is_bf16 = strstr(kinds[_i], "dtype=bf16") != NULL;
    snprintf(text, sizeof(text), "mla_decode b=3 sq=3 hq=5 page=16 pages=15 %s", kinds[_i]);
    const struct quern_spec spec = arrays_draw(&set, text);
    const int32_t *table = data_of(&set, &spec, "page_table");
    for (int s = 0; s < B; s++) {
        for (int i = 0; i < MAX_PAGES; i++)
            put(&set, &spec, "page_table", s * MAX_PAGES + i, i * B + s);
        put(&set, &spec, "seq_lens", s, s == 1 ? LENGTH : 40);
    }
    for (int row = 0; row < 15 * PAGE; row++) {
        int sequence = row / PAGE % B, token = row / PAGE / B * PAGE + row % PAGE;
        bool is_seen = token < (sequence == 1 ? LENGTH : 40);
        (is_seen ? refill : spoil)(&set, &spec, row);
    }
    spoil(&set, &spec, table[MAX_PAGES + (LENGTH - 1) / PAGE] * PAGE + (LENGTH - 1) % PAGE);
    run(&spec, set.arrays);
    for (int row = 0; row < B * SQ * HQ; row++) {
        bool is_wanted = row / HQ == SQ + SQ - 1;
        ck_assert_msg(is_nan_row(data_of(&set, &spec, "o"), row, is_bf16) == is_wanted, "row %d",
                      row);
    }
    common_arrays_fini(&set);
}
END_TEST

START_TEST(whatever_the_index_arrays_hold_nothing_outside_is_touched)
{
    static const double wild[] = { -1, 2147483647, -2147483647, 7, 6, 1e9, 0, 3 };
    static const char *const forms[] = { "max_pages=5", "topk=37" };
    for (int kind = 0; kind < KIND_COUNT; kind++) {
        char text[256];
        struct common_arrays set;
        snprintf(text, sizeof(text), "mla_decode b=4 sq=2 hq=3 page=8 pages=7 lse=1 %s %s",
                 forms[_i], kinds[kind]);
        const struct quern_spec spec = arrays_draw(&set, text);
        for (int i = 0; _i == 0 && i < 20; i++)
            put(&set, &spec, "page_table", i, wild[common_between(&seed, 0, 7)]);
        for (int i = 0; _i == 0 && i < 4; i++)
            put(&set, &spec, "seq_lens", i, wild[common_between(&seed, 0, 7)]);
        for (int i = 0; _i == 1 && i < 4 * 2 * 37; i++)
            put(&set, &spec, "indices", i, wild[common_between(&seed, 0, 7)]);
        run(&spec, set.arrays);
        common_arrays_check(&set, text);
        common_arrays_fini(&set);
    }
}
END_TEST

/* ---- One result ------------------------------------------------------------------------------ */

/* Sequence 2 of five, and the same one alone: also where it is cut into pieces. */
START_TEST(a_deterministic_sequence_has_the_same_bits_alone_and_in_a_batch)
{
    enum { B = 5, HQ = 17, MAX_PAGES = 90, THE = 2 };
    char text[256];
    struct common_arrays batch, alone;
    const int lengths[B] = { 5000, 1, _i ? 5431 : 700, 0, 333 };
    snprintf(text, sizeof(text),
             "mla_decode b=5 hq=17 pages=95 max_pages=90 lse=1 deterministic=1 %s", kinds[0]);
    const struct quern_spec many = arrays_draw(&batch, text);
    snprintf(text, sizeof(text),
             "mla_decode b=1 hq=17 pages=95 max_pages=90 lse=1 deterministic=1 %s", kinds[0]);
    const struct quern_spec one = arrays_draw(&alone, text);
    for (int i = 0; i < B * MAX_PAGES; i++)
        put(&batch, &many, "page_table", i, (i * 7 + i / MAX_PAGES) % 95);
    for (int i = 0; i < B; i++)
        put(&batch, &many, "seq_lens", i, lengths[i]);
    put(&alone, &one, "seq_lens", 0, lengths[THE]);
    static const char *const parts[] = { "q", "page_table", "o", "lse" };
    const int cache = array_of(&one, "kv_cache");
    memcpy(alone.arrays[cache].data, batch.arrays[cache].data, alone.arrays[cache].size_bytes);
    run(&many, batch.arrays);
    for (int i = 0; i < 4; i++) {
        const struct quern_array *part = &alone.arrays[array_of(&one, parts[i])];
        const char *from = (char *)data_of(&batch, &many, parts[i]) + THE * part->size_bytes;
        if (i == 2)
            run(&one, alone.arrays);
        if (i < 2)
            memcpy(part->data, from, part->size_bytes);
        else
            ck_assert_mem_eq(part->data, from, part->size_bytes);
    }
    common_arrays_fini(&batch);
    common_arrays_fini(&alone);
}
END_TEST

/* What set_kv_buffer writes of bf16 rows, against those rows. */
START_TEST(tokens_of_656_bytes_are_read_as_set_kv_buffer_writes_them)
{
    enum { TOKENS = 300, HQ = 16 };
    struct common_arrays rows, tokens, store;
    const struct quern_spec plain = arrays_draw(&rows, "mla_decode b=1 hq=16 pages=5");
    const struct quern_spec packed =
        arrays_draw(&tokens, "mla_decode b=1 hq=16 pages=5 kv_dtype=e4m3");
    const struct quern_spec set =
        arrays_draw(&store, "set_kv_buffer layout=mla t=300 page=64 pages=5");
    struct quern_array caches = tokens.arrays[array_of(&packed, "kv_cache")];
    uint16_t *latent = data_of(&rows, &plain, "kv_cache");
    for (int i = 0; i < TOKENS; i++)
        put(&store, &set, "loc", i, i);
    for (int i = 0; i < 5 * 64 * DK; i++) { /* of both signs, and of one that no sum cancels */
        float value = (float)common_between(&seed, -100, 300) / 128;
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        latent[i] = (uint16_t)(bits >> 16);
    }
    memcpy(data_of(&store, &set, "k"), latent, TOKENS * DK * 2);
    struct quern_array *cache = &store.arrays[array_of(&set, "k_cache")];
    *cache = (struct quern_array){ .data = caches.data, .size_bytes = caches.size_bytes };
    run(&set, store.arrays);
    memcpy(data_of(&tokens, &packed, "q"), data_of(&rows, &plain, "q"), HQ * DK * 2);
    for (int i = 0; i < 5; i++) {
        put(&rows, &plain, "page_table", i, i);
        put(&tokens, &packed, "page_table", i, i);
    }
    put(&rows, &plain, "seq_lens", 0, TOKENS);
    put(&tokens, &packed, "seq_lens", 0, TOKENS);
    run(&plain, rows.arrays);
    run(&packed, tokens.arrays);
    double error =
        distance(data_of(&tokens, &packed, "o"), data_of(&rows, &plain, "o"), HQ * DV, true);
    ck_assert_msg(error < 0.05 && error > 1e-4, "%g", error);
    common_arrays_fini(&rows);
    common_arrays_fini(&tokens);
    common_arrays_fini(&store);
}
END_TEST

/* ---- Checked indices ------------------------------------------------------------------------- */

START_TEST(checked_calls_refuse_lengths_pages_and_rows_by_name)
{
    static const struct {
        const char *form, *array;
        int element, value;
        const char *text;
    } wrong[] = {
        { "max_pages=4", "seq_lens", 1, 65, "seq_lens[1]=65: must be from 0 to 64" },
        { "max_pages=4", "seq_lens", 0, -1, "seq_lens[0]=-1: must be from 0 to 64" },
        { "max_pages=4", "page_table", 5, 9,
          "page_table[1, 1]=9: must be from 0 to below pages=9" },
        { "max_pages=4", "page_table", 4, -1,
          "page_table[1, 0]=-1: must be from 0 to below pages=9" },
        { "topk=4", "indices", 6, 144,
          "indices[1, 0, 2]=144: must be -1, or from 0 to below pages * page=144" },
        { "topk=4", "indices", 3, -2,
          "indices[0, 0, 3]=-2: must be -1, or from 0 to below pages * page=144" },
    };
    char text[256];
    struct common_arrays set;
    struct quern_kernel *kernel;
    snprintf(text, sizeof(text), "mla_decode b=2 hq=2 page=16 pages=9 dtype=f32 %s",
             wrong[_i].form);
    const struct quern_spec spec = arrays_draw(&set, text);
    setenv("QUERN_CHECK", "1", 1);
    struct quern_context *checked = common_context(NULL);
    for (int i = 0; i < 2 && strcmp(wrong[_i].form, "topk=4"); i++)
        put(&set, &spec, "seq_lens", i, 20);
    for (int i = 0; i < 8 && strcmp(wrong[_i].form, "topk=4"); i++)
        put(&set, &spec, "page_table", i, i % 4 < 2 ? i : 2147483647); /* past 20: no matter */
    assert_ok(checked, quern_dispatch(checked, &spec, set.arrays, &kernel));
    assert_ok(checked, quern_launch(checked, kernel, &spec, set.arrays, NULL));
    put(&set, &spec, wrong[_i].array, wrong[_i].element, wrong[_i].value);
    assert_refused(checked, quern_launch(checked, kernel, &spec, set.arrays, NULL), QUERN_INVALID,
                   wrong[_i].text);
    unsetenv("QUERN_CHECK");
    quern_context_destroy(checked);
    common_arrays_fini(&set);
}
END_TEST

/* ---- Concatenation --------------------------------------------------------------------------- */

/* k_nope as the columns that a projection leaves beside the values; k_rope behind a latent row. */
START_TEST(what_is_joined_may_be_columns_of_wider_arrays)
{
    enum { T = 5, H = 3, WIDE = 40, ROW = 30 };
    static float projected[T][H][WIDE], latent[T][ROW], joined[T][H][24];
    const struct quern_spec spec =
        common_spec(ctx, "concat_mla_k t=5 h=3 nope=16 rope=8 dtype=f32");
    for (int i = 0; i < T * H * WIDE; i++)
        (&projected[0][0][0])[i] = (float)i;
    for (int i = 0; i < T * ROW; i++)
        (&latent[0][0])[i] = (float)-i;
    const struct quern_array arrays[] = {
        { &projected[0][0][3], sizeof(projected) - 12, 3, { H * WIDE, WIDE, 1 } },
        { &latent[0][7], sizeof(latent) - 28, 3, { ROW, ROW, 1 } },
        { joined, sizeof(joined), 0, { 0 } },
    };
    run(&spec, arrays);
    for (int i = 0; i < T * H * 24; i++) {
        int t = i / 24 / H, h = i / 24 % H, d = i % 24;
        ck_assert(joined[t][h][d] == (d < 16 ? projected[t][h][3 + d] : latent[t][7 + d - 16]));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mla");
    TCase *tests = tcase_create("mla");
    tcase_set_timeout(tests, 120);
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, a_list_of_a_sequences_rows_gives_what_its_pages_give, 0, KIND_COUNT);
    tcase_add_loop_test(tests, a_query_of_no_row_gives_zeros_and_an_lse_of_minus_infinity, 0, 2);
    tcase_add_loop_test(tests, a_query_among_several_sees_what_it_sees_alone, 0, KIND_COUNT);
    tcase_add_loop_test(tests, a_nan_in_the_last_row_reaches_the_last_query_of_its_sequence_alone,
                        0, KIND_COUNT);
    tcase_add_loop_test(tests, whatever_the_index_arrays_hold_nothing_outside_is_touched, 0, 2);
    tcase_add_loop_test(tests, a_deterministic_sequence_has_the_same_bits_alone_and_in_a_batch, 0,
                        2);
    tcase_add_test(tests, tokens_of_656_bytes_are_read_as_set_kv_buffer_writes_them);
    tcase_add_loop_test(tests, checked_calls_refuse_lengths_pages_and_rows_by_name, 0, 6);
    tcase_add_test(tests, what_is_joined_may_be_columns_of_wider_arrays);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
