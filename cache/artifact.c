/* Artifacts: compiled bytes under a key text and a compiler.
 *
 * A find walks the rows of its key from the newest to the oldest, one row a step with no statement
 * left open between steps, so that `accept` may take its time and call the store:
 *
 *     row of key (and compiler), id < last       none -> a miss
 *       |  text is another, and hashes to this key: a collision, somebody else's row -> next
 *       |  text does not hash to this key, or the row not to blob_hash: damaged -> delete, next
 *       |  accept says no -> next
 *     a hit
 *
 * blob_hash covers text, compiler and blob, so that a blob under another row's name is as damaged
 * as one with a flipped bit. It finds accidents: whoever can write the file can hash, too.
 *
 * A damaged row is deleted and counted, not kept in a table of its own: its bytes are of no use,
 * they are in a file whose contents get executed, and the next build makes the row again. The
 * warning and the `damaged` counter tell a user that the disk is failing.
 */
#include "cache/db.h"
#include "cache/pack.h"
#include "cache/tally.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The order of take_row(). A listing ends there: whatever stands behind source and blob in a row is
 * read through both of them. */
#define COLUMNS                                                                                    \
    "id, key, text, compiler, target, family, report, log, compile_ms, blob_hash, blob_bytes, "    \
    "hits, created, last_use, is_pinned"
/* The order of take_long(). */
#define LONG_COLUMNS ", source_bytes, source, blob"

#define INSERTED                                                                                   \
    "(key, text, compiler, target, family, report, log, compile_ms, blob_hash, blob_bytes, "       \
    "created, last_use, is_pinned, source_bytes, source, blob) "                                   \
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

struct row {
    int64_t id;
    char blob_hash[QN_KEY_HEX];
    struct qn_artifact artifact;
};

void qn_artifact_fini(struct qn_artifact *artifact)
{
    free(artifact->text);
    free(artifact->source);
    free(artifact->compiler);
    free(artifact->target);
    free(artifact->family);
    free(artifact->log);
    free(artifact->report);
    free(artifact->blob);
    memset(artifact, 0, sizeof *artifact);
}

/* A column that was `*size` bytes before it was packed; if it does not open, as it is stored. */
static void *take_packed(struct qn_query *query, size_t *size)
{
    size_t stored_size;
    void *stored = qn_take_blob(query, &stored_size);
    void *bytes = stored ? qn_unpack(stored, stored_size, *size) : NULL;

    if (!bytes) {
        *size = stored_size;
        return stored;
    }
    free(stored);
    return bytes;
}

static void take_row(struct qn_query *query, struct row *row)
{
    struct qn_artifact *artifact = &row->artifact;

    row->id = qn_take_int(query);
    qn_take_key(query, artifact->key);
    artifact->text = qn_take_text(query);
    artifact->compiler = qn_take_text(query);
    artifact->target = qn_take_text(query);
    artifact->family = qn_take_text(query);
    artifact->report = qn_take_text(query);
    artifact->log = qn_take_text(query);
    artifact->compile_ms = qn_take_real(query);
    qn_take_key(query, row->blob_hash);
    artifact->blob_bytes = (size_t)qn_take_int(query);
    artifact->hits = qn_take_int(query);
    artifact->created = qn_take_int(query);
    artifact->last_use = qn_take_int(query);
    artifact->is_pinned = (int)qn_take_int(query);
}

/* After take_row(): the two long columns. */
static void take_long(struct qn_query *query, struct row *row)
{
    size_t source_bytes = (size_t)qn_take_int(query);

    row->artifact.source = take_packed(query, &source_bytes);
    row->artifact.blob = take_packed(query, &row->artifact.blob_bytes);
}

/* ---- Damage ---- */

