/* The two keys: what changes them and what must not. jit/key.c, jit/emit.c, jit/spec.c.
 *
 * With --keys this program prints the keys of a few requests and ends: that is how the suite sees
 * the keys of another process, in another environment. */
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "jit/build.h"
#include "jit/embedded.h"
#include "jit/text.h"
#include "jit/target.h"
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

/* ---- Keys of requests ---------------------------------------------------------------------- */

struct wanted {
    const char *spec, *target, *config;
    int alignment; /* of every array; 0: 16 */
};

/* Every unit's key text, one after the other, malloc'ed. */
static char *artifact_keys(struct quern_context *with, const struct wanted *wanted)
{
    struct quern_spec spec = common_spec(with, wanted->spec);
    struct quern_target target = with->target;
    struct quern_message why;
    struct qn_bucket bucket;
    struct qn_text all = { 0 };
    char **keys;
    int count;
    if (wanted->target)
        ck_assert_int_eq(qn_target_parse(wanted->target, &target, &why), 0);
    qn_bucket_make(&spec, NULL, &bucket);
    const struct qn_build_request request = {
        .bucket = &bucket, .target = &target, .profile = &with->profile, .config = wanted->config
    };
    assert_ok(with, qn_unit_keys(with, &request, &keys, &count));
    ck_assert_int_ge(count, 1);
    for (int i = 0; i < count; i++) {
        qn_text_print(&all, "%s", keys[i]);
        free(keys[i]);
    }
    free(keys);
    return all.data;
}

struct tuned {
    char *text, *group;
};

static struct tuned tuned_key(struct quern_context *with, const struct wanted *wanted,
                              const char *profile)
{
    struct quern_spec spec = common_spec(with, wanted->spec);
    struct quern_profile place = with->profile;
    struct qn_bucket bucket;
    struct tuned key;
    if (profile)
        snprintf(place.name, sizeof(place.name), "%s", profile);
    qn_bucket_make(&spec, NULL, &bucket);
    if (wanted->alignment)
        memset(bucket.alignment, wanted->alignment, sizeof(bucket.alignment));
    ck_assert_int_eq(qn_tuned_key(&bucket, &place, &key.text, &key.group), QUERN_OK);
    return key;
}

static void tuned_free(struct tuned key)
{
    free(key.text);
    free(key.group);
}

/* The name of the one line in which two texts of equally many lines differ, malloc'ed; NULL:
 * none. */
static char *differing_line(const char *a, const char *b)
{
    char *name = NULL;
    while (*a && *b) {
        size_t in_a = strcspn(a, "\n"), in_b = strcspn(b, "\n");
        if (in_a != in_b || strncmp(a, b, in_a)) {
            ck_assert_msg(!name, "more than one line: %s and %.*s", name, (int)in_a, a);
            name = strndup(a, strcspn(a, "="));
            ck_assert(!strncmp(name, b, strlen(name)));
        }
        a += in_a + 1;
        b += in_b + 1;
    }
    ck_assert(!*a && !*b);
    return name;
}

static void assert_canonical(const char *text)
{
    ck_assert_ptr_null(strstr(text, "=/"));
    ck_assert_ptr_null(strstr(text, " /"));
    ck_assert_ptr_null(strstr(text, common_scratch()));
    for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
        size_t length = strcspn(line, "\n");
        ck_assert_msg(line[length] == '\n', "no last newline");
        ck_assert_msg(memchr(line, '=', length) && *line != '=', "%.*s", (int)length, line);
    }
}

/* ---- The artifact key ---------------------------------------------------------------------- */

/* Emits the plan of kinds; the caller frees the units. */
struct emitted {
    struct qn_unit units[QUERN_MAX_STEPS];
    int count, unit_of[QUERN_MAX_STEPS];
};

static void emit(const struct quern_plan *plan, const struct quern_source *sources,
                 const char *target_text, const char *options, struct emitted *emitted)
{
    struct quern_family family = kinds_family;
    struct quern_target target;
    struct quern_message why;
    family.sources = sources;
    ck_assert_int_eq(qn_target_parse(target_text, &target, &why), 0);
    assert_ok(ctx, qn_emit(ctx, &family, plan, &target, options, emitted->units, &emitted->count,
                           emitted->unit_of));
}

