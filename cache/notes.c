/* Small things written down: misses, for a later sweep to replay, and meta, a name and a value. */
#include "cache/db.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

int qn_miss_put(struct qn_store *store, const char *text, const char *spec_text, const char *family)
{
    static const char sql[] =
        "INSERT INTO miss (key, text, spec_text, family, count, first_seen, last_seen) "
        "VALUES (?1, ?2, ?3, ?4, 1, ?5, ?5) ON CONFLICT (key) DO UPDATE SET "
        "count = count + 1, spec_text = excluded.spec_text, last_seen = excluded.last_seen";
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    char key[QN_KEY_HEX];

    if (!db)
        return QN_STORE_MISS;
    qn_key_hex(text, strlen(text), key);
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, key);
    qn_bind_text(&query, text);
    qn_bind_text(&query, spec_text);
    qn_bind_text(&query, family);
    qn_bind_int(&query, time(NULL));
    qn_run(&query);
    return qn_db_give(db);
}

/* ---- Reading misses back ---- */

struct miss_row {
    char key[QN_KEY_HEX];
    struct qn_miss miss;
};

static void miss_fini(struct qn_miss *miss)
{
    free(miss->text);
    free(miss->spec);
    free(miss->family);
    memset(miss, 0, sizeof *miss);
}

/* The first one after key `after`, into *row. 1: there is one. */
static int next_miss(struct qn_store *store, const char *after, struct miss_row *row, int *status)
{
    static const char sql[] = "SELECT key, text, spec_text, family, count, first_seen, last_seen "
                              "FROM miss WHERE key > ? ORDER BY key LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);
    int is_found;

    memset(row, 0, sizeof *row);
    *status = QN_STORE_MISS;
    if (!db)
        return 0;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, after);
    is_found = qn_step(&query);
    if (is_found) {
        qn_take_key(&query, row->key);
        row->miss.text = qn_take_text(&query);
        row->miss.spec = qn_take_text(&query);
        row->miss.family = qn_take_text(&query);
        row->miss.count = qn_take_int(&query);
        row->miss.first_seen = qn_take_int(&query);
        row->miss.last_seen = qn_take_int(&query);
    }
    qn_end(&query);
    *status = qn_db_give(db);
    return is_found && *status == QN_STORE_OK;
}

int qn_miss_each(struct qn_store *store, int (*visit)(void *user, const struct qn_miss *miss),
                 void *user)
{
    struct miss_row row;
    char after[QN_KEY_HEX] = "";
    int status, is_ended = 0;

    while (!is_ended && next_miss(store, after, &row, &status)) {
        memcpy(after, row.key, sizeof after);
        is_ended = visit(user, &row.miss);
        miss_fini(&row.miss);
    }
    if (!is_ended)
        miss_fini(&row.miss);
    return status;
}

/* ---- Meta ---- */

int qn_meta_find(struct qn_store *store, const char *name, char **value)
{
    static const char sql[] = "SELECT value FROM meta WHERE name = ?";
    struct qn_db *db = qn_db_take(store, QN_READ);
    char *found = NULL;

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, name);
    if (qn_step(&query))
        found = qn_take_text(&query);
    qn_end(&query);
    if (qn_db_give(db) != QN_STORE_OK || !found)
        return QN_STORE_MISS;
    *value = found;
    return QN_STORE_OK;
}

int qn_meta_put(struct qn_store *store, const char *name, const char *value)
{
    static const char sql[] = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)";
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, name);
    qn_bind_text(&query, value);
    qn_run(&query);
    return qn_db_give(db);
}
