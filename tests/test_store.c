/* The store's rows: what is put is found again, whole, by every process and every thread. */
#include "tests/store_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

START_TEST(the_key_is_xxh3_128_in_hexadecimal)
{
    char key[QN_KEY_HEX];

    qn_key_hex("", 0, key);
    ck_assert_str_eq(key, "99aa06d3014798d86001c324468d497f");
}
END_TEST

START_TEST(an_artifact_comes_back_whole_in_another_process_too)
{
    static const size_t sizes[] = { 0, 1, 4095, 300000 };

    for (int i = 0; i < 4; i++) {
        struct qn_artifact artifact = qt_draw_artifact(sizes[i]), found;
        char key[QN_KEY_HEX];
        struct qn_store *store = qt_open_store();
        time_t before = time(NULL);
        qt_assert_missed(store, &artifact);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
        qt_assert_found(store, &artifact);
        qn_store_close(store);
        pid_t pid = fork();
        if (!pid) {
            store = qt_open_store();
            qt_assert_found(store, &artifact);
            qn_store_close(store);
            _exit(0);
        }
        ck_assert_int_eq(qt_reap(pid), 0);
        store = qt_open_store();
        ck_assert_int_eq(
            qn_artifact_find(store, artifact.text, artifact.compiler, NULL, NULL, &found),
            QN_STORE_OK);
        qn_key_hex(artifact.text, strlen(artifact.text), key);
        ck_assert_str_eq(found.key, key);
        ck_assert_int_eq(found.hits, 2);
        ck_assert_int_ge(found.created, before);
        ck_assert_int_ge(found.last_use, found.created);
        qn_artifact_fini(&found);
        qn_store_close(store);
        qn_artifact_fini(&artifact);
    }
}
END_TEST

START_TEST(absent_texts_come_back_empty)
{
    struct qn_store *store = qt_open_store();
    struct qn_artifact artifact = { .text = qt_draw_text("only") }, found;

    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    ck_assert_int_eq(qn_artifact_find(store, artifact.text, "", NULL, NULL, &found), QN_STORE_OK);
    ck_assert_str_eq(found.source, "");
    ck_assert_str_eq(found.report, "");
    ck_assert_uint_eq(found.blob_bytes, 0);
    qn_artifact_fini(&found);
    qn_artifact_fini(&artifact);
    qn_store_close(store);
}
END_TEST

struct acceptance {
    struct qn_store *store;
    const char *wanted; /* compiler; NULL: none */
    char asked[4][80];  /* compilers */
    int count;
};

/* Calls the store, as a caller may. */
static int accept_wanted(void *user, const struct qn_artifact *artifact)
{
    struct acceptance *acceptance = user;
    char *asked = acceptance->asked[acceptance->count++];

    ck_assert_int_lt(acceptance->count, 4);
    snprintf(asked, sizeof acceptance->asked[0], "%s", artifact->compiler);
    qt_assert_found(acceptance->store, artifact);
    return acceptance->wanted && !strcmp(artifact->compiler, acceptance->wanted);
}

/* Rows 0, 1, 2 have one text. Row `wanted` is accepted after the newer ones were asked about. */
static void assert_accepted(struct qn_store *store, const struct qn_artifact *rows, int wanted)
{
    struct acceptance acceptance = { .store = store };
    struct qn_artifact found;

    acceptance.wanted = wanted < 0 ? NULL : rows[wanted].compiler;
    int status = qn_artifact_find(store, rows[0].text, NULL, accept_wanted, &acceptance, &found);
    ck_assert_int_eq(status, wanted < 0 ? QN_STORE_MISS : QN_STORE_OK);
    ck_assert_int_eq(acceptance.count, wanted < 0 ? 3 : 3 - wanted);
    for (int i = 0; i < acceptance.count; i++) {
        ck_assert_str_eq(acceptance.asked[i], rows[2 - i].compiler);
    }
    if (!status) {
        qt_assert_same_artifact(&rows[wanted], &found);
        qn_artifact_fini(&found);
    }
}

