/* Families that the user brings, from C and as a plugin. jit/family.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "kinds.h"

static struct quern_context *ctx; /* bare: nothing registered */
static uint64_t seed;

static void setup(void)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.cache = "";
    options.device = "cpu";
    assert_ok(ctx, quern_context_create(&options, &ctx));
    seed = common_seed();
}

static void teardown(void)
{
    quern_context_destroy(ctx);
}

static char *plugin_path(void)
{
    char *path;
    ck_assert_int_gt(asprintf(&path, "%s/plugin_scale.so", common_directory()), 0);
    return path;
}

/* ---- What a registered family can do ------------------------------------------------------- */

/* Drawn inputs, a run, the check, and the same bits again, in arrays with padded rows. */
static void runs_and_is_checked(const char *text)
{
    struct quern_spec spec = common_spec(ctx, text);
    struct common_layout layout = { 0, 5 };
    struct common_arrays set;
    struct quern_check check;
    struct quern_kernel *kernel;
    common_arrays_init(&set, ctx, &spec, layout, common_random(&seed));
    assert_ok(ctx, quern_run(ctx, &spec, set.arrays, NULL));
    common_arrays_check(&set, text);
    common_arrays_keep(&set);
    common_arrays_restore(&set);
    assert_ok(ctx, quern_dispatch(ctx, &spec, set.arrays, &kernel));
    assert_ok(ctx, quern_verify(ctx, kernel, &spec, set.arrays, seed, &check));
    ck_assert_msg(check.ok, "%s: %s", text, check.why);
    ck_assert_double_eq(check.covered, 1);
    ck_assert_int_lt(common_arrays_differ(&set), 0);
    common_arrays_fini(&set);
}

static bool is_listed(const char *name)
{
    int count = 0;
    for (int i = 0; i < quern_family_count(ctx); i++) {
        struct quern_family_description family;
        quern_family_describe(quern_family_at(ctx, i), &family);
        count += !strcmp(family.name, name);
    }
    ck_assert_int_le(count, 1);
    return count == 1;
}

START_TEST(a_family_registered_from_c_is_listed_runs_and_is_checked)
{
    int before = quern_family_count(ctx);
    ck_assert(!is_listed("kinds"));
    assert_ok(ctx, quern_family_register(ctx, &kinds_family));
    ck_assert(is_listed("kinds"));
    ck_assert_int_eq(quern_family_count(ctx), before + 1);
    ck_assert_ptr_eq(quern_family_at(ctx, before), &kinds_family);
    ck_assert_ptr_eq(quern_family_find(ctx, "kinds"), &kinds_family);
    ck_assert_ptr_null(quern_family_at(ctx, before + 1));
    ck_assert_ptr_null(quern_family_at(ctx, -1));
    runs_and_is_checked("kinds rows=1 cols=1");
    runs_and_is_checked("kinds rows=37 cols=13 batch=3 dtype=f64 gain=-1.5 biased=1 order=down");
    runs_and_is_checked("kinds rows=9 accumulate=1");
}
END_TEST

START_TEST(a_registered_family_is_described_by_its_own_list)
{
    struct quern_family_description family;
    quern_family_describe(&kinds_family, &family);
    ck_assert_str_eq(family.name, "kinds");
    ck_assert_int_eq(family.param_count, 9);
    ck_assert_int_eq(family.array_count, 3);
    ck_assert_str_eq(family.params[KINDS_ORDER].domain, "up down both");
    ck_assert_str_eq(family.arrays[KINDS_OUT].role, "accumulate ? INOUT : OUT");
    ck_assert_str_eq(family.arrays[KINDS_X].shape, "batch, rows, cols");
    ck_assert_int_eq(family.variant_count, 2);
    ck_assert_str_eq(family.variants[1], "kinds_wrong");
}
END_TEST

START_TEST(a_family_belongs_to_the_context_that_it_was_registered_with)
{
    struct quern_spec spec;
    struct quern_context *other = common_context(NULL);
    assert_refused(ctx, quern_spec_parse(ctx, "kinds rows=1", &spec), QUERN_INVALID,
                   "family=kinds");
    assert_ok(other, quern_spec_parse(other, "kinds rows=1", &spec));
    quern_context_destroy(other);
}
END_TEST

