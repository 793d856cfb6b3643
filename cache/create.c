/* A new store: built beside its place and renamed into it, so that nobody ever sees half of one.
 *
 *   1. remove what is left beside the place: a -wal of a file that somebody deleted would be
 *      replayed into the new one, and so would one that another user put there
 *   2. PATH.new: made with mode 0600, schema, then WAL; closed, which leaves one file
 *   3. one fsync, in place of one a statement: a file of this name that a power cut leaves half
 *      written would be a damaged store
 *   4. rename to PATH
 *
 * All of it under the lock of qn_place_lock(). Switching a file to WAL wants it alone and does not
 * wait (a busy timeout does not cover it), which is why it is done here, once, on a file that no
 * other process can have open.
 */
#include "cache/db.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* 0: it is not there any more. */
static int remove_beside(const struct qn_place *place, const char *suffix)
{
    char *name = qn_place_beside(place, suffix);
    int rc = name && (unlink(name) == 0 || errno == ENOENT) ? 0 : -1;
    int code = errno;

    free(name);
    errno = code;
    return rc;
}

/* WAL needs memory that all users of the file share: not so on a network file system. */
static int fill(const struct qn_place *place, const char *name, char *error, size_t error_bytes)
{
    sqlite3 *sqlite = NULL;
    int rc =
        sqlite3_open_v2(name, &sqlite, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, QN_DB_VFS);

    if (!rc)
        rc = qn_db_script(sqlite, "PRAGMA synchronous = OFF");
    if (!rc)
        rc = qn_db_script(sqlite, qn_schema_sql);
    if (!rc && !place->is_network)
        rc = qn_db_script(sqlite, "PRAGMA journal_mode = WAL");
    if (!rc && !qn_db_is_journal_private(sqlite))
        rc = SQLITE_PERM; /* put there since step 1 */
    if (rc)
        snprintf(error, error_bytes, "cache=%s: cannot be created: %s", place->path,
                 rc == sqlite3_errcode(sqlite) ? sqlite3_errmsg(sqlite) : sqlite3_errstr(rc));
    int closed = sqlite3_close(sqlite);
    return rc ? rc : closed;
}

int qn_db_create(const struct qn_place *place, char *error, size_t error_bytes)
{
    static const char *const stale[] = { "-wal",         "-shm",     "-journal", ".new",
                                         ".new-journal", ".new-wal", ".new-shm" };
    int rc = SQLITE_NOMEM;

    for (size_t i = 0; i < sizeof stale / sizeof *stale; i++) {
        if (remove_beside(place, stale[i])) {
            snprintf(error, error_bytes, "cache=%s: cannot be created: %s%s cannot be removed: %m",
                     place->path, place->path, stale[i]);
            return SQLITE_IOERR;
        }
    }
    char *name = qn_place_beside(place, ".new");
    int fd = name ? open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
    if (fd >= 0)
        rc = fill(place, name, error, error_bytes);
    if (fd < 0 || (!rc && (fsync(fd) || rename(name, place->real)))) {
        rc = SQLITE_IOERR;
        snprintf(error, error_bytes, "cache=%s: cannot be created: %m", place->path);
    }
    if (fd >= 0)
        close(fd);
    if (rc)
        remove_beside(place, ".new");
    free(name);
    return rc;
}

/* ---- Files of older versions ---- */

static int user_version(sqlite3 *sqlite)
{
    sqlite3_stmt *stmt = NULL;
    int version = QN_STORE_SCHEMA; /* unknown: left as it is */

    if (!sqlite3_prepare_v2(sqlite, "PRAGMA user_version", -1, &stmt, NULL) &&
        sqlite3_step(stmt) == SQLITE_ROW)
        version = sqlite3_column_int(stmt, 0);
    sqlite3_finalize(stmt);
    return version;
}

/* Asked of SQLite and not of the header, which may be older than a commit in the -wal. SQLite's
 * lock on the file is the lease: asked again under it, another process may have done it meanwhile.
 * A process of the older quern that has the file open goes on, and takes packed rows for damaged
 * ones, which it makes again. */
int qn_db_migrate(sqlite3 *sqlite)
{
    static const char from_1[] =
        "CREATE TABLE manifest (key TEXT NOT NULL, target TEXT NOT NULL, model TEXT NOT NULL, "
        "rank TEXT NOT NULL, used_in TEXT NOT NULL, spec TEXT NOT NULL, kind TEXT NOT NULL, "
        "toolkit TEXT NOT NULL, created INTEGER NOT NULL, "
        "PRIMARY KEY (model, rank, used_in, spec, target, key)) WITHOUT ROWID; "
        "ALTER TABLE artifact ADD COLUMN source_bytes INTEGER NOT NULL DEFAULT 0; "
        "ALTER TABLE tuned ADD COLUMN heuristic_variant TEXT NOT NULL DEFAULT ''; "
        "ALTER TABLE tuned ADD COLUMN heuristic_config TEXT NOT NULL DEFAULT ''; "
        "ALTER TABLE tuned ADD COLUMN heuristic_us REAL NOT NULL DEFAULT 0; "
        "ALTER TABLE tuned ADD COLUMN heuristic_spread_us REAL NOT NULL DEFAULT 0; "
        "PRAGMA user_version = 2;";

    if (user_version(sqlite) >= QN_STORE_SCHEMA)
        return SQLITE_OK;
    int rc = qn_db_script(sqlite, "BEGIN IMMEDIATE");
    if (rc)
        return rc;
    if (user_version(sqlite) == 1)
        rc = qn_db_script(sqlite, from_1);
    if (!rc)
        rc = qn_db_script(sqlite, "COMMIT");
    if (rc)
        qn_db_script(sqlite, "ROLLBACK");
    else /* into the header, by which an older quern knows what it must not touch */
        qn_db_script(sqlite, "PRAGMA wal_checkpoint(PASSIVE)");
    return rc;
}
