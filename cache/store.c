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
#include <sys/stat.h>
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
    int was_set_aside;     /* while opening: a disk that damages the new file too will go on */
    struct qn_store *base; /* the first, or of a base the next: asked after this one */
    int is_forgetful;      /* asked for a file and got memory: nothing outlives the process */
    struct qn_tally tally;

    pthread_mutex_t mutex; /* guards idle */
    pthread_cond_t given;  /* in memory: the one connection is idle again */
    struct qn_db *idle;
    char (*shunned)[QN_KEY_HEX]; /* under mutex: hashes of rows that this process passes over */
    size_t shunned_count;

    atomic_int is_broken;
    atomic_int is_full; /* the last write found no room, or no permission */
    _Atomic(struct qn_lease *) owed;
    atomic_uint warned;
    atomic_int_fast64_t errors, damaged;
};

/* Texts are written for the cache; a base's say base=PATH. */
static void name_base(char *line)
{
    if (!strncmp(line, "cache=", 6)) {
        memmove(line, line + 1, strlen(line));
        memcpy(line, "base=", 5);
    }
}

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
    if (store->place.is_base)
        name_base(line);
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

/* number: of the name that the file was given; 0: none by this process. */
static void say_set_aside(struct qn_store *store, const char *what, int number, const char *then)
{
    if (number)
        say(store, LEVEL_WARN, "%s; renamed to %s.damaged-%d, %s", what, store->place.real, number,
            then);
    else
        say(store, LEVEL_WARN, "%s; %s", what, then);
}

static enum open_step set_aside(struct qn_store *store, char *error, size_t error_bytes)
{
    int is_allowed = !store->place.is_read_only && !store->was_set_aside;
    int lock = is_allowed ? qn_place_lock(&store->place, LOCK_TIMEOUT_S) : -1;
    int rc = -1, number = 0;

