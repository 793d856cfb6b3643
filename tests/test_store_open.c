/* Opening a store: what is made, what is refused and left as it was, what is read without being
 * written, and eight processes that come at the same time. */
#include "tests/store_fixture.h"

#include "cache/db.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NOBODY 65534

START_TEST(missing_folders_and_file_are_made_for_their_owner_only)
{
    char name[160], made[200];

    snprintf(name, sizeof name, "%s/a/b/quern.db", qt_folder);
    umask(0);
    chmod(qt_folder, 0755);
    struct qn_store *store = qt_open_logged(name, NULL);
    ck_assert_int_eq(qn_store_is_writable(store), 1);
    ck_assert_str_eq(qn_store_path(store), name);
    ck_assert_uint_eq(qt_mode_of(name), 0600);
    snprintf(made, sizeof made, "%s-wal", name);
    ck_assert_uint_eq(qt_mode_of(made), 0600);
    snprintf(made, sizeof made, "%s/a", qt_folder);
    ck_assert_uint_eq(qt_mode_of(made), 0700);
    snprintf(made, sizeof made, "%s/a/b", qt_folder);
    ck_assert_uint_eq(qt_mode_of(made), 0700);
    ck_assert_uint_eq(qt_mode_of(qt_folder), 0755);
    qn_store_close(store);
    snprintf(made, sizeof made, "%s-wal", name);
    ck_assert(!qt_exists(made));
}
END_TEST

