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

-- Views for people: the rows unfolded. Skein itself does not read them. Columns are named as in the views on Postgres.

-- The places of 16 hexadecimal digits: SQLite has no function that makes an integer of eight bytes.
CREATE VIEW skein_digits AS
WITH RECURSIVE digits (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM digits WHERE i < 16)
SELECT i FROM digits;

CREATE VIEW skein_topics AS
SELECT t.name AS topic, lower(hex(t.id)) AS topic_id, count(p.idx) AS partitions, t.configs,
    strftime('%Y-%m-%d %H:%M:%f', t.created / 1000.0, 'unixepoch') AS created, t.version
FROM topics t LEFT JOIN partitions p ON p.topic = t.id
GROUP BY t.id;

CREATE VIEW skein_partitions AS
WITH newest AS (
    SELECT t.name AS topic, p.idx, p.block, p.slot, p.created, b.log_start,
        (SELECT photo FROM level0 WHERE place BETWEEN p.block << 40 AND p.block << 40 | 1099511627775
            ORDER BY place DESC LIMIT 1) AS photo
    FROM partitions p JOIN topics t ON t.id = p.topic JOIN blocks b ON b.block = p.block
), bytes AS (
    SELECT *, hex(substr(log_start, 8 * slot + 1, 8)) AS start_hex, hex(substr(photo, 24 * slot + 1, 8)) AS next_hex,
        hex(substr(photo, 24 * slot + 9, 8)) AS time_hex, hex(substr(photo, 24 * slot + 17, 8)) AS bytes_hex
    FROM newest
), numbers AS (
    SELECT *,
        (SELECT sum(instr('123456789ABCDEF', substr(start_hex, i, 1)) << (64 - 4 * i)) FROM skein_digits) AS start,
        (SELECT sum(instr('123456789ABCDEF', substr(next_hex, i, 1)) << (64 - 4 * i)) FROM skein_digits) AS next,
        (SELECT sum(instr('123456789ABCDEF', substr(time_hex, i, 1)) << (64 - 4 * i)) FROM skein_digits) AS max_ts,
        (SELECT sum(instr('123456789ABCDEF', substr(bytes_hex, i, 1)) << (64 - 4 * i)) FROM skein_digits) AS written
    FROM bytes
)
SELECT topic, idx AS partition, block, slot, start AS log_start,
    CASE WHEN photo IS NULL THEN 0 ELSE next END AS high_watermark,
    CASE WHEN photo IS NOT NULL AND max_ts >= 0 THEN strftime('%Y-%m-%d %H:%M:%f', max_ts / 1000.0, 'unixepoch') END
        AS max_timestamp,
    CASE WHEN photo IS NULL THEN 0 ELSE written END AS bytes_written,
    strftime('%Y-%m-%d %H:%M:%f', created / 1000.0, 'unixepoch') AS created
FROM numbers;

CREATE VIEW skein_blocks AS
WITH newest AS (
    SELECT block, used AS slots, shared, merged_seq,
        (SELECT max(place) FROM level0 WHERE place BETWEEN block << 40 AND block << 40 | 1099511627775) AS place,
        (SELECT max(place) FROM checkpoints WHERE place BETWEEN block << 40 AND block << 40 | 1099511627775) AS checkpoint
    FROM blocks
)
SELECT block, slots, shared, coalesce(n.place & 1099511627775, 0) AS seq, merged_seq,
    coalesce(n.place & 1099511627775, 0) - merged_seq AS unmerged_rows,
    strftime('%Y-%m-%d %H:%M:%f', l.time / 1000.0, 'unixepoch') AS last_commit,
    checkpoint & 1099511627775 AS checkpoint
FROM newest n LEFT JOIN level0 l ON l.place = n.place;

-- One row for each flush and block.
CREATE VIEW skein_flushes AS
SELECT place >> 40 AS block, place & 1099511627775 AS seq,
    strftime('%Y-%m-%d %H:%M:%f', time / 1000.0, 'unixepoch') AS committed, lower(hex(flush)) AS flush_id,
    nullif(object, '') AS object, object = '' AS inline
FROM level0;

CREATE VIEW skein_objects AS
SELECT key, size, refs,
    CASE state WHEN 0 THEN 'registered' WHEN 1 THEN 'live' WHEN 2 THEN 'garbage' ELSE 'condemned' END AS state,
    strftime('%Y-%m-%d %H:%M:%f', changed / 1000.0, 'unixepoch') AS since
FROM objects;

CREATE VIEW skein_inline AS SELECT lower(hex(flush)) AS flush_id, size FROM inline;
