/* Tuned configs: one winner a key text and generation.
 *
 * Two processes that tune the same bucket may well find two winners, and ranks that run two configs
 * differ in their last bits. So the first one to write a generation decides: an insert that finds
 * the row there is ignored, and reads back what is stored, in the same transaction. A new tuning
 * takes a new generation; what older ones said stays.
 *
 * A config that comes from here is untrusted: its family's legality check is the caller's.
 */
#include "cache/db.h"
#include "cache/tally.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The order of take_row(). */
#define COLUMNS                                                                                    \
    "id, key, generation, text, group_text, family, variant, config, time_us, spread_us, "         \
    "samples, digest, toolkit, profile, provenance, created, heuristic_variant, "                  \
    "heuristic_config, heuristic_us, heuristic_spread_us"

struct row {
    int64_t id;
    struct qn_tuned tuned;
};

void qn_tuned_fini(struct qn_tuned *tuned)
{
    free(tuned->text);
    free(tuned->group);
    free(tuned->family);
    free(tuned->variant);
    free(tuned->config);
    free(tuned->digest);
    free(tuned->toolkit);
    free(tuned->profile);
    free(tuned->provenance);
    free(tuned->heuristic_variant);
    free(tuned->heuristic_config);
    memset(tuned, 0, sizeof *tuned);
}

static void take_row(struct qn_query *query, struct row *row)
{
    struct qn_tuned *tuned = &row->tuned;

    row->id = qn_take_int(query);
    qn_take_key(query, tuned->key);
    tuned->generation = qn_take_int(query);
    tuned->text = qn_take_text(query);
    tuned->group = qn_take_text(query);
    tuned->family = qn_take_text(query);
    tuned->variant = qn_take_text(query);
    tuned->config = qn_take_text(query);
    tuned->time_us = qn_take_real(query);
    tuned->spread_us = qn_take_real(query);
    tuned->samples = qn_take_int(query);
    tuned->digest = qn_take_text(query);
    tuned->toolkit = qn_take_text(query);
    tuned->profile = qn_take_text(query);
    tuned->provenance = qn_take_text(query);
    tuned->created = qn_take_int(query);
    tuned->heuristic_variant = qn_take_text(query);
    tuned->heuristic_config = qn_take_text(query);
    tuned->heuristic_us = qn_take_real(query);
    tuned->heuristic_spread_us = qn_take_real(query);
}

/* ---- Finding ---- */

/* The row of key and generation, or of the newest generation for 0. It counts only if its text is
 * the one asked for: another text under this key is a collision, or damage. */
static int read_winner(struct qn_db *db, const char *key, const char *text, int64_t generation,
                       struct row *row)
{
    static const char sql[] = "SELECT " COLUMNS " FROM tuned WHERE key = ? "
                              "AND (? = 0 OR generation = ?) ORDER BY generation DESC LIMIT 1";
    struct qn_query query = qn_query(db, sql);
    int is_found = 0;

    qn_bind_text(&query, key);
    qn_bind_int(&query, generation);
    qn_bind_int(&query, generation);
    if (qn_step(&query)) {
        take_row(&query, row);
        is_found = !db->rc && !strcmp(row->tuned.text, text);
    }
    qn_end(&query);
    return is_found;
}

/* A row whose text does not hash to its key: no request can ever find it, and it hides the rows of
 * older generations and stands in the way of new ones. */
static int is_damaged(const struct row *row)
{
    char key[QN_KEY_HEX];

    if (!row->tuned.text)
        return 0;
    qn_key_hex(row->tuned.text, strlen(row->tuned.text), key);
    return strcmp(key, row->tuned.key) != 0;
}

static void remove_damaged(struct qn_store *store, const struct row *row)
{
    static const char sql[] = "DELETE FROM tuned WHERE id = ?";

    qn_store_damaged(store, "tuned config", row->tuned.key);
    struct qn_db *db = qn_store_is_base(store) ? NULL : qn_db_take(store, QN_WRITE);
    if (!db)
        return;
    qn_db_begin(db);
    struct qn_query query = qn_query(db, sql);
    qn_bind_int(&query, row->id);
    qn_run(&query);
    qn_counter_add(db, "damaged", 1);
    qn_db_commit(db);
    qn_db_give(db);
}

