/* Specs: text and values, domains, byte counts, buckets. jit/spec.c. */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUERN_DEF "tests/kinds.def"
#include <quern/family_def.h>

#include "common.h"
#include "jit/context.h"
#include "jit/text.h"
#include "kinds.h"

static struct quern_context *ctx;

static void setup(void)
{
    ctx = common_context(NULL);
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static double real_of(int64_t bits)
{
    double real;
    memcpy(&real, &bits, sizeof(real));
    return real;
}

static int64_t bits_of(double real)
{
    int64_t bits;
    memcpy(&bits, &real, sizeof(bits));
    return bits;
}

static const char *text_of(const struct quern_spec *spec)
{
    static char text[512];
    ck_assert_int_lt(quern_spec_text(spec, text, sizeof(text)), (int)sizeof(text));
    return text;
}

/* `text` parses to what it says, or is refused with `said`, and *spec is then untouched. */
static void refused(const char *text, const char *said)
{
    struct quern_spec spec, before;
    memset(&spec, 0x5a, sizeof(spec));
    before = spec;
    assert_refused(ctx, quern_spec_parse(ctx, text, &spec), QUERN_INVALID, said);
    ck_assert_msg(!memcmp(&spec, &before, sizeof(spec)), "%s: refused, and still written", text);
}

/* ---- Text ---------------------------------------------------------------------------------- */

START_TEST(parse_fills_in_defaults_and_real_is_absent)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=3");
    ck_assert_str_eq(text_of(&spec), "kinds batch=1 rows=3 cols=8 longest=16 dtype=f32 order=up "
                                     "biased=0 accumulate=0");
    ck_assert(isnan(real_of(spec.values[KINDS_GAIN])));
    ck_assert_int_eq(spec.values[KINDS_DTYPE], QUERN_F32);
}
END_TEST

START_TEST(every_kind_parses_to_its_value)
{
    struct quern_spec spec =
        common_spec(ctx, "kinds rows=1099511627776 batch=0 dtype=f64 order=both "
                         "biased=1 gain=-2.5e-3 longest=1 cols=1");
    ck_assert_int_eq(spec.values[KINDS_ROWS], INT64_C(1) << 40);
    ck_assert_int_eq(spec.values[KINDS_BATCH], 0);
    ck_assert_int_eq(spec.values[KINDS_DTYPE], QUERN_F64);
    ck_assert_int_eq(spec.values[KINDS_ORDER], 2);
    ck_assert_int_eq(spec.values[KINDS_BIASED], 1);
    ck_assert_double_eq(real_of(spec.values[KINDS_GAIN]), -2.5e-3);
}
END_TEST

START_TEST(words_may_come_in_any_order_and_text_is_canonical)
{
    struct quern_spec a = common_spec(ctx, "kinds rows=5 cols=7 order=down gain=0.1");
    struct quern_spec b = common_spec(ctx, "\tkinds  gain=0.1\n order=down cols=7 rows=5 ");
    ck_assert_str_eq(text_of(&a), text_of(&b));
    ck_assert_mem_eq(&a, &b, sizeof(a));
}
END_TEST

static struct quern_spec random_spec(uint64_t *seed)
{
    static const int dtypes[] = { QUERN_F64, QUERN_F32 };
    struct quern_spec spec = common_spec(ctx, "kinds rows=1");
    spec.values[KINDS_BATCH] = common_between(seed, 0, 100);
    spec.values[KINDS_ROWS] = common_between(seed, 0, INT64_C(1) << common_between(seed, 0, 30));
    spec.values[KINDS_COLS] = common_between(seed, 1, 4094);
    spec.values[KINDS_LONGEST] = common_between(seed, 1, INT64_C(1) << 40);
    spec.values[KINDS_DTYPE] = dtypes[common_between(seed, 0, 1)];
    spec.values[KINDS_ORDER] = common_between(seed, 0, 2);
    spec.values[KINDS_BIASED] = common_between(seed, 0, 1);
    spec.values[KINDS_ACCUMULATE] = common_between(seed, 0, 1);
    if (common_between(seed, 0, 1))
        spec.values[KINDS_GAIN] = bits_of(
            ldexp((double)(int64_t)common_random(seed), (int)common_between(seed, -900, 900)));
    return spec;
}