    store->was_set_aside = 1;
    if (lock >= 0) {
        rc = qn_place_set_aside(&store->place, &number);
        close(lock);
    }
    if (rc) {
        size_t length = strlen(error);
        snprintf(error + length, error_bytes - length, "; it is damaged and cannot be renamed");
        return OPEN_IN_MEMORY;
    }
    say_set_aside(store, error, number, "starting with an empty one");
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

static int open_base_place(struct qn_store *store, char *error, size_t error_bytes)
{
    struct qn_place *place = &store->place;

    if (qn_place_init_base(place, store->options.path, error, error_bytes) != QN_PLACE_EMPTY ||
        qn_place_look(place, error, error_bytes) != QN_PLACE_FOUND ||
        qn_db_open(place, &store->idle, error, error_bytes) != QN_OPEN_DONE) {
        name_base(error);
        return QN_STORE_ERROR;
    }
    return QN_STORE_OK;
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

typedef int open_function(struct qn_store *store, char *error, size_t error_bytes);

static int open_store(const struct qn_store_options *options, open_function *open,
                      struct qn_store **store, char *error, size_t error_bytes)
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
    if (open(made, error, error_bytes)) {
        qn_store_close(made);
        return QN_STORE_ERROR;
    }
    if (made->idle)
        made->idle->store = made;
    *store = made;
    return QN_STORE_OK;
}

int qn_store_open_base(const struct qn_store_options *options, struct qn_store **store, char *error,
                       size_t error_bytes)
{
    return open_store(options, open_base_place, store, error, error_bytes);
}

static int is_itself(const struct qn_store *store, const char *path)
{
    struct stat st;

    return store->place.real && !stat(path, &st) && st.st_ino == store->place.inode &&
           st.st_dev == store->place.device;
}

/* The next of a list; QN_STORE_OK with *base left alone for an empty name. */
static int open_listed(struct qn_store *store, const char *path, struct qn_store **base,
                       char *error, size_t error_bytes)
{
    struct qn_store_options options = store->options;

    if (!*path)
        return QN_STORE_OK;
    if (is_itself(store, path)) {
        snprintf(error, error_bytes, "base=%s: is the cache itself", path);
        return QN_STORE_ERROR;
    }
    options.path = path;
    return qn_store_open_base(&options, base, error, error_bytes);
}

/* Opens each of a list "A:B" and chains them behind the store. */
static int open_bases(struct qn_store *store, const char *list, char *error, size_t error_bytes)
{
    struct qn_store **link = &store->base;

    for (const char *at = list; at && *at; at += strspn(at, ":")) {
        size_t length = strcspn(at, ":");
        char *path = strndup(at, length);
        if (!path) {
            snprintf(error, error_bytes, "base=%s: out of memory", at);
            return QN_STORE_ERROR;
        }
        at += length;
        int status = open_listed(store, path, link, error, error_bytes);
        free(path);
        if (status)
            return status;
        if (*link)
            link = &(*link)->base;
    }
    return QN_STORE_OK;
}

int qn_store_open(const struct qn_store_options *options, struct qn_store **store, char *error,
                  size_t error_bytes)
{
    struct qn_store *made;

    if (open_store(options, open_place, &made, error, error_bytes))
        return QN_STORE_ERROR;
    if (open_bases(made, options->base, error, error_bytes)) {
        qn_store_close(made);
        return QN_STORE_ERROR;
    }
    *store = made;
    return QN_STORE_OK;
}

struct qn_store *qn_store_base(const struct qn_store *store)
{
    return store->base;
}

int qn_store_is_base(const struct qn_store *store)
{
    return store->place.is_base;
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
    qn_lease_forget(store);
    qn_store_close(store->base);
    while (store->idle) {
        struct qn_db *db = store->idle;
        store->idle = db->next;
        qn_db_close(db);
    }
    qn_tally_fini(&store->tally);
    free(store->shunned);
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

int qn_store_is_full(const struct qn_store *store)
{
    return atomic_load(&store->is_full);
}

void qn_store_owe(struct qn_store *store, struct qn_lease *lease, struct qn_lease **next)
{
    *next = atomic_load(&store->owed);
    while (!atomic_compare_exchange_weak(&store->owed, next, lease))
        ;
}

struct qn_lease *qn_store_take_owed(struct qn_store *store)
{
    return atomic_exchange(&store->owed, NULL);
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
    char text[1024];
    int lock = -1, number = 0;

    if (atomic_exchange(&store->is_broken, 1))
        return;
    if (store->place.real && !store->place.is_read_only)
        lock = qn_place_lock(&store->place, LOCK_TIMEOUT_S);
    if (lock >= 0) {
        qn_place_set_aside(&store->place, &number);
        close(lock);
    }
    atomic_fetch_or(&store->warned, WARNED_OTHER); /* what follows from it is not worth a line */
    snprintf(text, sizeof text, "cache=%s: is damaged (%s)", store->place.path, message);
    say_set_aside(store, text, number, "this process reads and keeps nothing more in it");
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
        atomic_store(&store->is_full, 1);
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

/* Of a row that is of no use. */
static const char *what_becomes(const struct qn_store *store)
{
    return store->place.is_base ? "is passed over" : "will be made again";
}

void qn_store_damaged(struct qn_store *store, const char *table, const char *key)
{
    atomic_fetch_add(&store->damaged, 1);
    if (is_first(store, WARNED_DAMAGE))
        say(store, LEVEL_WARN, "cache=%s: the %s of key=%s is damaged and %s", store->place.path,
            table, key, what_becomes(store));
}

void qn_store_unloadable(struct qn_store *store, const char *key)
{
    atomic_fetch_add(&store->damaged, 1);
    if (is_first(store, WARNED_LOAD))
        say(store, LEVEL_WARN, "cache=%s: the artifact of key=%s could not be loaded and %s",
            store->place.path, key, what_becomes(store));
}

int qn_store_shun(struct qn_store *store, const char *blob_hash)
{
    pthread_mutex_lock(&store->mutex);
    void *more = realloc(store->shunned, (store->shunned_count + 1) * sizeof *store->shunned);
    if (more) {
        store->shunned = more;
        snprintf(store->shunned[store->shunned_count++], QN_KEY_HEX, "%s", blob_hash);
    }
    pthread_mutex_unlock(&store->mutex);
    return more != NULL;
}

int qn_store_is_shunned(struct qn_store *store, const char *blob_hash)
{
    int is_shunned = 0;

    pthread_mutex_lock(&store->mutex);
    for (size_t i = 0; i < store->shunned_count && !is_shunned; i++)
        is_shunned = !strcmp(store->shunned[i], blob_hash);
    pthread_mutex_unlock(&store->mutex);
    return is_shunned;
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
    if (!db)
        db = open_another(store);
    if (db)
        db->row_changes = sqlite3_total_changes(db->sqlite);
    return db;
}

int qn_db_give(struct qn_db *db)
{
    struct qn_store *store = db->store;
    int rc = db->rc;

    if (rc)
        failed(store, rc, db->message);
    else if (atomic_load(&store->is_full) && sqlite3_total_changes(db->sqlite) != db->row_changes)
        atomic_store(&store->is_full, 0);
    db->rc = SQLITE_OK;
    db->message[0] = 0;
    pthread_mutex_lock(&store->mutex);
    db->next = store->idle;
    store->idle = db;
    pthread_cond_signal(&store->given);
    pthread_mutex_unlock(&store->mutex);
    return rc ? QN_STORE_MISS : QN_STORE_OK;
}

int qn_store_sync(struct qn_store *store)
{
    static const char sql[] = "PRAGMA wal_checkpoint(PASSIVE)";
    struct qn_db *db = qn_store_is_writable(store) ? qn_db_take(store, QN_WRITE) : NULL;

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    qn_run(&query);
    return qn_db_give(db);
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
    for (struct qn_store *base = store->base; base; base = base->base) {
        made.errors += atomic_load(&base->errors);
        made.damaged += atomic_load(&base->damaged);
    }
    *counters = made;
    return status;
}
