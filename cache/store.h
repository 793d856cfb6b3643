/* The store: one SQLite file that keeps artifacts, tuned configs, trials, misses and leases. It
 * knows nothing of CUDA, LLVM or families: keys are canonical text, blobs are bytes.
 *
 *  - Keys are text, one name=value a line, hashed with XXH3-128. The text is stored and compared on
 *    a hit, so that a hash collision is a miss.
 *  - Only qn_store_open() reports a failure that a user must mend. Everywhere else a failure is
 *    QN_STORE_MISS (reads) or silently not stored (writes), plus a counter (qn_store_counters) and
 *    one warning through the log hook: a full or read-only disk turns the store memory-only.
 *    A write that was not kept answers QN_STORE_MISS, for callers who care.
 *  - Threads: a qn_store may be used by any thread. A call borrows an SQLite connection that no
 *    other call is using, and has none while it runs a callback: callbacks may call the store.
 *  - After fork() the child's calls are misses. It may open a store of its own only after exec, or
 *    if the parent had none open on that file: SQLite's picture of its locks survives no fork.
 *  - Returned rows own their memory: free with the matching _fini().
 */
#ifndef QN_STORE_H
#define QN_STORE_H

#include <stddef.h>
#include <stdint.h>

#define QN_STORE_SCHEMA 2
#define QN_KEY_HEX 33 /* 32 digits and the terminator */

enum qn_store_status { QN_STORE_OK = 0, QN_STORE_MISS = 1, QN_STORE_ERROR = -1 };

struct qn_store;

struct qn_store_options {
    const char *path; /* "" : in memory, for this process only */
    const char *base; /* files that are only read, "A:B", after this one, in order; NULL: none */
    /* level 1 warn, 2 info, 3 debug; may be NULL */
    void (*log)(void *user, int level, const char *line);
    void *user;
};

/* Opens or creates the file (directory 0700, file 0600; WAL set once, at creation, under the lease
 * of a lock file beside it). QN_STORE_ERROR with one line in `error` (at least 512 bytes) that
 * names cache=PATH and what is wrong: a folder, another user's, not readable, not a database, a
 * newer schema; or its folder is neither the user's nor root's, or others may write it and it has
 * no sticky bit (a group that has the user's number counts as his own). The file is then left as it
 * was. A file that may be read but not written is opened read-only, with one warning.
 *
 * A base may be root's as well, and written by a group that has the user's number, as installers
 * leave files; it may be on a read-only file system. Nothing is ever written to it or made beside
 * it. One that is missing, not a store, of another schema, or has rows in a -wal is
 * QN_STORE_ERROR, and the line names base=PATH. A damaged row of it is a miss. Artifacts, tuned
 * rows and their neighbours are looked for in the store, then in each base; what is written goes to
 * the store, and so do counts of hits in bases. */
int qn_store_open(const struct qn_store_options *options, struct qn_store **store, char *error,
                  size_t error_bytes);
void qn_store_close(struct qn_store *store); /* NULL is allowed */
const char *qn_store_path(const struct qn_store *store);
int qn_store_is_writable(struct qn_store *store);
/* Takes what was committed out of the -wal and into the file. QN_STORE_MISS: it has no room there,
 * or the store cannot be written. */
int qn_store_sync(struct qn_store *store);
/* The first base of a store, the next one of a base; NULL: no more. Good for every read here. */
struct qn_store *qn_store_base(const struct qn_store *store);
/* A file that is only read, as a base is: QN_STORE_ERROR names base=PATH. */
int qn_store_open_base(const struct qn_store_options *options, struct qn_store **store, char *error,
                       size_t error_bytes);

/* XXH3-128 of text as 32 hexadecimal digits. */
void qn_key_hex(const void *text, size_t bytes, char hex[QN_KEY_HEX]);

/* ---- Artifacts ---- */

struct qn_artifact {
    char key[QN_KEY_HEX];
    char *text;     /* canonical key text */
    char *source;   /* what was compiled */
    char *compiler; /* identity: name, version, build */
    char *target;   /* "cpu:x86-64-v4+bf16" */
    char *family;   /* for listings */
    char *log;      /* the compiler's messages */
    char *report;   /* backend's resource report, "registers=64 spills=0 ..."; "" if none */
    void *blob;
    size_t blob_bytes;
    double compile_ms;
    int64_t hits, created, last_use; /* filled in by the store; Unix seconds */
    int is_pinned;
};
void qn_artifact_fini(struct qn_artifact *artifact);

/* The row of key text + compiler, of the store or of a base; else the newest of a base, whatever
 * compiled it, since what was shipped is there to be run and not to be made again. compiler NULL:
 * the newest row of that key text, of the first file that has one. Where the compiler is not asked
 * for, `accept`, if not NULL, is asked about each row, newest first: non-zero takes it. The XXH3 of
 * text, compiler and blob is verified and text compared: a damaged row is set aside (deleted,
 * counted) and is a miss. A hit counts hits and last use (batched; must not write on the path of
 * every hit). */
