/* The store as a whole: opened, lent out in connections, and closed. What the rows are is the
 * business of artifact.c, tuned.c, trial.c, notes.c and lease.c.
 *
 *                         qn_store_open
 *                               |
 *        no file -> create -> FOUND -> open a connection -> sound?  -> the store
 *           |                   ^            |                 no
 *        cannot                 |          not ours             |
 *           v                   |            v                  v
 *        in memory,             |          an error       set aside, one warning
 *        one warning            +-------------------------------+
 *
 * Connections. A call borrows one that nobody is using (or opens one more) and gives it back before
 * it returns or calls a callback. So there are as many as threads were ever inside at one time,
 * each is used by one thread at a time, a callback may call the store, and a thread that ends
 * leaves nothing to be cleaned up. A store in memory has exactly one, and callers wait for it.
 *
 * After the store is open nothing is an error: a failure is a miss, or a row that is not kept, plus
 * a count, and a warning the first time.
 *
 *   disk full, gone read-only     writes are dropped; each is tried again, a disk may get space
 *   locked for too long           that call only
 *   the file is damaged           the file is set aside for the next open to start afresh, and this
 *                                 process goes without: what it has in use it has in memory
 *
 * After fork() the child's calls are misses: SQLite's connections and locks are the parent's. A
 * child that wants a store opens one after exec: SQLite itself keeps state about a file that the
 * parent has open, and a fork copies that state but not the locks it speaks of.
 */
#include "cache/db.h"
#include "cache/tally.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OPEN_TIMEOUT_S 20.0
#define LOCK_TIMEOUT_S 10.0
#define LEVEL_WARN 1
#define LEVEL_INFO 2

enum warning { WARNED_WRITE = 1, WARNED_DAMAGE = 2, WARNED_OTHER = 4, WARNED_LOAD = 8 };

struct qn_store {
    struct qn_store_options options; /* path is not used: place.path */
    struct qn_place place;
    pid_t pid;
    int was_set_aside; /* while opening: a disk that damages the new file too will go on */
    int is_forgetful;  /* asked for a file and got memory: nothing outlives the process */
    struct qn_tally tally;

    pthread_mutex_t mutex; /* guards idle */
    pthread_cond_t given;  /* in memory: the one connection is idle again */
    struct qn_db *idle;

    atomic_int is_broken;
    atomic_uint warned;
    atomic_int_fast64_t errors, damaged;
};

__attribute__((format(printf, 3, 4))) static void say(struct qn_store *store, int level,
                                                      const char *format, ...)
{
    char line[800];
    va_list list;

    if (!store->options.log)
        return;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    store->options.log(store->options.user, level, line);
}

/* ---- Opening ---- */

/* The next thing to do on the way to an open store. */
enum open_step { OPEN_AGAIN, OPEN_DONE, OPEN_IN_MEMORY, OPEN_ERROR };

static enum open_step locked_out(struct qn_store *store, char *error, size_t error_bytes)
{
    snprintf(error, error_bytes, "cache=%s: %s.lock cannot be locked: %m", store->place.path,
             store->place.path);
    return OPEN_IN_MEMORY;
}

/* Looked at again under the lock: another process may have made it meanwhile. */
static enum open_step create(struct qn_store *store, char *error, size_t error_bytes)
{
    int lock = qn_place_lock(&store->place, LOCK_TIMEOUT_S);
    int rc = SQLITE_OK;

    if (lock < 0)
        return locked_out(store, error, error_bytes);
    if (qn_place_look(&store->place, error, error_bytes) == QN_PLACE_EMPTY) {
        rc = qn_db_create(&store->place, error, error_bytes);
        if (!rc)
            say(store, LEVEL_INFO, "cache=%s: created", store->place.path);
    }
    close(lock);
    return rc ? OPEN_IN_MEMORY : OPEN_AGAIN;
}

