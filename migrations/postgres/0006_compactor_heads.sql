-- The compactor's queues begin where its last pass ended: rows that were deleted before, and that a long snapshot keeps the
-- database from cleaning up, are not walked.

-- As before, but whatever changes references notes when: fsck, beside agents, leaves out what has changed since it began.
CREATE OR REPLACE FUNCTION skein_unref(names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM objects WHERE key = ANY (names) ORDER BY key FOR UPDATE;
    UPDATE objects o SET refs = greatest(o.refs - x.n, 0),
        state = CASE WHEN o.refs <= x.n AND o.state <> 3 THEN 2 ELSE o.state END,
        time = skein_now()
    FROM (SELECT k, count(*)::int AS n FROM unnest(names) k GROUP BY k) x
    WHERE o.key = x.k AND o.refs > 0;
END $$;

-- As before, but rows below the ones released last are gone: nobody looks for them.
CREATE OR REPLACE FUNCTION skein_release(b bigint, n int) RETURNS int LANGUAGE plpgsql AS $$
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
    -- The row released last may still be there, when it was the newest then.
    DELETE FROM level0 l WHERE l.block = b AND l.seq >= from_seq AND l.seq <= to_seq AND l.seq < newest;
    RETURN found_rows;
END $$;

-- Deletes up to n runs that end below the given offsets. No run has a base below from_base. It gives how many that were of
-- each partition, and where the next call for it may begin.
CREATE FUNCTION skein_drop_runs_from(blocks bigint[], slots int[], from_base bigint[], below bigint[], n int)
RETURNS TABLE (dropped int, next_base bigint) LANGUAGE plpgsql AS $$
DECLARE names text[]; counts bigint[]; lasts bigint[];
BEGIN
    PERFORM skein_lock_compaction(blocks);
    WITH doomed AS (
        SELECT u.i, r.block, r.slot, r.base
        FROM unnest(blocks, slots, from_base, below) WITH ORDINALITY AS u (block, slot, from_base, below, i)
        CROSS JOIN LATERAL (
            SELECT x.block, x.slot, x.base, x.last FROM runs x
            WHERE x.block = u.block AND x.slot = u.slot AND x.base >= u.from_base AND x.base < u.below ORDER BY x.base LIMIT n) r
        WHERE r.last < u.below ORDER BY u.i, r.base LIMIT n
    ), gone AS (
        DELETE FROM runs r USING doomed d WHERE r.block = d.block AND r.slot = d.slot AND r.base = d.base
        RETURNING d.i, r.object, r.last
    ), each_of AS (
        SELECT u.i, coalesce(g.n, 0) AS n, g.last FROM generate_series(1, cardinality(blocks)) AS u (i)
        LEFT JOIN (SELECT i, count(*) AS n, max(last) AS last FROM gone GROUP BY i) g ON g.i = u.i
    )
    SELECT (SELECT array_agg(object) FROM gone), array_agg(e.n ORDER BY e.i), array_agg(e.last ORDER BY e.i)
    INTO names, counts, lasts FROM each_of e;
    PERFORM skein_unref(array_remove(names, ''));
    RETURN QUERY
    SELECT counts[u.i]::int, coalesce(
        -- The run that is left around the offset, unless there may be more to drop.
        CASE WHEN coalesce(cardinality(names), 0) < n THEN
            (SELECT x.base FROM runs x WHERE x.block = u.block AND x.slot = u.slot AND x.base <= u.below
                AND x.base >= coalesce(lasts[u.i] + 1, u.from_base) ORDER BY x.base DESC LIMIT 1) END,
        lasts[u.i] + 1, u.from_base)
    FROM unnest(blocks, slots, from_base, below) WITH ORDINALITY AS u (block, slot, from_base, below, i) ORDER BY u.i;
END $$;

-- Deletes those of the blocks of which nothing is left, and gives them.
CREATE FUNCTION skein_drop_blocks(ids bigint[]) RETURNS SETOF bigint LANGUAGE sql AS
$$ SELECT b FROM (SELECT b FROM unnest(ids) b ORDER BY b) x WHERE skein_drop_block(b) $$;
