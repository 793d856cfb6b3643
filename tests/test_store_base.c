/* Bases: files that are only read, looked at after the store, in their order. */
#include "tests/store_fixture.h"

#include "cache/db.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOBODY 65534

/* ---- Two bases, closed, and a store over them ---- */

static char base_a[160], base_b[160];

/* A closed store of one artifact and one tuned row. */
static void make_base(const char *name, const struct qn_artifact *artifact,
                      const struct qn_tuned *tuned)
{
    struct qn_store *store = qt_open_logged(name, NULL);

    ck_assert_int_eq(qn_artifact_put(store, artifact), QN_STORE_OK);
    if (tuned)
        ck_assert_int_eq(qn_tuned_put(store, tuned, NULL), QN_STORE_OK);
    qn_store_close(store);
}

static void name_bases(void)
{
    snprintf(base_a, sizeof base_a, "%s/a.qdb", qt_folder);
    snprintf(base_b, sizeof base_b, "%s/b.qdb", qt_folder);
}

static void count_warning(void *user, int level, const char *line)
{
    struct qt_log *log = user;

    if (level == 1) {
        log->warnings++;
        snprintf(log->last, sizeof log->last, "%s", line);
    }
}

static int open_over(const char *path, const char *base, struct qt_log *log,
                     struct qn_store **store, char error[512])
{
    const struct qn_store_options options = {
        .path = path, .base = base, .log = log ? count_warning : NULL, .user = log
    };

    *error = 0;
    return qn_store_open(&options, store, error, 512);
}

static struct qn_store *open_over_bases(const char *path, struct qt_log *log)
{
    char list[400], error[512];
    struct qn_store *store = NULL;

    snprintf(list, sizeof list, "%s:%s", base_a, base_b);
    ck_assert_msg(!open_over(path, list, log, &store, error), "%s", error);
    return store;
}

/* What a file is from outside: its bytes and times, and that nothing lies beside it. */
struct picture {
    char *bytes;
    size_t size;
    struct stat st;
};

static struct picture picture_of(const char *name)
{
    struct picture picture;

    picture.bytes = qt_read_whole(name, &picture.size);
    ck_assert_int_eq(stat(name, &picture.st), 0);
    return picture;
}

static void assert_unchanged(const char *name, struct picture *before)
{
    static const char *const suffixes[] = { "-wal", "-shm", "-journal", ".lock", ".damaged-1" };
    struct picture now = picture_of(name);
    char beside[200];

    ck_assert_uint_eq(now.size, before->size);
    ck_assert_mem_eq(now.bytes, before->bytes, now.size);
    ck_assert_int_eq(now.st.st_mtim.tv_sec, before->st.st_mtim.tv_sec);
    ck_assert_int_eq(now.st.st_mtim.tv_nsec, before->st.st_mtim.tv_nsec);
    ck_assert_uint_eq(now.st.st_ino, before->st.st_ino);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        snprintf(beside, sizeof beside, "%s%s", name, suffixes[i]);
        ck_assert_msg(!qt_exists(beside), "%s", beside);
    }
    free(now.bytes);
    free(before->bytes);
}

static void remove_lock(const char *name)
{
    char lock[200];

    snprintf(lock, sizeof lock, "%s.lock", name);
    unlink(lock);
}

/* ---- Reading ---- */