START_TEST(a_plugin_is_listed_runs_and_is_checked)
{
    char *path = plugin_path();
    assert_ok(ctx, quern_plugin_load(ctx, path));
    ck_assert(is_listed("scale"));
    runs_and_is_checked("scale n=1");
    runs_and_is_checked("scale n=10007 factor=-0.75");
    struct quern_spec spec = common_spec(ctx, "scale n=3");
    float x[3] = { 1, -2, INFINITY }, out[3] = { 0 };
    struct quern_array arrays[2] = { { .data = x }, { .data = out } };
    assert_ok(ctx, quern_run(ctx, &spec, arrays, NULL));
    ck_assert_float_eq(out[0], 2);
    ck_assert_float_eq(out[1], -4);
    ck_assert(isinf(out[2]));
    assert_refused(ctx, quern_plugin_load(ctx, path), QUERN_INVALID,
                   "family=scale: registered already");
    assert_refused(ctx, quern_spec_parse(ctx, "scale n=-1", &spec), QUERN_INVALID, "n=-1");
    runs_and_is_checked("scale n=5");
    free(path);
}
END_TEST

START_TEST(a_plugin_can_be_loaded_again_by_a_later_context)
{
    char *path = plugin_path();
    for (int i = 0; i < 3; i++) {
        assert_ok(ctx, quern_plugin_load(ctx, path));
        runs_and_is_checked("scale n=100");
        teardown();
        setup();
    }
    free(path);
}
END_TEST

START_TEST(what_is_not_a_plugin_is_refused_by_name)
{
    char *path = common_scratch_path("text.so"), said[300];
    common_file_write(path, "not a shared object\n");
    int before = quern_family_count(ctx);
    snprintf(said, sizeof(said), "plugin=%s: ", path);
    assert_refused(ctx, quern_plugin_load(ctx, path), QUERN_INVALID, said);
    assert_refused(ctx, quern_plugin_load(ctx, "/nowhere/at/all.so"), QUERN_INVALID,
                   "plugin=/nowhere/at/all.so: ");
    assert_refused(ctx, quern_plugin_load(ctx, "libm.so.6"), QUERN_INVALID,
                   "plugin=libm.so.6: must export quern_plugin()");
    assert_refused(ctx, quern_plugin_load(ctx, NULL), QUERN_INVALID, "plugin=NULL");
    for (int i = 0; i < 40; i++) /* refused ones do not use up what is allowed */
        ck_assert_int_eq(quern_plugin_load(ctx, "libm.so.6"), QUERN_INVALID);
    free(path);
    path = plugin_path();
    assert_ok(ctx, quern_plugin_load(ctx, path));
    ck_assert_int_eq(quern_family_count(ctx), before + 1);
    free(path);
}
END_TEST

/* ---- Tables that are refused --------------------------------------------------------------- */

/* A copy of kinds that a test may spoil. */
static struct quern_family family;
static struct quern_param params[QUERN_MAX_PARAMS + 1];
static struct quern_array_info infos[QUERN_MAX_ARRAYS + 1];
static struct quern_variant variant, second;
static struct quern_knob knobs[QUERN_MAX_KNOBS + 1];
static const struct quern_variant *variants[3];
static struct quern_source sources[2];

static void family_reset(void)
{
    family = kinds_family;
    memcpy(params, kinds_family.params, 9 * sizeof(params[0]));
    memcpy(infos, kinds_family.arrays, 3 * sizeof(infos[0]));
    variant = *kinds_family.variants[0];
    second = *kinds_family.variants[1];
    memcpy(knobs, variant.knobs, 2 * sizeof(knobs[0]));
    variant.knobs = knobs;
    variants[0] = &variant;
    variants[1] = &second;
    variants[2] = NULL;
    sources[0] = kinds_sources[0];
    sources[1] = (struct quern_source){ NULL, NULL };
    family.params = params;
    family.arrays = infos;
    family.variants = variants;
    family.sources = sources;
}

