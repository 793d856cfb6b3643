/* Hits and misses in memory: one small hash table from an artifact's row id to its hits and last
 * use, and two totals. It is written to the file when the store closes, when its counters are asked
 * for, and along with every artifact that is put, since that writes anyway; so a process that is
 * killed loses the counts since its last compile and nothing else.
 */
#include "cache/tally.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

void qn_tally_init(struct qn_tally *tally)
{
    memset(tally, 0, sizeof *tally);
    pthread_mutex_init(&tally->mutex, NULL);
}

void qn_tally_fini(struct qn_tally *tally)
{
    free(tally->pending.slots);
    pthread_mutex_destroy(&tally->mutex);
}

/* ---- The table ---- */

/* The slot of id, or the free one where it belongs. Ids are dense: the low bits are the hash. */
static struct qn_tally_slot *slot_of(const struct qn_tally_batch *batch, int64_t id)
{
    size_t mask = batch->capacity - 1;
    size_t i = (size_t)id & mask;

    while (batch->slots[i].id && batch->slots[i].id != id)
        i = (i + 1) & mask;
    return &batch->slots[i];
}

static int grow(struct qn_tally_batch *batch)
{
    struct qn_tally_batch larger = { .capacity = batch->capacity ? 2 * batch->capacity : 64 };

    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots)
        return -1;
    for (size_t i = 0; i < batch->capacity; i++)
        if (batch->slots[i].id)
            *slot_of(&larger, batch->slots[i].id) = batch->slots[i];
    free(batch->slots);
    batch->slots = larger.slots;
    batch->capacity = larger.capacity;
    return 0;
}

/* Without memory the row's count is dropped: it is a statistic. */
static void add(struct qn_tally_batch *batch, int64_t id, int64_t hits, int64_t last_use)
{
    if (2 * (batch->used + 1) > batch->capacity && grow(batch))
        return;
    struct qn_tally_slot *slot = slot_of(batch, id);
    if (!slot->id) {
        slot->id = id;
        batch->used++;
    }
    slot->hits += hits;
    slot->last_use = last_use > slot->last_use ? last_use : slot->last_use;
}

void qn_tally_hit(struct qn_tally *tally, int64_t id)
{
    pthread_mutex_lock(&tally->mutex);
    tally->pending.hits++;
    if (id)
        add(&tally->pending, id, 1, time(NULL));
    pthread_mutex_unlock(&tally->mutex);
}

void qn_tally_miss(struct qn_tally *tally)
{
    pthread_mutex_lock(&tally->mutex);
    tally->pending.misses++;
    pthread_mutex_unlock(&tally->mutex);
}

/* ---- Writing ---- */

struct qn_tally_batch qn_tally_take(struct qn_tally *tally)
{
    pthread_mutex_lock(&tally->mutex);
    struct qn_tally_batch batch = tally->pending;
    memset(&tally->pending, 0, sizeof tally->pending);
    pthread_mutex_unlock(&tally->mutex);
    return batch;
}

void qn_counter_add(struct qn_db *db, const char *name, int64_t value)
{
    static const char sql[] = "INSERT INTO counter (name, value) VALUES (?, ?) "
                              "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value";

    if (!value)
        return;
    struct qn_query query = qn_query(db, sql);
    qn_bind_text(&query, name);
    qn_bind_int(&query, value);
    qn_run(&query);
}

void qn_tally_write(struct qn_db *db, const struct qn_tally_batch *batch)
{
    static const char sql[] =
        "UPDATE artifact SET hits = hits + ?, last_use = max(last_use, ?) WHERE id = ?";

    for (size_t i = 0; i < batch->capacity; i++) {
        const struct qn_tally_slot *slot = &batch->slots[i];
        if (slot->id) {
            struct qn_query query = qn_query(db, sql);
            qn_bind_int(&query, slot->hits);
            qn_bind_int(&query, slot->last_use);
            qn_bind_int(&query, slot->id);
            qn_run(&query);
        }
    }
    qn_counter_add(db, "hits", batch->hits);
    qn_counter_add(db, "misses", batch->misses);
}

void qn_tally_settle(struct qn_tally *tally, struct qn_tally_batch *batch, int is_written)
{
    if (!is_written) {
        pthread_mutex_lock(&tally->mutex);
        for (size_t i = 0; i < batch->capacity; i++) {
            const struct qn_tally_slot *slot = &batch->slots[i];
            if (slot->id)
                add(&tally->pending, slot->id, slot->hits, slot->last_use);
        }
        tally->pending.hits += batch->hits;
        tally->pending.misses += batch->misses;
        pthread_mutex_unlock(&tally->mutex);
    }
    free(batch->slots);
}

void qn_tally_flush(struct qn_tally *tally, struct qn_store *store)
{
    struct qn_tally_batch batch = qn_tally_take(tally);
    int is_written = 0;

    if (batch.hits || batch.misses) {
        struct qn_db *db = qn_db_take(store, QN_WRITE);
        if (db) {
            qn_db_begin(db);
            qn_tally_write(db, &batch);
            qn_db_commit(db);
            is_written = qn_db_give(db) == QN_STORE_OK;
        }
    }
    qn_tally_settle(tally, &batch, is_written);
}
