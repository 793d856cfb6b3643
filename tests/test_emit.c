/* Emission: defines, flattened includes, line markers. jit/emit.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "jit/build.h"
#include "jit/plan.h"
#include "kinds.h"

static struct quern_context *ctx;
static struct qn_unit units[QUERN_MAX_STEPS];
static int unit_count, unit_of[QUERN_MAX_STEPS];
static struct quern_plan plan;

static void setup(void)
{
    ctx = common_context(NULL);
    memset(&plan, 0, sizeof(plan));
}

static void teardown(void)
{
    qn_units_fini(units, unit_count);
    unit_count = 0;
    quern_context_destroy(ctx);
}

/* Emits `plan` with a family whose sources are these. */
static int emit(const struct quern_source *sources)
{
    struct quern_family family = kinds_family;
    family.sources = sources;
    qn_units_fini(units, unit_count);
    unit_count = 0;
    return qn_emit(ctx, &family, &plan, &ctx->target, "-O1", units, &unit_count, unit_of);
}

/* One step from a/main.c. */
static const char *emitted(const struct quern_source *sources)
{
    memset(&plan, 0, sizeof(plan));
    quern_plan_kernel(&plan, "main", "a/main.c", "entry");
    assert_ok(ctx, emit(sources));
    ck_assert_int_eq(unit_count, 1);
    ck_assert_uint_eq(units[0].source_bytes, strlen(units[0].source));
    return units[0].source;
}

static int count_of(const char *text, const char *part)
{
    int count = 0;
    for (; (text = strstr(text, part)); text += strlen(part))
        count++;
    return count;
}

/* What clang says of the text alone; its exit status in *code. */
static char *clang_says(const char *source, const char *flags, int *code)
{
    char command[1200], *path = common_scratch_path("flat.c"), *said;
    common_file_write(path, source);
    snprintf(command, sizeof(command), "cd / && %s -fsyntax-only %s -x c %s 2>&1", common_clang(),
             flags, path);
    said = common_shell(command, code);
    free(path);
    return said;
}

/* ---- Flattening ---------------------------------------------------------------------------- */

START_TEST(defines_come_first_in_order_then_the_unchanged_text)
{
    static const struct quern_source sources[] = { { "a/main.c", "int x = N;\n\n  // end\n" },
                                                   { NULL, NULL } };
    struct quern_step *step = quern_plan_kernel(&plan, "main", "a/main.c", "entry");
    quern_step_define(step, "N", -42);
    quern_step_define_text(step, "KIND", "double");
    assert_ok(ctx, emit(sources));
    ck_assert_str_eq(units[0].source, "#define N -42\n#define KIND double\n# 1 \"a/main.c\"\n"
                                      "int x = N;\n\n  // end\n");
    ck_assert_uint_eq(units[0].body, strlen("#define N -42\n#define KIND double\n"));
}
END_TEST

START_TEST(each_file_is_included_once_wherever_it_is_named)
{
    static const struct quern_source sources[] = {
        { "a/main.c", "#include \"one.h\"\n#include \"two.h\"\n#include \"one.h\"\nint last;\n" },
        { "a/one.h", "#include \"b/deep.h\"\nint one;\n" },
        { "a/two.h", "#include \"one.h\"\n  #  include  \"b/deep.h\" // again\nint two;\n" },
        { "b/deep.h", "#include \"beside.h\"\nint deep;\n" },
        { "b/beside.h", "int beside;\n" },
        { NULL, NULL },
    };
    const char *text = emitted(sources);
    ck_assert_int_eq(count_of(text, "int one;"), 1);
    ck_assert_int_eq(count_of(text, "int two;"), 1);
    ck_assert_int_eq(count_of(text, "int deep;"), 1);
    ck_assert_int_eq(count_of(text, "int beside;"), 1);
    ck_assert_int_eq(count_of(text, "int last;"), 1);
    ck_assert_int_eq(count_of(text, "include"), 0);
    ck_assert(strstr(text, "int beside;") < strstr(text, "int deep;"));
    ck_assert(strstr(text, "int deep;") < strstr(text, "int one;"));
}
END_TEST