START_TEST(without_a_compiler_the_newest_accepted_row_is_found)
{
    const char *where[] = { qt_path, "" };

    for (int w = 0; w < 2; w++) {
        struct qn_store *store = qt_open_logged(where[w], NULL);
        struct qn_artifact rows[3], found;
        for (int i = 0; i < 3; i++) {
            rows[i] = qt_draw_artifact(100);
            free(rows[i].text);
            rows[i].text = strdup("name=value\n");
            ck_assert_int_eq(qn_artifact_put(store, &rows[i]), QN_STORE_OK);
        }
        ck_assert_int_eq(qn_artifact_find(store, rows[0].text, NULL, NULL, NULL, &found),
                         QN_STORE_OK);
        qt_assert_same_artifact(&rows[2], &found);
        qn_artifact_fini(&found);
        for (int wanted = 2; wanted >= -1; wanted--) {
            assert_accepted(store, rows, wanted);
        }
        for (int i = 0; i < 3; i++) {
            qn_artifact_fini(&rows[i]);
        }
        qn_store_close(store);
    }
}
END_TEST

START_TEST(a_second_put_replaces_the_first)
{
    struct qn_store *store = qt_open_store();
    struct qn_artifact artifact = qt_draw_artifact(1000), other = qt_draw_artifact(2000);

    free(other.text);
    free(other.compiler);
    other.text = strdup(artifact.text);
    other.compiler = strdup(artifact.compiler);
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    ck_assert_int_eq(qn_artifact_put(store, &other), QN_STORE_OK);
    qt_assert_found(store, &other);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 1);
    ck_assert_int_eq(qt_counters_of(store).compiles, 2);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
    qn_artifact_fini(&other);
}
END_TEST

START_TEST(finds_count_hits_and_misses_and_write_nothing_until_asked)
{
    struct qn_artifact artifact = qt_make_store(1, 1000), other = qt_draw_artifact(10);
    struct qn_store *store = qt_open_store();
    int hits = 1 + (int)(qt_draw() % 500), misses = 1 + (int)(qt_draw() % 50);
    struct stat st;

    for (int i = 0; i < hits; i++) {
        qt_assert_found(store, &artifact);
    }
    for (int i = 0; i < misses; i++) {
        qt_assert_missed(store, &other);
    }
    ck_assert(stat(qt_beside("-wal"), &st) || st.st_size == 0);
    struct qn_store_counters counters = qt_counters_of(store);
    ck_assert_int_eq(counters.hits, hits);
    ck_assert_int_eq(counters.misses, misses);
    qt_assert_found(store, &artifact);
    qn_store_close(store);
    store = qt_open_store();
    ck_assert_int_eq(qt_counters_of(store).hits, hits + 1);
    ck_assert_int_eq(qt_counters_of(store).misses, misses);
    ck_assert_int_eq(qt_counters_of(store).compiles, 1);
    ck_assert_int_gt(qt_counters_of(store).bytes, 1000);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
    qn_artifact_fini(&other);
}
END_TEST

static struct qn_artifact shared_artifact;

static int find_often(int number)
{
    struct qn_store *store = qt_open_store();

    for (int i = 0; i <= number; i++) {
        qt_assert_found(store, &shared_artifact);
    }
    qn_store_close(store);
    return 0;
}

START_TEST(the_hits_of_all_processes_add_up)
{
    struct qn_artifact found;

    shared_artifact = qt_make_store(1, 1000);
    qt_run_processes(find_often);
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qt_counters_of(store).hits, QT_PROCESSES * (QT_PROCESSES + 1) / 2);
    ck_assert_int_eq(qn_artifact_find(store, shared_artifact.text, NULL, NULL, NULL, &found),
                     QN_STORE_OK);
    ck_assert_int_eq(found.hits, QT_PROCESSES * (QT_PROCESSES + 1) / 2);
    qn_artifact_fini(&found);
    qn_store_close(store);
    qn_artifact_fini(&shared_artifact);
}
END_TEST

struct walk {
    struct qn_store *store;
    int count, end_after;
    char key[QN_KEY_HEX];
};

static int visit_artifact(void *user, const struct qn_artifact *artifact)
{
    struct walk *walk = user;

    ck_assert_ptr_null(artifact->blob);
    ck_assert_uint_eq(artifact->blob_bytes, 321);
    ck_assert_int_eq(qn_meta_put(walk->store, "seen", artifact->key), QN_STORE_OK);
    snprintf(walk->key, sizeof walk->key, "%s", artifact->key);
    return ++walk->count == walk->end_after;
}

