-- The store's tables, version 2. One file; run once, when the cache is created (cache/create.c).
--
--   artifact   compiled bytes, found by key + compiler           newest id = newest row
--   tuned      winners, one row a key and generation             first writer wins
--   trial      every candidate tried, also the failed ones       a killed sweep resumes from here
--   miss       requests served by a config that was not tuned    a later sweep replays them
--   lease      who is doing what right now
--   counter    totals since creation
--   manifest   for which model and call an artifact is here     of bundles, written by prebuild
--   meta       small facts, name and value
--
-- Invariants:
--   * key = XXH3-128 of text, 32 lower-case hexadecimal digits; text is always stored beside it.
--   * An id is never used twice (AUTOINCREMENT), so "delete the row with this id" cannot hit a row
--     that replaced it in the meantime.
--   * Times are Unix seconds. No column is NULL: an absent text is ''.
--
-- The version stands twice: user_version, read from the file's header before SQLite touches the
-- file, and QN_STORE_SCHEMA in cache/store.h. A change of any table raises both.
--
-- Version 1 had no manifest and no heuristic_ columns and packed nothing. A file of it is brought up
-- to date when it is opened for writing; the statements are in cache/create.c.
--
-- auto_vacuum must be chosen before anything is written, the two numbers below included; cache/gc.c
-- gives bytes back.

PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 1364546126; -- "QURN"
PRAGMA user_version = 2;

BEGIN;

CREATE TABLE artifact (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key        TEXT NOT NULL,
    text       TEXT NOT NULL,
    compiler   TEXT NOT NULL,
    target     TEXT NOT NULL,
    family     TEXT NOT NULL,
    report     TEXT NOT NULL,
    log        TEXT NOT NULL,
    compile_ms REAL NOT NULL,
    blob_hash  TEXT NOT NULL, -- of text, compiler and blob (cache/artifact.c)
    blob_bytes INTEGER NOT NULL,
    hits       INTEGER NOT NULL DEFAULT 0,
    created    INTEGER NOT NULL,
    last_use   INTEGER NOT NULL,
    is_pinned  INTEGER NOT NULL DEFAULT 0,
    source     TEXT NOT NULL, -- the two long columns come last, packed (cache/pack.c)
    blob       BLOB NOT NULL,
    source_bytes INTEGER NOT NULL DEFAULT 0, -- before packing; 0: it is not packed
    UNIQUE (key, compiler)
);
CREATE INDEX artifact_by_last_use ON artifact (is_pinned, last_use);

CREATE TABLE tuned (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key        TEXT NOT NULL,
    generation INTEGER NOT NULL,
    text       TEXT NOT NULL,
    group_text TEXT NOT NULL,
    family     TEXT NOT NULL,
    variant    TEXT NOT NULL,
    config     TEXT NOT NULL,
    time_us    REAL NOT NULL,
    spread_us  REAL NOT NULL,
    samples    INTEGER NOT NULL,
    digest     TEXT NOT NULL,
    toolkit    TEXT NOT NULL,
    profile    TEXT NOT NULL,
    provenance TEXT NOT NULL,
    created    INTEGER NOT NULL,
    heuristic_variant   TEXT NOT NULL DEFAULT '', -- what an untuned call would have used
    heuristic_config    TEXT NOT NULL DEFAULT '',
    heuristic_us        REAL NOT NULL DEFAULT 0, -- timed in turns with the winner; 0: not known
    heuristic_spread_us REAL NOT NULL DEFAULT 0,
    UNIQUE (key, generation)
);
CREATE INDEX tuned_by_group ON tuned (group_text);

CREATE TABLE trial (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key        TEXT NOT NULL,
    generation INTEGER NOT NULL,
    variant    TEXT NOT NULL,
    config     TEXT NOT NULL,
    text       TEXT NOT NULL,
    digest     TEXT NOT NULL,
    toolkit    TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    time_us    REAL NOT NULL,
    spread_us  REAL NOT NULL,
    samples    INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    UNIQUE (key, generation, variant, config)
);

CREATE TABLE manifest (
    key      TEXT NOT NULL, -- of the artifact
    target   TEXT NOT NULL,
    model    TEXT NOT NULL,
    rank     TEXT NOT NULL, -- shape of the rank: "tp=8 ep=1"
    used_in  TEXT NOT NULL, -- "prefill", "decode"
    spec     TEXT NOT NULL,
    kind     TEXT NOT NULL, -- "built", "tuned"
    toolkit  TEXT NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (model, rank, used_in, spec, target, key)
) WITHOUT ROWID;

CREATE TABLE miss (
    key        TEXT PRIMARY KEY,
    text       TEXT NOT NULL,
    spec_text  TEXT NOT NULL,
    family     TEXT NOT NULL,
    count      INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE lease (
    name          TEXT PRIMARY KEY,
    token         INTEGER NOT NULL, -- random, one an acquisition: a holder touches only its own
    pid           INTEGER NOT NULL,
    start_time    INTEGER NOT NULL, -- /proc/PID/stat field 22, clock ticks since boot
    boot_id       TEXT NOT NULL,
    pid_namespace INTEGER NOT NULL, -- inode of /proc/self/ns/pid
    host          TEXT NOT NULL,    -- for people
    acquired      REAL NOT NULL,
    heartbeat     REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE counter (
    name  TEXT PRIMARY KEY, -- compiles, hits, misses, damaged
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

COMMIT;