static char *key_of(const struct quern_plan *plan, const struct quern_source *sources,
                    const char *target, const char *options)
{
    struct emitted emitted;
    emit(plan, sources, target, options, &emitted);
    ck_assert_int_eq(emitted.count, 1);
    char *key = strdup(emitted.units[0].key_text);
    qn_units_fini(emitted.units, emitted.count);
    return key;
}

/* The plan of `kinds rows=4` in its heuristic config. */
static void plan_of_kinds(struct quern_plan *plan)
{
    const struct quern_variant *variant = kinds_family.variants[0];
    struct quern_spec spec = common_spec(ctx, "kinds rows=4");
    const uint8_t alignment[QUERN_MAX_ARRAYS] = { 16, 16, 16 };
    const struct quern_problem problem = { &spec, &ctx->target, &ctx->profile, alignment };
    int32_t config[QUERN_MAX_KNOBS];
    memset(plan, 0, sizeof(*plan));
    variant->heuristic(&problem, config);
    variant->plan(&problem, config, plan);
}

/* The two keys differ, and only in the line `name` (NULL: in some line) and the hash of the
 * source. */
static void assert_changed(char *key, const char *base, const char *what)
{
    char hex[QN_KEY_HEX], base_hex[QN_KEY_HEX];
    ck_assert_msg(strcmp(key, base), "%s does not change the key", what);
    qn_key_hex(key, strlen(key), hex);
    qn_key_hex(base, strlen(base), base_hex);
    ck_assert_str_ne(hex, base_hex);
    assert_canonical(key);
    free(key);
}

START_TEST(each_define_changes_the_artifact_key_by_value_and_by_name)
{
    struct quern_plan plan, changed;
    plan_of_kinds(&plan);
    ck_assert_int_ge(plan.steps[0].define_count, 8);
    char *base = key_of(&plan, kinds_sources, "cpu:x86-64-v3", "-O3");
    assert_canonical(base);
    for (int i = 0; i < plan.steps[0].define_count; i++) {
        for (int is_name = 0; is_name < 2; is_name++) {
            changed = plan;
            for (int s = 0; s < 2; s++) {
                struct quern_define *define = &changed.steps[s].defines[i];
                strcat(is_name ? define->name : define->value, "9");
            }
            assert_changed(key_of(&changed, kinds_sources, "cpu:x86-64-v3", "-O3"), base,
                           plan.steps[0].defines[i].name);
        }
    }
    free(base);
}
END_TEST

/* As is: a letter moved from a define's name to its value, or a line break inside one, is not the
 * same key. */
START_TEST(neighbouring_inputs_do_not_run_into_each_other)
{
    static const struct quern_source sources[] = { { "a/main.c", "int x;\n" }, { NULL, NULL } };
    static const char *const pairs[][2] = { { "AB", "C" }, { "A", "BC" }, { "A", "B" } };
    char *keys[3];
    for (int i = 0; i < 3; i++) {
        struct quern_plan plan = { 0 };
        struct quern_step *step = quern_plan_kernel(&plan, "s", "a/main.c", "entry");
        quern_step_define_text(step, pairs[i][0], pairs[i][1]);
        keys[i] = key_of(&plan, sources, "cpu:x86-64-v3", "-O3");
    }
    ck_assert_str_ne(keys[0], keys[1]);
    ck_assert_str_ne(keys[1], keys[2]);
    for (int i = 0; i < 3; i++)
        free(keys[i]);
}
END_TEST