START_TEST(a_relative_path_still_holds_after_a_change_of_directory)
{
    ck_assert_int_eq(chdir(qt_folder), 0);
    struct qn_store *store = qt_open_logged("sub/../quern?mode=x#1%41.db", NULL);
    struct qn_artifact artifact = qt_draw_artifact(100);
    ck_assert_int_eq(chdir("/"), 0);
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    qn_store_close(store);
    ck_assert_int_eq(chdir(qt_folder), 0);
    ck_assert_int_eq(chmod("quern?mode=x#1%41.db", 0400), 0);
    store = qt_open_logged("quern?mode=x#1%41.db", NULL);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(an_empty_file_becomes_a_store)
{
    qt_write_whole(qt_path, "", 0);
    struct qn_artifact artifact = qt_make_store(1, 10);
    struct qn_store *store = qt_open_store();
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

/* Opening `name` fails with a line that names it and says `words`, and leaves no trace. */
static void assert_refused(const char *name, const char *words)
{
    struct qn_store_options options = { .path = name };
    struct qn_store *store = (struct qn_store *)&options;
    char error[512] = "", start[160];
    struct stat st;
    size_t size = 0, size_after = 0;
    int is_file = lstat(name, &st) == 0 && S_ISREG(st.st_mode) && st.st_mode & 0400;
    char *bytes = is_file ? qt_read_whole(name, &size) : NULL;

    ck_assert_int_eq(qn_store_open(&options, &store, error, sizeof error), QN_STORE_ERROR);
    ck_assert_ptr_eq(store, &options);
    snprintf(start, sizeof start, "cache=%s: ", name);
    ck_assert_msg(!strncmp(error, start, strlen(start)), "%s", error);
    ck_assert_msg(strstr(error, words) != NULL, "\"%s\" does not say \"%s\"", error, words);
    ck_assert_ptr_null(strchr(error, '\n'));
    if (bytes) {
        char *after = qt_read_whole(name, &size_after);
        ck_assert_uint_eq(size, size_after);
        ck_assert_mem_eq(bytes, after, size);
        free(after);
    }
    free(bytes);
    ck_assert(!qt_exists(qt_beside("-shm")));
    ck_assert(!qt_exists(qt_beside("-journal")));
}

START_TEST(a_folder_a_link_and_a_pipe_are_refused)
{
    char name[160];

    snprintf(name, sizeof name, "%s/", qt_folder);
    assert_refused(qt_folder, "folder");
    assert_refused(name, "folder");
    ck_assert_int_eq(mkfifo(qt_path, 0600), 0);
    assert_refused(qt_path, "not a plain file");
    ck_assert_int_eq(unlink(qt_path), 0);
    snprintf(name, sizeof name, "%s/real.db", qt_folder);
    qn_store_close(qt_open_logged(name, NULL));
    ck_assert_int_eq(symlink(name, qt_path), 0);
    assert_refused(qt_path, "symbolic link");
}
END_TEST

START_TEST(a_file_below_a_file_is_refused)
{
    char name[160];

    qt_write_whole(qt_path, "x", 1);
    snprintf(name, sizeof name, "%s/quern.db", qt_path);
    assert_refused(name, "Not a directory");
}
END_TEST

START_TEST(a_file_that_is_not_a_database_is_refused_and_kept)
{
    char bytes[5000];

    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (char)qt_draw();
    }
    qt_write_whole(qt_path, bytes, sizeof bytes);
    assert_refused(qt_path, "not a quern cache");
    qt_write_whole(qt_path, bytes, 1);
    assert_refused(qt_path, "not a quern cache");
    qt_write_whole(qt_path, "SQLite format 3", 16);
    assert_refused(qt_path, "not a quern cache");
}
END_TEST

START_TEST(another_programs_database_is_refused_and_kept)
{
    qt_change("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    ck_assert_int_eq(chmod(qt_path, 0600), 0);
    assert_refused(qt_path, "another program");
    ck_assert(!qt_exists(qt_beside("-wal")));
}
END_TEST

START_TEST(a_newer_schema_is_refused_and_kept)
{
    char sql[80];

    qn_store_close(qt_open_store());
    snprintf(sql, sizeof sql, "PRAGMA user_version = %d", QN_STORE_SCHEMA + 1);
    qt_change(sql);
    assert_refused(qt_path, "schema=3; allowed: 2");
    ck_assert(!qt_exists(qt_beside("-wal")));
}
END_TEST

/* What version 1 had: no manifest, and fewer columns. */
static struct qn_artifact make_version_1(void)
{
    struct qn_artifact artifact = qt_make_store(3, 100);

    qt_change("DROP TABLE manifest; ALTER TABLE artifact DROP COLUMN source_bytes; "
              "ALTER TABLE tuned DROP COLUMN heuristic_variant; "
              "ALTER TABLE tuned DROP COLUMN heuristic_config; "
              "ALTER TABLE tuned DROP COLUMN heuristic_us; "
              "ALTER TABLE tuned DROP COLUMN heuristic_spread_us; "
              "PRAGMA user_version = 1;");
    return artifact;
}

static int see_nothing(void *user, const struct qn_manifest *row)
{
    (void)user;
    ck_abort_msg("a row of %s", row->model);
}

START_TEST(a_file_of_version_1_is_brought_up_to_date_and_keeps_its_rows)
{
    struct qn_artifact artifact = make_version_1();

    for (int i = 0; i < 2; i++) {
        struct qn_store *store = qt_open_store();
        qt_assert_found(store, &artifact);
        ck_assert_int_eq(qn_manifest_each(store, see_nothing, NULL), QN_STORE_OK);
        ck_assert_int_eq(qt_counters_of(store).errors, 0);
        qn_store_close(store);
    }
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(eight_processes_bring_one_file_up_to_date)
{
    struct qn_artifact artifact = make_version_1();
    struct qn_store *store;

    qt_run_processes(qt_open_and_put);
    store = qt_open_store();
    qt_assert_found(store, &artifact);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 3 + QT_PROCESSES);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

/* An older quern reads the header, not the -wal, and must not take this file for one of its own. */
START_TEST(the_header_tells_the_new_version_while_the_file_is_open)
{
    struct qn_artifact artifact = make_version_1();
    struct qn_store *store = qt_open_store();
    size_t size;

    char *bytes = qt_read_whole(qt_path, &size);
    ck_assert_uint_gt(size, 100);
    ck_assert_int_eq(bytes[63], QN_STORE_SCHEMA); /* user_version, its last byte */
    free(bytes);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_file_of_version_1_that_may_not_be_written_is_refused)
{
    struct qn_artifact artifact = make_version_1();

    ck_assert_int_eq(chmod(qt_path, 0400), 0);
    assert_refused(qt_path, "an older quern (schema=1; allowed: 2)");
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_file_that_others_may_write_is_refused)
{
    qn_store_close(qt_open_store());
    ck_assert_int_eq(chmod(qt_path, 0660), 0);
    assert_refused(qt_path, "mode=0660");
    ck_assert_int_eq(chmod(qt_path, 0602), 0);
    assert_refused(qt_path, "mode=0602");
    ck_assert_int_eq(chmod(qt_path, 0644), 0);
    qn_store_close(qt_open_store());
    qt_write_whole(qt_beside("-wal"), "", 0);
    ck_assert_int_eq(chmod(qt_beside("-wal"), 0666), 0);
    assert_refused(qt_path, "-wal has mode=0666");
}
END_TEST

START_TEST(another_users_file_is_refused)
{
    if (geteuid() != 0) {
        return; /* only root can give a file away */
    }
    qn_store_close(qt_open_store());
    ck_assert_int_eq(chown(qt_path, NOBODY, NOBODY), 0);
    assert_refused(qt_path, "belongs to uid=65534");
    ck_assert_int_eq(chown(qt_path, 0, 0), 0);
    qt_write_whole(qt_beside("-wal"), "", 0);
    ck_assert_int_eq(chown(qt_beside("-wal"), NOBODY, NOBODY), 0);
    assert_refused(qt_path, "-wal belongs to uid=65534");
}
END_TEST

static void become_nobody(void)
{
    if (geteuid() == 0) { /* root may read and write anything */
        ck_assert_int_eq(chown(qt_folder, NOBODY, NOBODY), 0);
        ck_assert_int_eq(setgid(NOBODY), 0);
        ck_assert_int_eq(setuid(NOBODY), 0);
    }
}

/* ---- The folder ---- */

START_TEST(a_folder_that_others_may_write_is_refused)
{
    static const mode_t modes[] = { 0777, 0707, 0702, 0757 };

    for (int has_file = 0; has_file <= 1; has_file++) {
        for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
            char words[80];
            ck_assert_int_eq(chmod(qt_folder, modes[i]), 0);
            snprintf(words, sizeof words, "mode=%04o", (unsigned)modes[i]);
            assert_refused(qt_path, words);
            snprintf(words, sizeof words, "chmod go-w %s", qt_folder);
            assert_refused(qt_path, words);
            ck_assert_int_eq(qt_exists(qt_path), has_file);
            ck_assert(!qt_exists(qt_beside(".lock")) || has_file);
        }
        ck_assert_int_eq(chmod(qt_folder, 0755), 0);
        qn_store_close(qt_open_store());
    }
}
END_TEST

START_TEST(only_the_users_own_group_may_write_the_folder)
{
    if (chown(qt_folder, (uid_t)-1, geteuid()) != 0)
        return; /* the user has no group of his own number */
    ck_assert_int_eq(chmod(qt_folder, 0775), 0);
    qn_store_close(qt_open_store());
    ck_assert_int_eq(chmod(qt_folder, 0777), 0);
    assert_refused(qt_path, "mode=0777");
    if (geteuid() != 0)
        return; /* only root can give the folder to any group */
    ck_assert_int_eq(chown(qt_folder, 0, NOBODY), 0);
    ck_assert_int_eq(chmod(qt_folder, 0775), 0);
    assert_refused(qt_path, "mode=0775");
    ck_assert_int_eq(chmod(qt_folder, 0755), 0);
    qn_store_close(qt_open_store());
}
END_TEST

START_TEST(another_users_folder_is_refused)
{
    static const mode_t modes[] = { 0700, 0777, 01777 };

    if (geteuid() != 0)
        return; /* only root can give a folder away */
    for (int has_file = 0; has_file <= 1; has_file++) {
        for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
            ck_assert_int_eq(chown(qt_folder, NOBODY, NOBODY), 0);
            ck_assert_int_eq(chmod(qt_folder, modes[i]), 0);
            assert_refused(qt_path, "belongs to uid=65534");
            ck_assert_int_eq(qt_exists(qt_path), has_file);
        }
        ck_assert_int_eq(chown(qt_folder, 0, 0), 0);
        ck_assert_int_eq(chmod(qt_folder, 0700), 0);
        qn_store_close(qt_open_store());
    }
}
END_TEST

static int put_as_nobody(int number)
{
    if (geteuid() == 0 && (setgid(NOBODY) || setuid(NOBODY)))
        return 8;
    return qt_open_and_put(number);
}

/* The user's own sticky folder, and root's, which is /tmp. */
START_TEST(a_folder_with_the_sticky_bit_serves)
{
    ck_assert_int_eq(chmod(qt_folder, 01777), 0);
    ck_assert_int_eq(qt_reap(qt_spawn(put_as_nobody, 1)), 0);
    if (geteuid() == 0)
        assert_refused(qt_path, "quern.db belongs to uid=65534");
    else
        qn_store_close(qt_open_store());
}
END_TEST

static int open_as_nobody(int is_refused)
{
    struct qn_store_options options = { .path = qt_path };
    struct qn_store *store = NULL;
    char error[512] = "";

    if (setgid(NOBODY) || setuid(NOBODY))
        return 8;
    int status = qn_store_open(&options, &store, error, sizeof error);
    if (is_refused)
        return status != QN_STORE_ERROR || !strstr(error, "-wal belongs to uid=0");
    int is_in_memory = !status && !qn_store_is_writable(store);
    qn_store_close(store);
    return !is_in_memory;
}

START_TEST(what_another_user_left_in_the_way_of_a_new_file_is_not_replayed)
{
    if (geteuid() != 0)
        return; /* it takes two users */
    ck_assert_int_eq(chmod(qt_folder, 01777), 0);
    qt_write_whole(qt_beside("-wal"), "", 0);
    ck_assert_int_eq(qt_reap(qt_spawn(open_as_nobody, 1)), 0);
    ck_assert_int_eq(unlink(qt_beside("-wal")), 0);
    qt_write_whole(qt_beside(".new-wal"), "", 0);
    ck_assert_int_eq(chmod(qt_beside(".new-wal"), 0666), 0);
    ck_assert_int_eq(qt_reap(qt_spawn(open_as_nobody, 0)), 0);
    ck_assert(!qt_exists(qt_path));
}
END_TEST

/* ---- Between the look and the open ---- */

static void assert_opens(const struct qn_place *place, enum qn_open_status wanted)
{
    struct qn_db *db = NULL;
    char error[512] = "";

    ck_assert_int_eq(qn_db_open(place, &db, error, sizeof error), wanted);
    ck_assert_int_eq(db != NULL, wanted == QN_OPEN_DONE);
    if (wanted == QN_OPEN_BUSY)
        ck_assert_msg(strstr(error, "was replaced while it was opened") != NULL, "%s", error);
    qn_db_close(db);
}

static void look(struct qn_place *place)
{
    char error[512] = "";

    ck_assert_msg(qn_place_look(place, error, sizeof error) == QN_PLACE_FOUND, "%s", error);
}

START_TEST(a_file_that_changes_between_the_look_and_the_open_is_not_opened)
{
    struct qn_place place;
    char error[512];

    qn_store_close(qt_open_store());
    ck_assert_int_eq(rename(qt_path, qt_beside(".other")), 0);
    qn_store_close(qt_open_store());
    ck_assert_int_eq(qn_place_init(&place, qt_path, error, sizeof error), QN_PLACE_EMPTY);
    look(&place);
    assert_opens(&place, QN_OPEN_DONE);
    ck_assert_int_eq(rename(qt_beside(".other"), qt_path), 0);
    assert_opens(&place, QN_OPEN_BUSY);
    look(&place);
    assert_opens(&place, QN_OPEN_DONE);
    ck_assert_int_eq(chmod(qt_path, 0606), 0);
    assert_opens(&place, QN_OPEN_BUSY);
    ck_assert_int_eq(chmod(qt_path, 0600), 0);
    place.device++;
    assert_opens(&place, QN_OPEN_BUSY);
    look(&place);
    if (geteuid() == 0) {
        ck_assert_int_eq(chown(qt_path, NOBODY, 0), 0); /* as of an inode used again */
        assert_opens(&place, QN_OPEN_BUSY);
    }
    qn_place_fini(&place);
}
END_TEST

/* A sound -wal with one more row, which reaches the file only if it is the user's. */
START_TEST(a_wal_put_there_between_the_look_and_the_open_is_not_taken)
{
    struct qn_artifact old = qt_make_store(1, 3000), new = qt_draw_artifact(3000);
    struct qn_place place;
    size_t size, size_after, wal_size;
    char error[512];

    char *bytes = qt_read_whole(qt_path, &size);
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_artifact_put(store, &new), QN_STORE_OK);
    char *wal = qt_read_whole(qt_beside("-wal"), &wal_size);
    qn_store_close(store);
    qt_write_whole(qt_path, bytes, size);
    ck_assert_int_eq(qn_place_init(&place, qt_path, error, sizeof error), QN_PLACE_EMPTY);
    look(&place);
    qt_write_whole(qt_beside("-wal"), wal, wal_size);
    ck_assert_int_eq(chmod(qt_beside("-wal"), 0622), 0);
    assert_opens(&place, QN_OPEN_BUSY);
    char *after = qt_read_whole(qt_path, &size_after);
    ck_assert_uint_eq(size, size_after);
    ck_assert_mem_eq(bytes, after, size);
    qt_write_whole(qt_beside("-wal"), wal, wal_size);
    store = qt_open_store();
    qt_assert_found(store, &old);
    qt_assert_found(store, &new);
    qn_store_close(store);
    qn_place_fini(&place);
    free(bytes);
    free(after);
    free(wal);
    qn_artifact_fini(&old);
    qn_artifact_fini(&new);
}
END_TEST

