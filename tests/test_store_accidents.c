/* The store after accidents, and they are real ones: killed processes, flipped bits, cut and
 * scribbled files, a limit on the size of files. What is left is sound, and what is lost is a
 * miss. */
#include "tests/store_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

START_TEST(a_flipped_bit_is_a_miss_and_the_row_is_made_again)
{
    struct qn_artifact artifact = qt_make_store(3, 5000);
    struct qt_log log = { 0 };
    char sql[300];
    size_t at = qt_draw() % 5000;

    snprintf(sql, sizeof sql,
             "UPDATE artifact SET blob = CAST(substr(blob, 1, %zu) || x'%02x' || substr(blob, %zu) "
             "AS BLOB) WHERE compiler = (SELECT compiler FROM artifact ORDER BY id DESC LIMIT 1)",
             at, ((unsigned char *)artifact.blob)[at] ^ (1u << (qt_draw() % 8)), at + 2);
    qt_change(sql);
    struct qn_store *store = qt_open_logged(qt_path, &log);
    qt_assert_missed(store, &artifact);
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_ptr_nonnull(strstr(log.last, "damaged"));
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 2);
    qt_assert_missed(store, &artifact);
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_row_under_the_wrong_key_is_a_miss_and_set_aside)
{
    struct qn_artifact artifact = qt_make_store(3, 50);

    qt_change("UPDATE artifact SET text = text || 'x' WHERE id = 3");
    struct qn_store *store = qt_open_store();
    qt_assert_missed(store, &artifact);
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 2);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

/* Bytes and hash come from another row: each belongs to the other, and neither to this one. */
START_TEST(a_row_with_another_rows_blob_and_hash_is_a_miss_and_set_aside)
{
    static const char *const names[] = { "text", "compiler" }; /* in which the two rows differ */

    for (int i = 0; i < 2; i++) {
        for (int by_verify = 0; by_verify <= 1; by_verify++) {
            struct qn_artifact first = qt_draw_artifact(700), second = qt_draw_artifact(700);
            int64_t checked = 0, damaged = 0;
            char **same = i ? &second.text : &second.compiler;
            free(*same);
            *same = strdup(i ? first.text : first.compiler);
            struct qn_store *store = qt_open_store();
            ck_assert_int_eq(qn_artifact_put(store, &first), QN_STORE_OK);
            ck_assert_int_eq(qn_artifact_put(store, &second), QN_STORE_OK);
            qn_store_close(store);
            qt_change("UPDATE artifact SET (blob, blob_hash, blob_bytes) = "
                      "(SELECT blob, blob_hash, blob_bytes FROM artifact ORDER BY id LIMIT 1) "
                      "WHERE id = (SELECT max(id) FROM artifact)");
            store = qt_open_store();
            if (by_verify) {
                ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
                ck_assert_msg(checked == 2 && damaged == 1, "the other's %s: %d of %d", names[i],
                              (int)damaged, (int)checked);
            }
            qt_assert_missed(store, &second);
            qt_assert_found(store, &first);
            ck_assert_int_eq(qt_counters_of(store).damaged, 1);
            ck_assert_int_eq(qt_counters_of(store).artifacts, 1);
            qn_store_close(store);
            ck_assert_int_eq(unlink(qt_path), 0);
            qn_artifact_fini(&first);
            qn_artifact_fini(&second);
        }
    }
}
END_TEST

/* ---- Artifacts that do not load ---- */

static struct qn_artifact found_in(struct qn_store *store, const struct qn_artifact *wanted)
{
    struct qn_artifact found;

    ck_assert_int_eq(qn_artifact_find(store, wanted->text, wanted->compiler, NULL, NULL, &found),
                     QN_STORE_OK);
    return found;
}