START_TEST(a_listing_shows_the_rows_of_a_prefix_and_ends_when_told)
{
    const char *where[] = { qt_path, "" };

    for (int w = 0; w < 2; w++) {
        struct qn_store *store = qt_open_logged(where[w], NULL);
        struct walk walk = { .store = store };
        for (int i = 0; i < 7; i++) {
            struct qn_artifact artifact = qt_draw_artifact(321);
            ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
            qn_artifact_fini(&artifact);
        }
        ck_assert_int_eq(qn_artifact_each(store, "", visit_artifact, &walk), QN_STORE_OK);
        ck_assert_int_eq(walk.count, 7);
        struct walk one = { .store = store };
        walk.key[12] = 0;
        ck_assert_int_eq(qn_artifact_each(store, walk.key, visit_artifact, &one), QN_STORE_OK);
        ck_assert_int_eq(one.count, 1);
        struct walk none = { .store = store };
        ck_assert_int_eq(qn_artifact_each(store, "%", visit_artifact, &none), QN_STORE_OK);
        ck_assert_int_eq(none.count, 0);
        struct walk three = { .store = store, .end_after = 3 };
        ck_assert_int_eq(qn_artifact_each(store, "", visit_artifact, &three), QN_STORE_OK);
        ck_assert_int_eq(three.count, 3);
        qn_store_close(store);
    }
}
END_TEST

/* ---- Tuned configs ---- */

START_TEST(a_tuned_config_comes_back_whole)
{
    struct qn_store *store = qt_open_store();
    struct qn_tuned tuned = qt_draw_tuned(), winner, found;

    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_MISS);
    ck_assert_int_eq(qn_tuned_put(store, &tuned, &winner), QN_STORE_OK);
    qt_assert_same_tuned(&tuned, &winner);
    ck_assert_int_eq(winner.generation, 1);
    qn_store_close(store);
    store = qt_open_store();
    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_OK);
    qt_assert_same_tuned(&tuned, &found);
    ck_assert_str_eq(found.key, winner.key);
    ck_assert_int_eq(qn_tuned_find(store, tuned.group, &found), QN_STORE_MISS);
    qn_tuned_fini(&found);
    qn_tuned_fini(&winner);
    qn_tuned_fini(&tuned);
    qn_store_close(store);
}
END_TEST

START_TEST(the_first_writer_of_a_generation_wins_and_the_newest_is_found)
{
    struct qn_store *store = qt_open_store();
    struct qn_tuned first = qt_draw_tuned(), second = qt_draw_tuned(), winner;

    free(second.text);
    second.text = strdup(first.text);
    first.generation = second.generation = 4;
    ck_assert_int_eq(qn_tuned_put(store, &first, NULL), QN_STORE_OK);
    ck_assert_int_eq(qn_tuned_put(store, &second, &winner), QN_STORE_OK);
    qt_assert_same_tuned(&first, &winner);
    qn_tuned_fini(&winner);
    second.generation = 0;
    ck_assert_int_eq(qn_tuned_put(store, &second, &winner), QN_STORE_OK);
    qt_assert_same_tuned(&second, &winner);
    ck_assert_int_eq(winner.generation, 5);
    qn_tuned_fini(&winner);
    ck_assert_int_eq(qn_tuned_find(store, first.text, &winner), QN_STORE_OK);
    qt_assert_same_tuned(&second, &winner);
    qn_tuned_fini(&winner);
    first.generation = 3; /* a straggler does not push the newest aside */
    ck_assert_int_eq(qn_tuned_put(store, &first, NULL), QN_STORE_OK);
    ck_assert_int_eq(qn_tuned_find(store, first.text, &winner), QN_STORE_OK);
    ck_assert_int_eq(winner.generation, 5);
    qn_tuned_fini(&winner);
    qn_tuned_fini(&first);
    qn_tuned_fini(&second);
    qn_store_close(store);
}
END_TEST

static char *shared_text;

/* Every process brings a winner of its own and writes down which one it was given. */
static int put_winner(int number)
{
    struct qn_store *store = qt_open_store();
    struct qn_tuned tuned = qt_draw_tuned(), winner;
    char name[32];

    free(tuned.text);
    tuned.text = strdup(shared_text);
    tuned.generation = 1;
    snprintf(name, sizeof name, "rank %d", number);
    int status = qn_tuned_put(store, &tuned, &winner) || qn_meta_put(store, name, winner.config);
    qn_store_close(store);
    return status;
}