/* In one file: the store itself, or a base. */
static int find_in(struct qn_store *store, const char *text, struct qn_tuned *tuned)
{
    struct qn_db *db = qn_db_take(store, QN_READ);
    struct row row = { 0 };
    char key[QN_KEY_HEX];

    if (!db)
        return QN_STORE_MISS;
    qn_key_hex(text, strlen(text), key);
    int is_found = read_winner(db, key, text, 0, &row);
    if (qn_db_give(db) == QN_STORE_OK && is_found) {
        *tuned = row.tuned;
        return QN_STORE_OK;
    }
    if (is_damaged(&row))
        remove_damaged(store, &row);
    qn_tuned_fini(&row.tuned);
    return QN_STORE_MISS;
}

int qn_tuned_find(struct qn_store *store, const char *text, struct qn_tuned *tuned)
{
    for (; store; store = qn_store_base(store))
        if (find_in(store, text, tuned) == QN_STORE_OK)
            return QN_STORE_OK;
    return QN_STORE_MISS;
}

/* ---- Putting ---- */

static int64_t next_generation(struct qn_db *db, const char *key)
{
    static const char sql[] = "SELECT coalesce(max(generation), 0) + 1 FROM tuned WHERE key = ?";
    struct qn_query query = qn_query(db, sql);
    int64_t generation = 1;

    qn_bind_text(&query, key);
    if (qn_step(&query))
        generation = qn_take_int(&query);
    qn_end(&query);
    return generation;
}

/* The newest of the bases: a new tuning is newer than what it takes the place of. */
static int64_t base_generation(struct qn_store *store, const char *text)
{
    int64_t newest = 0;

    for (struct qn_store *base = qn_store_base(store); base; base = qn_store_base(base)) {
        struct qn_tuned row;
        if (find_in(base, text, &row) == QN_STORE_OK) {
            newest = row.generation > newest ? row.generation : newest;
            qn_tuned_fini(&row);
        }
    }
    return newest;
}

static void insert(struct qn_db *db, const char *key, int64_t generation,
                   const struct qn_tuned *tuned, int64_t created)
{
    static const char sql[] =
        "INSERT OR IGNORE INTO tuned (key, generation, text, group_text, family, variant, config, "
        "time_us, spread_us, samples, digest, toolkit, profile, provenance, created, "
        "heuristic_variant, heuristic_config, heuristic_us, heuristic_spread_us) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    struct qn_query query = qn_query(db, sql);

    qn_bind_text(&query, key);
    qn_bind_int(&query, generation);
    qn_bind_text(&query, tuned->text);
    qn_bind_text(&query, tuned->group);
    qn_bind_text(&query, tuned->family);
    qn_bind_text(&query, tuned->variant);
    qn_bind_text(&query, tuned->config);
    qn_bind_real(&query, tuned->time_us);
    qn_bind_real(&query, tuned->spread_us);
    qn_bind_int(&query, tuned->samples);
    qn_bind_text(&query, tuned->digest);
    qn_bind_text(&query, tuned->toolkit);
    qn_bind_text(&query, tuned->profile);
    qn_bind_text(&query, tuned->provenance);
    qn_bind_int(&query, created);
    qn_bind_text(&query, tuned->heuristic_variant);
    qn_bind_text(&query, tuned->heuristic_config);
    qn_bind_real(&query, tuned->heuristic_us);
    qn_bind_real(&query, tuned->heuristic_spread_us);
    qn_run(&query);
}

int qn_tuned_put(struct qn_store *store, const struct qn_tuned *tuned, struct qn_tuned *winner)
{
    int64_t older = tuned->generation ? 0 : base_generation(store, tuned->text);
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    struct row row = { 0 };
    char key[QN_KEY_HEX];

    if (!db)
        return QN_STORE_MISS;
    qn_key_hex(tuned->text, strlen(tuned->text), key);
    qn_db_begin(db);
    int64_t generation = tuned->generation ? tuned->generation : next_generation(db, key);
    if (generation <= older)
        generation = older + 1;
    insert(db, key, generation, tuned, time(NULL));
    int is_stored = read_winner(db, key, tuned->text, generation, &row);
    qn_db_commit(db);
    is_stored = qn_db_give(db) == QN_STORE_OK && is_stored;
    if (is_stored && winner)
        *winner = row.tuned;
    else
        qn_tuned_fini(&row.tuned);
    return is_stored ? QN_STORE_OK : QN_STORE_MISS;
}

