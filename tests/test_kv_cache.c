/* set_kv_buffer beyond its cases: which bytes of a cache a call may change, what e4m3 and the
 * tokens of 656 bytes hold, and that the rotation of keys and of queries is one. */
#include <float.h>
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

static void *data_of(struct common_arrays *set, const struct quern_spec *spec, const char *name)
{
    return set->arrays[array_of(spec, name)].data;
}

static void *copy_of(const struct quern_array *array)
{
    void *copy = malloc(array->size_bytes);
    memcpy(copy, array->data, array->size_bytes);
    return copy;
}

static int64_t count_of(const struct common_arrays *set, int index)
{
    int64_t count = 1;
    for (int i = 0; i < set->shapes[index].rank; i++)
        count *= set->shapes[index].dims[i];
    return count;
}

/* ---- Which bytes ----------------------------------------------------------------------------- */

enum { TOKENS = 8, PAGES = 1024, PAGE = 4, ROOM = 1 << 20 };
static const char *const caches[] = {
    "set_kv_buffer t=8 hkv=4 d=128 page=4 pages=1024",
    "set_kv_buffer t=8 hkv=4 d=128 page=4 pages=1024 kv_dtype=e4m3 kv_scale=head index=i64 "
    "rope=neox max_position=64 hq=8",
    "set_kv_buffer layout=mla t=8 page=4 pages=1024",
};
static const int64_t rows[TOKENS] = { 4095, -1, 17, 0, 2048, -1, 1023, 3001 };

static bool is_named(int64_t row)
{
    for (int i = 0; i < TOKENS; i++) {
        if (rows[i] == row)
            return true;
    }
    return false;
}

/* Bytes of every value, not only those that inputs are drawn of. */
static void fill(struct quern_array *array)
{
    for (size_t i = 0; i < array->size_bytes; i++)
        ((unsigned char *)array->data)[i] = (unsigned char)common_random(&seed);
}

START_TEST(tuning_saves_the_rows_of_loc_and_a_call_changes_no_other)
{
    struct quern_tune_options options = QUERN_TUNE_OPTIONS_INIT;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_tune_result result;
    struct common_arrays set;
    const struct quern_spec spec = arrays_draw(&set, caches[_i]);
    void *before[QUERN_MAX_ARRAYS] = { NULL };
    for (int i = 0; i < TOKENS; i++)
        common_arrays_put(&set, array_of(&spec, "loc"), i, (double)rows[i]);
    for (int i = 0; i < set.count; i++) {
        if (set.shapes[i].role == QUERN_INOUT && set.shapes[i].rank == 4)
            fill(&set.arrays[i]);
        if (set.shapes[i].role == QUERN_INOUT)
            before[i] = copy_of(&set.arrays[i]);
    }
    request.spec = &spec;
    request.arrays = set.arrays;
    options.memory_bytes = ROOM; /* of the 2 MiB and more that a cache takes */
    assert_ok(ctx, quern_tune(ctx, &request, &options, &result));
    ck_assert_int_eq(result.is_drawn, 0);
    ck_assert_int_eq(result.failed, 0);
    ck_assert_int_ge(result.candidates, 3);
    ck_assert_int_le(result.scratch_bytes, ROOM);
    for (int i = 0; i < set.count; i++) {
        if (before[i])
            ck_assert_mem_eq(set.arrays[i].data, before[i], set.arrays[i].size_bytes);
    }
    run(&spec, set.arrays);
    for (int i = 0; i < set.count; i++) {
        size_t row = set.arrays[i].size_bytes / (PAGES * PAGE);
        for (int64_t r = 0; before[i] && set.shapes[i].rank == 4 && r < PAGES * PAGE; r++) {
            bool is_same = !memcmp((char *)set.arrays[i].data + (size_t)r * row,
                                   (char *)before[i] + (size_t)r * row, row);
            ck_assert_msg(is_same == !is_named(r), "array %d, row %d", i, (int)r);
        }
        free(before[i]);
    }
    common_arrays_fini(&set);
}
END_TEST

START_TEST(whatever_loc_and_positions_hold_nothing_outside_is_touched)
{
    static const double wild[] = { -2147483647, 2147483647, -2, 40, 39, 0, -1, 1e9 };
    static const char *const forms[] = {
        "set_kv_buffer t=8 hkv=2 d=32 page=8 pages=5 dtype=f32 rope=gptj max_position=7 hq=3",
        "set_kv_buffer layout=mla t=8 page=8 pages=5 rope=neox rope_dim=64 max_position=7 hq=1",
    };
    struct common_arrays set;
    struct quern_check check;
    struct quern_kernel *kernel;
    const struct quern_spec spec = arrays_draw(&set, forms[_i]);
    for (int i = 0; i < TOKENS; i++) {
        common_arrays_put(&set, array_of(&spec, "loc"), i, wild[i]);
        common_arrays_put(&set, array_of(&spec, "positions"), i, wild[(i + 3) % TOKENS]);
    }
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s", check.why);
    common_arrays_check(&set, forms[_i]);
    common_arrays_fini(&set);
}
END_TEST

