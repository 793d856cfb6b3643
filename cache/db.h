/* One connection to the store's file, and how its statements are run. Every other file of the store
 * is written in these words:
 *
 *     struct qn_db *db = qn_db_take(store, QN_READ);       borrow a connection, or NULL
 *     struct qn_query query = qn_query(db, sql);           prepared once a connection
 *     qn_bind_text(&query, name);                          parameters, in their order
 *     if (qn_step(&query)) {                               a row
 *         value = qn_take_text(&query);                    columns, in their order
 *     }
 *     qn_end(&query);
 *     return qn_db_give(db);                               QN_STORE_OK, or QN_STORE_MISS: it failed
 *
 * The first failure stays in db->rc; every step after it does nothing, and qn_db_give() counts it
 * and says it once. So no line in between has to look at an error.
 */
#ifndef QN_DB_H
#define QN_DB_H

#include "cache/place.h"
#include "cache/store.h"

#include <sqlite3.h>

#define QN_DB_STATEMENTS 64          /* distinct SQL texts of the store, at most */
#define QN_APPLICATION_ID 1364546126 /* "QURN" */
#define QN_DB_VFS "unix"             /* not the program's default one: db.c knows its files */

extern const char qn_schema_sql[]; /* cache/schema.sql, embedded by the build */

struct qn_db {
    struct qn_store *store;
    struct qn_db *next; /* among the idle ones */
    sqlite3 *sqlite;
    int rc;          /* SQLite's code of the first failure since it was taken */
    int row_changes; /* of the connection, when it was taken */
    char message[200];
    int statement_count;
    struct {
        const char *sql; /* compared by address: SQL texts are static const arrays */
        sqlite3_stmt *stmt;
    } statements[QN_DB_STATEMENTS];
};

struct qn_query {
    struct qn_db *db;
    sqlite3_stmt *stmt; /* NULL after a failure */
    int parameter, column;
};

enum qn_access { QN_READ, QN_WRITE };

/* ---- Borrowing (store.c) ---- */

/* NULL when there is none to be had: answer QN_STORE_MISS. Not held across callbacks. */
struct qn_db *qn_db_take(struct qn_store *store, enum qn_access access);
int qn_db_give(struct qn_db *db);

/* Did the last write fail for want of a disk to write to? */
int qn_store_is_full(const struct qn_store *store);

/* ---- Leases that could not be released (store.c keeps them, lease.c knows what they are) ---- */

struct qn_lease;
void qn_store_owe(struct qn_store *store, struct qn_lease *lease, struct qn_lease **next);
struct qn_lease *qn_store_take_owed(struct qn_store *store); /* all, linked; NULL: none */
/* When the store closes: tries once more, and frees them. */
void qn_lease_forget(struct qn_store *store);

/* ---- Opening and closing (db.c) ---- */

enum qn_open_status {
    QN_OPEN_DONE,
    QN_OPEN_BUSY,    /* another process has it for itself at this moment: try again */
    QN_OPEN_DAMAGED, /* ours, and not sound: set it aside */
    QN_OPEN_REFUSED, /* not ours, or of a newer version: a user must decide */
    QN_OPEN_FAILED   /* anything else */
};
/* The file is left as it was unless QN_OPEN_DONE. */
enum qn_open_status qn_db_open(const struct qn_place *place, struct qn_db **db, char *error,
                               size_t error_bytes);
void qn_db_close(struct qn_db *db); /* NULL is allowed */

/* Makes the file, whole or not at all (create.c). Under qn_place_lock(). SQLite's code. */
int qn_db_create(const struct qn_place *place, char *error, size_t error_bytes);
/* Brings the tables of an older version up to date, whole or not at all. SQLite's code. */
int qn_db_migrate(sqlite3 *sqlite);
/* Is the -wal, or the journal, that SQLite has open a file that only the user may write? 1 also
 * when none is open. */
int qn_db_is_journal_private(sqlite3 *sqlite);
/* Runs SQL texts; SQLite's code. */
int qn_db_script(sqlite3 *sqlite, const char *sql);

/* ---- Statements (db.c) ---- */

void qn_db_fail(struct qn_db *db, int rc);
void qn_db_begin(struct qn_db *db);        /* a write transaction */
int qn_db_changes(const struct qn_db *db); /* rows changed by the last statement; 0: it failed */
void qn_db_commit(struct qn_db *db);       /* rolls back if anything failed */

struct qn_query qn_query(struct qn_db *db, const char *sql);
void qn_bind_text(struct qn_query *query, const char *text); /* NULL: '' */
void qn_bind_int(struct qn_query *query, int64_t value);
void qn_bind_real(struct qn_query *query, double value);
void qn_bind_blob(struct qn_query *query, const void *bytes, size_t size);
int qn_step(struct qn_query *query); /* 1: a row */
void qn_end(struct qn_query *query);
void qn_run(struct qn_query *query); /* for a statement without rows: step and end */

char *qn_take_text(struct qn_query *query); /* malloc'ed; NULL: out of memory, and db->rc says so */
void *qn_take_blob(struct qn_query *query, size_t *size);
void qn_take_key(struct qn_query *query, char key[QN_KEY_HEX]);
int64_t qn_take_int(struct qn_query *query);
double qn_take_real(struct qn_query *query);

#endif
