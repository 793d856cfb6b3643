/* Hits and misses, counted in memory and written in batches: a hit costs no write. */
#ifndef QN_TALLY_H
#define QN_TALLY_H

#include "cache/db.h"

#include <pthread.h>

struct qn_tally_slot {
    int64_t id; /* of the artifact's row; 0: free */
    int64_t hits, last_use;
};

/* What has been counted and not been written. */
struct qn_tally_batch {
    struct qn_tally_slot *slots; /* open addressing; capacity is a power of two, or 0 */
    size_t capacity, used;
    int64_t hits, misses;
};

struct qn_tally {
    pthread_mutex_t mutex;
    struct qn_tally_batch pending;
};

void qn_tally_init(struct qn_tally *tally);
void qn_tally_fini(struct qn_tally *tally);
void qn_tally_hit(struct qn_tally *tally, int64_t id); /* 0: a row of a base */
void qn_tally_miss(struct qn_tally *tally);

/* Writing, in three steps so that no lock is held while the disk is waited for: take what is
 * pending; write it inside the caller's transaction; settle: forget it if that was committed, else
 * put it back. */
struct qn_tally_batch qn_tally_take(struct qn_tally *tally);
void qn_tally_write(struct qn_db *db, const struct qn_tally_batch *batch);
void qn_tally_settle(struct qn_tally *tally, struct qn_tally_batch *batch, int is_written);
/* The three steps in a transaction of their own. */
void qn_tally_flush(struct qn_tally *tally, struct qn_store *store);

/* counter[name] += value, inside the caller's transaction. */
void qn_counter_add(struct qn_db *db, const char *name, int64_t value);

/* The store's (store.c). */
struct qn_tally *qn_store_tally(struct qn_store *store);
/* Counts a row that was set aside, and says so. */
void qn_store_damaged(struct qn_store *store, const char *table, const char *key);
int qn_store_is_base(const struct qn_store *store);
/* The row of this hash is damaged or does not load, and cannot be deleted: this process passes it
 * over. 0: no memory for it. */
int qn_store_shun(struct qn_store *store, const char *blob_hash);
int qn_store_is_shunned(struct qn_store *store, const char *blob_hash);
/* The same for an artifact whose bytes are sound and of no use. */
void qn_store_unloadable(struct qn_store *store, const char *key);

#endif
