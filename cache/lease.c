/* Leases: one process does a piece of work, the others wait for it.
 *
 *     read the row --none, or its holder is gone--> BEGIN IMMEDIATE, read again, write our name
 *          |                                              | somebody was faster
 *     held by a live one <--------------------------------+
 *          |
 *     sleep 1, 2, 4 ... 20 ms, until timeout_s
 *
 * A waiter only reads, so any number of them cost the holder nothing. A holder on this machine is
 * asked for at its process (holder.c): killed, it is replaced within one sleep, and alive it is
 * believed, no matter how long the work takes. One in another container or on another machine is
 * believed while its heartbeat is younger than the waiter's expiry_s; a heartbeat from the future
 * by as much is as stale, clocks being set back.
 *
 * Every acquisition has a random token. A holder that was taken for dead and comes back releases,
 * and beats, only a row with its own token: never its successor's.
 *
 * A lease saves work and protects nothing: whoever gets none does the work privately, and two
 * results are as good as one.
 *
 * On a disk that filled up after an acquisition the row can neither be deleted nor followed by a
 * result. The holder owes the deletion and tries it again with its next lease; and nobody waits for
 * a result that cannot be stored: not who has seen a write fail, and who has waited for PROBE_S
 * tries one.
 */
#include "cache/db.h"
#include "cache/holder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define FIRST_PAUSE_MS 1
#define LAST_PAUSE_MS 20
#define BEATS_PER_EXPIRY 4
#define PROBE_S 2.0

struct qn_lease {
    struct qn_lease *next; /* among those that are owed */
    struct qn_store *store;
    char *name;
    int64_t token;
    double expiry_s, last_beat; /* Unix seconds */
};

static double clock_s(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- One attempt ---- */

struct attempt {
    const char *name;
    double expiry_s;
    struct qn_holder self;
    int64_t token;
};

static void take_holder(struct qn_query *query, struct qn_holder *holder, double *heartbeat)
{
    char *boot_id;

    memset(holder, 0, sizeof *holder);
    holder->pid = qn_take_int(query);
    holder->start_time = qn_take_int(query);
    holder->pid_namespace = qn_take_int(query);
    *heartbeat = qn_take_real(query);
    boot_id = qn_take_text(query);
    if (boot_id)
        snprintf(holder->boot_id, sizeof holder->boot_id, "%s", boot_id);
    free(boot_id);
}

static int is_held(struct qn_db *db, const struct attempt *attempt)
{
    static const char sql[] = "SELECT pid, start_time, pid_namespace, heartbeat, boot_id "
                              "FROM lease WHERE name = ?";
    struct qn_query query = qn_query(db, sql);
    struct qn_holder holder;
    double heartbeat = 0;

    qn_bind_text(&query, attempt->name);
    int is_there = qn_step(&query);
    if (is_there)
        take_holder(&query, &holder, &heartbeat);
    qn_end(&query);
    if (!is_there)
        return 0;
    switch (qn_holder_life(&holder, &attempt->self)) {
    case QN_LIFE_ALIVE:
        return 1;
    case QN_LIFE_DEAD:
        return 0;
    default:
        return fabs(clock_s(CLOCK_REALTIME) - heartbeat) <= attempt->expiry_s;
    }
}

static void write_name(struct qn_db *db, const struct attempt *attempt)
{
    static const char sql[] =
        "INSERT OR REPLACE INTO lease (name, token, pid, start_time, boot_id, pid_namespace, host, "
        "acquired, heartbeat) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)";
    struct qn_query query = qn_query(db, sql);

    qn_bind_text(&query, attempt->name);
    qn_bind_int(&query, attempt->token);
    qn_bind_int(&query, attempt->self.pid);
    qn_bind_int(&query, attempt->self.start_time);
    qn_bind_text(&query, attempt->self.boot_id);
    qn_bind_int(&query, attempt->self.pid_namespace);
    qn_bind_text(&query, attempt->self.host);
    qn_bind_real(&query, clock_s(CLOCK_REALTIME));
    qn_run(&query);
}

enum outcome { ACQUIRED, HELD, IMPOSSIBLE };

static enum outcome try_once(struct qn_store *store, const struct attempt *attempt)
{
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    int held = 0;

    if (!db)
        return IMPOSSIBLE;
    held = is_held(db, attempt);
    if (!held) {
        qn_db_begin(db);
        held = is_held(db, attempt);
        if (!held)
            write_name(db, attempt);
        qn_db_commit(db);
    }
    if (qn_db_give(db) != QN_STORE_OK)
        return IMPOSSIBLE;
    return held ? HELD : ACQUIRED;
}

/* ---- On a full disk ---- */

static int is_deleted(struct qn_lease *lease)
{
    static const char sql[] = "DELETE FROM lease WHERE name = ? AND token = ?";
    struct qn_db *db = qn_db_take(lease->store, QN_WRITE);

    if (!db)
        return 0;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, lease->name);
    qn_bind_int(&query, lease->token);
    qn_run(&query);
    return qn_db_give(db) == QN_STORE_OK;
}