/* Pages of [heads, page, d], by strides. */
START_TEST(a_cache_may_have_its_heads_outside_of_its_tokens)
{
    enum { HEADS = 3, D = 16, COUNT = 5 * HEADS * PAGE * D };
    struct common_arrays set;
    const struct quern_spec spec =
        arrays_draw(&set, "set_kv_buffer t=8 hkv=3 d=16 dv=0 page=4 pages=5 dtype=f32");
    const int cache = array_of(&spec, "k_cache");
    float *plain = set.arrays[cache].data, other[COUNT] = { 0 };
    memset(plain, 0, set.arrays[cache].size_bytes);
    run(&spec, set.arrays);
    set.arrays[cache] =
        (struct quern_array){ other, sizeof(other), 4, { HEADS * PAGE * D, D, PAGE * D, 1 } };
    run(&spec, set.arrays);
    for (int i = 0; i < COUNT; i++) {
        int page = i / (HEADS * PAGE * D), head = i / (PAGE * D) % HEADS, token = i / D % PAGE;
        ck_assert(other[i] == plain[((page * PAGE + token) * HEADS + head) * D + i % D]);
    }
    common_arrays_fini(&set);
}
END_TEST

/* ---- Values ---------------------------------------------------------------------------------- */

static void put_rows(struct common_arrays *set, const struct quern_spec *spec)
{
    for (int i = 0; i < set->shapes[array_of(spec, "loc")].dims[0]; i++)
        common_arrays_put(set, array_of(spec, "loc"), i, i);
}

START_TEST(e4m3_rounds_to_even_saturates_and_keeps_nan)
{
    static const struct {
        float value;
        uint8_t code;
    } known[] = { { 0, 0 },
                  { -0.0f, 0x80 },
                  { 1, 0x38 },
                  { -1.0625f, 0xb8 }, /* ties: to even, down and up */
                  { 1.1875f, 0x3a },
                  { 447, 0x7e },
                  { 448, 0x7e },
                  { 464, 0x7e },
                  { -1e30f, 0xfe },
                  { INFINITY, 0x7e },
                  { -INFINITY, 0xfe },
                  { NAN, 0x7f },
                  { -NAN, 0x7f },
                  { 0x1p-6f, 0x08 },
                  { 0x1.fp-7f, 0x08 }, /* the largest denormal's neighbour */
                  { 0x1p-9f, 0x01 },
                  { 0x1p-10f, 0 },
                  { 0x1.8p-9f, 0x02 },
                  { -0x1.cp-10f, 0x81 },
                  { 0x1p-149f, 0 } };
    enum { COUNT = sizeof(known) / sizeof(known[0]) };
    struct common_arrays set;
    const struct quern_spec spec = arrays_draw(
        &set, "set_kv_buffer t=1 hkv=1 d=24 dv=0 page=1 pages=1 dtype=f32 kv_dtype=e4m3");
    float *k = data_of(&set, &spec, "k");
    const uint8_t *codes = data_of(&set, &spec, "k_cache");
    put_rows(&set, &spec);
    for (int i = 0; i < COUNT; i++)
        k[i] = known[i].value;
    run(&spec, set.arrays);
    for (int i = 0; i < COUNT; i++)
        ck_assert_msg(codes[i] == known[i].code, "%a: 0x%02x, not 0x%02x", (double)known[i].value,
                      codes[i], known[i].code);
    common_arrays_fini(&set);
}
END_TEST

static float factor_at(const uint8_t *token, int group)
{
    float factor;
    memcpy(&factor, token + 512 + 4 * group, sizeof(factor));
    return factor;
}

START_TEST(a_group_of_a_token_has_its_factor_and_keeps_its_nan)
{
    struct common_arrays set;
    const struct quern_spec spec =
        arrays_draw(&set, "set_kv_buffer layout=mla t=1 page=1 pages=1 dtype=f32");
    float *k = data_of(&set, &spec, "k");
    const uint8_t *token = data_of(&set, &spec, "k_cache");
    put_rows(&set, &spec);
    for (int i = 0; i < 576; i++)
        k[i] = i < 128 ? (float)(i % 9) : i < 256 ? 0 : i < 384 ? 1e-44f : -3;
    k[5] = -896;
    k[260] = NAN;
    k[520] = NAN;
    run(&spec, set.arrays);
    ck_assert(factor_at(token, 0) == 2 && token[5] == 0xfe && token[2] == 0x38);
    ck_assert(factor_at(token, 1) == FLT_MIN && token[128] == 0);
    ck_assert(factor_at(token, 2) == FLT_MIN && token[260] == 0x7f && token[261] == 0);
    ck_assert(factor_at(token, 3) == 3.0f / 448 && token[500] == 0xfe);
    ck_assert(token[528] == 0x40 && token[529] == 0xc0); /* -3 in bf16 */
    ck_assert(token[528 + 16] == 0xff && token[529 + 16] == 0x7f);
    common_arrays_fini(&set);
}
END_TEST