/* The hash of three hashes: no end of one part can pass for the beginning of the next. */
static void hash_blob(const struct qn_artifact *artifact, char hash[QN_KEY_HEX])
{
    const char *compiler = artifact->compiler ? artifact->compiler : "";
    char parts[3][QN_KEY_HEX];

    qn_key_hex(artifact->text, strlen(artifact->text), parts[0]);
    qn_key_hex(compiler, strlen(compiler), parts[1]);
    qn_key_hex(artifact->blob, artifact->blob_bytes, parts[2]);
    qn_key_hex(parts, sizeof parts, hash);
}

static int is_of_key(const struct qn_artifact *artifact)
{
    char key[QN_KEY_HEX];

    qn_key_hex(artifact->text, strlen(artifact->text), key);
    return !strcmp(key, artifact->key);
}

static int is_sound(const struct row *row)
{
    char hash[QN_KEY_HEX];

    hash_blob(&row->artifact, hash);
    return !strcmp(hash, row->blob_hash) && is_of_key(&row->artifact);
}

static void remove_damaged(struct qn_store *store, const struct row *row)
{
    static const char sql[] = "DELETE FROM artifact WHERE id = ?";

    qn_store_damaged(store, "artifact", row->artifact.key);
    if (qn_store_is_base(store)) {
        qn_store_shun(store, row->blob_hash);
        return;
    }
    struct qn_db *db = qn_db_take(store, QN_WRITE);
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

/* ---- Finding ---- */

/* The newest row of key (and compiler) older than id `before`. 1: there is one. */
static int next_candidate(struct qn_store *store, const char *key, const char *compiler,
                          int64_t before, struct row *row)
{
    static const char any[] =
        "SELECT " COLUMNS LONG_COLUMNS " FROM artifact WHERE key = ? AND id < ? "
        "ORDER BY id DESC LIMIT 1";
    static const char one[] =
        "SELECT " COLUMNS LONG_COLUMNS " FROM artifact WHERE key = ? AND id < ? "
        "AND compiler = ? ORDER BY id DESC LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);
    int is_found = 0;

    memset(row, 0, sizeof *row);
    if (!db)
        return 0;
    struct qn_query query = qn_query(db, compiler ? one : any);
    qn_bind_text(&query, key);
    qn_bind_int(&query, before);
    if (compiler)
        qn_bind_text(&query, compiler);
    if (qn_step(&query)) {
        take_row(&query, row);
        take_long(&query, row);
        is_found = 1;
    }
    qn_end(&query);
    if (qn_db_give(db) != QN_STORE_OK)
        is_found = 0;
    return is_found;
}

struct wanted {
    const char *text, *compiler;
    int (*accept)(void *user, const struct qn_artifact *artifact);
    void *user;
};

/* Of one file: of the store itself, or of a base. `row` is the caller's to free if found. */
static int find_in(struct qn_store *store, const struct wanted *wanted, struct row *row)
{
    char key[QN_KEY_HEX];
    int64_t before = INT64_MAX;

    qn_key_hex(wanted->text, strlen(wanted->text), key);
    while (next_candidate(store, key, wanted->compiler, before, row)) {
        before = row->id;
        if (qn_store_is_shunned(store, row->blob_hash))
            ;
        else if (!is_sound(row))
            remove_damaged(store, row);
        else if (!strcmp(row->artifact.text, wanted->text) &&
                 (!wanted->accept || wanted->compiler ||
                  wanted->accept(wanted->user, &row->artifact)))
            return 1;
        qn_artifact_fini(&row->artifact);
    }
    qn_artifact_fini(&row->artifact);
    return 0;
}

/* In `file` and those behind it; the one that has it, or NULL. */
static struct qn_store *find_from(struct qn_store *file, const struct wanted *wanted,
                                  struct row *row)
{
    while (file && !find_in(file, wanted, row))
        file = qn_store_base(file);
    return file;
}

int qn_artifact_find_again(struct qn_store *store, const char *text, const char *compiler,
                           int (*accept)(void *user, const struct qn_artifact *artifact),
                           void *user, struct qn_artifact *artifact)
{
    const struct wanted wanted = { text, compiler, accept, user };
    const struct wanted shipped = { text, NULL, accept, user };
    struct row row;
    struct qn_store *file = find_from(store, &wanted, &row);

    if (!file && compiler)
        file = find_from(qn_store_base(store), &shipped, &row);
    if (!file)
        return QN_STORE_MISS;
    qn_tally_hit(qn_store_tally(store), file == store ? row.id : 0);
    *artifact = row.artifact;
    return QN_STORE_OK;
}

int qn_artifact_find(struct qn_store *store, const char *text, const char *compiler,
                     int (*accept)(void *user, const struct qn_artifact *artifact), void *user,
                     struct qn_artifact *artifact)
{
    int status = qn_artifact_find_again(store, text, compiler, accept, user, artifact);
    if (status == QN_STORE_MISS)
        qn_tally_miss(qn_store_tally(store));
    return status;
}

/* ---- Dropping ---- */

/* A row of a base is not asked for again by this process. 1: a base has it. */
static int shun(struct qn_store *store, const struct qn_artifact *artifact, const char *blob_hash)
{
    const struct wanted wanted = { artifact->text, artifact->compiler, NULL, NULL };
    int is_shunned = 0;

    for (struct qn_store *base = qn_store_base(store); base; base = qn_store_base(base)) {
        struct row row;
        if (!find_in(base, &wanted, &row))
            continue;
        if (!strcmp(row.blob_hash, blob_hash) && qn_store_shun(base, blob_hash)) {
            qn_store_unloadable(base, artifact->key);
            is_shunned = 1;
        }
        qn_artifact_fini(&row.artifact);
    }
    return is_shunned;
}

/* A store that cannot be written keeps the row, and says so all the same; this process asks for it
 * no more. */
int qn_artifact_drop(struct qn_store *store, const struct qn_artifact *artifact)
{
    static const char sql[] =
        "DELETE FROM artifact WHERE key = ? AND compiler = ? AND blob_hash = ?";
    char blob_hash[QN_KEY_HEX];

    hash_blob(artifact, blob_hash);
    int is_shunned = shun(store, artifact, blob_hash);
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    if (!db && !is_shunned)
        qn_store_unloadable(store, artifact->key);
    if (!db) {
        qn_store_shun(store, blob_hash);
        return is_shunned ? QN_STORE_OK : QN_STORE_MISS;
    }
    qn_db_begin(db);
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, artifact->key);
    qn_bind_text(&query, artifact->compiler);
    qn_bind_text(&query, blob_hash);
    qn_run(&query);
    int is_dropped = qn_db_changes(db) > 0;
    if (is_dropped)
        qn_counter_add(db, "damaged", 1);
    qn_db_commit(db);
    int status = qn_db_give(db);
    if (status != QN_STORE_OK)
        qn_store_shun(store, blob_hash);
    if (is_dropped || status != QN_STORE_OK)
        qn_store_unloadable(store, artifact->key);
    return is_dropped || is_shunned ? status : QN_STORE_MISS;
}