START_TEST(eight_processes_are_given_one_winner)
{
    struct qn_tuned winner;

    for (int round = 0; round < 5; round++) {
        shared_text = qt_draw_text("shared");
        qt_run_processes(put_winner);
        struct qn_store *store = qt_open_store();
        ck_assert_int_eq(qn_tuned_find(store, shared_text, &winner), QN_STORE_OK);
        for (int i = 0; i < QT_PROCESSES; i++) {
            char name[32], *config = NULL;
            snprintf(name, sizeof name, "rank %d", i);
            ck_assert_int_eq(qn_meta_find(store, name, &config), QN_STORE_OK);
            ck_assert_str_eq(config, winner.config);
            free(config);
        }
        qn_tuned_fini(&winner);
        qn_store_close(store);
        free(shared_text);
    }
}
END_TEST

static int sum_generations(void *user, const struct qn_tuned *tuned)
{
    int64_t *sum = user;

    ck_assert_ptr_nonnull(tuned->config);
    *sum += tuned->generation;
    return 0;
}

START_TEST(neighbours_are_the_newest_rows_of_the_group)
{
    struct qn_store *store = qt_open_store();
    char *group = qt_draw_text("shared");
    int64_t sum = 0;

    for (int i = 0; i < 5; i++) {
        struct qn_tuned tuned = qt_draw_tuned();
        if (i < 4) {
            free(tuned.group);
            tuned.group = strdup(group);
        }
        for (int generation = 0; generation <= i; generation++) {
            ck_assert_int_eq(qn_tuned_put(store, &tuned, NULL), QN_STORE_OK);
        }
        qn_tuned_fini(&tuned);
    }
    ck_assert_int_eq(qn_tuned_each(store, group, sum_generations, &sum), QN_STORE_OK);
    ck_assert_int_eq(sum, 1 + 2 + 3 + 4);
    sum = 0;
    ck_assert_int_eq(qn_tuned_list(store, "", sum_generations, &sum), QN_STORE_OK);
    ck_assert_int_eq(sum, 1 + 3 + 6 + 10 + 15);
    free(group);
    qn_store_close(store);
}
END_TEST

START_TEST(a_tuned_row_under_the_wrong_key_is_set_aside)
{
    struct qn_store *store = qt_open_store();
    struct qn_tuned tuned = qt_draw_tuned(), found;

    ck_assert_int_eq(qn_tuned_put(store, &tuned, NULL), QN_STORE_OK);
    qn_store_close(store);
    qt_change("UPDATE tuned SET text = text || 'x'");
    store = qt_open_store();
    ck_assert_int_eq(qn_tuned_find(store, tuned.text, &found), QN_STORE_MISS);
    ck_assert_int_eq(qt_counters_of(store).damaged, 1);
    ck_assert_int_eq(qt_counters_of(store).tuned, 0);
    qn_store_close(store);
    qn_tuned_fini(&tuned);
}
END_TEST

/* ---- Trials, misses, meta ---- */

static int count_trial(void *user, const struct qn_trial *trial)
{
    struct qn_trial *wanted = user;

    if (!strcmp(trial->config, wanted->config)) {
        ck_assert_str_eq(trial->text, wanted->text);
        ck_assert_str_eq(trial->variant, wanted->variant);
        ck_assert_str_eq(trial->digest, wanted->digest);
        ck_assert_str_eq(trial->toolkit, wanted->toolkit);
        ck_assert_str_eq(trial->outcome, wanted->outcome);
        ck_assert_double_eq(trial->time_us, wanted->time_us);
        ck_assert_int_eq(trial->generation, wanted->generation);
        wanted->created += 1000000;
    }
    wanted->created++;
    return 0;
}

static int put_trials_until_killed(int number)
{
    struct qn_store *store = qt_open_store();

    for (;;) {
        struct qn_trial trial = qt_draw_trial(shared_text, number);
        if (qn_trial_put(store, &trial)) {
            return 1;
        }
        qn_trial_fini(&trial);
        if (write(STDOUT_FILENO, "t", 1) != 1) {
            return 2;
        }
    }
}

