/* A connection: opened with care, its statements prepared once.
 *
 * Opening, in order:
 *
 *   1. the caller has looked at the file from outside (place.c)
 *   2. sqlite3_open_v2: opens the descriptor and reads nothing that matters
 *   3. is that descriptor the file that was looked at?
 *   4. the header, 100 bytes read through SQLite's own descriptor, without a lock: is it an SQLite
 *      file, is it ours, of a version that we know? If not, nothing has been written or made
 *   5. settings of the connection
 *   6. a first read: recovers a -wal left by a killed process, finds a truncated file
 *   7. is the -wal that was opened by 6 the user's? Until then nothing of it gets into the file
 *   8. tables of an older version are brought up to date
 *
 * Invariants: a connection is used by one thread at a time (store.c lends it), so SQLite runs
 * without mutexes of its own; every statement is reset before the connection is given back, so that
 * no read transaction stays open and the -wal can be checkpointed.
 */
#include "cache/db.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_BYTES 100
#define HEADER_USER_VERSION 60
#define HEADER_APPLICATION_ID 68
#define BUSY_TIMEOUT_MS 5000
#define OLDEST_SCHEMA 1 /* that qn_db_migrate() brings up to date */

int qn_db_script(sqlite3 *sqlite, const char *sql)
{
    return sqlite3_exec(sqlite, sql, NULL, NULL, NULL);
}

/* ---- Opening ---- */

/* "file:/path?immutable=1", with what a URI minds written as %XX. */
static char *immutable_uri(const char *path)
{
    static const char hex[] = "0123456789ABCDEF";
    char *uri = malloc(3 * strlen(path) + sizeof "file:?immutable=1");
    char *end = uri;

    if (!uri)
        return NULL;
    end = stpcpy(end, "file:");
    for (const unsigned char *c = (const unsigned char *)path; *c; c++) {
        if (strchr("%?#", *c)) {
            *end++ = '%';
            *end++ = hex[*c >> 4];
            *end++ = hex[*c & 15];
        } else {
            *end++ = (char)*c;
        }
    }
    strcpy(end, "?immutable=1");
    return uri;
}

/* A file that may not be written. Without a -wal beside it nobody is writing it, and `immutable`
 * spares SQLite the -shm that it would make; a base never has one. With a -wal the newest rows are
 * in that, and a -shm is needed; where there is none and none can be made, the rows of the last
 * checkpoint must do. */
static int is_immutable(const struct qn_place *place)
{
    if (place->is_base)
        return 1;
    int can_use_wal = !place->is_folder_read_only || qn_place_has(place, "-shm");

    return place->is_read_only && !(can_use_wal && qn_place_has(place, "-wal"));
}

static int open_handle(const struct qn_place *place, sqlite3 **sqlite)
{
    if (!place->real)
        return sqlite3_open_v2(":memory:", sqlite, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
                               QN_DB_VFS);
    int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW;
    char *uri = is_immutable(place) ? immutable_uri(place->real) : NULL;

    flags |= place->is_read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    flags |= uri ? SQLITE_OPEN_URI : 0;
    int rc = sqlite3_open_v2(uri ? uri : place->real, sqlite, flags, QN_DB_VFS);
    free(uri);
    return rc;
}

/* How every file of SQLite's "unix" VFS begins (struct unixFile in its os_unix.c, since 2011). No
 * file control hands out the descriptor. SQLITE_FCNTL_HAS_MOVED asks by name and so can be raced,
 * and a descriptor of our own would drop locks (place.c). */
struct unix_file {
    const sqlite3_io_methods *methods; /* NULL: not open */
    sqlite3_vfs *vfs;
    void *inode;
    int fd;
};

/* The descriptor of the file that a SQLITE_FCNTL_..._POINTER names. 0: it is not open. -1: its
 * struct is not as above, which a pointer that SQLite tells us as well gives away. */
static int descriptor_of(sqlite3 *sqlite, int which)
{
    sqlite3_file *file = NULL;
    sqlite3_vfs *vfs = NULL;

    sqlite3_file_control(sqlite, "main", which, &file);
    sqlite3_file_control(sqlite, "main", SQLITE_FCNTL_VFS_POINTER, &vfs);
    if (!file || !file->pMethods)
        return 0;
    const struct unix_file *known = (const void *)file;
    return known->vfs == vfs && known->fd > 0 ? known->fd : -1;
}

