/* For the suites of the store: a folder a case, random rows, processes, and files seen from
 * outside.
 *
 * Each case runs in a folder of its own, in a process of its own. Data is random and new in every
 * run; the seed is printed, and QUERN_TEST_SEED repeats it.
 */
#ifndef QT_STORE_FIXTURE_H
#define QT_STORE_FIXTURE_H

#include "cache/store.h"

#include <check.h>
#include <sys/types.h>

#define QT_PROCESSES 8

extern char qt_folder[64]; /* of this case */
extern char qt_path[128];  /* of its store, which does not exist yet */

struct qt_group {
    const char *name;
    void (*add)(TCase *tcase);
};
/* What main() returns. */
int qt_run_suite(const char *name, const struct qt_group *groups, size_t count);

/* ---- Random data; rows are freed with the store's _fini ---- */

uint64_t qt_draw(void);
char *qt_draw_text(const char *name);
struct qn_artifact qt_draw_artifact(size_t blob_bytes);
struct qn_tuned qt_draw_tuned(void);
struct qn_trial qt_draw_trial(const char *text, int64_t generation);
void qt_assert_same_artifact(const struct qn_artifact *a, const struct qn_artifact *b);
void qt_assert_same_tuned(const struct qn_tuned *a, const struct qn_tuned *b);

/* ---- Stores ---- */

struct qt_log {
    int warnings;
    char last[800];
};
struct qn_store *qt_open_logged(const char *name, struct qt_log *log); /* log may be NULL */
struct qn_store *qt_open_store(void);
struct qn_store_counters qt_counters_of(struct qn_store *store);
/* A store of `rows` artifacts, closed; the last one is handed back. */
struct qn_artifact qt_make_store(int rows, size_t blob_bytes);
void qt_assert_found(struct qn_store *store, const struct qn_artifact *wanted);
void qt_assert_missed(struct qn_store *store, const struct qn_artifact *wanted);

/* ---- Processes: each ends with what its work returns, and draws other data ---- */

pid_t qt_spawn(int (*work)(int number), int number);
int qt_reap(pid_t pid); /* waitpid's status */
void qt_run_processes(int (*work)(int number));
int qt_open_and_put(int number); /* work: one artifact into qt_path */
/* For pthread_create: 30 artifacts put and found in the store `user`; NULL if all went well. */
void *qt_put_and_find(void *user);
void qt_sleep_us(long us);

/* ---- Files, from outside ---- */

char *qt_read_whole(const char *name, size_t *size);
void qt_write_whole(const char *name, const void *bytes, size_t size); /* mode 0600 */
const char *qt_beside(const char *suffix); /* qt_path + suffix; holds for three more calls */
int qt_exists(const char *name);
mode_t qt_mode_of(const char *name);
void qt_change_file(const char *name, const char *sql);
void qt_change(const char *sql); /* the store's file, as another program would */

#endif