START_TEST(the_trials_of_a_killed_sweep_are_all_there)
{
    int ends[2];
    char bytes[4096];
    int64_t told = 0;
    struct qn_trial none = { .config = "" };

    shared_text = qt_draw_text("sweep");
    ck_assert_int_eq(pipe(ends), 0);
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        _exit(put_trials_until_killed(7));
    }
    close(ends[1]);
    for (ssize_t n = 1; n > 0 && told < 30;) {
        n = read(ends[0], bytes, sizeof bytes);
        told += n;
    }
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    qt_reap(pid);
    for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;) {
        told += n;
    }
    struct qn_store *store = qt_open_store();
    ck_assert_int_eq(qn_trial_each(store, shared_text, 7, count_trial, &none), QN_STORE_OK);
    ck_assert_int_ge(none.created, told);
    ck_assert_int_le(none.created, told + 1);
    qn_store_close(store);
    free(shared_text);
}
END_TEST

START_TEST(a_trial_replaces_the_same_candidate_and_no_other)
{
    struct qn_store *store = qt_open_store();
    char *text = qt_draw_text("sweep");
    struct qn_trial trial = qt_draw_trial(text, 2), other = qt_draw_trial(text, 2);
    struct qn_trial elsewhere = qt_draw_trial(text, 3);

    ck_assert_int_eq(qn_trial_put(store, &trial), QN_STORE_OK);
    ck_assert_int_eq(qn_trial_put(store, &other), QN_STORE_OK);
    ck_assert_int_eq(qn_trial_put(store, &elsewhere), QN_STORE_OK);
    free(trial.outcome);
    trial.outcome = qt_draw_text("again");
    ck_assert_int_eq(qn_trial_put(store, &trial), QN_STORE_OK);
    trial.created = 0;
    ck_assert_int_eq(qn_trial_each(store, text, 2, count_trial, &trial), QN_STORE_OK);
    ck_assert_int_eq(trial.created, 1000002);
    ck_assert_int_eq(qt_counters_of(store).trials, 3);
    qn_store_close(store);
    qn_trial_fini(&trial);
    qn_trial_fini(&other);
    qn_trial_fini(&elsewhere);
    free(text);
}
END_TEST

struct seen_misses {
    int rows, ends_after;
    int64_t count;
    int has_newest_spec;
};

static int see_miss(void *user, const struct qn_miss *miss)
{
    struct seen_misses *seen = user;

    ck_assert_str_eq(miss->family, "gemm");
    seen->count += miss->count;
    seen->has_newest_spec |= !strcmp(miss->spec, "gemm m=6");
    return ++seen->rows == seen->ends_after;
}

START_TEST(misses_are_recorded_once_a_text_and_read_back)
{
    struct qn_store *store = qt_open_store();
    char *text = qt_draw_text("text"), *other = qt_draw_text("text");
    struct seen_misses all = { 0 }, first = { .ends_after = 1 }, none = { 0 };

    ck_assert_int_eq(qn_miss_each(store, see_miss, &none), QN_STORE_OK);
    ck_assert_int_eq(none.rows, 0);

    ck_assert_int_eq(qn_miss_put(store, text, "gemm m=5", "gemm"), QN_STORE_OK);
    ck_assert_int_eq(qn_miss_put(store, text, "gemm m=6", "gemm"), QN_STORE_OK);
    ck_assert_int_eq(qn_miss_put(store, other, "gemm m=99", "gemm"), QN_STORE_OK);
    ck_assert_int_eq(qt_counters_of(store).misses_recorded, 2);
    ck_assert_int_eq(qn_miss_each(store, see_miss, &all), QN_STORE_OK);
    ck_assert_int_eq(all.rows, 2);
    ck_assert_int_eq(all.count, 3);
    ck_assert(all.has_newest_spec);
    ck_assert_int_eq(qn_miss_each(store, see_miss, &first), QN_STORE_OK);
    ck_assert_int_eq(first.rows, 1);
    qn_store_close(store);
    free(text);
    free(other);
}
END_TEST