/* ---- Putting ---- */

/* A long column as it is stored. */
struct column {
    const void *bytes;
    size_t size;
    void *packed; /* owned; NULL: plain */
};

static struct column column_of(const void *bytes, size_t size)
{
    struct column column = { .bytes = bytes, .size = size };
    size_t packed_size;

    column.packed = qn_pack(bytes, size, &packed_size);
    if (column.packed) {
        column.bytes = column.packed;
        column.size = packed_size;
    }
    return column;
}

/* Made before the transaction that stores them: packing takes longer than writing, and others wait
 * for the file's one writer. */
struct columns {
    struct column source, blob;
};

static struct columns columns_of(const struct qn_artifact *artifact)
{
    const char *source = artifact->source ? artifact->source : "";
    struct columns columns = { column_of(source, strlen(source)),
                               column_of(artifact->blob, artifact->blob_bytes) };

    return columns;
}

static void columns_fini(struct columns *columns)
{
    free(columns->source.packed);
    free(columns->blob.packed);
}

static void insert(struct qn_db *db, const struct qn_artifact *artifact,
                   const struct columns *columns, int is_new)
{
    static const char replace[] = "INSERT OR REPLACE INTO artifact " INSERTED;
    static const char ignore[] = "INSERT OR IGNORE INTO artifact " INSERTED;
    char key[QN_KEY_HEX], blob_hash[QN_KEY_HEX];
    int64_t created = is_new ? time(NULL) : artifact->created;
    size_t source_bytes = artifact->source ? strlen(artifact->source) : 0;
    struct qn_query query = qn_query(db, is_new ? replace : ignore);

    qn_key_hex(artifact->text, strlen(artifact->text), key);
    hash_blob(artifact, blob_hash);
    qn_bind_text(&query, key);
    qn_bind_text(&query, artifact->text);
    qn_bind_text(&query, artifact->compiler);
    qn_bind_text(&query, artifact->target);
    qn_bind_text(&query, artifact->family);
    qn_bind_text(&query, artifact->report);
    qn_bind_text(&query, artifact->log);
    qn_bind_real(&query, artifact->compile_ms);
    qn_bind_text(&query, blob_hash);
    qn_bind_int(&query, (int64_t)artifact->blob_bytes);
    qn_bind_int(&query, created);
    qn_bind_int(&query, created);
    qn_bind_int(&query, artifact->is_pinned);
    qn_bind_int(&query, (int64_t)source_bytes);
    qn_bind_blob(&query, columns->source.bytes, columns->source.size);
    qn_bind_blob(&query, columns->blob.bytes, columns->blob.size);
    qn_run(&query);
}