START_TEST(format_then_parse_gives_the_same_values)
{
    uint64_t seed = common_seed();
    for (int i = 0; i < 2000; i++) {
        struct quern_spec spec = random_spec(&seed), again;
        assert_ok(ctx, quern_spec_parse(ctx, text_of(&spec), &again));
        ck_assert_msg(!memcmp(&spec, &again, sizeof(spec)), "%s", text_of(&spec));
    }
}
END_TEST

START_TEST(text_is_cut_and_terminated_and_gives_its_full_length)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=77 gain=0.25");
    char whole[256], cut[256];
    int length = quern_spec_text(&spec, whole, sizeof(whole));
    ck_assert_int_eq(length, (int)strlen(whole));
    for (size_t size = 1; size <= (size_t)length + 2; size++) {
        memset(cut, 0x5a, sizeof(cut));
        ck_assert_int_eq(quern_spec_text(&spec, cut, size), length);
        size_t kept = size - 1 < (size_t)length ? size - 1 : (size_t)length;
        ck_assert_uint_eq(strlen(cut), kept);
        ck_assert_mem_eq(cut, whole, kept);
        ck_assert_int_eq(cut[size], 0x5a);
    }
    ck_assert_int_eq(quern_spec_text(&spec, NULL, 0), length);
}
END_TEST

/* In a locale whose decimal point is a comma, where one can be had. */
START_TEST(locale_changes_neither_parsing_nor_text)
{
    char *directory = common_scratch_path("de_DE.UTF-8"), command[600];
    int code;
    snprintf(command, sizeof(command), "localedef -i de_DE -f UTF-8 %s 2>&1", directory);
    free(common_shell(command, &code));
    setenv("LOCPATH", common_scratch(), 1);
    if (!setlocale(LC_ALL, "de_DE.UTF-8"))
        printf("no localedef: the decimal comma is not tried\n");
    struct quern_spec spec = common_spec(ctx, "kinds rows=12345678 gain=0.5");
    ck_assert_double_eq(real_of(spec.values[KINDS_GAIN]), 0.5);
    ck_assert_ptr_nonnull(strstr(text_of(&spec), "rows=12345678 "));
    ck_assert_ptr_nonnull(strstr(text_of(&spec), " gain=0.5"));
    refused("kinds rows=1 gain=0,5", "gain=0,5");
    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    free(directory);
}
END_TEST

/* ---- What is refused ----------------------------------------------------------------------- */