START_TEST(a_file_beside_the_includer_is_preferred_to_the_root)
{
    static const struct quern_source sources[] = {
        { "a/main.c", "#include \"x.h\"\n#include \"b/y.h\"\n" },
        { "a/x.h", "int beside_a;\n" },
        { "x.h", "int at_the_root;\n" },
        { "b/y.h", "#include \"x.h\"\nint y;\n" },
        { NULL, NULL },
    };
    const char *text = emitted(sources);
    ck_assert_int_eq(count_of(text, "int beside_a;"), 1);
    ck_assert_int_eq(count_of(text, "int at_the_root;"), 1); /* for b/y.h, which has none beside */
    ck_assert(strstr(text, "int beside_a;") < strstr(text, "int at_the_root;"));
}
END_TEST

START_TEST(recursion_ends)
{
    static const struct quern_source sources[] = {
        { "a/main.c", "#include \"main.c\"\n#include \"ping.h\"\nint once;\n" },
        { "a/ping.h", "#include \"pong.h\"\nint ping;\n" },
        { "a/pong.h", "#include \"ping.h\"\n#include \"a/main.c\"\nint pong;\n" },
        { NULL, NULL },
    };
    const char *text = emitted(sources);
    ck_assert_int_eq(count_of(text, "int once;"), 1);
    ck_assert_int_eq(count_of(text, "int ping;"), 1);
    ck_assert_int_eq(count_of(text, "int pong;"), 1);
}
END_TEST

START_TEST(what_is_not_an_include_of_a_file_stays)
{
    static const char text[] = "#include <stddef.h>\n"
                               "//#include \"gone.h\"\n"
                               "#define include \"gone.h\"\n"
                               "int a; char *s = \"#include \\\"gone.h\\\"\";\n"
                               "#include MACRO\n"
                               "#includes \"gone.h\"\n"
                               "#include \"\n"
                               "#\n"
                               "#include\n";
    static const struct quern_source sources[] = { { "a/main.c", text }, { NULL, NULL } };
    ck_assert_str_eq(emitted(sources) + strlen("# 1 \"a/main.c\"\n"), text);
}
END_TEST

START_TEST(empty_files_and_files_without_a_last_newline_flatten)
{
    static const struct quern_source sources[] = {
        { "a/main.c", "#include \"empty.h\"\n#include \"short.h\"\n#include \"end.h\"" },
        { "a/empty.h", "" },
        { "a/short.h", "int x;" },
        { "a/end.h", "int y;" },
        { NULL, NULL },
    };
    ck_assert_str_eq(emitted(sources), "# 1 \"a/main.c\"\n"
                                       "# 1 \"a/empty.h\"\n# 2 \"a/main.c\"\n"
                                       "# 1 \"a/short.h\"\nint x;\n# 3 \"a/main.c\"\n"
                                       "# 1 \"a/end.h\"\nint y;\n# 4 \"a/main.c\"\n");
}
END_TEST

START_TEST(a_missing_include_is_named_with_its_includer)
{
    static const struct quern_source sources[] = {
        { "a/main.c", "#include \"one.h\"\n" },
        { "a/one.h", "int one;\n#include \"not_there.h\"\n" },
        { NULL, NULL },
    };
    quern_plan_kernel(&plan, "main", "a/main.c", "entry");
    assert_refused(ctx, emit(sources), QUERN_INVALID, "template=a/one.h: includes \"not_there.h\"");
    memset(&plan, 0, sizeof(plan));
    quern_plan_kernel(&plan, "main", "a/none.c", "entry");
    assert_refused(ctx, emit(sources), QUERN_INVALID, "template=a/none.c: not among the templates");
}
END_TEST

START_TEST(nesting_and_number_of_files_are_bounded)
{
    struct quern_source sources[102] = { { "a/main.c", "#include \"h0.h\"\n" } };
    char paths[100][16], texts[100][40];
    for (int i = 0; i < 100; i++) {
        snprintf(paths[i], sizeof(paths[i]), "a/h%d.h", i);
        snprintf(texts[i], sizeof(texts[i]), "#include \"h%d.h\"\nint v%d;\n", i + 1, i);
        sources[i + 1] = (struct quern_source){ paths[i], texts[i] };
    }
    quern_plan_kernel(&plan, "main", "a/main.c", "entry");
    strcpy(texts[30], "int end;\n"); /* few files, too deep */
    assert_refused(ctx, emit(sources), QUERN_INVALID, "nested deeper than");
    strcpy(texts[10], "int end;\n");
    assert_ok(ctx, emit(sources));
    ck_assert_int_eq(count_of(units[0].source, "int "), 11);

    char flat[100 * 20] = ""; /* not deep, too many */
    for (int i = 0; i < 100; i++) {
        sprintf(flat + strlen(flat), "#include \"h%d.h\"\n", i);
        strcpy(texts[i], "int x;\n");
    }
    sources[0].text = flat;
    assert_refused(ctx, emit(sources), QUERN_INVALID, "more than 64 files");
}
END_TEST