START_TEST(an_artifact_that_does_not_load_is_dropped_once_and_alone)
{
    const char *where[] = { qt_path, "" };
    static const size_t sizes[] = { 0, 3000 };

    for (int i = 0; i < 4; i++) {
        struct qt_log log = { 0 };
        struct qn_store *store = qt_open_logged(where[i / 2], &log);
        struct qn_artifact bad = qt_draw_artifact(sizes[i % 2]);
        struct qn_artifact other_text = bad, other_compiler = bad; /* with the same blob */
        other_text.text = "text=other\n";
        other_compiler.compiler = "other";
        ck_assert_int_eq(qn_artifact_put(store, &bad), QN_STORE_OK);
        ck_assert_int_eq(qn_artifact_put(store, &other_text), QN_STORE_OK);
        ck_assert_int_eq(qn_artifact_put(store, &other_compiler), QN_STORE_OK);
        struct qn_artifact found = found_in(store, &bad);
        ck_assert_int_eq(qn_artifact_drop(store, &found), QN_STORE_OK);
        ck_assert_int_eq(log.warnings, 1);
        ck_assert_msg(strstr(log.last, found.key) && strstr(log.last, "could not be loaded"), "%s",
                      log.last);
        ck_assert_int_eq(qn_artifact_drop(store, &found), QN_STORE_MISS);
        ck_assert_int_eq(log.warnings, 1);
        qt_assert_missed(store, &bad);
        qt_assert_found(store, &other_text);
        qt_assert_found(store, &other_compiler);
        ck_assert_int_eq(qt_counters_of(store).damaged, 1);
        ck_assert_int_eq(qn_artifact_put(store, &bad), QN_STORE_OK);
        qt_assert_found(store, &bad);
        qn_store_close(store);
        qn_artifact_fini(&found);
        qn_artifact_fini(&bad);
    }
}
END_TEST

START_TEST(a_row_that_was_made_again_meanwhile_is_not_dropped)
{
    struct qn_artifact old = qt_make_store(1, 500), new = qt_draw_artifact(500);
    struct qt_log log = { 0 };

    free(new.text);
    free(new.compiler);
    new.text = strdup(old.text);
    new.compiler = strdup(old.compiler);
    struct qn_store *store = qt_open_logged(qt_path, &log), *other = qt_open_store();
    struct qn_artifact found = found_in(store, &old);
    ck_assert_int_eq(qn_artifact_put(other, &new), QN_STORE_OK);
    ck_assert_int_eq(qn_artifact_drop(store, &found), QN_STORE_MISS);
    qt_assert_found(store, &new);
    ck_assert_int_eq(log.warnings, 0);
    ck_assert_int_eq(qt_counters_of(store).damaged, 0);
    qn_store_close(other);
    qn_store_close(store);
    qn_artifact_fini(&found);
    qn_artifact_fini(&old);
    qn_artifact_fini(&new);
}
END_TEST

START_TEST(a_read_only_store_keeps_what_does_not_load_and_says_so)
{
    struct qn_artifact artifact = qt_make_store(1, 500);
    struct qt_log log = { 0 };

    ck_assert_int_eq(chmod(qt_path, 0400), 0);
    struct qn_store *store = qt_open_logged(qt_path, &log);
    struct qn_artifact found = found_in(store, &artifact);
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_int_eq(qn_artifact_drop(store, &found), QN_STORE_MISS);
    ck_assert_int_eq(log.warnings, 2);
    ck_assert_ptr_nonnull(strstr(log.last, "could not be loaded"));
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    qt_assert_missed(store, &artifact); /* not to fail once more in this process */
    qn_store_close(store);
    store = qt_open_store();
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&found);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(verify_counts_every_blob_and_removes_the_damaged)
{
    struct qn_artifact artifact = qt_make_store(9, 700);
    int64_t checked = 0, damaged = 0;

    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
    ck_assert_int_eq(checked, 9);
    ck_assert_int_eq(damaged, 0);
    qn_store_close(store);
    qt_change("UPDATE artifact SET blob = zeroblob(700) WHERE id IN (2, 5)");
    qt_change("UPDATE artifact SET blob = zeroblob(3) WHERE id = 7");
    store = qt_open_store();
    ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
    ck_assert_int_eq(checked, 9);
    ck_assert_int_eq(damaged, 3);
    ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
    ck_assert_int_eq(checked, 6);
    ck_assert_int_eq(damaged, 0);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_cut_file_is_set_aside_and_a_new_one_begun)
{
    struct stat st;

    for (int round = 1; round <= 2; round++) {
        struct qn_artifact artifact = qt_make_store(20, 5000);
        struct qt_log log = { 0 };
        char suffix[32];
        ck_assert_int_eq(stat(qt_path, &st), 0);
        off_t size = 4096 + (off_t)(qt_draw() % (uint64_t)(st.st_size - 8192));
        ck_assert_int_eq(truncate(qt_path, size), 0);
        struct qn_store *store = qt_open_logged(qt_path, &log);
        ck_assert_int_eq(log.warnings, 1);
        ck_assert_ptr_nonnull(strstr(log.last, ".damaged-"));
        ck_assert_int_eq(qn_store_is_writable(store), 1);
        qt_assert_missed(store, &artifact);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        qt_assert_found(store, &artifact);
        ck_assert_int_eq(qt_counters_of(store).artifacts, 1);
        qn_store_close(store);
        snprintf(suffix, sizeof suffix, ".damaged-%d", round);
        ck_assert_int_eq(stat(qt_beside(suffix), &st), 0);
        ck_assert_int_eq(st.st_size, size);
        qn_artifact_fini(&artifact);
    }
}
END_TEST