START_TEST(an_unreadable_file_is_refused)
{
    become_nobody();
    qn_store_close(qt_open_store());
    ck_assert_int_eq(chmod(qt_path, 0200), 0);
    assert_refused(qt_path, "cannot be read: Permission denied");
}
END_TEST

/* ---- Read-only ---- */

static void assert_reads_and_drops_writes(const struct qn_artifact *artifact)
{
    struct qt_log log = { 0 };
    struct qn_store *store = qt_open_logged(qt_path, &log);
    struct qn_artifact other = qt_draw_artifact(50);
    struct qn_lease *lease = NULL;

    ck_assert_int_eq(log.warnings, 1);
    ck_assert_msg(strstr(log.last, "read-only") != NULL, "%s", log.last);
    ck_assert_int_eq(qn_store_is_writable(store), 0);
    qt_assert_found(store, artifact);
    ck_assert_int_eq(qn_artifact_put(store, &other), QN_STORE_MISS);
    ck_assert_int_eq(qn_meta_put(store, "name", "value"), QN_STORE_MISS);
    ck_assert_int_eq(qn_store_sync(store), QN_STORE_MISS);
    ck_assert_int_eq(qn_lease_acquire(store, "name", 100, 100, &lease), QN_STORE_MISS);
    qt_assert_missed(store, &other);
    ck_assert_int_eq(qt_counters_of(store).errors, 3);
    qn_store_close(store);
    ck_assert_int_eq(log.warnings, 1);
    qn_artifact_fini(&other);
}

