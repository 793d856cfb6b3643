/* The manifest: for which model, rank and call each artifact of a bundle is here. */
#include "cache/db.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void qn_manifest_fini(struct qn_manifest *row)
{
    free(row->target);
    free(row->model);
    free(row->rank);
    free(row->where);
    free(row->spec);
    free(row->kind);
    free(row->toolkit);
    memset(row, 0, sizeof *row);
}

int qn_manifest_put(struct qn_store *store, const struct qn_manifest *row)
{
    static const char sql[] =
        "INSERT OR REPLACE INTO manifest (key, target, model, rank, used_in, spec, kind, toolkit, "
        "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, row->key);
    qn_bind_text(&query, row->target);
    qn_bind_text(&query, row->model);
    qn_bind_text(&query, row->rank);
    qn_bind_text(&query, row->where);
    qn_bind_text(&query, row->spec);
    qn_bind_text(&query, row->kind);
    qn_bind_text(&query, row->toolkit);
    qn_bind_int(&query, row->created ? row->created : time(NULL));
    qn_run(&query);
    return qn_db_give(db);
}

static void take_row(struct qn_query *query, struct qn_manifest *row)
{
    row->model = qn_take_text(query);
    row->rank = qn_take_text(query);
    row->where = qn_take_text(query);
    row->spec = qn_take_text(query);
    row->target = qn_take_text(query);
    qn_take_key(query, row->key);
    row->kind = qn_take_text(query);
    row->toolkit = qn_take_text(query);
    row->created = qn_take_int(query);
}

/* One row a step, nothing held between steps: the next one after the last seen, in the order of the
 * six columns that name a row. */
int qn_manifest_each(struct qn_store *store,
                     int (*visit)(void *user, const struct qn_manifest *row), void *user)
{
    static const char sql[] =
        "SELECT model, rank, used_in, spec, target, key, kind, toolkit, created FROM manifest "
        "WHERE (model, rank, used_in, spec, target, key) > (?, ?, ?, ?, ?, ?) "
        "ORDER BY model, rank, used_in, spec, target, key LIMIT 1";
    struct qn_manifest last = { 0 };
    int status = QN_STORE_MISS, is_found = 1, is_ended = 0;

    while (is_found && !is_ended) {
        struct qn_manifest row = { 0 };
        struct qn_db *db = qn_db_take(store, QN_READ);
        status = QN_STORE_MISS;
        if (!db)
            break;
        struct qn_query query = qn_query(db, sql);
        qn_bind_text(&query, last.model);
        qn_bind_text(&query, last.rank);
        qn_bind_text(&query, last.where);
        qn_bind_text(&query, last.spec);
        qn_bind_text(&query, last.target);
        qn_bind_text(&query, last.key);
        is_found = qn_step(&query);
        if (is_found)
            take_row(&query, &row);
        qn_end(&query);
        status = qn_db_give(db);
        is_found = is_found && status == QN_STORE_OK;
        if (is_found)
            is_ended = visit(user, &row);
        qn_manifest_fini(&last);
        last = row;
    }
    qn_manifest_fini(&last);
    return status;
}

int qn_manifest_has(struct qn_store *store, const char *key, const char *target, const char *model)
{
    static const char sql[] = "SELECT 1 FROM manifest WHERE key = ?1 AND ?2 IN ('', target) "
                              "AND ?3 IN ('', model) LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);

    if (!db)
        return 0;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, key);
    qn_bind_text(&query, target);
    qn_bind_text(&query, model);
    int is_found = qn_step(&query);
    qn_end(&query);
    return qn_db_give(db) == QN_STORE_OK && is_found;
}