/* In a process of its own: closing the file in this one would drop the store's locks. */
static int scribble(int number)
{
    int fd = open(qt_path, O_RDWR);
    off_t size = lseek(fd, 0, SEEK_END);

    (void)number;
    for (off_t at = 4096; at < size; at += 8) {
        uint64_t junk = qt_draw();
        if (pwrite(fd, &junk, sizeof junk, at) != (ssize_t)sizeof junk) {
            return 1;
        }
    }
    return close(fd);
}

START_TEST(a_file_damaged_while_open_is_a_miss_and_the_next_open_starts_afresh)
{
    struct qn_artifact artifact = qt_make_store(20, 5000), found;
    struct qt_log log = { 0 };
    struct qn_store *store = qt_open_logged(qt_path, &log);
    struct qn_lease *lease;

    ck_assert_int_eq(qt_reap(qt_spawn(scribble, 0)), 0);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(
            qn_artifact_find(store, artifact.text, artifact.compiler, NULL, NULL, &found),
            QN_STORE_MISS);
    }
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_MISS);
    ck_assert_int_eq(qn_lease_acquire(store, "name", 100, 100, &lease), QN_STORE_MISS);
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_ptr_nonnull(strstr(log.last, ".damaged-"));
    ck_assert(qt_exists(qt_beside(".damaged-1")) && !qt_exists(qt_path));
    ck_assert_int_eq(qn_store_is_writable(store), 0);
    struct qn_store *next = qt_open_store();
    qt_assert_missed(next, &artifact);
    ck_assert_int_eq(qn_artifact_put(next, &artifact), QN_STORE_OK);
    qn_store_close(store); /* must not take the new file's -wal with it */
    ck_assert(qt_exists(qt_beside("-wal")));
    qt_assert_found(next, &artifact);
    qn_store_close(next);
    next = qt_open_store();
    qt_assert_found(next, &artifact);
    qn_store_close(next);
    qn_artifact_fini(&artifact);
}
END_TEST

static int put_until_killed(int number)
{
    struct qn_store *store = qt_open_store();

    for (;;) {
        struct qn_artifact artifact = qt_draw_artifact(20000 + (size_t)number);
        if (qn_artifact_put(store, &artifact)) {
            return 1;
        }
        qn_artifact_fini(&artifact);
    }
}

START_TEST(a_process_killed_in_the_middle_of_puts_leaves_sound_rows)
{
    int64_t rows = 0;

    for (int round = 0; round < 12; round++) {
        int64_t checked = 0, damaged = 0;
        pid_t pids[2] = { qt_spawn(put_until_killed, 2 * round),
                          qt_spawn(put_until_killed, 2 * round + 1) };
        qt_sleep_us(5000 + (long)(qt_draw() % 60000));
        for (int i = 0; i < 2; i++) {
            ck_assert_int_eq(kill(pids[i], SIGKILL), 0);
            ck_assert(WIFSIGNALED(qt_reap(pids[i])));
        }
        struct qn_store *store = qt_open_store();
        ck_assert_int_eq(qn_store_is_writable(store), 1);
        ck_assert_int_eq(qn_store_verify(store, &checked, &damaged), QN_STORE_OK);
        ck_assert_int_eq(damaged, 0);
        ck_assert_int_ge(checked, rows);
        ck_assert_int_eq(qt_counters_of(store).compiles, checked);
        rows = checked;
        qn_store_close(store);
    }
    ck_assert_int_gt(rows, 10);
}
END_TEST

START_TEST(a_process_killed_while_creating_leaves_nothing_in_the_way)
{
    for (int round = 0; round < 30; round++) {
        snprintf(qt_path, sizeof qt_path, "%s/%d/quern.db", qt_folder, round);
        pid_t pid = qt_spawn(qt_open_and_put, round);
        qt_sleep_us((long)(qt_draw() % 6000));
        kill(pid, SIGKILL);
        qt_reap(pid);
        struct qt_log log = { 0 };
        struct qn_store *store = qt_open_logged(qt_path, &log);
        struct qn_artifact artifact = qt_draw_artifact(100);
        ck_assert_int_eq(log.warnings, 0);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        qt_assert_found(store, &artifact);
        qn_store_close(store);
        qn_artifact_fini(&artifact);
    }
}
END_TEST

