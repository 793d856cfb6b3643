/* Giving room back: what goes, what stays, and what others notice of it. cache/gc.c. */
#include "tests/store_fixture.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ROWS = 30, BLOB = 20000, DAY = 86400 };

static struct qn_artifact rows[ROWS];

/* Row i was used i days later than row 0, the last one today; the first is pinned. */
static void make_rows(void)
{
    char sql[200];
    struct qn_store *store = qt_open_store();

    for (int i = 0; i < ROWS; i++) {
        rows[i] = qt_draw_artifact(BLOB);
        struct qn_manifest row = { .target = rows[i].target, .model = "m", .spec = rows[i].text };
        qn_key_hex(rows[i].text, strlen(rows[i].text), row.key);
        ck_assert_int_eq(qn_artifact_put(store, &rows[i]), QN_STORE_OK);
        ck_assert_int_eq(qn_manifest_put(store, &row), QN_STORE_OK);
    }
    qn_store_close(store);
    snprintf(sql, sizeof sql,
             "UPDATE artifact SET last_use = %lld - %d * (%d - id), is_pinned = (id = 1)",
             (long long)time(NULL), DAY, ROWS);
    qt_change(sql);
}

static void free_rows(void)
{
    for (int i = 0; i < ROWS; i++)
        qn_artifact_fini(&rows[i]);
}

static int count_row(void *user, const struct qn_manifest *row)
{
    (void)row;
    ++*(int *)user;
    return 0;
}

static int64_t size_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(stat(name, &st), 0);
    return st.st_size;
}

START_TEST(the_longest_unused_go_until_the_rest_fits)
{
    const struct qn_limits limits = { .bytes = 10 * BLOB };
    struct qn_tuned tuned = qt_draw_tuned();
    struct qn_freed freed;
    int64_t before, promised = 0;
    int manifest = 0;

    make_rows();
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_tuned_put(store, &tuned, NULL), QN_STORE_OK);
    before = qt_counters_of(store).bytes;
    qt_assert_found(store, &rows[1]); /* long unused till now */
    ck_assert_int_eq(qn_store_gc(store, &limits, &freed), QN_STORE_OK);
    ck_assert_int_le(size_of(qt_path), limits.bytes);
    ck_assert_int_eq(freed.artifacts, ROWS - qt_counters_of(store).artifacts);
    ck_assert_int_eq(freed.bytes, before - qt_counters_of(store).bytes);
    qt_assert_found(store, &rows[0]); /* pinned */
    qt_assert_found(store, &rows[1]);
    qt_assert_missed(store, &rows[2]);
    qt_assert_found(store, &rows[ROWS - 1]);
    ck_assert_int_eq(qt_counters_of(store).tuned, 1);
    ck_assert_int_eq(qn_manifest_each(store, count_row, &manifest), QN_STORE_OK);
    promised = qt_counters_of(store).artifacts;
    ck_assert_int_eq(manifest, promised);
    ck_assert_int_gt(promised, 3);
    qn_store_close(store);
    qn_tuned_fini(&tuned);
    free_rows();
}
END_TEST

START_TEST(what_was_not_used_for_long_goes)
{
    const struct qn_limits limits = { .older_than_s = 10 * DAY + DAY / 2 };
    struct qn_freed freed;

    make_rows();
    struct qn_store *store = qt_open_store();
    struct qn_trial trial = qt_draw_trial("old", 1);
    ck_assert_int_eq(qn_trial_put(store, &trial), QN_STORE_OK);
    ck_assert_int_eq(qn_miss_put(store, "old", "spec", "family"), QN_STORE_OK);
    qt_change("UPDATE trial SET created = 1; UPDATE miss SET last_seen = 1");
    ck_assert_int_eq(qn_trial_put(store, &(struct qn_trial){ .text = "new" }), QN_STORE_OK);
    ck_assert_int_eq(qn_store_gc(store, &limits, &freed), QN_STORE_OK);
    ck_assert_int_eq(freed.artifacts, ROWS - 11 - 1); /* those of 0 to 10 days, and the pinned */
    ck_assert_int_eq(freed.trials, 1);
    ck_assert_int_eq(freed.misses, 1);
    ck_assert_int_eq(qt_counters_of(store).trials, 1);
    qt_assert_found(store, &rows[0]);
    qt_assert_missed(store, &rows[ROWS - 12]);
    qt_assert_found(store, &rows[ROWS - 11]);
    ck_assert_int_eq(qn_store_gc(store, &limits, &freed), QN_STORE_OK);
    ck_assert_int_eq(freed.artifacts + freed.trials + freed.misses + freed.bytes, 0);
    qn_store_close(store);
    qn_trial_fini(&trial);
    free_rows();
}
END_TEST