/* It writes anyway, so what hits have been counted go along. */
static int put(struct qn_store *store, const struct qn_artifact *artifact,
               const struct columns *columns)
{
    struct qn_db *db = qn_db_take(store, QN_WRITE);

    if (!db)
        return QN_STORE_MISS;
    struct qn_tally_batch batch = qn_tally_take(qn_store_tally(store));
    qn_db_begin(db);
    insert(db, artifact, columns, 1);
    qn_counter_add(db, "compiles", 1);
    qn_tally_write(db, &batch);
    qn_db_commit(db);
    int status = qn_db_give(db);
    qn_tally_settle(qn_store_tally(store), &batch, status == QN_STORE_OK);
    return status;
}

int qn_artifact_put(struct qn_store *store, const struct qn_artifact *artifact)
{
    struct columns columns = columns_of(artifact);
    int status = put(store, artifact, &columns);

    columns_fini(&columns);
    return status;
}

/* Is there a sound row of this text and compiler? A damaged one is removed. */
static int is_there(struct qn_store *store, const struct qn_artifact *artifact)
{
    const struct wanted same = { artifact->text, artifact->compiler, NULL, NULL };
    struct row row;
    int is_found = find_in(store, &same, &row);

    if (is_found)
        qn_artifact_fini(&row.artifact);
    return is_found;
}

int qn_artifact_keep(struct qn_store *store, const struct qn_artifact *artifact, int *is_taken)
{
    *is_taken = 0;
    if (is_there(store, artifact))
        return QN_STORE_OK;
    struct columns columns = columns_of(artifact);
    struct qn_db *db = qn_db_take(store, QN_WRITE);
    int status = QN_STORE_MISS;
    if (db) {
        insert(db, artifact, &columns, 0);
        *is_taken = qn_db_changes(db) > 0;
        status = qn_db_give(db);
    }
    columns_fini(&columns);
    return status;
}

