/* Small things written down: misses, for a later sweep to replay, and meta, a name and a value. */
#include "cache/db.h"

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