START_TEST(a_read_only_file_is_read_and_left_alone)
{
    struct qn_artifact artifact = qt_make_store(3, 5000);
    size_t size, size_after;

    ck_assert_int_eq(chmod(qt_path, 0400), 0);
    char *bytes = qt_read_whole(qt_path, &size);
    assert_reads_and_drops_writes(&artifact);
    char *after = qt_read_whole(qt_path, &size_after);
    ck_assert_uint_eq(size, size_after);
    ck_assert_mem_eq(bytes, after, size);
    ck_assert(!qt_exists(qt_beside("-wal")) && !qt_exists(qt_beside("-shm")));
    free(bytes);
    free(after);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_file_in_a_read_only_folder_is_read)
{
    become_nobody();
    struct qn_artifact artifact = qt_make_store(3, 5000);
    ck_assert_int_eq(chmod(qt_folder, 0500), 0);
    assert_reads_and_drops_writes(&artifact);
    qn_artifact_fini(&artifact);
}
END_TEST

static void copy(const char *from, const char *to)
{
    size_t size;
    char *bytes = qt_read_whole(from, &size);

    qt_write_whole(to, bytes, size);
    free(bytes);
}

START_TEST(a_read_only_copy_taken_while_open_is_read)
{
    static const char *const suffixes[] = { "", "-wal", "-shm" };

    become_nobody();
    for (int files = 2; files <= 3; files++) {
        struct qn_artifact old = qt_make_store(1, 3000), new = qt_draw_artifact(3000);
        struct qn_store *store = qt_open_store();
        ck_assert_int_eq(qn_artifact_put(store, &new), QN_STORE_OK); /* is in the -wal */
        char from[128], name[160];
        strcpy(from, qt_path);
        snprintf(name, sizeof name, "%s/copy-%d", qt_folder, files);
        ck_assert_int_eq(mkdir(name, 0700), 0);
        snprintf(qt_path, sizeof qt_path, "%s/copy-%d/quern.db", qt_folder, files);
        for (int i = 0; i < files; i++) {
            char source[160];
            snprintf(source, sizeof source, "%s%s", from, suffixes[i]);
            copy(source, qt_beside(suffixes[i]));
        }
        ck_assert_int_eq(chmod(name, 0500), 0);
        qn_store_close(store);
        assert_reads_and_drops_writes(&old);
        store = qt_open_store();
        if (files == 3) {
            qt_assert_found(store, &new);
        } else {
            qt_assert_missed(store, &new); /* the -wal cannot be read without a -shm */
        }
        qn_store_close(store);
        ck_assert_int_eq(chmod(name, 0700), 0);
        strcpy(qt_path, from);
        qn_artifact_fini(&old);
        qn_artifact_fini(&new);
    }
}
END_TEST