/* ---- Line markers -------------------------------------------------------------------------- */

static const struct quern_source planted[] = {
    { "a/main.c", "#include \"one.h\"\n"
                  "int before;\n"
                  "#include \"one.h\"\n"
                  "#include \"b/two.h\"\n"
                  "#ifdef IN_MAIN\n"
                  "#error planted\n"
                  "#endif\n" },
    { "a/one.h", "int one;\n\n#include \"b/two.h\"\n#ifdef IN_ONE\n#error planted\n#endif" },
    { "b/two.h", "/*\n\n*/\n#ifdef IN_TWO\n\n#error planted\n#endif\nint two;\n" },
    { NULL, NULL },
};
static const struct {
    const char *define, *where;
} errors[] = { { "IN_MAIN", "a/main.c:6:" },
               { "IN_ONE", "a/one.h:5:" },
               { "IN_TWO", "b/two.h:6:" } };

START_TEST(an_error_is_reported_by_clang_at_the_template_and_line_it_stands_in)
{
    int code;
    char flags[64];
    snprintf(flags, sizeof(flags), "-D%s", errors[_i].define);
    char *said = clang_says(emitted(planted), flags, &code);
    ck_assert_int_ne(code, 0);
    ck_assert_msg(strstr(said, errors[_i].where) && strstr(said, "planted"), "%s", said);
    free(said);
    said = clang_says(units[0].source, "-Wall -Werror", &code);
    ck_assert_msg(code == 0, "%s", said);
    free(said);
}
END_TEST

START_TEST(a_compile_error_reaches_the_caller_with_template_and_line)
{
    static const struct quern_source sources[] = {
        { "kinds/kinds_cpu.c", "int fine;\n#include \"broken.h\"\n" },
        { "kinds/broken.h", "\n\n#error planted\n" },
        { NULL, NULL },
    };
    struct quern_family family = kinds_family;
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_report report;
    family.name = "broken";
    family.sources = sources;
    assert_ok(ctx, quern_family_register(ctx, &family));
    struct quern_spec spec = common_spec(ctx, "broken rows=1");
    request.spec = &spec;
    assert_refused(ctx, quern_build(ctx, &request, &report), QUERN_COMPILE, "kinds/broken.h:3:");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), "planted"));
}
END_TEST

/* ---- Units --------------------------------------------------------------------------------- */

START_TEST(steps_with_equal_source_and_defines_share_a_unit)
{
    static const struct quern_source sources[] = { { "a/main.c", "int x;\n" },
                                                   { "a/other.c", "int x;\n" },
                                                   { NULL, NULL } };
    quern_step_define(quern_plan_kernel(&plan, "0", "a/main.c", "entry"), "N", 1);
    quern_plan_memset(&plan, "1");
    quern_step_define(quern_plan_kernel(&plan, "2", "a/main.c", "another_entry"), "N", 1);
    quern_step_define(quern_plan_kernel(&plan, "3", "a/main.c", "entry"), "N", 2);
    quern_step_define(quern_plan_kernel(&plan, "4", "a/main.c", "entry"), "M", 1);
    quern_plan_kernel(&plan, "5", "a/main.c", "entry");
    quern_step_define(quern_plan_kernel(&plan, "6", "a/other.c", "entry"), "N", 1);
    assert_ok(ctx, emit(sources));
    ck_assert_int_eq(unit_count, 5);
    static const int expected[] = { 0, -1, 0, 1, 2, 3, 4 };
    for (int i = 0; i < 7; i++)
        ck_assert_int_eq(unit_of[i], expected[i]);
    for (int a = 0; a < unit_count; a++)
        for (int b = 0; b < a; b++)
            ck_assert_str_ne(units[a].key_text, units[b].key_text);
}
END_TEST