/* statement, what is said of it */
#define SPOILED_LIST(X)                                                                            \
    X(family.name = NULL, "family: must have a name")                                              \
    X(family.name = "", "family: must have a name")                                                \
    X(family.name = "two words", "family: must have a name")                                       \
    X(family.name = "9lives", "family: must have a name")                                          \
    X(family.name = "a_name_of_more_than_24_letters", "family: must have a name")                  \
    X(family.name = "copy", "family=copy: registered already")                                     \
    X(family.abi = 0, "abi=0: must be 4")                                                          \
    X(family.abi = 1, "abi=1: must be 4")                                                          \
    X(family.params = NULL, "params=NULL")                                                         \
    X(family.arrays = NULL, "arrays=NULL")                                                         \
    X(family.param_count = 0, "param_count=0: must be from 1 to 32")                               \
    X(family.param_count = 33, "param_count=33: must be from 1 to 32")                             \
    X(family.param_count = -1, "param_count=-1: must be from 1 to 32")                             \
    X(family.array_count = 0, "array_count=0: must be from 1 to 16")                               \
    X(family.array_count = 17, "array_count=17: must be from 1 to 16")                             \
    X(family.shape = NULL, "must have shape")                                                      \
    X(family.units = NULL, "must have shape, units")                                               \
    X(family.reference = NULL, "must have shape, units, reference")                                \
    X(family.tolerance = NULL, "must have shape, units, reference, tolerance")                     \
    X(family.cost = NULL, "must have shape")                                                       \
    X(family.variants = NULL, "and a variant")                                                     \
    X(variants[0] = NULL, "and a variant")                                                         \
    X(params[1].name = NULL, "parameter 1 has no valid name")                                      \
    X(params[1].name = "row count", "parameter 1 has no valid name")                               \
    X(params[1].name = "row=count", "parameter 1 has no valid name")                               \
    X(params[2].name = "rows", "parameter rows is listed twice")                                   \
    X(params[1].kind = (enum quern_param_kind)9, "rows: kind=9 class=1")                           \
    X(params[1].param_class = (enum quern_param_class)9, "rows: kind=0 class=9")                   \
    X(params[1].domain = "1 2 3", "rows: a domain of words goes with CHOICE and DTYPE")            \
    X(params[KINDS_ORDER].domain = NULL, "order: a domain of words goes with CHOICE and DTYPE")    \
    X(params[KINDS_ORDER].domain = "", "order=0: must be one of")                                  \
    X(params[KINDS_DTYPE].domain = NULL, "dtype: a domain of words goes with CHOICE and DTYPE")    \
    X(params[KINDS_DTYPE].domain = "f32 f31", "dtype: f31 is no dtype")                            \
    X(params[KINDS_DTYPE].default_value = QUERN_I8, "dtype=i8: must be one of: f64 f32")           \
    X(params[KINDS_ORDER].default_value = 3, "order=3: must be one of: up down both")              \
    X(params[KINDS_BIASED].default_value = 2, "biased=2: must be 0 or 1")                          \
    X(params[KINDS_LONGEST].default_value = 0, "longest=0: must be from 1")                        \
    X(params[KINDS_GAIN].param_class = QUERN_STATIC, "gain: REAL goes with SCALAR")                \
    X(params[KINDS_ROWS].param_class = QUERN_SCALAR, "rows: REAL goes with SCALAR")                \
    X(infos[1].name = NULL, "array 1 has no valid name")                                           \
    X(infos[1].name = "a b", "array 1 has no valid name")                                          \
    X(infos[2].name = "x", "array x is listed twice")                                              \
    X(variant.name = NULL, "a variant has no")                                                     \
    X(variant.name = "", "a variant has no")                                                       \
    X(variant.name = "x y", "a variant has no")                                                    \
    X(second.name = "kinds_cpu", "variant kinds_cpu is listed twice")                              \
    X(variant.knob_count = -1, "knob_count=-1: must be from 0 to 32")                              \
    X(variant.knob_count = 33, "knob_count=33: must be from 0 to 32")                              \
    X(variant.knobs = NULL, "knobs=NULL")                                                          \
    X(variant.supports = NULL, "variant=kinds_cpu: must have supports")                            \
    X(variant.heuristic = NULL, "variant=kinds_cpu: must have supports, heuristic")                \
    X(variant.plan = NULL, "variant=kinds_cpu: must have supports, heuristic, plan")               \
    X(variant.bind = NULL, "variant=kinds_cpu: must have supports, heuristic, plan and bind")      \
    X(knobs[0].name = NULL, "knob 0 has no valid name")                                            \
    X(knobs[0].name = "a=b", "knob 0 has no valid name")                                           \
    X(knobs[0].name = "a,b", "knob 0 has no valid name")                                           \
    X(knobs[1].name = "tile", "knob tile is listed twice")                                         \
    X(knobs[0].minimum = 65, "knob tile: from 65 to 64")                                           \
    X(sources[0].text = NULL, "source kinds/kinds_cpu.c has no text")

