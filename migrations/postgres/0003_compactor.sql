-- The compactor: leases, runs that say what their object is, and what keeps garbage collection safe.

-- The right to do some work. A swap checks the token.
CREATE TABLE leases (
    name    text   PRIMARY KEY,
    holder  text   NOT NULL,
    token   bigint NOT NULL, -- rises with every holder
    expires bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);

ALTER TABLE runs ADD COLUMN raw bigint NOT NULL DEFAULT 0;         -- bytes before compression
ALTER TABLE runs ADD COLUMN object_size bigint NOT NULL DEFAULT 0; -- bytes

-- How far the compactor has come in a block. Its row is locked by whatever changes runs or releases rows of the block.
CREATE TABLE compaction (
    block        bigint PRIMARY KEY,
    released     bigint NOT NULL DEFAULT 0, -- level0 rows up to this seq gave up their references
    merged_bytes bigint NOT NULL DEFAULT 0  -- sum of the slots' cumulative bytes at the merged seq
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);

-- How far key compaction has come in a partition.
CREATE TABLE cleaned (
    block   bigint   NOT NULL,
    slot    smallint NOT NULL,
    up_to   bigint   NOT NULL, -- everything below was compacted
    bytes   bigint   NOT NULL, -- raw bytes of the runs below it
    at      bigint   NOT NULL,
    horizon bigint   NOT NULL, -- when a tombstone or marker may go; 0: there is none
    PRIMARY KEY (block, slot)
) WITH (fillfactor = 50);

-- Inline rows by flush: a payload goes with the last row that refers to it.
CREATE INDEX level0_inline ON level0 (flush) WHERE object IS NULL;

-- Objects by what has to be done with them, oldest first. refs is -1 where the object was deleted.
DROP INDEX objects_garbage;
CREATE INDEX objects_garbage ON objects (time) WHERE state = 2;
CREATE INDEX objects_registered ON objects (time) WHERE state = 0;
CREATE INDEX objects_condemned ON objects (time) WHERE state = 3 AND refs >= 0;
CREATE INDEX objects_deleted ON objects (time) WHERE state = 3 AND refs < 0;

CREATE TABLE gc (
    one        bool   PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL, -- passes that delete; the bucket's marker must not be ahead of it
    halted     text   NOT NULL, -- why nothing is deleted; '': it may be
    system     text   NOT NULL, -- the incarnation of the last pass
    timeline   bigint NOT NULL
);
INSERT INTO gc VALUES (true, 0, '', '', 0);

-- Ends the transaction when what it was planned on has changed.
CREATE FUNCTION skein_require(ok bool, what text) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN IF ok IS NOT TRUE THEN RAISE EXCEPTION 'fenced: %', what USING ERRCODE = 'SK002'; END IF; END $$;