START_TEST(a_full_disk_drops_writes_with_one_warning_and_mends_itself)
{
    struct rlimit limit, full;
    struct qt_log log = { 0 };

    struct qn_artifact artifact = qt_make_store(1, 60000), lost = qt_draw_artifact(60000);
    struct qn_store *store = qt_open_logged(qt_path, &log);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    full = limit;
    full.rlim_cur = 3000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &full), 0);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(qn_artifact_put(store, &lost), QN_STORE_MISS);
    }
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_ptr_nonnull(strstr(log.last, "cannot be written"));
    qt_assert_found(store, &artifact);
    qt_assert_missed(store, &lost);
    ck_assert_int_eq(qt_counters_of(store).hits, 0); /* counted, and not written */
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(qn_artifact_put(store, &lost), QN_STORE_OK);
    qt_assert_found(store, &lost);
    ck_assert_int_eq(qt_counters_of(store).errors, 4);
    ck_assert_int_eq(qt_counters_of(store).compiles, 2);
    ck_assert_int_eq(qt_counters_of(store).hits, 2);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
    qn_artifact_fini(&lost);
}
END_TEST

START_TEST(a_disk_too_full_to_create_the_file_means_memory)
{
    struct rlimit limit;
    struct qt_log log = { 0 };

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = 3000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct qn_store *store = qt_open_logged(qt_path, &log);
    struct qn_artifact artifact = qt_draw_artifact(9000);
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    ck_assert(!qt_exists(qt_path) && !qt_exists(qt_beside(".new")));
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_store_whose_file_is_replaced_does_not_mix_the_two)
{
    struct qn_artifact artifact = qt_make_store(1, 100);
    struct qn_store *store = qt_open_store();
    pthread_t threads[QT_PROCESSES];

    qt_assert_found(store, &artifact);
    ck_assert_int_eq(rename(qt_path, qt_beside(".old")), 0);
    qn_store_close(qt_open_store());
    for (int i = 0; i < QT_PROCESSES; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, qt_put_and_find, store), 0);
    }
    for (int i = 0; i < QT_PROCESSES; i++) {
        pthread_join(threads[i], NULL);
    }
    struct qn_store *next = qt_open_store();
    ck_assert_int_eq(qt_counters_of(next).artifacts, 0);
    qn_store_close(next);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_file_without_wal_serves_as_well)
{
    struct qn_artifact artifact = qt_make_store(1, 100);

    qt_change("PRAGMA journal_mode = DELETE"); /* what a network file system gets */
    qt_run_processes(qt_open_and_put);
    struct qn_store *store = qt_open_store();
    qt_assert_found(store, &artifact);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 1 + QT_PROCESSES);
    ck_assert(!qt_exists(qt_beside("-wal")));
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

static void add_accidents(TCase *tcase)
{
    tcase_add_test(tcase, a_flipped_bit_is_a_miss_and_the_row_is_made_again);
    tcase_add_test(tcase, a_row_under_the_wrong_key_is_a_miss_and_set_aside);
    tcase_add_test(tcase, a_row_with_another_rows_blob_and_hash_is_a_miss_and_set_aside);
    tcase_add_test(tcase, an_artifact_that_does_not_load_is_dropped_once_and_alone);
    tcase_add_test(tcase, a_row_that_was_made_again_meanwhile_is_not_dropped);
    tcase_add_test(tcase, a_read_only_store_keeps_what_does_not_load_and_says_so);
    tcase_add_test(tcase, verify_counts_every_blob_and_removes_the_damaged);
    tcase_add_test(tcase, a_cut_file_is_set_aside_and_a_new_one_begun);
    tcase_add_test(tcase, a_file_damaged_while_open_is_a_miss_and_the_next_open_starts_afresh);
    tcase_add_test(tcase, a_process_killed_in_the_middle_of_puts_leaves_sound_rows);
    tcase_add_test(tcase, a_process_killed_while_creating_leaves_nothing_in_the_way);
    tcase_add_test(tcase, a_full_disk_drops_writes_with_one_warning_and_mends_itself);
    tcase_add_test(tcase, a_disk_too_full_to_create_the_file_means_memory);
    tcase_add_test(tcase, a_store_whose_file_is_replaced_does_not_mix_the_two);
    tcase_add_test(tcase, a_file_without_wal_serves_as_well);
}

int main(void)
{
    static const struct qt_group groups[] = { { "accidents", add_accidents } };

    return qt_run_suite("store_accidents", groups, 1);
}