START_TEST(rows_are_found_in_every_base_and_nothing_is_written_to_one)
{
    name_bases();
    struct qn_artifact a = qt_draw_artifact(3000), b = qt_draw_artifact(3000);
    struct qn_artifact own = qt_draw_artifact(100);
    struct qn_tuned tuned = qt_draw_tuned(), found = { 0 };
    tuned.generation = 0;
    make_base(base_a, &a, NULL);
    make_base(base_b, &b, &tuned);
    remove_lock(base_a);
    remove_lock(base_b);
    struct picture before_a = picture_of(base_a), before_b = picture_of(base_b);

    struct qn_store *store = open_over_bases(qt_path, NULL);
    ck_assert_int_eq(qn_artifact_put(store, &own), QN_STORE_OK);
    qt_assert_found(store, &a);
    qt_assert_found(store, &b);
    qt_assert_found(store, &own);
    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_OK);
    ck_assert_str_eq(found.config, tuned.config);
    struct qn_store_counters counters = qt_counters_of(store);
    ck_assert_int_eq(counters.hits, 3);
    ck_assert_int_eq(counters.misses, 0);
    ck_assert_int_eq(counters.errors, 0);
    ck_assert_int_eq(counters.artifacts, 1);
    ck_assert_str_eq(qn_store_path(qn_store_base(store)), base_a);
    ck_assert_str_eq(qn_store_path(qn_store_base(qn_store_base(store))), base_b);
    qn_store_close(store);
    assert_unchanged(base_a, &before_a);
    assert_unchanged(base_b, &before_b);
    qn_tuned_fini(&found);
    qn_tuned_fini(&tuned);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
    qn_artifact_fini(&own);
}
END_TEST

static int count_row(void *user, const struct qn_tuned *tuned)
{
    int *count = user;

    (void)tuned;
    (*count)++;
    return 0;
}

START_TEST(the_store_comes_before_its_bases_and_a_new_tuning_is_newer_than_theirs)
{
    name_bases();
    struct qn_artifact artifact = qt_draw_artifact(10);
    struct qn_tuned tuned = qt_draw_tuned(), found = { 0 };
    int rows = 0;
    tuned.generation = 3;
    free(tuned.config);
    tuned.config = strdup("from=a");
    make_base(base_a, &artifact, &tuned);
    tuned.generation = 7;
    strcpy(tuned.config, "from=b");
    make_base(base_b, &artifact, &tuned);

    struct qn_store *store = open_over_bases(qt_path, NULL);
    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_OK);
    ck_assert_str_eq(found.config, "from=a");
    qn_tuned_fini(&found);
    strcpy(tuned.config, "from=o");
    tuned.generation = 0;
    ck_assert_int_eq(qn_tuned_put(store, &tuned, &found), QN_STORE_OK);
    ck_assert_int_eq(found.generation, 8);
    qn_tuned_fini(&found);
    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_OK);
    ck_assert_str_eq(found.config, "from=o");
    ck_assert_int_eq(qn_tuned_each(store, tuned.group, count_row, &rows), QN_STORE_OK);
    ck_assert_int_eq(rows, 1);
    qn_store_close(store);
    qn_tuned_fini(&found);
    qn_tuned_fini(&tuned);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_store_in_memory_over_bases_in_a_read_only_folder_finds_their_rows)
{
    name_bases();
    struct qn_artifact a = qt_draw_artifact(500), b = qt_draw_artifact(500);
    make_base(base_a, &a, NULL);
    make_base(base_b, &b, NULL);
    remove_lock(base_a);
    ck_assert_int_eq(chmod(base_a, 0444), 0);
    ck_assert_int_eq(chmod(qt_folder, 0555), 0);
    if (geteuid() == 0) /* root's files, and a user who may not write them */
        ck_assert_int_eq(chmod(base_b, 0644) || chown(qt_folder, 0, 0) || seteuid(NOBODY), 0);
    struct qn_store *store = open_over_bases("", NULL);
    qt_assert_found(store, &a);
    qt_assert_found(store, &b);
    qn_store_close(store);
    ck_assert_int_eq(seteuid(getuid()), 0);
    ck_assert_int_eq(chmod(qt_folder, 0700), 0);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
}
END_TEST

/* ---- Damage ---- */