-- Locks how far the compactor has come in blocks, in their order.
CREATE FUNCTION skein_lock_compaction(blocks bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO compaction (block) SELECT DISTINCT b FROM unnest(blocks) b ORDER BY b ON CONFLICT DO NOTHING;
    PERFORM FROM compaction WHERE block = ANY (blocks) ORDER BY block FOR UPDATE;
END $$;

-- Takes references back from objects. What nothing refers to is garbage.
CREATE FUNCTION skein_unref(names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM objects WHERE key = ANY (names) ORDER BY key FOR UPDATE;
    UPDATE objects o SET refs = greatest(o.refs - x.n, 0),
        state = CASE WHEN o.refs <= x.n AND o.state <> 3 THEN 2 ELSE o.state END,
        time = CASE WHEN o.refs <= x.n THEN skein_now() ELSE o.time END
    FROM (SELECT k, count(*)::int AS n FROM unnest(names) k GROUP BY k) x
    WHERE o.key = x.k AND o.refs > 0;
END $$;

-- The payloads among these that no unreleased row refers to go. They are locked first, so that of two blocks that give up
-- the same payload at once the second sees what the first did.
CREATE FUNCTION skein_drop_inline(flushes uuid[]) RETURNS int LANGUAGE plpgsql AS $$
DECLARE n int;
BEGIN
    PERFORM FROM inline WHERE flush = ANY (flushes) ORDER BY flush FOR UPDATE;
    DELETE FROM inline i WHERE i.flush = ANY (flushes) AND NOT EXISTS (
        SELECT FROM level0 l LEFT JOIN compaction c ON c.block = l.block
        WHERE l.flush = i.flush AND l.object IS NULL AND l.seq > coalesce(c.released, 0));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

-- Takes back the references of up to n merged rows of a block, and deletes these but for the block's newest.
CREATE FUNCTION skein_release(b bigint, n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE from_seq bigint; to_seq bigint; found_rows int; newest bigint;
BEGIN
    PERFORM skein_lock_compaction(ARRAY[b]);
    SELECT released INTO from_seq FROM compaction WHERE block = b;
    SELECT max(x.seq), count(*) INTO to_seq, found_rows FROM (
        SELECT l.seq FROM level0 l WHERE l.block = b AND l.seq > from_seq AND l.seq <= (SELECT merged_seq FROM blocks WHERE id = b)
        ORDER BY l.seq LIMIT n) x;
    IF found_rows > 0 THEN
        UPDATE compaction SET released = to_seq WHERE block = b;
        PERFORM skein_unref(ARRAY(
            SELECT l.object FROM level0 l WHERE l.block = b AND l.seq > from_seq AND l.seq <= to_seq AND l.object IS NOT NULL));
        PERFORM skein_drop_inline(ARRAY(
            SELECT l.flush FROM level0 l WHERE l.block = b AND l.seq > from_seq AND l.seq <= to_seq AND l.object IS NULL));
    ELSE
        to_seq := from_seq;
    END IF;
    SELECT l.seq INTO newest FROM level0 l WHERE l.block = b ORDER BY l.seq DESC LIMIT 1;
    DELETE FROM level0 l WHERE l.block = b AND l.seq <= to_seq AND l.seq < newest;
    RETURN found_rows;
END $$;

-- Deletes up to n runs that end below the given offsets.
CREATE FUNCTION skein_drop_runs(blocks bigint[], slots int[], below bigint[], n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE names text[];
BEGIN
    PERFORM skein_lock_compaction(blocks);
    WITH doomed AS (
        SELECT r.block, r.slot, r.base FROM unnest(blocks, slots, below) AS u (block, slot, below)
        CROSS JOIN LATERAL (
            SELECT x.block, x.slot, x.base, x.last FROM runs x
            WHERE x.block = u.block AND x.slot = u.slot AND x.base < u.below ORDER BY x.base LIMIT n) r
        WHERE r.last < u.below LIMIT n
    ), gone AS (
        DELETE FROM runs r USING doomed d WHERE r.block = d.block AND r.slot = d.slot AND r.base = d.base RETURNING r.object
    )
    SELECT array_agg(object) INTO names FROM gone;
    PERFORM skein_unref(array_remove(names, ''));
    RETURN coalesce(array_length(names, 1), 0);
END $$;

-- Deletes a block of which nothing is left.
CREATE FUNCTION skein_drop_block(b bigint) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE r blocks%ROWTYPE; newest bigint; done bigint;
BEGIN
    SELECT * INTO r FROM blocks WHERE id = b FOR UPDATE;
    IF NOT FOUND OR (r.shared AND r.used < 64) OR r.used = 0
        OR r.deleted <> (CASE WHEN r.used = 64 THEN -1 ELSE (1::bigint << r.used) - 1 END) THEN
        RETURN false;
    END IF;
    PERFORM skein_lock_compaction(ARRAY[b]);
    SELECT coalesce(max(seq), 0) INTO newest FROM (SELECT seq FROM level0 WHERE block = b ORDER BY seq DESC LIMIT 1) x;
    SELECT released INTO done FROM compaction WHERE block = b;
    IF done < newest OR EXISTS (SELECT FROM runs WHERE block = b LIMIT 1) THEN
        RETURN false;
    END IF;
    DELETE FROM level0 WHERE block = b;
    DELETE FROM checkpoints WHERE block = b;
    DELETE FROM cleaned WHERE block = b;
    DELETE FROM compaction WHERE block = b;
    DELETE FROM leases WHERE name = 'block/' || b; -- its id is never used again
    DELETE FROM blocks WHERE id = b;
    RETURN true;
END $$;