static const struct {
    const char *text, *said[3];
} bad_specs[] = {
    { "", { "spec: must be a family" } },
    { " \t\n", { "spec: must be a family" } },
    { "nothing rows=1", { "family=nothing", "must be one of", "kinds" } },
    { "Kinds rows=1", { "family=Kinds", "kinds" } },
    { "kinds", { "rows: must be given" } },
    { "kinds rows", { "rows: must be name=value" } },
    { "kinds rows=", { "rows=: must be a whole number" } },
    { "kinds =4", { "=4", "batch, rows" } },
    { "kinds rows=1 height=2", { "height=2", "no such parameter", "batch, rows, cols" } },
    { "kinds rows=1 Rows=1", { "Rows=1", "no such parameter" } },
    { "kinds rows=1 cols=2 rows=1", { "rows=1: given twice" } },
    { "kinds rows=1 dtype=f32 dtype=f64", { "dtype=f64: given twice" } },
    { "kinds rows=1 rows", { "rows: must be name=value" } },
    { "kinds rows=abc", { "rows=abc", "whole number" } },
    { "kinds rows=12x", { "rows=12x", "whole number" } },
    { "kinds rows=1.5", { "rows=1.5", "whole number" } },
    { "kinds rows=1e3", { "rows=1e3", "whole number" } },
    { "kinds rows=+3", { "rows=+3", "whole number" } },
    { "kinds rows=0x10", { "rows=0x10", "whole number" } },
    { "kinds rows=-1", { "rows=-1", "from 0 to 1099511627776" } },
    { "kinds longest=0 rows=1", { "longest=0", "from 1 to 1099511627776" } },
    { "kinds rows=1099511627777", { "rows=1099511627777", "from 0 to 1099511627776" } },
    { "kinds rows=9223372036854775808", { "rows=9223372036854775808", "from 0 to" } },
    { "kinds rows=-9223372036854775808", { "rows=-9223372036854775808", "from 0 to" } },
    { "kinds rows=99999999999999999999999", { "rows=99999999999999999999999", "from 0 to" } },
    { "kinds rows=-99999999999999999999999", { "rows=-99999999999999999999999", "from 0 to" } },
    { "kinds rows=1 dtype=f16", { "dtype=f16", "must be one of: f64 f32" } },
    { "kinds rows=1 dtype=", { "dtype=", "must be one of: f64 f32" } },
    { "kinds rows=1 dtype=f3", { "dtype=f3", "must be one of: f64 f32" } },
    { "kinds rows=1 dtype=1", { "dtype=1", "must be one of: f64 f32" } },
    { "kinds rows=1 dtype=f32,f64", { "dtype=f32,f64", "must be one of" } },
    { "kinds rows=1 order=UP", { "order=UP", "must be one of: up down both" } },
    { "kinds rows=1 order=0", { "order=0", "must be one of: up down both" } },
    { "kinds rows=1 biased=2", { "biased=2", "must be 0 or 1" } },
    { "kinds rows=1 biased=true", { "biased=true", "must be 0 or 1" } },
    { "kinds rows=1 biased=", { "biased=", "must be 0 or 1" } },
    { "kinds rows=1 biased=01", { "biased=01", "must be 0 or 1" } },
    { "kinds rows=1 gain=", { "gain=", "finite number" } },
    { "kinds rows=1 gain=inf", { "gain=inf", "finite number" } },
    { "kinds rows=1 gain=-INFINITY", { "gain=-INFINITY", "finite number" } },
    { "kinds rows=1 gain=nan", { "gain=nan", "finite number" } },
    { "kinds rows=1 gain=1e999", { "gain=1e999", "finite number" } },
    { "kinds rows=1 gain=1.0f", { "gain=1.0f", "finite number" } },
    { "kinds rows=1 gain=half", { "gain=half", "finite number" } },
    { "kinds rows=1 cols=4095", { "cols=4095: must not be 4095" } },
};

START_TEST(bad_text_is_refused_naming_the_word_and_what_is_allowed)
{
    for (int i = 0; i < 3 && bad_specs[_i].said[i]; i++)
        refused(bad_specs[_i].text, bad_specs[_i].said[i]);
}
END_TEST

START_TEST(absurdly_long_words_are_refused_in_one_bounded_line)
{
    char *text = malloc(200000);
    ck_assert_ptr_nonnull(text);
    strcpy(text, "kinds rows=");
    memset(text + 11, '9', 199000);
    text[199011] = '\0';
    refused(text, "rows=999");
    text[6] = 'z'; /* an unknown name with the same value */
    refused(text, "zows=999");
    memset(text, 'k', 199000);
    refused(text, "family=kkk");
    free(text);
}
END_TEST

START_TEST(null_arguments_are_refused)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=1");
    struct quern_spec none = { 0 };
    char text[8] = "before";
    refused(NULL, "text=NULL: must be given");
    assert_refused(ctx, quern_spec_parse(ctx, "kinds rows=1", NULL), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_spec_init(ctx, NULL, &spec), QUERN_INVALID, "family=NULL");
    assert_refused(ctx, quern_spec_init(ctx, "kinds", NULL), QUERN_INVALID,
                   "spec=NULL: must be given");
    assert_refused(ctx, quern_spec_shape(ctx, &spec, 0, NULL), QUERN_INVALID, "shape=NULL");
    assert_refused(ctx, quern_spec_shape(ctx, NULL, 0, NULL), QUERN_INVALID, "spec=NULL");
    ck_assert_int_eq(quern_spec_text(&none, text, sizeof(text)), QUERN_INVALID);
    ck_assert_str_eq(text, "");
    ck_assert_int_eq(quern_spec_text(NULL, text, sizeof(text)), QUERN_INVALID);
    ck_assert_int_eq(quern_spec_text(NULL, NULL, 0), QUERN_INVALID);
    ck_assert_int_eq(quern_spec_text(&spec, NULL, 10), QUERN_INVALID);
    assert_refused(ctx, quern_spec_validate(ctx, NULL), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_spec_validate(ctx, &none), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_spec_set(ctx, &none, "rows", "1"), QUERN_INVALID, "spec=NULL");
    assert_refused(ctx, quern_spec_set(ctx, &spec, NULL, "1"), QUERN_INVALID, "NULL");
    assert_refused(ctx, quern_spec_set(ctx, &spec, "rows", NULL), QUERN_INVALID, "rows=NULL");
}
END_TEST

