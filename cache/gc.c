/* Giving room back: what was not used for long, then what was used longest ago until the rest fits.
 *
 *   1. uses counted by this process are written: they must not look old
 *   2. artifacts, trials and misses older than a time
 *   3. artifacts, the longest unused first, until the pages in use fit
 *   4. rows of the manifest whose artifact has gone
 *   5. free pages go back to the file system, and the -wal is emptied
 *
 * Everything is done a few rows or pages at a time, each a transaction of its own: others get their
 * turn to write in between, and whatever ends it leaves a sound store. Who has an artifact in use
 * has it in memory. Pinned artifacts and tuned configs stay.
 */
#include "cache/db.h"
#include "cache/tally.h"

#include <string.h>
#include <time.h>

/* Runs `sql` with one number; how many rows it changed. 0 also when it failed: *status says so. */
static int64_t change(struct qn_store *store, const char *sql, int64_t number, int *status)
{
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    *status = QN_STORE_MISS;
    if (!db)
        return 0;
    struct qn_query query = qn_query(db, sql);
    qn_bind_int(&query, number);
    qn_run(&query);
    int changed = qn_db_changes(db);
    *status = qn_db_give(db);
    return *status == QN_STORE_OK ? changed : 0;
}

/* The same until nothing is left to change. */
static int64_t change_all(struct qn_store *store, const char *sql, int64_t number, int *status)
{
    int64_t sum = 0, changed = 1;

    while (*status == QN_STORE_OK && changed) {
        changed = change(store, sql, number, status);
        sum += changed;
    }
    return sum;
}

/* Bytes of the file's pages, all of them and those in use. */
static int read_sizes(struct qn_store *store, int64_t *bytes, int64_t *used)
{
    static const char sql[] =
        "SELECT page_count * page_size, (page_count - freelist_count) * page_size "
        "FROM pragma_page_count, pragma_page_size, pragma_freelist_count";
    struct qn_db *db = qn_db_take(store, QN_READ);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    if (qn_step(&query)) {
        *bytes = qn_take_int(&query);
        *used = qn_take_int(&query);
    }
    qn_end(&query);
    return qn_db_give(db);
}

static int remove_old(struct qn_store *store, int64_t before, struct qn_freed *freed)
{
    static const char artifacts[] =
        "DELETE FROM artifact WHERE id IN (SELECT id FROM artifact WHERE is_pinned = 0 "
        "AND last_use < ? ORDER BY last_use, id LIMIT 32)";
    static const char trials[] = "DELETE FROM trial WHERE id IN "
                                 "(SELECT id FROM trial WHERE created < ? LIMIT 256)";
    static const char misses[] = "DELETE FROM miss WHERE key IN "
                                 "(SELECT key FROM miss WHERE last_seen < ? LIMIT 256)";
    int status = QN_STORE_OK;

    freed->artifacts += change_all(store, artifacts, before, &status);
    freed->trials += change_all(store, trials, before, &status);
    freed->misses += change_all(store, misses, before, &status);
    return status;
}

static int remove_unused(struct qn_store *store, int64_t most, struct qn_freed *freed)
{
    static const char sql[] = "DELETE FROM artifact WHERE id IN (SELECT id FROM artifact "
                              "WHERE is_pinned = 0 ORDER BY last_use, id LIMIT ?)";
    int64_t bytes = 0, used = 0, changed = 1;
    int status = read_sizes(store, &bytes, &used);

    while (status == QN_STORE_OK && used > most && changed) {
        changed = change(store, sql, 4, &status);
        freed->artifacts += changed;
        if (status == QN_STORE_OK)
            status = read_sizes(store, &bytes, &used);
    }
    return status;
}

static int run(struct qn_store *store, const char *sql)
{
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    while (qn_step(&query))
        ;
    qn_end(&query);
    return qn_db_give(db);
}

/* A file that cannot give pages back singly, as quern made them before, is written anew, once. */
static int rewrite(struct qn_store *store)
{
    static const char mode[] = "SELECT auto_vacuum FROM pragma_auto_vacuum";
    static const char change_mode[] = "PRAGMA auto_vacuum = INCREMENTAL";
    static const char vacuum[] = "VACUUM";
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, mode);
    int is_plain = qn_step(&query) && !qn_take_int(&query);
    qn_end(&query);
    if (is_plain) { /* by one connection: it is what the mode is of until then */
        query = qn_query(db, change_mode);
        qn_run(&query);
        query = qn_query(db, vacuum);
        qn_run(&query);
    }
    return qn_db_give(db);
}

static int shrink(struct qn_store *store)
{
    static const char vacuum[] = "PRAGMA incremental_vacuum(256)";
    static const char empty_wal[] = "PRAGMA wal_checkpoint(TRUNCATE)";
    int64_t bytes = 0, used = 0, before = -1;
    int status = read_sizes(store, &bytes, &used);

    if (!status && used < bytes)
        status = rewrite(store);
    while (!status && used < bytes && bytes != before) {
        before = bytes;
        status = run(store, vacuum);
        if (!status)
            status = read_sizes(store, &bytes, &used);
    }
    return status ? status : run(store, empty_wal);
}

int qn_store_gc(struct qn_store *store, const struct qn_limits *limits, struct qn_freed *freed)
{
    static const char orphans[] = "DELETE FROM manifest WHERE ? AND NOT EXISTS "
                                  "(SELECT 1 FROM artifact WHERE artifact.key = manifest.key)";
    int64_t before = 0, after = 0, used;

    memset(freed, 0, sizeof *freed);
    qn_tally_flush(qn_store_tally(store), store);
    int status = read_sizes(store, &before, &used);
    if (!status && limits->older_than_s)
        status = remove_old(store, time(NULL) - limits->older_than_s, freed);
    if (!status && limits->bytes)
        status = remove_unused(store, limits->bytes, freed);
    if (!status)
        change(store, orphans, 1, &status);
    if (!status)
        status = shrink(store);
    if (!status)
        status = read_sizes(store, &after, &used);
    freed->bytes = before > after ? before - after : 0;
    return status;
}