int qn_artifact_find(struct qn_store *store, const char *text, const char *compiler,
                     int (*accept)(void *user, const struct qn_artifact *artifact), void *user,
                     struct qn_artifact *artifact);
/* The second look of one request, under its lease: a miss is not counted once more. */
int qn_artifact_find_again(struct qn_store *store, const char *text, const char *compiler,
                           int (*accept)(void *user, const struct qn_artifact *artifact),
                           void *user, struct qn_artifact *artifact);
/* Insert or replace. Counts one compile. artifact->key is computed here. */
int qn_artifact_put(struct qn_store *store, const struct qn_artifact *artifact);
/* For an artifact that was found and does not load: sets the row of its key + compiler aside
 * (deleted, counted as damaged, one warning), if it still holds this very blob. QN_STORE_MISS when
 * it does not, somebody having made it again, and when the store cannot be written: this process
 * then passes the row over. */
int qn_artifact_drop(struct qn_store *store, const struct qn_artifact *artifact);

/* ---- Tuned configs ---- */

struct qn_tuned {
    char key[QN_KEY_HEX];
    char *text;  /* canonical key text: dynamic parameters included */
    char *group; /* the text without the dynamic parameters: neighbours share it */
    char *family;
    char *variant;
    char *config; /* "mr=14,nr=32" */
    int64_t generation;
    double time_us, spread_us;
    int64_t samples;
    char *digest;     /* of the templates it was measured on */
    char *toolkit;    /* compiler, and a GPU's driver */
    char *profile;    /* device profile name */
    char *provenance; /* free text: version, clocks */
    int64_t created;
    /* What an untuned call would have used, timed in turns with the winner; 0: not known. */
    char *heuristic_variant, *heuristic_config;
    double heuristic_us, heuristic_spread_us;
};
void qn_tuned_fini(struct qn_tuned *tuned);

/* The winner of the newest generation. */
int qn_tuned_find(struct qn_store *store, const char *text, struct qn_tuned *tuned);
/* Insert-or-ignore under (text, generation): the first writer wins, and *winner, if not NULL, is
 * what is stored afterwards, for every process the same. generation 0: one more than the newest
 * (the first is 1). */
int qn_tuned_put(struct qn_store *store, const struct qn_tuned *tuned, struct qn_tuned *winner);
/* Every newest-generation row of the group, for choosing a neighbour; visit returns non-zero to
 * end. */
int qn_tuned_each(struct qn_store *store, const char *group,
                  int (*visit)(void *user, const struct qn_tuned *tuned), void *user);

/* ---- Trials ---- */

struct qn_trial {
    char *text; /* tuned key text */
    char *variant, *config;
    char *digest; /* of the templates */
    char *toolkit;
    int64_t generation;
    char *outcome; /* "ok", or why it was rejected */
    double time_us, spread_us;
    int64_t samples, created;
};
void qn_trial_fini(struct qn_trial *trial);
/* Replaces the same candidate. */
int qn_trial_put(struct qn_store *store, const struct qn_trial *trial);
/* Every trial of text and generation. */
int qn_trial_each(struct qn_store *store, const char *text, int64_t generation,
                  int (*visit)(void *user, const struct qn_trial *trial), void *user);

/* ---- Misses: specs served by a config that was not tuned ---- */

int qn_miss_put(struct qn_store *store, const char *text, const char *spec_text,
                const char *family);

/* ---- Manifest: for which model and call an artifact is here ---- */

struct qn_manifest {
    char key[QN_KEY_HEX]; /* of the artifact */
    char *target;
    char *model;
    char *rank;      /* "tp=8 ep=1" */
    char *where;     /* "prefill", "decode" */
    char *spec;      /* "gemm m=64 n=4096 ..." */
    char *kind;      /* "built" or "tuned" */
    char *toolkit;   /* what compiled it */
    int64_t created; /* filled in by the store if 0; Unix seconds */
};
void qn_manifest_fini(struct qn_manifest *row);
/* Replaces the row of the same key, target, model, rank, where and spec. */
int qn_manifest_put(struct qn_store *store, const struct qn_manifest *row);
/* Every row, by model, rank, where and spec. visit returns non-zero to end, and may call the
 * store. */
int qn_manifest_each(struct qn_store *store,
                     int (*visit)(void *user, const struct qn_manifest *row), void *user);
struct qn_miss {
    char *text; /* tuned key text */
    char *spec; /* of the bucket */
    char *family;
    int64_t count, first_seen, last_seen; /* Unix seconds */
};
/* In the order of their keys. QN_STORE_OK also when there was none, or visit ended it. */
int qn_miss_each(struct qn_store *store, int (*visit)(void *user, const struct qn_miss *miss),
                 void *user);