static const char *const spoiled_texts[] = {
#define X(statement, said) said,
    SPOILED_LIST(X)
#undef X
};
enum { SPOILED_COUNT = sizeof(spoiled_texts) / sizeof(spoiled_texts[0]) };

static void spoil(int index)
{
    int at = 0;
#define X(statement, said)                                                                         \
    if (at++ == index) {                                                                           \
        statement;                                                                                 \
    }
    SPOILED_LIST(X)
#undef X
}

START_TEST(a_spoiled_table_is_refused_in_one_clear_line_and_nothing_registered)
{
    int before = quern_family_count(ctx);
    family_reset();
    spoil(_i);
    assert_refused(ctx, quern_family_register(ctx, &family), QUERN_INVALID, spoiled_texts[_i]);
    ck_assert_int_eq(quern_family_count(ctx), before);
    family_reset();
    assert_ok(ctx, quern_family_register(ctx, &family)); /* the rest of it was sound */
}
END_TEST

START_TEST(null_and_repeated_families_are_refused)
{
    assert_refused(ctx, quern_family_register(ctx, NULL), QUERN_INVALID, "family: must have");
    assert_ok(ctx, quern_family_register(ctx, &kinds_family));
    assert_refused(ctx, quern_family_register(ctx, &kinds_family), QUERN_INVALID,
                   "family=kinds: registered already");
}
END_TEST

START_TEST(a_null_context_or_family_is_refused_and_nothing_is_looked_into)
{
    struct quern_family_description description = { .name = "before" };
    ck_assert_int_eq(quern_family_register(NULL, &kinds_family), QUERN_INVALID);
    ck_assert_int_eq(quern_plugin_load(NULL, "x.so"), QUERN_INVALID);
    ck_assert_int_eq(quern_family_count(NULL), 0);
    ck_assert_ptr_null(quern_family_at(NULL, 0));
    ck_assert_ptr_null(quern_family_find(NULL, "copy"));
    quern_family_describe(NULL, &description);
    ck_assert_str_eq(description.name, "before");
    quern_family_describe(&kinds_family, NULL);
}
END_TEST

START_TEST(as_many_families_as_there_is_room_for_then_a_clear_line)
{
    static struct quern_family many[300];
    static char names[300][16];
    int status = QUERN_OK, count = 0;
    for (; count < 300 && !status; count++) {
        snprintf(names[count], sizeof(names[count]), "family_%d", count);
        many[count] = kinds_family;
        many[count].name = names[count];
        status = quern_family_register(ctx, &many[count]);
    }
    ck_assert_int_lt(count, 300);
    ck_assert_int_gt(count, 200);
    assert_refused(ctx, quern_family_register(ctx, &many[count - 1]), QUERN_INVALID,
                   "at most 256 families");
}
END_TEST

/* ---- Families that break their promises ---------------------------------------------------- */

static int plan_kind;