static enum open_step set_aside(struct qn_store *store, char *error, size_t error_bytes)
{
    int is_allowed = !store->place.is_read_only && !store->was_set_aside;
    int lock = is_allowed ? qn_place_lock(&store->place, LOCK_TIMEOUT_S) : -1;
    int rc = -1;

    store->was_set_aside = 1;
    if (lock >= 0) {
        rc = qn_place_set_aside(&store->place);
        close(lock);
    }
    if (rc) {
        size_t length = strlen(error);
        snprintf(error + length, error_bytes - length, "; it is damaged and cannot be renamed");
        return OPEN_IN_MEMORY;
    }
    say(store, LEVEL_WARN, "%s; renamed to .damaged-<n> beside it, starting with an empty one",
        error);
    return OPEN_AGAIN;
}

static enum open_step open_found(struct qn_store *store, char *error, size_t error_bytes)
{
    const struct timespec pause = { .tv_nsec = 5 * 1000 * 1000 };

    switch (qn_db_open(&store->place, &store->idle, error, error_bytes)) {
    case QN_OPEN_DONE:
        return OPEN_DONE;
    case QN_OPEN_DAMAGED:
        return set_aside(store, error, error_bytes);
    case QN_OPEN_BUSY:
        nanosleep(&pause, NULL);
        return OPEN_AGAIN;
    case QN_OPEN_FAILED:
        return OPEN_IN_MEMORY;
    default:
        return OPEN_ERROR;
    }
}

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static enum open_step open_file(struct qn_store *store, char *error, size_t error_bytes)
{
    double end_s = now_s() + OPEN_TIMEOUT_S;
    enum open_step step = OPEN_AGAIN;

    snprintf(error, error_bytes, "cache=%s: other processes keep it busy", store->place.path);
    while (step == OPEN_AGAIN && now_s() < end_s) {
        switch (qn_place_look(&store->place, error, error_bytes)) {
        case QN_PLACE_FOUND:
            step = open_found(store, error, error_bytes);
            break;
        case QN_PLACE_EMPTY:
            step = create(store, error, error_bytes);
            break;
        case QN_PLACE_UNWRITABLE:
            step = OPEN_IN_MEMORY;
            break;
        case QN_PLACE_REFUSED:
            step = OPEN_ERROR;
            break;
        }
    }
    return step == OPEN_AGAIN ? OPEN_IN_MEMORY : step;
}

static enum open_step open_in_memory(struct qn_store *store, char *error, size_t error_bytes)
{
    free(store->place.real);
    store->place.real = NULL;
    store->place.is_read_only = 0;
    return qn_db_open(&store->place, &store->idle, error, error_bytes) == QN_OPEN_DONE ? OPEN_DONE
                                                                                       : OPEN_ERROR;
}

static int open_place(struct qn_store *store, char *error, size_t error_bytes)
{
    enum qn_place_status place =
        qn_place_init(&store->place, store->options.path, error, error_bytes);
    enum open_step step = place == QN_PLACE_UNWRITABLE ? OPEN_IN_MEMORY : OPEN_ERROR;

    if (place == QN_PLACE_EMPTY)
        step = store->place.real ? open_file(store, error, error_bytes)
                                 : open_in_memory(store, error, error_bytes);
    if (step == OPEN_IN_MEMORY) {
        say(store, LEVEL_WARN, "%s; working in memory, nothing will be kept", error);
        store->is_forgetful = 1;
        step = open_in_memory(store, error, error_bytes);
    }
    if (step == OPEN_DONE && store->place.is_read_only)
        say(store, LEVEL_WARN, "cache=%s: is read-only; nothing new will be kept",
            store->place.path);
    return step == OPEN_DONE ? QN_STORE_OK : QN_STORE_ERROR;
}