START_TEST(a_file_of_before_shrinks_too)
{
    const struct qn_limits limits = { .bytes = 10 * BLOB };
    struct qn_freed freed;

    make_rows();
    qt_change("PRAGMA auto_vacuum = NONE; VACUUM");
    struct qn_store *store = qt_open_store();
    struct qn_store *other = qt_open_store(); /* has it open all the time */
    qt_assert_found(other, &rows[ROWS - 1]);
    ck_assert_int_eq(qn_store_gc(store, &limits, &freed), QN_STORE_OK);
    ck_assert_int_gt(freed.bytes, 10 * BLOB);
    ck_assert_int_le(size_of(qt_path), limits.bytes);
    qt_assert_found(other, &rows[ROWS - 1]);
    qn_store_close(other);
    qn_store_close(store);
    free_rows();
}
END_TEST

static int collect(int number)
{
    const struct qn_limits limits = { .bytes = 1 };
    struct qn_store *store = qt_open_store();
    struct qn_freed freed;
    int status = 0;

    (void)number;
    for (int i = 0; i < 10 && !status; i++)
        status = qn_store_gc(store, &limits, &freed);
    qn_store_close(store);
    return status;
}

/* Odd ones put and find, the others collect all that is there. */
static int put_or_collect(int number)
{
    return number % 2 ? qt_open_and_put(number) : collect(number);
}

START_TEST(processes_that_put_and_collect_at_once_harm_nothing)
{
    int64_t checked, damaged;

    make_rows();
    qt_run_processes(put_or_collect);
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
    ck_assert_int_eq(damaged, 0);
    qt_assert_found(store, &rows[0]);
    qn_store_close(store);
    free_rows();
}
END_TEST

START_TEST(a_collection_that_is_killed_leaves_a_sound_store)
{
    int64_t checked, damaged;

    for (int round = 0; round < 5; round++) {
        unlink(qt_path);
        make_rows();
        pid_t pid = qt_spawn(collect, round);
        qt_sleep_us((long)(qt_draw() % 10000));
        kill(pid, SIGKILL);
        qt_reap(pid);
        struct qn_store *store = qt_open_store();
        ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
        ck_assert_int_eq(damaged, 0);
        ck_assert_int_ge(checked, 1);
        qt_assert_found(store, &rows[0]);
        qn_store_close(store);
        free_rows();
    }
}
END_TEST

START_TEST(a_store_that_may_not_be_written_keeps_all)
{
    const struct qn_limits limits = { .bytes = 1 };
    struct qn_freed freed;

    make_rows();
    ck_assert_int_eq(chmod(qt_path, 0400), 0);
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_store_gc(store, &limits, &freed), QN_STORE_MISS);
    ck_assert_int_eq(freed.artifacts, 0);
    ck_assert_int_eq(qt_counters_of(store).artifacts, ROWS);
    qn_store_close(store);
    free_rows();
}
END_TEST

static void add(TCase *tcase)
{
    tcase_add_test(tcase, the_longest_unused_go_until_the_rest_fits);
    tcase_add_test(tcase, what_was_not_used_for_long_goes);
    tcase_add_test(tcase, a_file_of_before_shrinks_too);
    tcase_add_test(tcase, processes_that_put_and_collect_at_once_harm_nothing);
    tcase_add_test(tcase, a_collection_that_is_killed_leaves_a_sound_store);
    tcase_add_test(tcase, a_store_that_may_not_be_written_keeps_all);
}

int main(void)
{
    static const struct qt_group groups[] = { { "gc", add } };

    return qt_run_suite("store_gc", groups, 1);
}