static void plan_badly(const struct quern_problem *problem, const int32_t *config,
                       struct quern_plan *plan)
{
    (void)problem, (void)config;
    if (plan_kind == 0)
        return; /* no step at all */
    struct quern_step *step = quern_plan_kernel(plan, "a", "kinds/kinds_cpu.c", "kinds_scale");
    if (plan_kind == 1)
        quern_step_define_text(step, "A_NAME_THAT_IS_LONGER_THAN_31_CHARACTERS", "1");
    if (plan_kind == 2)
        plan->workspace_bytes = -1;
    if (plan_kind == 3)
        strcpy(step->entry, "no_such_function");
    for (int i = 0; plan_kind == 4 && i < 100; i++)
        quern_plan_memset(plan, "z");
}

static void heuristic_badly(const struct quern_problem *problem, int32_t *config)
{
    (void)problem;
    config[0] = 13;
    config[1] = 1;
}

START_TEST(a_bad_plan_or_heuristic_is_an_internal_error_that_names_the_variant)
{
    static const struct {
        int status;
        const char *said;
    } outcomes[] = { { QUERN_INTERNAL, "variant=kinds_cpu: its plan has 0 steps" },
                     { QUERN_INTERNAL,
                       "variant=kinds_cpu: step a has too many or too long defines" },
                     { QUERN_INTERNAL, "variant=kinds_cpu: workspace_bytes=-1" },
                     { QUERN_LOAD, "no_such_function" },
                     { QUERN_INTERNAL, "variant=kinds_cpu: its plan has 101 steps" } };
    struct quern_kernel *kernel = NULL;
    family_reset();
    variant.plan = plan_badly;
    family.sources = kinds_sources;
    assert_ok(ctx, quern_family_register(ctx, &family));
    struct quern_spec spec = common_spec(ctx, "kinds rows=1");
    for (plan_kind = 0; plan_kind < 5; plan_kind++)
        assert_refused(ctx, quern_dispatch(ctx, &spec, NULL, &kernel), outcomes[plan_kind].status,
                       outcomes[plan_kind].said);
    variant.heuristic = heuristic_badly;
    assert_refused(ctx, quern_dispatch(ctx, &spec, NULL, &kernel), QUERN_INTERNAL,
                   "variant=kinds_cpu: its heuristic's config is not legal: config tile=13");
    ck_assert_ptr_null(kernel);
}
END_TEST

static int supports_nothing(const struct quern_problem *problem)
{
    (void)problem;
    return 0;
}

START_TEST(a_spec_that_no_variant_supports_is_unsupported_and_named)
{
    struct quern_kernel *kernel = NULL;
    family_reset();
    variant.supports = second.supports = supports_nothing;
    assert_ok(ctx, quern_family_register(ctx, &family));
    struct quern_spec spec = common_spec(ctx, "kinds rows=1");
    assert_refused(ctx, quern_dispatch(ctx, &spec, NULL, &kernel), QUERN_UNSUPPORTED,
                   "target=cpu:");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), "kinds batch=1 rows=1"));
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("register");
    TCase *tcase = tcase_create("register");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_family_registered_from_c_is_listed_runs_and_is_checked);
    tcase_add_test(tcase, a_registered_family_is_described_by_its_own_list);
    tcase_add_test(tcase, a_family_belongs_to_the_context_that_it_was_registered_with);
    tcase_add_test(tcase, a_plugin_is_listed_runs_and_is_checked);
    tcase_add_test(tcase, a_plugin_can_be_loaded_again_by_a_later_context);
    tcase_add_test(tcase, what_is_not_a_plugin_is_refused_by_name);
    tcase_add_loop_test(tcase, a_spoiled_table_is_refused_in_one_clear_line_and_nothing_registered,
                        0, SPOILED_COUNT);
    tcase_add_test(tcase, null_and_repeated_families_are_refused);
    tcase_add_test(tcase, a_null_context_or_family_is_refused_and_nothing_is_looked_into);
    tcase_add_test(tcase, as_many_families_as_there_is_room_for_then_a_clear_line);
    tcase_add_test(tcase, a_bad_plan_or_heuristic_is_an_internal_error_that_names_the_variant);
    tcase_add_test(tcase, a_spec_that_no_variant_supports_is_unsupported_and_named);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
