-- The compactor: leases, runs that say what their object is, and what keeps garbage collection safe.

-- The right to do some work. A swap checks the token.
CREATE TABLE leases (
    name    TEXT    NOT NULL PRIMARY KEY,
    holder  TEXT    NOT NULL,
    token   INTEGER NOT NULL, -- rises with every holder
    expires INTEGER NOT NULL  -- ms
) STRICT, WITHOUT ROWID;

ALTER TABLE runs ADD COLUMN raw INTEGER NOT NULL DEFAULT 0;         -- bytes before compression
ALTER TABLE runs ADD COLUMN object_size INTEGER NOT NULL DEFAULT 0; -- bytes

-- How far the compactor has come in a block.
CREATE TABLE compaction (
    block        INTEGER PRIMARY KEY,
    released     INTEGER NOT NULL, -- level0 rows up to this seq gave up their references
    merged_bytes INTEGER NOT NULL  -- sum of the slots' cumulative bytes at the merged seq
) STRICT;

-- How far key compaction has come in a partition.
CREATE TABLE cleaned (
    block   INTEGER NOT NULL,
    slot    INTEGER NOT NULL,
    up_to   INTEGER NOT NULL, -- everything below was compacted
    bytes   INTEGER NOT NULL, -- raw bytes of the runs below it
    at      INTEGER NOT NULL, -- ms
    horizon INTEGER NOT NULL, -- ms, when a tombstone or marker may go; 0: there is none
    PRIMARY KEY (block, slot)
) STRICT, WITHOUT ROWID;

-- Inline rows by flush: a payload goes with the last row that refers to it.
CREATE INDEX level0_inline ON level0 (flush) WHERE object = '';

-- Objects by what has to be done with them, oldest first. refs is -1 where the object was deleted.
CREATE INDEX objects_garbage ON objects (changed) WHERE state = 2;
CREATE INDEX objects_registered ON objects (changed) WHERE state = 0;
CREATE INDEX objects_condemned ON objects (changed) WHERE state = 3 AND refs >= 0;
CREATE INDEX objects_deleted ON objects (changed) WHERE state = 3 AND refs < 0;

CREATE TABLE gc (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL, -- passes that delete; the bucket's marker must not be ahead of it
    halted     TEXT    NOT NULL, -- why nothing is deleted; '': it may be
    system     TEXT    NOT NULL, -- the incarnation of the last pass
    timeline   INTEGER NOT NULL
) STRICT;
INSERT INTO gc VALUES (1, 0, '', '', 0);