START_TEST(set_changes_one_value_and_a_refused_set_none)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=1"), before;
    assert_ok(ctx, quern_spec_set(ctx, &spec, "order", "down"));
    assert_ok(ctx, quern_spec_set(ctx, &spec, "rows", "0"));
    before = spec;
    assert_refused(ctx, quern_spec_set(ctx, &spec, "rows", " 5"), QUERN_INVALID, "rows= 5");
    assert_refused(ctx, quern_spec_set(ctx, &spec, "order", "up down"), QUERN_INVALID,
                   "order=up down");
    assert_refused(ctx, quern_spec_set(ctx, &spec, "none", "1"), QUERN_INVALID, "none=1");
    ck_assert_mem_eq(&spec, &before, sizeof(spec));
    ck_assert_int_eq(spec.values[KINDS_ORDER], 1);
    ck_assert_int_eq(spec.values[KINDS_ROWS], 0);
}
END_TEST

/* Specs made by hand hold what no text gives. */
static const struct {
    int param;
    int64_t value;
    const char *said;
} bad_values[] = {
    { KINDS_ROWS, QUERN_REQUIRED, "rows: must be given" },
    { KINDS_ROWS, -1, "rows=-1: must be from 0" },
    { KINDS_ROWS, (INT64_C(1) << 40) + 1, "rows=1099511627777: must be from 0" },
    { KINDS_ROWS, INT64_MAX, "rows=9223372036854775807: must be from 0" },
    { KINDS_LONGEST, 0, "longest=0: must be from 1" },
    { KINDS_DTYPE, QUERN_BF16, "dtype=bf16: must be one of: f64 f32" },
    { KINDS_DTYPE, QUERN_NONE, "dtype=none: must be one of: f64 f32" },
    { KINDS_DTYPE, -1, "dtype=-1: must be one of: f64 f32" },
    { KINDS_DTYPE, 1000, "dtype=1000: must be one of: f64 f32" },
    { KINDS_DTYPE, QUERN_F32 + (INT64_C(1) << 32), "dtype=4294967297: must be one of: f64 f32" },
    { KINDS_ORDER, 3, "order=3: must be one of: up down both" },
    { KINDS_ORDER, -1, "order=-1: must be one of: up down both" },
    { KINDS_ORDER, INT64_C(1) << 32, "order=4294967296: must be one of: up down both" },
    { KINDS_BIASED, 2, "biased=2: must be 0 or 1" },
    { KINDS_BIASED, -1, "biased=-1: must be 0 or 1" },
    { KINDS_GAIN, INT64_C(0x7ff0000000000000), "gain=inf: must be a finite number" },
    { KINDS_GAIN, -INT64_C(0x0010000000000000), "gain=-inf: must be a finite number" },
};

START_TEST(bad_values_are_refused_naming_the_parameter_and_what_is_allowed)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=2");
    spec.values[bad_values[_i].param] = bad_values[_i].value;
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID, bad_values[_i].said);
    struct quern_shape shape = { .role = 77 };
    assert_refused(ctx, quern_spec_shape(ctx, &spec, 0, &shape), QUERN_INVALID,
                   bad_values[_i].said);
    ck_assert_int_eq(shape.role, 77);
}
END_TEST

/* 2^40 rows of 2^20 columns of f64 are 2^63 bytes; of f32 half of that. */
START_TEST(byte_counts_past_63_bits_are_refused_by_name_and_size)
{
    common_spec(ctx, "kinds rows=1099511627776 cols=1048576 dtype=f32");
    common_spec(ctx, "kinds rows=1099511627776 cols=1048575 dtype=f64");
    refused("kinds rows=1099511627776 cols=1048576 dtype=f64", "x=1x1099511627776x1048576");
    refused("kinds rows=1099511627776 cols=1048576 dtype=f64", "63 bits");
    refused("kinds rows=1099511627776 cols=1099511627776", "63 bits");
    refused("kinds rows=1099511627776 cols=1099511627776 batch=1099511627776", "63 bits");
}
END_TEST