int qn_artifact_compiler(struct qn_store *store, const char *key, char **compiler)
{
    static const char sql[] =
        "SELECT compiler FROM artifact WHERE key = ? ORDER BY id DESC LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);
    char *found = NULL;

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, key);
    if (qn_step(&query))
        found = qn_take_text(&query);
    qn_end(&query);
    if (qn_db_give(db) != QN_STORE_OK || !found) {
        free(found);
        return QN_STORE_MISS;
    }
    *compiler = found;
    return QN_STORE_OK;
}

/* ---- Listing and checking ---- */

/* The first row after id `after` whose key starts with prefix; the blob only if asked for. */
static int next_listed(struct qn_store *store, const char *prefix, int64_t after, int has_blob,
                       struct row *row, int *status)
{
    static const char plain[] = "SELECT " COLUMNS " FROM artifact WHERE id > ?1 "
                                "AND substr(key, 1, length(?2)) = ?2 ORDER BY id LIMIT 1";
    static const char whole[] = "SELECT " COLUMNS LONG_COLUMNS " FROM artifact WHERE id > ?1 "
                                "AND substr(key, 1, length(?2)) = ?2 ORDER BY id LIMIT 1";
    struct qn_db *db = qn_db_take(store, QN_READ);
    int is_found = 0;

    memset(row, 0, sizeof *row);
    *status = QN_STORE_MISS;
    if (!db)
        return 0;
    struct qn_query query = qn_query(db, has_blob ? whole : plain);
    qn_bind_int(&query, after);
    qn_bind_text(&query, prefix);
    if (qn_step(&query)) {
        take_row(&query, row);
        if (has_blob)
            take_long(&query, row);
        is_found = 1;
    }
    qn_end(&query);
    *status = qn_db_give(db);
    return is_found && *status == QN_STORE_OK;
}

int qn_artifact_each(struct qn_store *store, const char *key_prefix,
                     int (*visit)(void *user, const struct qn_artifact *artifact), void *user)
{
    struct row row;
    int64_t after = 0;
    int status, is_ended = 0;

    while (!is_ended && next_listed(store, key_prefix, after, 0, &row, &status)) {
        after = row.id;
        is_ended = visit(user, &row.artifact);
        qn_artifact_fini(&row.artifact);
    }
    if (!is_ended)
        qn_artifact_fini(&row.artifact);
    return status;
}

int qn_artifact_each_whole(struct qn_store *store, int64_t *damaged,
                           int (*visit)(void *user, const struct qn_artifact *artifact), void *user)
{
    struct row row;
    int64_t after = 0;
    int status, is_ended = 0;

    while (!is_ended && next_listed(store, "", after, 1, &row, &status)) {
        after = row.id;
        if (is_sound(&row))
            is_ended = visit(user, &row.artifact);
        else
            ++*damaged;
        qn_artifact_fini(&row.artifact);
    }
    if (!is_ended)
        qn_artifact_fini(&row.artifact);
    return status;
}

/* A fault that quick_check names is the file's: it goes the way of every damaged file. */
static int check_file(struct qn_store *store)
{
    static const char sql[] = "PRAGMA quick_check(1)";
    struct qn_db *db = qn_db_take(store, QN_READ);

    if (!db)
        return QN_STORE_MISS;
    struct qn_query query = qn_query(db, sql);
    if (qn_step(&query)) {
        char *verdict = qn_take_text(&query);
        if (verdict && strcmp(verdict, "ok"))
            qn_db_fail(db, SQLITE_CORRUPT);
        free(verdict);
    }
    qn_end(&query);
    return qn_db_give(db);
}

int qn_store_verify(struct qn_store *store, int64_t *checked, int64_t *damaged)
{
    int64_t rows = 0, bad = 0, after = 0;
    struct row row;
    int status = check_file(store);

    while (status == QN_STORE_OK && next_listed(store, "", after, 1, &row, &status)) {
        after = row.id;
        rows++;
        if (!is_sound(&row)) {
            remove_damaged(store, &row);
            bad++;
        }
        qn_artifact_fini(&row.artifact);
    }
    *checked = rows;
    *damaged = bad;
    return status;
}
