/* grouped_gemm where its index arrays hold what no caller should pass: the call computes what
 * grouped_gemm.def says of it, touches nothing else, and gives the same bits again; QUERN_CHECK=1
 * refuses it. What a row gives depends on its expert and on nothing beside it. */
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

/* ---- Index arrays that lead astray ----------------------------------------------------------- */

#define OFFSETS "experts=4 m=40 n=24 k=48"
#define BLOCKS "experts=4 m=40 n=24 k=48 form=blocks block=8"
#define MASKED "experts=4 m=10 n=24 k=48 form=masked"
#define GATHER OFFSETS " gather=1 source_rows=6 share=2 activation=silu"

enum { VALUES = 8, HUGE_ID = 2147483647, NONE = -2147483647 };

static const struct astray {
    const char *words, *array;
    int count; /* of values, put from the first element on; the others are the family's */
    int32_t values[VALUES];
    const char *text; /* of the refusal; NULL: it is legal */
} astray[] = {
    { OFFSETS,
      "offsets",
      5,
      { 0, 30, 10, 20, 40 },
      "offsets[2]=10: must be at least offsets[1]=30" },
    { OFFSETS,
      "offsets",
      5,
      { 40, 30, 20, 10, 0 },
      "offsets[1]=30: must be at least offsets[0]=40" },
    { OFFSETS, "offsets", 5, { -9, 5, 9, 9, 41 }, "offsets[0]=-9: must be from 0 to 40" },
    { OFFSETS,
      "offsets",
      5,
      { 0, HUGE_ID, HUGE_ID, NONE, 3 },
      "offsets[1]=2147483647: must be from" },
    { OFFSETS,
      "offsets",
      5,
      { NONE, NONE, NONE, NONE, NONE },
      "offsets[0]=-2147483647: must be from" },
    { OFFSETS, "offsets", 5, { 7, 7, 7, 19, 33 }, NULL }, /* rows before and behind are nobody's */
    { OFFSETS, "offsets", 5, { 0, 40, 40, 40, 40 }, NULL },
    { OFFSETS, "offsets", 5, { 40, 40, 40, 40, 40 }, NULL },
    { BLOCKS,
      "expert_ids",
      5,
      { 0, 4, HUGE_ID, -2, NONE },
      "expert_ids[1]=4: must be from -1 to 3" },
    { BLOCKS, "expert_ids", 5, { 3, 3, 3, 0, 0 }, NULL },
    { BLOCKS, "num_rows", 1, { 41 }, "num_rows[0]=41: must be from 0 to 40" },
    { BLOCKS, "num_rows", 1, { HUGE_ID }, "num_rows[0]=2147483647: must be from 0 to 40" },
    { BLOCKS, "num_rows", 1, { -1 }, "num_rows[0]=-1: must be from 0 to 40" },
    { BLOCKS, "num_rows", 1, { 13 }, NULL }, /* within a block */
    { BLOCKS, "num_rows", 1, { 0 }, NULL },
    { MASKED, "counts", 4, { 11, 3, 0, 10 }, "counts[0]=11: must be from 0 to 10" },
    { MASKED, "counts", 4, { HUGE_ID, NONE, -1, 0 }, "counts[0]=2147483647: must be from 0 to 10" },
    { MASKED, "counts", 4, { 0, 0, 0, 0 }, NULL },
    { GATHER, "row_ids", 5, { 13, 1, 2, 3, 4 }, "row_ids[0]=13: must be from -1 to 12" },
    { GATHER, "row_ids", 5, { HUGE_ID, NONE, -2, -1, 12 }, "row_ids[0]=2147483647: must be from" },
    { GATHER, "row_ids", 5, { 12, -1, 11, 11, 0 }, NULL },
};
enum { ASTRAY = sizeof(astray) / sizeof(astray[0]) };
static const char *const dtypes[] = { "bf16", "f32" };
enum { DTYPES = sizeof(dtypes) / sizeof(dtypes[0]) };

/* Few rows and many have algorithms of their own. */
static const char *const algos[] = { "algo=0", "algo=1" };

static struct quern_spec arrays_draw(struct common_arrays *set, const struct astray *test,
                                     const char *dtype)
{
    char text[256];
    snprintf(text, sizeof(text), "grouped_gemm %s dtype=%s", test->words, dtype);
    struct quern_spec spec = common_spec(ctx, text);
    common_arrays_init(set, ctx, &spec, (struct common_layout){ 0, 3 }, common_random(&seed));
    for (int i = 0; i < test->count; i++)
        common_arrays_put(set, array_of(&spec, test->array), i, test->values[i]);
    return spec;
}

