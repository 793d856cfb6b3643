-- The store's tables, version 1. One file; run once, when the cache is created (cache/create.c).
--
--   artifact   compiled bytes, found by key + compiler           newest id = newest row
--   tuned      winners, one row a key and generation             first writer wins
--   trial      every candidate tried, also the failed ones       a killed sweep resumes from here
--   miss       requests served by a config that was not tuned    a later sweep replays them
--   lease      who is doing what right now
--   counter    totals since creation
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
-- auto_vacuum must be chosen before the first table is made; eviction will want to give bytes back.

PRAGMA application_id = 1364546126; -- "QURN"
PRAGMA user_version = 1;
PRAGMA auto_vacuum = INCREMENTAL;

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
    source     TEXT NOT NULL, -- the two long columns come last: a listing does not read past them
    blob       BLOB NOT NULL,
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
