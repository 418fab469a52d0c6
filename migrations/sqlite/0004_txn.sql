-- Transactions: the database is their coordinator. docs/ARCHITECTURE.md says what a row of each table is.

CREATE TABLE transactions (
    id            TEXT    NOT NULL PRIMARY KEY, -- transactional id
    version       INTEGER NOT NULL, -- raised by every change, of txn_open too
    producer      INTEGER UNIQUE,   -- the current producer id
    epoch         INTEGER NOT NULL,
    last_producer INTEGER NOT NULL, -- what the current ones follow, where a retry may name it; -1: none
    last_epoch    INTEGER NOT NULL,
    state         INTEGER NOT NULL, -- 0 empty, 1 ongoing, 2 committed, 3 aborted
    protocol      INTEGER NOT NULL, -- of the ongoing or last transaction: 1 original, 2 KIP-890
    timeout       INTEGER NOT NULL, -- ms
    started       INTEGER NOT NULL, -- ms, of the ongoing transaction; 0: none
    updated       INTEGER NOT NULL, -- ms
    due           INTEGER           -- ms, when the ongoing transaction is aborted
) STRICT, WITHOUT ROWID;
CREATE INDEX transactions_due ON transactions (due) WHERE due IS NOT NULL;
CREATE INDEX transactions_unused ON transactions (updated) WHERE due IS NULL;

-- The partitions of ongoing transactions: what their end writes markers to.
CREATE TABLE txn_open (
    producer INTEGER NOT NULL,
    block    INTEGER NOT NULL,
    slot     INTEGER NOT NULL,
    PRIMARY KEY (producer, block, slot)
) STRICT, WITHOUT ROWID;

-- Offsets that ongoing transactions commit when they do.
CREATE TABLE txn_offsets (
    producer     INTEGER NOT NULL,
    grp          TEXT    NOT NULL,
    topic        BLOB    NOT NULL,
    part         INTEGER NOT NULL,
    offs         INTEGER NOT NULL,
    leader_epoch INTEGER NOT NULL, -- -1: none
    metadata     BLOB    NOT NULL,
    PRIMARY KEY (producer, grp, topic, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX txn_offsets_by_group ON txn_offsets (grp, topic, part);

-- Aborted transactions, by the offset of their marker.
CREATE TABLE aborted (
    block    INTEGER NOT NULL,
    slot     INTEGER NOT NULL,
    marker   INTEGER NOT NULL,
    first    INTEGER NOT NULL, -- offset
    producer INTEGER NOT NULL,
    lso      INTEGER NOT NULL, -- last stable offset behind the marker: never falls from one marker to the next
    PRIMARY KEY (block, slot, marker)
) STRICT, WITHOUT ROWID;

CREATE VIEW skein_transactions AS
SELECT t.id AS transactional_id, t.producer, t.epoch,
    CASE t.state WHEN 0 THEN 'Empty' WHEN 1 THEN 'Ongoing' WHEN 2 THEN 'CompleteCommit' ELSE 'CompleteAbort' END AS state,
    t.timeout AS timeout_ms, strftime('%Y-%m-%d %H:%M:%f', nullif(t.started, 0) / 1000.0, 'unixepoch') AS started,
    strftime('%Y-%m-%d %H:%M:%f', t.updated / 1000.0, 'unixepoch') AS updated,
    (SELECT count(*) FROM txn_open o WHERE o.producer = t.producer) AS partitions,
    (SELECT count(*) FROM txn_offsets o WHERE o.producer = t.producer) AS pending_offsets
FROM transactions t;