START_TEST(target_and_options_change_the_artifact_key)
{
    static const char *const targets[] = { "cpu:x86-64-v1",      "cpu:x86-64-v2",
                                           "cpu:x86-64-v4",      "cpu:x86-64-v4+bf16",
                                           "cpu:x86-64-v4+vnni", "cpu:x86-64-v4+bf16+vnni+amx",
                                           "cpu:aarch64" };
    struct quern_plan plan;
    plan_of_kinds(&plan);
    char *base = key_of(&plan, kinds_sources, "cpu:x86-64-v3", "-O3");
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
        assert_changed(key_of(&plan, kinds_sources, targets[i], "-O3"), base, targets[i]);
    assert_changed(key_of(&plan, kinds_sources, "cpu:x86-64-v3", "-O2"), base, "options");
    assert_changed(key_of(&plan, kinds_sources, "cpu:x86-64-v3", "-O3 "), base, "options");
    assert_changed(key_of(&plan, kinds_sources, "cpu:x86-64-v3", ""), base, "options");
    free(base);
}
END_TEST

START_TEST(the_order_of_features_in_a_target_does_not_change_the_artifact_key)
{
    struct quern_plan plan;
    plan_of_kinds(&plan);
    char *one = key_of(&plan, kinds_sources, "cpu:x86-64-v4+bf16+amx", "-O3");
    char *other = key_of(&plan, kinds_sources, "cpu:x86-64-v4+amx+bf16", "-O3");
    ck_assert_str_eq(one, other);
    free(one);
    free(other);
}
END_TEST

/* One byte of the template, or of what it includes, in a comment, or a file's name. */
START_TEST(template_text_changes_the_artifact_key)
{
    struct quern_source sources[3];
    struct quern_plan plan;
    plan_of_kinds(&plan);
    char *base = key_of(&plan, kinds_sources, "cpu:x86-64-v3", "-O3");
    for (int i = 0; i < 2; i++) {
        char *text;
        memcpy(sources, kinds_sources, sizeof(sources));
        ck_assert_int_gt(asprintf(&text, "%s/* */\n", sources[i].text), 0);
        sources[i].text = text;
        char *key = key_of(&plan, sources, "cpu:x86-64-v3", "-O3");
        char line[64];
        snprintf(line, sizeof(line), "file.%s=", sources[i].path);
        ck_assert_ptr_nonnull(strstr(key, line));
        assert_changed(key, base, sources[i].path);
        free(text);
    }
    free(base);
}
END_TEST

START_TEST(a_config_changes_the_artifact_key_exactly_where_it_changes_a_define)
{
    const struct wanted base = { .spec = "kinds rows=9" };
    const struct wanted tile = { .spec = "kinds rows=9", .config = "tile=9" };
    const struct wanted same = { .spec = "kinds rows=9", .config = "tile=8" };
    const struct wanted unroll = { .spec = "kinds rows=9", .config = "add.unroll=2" };
    const struct wanted copy = { .spec = "copy n=9" };
    const struct wanted block = { .spec = "copy n=9", .config = "block_kib=64" };
    char *key = artifact_keys(ctx, &base), *copy_key = artifact_keys(ctx, &copy);
    char *same_key = artifact_keys(ctx, &same), *block_key = artifact_keys(ctx, &block);
    assert_changed(artifact_keys(ctx, &tile), key, "tile");
    assert_changed(artifact_keys(ctx, &unroll), key, "add.unroll");
    ck_assert_str_eq(key, same_key);
    ck_assert_str_eq(copy_key, block_key); /* a launch argument */
    free(key), free(copy_key), free(same_key), free(block_key);
}
END_TEST

START_TEST(specs_that_generate_the_same_source_share_the_artifact_key)
{
    const struct wanted specs[] = {
        { .spec = "kinds rows=9" },
        { .spec = "kinds longest=77 rows=1000000 dtype=f32 batch=3 cols=99" },
        { .spec = "kinds rows=0" },
    };
    char *key = artifact_keys(ctx, &specs[0]);
    for (int i = 1; i < 3; i++) {
        char *other = artifact_keys(ctx, &specs[i]);
        ck_assert_str_eq(key, other);
        free(other);
    }
    free(key);
}
END_TEST

/* ---- The tuning key ------------------------------------------------------------------------ */

static const struct {
    const char *words, *line;
    bool is_in_group;
} tuned_inputs[] = {
    { "rows=100 batch=3", "batch", false },
    { "rows=300", "rows", false },
    { "rows=0", "rows", false },
    { "rows=100 longest=17", "longest", false },
    { "rows=100 cols=12", "cols", true },
    { "rows=100 dtype=f64", "dtype", true },
    { "rows=100 order=both", "order", true },
    { "rows=100 accumulate=1", "accumulate", true },
    { "rows=100 gain=1", "gain", true },
};