static void check(struct quern_kernel *kernel, const struct quern_spec *spec,
                  struct common_arrays *set, const char *what)
{
    struct quern_check result;
    common_doing(what);
    assert_ok(ctx, quern_verify(ctx, kernel, spec, set->arrays, seed, &result));
    ck_assert_msg(result.ok, "%s: rel_err %g row_err %g tol %g: %s", what, result.rel_err,
                  result.row_err, result.tol, result.why);
    common_arrays_check(set, what);
    common_arrays_keep(set);
    common_arrays_restore(set);
    assert_ok(ctx, quern_launch(ctx, kernel, spec, set->arrays, NULL));
    common_arrays_check(set, what);
}

START_TEST(indices_that_lead_astray_give_what_is_said_and_touch_nothing_else)
{
    const struct astray *test = &astray[_i / DTYPES];
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_kernel *kernel;
    struct common_arrays set;
    char what[300], text[512];
    struct quern_spec spec = arrays_draw(&set, test, dtypes[_i % DTYPES]);
    request.spec = &spec;
    request.arrays = set.arrays;
    for (int algo = 0; algo < 2; algo++) {
        snprintf(what, sizeof(what), "%s dtype=%s, %s %d, %s", test->words, dtypes[_i % DTYPES],
                 test->array, test->values[0], algos[algo]);
        snprintf(text, sizeof(text), "%s,bf16_pairs=0,mr=%d,nr=16,mc=16,nc=16,kc=32", algos[algo],
                 algo ? 1 : 4);
        request.config = text;
        if (quern_prepare(ctx, &request, &kernel)) { /* vectors of another width */
            request.config = NULL;
            assert_ok(ctx, quern_prepare(ctx, &request, &kernel));
        }
        check(kernel, &spec, &set, what);
        common_arrays_restore(&set);
    }
    common_arrays_fini(&set);
}
END_TEST

START_TEST(checked_calls_refuse_indices_that_lead_astray)
{
    const struct astray *test = &astray[_i];
    struct common_arrays set;
    setenv("QUERN_CHECK", "1", 1);
    struct quern_context *plain = ctx;
    ctx = common_context(NULL);
    unsetenv("QUERN_CHECK");
    struct quern_spec spec = arrays_draw(&set, test, "f32");
    if (test->text)
        assert_refused(ctx, quern_run(ctx, &spec, set.arrays, NULL), QUERN_INVALID, test->text);
    else
        assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    common_arrays_fini(&set);
    quern_context_destroy(ctx);
    ctx = plain;
}
END_TEST

/* ---- A row by itself ------------------------------------------------------------------------- */

/* NaN in a row of a, and in an expert's matrix: nowhere but in what is made of them. */
START_TEST(nan_stays_in_its_row_and_in_its_expert)
{
    enum { ROWS = 40, COLUMNS = 24, K = 48, ROW = 11, EXPERT = 2 };
    static const int32_t offsets[] = { 0, 10, 20, 31, 40 };
    struct common_arrays set;
    char text[200];
    snprintf(text, sizeof(text), "grouped_gemm " OFFSETS " dtype=f32 activation=%s",
             _i ? "silu" : "none");
    struct quern_spec spec = common_spec(ctx, text);
    common_arrays_init(&set, ctx, &spec, (struct common_layout){ 0, 0 }, common_random(&seed));
    for (int i = 0; i < 5; i++)
        common_arrays_put(&set, array_of(&spec, "offsets"), i, offsets[i]);
    for (int p = 0; p < K; p++) {
        common_arrays_put(&set, array_of(&spec, "a"), ROW * K + p, NAN);
        common_arrays_put(&set, array_of(&spec, "b"),
                          EXPERT * COLUMNS * K * (_i ? 2 : 1) + 3 * K + p, NAN);
    }
    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    const float *d = set.arrays[array_of(&spec, "d")].data;
    for (int row = 0; row < ROWS; row++)
        for (int j = 0; j < COLUMNS; j++) {
            bool is_wanted =
                row == ROW || (row >= offsets[EXPERT] && row < offsets[EXPERT + 1] && j == 3);
            ck_assert_msg(isnan(d[row * COLUMNS + j]) == is_wanted, "%s: row %d, column %d: %g",
                          text, row, j, d[row * COLUMNS + j]);
        }
    common_arrays_fini(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("grouped_gemm");
    TCase *tcase = tcase_create("grouped_gemm");
    tcase_add_unchecked_fixture(tcase, setup, teardown); /* kernels are made once */
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, indices_that_lead_astray_give_what_is_said_and_touch_nothing_else, 0,
                        ASTRAY * DTYPES);
    tcase_add_loop_test(tcase, checked_calls_refuse_indices_that_lead_astray, 0, ASTRAY);
    tcase_add_loop_test(tcase, nan_stays_in_its_row_and_in_its_expert, 0, 2);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