START_TEST(a_plan_of_too_many_steps_or_defines_is_refused_not_overrun)
{
    struct quern_message why;
    ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_INVALID);
    for (int i = 0; i < QUERN_MAX_STEPS; i++)
        quern_plan_kernel(&plan, "s", "a/main.c", "entry");
    ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_OK);
    for (int i = 0; i < 5; i++)
        quern_step_define(quern_plan_kernel(&plan, "s", "a/main.c", "entry"), "N", 1);
    ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(why.text, "variant=v: its plan has 13 steps"));

    static const char name_31[] = "N234567890123456789012345678901";
    static const char *const pairs[][2] = { { name_31, "1" }, { "N", name_31 } };
    for (int i = 0; i < 2; i++) {
        memset(&plan, 0, sizeof(plan));
        struct quern_step *step = quern_plan_kernel(&plan, "s", "a/main.c", "entry");
        quern_step_define_text(step, pairs[i][0], pairs[i][1]);
        ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_OK);
        char longer[64];
        snprintf(longer, sizeof(longer), "%s2", name_31);
        quern_step_define_text(step, i ? "N" : longer, i ? longer : "1");
        ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_INVALID);
    }
    memset(&plan, 0, sizeof(plan));
    struct quern_step *step = quern_plan_kernel(&plan, "s", "a/main.c", "entry");
    for (int i = 0; i < QUERN_MAX_DEFINES; i++)
        quern_step_define(step, "N", i);
    ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_OK);
    for (int i = 0; i < 3; i++)
        quern_step_define(step, "N", i);
    ck_assert_int_eq(qn_plan_check(&plan, "v", &why), QUERN_INVALID);
    ck_assert_ptr_nonnull(strstr(why.text, "step s has too many"));
}
END_TEST

/* ---- quern_generate ------------------------------------------------------------------------ */

static const char *const generated[] = { "copy n=1000 dtype=bf16 alpha=2", "copy n=7 inplace=1",
                                         "kinds rows=5 dtype=f64 order=both gain=1",
                                         "gemm m=33 n=65 k=129 a=bf16 b=bf16 d=bf16",
                                         "gemm m=1 n=64 k=512" };

/* The text of a spec's every unit, for the lowest and for this machine's target. */
START_TEST(generated_source_compiles_with_clang_alone)
{
    static const char *const targets[] = { "cpu:x86-64-v1", "cpu:x86-64-v4+bf16" };
    struct quern_spec spec = common_spec(ctx, generated[_i]);
    for (int i = 0; i < 2; i++) {
        struct quern_request request = QUERN_REQUEST_INIT;
        char *text = NULL, *said;
        int code;
        request.spec = &spec;
        request.target = targets[i];
        assert_ok(ctx, quern_generate(ctx, &request, &text));
        said = clang_says(text,
                          i ? "-ffreestanding -nostdlibinc -march=x86-64-v4 -mavx512bf16"
                            : "-ffreestanding -nostdlibinc -march=x86-64",
                          &code);
        ck_assert_msg(code == 0, "%s %s: %s", generated[_i], targets[i], said);
        ck_assert_msg(!strstr(text, "\"/"), "%s: an absolute path", generated[_i]);
        ck_assert_int_eq(count_of(text, "#include"), 0);
        free(said);
        quern_text_free(text);
    }
}
END_TEST

START_TEST(generated_source_is_the_same_every_time_and_within_a_bucket)
{
    struct quern_request request = QUERN_REQUEST_INIT;
    struct quern_spec spec = common_spec(ctx, "copy n=1000"),
                      other = common_spec(ctx, "copy n=513");
    char *first, *again;
    request.spec = &spec;
    assert_ok(ctx, quern_generate(ctx, &request, &first));
    request.spec = &other;
    assert_ok(ctx, quern_generate(ctx, &request, &again));
    ck_assert_str_eq(first, again);
    quern_text_free(first);
    quern_text_free(again);
}
END_TEST