START_TEST(each_parameter_changes_its_line_of_the_tuning_key_and_dynamic_ones_not_the_group)
{
    char spec[96];
    snprintf(spec, sizeof(spec), "kinds %s", tuned_inputs[_i].words);
    const struct wanted base = { .spec = "kinds rows=100" }, changed = { .spec = spec };
    struct tuned a = tuned_key(ctx, &base, NULL), b = tuned_key(ctx, &changed, NULL);
    char *line = differing_line(a.text, b.text);
    ck_assert_ptr_nonnull(line);
    ck_assert_str_eq(line, tuned_inputs[_i].line);
    free(line);
    assert_canonical(b.text);
    assert_canonical(b.group);
    ck_assert_int_eq(strcmp(a.group, b.group) != 0, tuned_inputs[_i].is_in_group);
    tuned_free(a);
    tuned_free(b);
}
END_TEST

START_TEST(family_profile_alignment_and_presence_change_the_tuning_key_and_its_group)
{
    const struct wanted base = { .spec = "kinds rows=4" };
    const struct wanted bias = { .spec = "kinds rows=4 biased=1" };
    struct tuned a = tuned_key(ctx, &base, NULL), b = tuned_key(ctx, &bias, NULL);
    ck_assert_ptr_null(strstr(a.text, "align.bias="));
    ck_assert_ptr_nonnull(strstr(b.text, "align.bias=16\n"));
    ck_assert_str_ne(a.group, b.group);
    tuned_free(b);
    b = tuned_key(ctx, &base, "another machine");
    char *line = differing_line(a.text, b.text);
    ck_assert_str_eq(line, "profile");
    ck_assert_str_ne(a.group, b.group);
    free(line);
    tuned_free(b);
    for (int alignment = 1; alignment < 16; alignment *= 2) {
        struct wanted wanted = { .spec = "kinds rows=4", .alignment = alignment };
        b = tuned_key(ctx, &wanted, NULL);
        ck_assert_str_ne(a.text, b.text);
        ck_assert_str_ne(a.group, b.group);
        tuned_free(b);
    }
    struct quern_family twin = kinds_family;
    twin.name = "twin";
    assert_ok(ctx, quern_family_register(ctx, &twin));
    const struct wanted other = { .spec = "twin rows=4" };
    b = tuned_key(ctx, &other, NULL);
    line = differing_line(a.text, b.text);
    ck_assert_str_eq(line, "family");
    free(line);
    tuned_free(a);
    tuned_free(b);
}
END_TEST

START_TEST(one_array_less_aligned_changes_only_its_own_line)
{
    static float memory[64] __attribute__((aligned(64)));
    struct quern_spec spec = common_spec(ctx, "kinds rows=4 biased=1");
    struct quern_array arrays[3] = { { .data = memory }, { .data = memory }, { .data = memory } };
    static const char *const lines[] = { "align.x", "align.bias", "align.out" };
    char *base, *text, *group, *line;
    struct qn_bucket bucket;
    qn_bucket_make(&spec, arrays, &bucket);
    ck_assert_int_eq(qn_tuned_key(&bucket, &ctx->profile, &base, &group), QUERN_OK);
    free(group);
    for (int i = 0; i < 3; i++) {
        arrays[i].data = memory + 1;
        qn_bucket_make(&spec, arrays, &bucket);
        ck_assert_int_eq(qn_tuned_key(&bucket, &ctx->profile, &text, &group), QUERN_OK);
        line = differing_line(base, text);
        ck_assert_str_eq(line, lines[i]);
        arrays[i].data = memory;
        free(line), free(text), free(group);
    }
    free(base);
}
END_TEST

