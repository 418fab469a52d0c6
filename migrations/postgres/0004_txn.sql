-- Transactions: the database is their coordinator. See docs/ARCHITECTURE.md, "Transactions".

CREATE TABLE transactions (
    id            text COLLATE "C" PRIMARY KEY, -- transactional id
    version       bigint   NOT NULL, -- raised by every change, of txn_open too
    producer      bigint   UNIQUE,   -- the current producer id
    epoch         int      NOT NULL,
    last_producer bigint   NOT NULL, -- what the current ones follow, where a retry may name it; -1: none
    last_epoch    int      NOT NULL,
    state         int      NOT NULL, -- 0 empty, 1 ongoing, 2 committed, 3 aborted
    protocol      int      NOT NULL, -- of the ongoing or last transaction: 1 original, 2 KIP-890
    timeout       bigint   NOT NULL, -- ms
    started       bigint   NOT NULL, -- of the ongoing transaction; 0: none
    updated       bigint   NOT NULL,
    due           bigint             -- when the ongoing transaction is aborted
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX transactions_due ON transactions (due) WHERE due IS NOT NULL;
CREATE INDEX transactions_unused ON transactions (updated) WHERE due IS NULL;

-- The partitions of ongoing transactions: what their end writes markers to.
CREATE TABLE txn_open (
    producer bigint   NOT NULL,
    block    bigint   NOT NULL,
    slot     smallint NOT NULL,
    PRIMARY KEY (producer, block, slot)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- Offsets that ongoing transactions commit when they do.
CREATE TABLE txn_offsets (
    producer     bigint NOT NULL,
    grp          text COLLATE "C" NOT NULL,
    topic        uuid   NOT NULL,
    part         int    NOT NULL,
    offs         bigint NOT NULL,
    leader_epoch int    NOT NULL, -- -1: none
    metadata     bytea  NOT NULL,
    PRIMARY KEY (producer, grp, topic, part)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX txn_offsets_by_group ON txn_offsets (grp, topic, part);

-- Aborted transactions, by the offset of their marker.
CREATE TABLE aborted (
    block    bigint   NOT NULL,
    slot     smallint NOT NULL,
    marker   bigint   NOT NULL,
    first    bigint   NOT NULL, -- offset
    producer bigint   NOT NULL,
    lso      bigint   NOT NULL, -- last stable offset behind the marker: never falls from one marker to the next
    PRIMARY KEY (block, slot, marker)
);

-- Ends what a producer's transaction has beside its log: its partitions are none any more, its pending offsets are
-- committed or dropped. Who calls it holds the transaction's row, and the topics of its offsets FOR KEY SHARE.
CREATE FUNCTION skein_end_txn(p bigint, commits bool, at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM txn_open WHERE producer = p;
    IF commits AND EXISTS (SELECT FROM txn_offsets WHERE producer = p) THEN
        INSERT INTO groups (id, version, kind, state, protocol_type, data, since)
        SELECT DISTINCT grp, at, 0, 'Empty', '', ''::bytea, at FROM txn_offsets WHERE producer = p ORDER BY grp
        ON CONFLICT (id) DO NOTHING;
        INSERT INTO group_offsets (grp, topic, part, offs, leader_epoch, metadata, expires, committed)
        SELECT o.grp, o.topic, o.part, o.offs, o.leader_epoch, o.metadata, 0, at
        FROM txn_offsets o JOIN topics t ON t.id = o.topic WHERE o.producer = p ORDER BY o.grp, o.topic, o.part
        ON CONFLICT (grp, topic, part) DO UPDATE SET offs = excluded.offs, leader_epoch = excluded.leader_epoch,
            metadata = excluded.metadata, committed = excluded.committed, expires = excluded.expires;
    END IF;
    DELETE FROM txn_offsets WHERE producer = p;
END $$;

CREATE VIEW skein_transactions AS
SELECT t.id AS transactional_id, t.producer, t.epoch,
    CASE t.state WHEN 0 THEN 'Empty' WHEN 1 THEN 'Ongoing' WHEN 2 THEN 'CompleteCommit' ELSE 'CompleteAbort' END AS state,
    t.timeout AS timeout_ms, skein_timestamp(nullif(t.started, 0)) AS started, skein_timestamp(t.updated) AS updated,
    (SELECT count(*) FROM txn_open o WHERE o.producer = t.producer) AS partitions,
    (SELECT count(*) FROM txn_offsets o WHERE o.producer = t.producer) AS pending_offsets
FROM transactions t;
