/* Trials: every candidate that a tuning tried, committed one by one, the rejected ones with their
 * reason. A sweep that was killed reads them back and goes on where it was.
 *
 * A candidate is (text, generation, variant, config); a second trial of it replaces the first,
 * since it was made on newer templates or by a newer compiler.
 */
#include "cache/db.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct row {
    int64_t id;
    struct qn_trial trial;
};

void qn_trial_fini(struct qn_trial *trial)
{
    free(trial->text);
    free(trial->variant);
    free(trial->config);
    free(trial->digest);
    free(trial->toolkit);
    free(trial->outcome);
    memset(trial, 0, sizeof *trial);
}

int qn_trial_put(struct qn_store *store, const struct qn_trial *trial)
{
    static const char sql[] =
        "INSERT OR REPLACE INTO trial (key, generation, variant, config, text, digest, toolkit, "
        "outcome, time_us, spread_us, samples, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
        "?)";
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    char key[QN_KEY_HEX];

    if (!db)
        return QN_STORE_MISS;
    qn_key_hex(trial->text, strlen(trial->text), key);
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, key);
    qn_bind_int(&query, trial->generation);
    qn_bind_text(&query, trial->variant);
    qn_bind_text(&query, trial->config);
    qn_bind_text(&query, trial->text);
    qn_bind_text(&query, trial->digest);
    qn_bind_text(&query, trial->toolkit);
    qn_bind_text(&query, trial->outcome);
    qn_bind_real(&query, trial->time_us);
    qn_bind_real(&query, trial->spread_us);
    qn_bind_int(&query, trial->samples);
    qn_bind_int(&query, time(NULL));
    qn_run(&query);
    return qn_db_give(db);
}

static void take_row(struct qn_query *query, struct row *row)
{
    struct qn_trial *trial = &row->trial;

    row->id = qn_take_int(query);
    trial->text = qn_take_text(query);
    trial->variant = qn_take_text(query);
    trial->config = qn_take_text(query);
    trial->digest = qn_take_text(query);
    trial->toolkit = qn_take_text(query);
    trial->generation = qn_take_int(query);
    trial->outcome = qn_take_text(query);
    trial->time_us = qn_take_real(query);
    trial->spread_us = qn_take_real(query);
    trial->samples = qn_take_int(query);
    trial->created = qn_take_int(query);
}

/* The first trial of key, text and generation after id `after`. 1: there is one. */
static int next_trial(struct qn_store *store, const char *text, int64_t generation, int64_t after,
                      struct row *row, int *status)
{
    static const char sql[] =
        "SELECT id, text, variant, config, digest, toolkit, generation, outcome, time_us, "
        "spread_us, samples, created FROM trial WHERE key = ? AND text = ? AND generation = ? "
        "AND id > ? ORDER BY id LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);
    char key[QN_KEY_HEX];
    int is_found = 0;

    memset(row, 0, sizeof *row);
    *status = QN_STORE_MISS;
    if (!db)
        return 0;
    qn_key_hex(text, strlen(text), key);
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, key);
    qn_bind_text(&query, text);
    qn_bind_int(&query, generation);
    qn_bind_int(&query, after);
    is_found = qn_step(&query);
    if (is_found)
        take_row(&query, row);
    qn_end(&query);
    *status = qn_db_give(db);
    return is_found && *status == QN_STORE_OK;
}

int qn_trial_each(struct qn_store *store, const char *text, int64_t generation,
                  int (*visit)(void *user, const struct qn_trial *trial), void *user)
{
    struct row row;
    int64_t after = 0;
    int status, is_ended = 0;

    while (!is_ended && next_trial(store, text, generation, after, &row, &status)) {
        after = row.id;
        is_ended = visit(user, &row.trial);
        qn_trial_fini(&row.trial);
    }
    if (!is_ended)
        qn_trial_fini(&row.trial);
    return status;
}