START_TEST(a_damaged_row_of_a_base_is_passed_over_and_said_once)
{
    name_bases();
    struct qn_artifact a = qt_draw_artifact(500), b = qt_draw_artifact(500);
    struct qt_log log = { 0 };
    make_base(base_a, &a, NULL);
    make_base(base_b, &b, NULL);
    qt_change_file(base_a, "UPDATE artifact SET blob = zeroblob(length(blob))");
    qt_change_file(base_b, "UPDATE artifact SET blob = zeroblob(length(blob))");
    remove_lock(base_a);
    struct picture before = picture_of(base_a);

    struct qn_store *store = open_over_bases(qt_path, &log);
    for (int i = 0; i < 3; i++)
        qt_assert_missed(store, &a);
    ck_assert_int_eq(log.warnings, 1);
    ck_assert_msg(!strncmp(log.last, "base=", 5) && strstr(log.last, base_a), "%s", log.last);
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    ck_assert_int_eq(qn_artifact_put(store, &a), QN_STORE_OK);
    qt_assert_found(store, &a);
    qt_assert_missed(store, &b);
    qn_store_close(store);
    assert_unchanged(base_a, &before);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
}
END_TEST

START_TEST(a_row_of_a_base_that_does_not_load_is_not_found_again)
{
    name_bases();
    struct qn_artifact a = qt_draw_artifact(500), b = qt_draw_artifact(500);
    make_base(base_a, &a, NULL);
    make_base(base_b, &b, NULL);
    struct qn_store *store = open_over_bases(qt_path, NULL);
    ck_assert_int_eq(qn_artifact_drop(store, &a), QN_STORE_OK);
    qt_assert_missed(store, &a);
    qt_assert_found(store, &b);
    ck_assert_int_eq(qn_artifact_put(store, &a), QN_STORE_OK);
    qt_assert_found(store, &a);
    qn_store_close(store);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
}
END_TEST

/* ---- Another compiler's rows ---- */

/* A copy of `artifact` that another compiler made of the same source. */
static struct qn_artifact made_by(const struct qn_artifact *artifact, const char *compiler)
{
    struct qn_artifact made = qt_draw_artifact(300);

    free(made.text);
    free(made.compiler);
    made.text = strdup(artifact->text);
    made.compiler = strdup(compiler);
    return made;
}

static int accept_never(void *user, const struct qn_artifact *artifact)
{
    (void)artifact;
    ++*(int *)user;
    return 0;
}

static void assert_made_by(struct qn_store *store, const char *text, const char *wanted,
                           const char *compiler)
{
    struct qn_artifact found = { 0 };

    ck_assert_int_eq(qn_artifact_find(store, text, wanted, NULL, NULL, &found), QN_STORE_OK);
    ck_assert_str_eq(found.compiler, compiler);
    qn_artifact_fini(&found);
}

START_TEST(a_bases_row_serves_whatever_compiled_it_and_the_stores_own_only_its_compiler)
{
    name_bases();
    struct qn_artifact old = qt_draw_artifact(300), new = made_by(&old, "new");
    struct qn_artifact mine = made_by(&old, "mine"), found;
    int asked = 0;
    make_base(base_a, &old, NULL);
    make_base(base_b, &new, NULL);

    struct qn_store *alone = qt_open_store();
    ck_assert_int_eq(qn_artifact_put(alone, &mine), QN_STORE_OK);
    qt_assert_missed(alone, &new);
    qn_store_close(alone);

    struct qn_store *store = open_over_bases(qt_path, NULL);
    assert_made_by(store, old.text, "mine", "mine");
    assert_made_by(store, old.text, "new", "new");
    assert_made_by(store, old.text, "newest", old.compiler); /* of base_a, which comes first */
    assert_made_by(store, old.text, NULL, "mine");
    ck_assert_int_eq(qn_artifact_find(store, old.text, "newest", accept_never, &asked, &found),
                     QN_STORE_MISS);
    ck_assert_int_eq(asked, 2);
    struct qn_store_counters counters = qt_counters_of(store);
    ck_assert_int_eq(counters.hits, 4);
    ck_assert_int_eq(counters.misses, 2);
    qn_store_close(store);
    qn_artifact_fini(&old);
    qn_artifact_fini(&new);
    qn_artifact_fini(&mine);
}
END_TEST

/* ---- Refusals ---- */

static void assert_base_refused(const char *base, const char *words)
{
    struct qn_store *store = NULL;
    char error[512], start[200];

    ck_assert_int_eq(open_over("", base, NULL, &store, error), QN_STORE_ERROR);
    snprintf(start, sizeof start, "base=%s: ", base);
    ck_assert_msg(!strncmp(error, start, strlen(start)), "%s", error);
    ck_assert_msg(strstr(error, words) != NULL, "\"%s\" does not say \"%s\"", error, words);
}