int qn_store_open(const struct qn_store_options *options, struct qn_store **store, char *error,
                  size_t error_bytes)
{
    struct qn_store *made = calloc(1, sizeof *made);

    if (!made) {
        snprintf(error, error_bytes, "cache=%s: out of memory", options->path);
        return QN_STORE_ERROR;
    }
    made->options = *options;
    made->pid = getpid();
    pthread_mutex_init(&made->mutex, NULL);
    pthread_cond_init(&made->given, NULL);
    qn_tally_init(&made->tally);
    if (open_place(made, error, error_bytes)) {
        qn_store_close(made);
        return QN_STORE_ERROR;
    }
    if (made->idle)
        made->idle->store = made;
    *store = made;
    return QN_STORE_OK;
}

static void flush(struct qn_store *store)
{
    if (!store->place.is_read_only && !atomic_load(&store->is_broken))
        qn_tally_flush(&store->tally, store);
}

/* In a forked child nothing is touched, and the memory is left to the end of the child. */
void qn_store_close(struct qn_store *store)
{
    if (!store || store->pid != getpid())
        return;
    flush(store);
    while (store->idle) {
        struct qn_db *db = store->idle;
        store->idle = db->next;
        qn_db_close(db);
    }
    qn_tally_fini(&store->tally);
    pthread_cond_destroy(&store->given);
    pthread_mutex_destroy(&store->mutex);
    qn_place_fini(&store->place);
    free(store);
}

const char *qn_store_path(const struct qn_store *store)
{
    return store->place.path;
}

int qn_store_is_writable(struct qn_store *store)
{
    return !store->place.is_read_only && !store->is_forgetful && !atomic_load(&store->is_broken) &&
           store->pid == getpid();
}

struct qn_tally *qn_store_tally(struct qn_store *store)
{
    return &store->tally;
}

/* ---- Failures ---- */

static int is_first(struct qn_store *store, enum warning warning)
{
    return !(atomic_fetch_or(&store->warned, (unsigned)warning) & (unsigned)warning);
}

/* Set aside now, while it is known which file it was; opened afresh by whoever comes next. */
static void break_off(struct qn_store *store, const char *message)
{
    int lock = -1;

    if (atomic_exchange(&store->is_broken, 1))
        return;
    if (store->place.real && !store->place.is_read_only)
        lock = qn_place_lock(&store->place, LOCK_TIMEOUT_S);
    int is_moved = lock >= 0 && !qn_place_set_aside(&store->place);
    if (lock >= 0)
        close(lock);
    atomic_fetch_or(&store->warned, WARNED_OTHER); /* what follows from it is not worth a line */
    say(store, LEVEL_WARN, "cache=%s: is damaged (%s)%s; this process goes on without it",
        store->place.path, message, is_moved ? ", renamed to .damaged-<n> beside it" : "");
}

static void failed(struct qn_store *store, int rc, const char *message)
{
    atomic_fetch_add(&store->errors, 1);
    switch (rc & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        break_off(store, message);
        break;
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
        if (is_first(store, WARNED_WRITE))
            say(store, LEVEL_WARN, "cache=%s: cannot be written (%s); going on without keeping",
                store->place.path, message);
        break;
    default:
        if (is_first(store, WARNED_OTHER))
            say(store, LEVEL_WARN, "cache=%s: %s; going on without", store->place.path, message);
        break;
    }
}

void qn_store_damaged(struct qn_store *store, const char *table, const char *key)
{
    atomic_fetch_add(&store->damaged, 1);
    if (is_first(store, WARNED_DAMAGE))
        say(store, LEVEL_WARN, "cache=%s: the %s of key=%s is damaged and will be made again",
            store->place.path, table, key);
}

void qn_store_unloadable(struct qn_store *store, const char *key)
{
    atomic_fetch_add(&store->damaged, 1);
    if (is_first(store, WARNED_LOAD))
        say(store, LEVEL_WARN,
            "cache=%s: the artifact of key=%s could not be loaded and will be made again",
            store->place.path, key);
}

/* ---- Lending connections ---- */

/* The file is looked at again: since the store was opened somebody may have put another in its
 * place, and a connection to that would mix two files. */