START_TEST(meta_gives_back_the_last_value)
{
    struct qn_store *store = qt_open_store();
    char *value = NULL, *text = qt_draw_text("value");

    ck_assert_int_eq(qn_meta_find(store, "name", &value), QN_STORE_MISS);
    ck_assert_ptr_null(value);
    ck_assert_int_eq(qn_meta_put(store, "name", "before"), QN_STORE_OK);
    ck_assert_int_eq(qn_meta_put(store, "name", text), QN_STORE_OK);
    qn_store_close(store);
    store = qt_open_store();
    ck_assert_int_eq(qn_meta_find(store, "name", &value), QN_STORE_OK);
    ck_assert_str_eq(value, text);
    qn_store_close(store);
    free(value);
    free(text);
}
END_TEST

/* ---- Manifest ---- */

static struct qn_manifest draw_manifest(const char *model)
{
    struct qn_manifest row = { .target = qt_draw_text("target"), .model = strdup(model) };
    char *text = qt_draw_text("key");

    qn_key_hex(text, strlen(text), row.key);
    free(text);
    row.rank = strdup("tp=8 ep=1");
    row.where = strdup("decode");
    row.spec = qt_draw_text("spec");
    row.kind = strdup("built");
    row.toolkit = qt_draw_text("toolkit");
    row.created = (int64_t)(qt_draw() >> 24);
    return row;
}

struct seen_manifest {
    const struct qn_manifest *rows;
    int count, most;
};

static int see_manifest(void *user, const struct qn_manifest *row)
{
    struct seen_manifest *seen = user;
    const struct qn_manifest *wanted = &seen->rows[seen->count++];

    ck_assert_str_eq(row->key, wanted->key);
    ck_assert_str_eq(row->target, wanted->target);
    ck_assert_str_eq(row->model, wanted->model);
    ck_assert_str_eq(row->rank, wanted->rank);
    ck_assert_str_eq(row->where, wanted->where);
    ck_assert_str_eq(row->spec, wanted->spec);
    ck_assert_str_eq(row->kind, wanted->kind);
    ck_assert_str_eq(row->toolkit, wanted->toolkit);
    ck_assert_int_eq(row->created, wanted->created);
    return seen->count == seen->most;
}

START_TEST(the_manifest_gives_back_its_rows_by_model_and_replaces_the_same_one)
{
    static const char *const models[] = { "a", "b", "c" };
    struct qn_manifest rows[3];
    struct qn_store *store = qt_open_store();

    for (int i = 0; i < 3; i++)
        rows[i] = draw_manifest(models[i]);
    for (int i = 2; i >= 0; i--)
        ck_assert_int_eq(qn_manifest_put(store, &rows[i]), QN_STORE_OK);
    strcpy(rows[1].kind, "tuned");
    ck_assert_int_eq(qn_manifest_put(store, &rows[1]), QN_STORE_OK);
    qn_store_close(store);
    store = qt_open_store();
    struct seen_manifest seen = { rows, 0, 0 };
    ck_assert_int_eq(qn_manifest_each(store, see_manifest, &seen), QN_STORE_OK);
    ck_assert_int_eq(seen.count, 3);
    seen = (struct seen_manifest){ rows, 0, 2 };
    ck_assert_int_eq(qn_manifest_each(store, see_manifest, &seen), QN_STORE_OK);
    ck_assert_int_eq(seen.count, 2);
    qn_store_close(store);
    for (int i = 0; i < 3; i++)
        qn_manifest_fini(&rows[i]);
}
END_TEST

/* ---- Threads ---- */

START_TEST(threads_share_one_store_on_disk_and_in_memory)
{
    const char *where[] = { qt_path, "" };

    for (int w = 0; w < 2; w++) {
        struct qn_store *store = qt_open_logged(where[w], NULL);
        pthread_t threads[QT_PROCESSES];
        for (int i = 0; i < QT_PROCESSES; i++) {
            ck_assert_int_eq(pthread_create(&threads[i], NULL, qt_put_and_find, store), 0);
        }
        for (int i = 0; i < QT_PROCESSES; i++) {
            void *failed;
            pthread_join(threads[i], &failed);
            ck_assert_ptr_null(failed);
        }
        struct qn_store_counters counters = qt_counters_of(store);
        ck_assert_int_eq(counters.artifacts, QT_PROCESSES * 30);
        ck_assert_int_eq(counters.hits, QT_PROCESSES * 30);
        ck_assert_int_eq(counters.errors, 0);
        qn_store_close(store);
    }
}
END_TEST