static void free_lease(struct qn_lease *lease)
{
    free(lease->name);
    free(lease);
}

static void pay(struct qn_store *store)
{
    struct qn_lease *lease = qn_store_take_owed(store);

    while (lease) {
        struct qn_lease *next = lease->next;
        qn_lease_release(lease);
        lease = next;
    }
}

void qn_lease_forget(struct qn_store *store)
{
    pay(store);
    struct qn_lease *lease = qn_store_take_owed(store);
    while (lease) {
        struct qn_lease *next = lease->next;
        free_lease(lease);
        lease = next;
    }
}

/* ---- Acquire, beat, release ---- */

static struct qn_lease *make_lease(struct qn_store *store, const struct attempt *attempt)
{
    struct qn_lease *lease = calloc(1, sizeof *lease);

    if (!lease)
        return NULL;
    lease->store = store;
    lease->name = strdup(attempt->name);
    lease->token = attempt->token;
    lease->expiry_s = attempt->expiry_s;
    lease->last_beat = clock_s(CLOCK_REALTIME);
    if (!lease->name) {
        free(lease);
        return NULL;
    }
    return lease;
}

int qn_lease_acquire(struct qn_store *store, const char *name, double timeout_s, double expiry_s,
                     struct qn_lease **lease)
{
    double start_s = clock_s(CLOCK_MONOTONIC), waited_s;
    int is_probed = 0;
    long pause_ms = FIRST_PAUSE_MS;
    struct attempt attempt = { .name = name, .expiry_s = expiry_s };
    struct qn_lease *made = NULL;
    enum outcome outcome = IMPOSSIBLE;

    pay(store);
    qn_holder_init(&attempt.self);
    if (getrandom(&attempt.token, sizeof attempt.token, 0) == (ssize_t)sizeof attempt.token)
        made = make_lease(store, &attempt); /* before the row: a row without it would stay */
    while (made && (outcome = try_once(store, &attempt)) == HELD) {
        waited_s = clock_s(CLOCK_MONOTONIC) - start_s;
        if (waited_s >= timeout_s || qn_store_is_full(store))
            break;
        if (waited_s >= PROBE_S && !is_probed) {
            is_probed = 1;
            qn_meta_put(store, "probe", name);
        }
        nanosleep(&(struct timespec){ .tv_nsec = pause_ms * 1000 * 1000 }, NULL);
        pause_ms = 2 * pause_ms < LAST_PAUSE_MS ? 2 * pause_ms : LAST_PAUSE_MS;
    }
    if (outcome == ACQUIRED) {
        *lease = made;
        return QN_STORE_OK;
    }
    if (made)
        free_lease(made);
    return QN_STORE_MISS;
}

/* Cheap to call often: most calls write nothing. */
void qn_lease_beat(struct qn_lease *lease)
{
    static const char sql[] = "UPDATE lease SET heartbeat = ? WHERE name = ? AND token = ?";
    double now = clock_s(CLOCK_REALTIME);

    if (fabs(now - lease->last_beat) * BEATS_PER_EXPIRY < lease->expiry_s)
        return;
    struct qn_db *db = qn_db_take(lease->store, QN_WRITE);
    if (!db)
        return;
    struct qn_query query = qn_query(db, sql);
    qn_bind_real(&query, now);
    qn_bind_text(&query, lease->name);
    qn_bind_int(&query, lease->token);
    qn_run(&query);
    if (qn_db_give(db) == QN_STORE_OK)
        lease->last_beat = now;
}

void qn_lease_release(struct qn_lease *lease)
{
    if (!lease)
        return;
    if (is_deleted(lease))
        free_lease(lease);
    else
        qn_store_owe(lease->store, lease, &lease->next);
}
