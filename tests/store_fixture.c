/* What the suites of the store share (store_fixture.h). */
#include "tests/store_fixture.h"

#include <check.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

char qt_folder[64];
char qt_path[128];

/* ---- Random data ---- */

static uint64_t random_state;

uint64_t qt_draw(void)
{
    random_state += 0x9e3779b97f4a7c15u;
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

char *qt_draw_text(const char *name)
{
    char *text = NULL;

    ck_assert_int_gt(asprintf(&text, "%s=%016llx\nmode=%llu\n", name, (unsigned long long)qt_draw(),
                              (unsigned long long)(qt_draw() % 1000)),
                     0);
    return text;
}

/* An artifact of random contents; free with qn_artifact_fini(). */
struct qn_artifact qt_draw_artifact(size_t blob_bytes)
{
    struct qn_artifact artifact = {
        .text = qt_draw_text("text"),
        .source = qt_draw_text("source"),
        .compiler = qt_draw_text("compiler"),
        .target = qt_draw_text("target"),
        .family = qt_draw_text("family"),
        .log = qt_draw_text("log"),
        .report = qt_draw_text("report"),
        .blob = malloc(blob_bytes + 1),
        .blob_bytes = blob_bytes,
        .compile_ms = (double)(qt_draw() % 100000) / 64,
    };

    for (size_t i = 0; i < blob_bytes; i++) {
        ((unsigned char *)artifact.blob)[i] = (unsigned char)qt_draw();
    }
    return artifact;
}

struct qn_tuned qt_draw_tuned(void)
{
    struct qn_tuned tuned = {
        .text = qt_draw_text("text"),
        .group = qt_draw_text("group"),
        .family = qt_draw_text("family"),
        .variant = qt_draw_text("variant"),
        .config = qt_draw_text("config"),
        .time_us = (double)(qt_draw() % 100000) / 64,
        .spread_us = (double)(qt_draw() % 1000) / 64,
        .samples = (int64_t)(qt_draw() % 1000),
        .digest = qt_draw_text("digest"),
        .toolkit = qt_draw_text("toolkit"),
        .profile = qt_draw_text("profile"),
        .provenance = qt_draw_text("provenance"),
        .heuristic_variant = qt_draw_text("heuristic_variant"),
        .heuristic_config = qt_draw_text("heuristic_config"),
        .heuristic_us = (double)(qt_draw() % 100000) / 64,
        .heuristic_spread_us = (double)(qt_draw() % 1000) / 64,
    };

    return tuned;
}

struct qn_trial qt_draw_trial(const char *text, int64_t generation)
{
    struct qn_trial trial = {
        .text = strdup(text),
        .variant = qt_draw_text("variant"),
        .config = qt_draw_text("config"),
        .digest = qt_draw_text("digest"),
        .toolkit = qt_draw_text("toolkit"),
        .generation = generation,
        .outcome = qt_draw_text("outcome"),
        .time_us = (double)(qt_draw() % 100000) / 64,
        .spread_us = (double)(qt_draw() % 1000) / 64,
        .samples = (int64_t)(qt_draw() % 1000),
    };

    return trial;
}

void qt_assert_same_artifact(const struct qn_artifact *a, const struct qn_artifact *b)
{
    ck_assert_str_eq(a->text, b->text);
    ck_assert_str_eq(a->source, b->source);
    ck_assert_str_eq(a->compiler, b->compiler);
    ck_assert_str_eq(a->target, b->target);
    ck_assert_str_eq(a->family, b->family);
    ck_assert_str_eq(a->log, b->log);
    ck_assert_str_eq(a->report, b->report);
    ck_assert_double_eq(a->compile_ms, b->compile_ms);
    ck_assert_uint_eq(a->blob_bytes, b->blob_bytes);
    ck_assert_mem_eq(a->blob, b->blob, a->blob_bytes);
}

void qt_assert_same_tuned(const struct qn_tuned *a, const struct qn_tuned *b)
{
    ck_assert_str_eq(a->text, b->text);
    ck_assert_str_eq(a->group, b->group);
    ck_assert_str_eq(a->family, b->family);
    ck_assert_str_eq(a->variant, b->variant);
    ck_assert_str_eq(a->config, b->config);
    ck_assert_double_eq(a->time_us, b->time_us);
    ck_assert_double_eq(a->spread_us, b->spread_us);
    ck_assert_int_eq(a->samples, b->samples);
    ck_assert_str_eq(a->digest, b->digest);
    ck_assert_str_eq(a->toolkit, b->toolkit);
    ck_assert_str_eq(a->profile, b->profile);
    ck_assert_str_eq(a->provenance, b->provenance);
    ck_assert_str_eq(a->heuristic_variant, b->heuristic_variant);
    ck_assert_str_eq(a->heuristic_config, b->heuristic_config);
    ck_assert_double_eq(a->heuristic_us, b->heuristic_us);
    ck_assert_double_eq(a->heuristic_spread_us, b->heuristic_spread_us);
}

/* ---- The folder, stores, processes ---- */

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(name);
}