START_TEST(a_forked_child_gets_misses_and_harms_nothing)
{
    struct qn_artifact artifact = qt_make_store(1, 100), other = qt_draw_artifact(100);
    struct qn_store *store = qt_open_store();

    qt_assert_found(store, &artifact);
    pid_t pid = fork();
    if (!pid) {
        struct qn_lease *lease;
        qt_assert_missed(store, &artifact);
        ck_assert_int_eq(qn_artifact_put(store, &other), QN_STORE_MISS);
        ck_assert_int_eq(qn_lease_acquire(store, "name", 10, 10, &lease), QN_STORE_MISS);
        ck_assert_int_eq(qn_store_is_writable(store), 0);
        qn_store_close(store);
        _exit(0);
    }
    ck_assert_int_eq(qt_reap(pid), 0);
    qt_assert_found(store, &artifact);
    qt_assert_missed(store, &other);
    ck_assert_int_eq(qn_artifact_put(store, &other), QN_STORE_OK);
    ck_assert_int_eq(qt_counters_of(store).hits, 2);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
    qn_artifact_fini(&other);
}
END_TEST

static int pipe_ends[2];

static int open_and_put_when_told(int number)
{
    char byte;

    return read(pipe_ends[0], &byte, 1) == 1 ? qt_open_and_put(number) : 1;
}

/* Opening and closing the file elsewhere in the process must not take away the first store's locks:
 * then the other process would be the last one out, and delete the -wal under it. The other process
 * is there before the store is opened, so that it inherits nothing of it. */
START_TEST(a_second_store_in_the_process_leaves_the_first_ones_locks)
{
    struct qn_artifact artifact = qt_draw_artifact(100);

    ck_assert_int_eq(pipe(pipe_ends), 0);
    pid_t pid = qt_spawn(open_and_put_when_told, 1);
    struct qn_store *store = qt_open_store();
    qn_store_close(qt_open_store());
    ck_assert_int_eq(write(pipe_ends[1], "p", 1), 1);
    ck_assert_int_eq(qt_reap(pid), 0);
    ck_assert(qt_exists(qt_beside("-wal")));
    ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    qn_store_close(store);
    store = qt_open_store();
    qt_assert_found(store, &artifact);
    ck_assert_int_eq(qt_counters_of(store).artifacts, 2);
    qn_store_close(store);
    qn_artifact_fini(&artifact);
}
END_TEST

static void add_rows(TCase *tcase)
{
    tcase_add_test(tcase, the_key_is_xxh3_128_in_hexadecimal);
    tcase_add_test(tcase, an_artifact_comes_back_whole_in_another_process_too);
    tcase_add_test(tcase, absent_texts_come_back_empty);
    tcase_add_test(tcase, without_a_compiler_the_newest_accepted_row_is_found);
    tcase_add_test(tcase, a_second_put_replaces_the_first);
    tcase_add_test(tcase, finds_count_hits_and_misses_and_write_nothing_until_asked);
    tcase_add_test(tcase, the_hits_of_all_processes_add_up);
    tcase_add_test(tcase, a_listing_shows_the_rows_of_a_prefix_and_ends_when_told);
    tcase_add_test(tcase, a_tuned_config_comes_back_whole);
    tcase_add_test(tcase, the_first_writer_of_a_generation_wins_and_the_newest_is_found);
    tcase_add_test(tcase, eight_processes_are_given_one_winner);
    tcase_add_test(tcase, neighbours_are_the_newest_rows_of_the_group);
    tcase_add_test(tcase, a_tuned_row_under_the_wrong_key_is_set_aside);
    tcase_add_test(tcase, the_trials_of_a_killed_sweep_are_all_there);
    tcase_add_test(tcase, a_trial_replaces_the_same_candidate_and_no_other);
    tcase_add_test(tcase, misses_are_recorded_once_a_text_and_read_back);
    tcase_add_test(tcase, meta_gives_back_the_last_value);
    tcase_add_test(tcase, the_manifest_gives_back_its_rows_by_model_and_replaces_the_same_one);
    tcase_add_test(tcase, threads_share_one_store_on_disk_and_in_memory);
    tcase_add_test(tcase, a_forked_child_gets_misses_and_harms_nothing);
    tcase_add_test(tcase, a_second_store_in_the_process_leaves_the_first_ones_locks);
}

int main(void)
{
    static const struct qt_group groups[] = { { "rows", add_rows } };

    return qt_run_suite("store", groups, 1);
}