static const char *const empty_specs[] = {
    "kinds batch=0 rows=1099511627776 cols=1099511627776",
    "kinds batch=1099511627776 rows=0 cols=1099511627776 dtype=f64",
    "kinds batch=1099511627776 rows=1099511627776 cols=0",
};

START_TEST(an_empty_array_has_no_bytes_however_large_its_other_sizes)
{
    struct quern_spec spec = common_spec(ctx, empty_specs[_i]);
    struct quern_shape shape;
    struct quern_array arrays[3] = { { 0 } }, bound[QUERN_MAX_ARRAYS];
    struct quern_message why;
    assert_ok(ctx, quern_spec_shape(ctx, &spec, KINDS_X, &shape));
    ck_assert_int_eq(qn_shape_count(&shape), 0);
    ck_assert_int_eq(qn_arrays_bind(&spec, arrays, bound, &why), QUERN_OK);
    ck_assert_int_eq(qn_array_span(&shape, &bound[KINDS_X]), 0);
}
END_TEST

START_TEST(shape_follows_the_spec)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=3 cols=5 batch=2 dtype=f64");
    struct quern_shape shape;
    assert_ok(ctx, quern_spec_shape(ctx, &spec, KINDS_X, &shape));
    ck_assert_int_eq(shape.role, QUERN_IN);
    ck_assert_int_eq(shape.dtype, QUERN_F64);
    ck_assert_int_eq(shape.rank, 3);
    ck_assert_int_eq(shape.dims[0] * 100 + shape.dims[1] * 10 + shape.dims[2], 235);
    assert_ok(ctx, quern_spec_shape(ctx, &spec, KINDS_BIAS, &shape));
    ck_assert_int_eq(shape.role, QUERN_ABSENT);
    assert_ok(ctx, quern_spec_shape(ctx, &spec, KINDS_OUT, &shape));
    ck_assert_int_eq(shape.role, QUERN_OUT);
    assert_ok(ctx, quern_spec_set(ctx, &spec, "accumulate", "1"));
    assert_ok(ctx, quern_spec_shape(ctx, &spec, KINDS_OUT, &shape));
    ck_assert_int_eq(shape.role, QUERN_INOUT);
    assert_refused(ctx, quern_spec_shape(ctx, &spec, 3, &shape), QUERN_INVALID, "index=3");
    assert_refused(ctx, quern_spec_shape(ctx, &spec, -1, &shape), QUERN_INVALID, "index=-1");
}
END_TEST

/* ---- Rules, then shapes -------------------------------------------------------------------- */

static int shapes_made;
static int64_t rows_made; /* what the family makes of its rows; 0: they are right */
static int rank_made;

static void shape_of_ruled(const struct quern_spec *spec, int index, struct quern_shape *shape)
{
    shapes_made++;
    kinds_family.shape(spec, index, shape);
    if (rows_made && shape->rank == 3)
        shape->dims[1] = rows_made;
    if (rank_made)
        shape->rank = rank_made;
}

static struct quern_spec ruled(struct quern_family *family)
{
    struct quern_spec spec;
    *family = kinds_family;
    family->name = "ruled";
    family->shape = shape_of_ruled;
    assert_ok(ctx, quern_family_register(ctx, family));
    spec = common_spec(ctx, "ruled rows=2");
    shapes_made = 0;
    return spec;
}

START_TEST(a_shape_is_not_asked_for_before_the_familys_rules_have_passed)
{
    struct quern_family family;
    struct quern_spec spec = ruled(&family);
    spec.values[KINDS_COLS] = 4095;
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID, "must not be 4095");
    spec.values[KINDS_COLS] = 5;
    spec.values[KINDS_ORDER] = 9;
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID, "order=9");
    ck_assert_int_eq(shapes_made, 0);
    spec.values[KINDS_ORDER] = 1;
    assert_ok(ctx, quern_spec_validate(ctx, &spec));
    ck_assert_int_gt(shapes_made, 0);
}
END_TEST

