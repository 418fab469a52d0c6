-- The log and the catalogue. docs/ARCHITECTURE.md says what a row of each table is.
--
-- A place (block, seq) in a block's log is one integer, block << 40 | seq, so that a log is one stretch of one B-tree:
-- below, "place".

CREATE TABLE cluster (
    id                INTEGER PRIMARY KEY CHECK (id = 1),
    cluster_id        TEXT    NOT NULL, -- constant
    catalogue_version INTEGER NOT NULL,
    tombstone_floor   INTEGER NOT NULL, -- tombstones up to this catalogue version were removed
    next_block        INTEGER NOT NULL,
    next_producer     INTEGER NOT NULL
) STRICT;

CREATE TABLE topics (
    id                 BLOB    NOT NULL PRIMARY KEY,
    name               TEXT    NOT NULL UNIQUE,
    canonical          TEXT    NOT NULL UNIQUE, -- the name with '.' folded to '_'
    configs            TEXT    NOT NULL,        -- JSON object of what was set on the topic
    replication_factor INTEGER NOT NULL,
    version            INTEGER NOT NULL,        -- catalogue version of its last change
    created            INTEGER NOT NULL         -- ms
) STRICT, WITHOUT ROWID;
CREATE INDEX topics_by_version ON topics (version);

-- Deleted topics, for agents that refresh incrementally.
CREATE TABLE tombstones (
    version INTEGER NOT NULL,
    topic   BLOB    NOT NULL,
    PRIMARY KEY (version, topic)
) STRICT, WITHOUT ROWID;

CREATE TABLE partitions (
    topic   BLOB    NOT NULL,
    idx     INTEGER NOT NULL,
    block   INTEGER NOT NULL,
    slot    INTEGER NOT NULL,
    created INTEGER NOT NULL, -- ms
    PRIMARY KEY (topic, idx)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX partitions_by_place ON partitions (block, slot);

-- Changed by admin calls and the compactor only; every change raises version.
CREATE TABLE blocks (
    block        INTEGER PRIMARY KEY,
    version      INTEGER NOT NULL,
    deleted      INTEGER NOT NULL, -- bit s: slot s is deleted
    config_epoch INTEGER NOT NULL,
    merged_seq   INTEGER NOT NULL,
    used         INTEGER NOT NULL,
    shared       INTEGER NOT NULL,
    log_start    BLOB    NOT NULL  -- 64 big-endian int64
) STRICT;
CREATE INDEX blocks_shared ON blocks (block) WHERE shared = 1 AND used < 64;

-- What one flush added to one block. Never updated.
CREATE TABLE level0 (
    place   INTEGER PRIMARY KEY,
    time    INTEGER NOT NULL, -- ms, commit time
    flush   BLOB    NOT NULL,
    object  TEXT    NOT NULL, -- '': inline, under the flush id
    photo   BLOB    NOT NULL, -- the state of all 64 slots after the row, fixed width; before touched: searches read it
    touched BLOB    NOT NULL  -- the extents
) STRICT;

CREATE TABLE inline (
    flush   BLOB    NOT NULL PRIMARY KEY,
    size    INTEGER NOT NULL, -- bytes
    payload BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoints (
    place INTEGER PRIMARY KEY,
    state BLOB NOT NULL
) STRICT;

-- In the order of their commits, so that the oldest are expired from one end.
CREATE TABLE receipts (
    id    INTEGER PRIMARY KEY,
    flush BLOB    NOT NULL UNIQUE,
    time  INTEGER NOT NULL, -- ms, commit time
    data  BLOB    NOT NULL
) STRICT;

CREATE TABLE objects (
    key     TEXT    NOT NULL PRIMARY KEY,
    size    INTEGER NOT NULL, -- bytes
    refs    INTEGER NOT NULL, -- level0 rows and runs that name it
    state   INTEGER NOT NULL, -- 0 registered, 1 live, 2 garbage, 3 condemned
    changed INTEGER NOT NULL  -- ms, when it came into this state
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    block          INTEGER NOT NULL,
    slot           INTEGER NOT NULL,
    base           INTEGER NOT NULL,
    last           INTEGER NOT NULL,
    object         TEXT    NOT NULL,
    position       INTEGER NOT NULL, -- bytes
    length         INTEGER NOT NULL, -- bytes
    max_ts         INTEGER NOT NULL, -- ms
    running_max_ts INTEGER NOT NULL, -- ms
    bytes          INTEGER NOT NULL, -- of the partition up to its end, cumulative
    level          INTEGER NOT NULL,
    PRIMARY KEY (block, slot, base)
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_time ON runs (block, slot, running_max_ts, base);

CREATE TABLE producer_ids (
    first   INTEGER PRIMARY KEY,
    count   INTEGER NOT NULL,
    time    INTEGER NOT NULL  -- ms, when they were handed out
) STRICT;