START_TEST(where_nothing_can_be_made_the_store_works_in_memory)
{
    char name[160];

    become_nobody();
    ck_assert_int_eq(chmod(qt_folder, 0500), 0);
    snprintf(name, sizeof name, "%s/sub/quern.db", qt_folder);
    for (int i = 0; i < 2; i++) {
        struct qt_log log = { 0 };
        struct qn_store *store = qt_open_logged(i ? name : qt_path, &log);
        struct qn_artifact artifact = qt_draw_artifact(50);
        ck_assert_int_eq(log.warnings, 1);
        ck_assert_ptr_nonnull(strstr(log.last, "in memory"));
        ck_assert_int_eq(qn_store_is_writable(store), 0);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        qt_assert_found(store, &artifact);
        qn_store_close(store);
        qn_artifact_fini(&artifact);
    }
    ck_assert(!qt_exists(qt_path));
}
END_TEST

/* ---- Many at once ---- */

START_TEST(eight_processes_start_cold_and_none_fails)
{
    for (int round = 0; round < 40; round++) {
        snprintf(qt_path, sizeof qt_path, "%s/%d/quern.db", qt_folder, round);
        qt_run_processes(qt_open_and_put);
        struct qn_store *store = qt_open_store();
        struct qn_store_counters counters = qt_counters_of(store);
        ck_assert_int_eq(counters.artifacts, QT_PROCESSES);
        ck_assert_int_eq(counters.compiles, QT_PROCESSES);
        ck_assert(!qt_exists(qt_beside(".new")));
        qn_store_close(store);
    }
}
END_TEST