START_TEST(members_of_a_bucket_share_the_tuning_key_whatever_their_scalars)
{
    uint64_t seed = common_seed();
    const struct wanted top = { .spec = "kinds rows=1024 batch=8 longest=64 gain=1" };
    struct tuned key = tuned_key(ctx, &top, NULL);
    for (int i = 0; i < 200; i++) {
        char spec[128];
        snprintf(spec, sizeof(spec), "kinds rows=%d batch=%d longest=%d gain=%g",
                 (int)common_between(&seed, 513, 1024), (int)common_between(&seed, 5, 8),
                 (int)common_between(&seed, 33, 64),
                 (double)common_between(&seed, -1000000, 1000000) / 64);
        const struct wanted member = { .spec = spec };
        struct tuned other = tuned_key(ctx, &member, NULL);
        ck_assert_str_eq(key.text, other.text);
        ck_assert_str_eq(key.group, other.group);
        tuned_free(other);
    }
    tuned_free(key);
}
END_TEST

START_TEST(the_group_is_the_key_without_its_dynamic_lines)
{
    const struct wanted wanted = { .spec = "kinds rows=100 gain=2" };
    struct tuned key = tuned_key(ctx, &wanted, NULL);
    const char *group = key.group;
    for (const char *line = key.text; *line; line += strcspn(line, "\n") + 1) {
        size_t length = strcspn(line, "\n") + 1;
        if (!strncmp(line, "batch=", 6) || !strncmp(line, "rows=", 5) ||
            !strncmp(line, "longest=", 8))
            continue;
        ck_assert_msg(!strncmp(group, line, length), "%.*s", (int)length, line);
        group += length;
    }
    ck_assert_int_eq(*group, 0);
    tuned_free(key);
}
END_TEST

/* ---- What must not change them ------------------------------------------------------------- */

static const struct wanted everywhere[] = {
    { .spec = "copy n=1000 dtype=bf16 inplace=1" },
    { .spec = "copy n=1000 alpha=0.5", .target = "cpu:x86-64-v2" },
    { .spec = "kinds gain=0.1 rows=77 dtype=f64 biased=1", .target = "cpu:x86-64-v4+bf16" },
    { .spec = "gemm m=301 n=517 k=1033 a=bf16 b=bf16 d=bf16", .target = "cpu:x86-64-v3" },
    { .spec = "gemm m=1 n=64 k=4096", .target = "cpu:aarch64" },
};

static char *keys_everywhere(struct quern_context *with)
{
    struct qn_text all = { 0 };
    for (size_t i = 0; i < sizeof(everywhere) / sizeof(everywhere[0]); i++) {
        char *artifacts = artifact_keys(with, &everywhere[i]);
        struct tuned tuned = tuned_key(with, &everywhere[i], NULL);
        qn_text_print(&all, "%s%s%s", artifacts, tuned.text, tuned.group);
        free(artifacts);
        tuned_free(tuned);
    }
    return all.data;
}

START_TEST(the_order_of_words_changes_no_key)
{
    const struct wanted a = { .spec = "kinds rows=5 order=down gain=2 dtype=f64" };
    const struct wanted b = { .spec = "kinds dtype=f64 gain=2 order=down rows=5" };
    char *in_a = artifact_keys(ctx, &a), *in_b = artifact_keys(ctx, &b);
    struct tuned tuned_a = tuned_key(ctx, &a, NULL), tuned_b = tuned_key(ctx, &b, NULL);
    ck_assert_str_eq(in_a, in_b);
    ck_assert_str_eq(tuned_a.text, tuned_b.text);
    free(in_a), free(in_b);
    tuned_free(tuned_a);
    tuned_free(tuned_b);
}
END_TEST

/* Writes the embedded templates below scratch/place; returns that path, malloc'ed. */
static char *templates_copy(const char *place)
{
    char name[256];
    for (int i = 0; i < qn_embedded_template_count; i++) {
        snprintf(name, sizeof(name), "%s/%s", place, qn_embedded_templates[i].path);
        char *path = common_scratch_path(name);
        common_file_write(path, qn_embedded_templates[i].text);
        free(path);
    }
    return common_scratch_path(place);
}

static char *keys_with_templates(const char *directory)
{
    struct quern_options options = QUERN_OPTIONS_INIT;
    options.templates = directory;
    struct quern_context *there = common_context(&options);
    char *keys = keys_everywhere(there);
    quern_context_destroy(there);
    return keys;
}

