/* A sweep's list and its workers, with more devices than are here: each is the CPU once more, which
 * times nothing well but claims, tunes and stores as a GPU of several does. */
#include "tests/common.h"
#include "tools/sweep_run.h"

#include <quern/cache.h>

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define GRID "m=1,2,64 n=64 k=64,128"
enum { ROWS = 6 };

/* A command line, its session and its list. */
struct bed {
    struct args args;
    struct session session;
    struct sweep_list list;
    struct sweep_run run;
};

static void bed_init(struct bed *bed, const char *cache, int devices)
{
    const char *words[] = { "quern",  "sweep", "--device", "cpu",  "--cache",       cache, "-q",
                            "--grid", GRID,    "--family", "gemm", "--max-configs", "2",   NULL };
    memset(bed, 0, sizeof(*bed));
    optind = 0; /* getopt starts afresh */
    ck_assert_int_eq(args_parse(sizeof(words) / sizeof(words[0]) - 1, (char **)words, &bed->args),
                     EXIT_DONE);
    ck_assert_int_eq(session_open(&bed->session, &bed->args), EXIT_DONE);
    ck_assert_int_eq(sweep_list_make(&bed->session, &bed->list), EXIT_DONE);
    ck_assert_int_eq(bed->list.count, ROWS);
    bed->args.words = NULL; /* they were ours */
    bed->run.device_count = devices;
    for (int i = 0; i < devices; i++)
        strcpy(bed->run.devices[i].name, "cpu");
}

static void bed_fini(struct bed *bed)
{
    sweep_list_fini(&bed->list);
    session_close(&bed->session);
}

static int count_state(const struct bed *bed, int state)
{
    int count = 0;
    for (int i = 0; i < bed->list.count; i++)
        count += (int)bed->list.rows[i].state == state;
    return count;
}

static int see_row(void *user, const struct quern_cache_row *row)
{
    int *winners = user;
    if (strcmp(row->table, "tuned"))
        return 0;
    ck_assert_int_eq(row->generation, 1);
    ++*winners;
    return 0;
}

START_TEST(several_devices_tune_each_row_once_and_one_cache_has_all)
{
    char *cache = common_scratch_path("several.db");
    struct bed bed;
    int winners = 0;
    bed_init(&bed, cache, 3);
    ck_assert_int_eq(sweep_run_on(&bed.args, &bed.list, &bed.run), EXIT_DONE);
    ck_assert_int_eq(count_state(&bed, SWEEP_TUNED), ROWS);
    for (int i = 0; i < bed.run.device_count; i++)
        ck_assert_int_eq(bed.run.devices[i].kind, 0);
    ck_assert_int_eq(quern_cache_list(bed.session.ctx, see_row, &winners), QUERN_OK);
    ck_assert_int_eq(winners, ROWS);
    bed_fini(&bed);

    bed_init(&bed, cache, 2); /* once more */
    ck_assert_int_eq(sweep_run_on(&bed.args, &bed.list, &bed.run), EXIT_DONE);
    ck_assert_int_eq(count_state(&bed, SWEEP_SKIPPED), ROWS);
    bed_fini(&bed);
    free(cache);
}
END_TEST

START_TEST(devices_share_a_budget_and_what_it_does_not_reach_is_left)
{
    struct bed bed;
    bed_init(&bed, "", 2);
    bed.args.budget_s = 1e-3;
    ck_assert_int_eq(sweep_run_on(&bed.args, &bed.list, &bed.run), EXIT_DONE);
    ck_assert_int_gt(count_state(&bed, SWEEP_LEFT), 0);
    ck_assert_int_eq(count_state(&bed, SWEEP_LEFT) + count_state(&bed, SWEEP_TUNED), ROWS);
    bed_fini(&bed);
}
END_TEST

START_TEST(a_device_that_cannot_be_opened_is_told_before_anything_is_tuned)
{
    struct bed bed;
    bed_init(&bed, "", 2);
    strcpy(bed.run.devices[1].name, "cuda:999");
    ck_assert_int_ne(sweep_run_on(&bed.args, &bed.list, &bed.run), EXIT_DONE);
    ck_assert_int_eq(count_state(&bed, SWEEP_LEFT), ROWS);
    bed_fini(&bed);
}
END_TEST

START_TEST(another_kind_of_device_has_every_row_and_measures_no_ceiling)
{
    struct bed bed;
    bed_init(&bed, "", 1);
    bed.list.rows[2].ceiling = SWEEP_COPY;
    for (int kind = 1; kind < 3; kind++)
        ck_assert_int_eq(sweep_list_repeat(&bed.list, kind), EXIT_DONE);
    ck_assert_int_eq(bed.list.count, 3 * ROWS);
    for (int i = 0; i < bed.list.count; i++) {
        const struct sweep_row *row = &bed.list.rows[i];
        ck_assert_int_eq(row->profile, i / ROWS);
        ck_assert_str_eq(row->spec, bed.list.rows[i % ROWS].spec);
        ck_assert_int_eq(row->ceiling, i == 2 ? SWEEP_COPY : SWEEP_NO_CEILING);
    }
    bed_fini(&bed);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sweep");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 300);
    tcase_add_test(tcase, several_devices_tune_each_row_once_and_one_cache_has_all);
    tcase_add_test(tcase, devices_share_a_budget_and_what_it_does_not_reach_is_left);
    tcase_add_test(tcase, a_device_that_cannot_be_opened_is_told_before_anything_is_tuned);
    tcase_add_test(tcase, another_kind_of_device_has_every_row_and_measures_no_ceiling);
    suite_add_tcase(suite, tcase);
    return common_main(suite);
}