static int open_and_put_often(int number)
{
    int status = 0;

    for (int i = 0; i < 25 && !status; i++) {
        status = qt_open_and_put(number);
    }
    return status;
}

START_TEST(opening_and_closing_in_eight_processes_loses_nothing)
{
    qt_run_processes(open_and_put_often);
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qt_counters_of(store).artifacts, QT_PROCESSES * 25);
    qn_store_close(store);
}
END_TEST

START_TEST(a_wal_left_by_a_deleted_store_is_not_replayed)
{
    struct qn_store *store = qt_open_store();
    struct qn_artifact artifact = qt_draw_artifact(3000);
    size_t wal_size;

    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    char *wal = qt_read_whole(qt_beside("-wal"), &wal_size);
    qn_store_close(store);
    ck_assert_int_eq(unlink(qt_path), 0);
    qt_write_whole(qt_beside("-wal"), wal, wal_size);
    store = qt_open_store();
    ck_assert_int_eq(qt_counters_of(store).artifacts, 0);
    qt_assert_missed(store, &artifact);
    qn_store_close(store);
    free(wal);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_warm_open_and_a_find_take_under_two_milliseconds)
{
    struct qn_artifact artifact = qt_make_store(200, 20000);
    double best_ms = 1e9;

    for (int i = 0; i < 50; i++) {
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        struct qn_store *store = qt_open_store();
        qt_assert_found(store, &artifact);
        clock_gettime(CLOCK_MONOTONIC, &end);
        qn_store_close(store);
        double ms = 1e3 * (double)(end.tv_sec - start.tv_sec) +
                    1e-6 * (double)(end.tv_nsec - start.tv_nsec);
        best_ms = ms < best_ms ? ms : best_ms;
    }
    printf("warm open and find: %.3f ms\n", best_ms);
    ck_assert_double_lt(best_ms, 2.0);
    qn_artifact_fini(&artifact);
}
END_TEST