START_TEST(a_base_that_cannot_be_one_is_an_error_that_names_it)
{
    struct qn_store *store = NULL;
    char error[512], name[160];

    name_bases();
    struct qn_artifact artifact = qt_draw_artifact(10);
    assert_base_refused(base_a, "is not there");
    snprintf(name, sizeof name, "%s/no/b.qdb", qt_folder);
    assert_base_refused(name, "folder");
    snprintf(name, sizeof name, "%s/no", qt_folder);
    ck_assert(!qt_exists(name));
    qt_write_whole(base_a, "", 0);
    assert_base_refused(base_a, "has no bytes");
    qt_write_whole(base_a, "{}", 2);
    assert_base_refused(base_a, "not an SQLite file");
    make_base(base_b, &artifact, NULL);
    qt_change_file(base_b, "PRAGMA user_version = 99");
    assert_base_refused(base_b, "schema=99; allowed: 2");
    qt_change_file(base_b, "PRAGMA user_version = 1");
    assert_base_refused(base_b, "schema=1; allowed: 2");
    qt_change_file(base_b, "PRAGMA user_version = 2");
    ck_assert_int_eq(chmod(base_b, 0666), 0);
    assert_base_refused(base_b, "mode=0666");
    ck_assert_int_eq(chmod(base_b, 0600), 0);
    ck_assert_int_eq(open_over(base_b, base_b, NULL, &store, error), QN_STORE_ERROR);
    ck_assert_msg(strstr(error, "is the cache itself") != NULL, "%s", error);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_base_that_is_being_written_is_refused)
{
    name_bases();
    struct qn_artifact artifact = qt_draw_artifact(10);
    struct qn_store *writer = qt_open_logged(base_a, NULL);
    ck_assert_int_eq(qn_artifact_put(writer, &artifact), QN_STORE_OK);
    assert_base_refused(base_a, "is being written");
    qn_store_close(writer);
    struct qn_store *store = NULL;
    char error[512];
    ck_assert_int_eq(open_over("", base_a, NULL, &store, error), QN_STORE_OK);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(another_users_base_is_refused)
{
    name_bases();
    struct qn_artifact artifact = qt_draw_artifact(10);
    make_base(base_a, &artifact, NULL);
    if (geteuid() == 0) {
        ck_assert_int_eq(chown(base_a, NOBODY, NOBODY), 0);
        assert_base_refused(base_a, "belongs to uid=65534");
    }
    qn_artifact_fini(&artifact);
}
END_TEST

START_TEST(a_base_may_be_written_by_the_users_private_group_and_no_other)
{
    struct qn_store *store = NULL;
    char error[512];

    name_bases();
    struct qn_artifact artifact = qt_draw_artifact(10);
    make_base(base_a, &artifact, NULL);
    ck_assert_int_eq(chmod(base_a, 0664), 0);
    if (chown(base_a, (uid_t)-1, (gid_t)geteuid()) == 0) {
        ck_assert_msg(open_over("", base_a, NULL, &store, error) == QN_STORE_OK, "%s", error);
        qn_store_close(store);
    }
    if (geteuid() == 0) {
        ck_assert_int_eq(chown(base_a, 0, NOBODY), 0);
        assert_base_refused(base_a, "mode=0664");
    }
    qn_artifact_fini(&artifact);
}
END_TEST

/* ---- Merging ---- */

START_TEST(a_merge_takes_sound_artifacts_and_the_better_tuned_row)
{
    static const struct qn_selection all = { NULL, NULL, NULL };
    struct qn_merged merged;
    name_bases();
    struct qn_artifact a = qt_draw_artifact(500), b = qt_draw_artifact(500);
    struct qn_tuned tuned = qt_draw_tuned(), found = { 0 };
    tuned.generation = 2;
    tuned.samples = 10;
    free(tuned.config);
    tuned.config = strdup("from=a");
    make_base(base_a, &a, &tuned);
    struct qn_store *from = qt_open_logged(base_a, NULL);
    ck_assert_int_eq(qn_artifact_put(from, &b), QN_STORE_OK);
    qn_store_close(from);

    struct qn_store *to = qt_open_store();
    from = qt_open_logged(base_a, NULL);
    ck_assert_int_eq(qn_store_merge(to, from, &all, &merged), QN_STORE_OK);
    ck_assert_int_eq(merged.artifacts, 2);
    ck_assert_int_eq(merged.tuned, 1);
    ck_assert_int_eq(qn_store_merge(to, from, &all, &merged), QN_STORE_OK);
    ck_assert_int_eq(merged.artifacts, 0);
    ck_assert_int_eq(merged.artifacts_there, 2);
    ck_assert_int_eq(merged.tuned_there, 1);
    qn_store_close(from);
    qt_assert_found(to, &a);
    qt_assert_found(to, &b);
    ck_assert_int_eq(qt_counters_of(to).compiles, 0);

    static const struct {
        int64_t generation, samples;
        int is_taken;
    } offers[] = {
        { 1, 99, 0 }, { 2, 9, 0 }, { 2, 10, 0 }, { 2, 11, 1 }, { 3, 1, 1 }, { 2, 50, 0 }
    };
    ck_assert_int_eq(qn_tuned_find(to, tuned.text, &found), QN_STORE_OK);
    for (size_t i = 0; i < sizeof offers / sizeof *offers; i++) {
        int is_taken = -1;
        found.generation = offers[i].generation;
        found.samples = offers[i].samples;
        ck_assert_int_eq(qn_tuned_merge(to, &found, &is_taken), QN_STORE_OK);
        ck_assert_msg(is_taken == offers[i].is_taken, "offer %zu", i);
    }
    qn_tuned_fini(&found);
    ck_assert_int_eq(qn_tuned_find(to, tuned.text, &found), QN_STORE_OK);
    ck_assert_int_eq(found.generation, 3);
    qn_store_close(to);
    qn_tuned_fini(&found);
    qn_tuned_fini(&tuned);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
}
END_TEST

START_TEST(a_merge_leaves_damaged_artifacts_and_takes_what_is_selected)
{
    struct qn_merged merged;
    name_bases();
    struct qn_artifact a = qt_draw_artifact(500), b = qt_draw_artifact(500);
    make_base(base_a, &a, NULL);
    qt_change_file(base_a, "UPDATE artifact SET blob = zeroblob(length(blob))");
    struct qn_store *from = qt_open_logged(base_a, NULL), *to = qt_open_store();
    ck_assert_int_eq(qn_artifact_put(from, &b), QN_STORE_OK);
    struct qn_manifest row = { .target = b.target, .model = "m", .rank = "tp=1", .spec = "s" };
    qn_key_hex(b.text, strlen(b.text), row.key);
    ck_assert_int_eq(qn_manifest_put(from, &row), QN_STORE_OK);

    const struct qn_selection none = { .model = "other" }, model = { .model = "m" };
    ck_assert_int_eq(qn_store_merge(to, from, &none, &merged), QN_STORE_OK);
    ck_assert_int_eq(merged.artifacts + merged.manifest, 0);
    ck_assert_int_eq(qn_store_merge(to, from, &model, &merged), QN_STORE_OK);
    ck_assert_int_eq(merged.artifacts, 1);
    ck_assert_int_eq(merged.manifest, 1);
    ck_assert_int_eq(merged.damaged, 1);
    qt_assert_found(to, &b);
    qt_assert_missed(to, &a);
    qn_store_close(from);
    qn_store_close(to);
    qn_artifact_fini(&a);
    qn_artifact_fini(&b);
}
END_TEST

/* One host's tuning of one bucket, of those that rows[] are of. */
struct tuning {
    int bucket; /* of rows[]; the device profile is part of its text */
    int64_t generation, samples;
    const char *config;
};

static void tune_on(const char *host, const struct qn_tuned rows[], const struct tuning *tunings,
                    int count)
{
    struct qn_store *store = qt_open_logged(host, NULL);

    for (int i = 0; i < count; i++) {
        struct qn_tuned row = rows[tunings[i].bucket];
        row.generation = tunings[i].generation;
        row.samples = tunings[i].samples;
        row.config = (char *)tunings[i].config;
        ck_assert_int_eq(qn_tuned_put(store, &row, NULL), QN_STORE_OK);
    }
    qn_store_close(store);
}

START_TEST(bundles_of_two_hosts_give_the_same_winners_in_either_order)
{
    static const struct qn_selection all = { NULL, NULL, NULL };
    static const struct tuning on_a[] = { { 0, 1, 10, "a" },
                                          { 1, 1, 30, "old" },
                                          { 1, 2, 5, "a" },
                                          { 2, 1, 7, "a" } },
                               on_b[] = { { 0, 1, 20, "b" }, { 1, 1, 90, "b" }, { 3, 1, 7, "b" } };
    static const char *const winners[] = { "b", "a", "a", "b" };
    struct qn_tuned rows[4], found;
    struct qn_merged merged;

    name_bases();
    for (int i = 0; i < 4; i++)
        rows[i] = qt_draw_tuned();
    free(rows[3].text); /* 2 and 3: one bucket on devices of two profiles */
    free(rows[2].text);
    rows[2].text = strdup("family=f\nm=1\nprofile=x\n");
    rows[3].text = strdup("family=f\nm=1\nprofile=y\n");
    tune_on(base_a, rows, on_a, 4);
    tune_on(base_b, rows, on_b, 3);
    for (int order = 0; order < 2; order++) {
        char name[160];
        snprintf(name, sizeof name, "%s/merged%d.qdb", qt_folder, order);
        struct qn_store *to = qt_open_logged(name, NULL);
        for (int i = 0; i < 2; i++) {
            struct qn_store *from = qt_open_logged(i == order ? base_a : base_b, NULL);
            ck_assert_int_eq(qn_store_merge(to, from, &all, &merged), QN_STORE_OK);
            qn_store_close(from);
        }
        for (int i = 0; i < 4; i++) {
            ck_assert_int_eq(qn_tuned_find(to, rows[i].text, &found), QN_STORE_OK);
            ck_assert_str_eq(found.config, winners[i]);
            ck_assert_double_eq(found.heuristic_us, rows[i].heuristic_us);
            qn_tuned_fini(&found);
        }
        qn_store_close(to);
    }
    for (int i = 0; i < 4; i++)
        qn_tuned_fini(&rows[i]);
}
END_TEST

static void add(TCase *tcase)
{
    tcase_add_test(tcase, rows_are_found_in_every_base_and_nothing_is_written_to_one);
    tcase_add_test(tcase, the_store_comes_before_its_bases_and_a_new_tuning_is_newer_than_theirs);
    tcase_add_test(tcase, a_store_in_memory_over_bases_in_a_read_only_folder_finds_their_rows);
    tcase_add_test(tcase, a_damaged_row_of_a_base_is_passed_over_and_said_once);
    tcase_add_test(tcase, a_row_of_a_base_that_does_not_load_is_not_found_again);
    tcase_add_test(tcase,
                   a_bases_row_serves_whatever_compiled_it_and_the_stores_own_only_its_compiler);
    tcase_add_test(tcase, a_base_that_cannot_be_one_is_an_error_that_names_it);
    tcase_add_test(tcase, a_base_that_is_being_written_is_refused);
    tcase_add_test(tcase, another_users_base_is_refused);
    tcase_add_test(tcase, a_base_may_be_written_by_the_users_private_group_and_no_other);
    tcase_add_test(tcase, a_merge_takes_sound_artifacts_and_the_better_tuned_row);
    tcase_add_test(tcase, bundles_of_two_hosts_give_the_same_winners_in_either_order);
    tcase_add_test(tcase, a_merge_leaves_damaged_artifacts_and_takes_what_is_selected);
}

int main(void)
{
    static const struct qt_group groups[] = { { "base", add } };

    return qt_run_suite("store_base", groups, sizeof groups / sizeof *groups);
}