/* ---- Leases: do a thing once across processes ---- */

/* One process does the work named `name`; others wait for it. A holder is trusted while its process
 * lives (pid, start time, boot id and pid namespace all match; from another namespace or host:
 * while its heartbeat is younger than expiry_s). The caller's own other threads wait for each other
 * too.
 *   QN_STORE_OK    acquired: look again (somebody may have finished meanwhile), work, release
 *   QN_STORE_MISS  timed out after timeout_s, or no leases can be had: do the work privately
 * While held, a heartbeat is refreshed by qn_lease_beat(). */
struct qn_lease;
int qn_lease_acquire(struct qn_store *store, const char *name, double timeout_s, double expiry_s,
                     struct qn_lease **lease);
void qn_lease_beat(struct qn_lease *lease);
void qn_lease_release(struct qn_lease *lease); /* NULL is allowed */

/* ---- Meta: small facts, such as a compiler's identity by path, size and mtime ---- */

/* *value is malloc'ed. */
int qn_meta_find(struct qn_store *store, const char *name, char **value);
int qn_meta_put(struct qn_store *store, const char *name, const char *value);

/* ---- Merging: from one store into another ---- */

/* What is taken; a NULL is all. Tuned rows go by family only: their keys name no target. A model is
 * what the manifest says. */
struct qn_selection {
    const char *family, *target, *model;
};
struct qn_merged {
    int64_t artifacts, tuned, manifest;   /* taken */
    int64_t artifacts_there, tuned_there; /* not taken: the same one, or a better one, is there */
    int64_t damaged;                      /* not taken */
};
/* Artifacts whose hash holds are taken where there is none that holds. Of tuned rows of the same
 * key, which the device profile is part of, the newest generation stays, and of one generation that
 * of more samples. Rows of the manifest follow their artifacts. Trials, misses and counters stay
 * where they are. QN_STORE_MISS: `from` could not be read or `to` not written to its end. */
int qn_store_merge(struct qn_store *to, struct qn_store *from, const struct qn_selection *selection,
                   struct qn_merged *merged);
/* Its parts. Every artifact with its blob whose hash holds; the others are counted. */
int qn_artifact_each_whole(struct qn_store *store, int64_t *damaged,
                           int (*visit)(void *user, const struct qn_artifact *artifact),
                           void *user);
/* Inserts it with its time of creation, unless a sound row of its text and compiler is there.
 * Counts no compile. */
int qn_artifact_keep(struct qn_store *store, const struct qn_artifact *artifact, int *is_taken);
int qn_tuned_merge(struct qn_store *store, const struct qn_tuned *tuned, int *is_taken);
/* What compiled the newest row of a key, malloc'ed. QN_STORE_MISS: there is no row. */
int qn_artifact_compiler(struct qn_store *store, const char *key, char **compiler);
/* Is there a row of this key, target and model? target, model NULL: any. */
int qn_manifest_has(struct qn_store *store, const char *key, const char *target, const char *model);

/* ---- Giving room back ---- */

struct qn_limits {
    int64_t older_than_s; /* artifacts, trials and misses not used for so long go; 0: of any age */
    int64_t bytes;        /* of the file, at most; 0: any */
};
struct qn_freed {
    int64_t artifacts, trials, misses, bytes;
};
/* Pinned artifacts and tuned configs stay. The longest unused artifacts go first; a use is written
 * when its process puts an artifact or closes the store. QN_STORE_MISS: the store cannot be
 * written; *freed says what went until then. */
int qn_store_gc(struct qn_store *store, const struct qn_limits *limits, struct qn_freed *freed);

/* ---- Inspection ---- */

struct qn_store_counters {
    int64_t artifacts, tuned, trials, misses_recorded, bytes;
    /* since creation, all processes; this process' are flushed first */
    int64_t compiles, hits, misses;
    int64_t errors, damaged; /* this process, bases included */
};
/* errors and damaged are set on QN_STORE_MISS too. */
int qn_store_counters(struct qn_store *store, struct qn_store_counters *counters);
/* Key prefix "" for all, of tuned rows every generation. Sources and blobs are not loaded
 * (NULL; blob_bytes set). QN_STORE_OK also when there was no row, or visit ended it. */
int qn_artifact_each(struct qn_store *store, const char *key_prefix,
                     int (*visit)(void *user, const struct qn_artifact *artifact), void *user);
int qn_tuned_list(struct qn_store *store, const char *key_prefix,
                  int (*visit)(void *user, const struct qn_tuned *tuned), void *user);
/* Checks the file (PRAGMA quick_check) and every blob; sets damaged rows aside. A fault of the
 * file itself is QN_STORE_MISS: the file is set aside for the next open to start afresh. */
int qn_store_verify(struct qn_store *store, int64_t *checked, int64_t *damaged);

#endif