START_TEST(a_shape_with_a_negative_extent_or_an_absurd_rank_is_refused)
{
    struct quern_family family;
    struct quern_spec spec = ruled(&family);
    rows_made = -2;
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID,
                   "x=1x-2x8 (batch, rows, cols) of f32: no extent may be negative");
    spec.values[KINDS_BATCH] = 0; /* nor in an empty array */
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID, "x=0x-2x8");
    rows_made = 0;
    rank_made = QUERN_MAX_RANK + 1;
    assert_refused(ctx, quern_spec_validate(ctx, &spec), QUERN_INVALID,
                   "x: rank 7 of its shape: must be from 0 to 6");
    rank_made = 0;
    assert_ok(ctx, quern_spec_validate(ctx, &spec));
}
END_TEST

/* Without may_alias the second reading is taken from the first one. */
__attribute__((noinline)) static double changed_gain(struct quern_spec *spec, int param,
                                                     int64_t bits)
{
    double before = values_of(spec)->gain;
    spec->values[param] = bits;
    return values_of(spec)->gain - before;
}

START_TEST(a_named_view_of_values_sees_what_was_written_as_integers)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=1 gain=2");
    ck_assert_double_eq(changed_gain(&spec, KINDS_GAIN, bits_of(5)), 3);
}
END_TEST

START_TEST(a_list_of_names_holds_whole_names_and_says_when_it_is_cut)
{
    char list[20] = "";
    qn_list_add(list, sizeof(list), "one");
    qn_list_add(list, sizeof(list), "two");
    ck_assert_str_eq(list, "one, two");
    qn_list_add(list, sizeof(list), "seventeen");
    ck_assert_str_eq(list, "one, two, ...");
    qn_list_add(list, sizeof(list), "seventeen");
    ck_assert_str_eq(list, "one, two, ...");
    strcpy(list, "");
    qn_list_add(list, sizeof(list), "a name too long for it");
    ck_assert_str_eq(list, "...");
}
END_TEST

/* ---- Buckets ------------------------------------------------------------------------------- */

static struct qn_bucket bucket_of(const struct quern_spec *spec)
{
    struct qn_bucket bucket;
    memset(&bucket, 0, sizeof(bucket));
    qn_bucket_make(spec, NULL, &bucket);
    return bucket;
}

static bool is_bucketed(const struct quern_param *param)
{
    return param->param_class == QUERN_DYNAMIC || param->param_class == QUERN_HINT;
}

/* The size of a pool, cache or table, or of what rows are chosen from: no kernel is made for it,
 * its bucket is what calls need. */
static bool is_pool_size(const struct quern_param *param)
{
    return !strcmp(param->name, "capacity") || !strcmp(param->name, "pages") ||
           !strcmp(param->name, "max_position") || !strcmp(param->name, "source_rows");
}

/* A member's dynamic sizes are at most its bucket's, 0 counting as 1, and the rest is equal. */
static void assert_contains(const struct quern_spec *bucket, const struct quern_spec *spec)
{
    for (int i = 0; i < spec->family->param_count; i++) {
        const struct quern_param *param = &spec->family->params[i];
        if (is_pool_size(param))
            continue;
        if (is_bucketed(param))
            ck_assert_msg(bucket->values[i] >= spec->values[i], "%s", text_of(spec));
        else if (param->kind == QUERN_REAL)
            ck_assert_int_eq(isnan(real_of(bucket->values[i])), isnan(real_of(spec->values[i])));
        else
            ck_assert_int_eq(bucket->values[i], spec->values[i]);
    }
}

/* A random spec of any family: the sizes of one case, scaled down at random. */
static struct quern_spec random_of(const struct quern_family *family, uint64_t *seed)
{
    struct quern_spec spec;
    struct quern_family_description description;
    quern_family_describe(family, &description);
    assert_ok(ctx, quern_spec_init(ctx, description.name, &spec));
    for (int i = 0; i < description.param_count; i++) {
        const struct quern_param *param = &description.params[i];
        int64_t least = param->minimum > 0 ? param->minimum : 0;
        if (param->kind == QUERN_SIZE &&
            (is_bucketed(param) || param->default_value == QUERN_REQUIRED))
            spec.values[i] =
                common_between(seed, least, least + (1 << common_between(seed, 0, 16)));
    }
    return spec;
}