/* Of one key and device profile (which is part of the key) the newest generation stays, and of one
 * generation that of more samples. */
int qn_tuned_merge(struct qn_store *store, const struct qn_tuned *tuned, int *is_taken)
{
    static const char sql[] = "DELETE FROM tuned WHERE key = ? AND generation = ? AND samples < ?";
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    char key[QN_KEY_HEX];

    *is_taken = 0;
    if (!db)
        return QN_STORE_MISS;
    qn_key_hex(tuned->text, strlen(tuned->text), key);
    qn_db_begin(db);
    if (tuned->generation >= next_generation(db, key) - 1 && !strcmp(key, tuned->key)) {
        struct qn_query query = qn_query(db, sql);
        qn_bind_text(&query, key);
        qn_bind_int(&query, tuned->generation);
        qn_bind_int(&query, tuned->samples);
        qn_run(&query);
        insert(db, key, tuned->generation, tuned, tuned->created);
        *is_taken = qn_db_changes(db) > 0;
    }
    qn_db_commit(db);
    return qn_db_give(db);
}

/* ---- Walking ---- */

typedef int visit_function(void *user, const struct qn_tuned *tuned);

/* One row a step, nothing held between steps: `visit` may take its time and call the store. ?1 of
 * `sql` is the last id seen, ?2 the text. */
static int walk(struct qn_store *store, const char *sql, const char *text, visit_function *visit,
                void *user)
{
    int64_t after = 0;
    int status = QN_STORE_MISS, is_ended = 0, is_found = 1;

    while (is_found && !is_ended) {
        struct row row = { 0 };
        struct qn_db *db = qn_db_take(store, QN_READ);
        if (!db)
            return QN_STORE_MISS;
        struct qn_query query = qn_query(db, sql);
        qn_bind_int(&query, after);
        qn_bind_text(&query, text);
        is_found = qn_step(&query);
        if (is_found) {
            take_row(&query, &row);
            after = row.id;
        }
        qn_end(&query);
        status = qn_db_give(db);
        is_found = is_found && status == QN_STORE_OK;
        if (is_found)
            is_ended = visit(user, &row.tuned);
        qn_tuned_fini(&row.tuned);
    }
    return status;
}

/* A walk of the store and then of each base: a key that a file before this one has is passed over,
 * as find() would. */
struct layer {
    struct qn_store *store, *file;
    visit_function *visit;
    void *user;
    int is_ended;
};

static int visit_uncovered(void *user, const struct qn_tuned *tuned)
{
    struct layer *layer = user;

    for (struct qn_store *file = layer->store; file != layer->file; file = qn_store_base(file)) {
        struct qn_tuned row;
        if (find_in(file, tuned->text, &row) == QN_STORE_OK) {
            qn_tuned_fini(&row);
            return 0;
        }
    }
    return layer->is_ended = layer->visit(layer->user, tuned);
}

int qn_tuned_each(struct qn_store *store, const char *group, visit_function *visit, void *user)
{
    static const char sql[] =
        "SELECT " COLUMNS " FROM tuned AS t WHERE id > ?1 AND group_text = ?2 AND generation = "
        "(SELECT max(generation) FROM tuned WHERE key = t.key) ORDER BY id LIMIT 1";

    struct layer layer = { store, store, visit, user, 0 };
    int status = walk(store, sql, group, visit_uncovered, &layer);

    while (!layer.is_ended && (layer.file = qn_store_base(layer.file)))
        walk(layer.file, sql, group, visit_uncovered, &layer);
    return status;
}

int qn_tuned_list(struct qn_store *store, const char *key_prefix, visit_function *visit, void *user)
{
    static const char sql[] = "SELECT " COLUMNS " FROM tuned WHERE id > ?1 "
                              "AND substr(key, 1, length(?2)) = ?2 ORDER BY id LIMIT 1";

    return walk(store, sql, key_prefix, visit, user);
}