int qn_db_is_journal_private(sqlite3 *sqlite)
{
    int fd = descriptor_of(sqlite, SQLITE_FCNTL_JOURNAL_POINTER);

    return !fd || qn_place_is_private(fd);
}

/* BUSY: the next look finds out what is there now, and refuses it or not. */
static enum qn_open_status check_descriptor(const struct qn_place *place, sqlite3 *sqlite,
                                            char *error, size_t error_bytes)
{
    int fd = descriptor_of(sqlite, SQLITE_FCNTL_FILE_POINTER);

    if (fd <= 0) {
        snprintf(error, error_bytes, "cache=%s: SQLite does not say which file it opened",
                 place->path);
        return QN_OPEN_FAILED;
    }
    if (!qn_place_is_seen(place, fd)) {
        snprintf(error, error_bytes, "cache=%s: was replaced while it was opened", place->path);
        return QN_OPEN_BUSY;
    }
    return QN_OPEN_DONE;
}

static uint32_t big_endian(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Through SQLite's descriptor and not one of ours: closing ours would drop this process' locks on
 * the file (place.c). */
static enum qn_open_status check_header(const struct qn_place *place, sqlite3 *sqlite, char *error,
                                        size_t error_bytes)
{
    unsigned char header[HEADER_BYTES] = { 0 };
    sqlite3_file *file = NULL;

    sqlite3_file_control(sqlite, "main", SQLITE_FCNTL_FILE_POINTER, &file);
    int rc = file && file->pMethods ? file->pMethods->xRead(file, header, sizeof header, 0)
                                    : SQLITE_IOERR;
    if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) {
        snprintf(error, error_bytes, "cache=%s: cannot be read: %s", place->path,
                 sqlite3_errstr(rc));
        return QN_OPEN_FAILED;
    }
    if (rc == SQLITE_IOERR_SHORT_READ || memcmp(header, "SQLite format 3", 16)) {
        snprintf(error, error_bytes,
                 "cache=%s: is not a quern cache (not an SQLite file); allowed: another name, or "
                 "remove it",
                 place->path);
        return QN_OPEN_REFUSED;
    }
    uint32_t application_id = big_endian(header + HEADER_APPLICATION_ID);
    if (application_id != QN_APPLICATION_ID) {
        snprintf(error, error_bytes,
                 "cache=%s: is an SQLite file of another program (application_id=0x%08x; allowed: "
                 "0x%08x)",
                 place->path, application_id, QN_APPLICATION_ID);
        return QN_OPEN_REFUSED;
    }
    uint32_t schema = big_endian(header + HEADER_USER_VERSION);
    int is_old = schema >= OLDEST_SCHEMA && schema < QN_STORE_SCHEMA;
    if (is_old && place->is_read_only) {
        snprintf(error, error_bytes,
                 "cache=%s: was made by an older quern (schema=%u; allowed: %d) and cannot be "
                 "written; open it once where it can",
                 place->path, schema, QN_STORE_SCHEMA);
        return QN_OPEN_REFUSED;
    }
    if (!is_old && schema != QN_STORE_SCHEMA) {
        snprintf(error, error_bytes, "cache=%s: was made by %s quern (schema=%u; allowed: %d)",
                 place->path, schema > QN_STORE_SCHEMA ? "a newer" : "another", schema,
                 QN_STORE_SCHEMA);
        return QN_OPEN_REFUSED;
    }
    return QN_OPEN_DONE;
}

/* The schema of a file is data that somebody may have written: no trigger, view or function in it
 * may run. Commits reach the disk at checkpoints: a cache may lose its last rows to a power cut,
 * and may not be damaged by one. */
static int configure(sqlite3 *sqlite)
{
    sqlite3_extended_result_codes(sqlite, 1);
    sqlite3_busy_timeout(sqlite, BUSY_TIMEOUT_MS);
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_ENABLE_VIEW, 0, NULL);
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL); /* check_journal() */
    return qn_db_script(sqlite, "PRAGMA synchronous = NORMAL; PRAGMA cell_size_check = ON;");
}