START_TEST(bucket_contains_its_member_and_is_idempotent_in_every_family)
{
    uint64_t seed = common_seed();
    for (int f = 0; f < quern_family_count(ctx); f++) {
        for (int i = 0; i < 500; i++) {
            struct quern_spec spec = random_of(quern_family_at(ctx, f), &seed);
            struct qn_bucket bucket = bucket_of(&spec), again = bucket_of(&bucket.spec);
            assert_contains(&bucket.spec, &spec);
            /* Rows of the bound's extents may be better aligned: that is not what is claimed. */
            memcpy(again.alignment, bucket.alignment, sizeof(again.alignment));
            ck_assert_msg(qn_bucket_equal(&bucket, &again), "%s", text_of(&spec));
            ck_assert_uint_eq(qn_bucket_hash(&bucket), qn_bucket_hash(&again));
        }
    }
}
END_TEST

START_TEST(bucket_is_monotone_in_every_dynamic_size_of_every_family)
{
    uint64_t seed = common_seed();
    for (int f = 0; f < quern_family_count(ctx); f++) {
        for (int i = 0; i < 500; i++) {
            struct quern_spec low = random_of(quern_family_at(ctx, f), &seed), high = low;
            for (int p = 0; p < low.family->param_count; p++) {
                if (is_bucketed(&low.family->params[p]))
                    high.values[p] += common_between(&seed, 0, high.values[p] + 1);
            }
            struct qn_bucket a = bucket_of(&low), b = bucket_of(&high);
            for (int p = 0; p < low.family->param_count; p++)
                ck_assert_msg(!is_bucketed(&low.family->params[p]) ||
                                  is_pool_size(&low.family->params[p]) ||
                                  a.spec.values[p] <= b.spec.values[p],
                              "%s: %s", text_of(&low), low.family->params[p].name);
        }
    }
}
END_TEST

START_TEST(default_bucket_is_the_next_power_of_two_and_0_shares_that_of_1)
{
    static const int64_t pairs[][2] = { { 0, 1 },
                                        { 1, 1 },
                                        { 2, 2 },
                                        { 3, 4 },
                                        { 4, 4 },
                                        { 5, 8 },
                                        { 513, 1024 },
                                        { (INT64_C(1) << 39) + 1, INT64_C(1) << 40 },
                                        { INT64_C(1) << 40, INT64_C(1) << 40 } };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct quern_spec spec = common_spec(ctx, "kinds rows=1 cols=3");
        spec.values[KINDS_ROWS] = pairs[i][0];
        struct qn_bucket bucket = bucket_of(&spec);
        ck_assert_int_eq(bucket.spec.values[KINDS_ROWS], pairs[i][1]);
        ck_assert_int_eq(bucket.spec.values[KINDS_COLS], 3);
        ck_assert_int_eq(bucket.spec.values[KINDS_LONGEST], 16);
    }
}
END_TEST

START_TEST(buckets_are_equal_only_in_every_value_and_alignment)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=4 gain=1");
    struct qn_bucket bucket = bucket_of(&spec), other = bucket;
    ck_assert(qn_bucket_equal(&bucket, &other));
    for (int i = 0; i < spec.family->param_count; i++) {
        other.spec.values[i]++;
        ck_assert(!qn_bucket_equal(&bucket, &other));
        ck_assert_uint_ne(qn_bucket_hash(&bucket), qn_bucket_hash(&other));
        other = bucket;
    }
    for (int i = 0; i < spec.family->array_count; i++) {
        other.alignment[i] = 8;
        ck_assert(!qn_bucket_equal(&bucket, &other));
        ck_assert_uint_ne(qn_bucket_hash(&bucket), qn_bucket_hash(&other));
        other = bucket;
    }
    other.spec.family = quern_family_find(ctx, "copy");
    ck_assert(!qn_bucket_equal(&bucket, &other));
}
END_TEST