static int is_same_file(struct qn_store *store, char *error, size_t error_bytes)
{
    struct qn_place place = store->place;
    enum qn_place_status found = qn_place_look(&place, error, error_bytes);

    if (found == QN_PLACE_REFUSED || found == QN_PLACE_UNWRITABLE)
        return 0;
    if (found == QN_PLACE_FOUND && place.inode == store->place.inode &&
        place.device == store->place.device)
        return 1;
    snprintf(error, error_bytes, "cache=%s: the file was removed or replaced", store->place.path);
    return 0;
}

static struct qn_db *open_another(struct qn_store *store)
{
    struct qn_db *db = NULL;
    char error[512];

    if (is_same_file(store, error, sizeof error)) {
        enum qn_open_status status = qn_db_open(&store->place, &db, error, sizeof error);
        if (status == QN_OPEN_DONE) {
            db->store = store;
            return db;
        }
        if (status == QN_OPEN_DAMAGED)
            break_off(store, sqlite3_errstr(SQLITE_CORRUPT));
    }
    atomic_fetch_add(&store->errors, 1);
    if (is_first(store, WARNED_OTHER))
        say(store, LEVEL_WARN, "%s; going on without", error);
    return NULL;
}

struct qn_db *qn_db_take(struct qn_store *store, enum qn_access access)
{
    if (store->pid != getpid())
        return NULL;
    if (atomic_load(&store->is_broken) || (access == QN_WRITE && store->place.is_read_only)) {
        atomic_fetch_add(&store->errors, 1);
        return NULL;
    }
    pthread_mutex_lock(&store->mutex);
    while (!store->idle && !store->place.real)
        pthread_cond_wait(&store->given, &store->mutex);
    struct qn_db *db = store->idle;
    if (db)
        store->idle = db->next;
    pthread_mutex_unlock(&store->mutex);
    return db ? db : open_another(store);
}

int qn_db_give(struct qn_db *db)
{
    struct qn_store *store = db->store;
    int rc = db->rc;

    if (rc)
        failed(store, rc, db->message);
    db->rc = SQLITE_OK;
    db->message[0] = 0;
    pthread_mutex_lock(&store->mutex);
    db->next = store->idle;
    store->idle = db;
    pthread_cond_signal(&store->given);
    pthread_mutex_unlock(&store->mutex);
    return rc ? QN_STORE_MISS : QN_STORE_OK;
}

/* ---- Inspection ---- */

static void read_counter(struct qn_db *db, const char *name, int64_t *value)
{
    static const char sql[] = "SELECT value FROM counter WHERE name = ?";
    struct qn_query query = qn_query(db, sql);

    qn_bind_text(&query, name);
    if (qn_step(&query))
        *value = qn_take_int(&query);
    qn_end(&query);
}

int qn_store_counters(struct qn_store *store, struct qn_store_counters *counters)
{
    static const char sql[] =
        "SELECT (SELECT count(*) FROM artifact), (SELECT count(*) FROM tuned), "
        "(SELECT count(*) FROM trial), (SELECT count(*) FROM miss), "
        "(SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)";
    struct qn_store_counters made = { 0 };
    int status = QN_STORE_MISS;

    flush(store);
    struct qn_db *db = qn_db_take(store, QN_READ);
    if (db) {
        struct qn_query query = qn_query(db, sql);
        if (qn_step(&query)) {
            made.artifacts = qn_take_int(&query);
            made.tuned = qn_take_int(&query);
            made.trials = qn_take_int(&query);
            made.misses_recorded = qn_take_int(&query);
            made.bytes = qn_take_int(&query);
        }
        qn_end(&query);
        read_counter(db, "compiles", &made.compiles);
        read_counter(db, "hits", &made.hits);
        read_counter(db, "misses", &made.misses);
        status = qn_db_give(db);
    }
    made.errors = atomic_load(&store->errors);
    made.damaged = atomic_load(&store->damaged);
    *counters = made;
    return status;
}