/* After the first read. Others can put a -wal of theirs beside a store in /tmp after the look. */
static enum qn_open_status check_journal(const struct qn_place *place, sqlite3 *sqlite, char *error,
                                         size_t error_bytes)
{
    if (!qn_db_is_journal_private(sqlite)) {
        snprintf(error, error_bytes, "cache=%s: its -wal was replaced while it was opened",
                 place->path);
        return QN_OPEN_BUSY;
    }
    sqlite3_db_config(sqlite, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    return QN_OPEN_DONE;
}

static enum qn_open_status status_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
        return QN_OPEN_DONE;
    case SQLITE_BUSY:
    case SQLITE_PROTOCOL: /* lost too many races for the -wal's locks */
        return QN_OPEN_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return QN_OPEN_DAMAGED;
    default:
        return QN_OPEN_FAILED;
    }
}

enum qn_open_status qn_db_open(const struct qn_place *place, struct qn_db **db, char *error,
                               size_t error_bytes)
{
    struct qn_db *made = calloc(1, sizeof *made);
    enum qn_open_status status = QN_OPEN_FAILED;

    if (!made) {
        snprintf(error, error_bytes, "cache=%s: out of memory", place->path);
        return QN_OPEN_FAILED;
    }
    int rc = open_handle(place, &made->sqlite);
    if (!rc && place->real) {
        status = check_descriptor(place, made->sqlite, error, error_bytes);
        if (status == QN_OPEN_DONE)
            status = check_header(place, made->sqlite, error, error_bytes);
        if (status != QN_OPEN_DONE)
            goto out;
    }
    if (!rc)
        rc = configure(made->sqlite);
    if (!rc && !place->real)
        rc = qn_db_script(made->sqlite, qn_schema_sql);
    if (!rc)
        rc = qn_db_script(made->sqlite, "SELECT count(*) FROM sqlite_schema;");
    status = status_of(rc);
    if (status != QN_OPEN_DONE)
        snprintf(error, error_bytes, "cache=%s: cannot be opened: %s", place->path,
                 made->sqlite ? sqlite3_errmsg(made->sqlite) : sqlite3_errstr(rc));
    else if (place->real)
        status = check_journal(place, made->sqlite, error, error_bytes);
    if (status == QN_OPEN_DONE && place->real) {
        rc = place->is_read_only ? SQLITE_OK : qn_db_migrate(made->sqlite);
        status = status_of(rc);
        if (status != QN_OPEN_DONE)
            snprintf(error, error_bytes, "cache=%s: cannot be brought up to date: %s", place->path,
                     sqlite3_errmsg(made->sqlite));
    }
out:
    if (status != QN_OPEN_DONE)
        qn_db_close(made);
    else
        *db = made;
    return status;
}

void qn_db_close(struct qn_db *db)
{
    if (!db)
        return;
    for (int i = 0; i < db->statement_count; i++)
        sqlite3_finalize(db->statements[i].stmt);
    sqlite3_close(db->sqlite);
    free(db);
}

/* ---- Failures and transactions ---- */

/* The text is copied at once: a rollback would overwrite it. */
void qn_db_fail(struct qn_db *db, int rc)
{
    if (!db->rc) {
        db->rc = rc;
        snprintf(db->message, sizeof db->message, "%s",
                 rc == sqlite3_extended_errcode(db->sqlite) ? sqlite3_errmsg(db->sqlite)
                                                            : sqlite3_errstr(rc));
    }
}

/* IMMEDIATE: a transaction that starts as a reader and then wants to write can lose to another
 * writer in a way that no busy timeout mends. */
void qn_db_begin(struct qn_db *db)
{
    static const char sql[] = "BEGIN IMMEDIATE";
    struct qn_query query = qn_query(db, sql);

    qn_run(&query);
}

int qn_db_changes(const struct qn_db *db)
{
    return db->rc ? 0 : sqlite3_changes(db->sqlite);
}

void qn_db_commit(struct qn_db *db)
{
    static const char sql[] = "COMMIT";
    struct qn_query query = qn_query(db, sql);

    qn_run(&query);
    if (!sqlite3_get_autocommit(db->sqlite))
        qn_db_script(db->sqlite, "ROLLBACK");
}