static void add_opening(TCase *tcase)
{
    tcase_add_test(tcase, missing_folders_and_file_are_made_for_their_owner_only);
    tcase_add_test(tcase, a_relative_path_still_holds_after_a_change_of_directory);
    tcase_add_test(tcase, an_empty_file_becomes_a_store);
    tcase_add_test(tcase, a_folder_a_link_and_a_pipe_are_refused);
    tcase_add_test(tcase, a_file_below_a_file_is_refused);
    tcase_add_test(tcase, a_file_that_is_not_a_database_is_refused_and_kept);
    tcase_add_test(tcase, another_programs_database_is_refused_and_kept);
    tcase_add_test(tcase, a_newer_schema_is_refused_and_kept);
    tcase_add_test(tcase, a_file_of_version_1_is_brought_up_to_date_and_keeps_its_rows);
    tcase_add_test(tcase, eight_processes_bring_one_file_up_to_date);
    tcase_add_test(tcase, the_header_tells_the_new_version_while_the_file_is_open);
    tcase_add_test(tcase, a_file_of_version_1_that_may_not_be_written_is_refused);
    tcase_add_test(tcase, a_file_that_others_may_write_is_refused);
    tcase_add_test(tcase, another_users_file_is_refused);
    tcase_add_test(tcase, a_folder_that_others_may_write_is_refused);
    tcase_add_test(tcase, only_the_users_own_group_may_write_the_folder);
    tcase_add_test(tcase, another_users_folder_is_refused);
    tcase_add_test(tcase, a_folder_with_the_sticky_bit_serves);
    tcase_add_test(tcase, what_another_user_left_in_the_way_of_a_new_file_is_not_replayed);
    tcase_add_test(tcase, a_file_that_changes_between_the_look_and_the_open_is_not_opened);
    tcase_add_test(tcase, a_wal_put_there_between_the_look_and_the_open_is_not_taken);
    tcase_add_test(tcase, an_unreadable_file_is_refused);
    tcase_add_test(tcase, a_read_only_file_is_read_and_left_alone);
    tcase_add_test(tcase, a_file_in_a_read_only_folder_is_read);
    tcase_add_test(tcase, a_read_only_copy_taken_while_open_is_read);
    tcase_add_test(tcase, where_nothing_can_be_made_the_store_works_in_memory);
    tcase_add_test(tcase, eight_processes_start_cold_and_none_fails);
    tcase_add_test(tcase, opening_and_closing_in_eight_processes_loses_nothing);
    tcase_add_test(tcase, a_wal_left_by_a_deleted_store_is_not_replayed);
    tcase_add_test(tcase, a_warm_open_and_a_find_take_under_two_milliseconds);
}

int main(void)
{
    static const struct qt_group groups[] = { { "opening", add_opening } };

    return qt_run_suite("store_open", groups, 1);
}