START_TEST(where_the_templates_lie_changes_no_key)
{
    static const char *const places[] = { "here", "some/where/else, with a blank" };
    char *embedded = keys_everywhere(ctx);
    for (int i = 0; i < 2; i++) {
        char *directory = templates_copy(places[i]), *keys = keys_with_templates(directory);
        char name[256], *header;
        ck_assert_str_eq(keys, embedded);
        free(keys);
        snprintf(name, sizeof(name), "%s/copy/copy_args.h", places[i]);
        header = common_scratch_path(name);
        common_file_write(header, "struct copy_args { int changed; };\n");
        keys = keys_with_templates(directory);
        ck_assert_str_ne(keys, embedded); /* so the files there are what was read */
        free(keys), free(header), free(directory);
    }
    free(embedded);
}
END_TEST

/* Another process, in another folder, locale, environment and time zone. */
START_TEST(process_folder_locale_and_environment_change_no_key)
{
    char command[10000], *mine = keys_everywhere(ctx);
    char *locale = common_scratch_path("de_DE.UTF-8");
    int code;
    snprintf(command, sizeof(command), "localedef -i de_DE -f UTF-8 %s 2>&1", locale);
    free(common_shell(command, &code));
    const char *threads = getenv("OMP_NUM_THREADS"); /* they are part of the profile */
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof(command),
                 "cd / && env -i %s%s %s LOCPATH=%s LC_ALL=de_DE.UTF-8 %s/test_key --keys",
                 threads ? "OMP_NUM_THREADS=" : "", threads ? threads : "",
                 i ? "HOME=/nowhere TZ=Asia/Tokyo CPATH=/usr/include QUERN_LOG=debug PATH=" : "",
                 common_scratch(), common_directory());
        char *theirs = common_shell(command, &code);
        ck_assert_int_eq(code, 0);
        ck_assert_str_eq(theirs, mine);
        free(theirs);
    }
    free(mine);
    free(locale);
}
END_TEST

START_TEST(print_keys)
{
    char *keys = keys_everywhere(ctx);
    fputs(keys, stdout);
    free(keys);
}
END_TEST

/* As a test, since that is where helpers may assert. */
static int print_main(void)
{
    Suite *suite = suite_create("keys");
    TCase *tcase = tcase_create("keys");
    setlocale(LC_ALL, "");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, print_keys);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_SILENT);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

static Suite *suite_make(void)
{
    Suite *suite = suite_create("key");
    TCase *tcase = tcase_create("key");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, each_define_changes_the_artifact_key_by_value_and_by_name);
    tcase_add_test(tcase, neighbouring_inputs_do_not_run_into_each_other);
    tcase_add_test(tcase, target_and_options_change_the_artifact_key);
    tcase_add_test(tcase, the_order_of_features_in_a_target_does_not_change_the_artifact_key);
    tcase_add_test(tcase, template_text_changes_the_artifact_key);
    tcase_add_test(tcase, a_config_changes_the_artifact_key_exactly_where_it_changes_a_define);
    tcase_add_test(tcase, specs_that_generate_the_same_source_share_the_artifact_key);
    tcase_add_loop_test(
        tcase, each_parameter_changes_its_line_of_the_tuning_key_and_dynamic_ones_not_the_group, 0,
        (int)(sizeof(tuned_inputs) / sizeof(tuned_inputs[0])));
    tcase_add_test(tcase,
                   family_profile_alignment_and_presence_change_the_tuning_key_and_its_group);
    tcase_add_test(tcase, one_array_less_aligned_changes_only_its_own_line);
    tcase_add_test(tcase, members_of_a_bucket_share_the_tuning_key_whatever_their_scalars);
    tcase_add_test(tcase, the_group_is_the_key_without_its_dynamic_lines);
    tcase_add_test(tcase, the_order_of_words_changes_no_key);
    tcase_add_test(tcase, where_the_templates_lie_changes_no_key);
    tcase_add_test(tcase, process_folder_locale_and_environment_change_no_key);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--keys"))
        return print_main();
    return common_main(suite_make());
}