START_TEST(generate_refuses_what_it_cannot_plan)
{
    struct quern_spec spec = common_spec(ctx, "kinds rows=4");
    struct quern_request request = QUERN_REQUEST_INIT;
    char *text = (char *)"untouched";
    request.spec = &spec;
    request.target = "cpu:x86-64-v9";
    assert_refused(ctx, quern_generate(ctx, &request, &text), QUERN_INVALID,
                   "target=cpu:x86-64-v9");
    request.target = NULL;
    request.variant = "kinds_gpu";
    assert_refused(ctx, quern_generate(ctx, &request, &text), QUERN_INVALID, "variant=kinds_gpu");
    ck_assert_ptr_nonnull(strstr(quern_errmsg(ctx), "kinds_cpu, kinds_wrong"));
    request.variant = NULL;
    static const char *const configs[][2] = {
        { "height=3", "config height=3" },
        { "tile=0", "config tile=0" },
        { "tile=65", "from 1 to 64" },
        { "tile=2,tile=2", "config tile=2: given twice" },
        { "tile=x", "config tile=x" },
        { "tile", "config=tile" },
        { "tile=99999999999", "from 1 to 64" },
        { "tile=13", "tile=13: must not be 13" },
        { "add.unroll=5", "config add.unroll=5" },
        { "tile=4;add.unroll=1", "config tile=4;add" },
    };
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        request.config = configs[i][0];
        assert_refused(ctx, quern_generate(ctx, &request, &text), QUERN_INVALID, configs[i][1]);
    }
    request.config = NULL;
    request.size = 1;
    assert_refused(ctx, quern_generate(ctx, &request, &text), QUERN_INVALID, "request.size=1");
    assert_refused(ctx, quern_generate(ctx, NULL, &text), QUERN_INVALID, "request=NULL");
    ck_assert_str_eq(text, "untouched");
}
END_TEST

START_TEST(templates_of_a_directory_replace_the_embedded_ones_file_by_file)
{
    char *path = common_scratch_path("mine/copy/copy_cpu.c");
    common_file_write(path, "#include \"copy_args.h\"\nint mine;\n");
    *strstr(path, "/copy/copy_cpu.c") = '\0';
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.templates = path;
    struct quern_context *author = common_context(&options);
    struct quern_spec spec = common_spec(author, "copy n=4");
    struct quern_request request = QUERN_REQUEST_INIT;
    char *text;
    request.spec = &spec;
    assert_ok(author, quern_generate(author, &request, &text));
    ck_assert_int_eq(count_of(text, "int mine;"), 1);
    ck_assert_int_eq(count_of(text, "struct copy_args {"), 1);
    ck_assert_ptr_null(strstr(text, path));
    quern_text_free(text);
    quern_context_destroy(author);
    free(path);
}
END_TEST

static Suite *suite_make(void)
{
    Suite *suite = suite_create("emit");
    TCase *tcase = tcase_create("emit");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, defines_come_first_in_order_then_the_unchanged_text);
    tcase_add_test(tcase, each_file_is_included_once_wherever_it_is_named);
    tcase_add_test(tcase, a_file_beside_the_includer_is_preferred_to_the_root);
    tcase_add_test(tcase, recursion_ends);
    tcase_add_test(tcase, what_is_not_an_include_of_a_file_stays);
    tcase_add_test(tcase, empty_files_and_files_without_a_last_newline_flatten);
    tcase_add_test(tcase, a_missing_include_is_named_with_its_includer);
    tcase_add_test(tcase, nesting_and_number_of_files_are_bounded);
    tcase_add_loop_test(tcase, an_error_is_reported_by_clang_at_the_template_and_line_it_stands_in,
                        0, (int)(sizeof(errors) / sizeof(errors[0])));
    tcase_add_test(tcase, a_compile_error_reaches_the_caller_with_template_and_line);
    tcase_add_test(tcase, steps_with_equal_source_and_defines_share_a_unit);
    tcase_add_test(tcase, a_plan_of_too_many_steps_or_defines_is_refused_not_overrun);
    tcase_add_loop_test(tcase, generated_source_compiles_with_clang_alone, 0,
                        (int)(sizeof(generated) / sizeof(generated[0])));
    tcase_add_test(tcase, generated_source_is_the_same_every_time_and_within_a_bucket);
    tcase_add_test(tcase, generate_refuses_what_it_cannot_plan);
    tcase_add_test(tcase, templates_of_a_directory_replace_the_embedded_ones_file_by_file);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return common_main(suite_make());
}
