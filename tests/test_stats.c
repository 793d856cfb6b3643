/* Median, spread and the tie rule of jit/stats.c, on data whose answers are known. */
#include <stdlib.h>

#include "common.h"
#include "jit/stats.h"

static void stat_is(struct qn_stat stat, double median, double spread, int64_t samples)
{
    ck_assert_double_eq(stat.median, median);
    ck_assert_double_eq(stat.spread, spread);
    ck_assert_int_eq(stat.samples, samples);
}

START_TEST(median_and_spread_of_known_samples)
{
    double one[] = { 7 }, two[] = { 4, 1 }, odd[] = { 9, 1, 4, 100, 2 };
    double even[] = { 1, 1000, 3, 2 }, equal[] = { 5, 5, 5, 5 };
    stat_is(qn_stat_of(one, 1), 7, 0, 1);
    stat_is(qn_stat_of(two, 2), 2.5, 1.5, 2);
    stat_is(qn_stat_of(odd, 5), 4, 3, 5);    /* deviations 5 3 0 96 2 */
    stat_is(qn_stat_of(even, 4), 2.5, 1, 4); /* deviations 1.5 997.5 0.5 0.5 */
    stat_is(qn_stat_of(equal, 4), 5, 0, 4);
    stat_is(qn_stat_of(NULL, 0), 0, 0, 0);
}
END_TEST

static int double_compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double plain_median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof(*values), double_compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

START_TEST(spread_is_the_median_distance_from_the_median)
{
    uint64_t seed = common_seed();
    for (int round = 0; round < 2000; round++) {
        double samples[40], copy[40], distances[40];
        int count = (int)common_between(&seed, 1, 40);
        for (int i = 0; i < count; i++)
            samples[i] = copy[i] = (double)common_between(&seed, 0, round % 2 ? 10 : 100000);
        double median = plain_median(copy, count);
        for (int i = 0; i < count; i++)
            distances[i] = samples[i] > median ? samples[i] - median : median - samples[i];
        stat_is(qn_stat_of(samples, count), median, plain_median(distances, count), count);
    }
}
END_TEST

START_TEST(a_tie_is_within_the_spreads_or_one_percent)
{
    struct qn_stat base = { 100, 0, 9 }, near = { 100.9, 0, 9 }, far = { 101.1, 0, 9 };
    struct qn_stat noisy = { 110, 6, 9 }, wide = { 100, 5, 9 }, zero = { 0, 0, 9 };
    ck_assert(qn_stat_is_tied(&base, &base));
    ck_assert(qn_stat_is_tied(&base, &near) && qn_stat_is_tied(&near, &base));
    ck_assert(!qn_stat_is_tied(&base, &far) && !qn_stat_is_tied(&far, &base));
    ck_assert(qn_stat_is_tied(&wide, &noisy));
    ck_assert(!qn_stat_is_tied(&base, &noisy));
    ck_assert(qn_stat_is_tied(&zero, &zero));
}
END_TEST

static struct qn_contender contender(double median, double spread, bool is_default, int64_t order)
{
    return (struct qn_contender){ { median, spread, 9 }, is_default, -1, 0, order };
}

START_TEST(the_fastest_wins_outside_the_noise)
{
    struct qn_contender list[] = { contender(100, 1, true, 0), contender(90, 1, false, 1),
                                   contender(95, 1, false, 2) };
    ck_assert_int_eq(qn_contender_pick(list, 3), 1);
    ck_assert_int_eq(qn_contender_pick(list, 1), 0);
    ck_assert_int_eq(qn_contender_pick(list, 0), -1);
}
END_TEST

START_TEST(a_tie_goes_to_the_default)
{
    struct qn_contender list[] = { contender(90, 3, false, 1), contender(95, 3, true, 0),
                                   contender(92, 3, false, 2) };
    ck_assert_int_eq(qn_contender_pick(list, 3), 1);
    list[1].stat.median = 97; /* out of the noise: the default no longer counts */
    ck_assert_int_eq(qn_contender_pick(list, 3), 0);
}
END_TEST

START_TEST(a_tie_without_the_default_goes_by_resources_then_order)
{
    struct qn_contender list[] = { contender(90, 3, false, 3), contender(91, 3, false, 2),
                                   contender(92, 3, false, 1) };
    ck_assert_int_eq(qn_contender_pick(list, 3), 2);
    list[0].shared_bytes = 10, list[1].shared_bytes = 5, list[2].shared_bytes = 7;
    ck_assert_int_eq(qn_contender_pick(list, 3), 1);
    list[0].registers = 32, list[1].registers = 64, list[2].registers = 48;
    ck_assert_int_eq(qn_contender_pick(list, 3), 0);
}
END_TEST

START_TEST(the_order_of_the_list_does_not_matter)
{
    uint64_t seed = common_seed();
    for (int round = 0; round < 500; round++) {
        struct qn_contender list[6];
        for (int i = 0; i < 6; i++)
            list[i] = contender((double)common_between(&seed, 90, 110),
                                (double)common_between(&seed, 0, 5), i == 2, i);
        int64_t first = list[qn_contender_pick(list, 6)].order;
        for (int i = 5; i > 0; i--) {
            int j = (int)common_between(&seed, 0, i);
            struct qn_contender swapped = list[i];
            list[i] = list[j];
            list[j] = swapped;
        }
        ck_assert_int_eq(list[qn_contender_pick(list, 6)].order, first);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stats");
    TCase *tests = tcase_create("stats");
    tcase_add_test(tests, median_and_spread_of_known_samples);
    tcase_add_test(tests, spread_is_the_median_distance_from_the_median);
    tcase_add_test(tests, a_tie_is_within_the_spreads_or_one_percent);
    tcase_add_test(tests, the_fastest_wins_outside_the_noise);
    tcase_add_test(tests, a_tie_goes_to_the_default);
    tcase_add_test(tests, a_tie_without_the_default_goes_by_resources_then_order);
    tcase_add_test(tests, the_order_of_the_list_does_not_matter);
    suite_add_tcase(suite, tests);
    return common_main(suite);
}