/* The keys as queries: their rotation in place is what the cache gets. */
START_TEST(queries_and_keys_are_rotated_alike)
{
    static const char *const forms[] = { "rope=neox", "rope=gptj", "rope=neox rope_dim=32",
                                         "rope=gptj rope_dim=16 dtype=f16 rope_dtype=bf16" };
    char text[256];
    struct common_arrays set;
    snprintf(text, sizeof(text),
             "set_kv_buffer t=9 hkv=3 d=64 dv=0 page=4 pages=3 max_position=50 hq=3 %s", forms[_i]);
    const struct quern_spec spec = arrays_draw(&set, text);
    const struct quern_array *k = &set.arrays[array_of(&spec, "k")];
    void *q = data_of(&set, &spec, "q");
    put_rows(&set, &spec);
    memcpy(q, k->data, k->size_bytes);
    run(&spec, set.arrays);
    ck_assert_mem_eq(q, data_of(&set, &spec, "k_cache"), k->size_bytes);
    ck_assert_mem_ne(q, k->data, k->size_bytes);
    common_arrays_fini(&set);
}
END_TEST

START_TEST(position_zero_of_no_angle_changes_nothing)
{
    struct common_arrays set;
    const struct quern_spec spec = arrays_draw(
        &set, "set_kv_buffer t=5 hkv=2 d=32 page=4 pages=3 max_position=1 rope=neox hq=1");
    const int table = array_of(&spec, "cos_sin");
    const struct quern_array *k = &set.arrays[array_of(&spec, "k")];
    put_rows(&set, &spec);
    for (int i = 0; i < count_of(&set, table); i++)
        common_arrays_put(&set, table, i, i < 16);
    run(&spec, set.arrays);
    ck_assert_mem_eq(data_of(&set, &spec, "k_cache"), k->data, k->size_bytes);
    common_arrays_fini(&set);
}
END_TEST

/* ---- Checked indices ------------------------------------------------------------------------- */

START_TEST(checked_calls_refuse_rows_and_positions_by_name)
{
    static const struct {
        const char *array;
        int element, value;
        const char *text;
    } wrong[] = {
        { "loc", 3, 12, "loc[3]=12: must be -1, or from 0 to below pages * page=12" },
        { "loc", 2, -2, "loc[2]=-2: must be -1, or from 0 to below pages * page=12" },
        { "loc", 4, 1, "loc[4]=1: must not be used twice, and loc[1] is 1 too" },
        { "positions", 1, 9, "positions[1]=9: must be from 0 to below max_position=9" },
        { "positions", 0, -1, "positions[0]=-1: must be from 0 to below max_position=9" },
    };
    struct common_arrays set;
    struct quern_kernel *kernel;
    const struct quern_spec spec = arrays_draw(
        &set, "set_kv_buffer t=5 hkv=2 d=32 page=4 pages=3 max_position=9 rope=neox hq=1");
    setenv("QUERN_CHECK", "1", 1);
    struct quern_context *checked = common_context(NULL);
    put_rows(&set, &spec);
    assert_ok(checked, quern_dispatch(checked, &spec, set.arrays, &kernel));
    assert_ok(checked, quern_launch(checked, kernel, &spec, set.arrays, NULL));
    common_arrays_put(&set, array_of(&spec, wrong[_i].array), wrong[_i].element, wrong[_i].value);
    assert_refused(checked, quern_launch(checked, kernel, &spec, set.arrays, NULL), QUERN_INVALID,
                   wrong[_i].text);
    unsetenv("QUERN_CHECK");
    quern_context_destroy(checked);
    common_arrays_fini(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kv_cache");
    TCase *tests = tcase_create("kv_cache");
    tcase_set_timeout(tests, 120);
    tcase_add_unchecked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, tuning_saves_the_rows_of_loc_and_a_call_changes_no_other, 0, 3);
    tcase_add_loop_test(tests, whatever_loc_and_positions_hold_nothing_outside_is_touched, 0, 2);
    tcase_add_test(tests, a_cache_may_have_its_heads_outside_of_its_tokens);
    tcase_add_test(tests, e4m3_rounds_to_even_saturates_and_keeps_nan);
    tcase_add_test(tests, a_group_of_a_token_has_its_factor_and_keeps_its_nan);
    tcase_add_loop_test(tests, queries_and_keys_are_rotated_alike, 0, 4);
    tcase_add_test(tests, position_zero_of_no_angle_changes_nothing);
    tcase_add_loop_test(tests, checked_calls_refuse_rows_and_positions_by_name, 0, 5);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