/* ---- Statements ---- */

static sqlite3_stmt *prepared(struct qn_db *db, const char *sql)
{
    for (int i = 0; i < db->statement_count; i++)
        if (db->statements[i].sql == sql)
            return db->statements[i].stmt;
    sqlite3_stmt *stmt = NULL;
    int rc = db->statement_count == QN_DB_STATEMENTS
                 ? SQLITE_MISUSE
                 : sqlite3_prepare_v3(db->sqlite, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL);
    if (rc) {
        qn_db_fail(db, rc);
        return NULL;
    }
    db->statements[db->statement_count].sql = sql;
    db->statements[db->statement_count++].stmt = stmt;
    return stmt;
}

struct qn_query qn_query(struct qn_db *db, const char *sql)
{
    struct qn_query query = { .db = db, .stmt = db->rc ? NULL : prepared(db, sql) };

    return query;
}

static void bound(struct qn_query *query, int rc)
{
    if (rc)
        qn_db_fail(query->db, rc);
}

/* STATIC: whatever is bound outlives the query, which ends before its caller returns. */
void qn_bind_text(struct qn_query *query, const char *text)
{
    if (query->stmt)
        bound(query, sqlite3_bind_text(query->stmt, ++query->parameter, text ? text : "", -1,
                                       SQLITE_STATIC));
}

void qn_bind_int(struct qn_query *query, int64_t value)
{
    if (query->stmt)
        bound(query, sqlite3_bind_int64(query->stmt, ++query->parameter, value));
}

void qn_bind_real(struct qn_query *query, double value)
{
    if (query->stmt)
        bound(query, sqlite3_bind_double(query->stmt, ++query->parameter, value));
}

/* An empty blob is bound as one: a NULL pointer would make it NULL. */
void qn_bind_blob(struct qn_query *query, const void *bytes, size_t size)
{
    if (query->stmt)
        bound(query, sqlite3_bind_blob64(query->stmt, ++query->parameter, size ? bytes : "", size,
                                         SQLITE_STATIC));
}

int qn_step(struct qn_query *query)
{
    if (!query->stmt || query->db->rc)
        return 0;
    int rc = sqlite3_step(query->stmt);
    query->column = 0;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        qn_db_fail(query->db, rc);
    return rc == SQLITE_ROW;
}

void qn_end(struct qn_query *query)
{
    if (query->stmt) {
        sqlite3_reset(query->stmt);
        sqlite3_clear_bindings(query->stmt);
    }
}

void qn_run(struct qn_query *query)
{
    qn_step(query);
    qn_end(query);
}

/* ---- Columns ---- */

/* `size` bytes and a zero after them. */
static void *copied(struct qn_query *query, const void *bytes, size_t size)
{
    char *copy = malloc(size + 1);

    if (!copy) {
        qn_db_fail(query->db, SQLITE_NOMEM);
        return NULL;
    }
    if (size)
        memcpy(copy, bytes, size);
    copy[size] = 0;
    return copy;
}

char *qn_take_text(struct qn_query *query)
{
    int column = query->column++;
    const void *text = sqlite3_column_text(query->stmt, column);

    return copied(query, text, text ? (size_t)sqlite3_column_bytes(query->stmt, column) : 0);
}

void *qn_take_blob(struct qn_query *query, size_t *size)
{
    int column = query->column++;
    const void *bytes = sqlite3_column_blob(query->stmt, column);

    *size = bytes ? (size_t)sqlite3_column_bytes(query->stmt, column) : 0;
    return copied(query, bytes, *size);
}

void qn_take_key(struct qn_query *query, char key[QN_KEY_HEX])
{
    const unsigned char *text = sqlite3_column_text(query->stmt, query->column++);

    snprintf(key, QN_KEY_HEX, "%s", text ? (const char *)text : "");
}

int64_t qn_take_int(struct qn_query *query)
{
    return sqlite3_column_int64(query->stmt, query->column++);
}

double qn_take_real(struct qn_query *query)
{
    return sqlite3_column_double(query->stmt, query->column++);
}