START_TEST(bucket_knows_whether_a_real_is_given_and_not_its_value)
{
    struct quern_spec absent = common_spec(ctx, "kinds rows=1"), minus_nan = absent;
    struct quern_spec half = common_spec(ctx, "kinds rows=1 gain=0.5");
    struct quern_spec zero = common_spec(ctx, "kinds rows=1 gain=0");
    minus_nan.values[KINDS_GAIN] = bits_of(-NAN) | 77; /* no less absent */
    struct qn_bucket a = bucket_of(&absent), h = bucket_of(&half), z = bucket_of(&zero);
    struct qn_bucket n = bucket_of(&minus_nan);
    ck_assert(qn_bucket_equal(&h, &z));
    ck_assert(!qn_bucket_equal(&h, &a));
    ck_assert(qn_bucket_equal(&a, &n));
    ck_assert_uint_eq(qn_bucket_hash(&a), qn_bucket_hash(&n));
    ck_assert_uint_ne(qn_bucket_hash(&a), qn_bucket_hash(&h));
}
END_TEST

START_TEST(values_are_written_as_words_and_in_keys_a_real_by_its_presence)
{
    char text[64];
    qn_value_text(&kinds_family.params[KINDS_ORDER], 2, false, text, sizeof(text));
    ck_assert_str_eq(text, "both");
    qn_value_text(&kinds_family.params[KINDS_DTYPE], QUERN_F64, false, text, sizeof(text));
    ck_assert_str_eq(text, "f64");
    qn_value_text(&kinds_family.params[KINDS_GAIN], bits_of(0.1), false, text, sizeof(text));
    ck_assert_double_eq(strtod(text, NULL), 0.1);
    qn_value_text(&kinds_family.params[KINDS_GAIN], bits_of(0.1), true, text, sizeof(text));
    ck_assert_str_eq(text, "given");
    qn_value_text(&kinds_family.params[KINDS_GAIN], bits_of(NAN), true, text, sizeof(text));
    ck_assert_str_eq(text, "absent");
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("spec");
    TCase *tcase = tcase_create("spec");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, parse_fills_in_defaults_and_real_is_absent);
    tcase_add_test(tcase, every_kind_parses_to_its_value);
    tcase_add_test(tcase, words_may_come_in_any_order_and_text_is_canonical);
    tcase_add_test(tcase, format_then_parse_gives_the_same_values);
    tcase_add_test(tcase, text_is_cut_and_terminated_and_gives_its_full_length);
    tcase_add_test(tcase, locale_changes_neither_parsing_nor_text);
    tcase_add_loop_test(tcase, bad_text_is_refused_naming_the_word_and_what_is_allowed, 0,
                        (int)(sizeof(bad_specs) / sizeof(bad_specs[0])));
    tcase_add_test(tcase, absurdly_long_words_are_refused_in_one_bounded_line);
    tcase_add_test(tcase, null_arguments_are_refused);
    tcase_add_test(tcase, set_changes_one_value_and_a_refused_set_none);
    tcase_add_loop_test(tcase, bad_values_are_refused_naming_the_parameter_and_what_is_allowed, 0,
                        (int)(sizeof(bad_values) / sizeof(bad_values[0])));
    tcase_add_test(tcase, byte_counts_past_63_bits_are_refused_by_name_and_size);
    tcase_add_loop_test(tcase, an_empty_array_has_no_bytes_however_large_its_other_sizes, 0,
                        (int)(sizeof(empty_specs) / sizeof(empty_specs[0])));
    tcase_add_test(tcase, shape_follows_the_spec);
    tcase_add_test(tcase, a_shape_is_not_asked_for_before_the_familys_rules_have_passed);
    tcase_add_test(tcase, a_shape_with_a_negative_extent_or_an_absurd_rank_is_refused);
    tcase_add_test(tcase, a_named_view_of_values_sees_what_was_written_as_integers);
    tcase_add_test(tcase, a_list_of_names_holds_whole_names_and_says_when_it_is_cut);
    tcase_add_test(tcase, bucket_contains_its_member_and_is_idempotent_in_every_family);
    tcase_add_test(tcase, bucket_is_monotone_in_every_dynamic_size_of_every_family);
    tcase_add_test(tcase, default_bucket_is_the_next_power_of_two_and_0_shares_that_of_1);
    tcase_add_test(tcase, buckets_are_equal_only_in_every_value_and_alignment);
    tcase_add_test(tcase, bucket_knows_whether_a_real_is_given_and_not_its_value);
    tcase_add_test(tcase, values_are_written_as_words_and_in_keys_a_real_by_its_presence);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
