/* Target text: what parses, what is refused, and that text and struct are the same thing. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "jit/target.h"

static struct quern_target parsed(const char *text)
{
    struct quern_target target;
    struct quern_message why = { "" };

    ck_assert_msg(!qn_target_parse(text, &target, &why), "%s: %s", text, why.text);
    return target;
}

START_TEST(fields_are_what_the_text_says)
{
    struct quern_target cpu = parsed("cpu:x86-64-v4+bf16+amx"), sm = parsed("sm_90a");

    ck_assert_int_eq(cpu.kind, QUERN_CPU);
    ck_assert_int_eq(cpu.cpu_arch, 0);
    ck_assert_int_eq(cpu.cpu_level, 4);
    ck_assert_int_eq(cpu.cpu_features, QUERN_CPU_BF16 | QUERN_CPU_AMX);
    ck_assert_int_eq(sm.kind, QUERN_CUDA);
    ck_assert_int_eq(sm.sm, 90);
    ck_assert_int_eq(sm.sm_suffix, 'a');
    ck_assert_int_eq(parsed("sm_120").sm, 120);
    ck_assert_int_eq(parsed("sm_120").sm_suffix, 0);
    ck_assert_int_eq(parsed("cpu:aarch64").cpu_arch, 1);
}
END_TEST

START_TEST(feature_order_does_not_matter_but_the_text_is_canonical)
{
    struct quern_target one = parsed("cpu:x86-64-v4+amx+vnni+bf16");
    struct quern_target other = parsed("cpu:x86-64-v4+bf16+vnni+amx");
    char text[QN_TARGET_TEXT_BYTES];

    ck_assert_mem_eq(&one, &other, sizeof one);
    qn_target_format(&one, text, sizeof text);
    ck_assert_str_eq(text, "cpu:x86-64-v4+bf16+vnni+amx");
}
END_TEST

START_TEST(every_target_survives_text_and_back)
{
    static const int architectures[] = { 50, 61, 75, 80, 86, 89, 90, 100, 103, 120 };

    for (int i = 0; i < 200; i++) {
        struct quern_target target, back;
        struct quern_message why;
        char text[QN_TARGET_TEXT_BYTES];
        unsigned dice;
        ck_assert_int_eq(getrandom(&dice, sizeof dice, 0), sizeof dice);

        memset(&target, 0, sizeof target);
        if (dice % 3 == 0) {
            target.kind = QUERN_CUDA;
            target.sm = architectures[dice / 3 % 10];
            target.sm_suffix = dice & 1024 ? 'a' : 0;
        } else if (dice % 3 == 1) {
            target.cpu_level = 1 + (int)(dice / 3 % 4);
            target.cpu_features = target.cpu_level == 4 ? (int)(dice / 12 % 8) : 0;
        } else {
            target.cpu_arch = 1;
        }
        memset(&back, 0xa5, sizeof back);
        qn_target_format(&target, text, sizeof text);
        ck_assert_msg(!qn_target_parse(text, &back, &why), "%s", text);
        ck_assert_mem_eq(&target, &back, sizeof target);
    }
}
END_TEST

START_TEST(bad_text_is_refused_by_name_and_leaves_the_target_alone)
{
    static const char *const bad[] = {
        "",
        "cpu",
        "cpu:x86-64",
        "cpu:x86-64-v0",
        "cpu:x86-64-v5",
        "sm_",
        "sm_9",
        "sm_090",
        "sm_90b",
        "sm_90aa",
        "sm_9000",
        "SM_90",
        "cpu:aarch64 ",
        "cpu:x86-64-v4+",
        "cpu:x86-64-v4+sse",
        "sm_90a+x",
        "cpu:x86-64v4",
        "cpu:arm",
        "cpu:x86-64-v4bf16",
        "cpu:x86-64-v4++amx",
        "sm_-90",
        "sm_ 90",
        "cpu:x86-64-v4+amxx",
        "cpu:x86-64-v4+bf16+bf16",
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct quern_target target = { .sm = 4711 };
        struct quern_message why = { "" };
        char expected[256];
        snprintf(expected, sizeof expected,
                 "target=%s: must be cpu:x86-64-v1..v4[+bf16][+vnni][+amx], cpu:aarch64 or "
                 "sm_NN[a]",
                 bad[i]);
        ck_assert_int_eq(qn_target_parse(bad[i], &target, &why), QUERN_INVALID);
        ck_assert_str_eq(why.text, expected);
        ck_assert_int_eq(target.sm, 4711);
    }
}
END_TEST

START_TEST(features_below_v4_are_refused_with_the_reason)
{
    struct quern_target target;
    struct quern_message why;

    ck_assert_int_eq(qn_target_parse("cpu:x86-64-v3+bf16", &target, &why), QUERN_INVALID);
    ck_assert_str_eq(why.text,
                     "target=cpu:x86-64-v3+bf16: +bf16, +vnni and +amx need cpu:x86-64-v4");
}
END_TEST

START_TEST(a_text_that_does_not_fit_is_cut_and_terminated)
{
    struct quern_target target = parsed("cpu:x86-64-v4+bf16+vnni+amx");
    char text[9];

    memset(text, 'x', sizeof text);
    qn_target_format(&target, text, sizeof text - 1);
    ck_assert_str_eq(text, "cpu:x86");
    ck_assert_int_eq(text[8], 'x');
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("target");
    TCase *cases = tcase_create("text");

    tcase_add_test(cases, fields_are_what_the_text_says);
    tcase_add_test(cases, feature_order_does_not_matter_but_the_text_is_canonical);
    tcase_add_test(cases, every_target_survives_text_and_back);
    tcase_add_test(cases, bad_text_is_refused_by_name_and_leaves_the_target_alone);
    tcase_add_test(cases, features_below_v4_are_refused_with_the_reason);
    tcase_add_test(cases, a_text_that_does_not_fit_is_cut_and_terminated);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