static void make_folder(void)
{
    const char *seed = getenv("QUERN_TEST_SEED");

    if (seed) {
        random_state = strtoull(seed, NULL, 0);
    } else {
        ck_assert_int_eq(getrandom(&random_state, sizeof random_state, 0), sizeof random_state);
    }
    printf("QUERN_TEST_SEED=0x%llx\n", (unsigned long long)random_state);
    strcpy(qt_folder, "/tmp/quern-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(qt_folder));
    snprintf(qt_path, sizeof qt_path, "%s/quern.db", qt_folder);
}

static void remove_folder(void)
{
    chmod(qt_folder, 0700);
    nftw(qt_folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void note(void *user, int level, const char *line)
{
    struct qt_log *log = user;

    if (level == 1) {
        log->warnings++;
        snprintf(log->last, sizeof log->last, "%s", line);
    }
}

struct qn_store *qt_open_logged(const char *name, struct qt_log *log)
{
    struct qn_store_options options = { .path = name, .log = log ? note : NULL, .user = log };
    struct qn_store *store = NULL;
    char error[512] = "";

    int status = qn_store_open(&options, &store, error, sizeof error);
    ck_assert_msg(status == QN_STORE_OK, "%s", error);
    ck_assert_ptr_nonnull(store);
    return store;
}

struct qn_store *qt_open_store(void)
{
    return qt_open_logged(qt_path, NULL);
}

struct qn_store_counters qt_counters_of(struct qn_store *store)
{
    struct qn_store_counters counters;

    ck_assert_int_eq(qn_store_counters(store, &counters), QN_STORE_OK);
    return counters;
}

/* Runs work in a process of its own, which ends with what it returns. */
pid_t qt_spawn(int (*work)(int number), int number)
{
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (!pid) {
        random_state += 1 + (uint64_t)number;
        _exit(work(number));
    }
    return pid;
}

int qt_reap(pid_t pid)
{
    int status = -1;

    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}

void qt_run_processes(int (*work)(int number))
{
    pid_t pids[QT_PROCESSES];

    for (int i = 0; i < QT_PROCESSES; i++) {
        pids[i] = qt_spawn(work, i);
    }
    for (int i = 0; i < QT_PROCESSES; i++) {
        ck_assert_int_eq(qt_reap(pids[i]), 0);
    }
}

void qt_sleep_us(long us)
{
    nanosleep(&(struct timespec){ .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 }, NULL);
}

/* ---- Files, from outside ---- */

char *qt_read_whole(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    struct stat st;

    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fstat(fileno(file), &st), 0);
    char *bytes = malloc((size_t)st.st_size + 1);
    *size = fread(bytes, 1, (size_t)st.st_size, file);
    fclose(file);
    return bytes;
}

void qt_write_whole(const char *name, const void *bytes, size_t size)
{
    FILE *file = fopen(name, "wb");

    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(chmod(name, 0600), 0);
}

const char *qt_beside(const char *suffix)
{
    static char names[4][160];
    static int next;
    char *name = names[next++ % 4];

    snprintf(name, sizeof names[0], "%s%s", qt_path, suffix);
    return name;
}

int qt_exists(const char *name)
{
    struct stat st;

    return lstat(name, &st) == 0;
}

mode_t qt_mode_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(lstat(name, &st), 0);
    return st.st_mode & 07777;
}

/* Changes the file as another program would. */
void qt_change_file(const char *name, const char *sql)
{
    sqlite3 *sqlite;
    char *text = NULL;

    ck_assert_int_eq(sqlite3_open(name, &sqlite), SQLITE_OK);
    ck_assert_int_eq(sqlite3_busy_timeout(sqlite, 5000), SQLITE_OK);
    int rc = sqlite3_exec(sqlite, sql, NULL, NULL, &text);
    ck_assert_msg(rc == SQLITE_OK, "%s: %s", sql, text);
    sqlite3_close(sqlite);
}

void qt_change(const char *sql)
{
    qt_change_file(qt_path, sql);
}

/* A store of `rows` artifacts, closed; the last one is handed back. */
struct qn_artifact qt_make_store(int rows, size_t blob_bytes)
{
    struct qn_store *store = qt_open_store();
    struct qn_artifact artifact = { 0 };

    for (int i = 0; i < rows; i++) {
        qn_artifact_fini(&artifact);
        artifact = qt_draw_artifact(blob_bytes);
        ck_assert_int_eq(qn_artifact_put(store, &artifact), QN_STORE_OK);
    }
    qn_store_close(store);
    return artifact;
}

void qt_assert_found(struct qn_store *store, const struct qn_artifact *wanted)
{
    struct qn_artifact found;

    ck_assert_int_eq(qn_artifact_find(store, wanted->text, wanted->compiler, NULL, NULL, &found),
                     QN_STORE_OK);
    qt_assert_same_artifact(wanted, &found);
    qn_artifact_fini(&found);
}

void qt_assert_missed(struct qn_store *store, const struct qn_artifact *wanted)
{
    struct qn_artifact found = { .blob_bytes = 77 };

    ck_assert_int_eq(qn_artifact_find(store, wanted->text, wanted->compiler, NULL, NULL, &found),
                     QN_STORE_MISS);
    ck_assert_uint_eq(found.blob_bytes, 77);
}

int qt_open_and_put(int number)
{
    struct qn_store_options options = { .path = qt_path };
    struct qn_store *store;
    struct qn_artifact artifact = qt_draw_artifact(2000 + (size_t)number);
    char error[512];

    if (qn_store_open(&options, &store, error, sizeof error)) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    int status = qn_store_is_writable(store) ? qn_artifact_put(store, &artifact) : 9;
    qn_store_close(store);
    return status;
}

void *qt_put_and_find(void *user)
{
    struct qn_store *store = user;

    for (int i = 0; i < 30; i++) {
        struct qn_artifact artifact = { .compiler = "cc", .blob = "blob", .blob_bytes = 4 }, found;
        char text[64];
        snprintf(text, sizeof text, "thread=%lx\ni=%d\n", (unsigned long)pthread_self(), i);
        artifact.text = text;
        if (qn_artifact_put(store, &artifact) ||
            qn_artifact_find(store, text, "cc", NULL, NULL, &found)) {
            return user;
        }
        qn_artifact_fini(&found);
    }
    return NULL;
}

int qt_run_suite(const char *name, const struct qt_group *groups, size_t count)
{
    Suite *suite = suite_create(name);

    for (size_t i = 0; i < count; i++) {
        TCase *tcase = tcase_create(groups[i].name);
        tcase_add_checked_fixture(tcase, make_folder, remove_folder);
        tcase_set_timeout(tcase, 60);
        groups[i].add(tcase);
        suite_add_tcase(suite, tcase);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
