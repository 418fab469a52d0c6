-- Skein's metadata, first version. See docs/ARCHITECTURE.md, "Metadata".
--
-- Tables on the hot path have no foreign keys, and are only inserted into: level0, receipts, inline, objects. Times are
-- milliseconds since the Unix epoch in the database's clock, unless the type says otherwise.

-- One row: the catalogue's lock, version and allocators.
CREATE TABLE catalogue (
    one            bool PRIMARY KEY DEFAULT true CHECK (one),
    cluster_id     text   NOT NULL,
    version        bigint NOT NULL DEFAULT 0,
    next_block     bigint NOT NULL DEFAULT 1,
    next_producer  bigint NOT NULL DEFAULT 0,
    -- Tombstones of this version and before may be gone: an agent that saw an older catalogue reloads everything.
    forgotten      bigint NOT NULL DEFAULT 0
);
-- Kafka's cluster ids are 22 characters of URL-safe base64.
INSERT INTO catalogue (cluster_id)
VALUES (left(translate(encode(uuid_send(gen_random_uuid()), 'base64'), '+/=', '-_'), 22));

CREATE TABLE topics (
    id                 uuid PRIMARY KEY,
    name               text     NOT NULL UNIQUE,
    canonical          text     NOT NULL, -- name with '.' folded to '_'
    configs            jsonb    NOT NULL,
    replication_factor smallint NOT NULL, -- as asked for
    version            bigint   NOT NULL, -- of the catalogue at its last change
    created            bigint   NOT NULL
);
CREATE INDEX topics_canonical ON topics (canonical);
CREATE INDEX topics_version ON topics (version);

CREATE TABLE topic_tombstones (
    version bigint NOT NULL,
    topic   uuid   NOT NULL,
    PRIMARY KEY (version, topic)
);

CREATE TABLE partitions (
    topic   uuid     NOT NULL,
    idx     int      NOT NULL,
    block   bigint   NOT NULL,
    slot    smallint NOT NULL,
    created bigint   NOT NULL,
    PRIMARY KEY (topic, idx),
    UNIQUE (block, slot)
);

-- A block's lock, and what admin calls and the compactor change of it. log_start: 8 bytes big-endian for each slot,
-- trailing zeros left out. deleted: bit s is slot s.
CREATE TABLE blocks (
    id           bigint PRIMARY KEY,
    version      bigint   NOT NULL,
    log_start    bytea    NOT NULL DEFAULT '',
    deleted      bigint   NOT NULL DEFAULT 0,
    config_epoch bigint   NOT NULL DEFAULT 0,
    merged_seq   bigint   NOT NULL DEFAULT 0,
    used         smallint NOT NULL,
    shared       bool     NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX blocks_shared ON blocks (id) WHERE shared AND used < 64;

-- What one flush added to one block. object is NULL where the bytes are in inline under the same flush id. photo: the
-- state of all 64 slots after the row, 24 bytes each (next offset, running maximum timestamp, cumulative bytes,
-- big-endian). touched: the extents and their batches. Both stay in the row, uncompressed, so that a search reads one page for
-- a probe.
CREATE TABLE level0 (
    block   bigint NOT NULL,
    seq     bigint NOT NULL,
    time    bigint NOT NULL,
    flush   uuid   NOT NULL,
    object  text,
    touched bytea  NOT NULL,
    photo   bytea  NOT NULL,
    PRIMARY KEY (block, seq)
) WITH (toast_tuple_target = 8160,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
        autovacuum_vacuum_cost_delay = 0);
ALTER TABLE level0 ALTER COLUMN touched SET STORAGE EXTERNAL, ALTER COLUMN photo SET STORAGE MAIN;

-- Payloads of flushes too small for an object.
CREATE TABLE inline (
    flush   uuid  NOT NULL,
    size    int   NOT NULL, -- bytes of payload
    payload bytea NOT NULL,
    PRIMARY KEY (flush) INCLUDE (size)
) WITH (toast_tuple_target = 2040,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
        autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
        toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE inline ALTER COLUMN payload SET STORAGE EXTERNAL;

-- The results of every flush, for longer than any retry can last.
CREATE TABLE receipts (
    flush uuid   PRIMARY KEY,
    time  bigint NOT NULL,
    data  bytea  NOT NULL
) WITH (toast_tuple_target = 8160,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
        autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000,
        toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE receipts ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX receipts_time ON receipts (time);

-- Objects in the bucket. state: 0 registered, 1 live, 2 garbage, 3 condemned.
CREATE TABLE objects (
    key   text     PRIMARY KEY,
    size  bigint   NOT NULL,
    refs  int      NOT NULL, -- level0 rows and runs that name it
    state smallint NOT NULL,
    time  bigint   NOT NULL  -- of its last change of state
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX objects_garbage ON objects (state, time) WHERE state <> 1;

-- Folded states of blocks: whoever is cold starts here.
CREATE TABLE checkpoints (
    block bigint NOT NULL,
    seq   bigint NOT NULL,
    state bytea  NOT NULL,
    PRIMARY KEY (block, seq)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 500,
        toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE checkpoints ALTER COLUMN state SET STORAGE EXTERNAL;

-- Long extents of one partition in objects of level 1 and higher.
CREATE TABLE runs (
    block          bigint   NOT NULL,
    slot           smallint NOT NULL,
    base           bigint   NOT NULL,
    last           bigint   NOT NULL,
    object         text     NOT NULL,
    position       bigint   NOT NULL,
    length         bigint   NOT NULL,
    max_ts         bigint   NOT NULL,
    running_max_ts bigint   NOT NULL,
    bytes          bigint   NOT NULL, -- of the partition up to the run's end
    level          smallint NOT NULL,
    PRIMARY KEY (block, slot, base)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX runs_time ON runs (block, slot, running_max_ts, base);

-- When producer ids were handed out.
CREATE TABLE producer_ids (
    first bigint PRIMARY KEY,
    count int    NOT NULL,
    time  bigint NOT NULL
);

CREATE FUNCTION skein_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE FUNCTION skein_timestamp(millis bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT CASE WHEN millis >= 0 THEN timestamptz 'epoch' + millis * interval '1 millisecond' END $$;

-- A big-endian 64-bit integer; pos counts from 0.
CREATE FUNCTION skein_int8(b bytea, pos int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT ('x' || encode(substr(b, pos + 1, 8), 'hex'))::bit(64)::bigint $$;

-- The slot's fields in a photograph.
CREATE FUNCTION skein_photo_next(photo bytea, slot int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT skein_int8(photo, slot * 24) $$;
CREATE FUNCTION skein_photo_max_ts(photo bytea, slot int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT skein_int8(photo, slot * 24 + 8) $$;
CREATE FUNCTION skein_photo_bytes(photo bytea, slot int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT skein_int8(photo, slot * 24 + 16) $$;

-- The slot's log start in blocks.log_start.
CREATE FUNCTION skein_log_start(log_start bytea, slot int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT CASE WHEN length(log_start) >= slot * 8 + 8 THEN skein_int8(log_start, slot * 8) ELSE 0 END $$;

-- Called for a key that a commit names and the sweeper has condemned: the commit fails.
CREATE FUNCTION skein_condemned(key text) RETURNS smallint LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'object % is condemned', key USING ERRCODE = 'SK001'; END $$;

-- The extents in level0.touched, one row for each batch (metadata.AppendTouched).
CREATE FUNCTION skein_touched(touched bytea)
RETURNS TABLE (slot int, codec int, "position" bigint, length bigint, raw_length bigint, crc bigint, batch int,
    batch_bytes bigint, records bigint, max_timestamp bigint, producer bigint, epoch bigint, first_sequence bigint,
    last_sequence bigint, accepted bool, transactional bool, control bool)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    p int := 0;            -- next byte to read
    v bigint[];            -- varints read together
    shift int; x bigint; b int; flags int; batches bigint; extents bigint;
BEGIN
    IF get_byte(touched, 0) <> 1 THEN
        RAISE EXCEPTION 'touched extents of version %', get_byte(touched, 0);
    END IF;
    p := 1;
    x := 0; shift := 0;
    LOOP b := get_byte(touched, p); p := p + 1; x := x | ((b & 127)::bigint << shift); shift := shift + 7; EXIT WHEN b < 128; END LOOP;
    extents := x;
    FOR i IN 1..extents LOOP
        slot := get_byte(touched, p); codec := get_byte(touched, p + 1); p := p + 2;
        v := '{}';
        FOR k IN 1..3 LOOP
            x := 0; shift := 0;
            LOOP b := get_byte(touched, p); p := p + 1; x := x | ((b & 127)::bigint << shift); shift := shift + 7; EXIT WHEN b < 128; END LOOP;
            v := v || x;
        END LOOP;
        "position" := v[1]; length := v[2]; raw_length := v[3];
        crc := (get_byte(touched, p)::bigint << 24) | (get_byte(touched, p + 1) << 16) | (get_byte(touched, p + 2) << 8) | get_byte(touched, p + 3);
        p := p + 4;
        x := 0; shift := 0;
        LOOP b := get_byte(touched, p); p := p + 1; x := x | ((b & 127)::bigint << shift); shift := shift + 7; EXIT WHEN b < 128; END LOOP;
        batches := x;
        FOR j IN 1..batches LOOP
            batch := j - 1;
            flags := get_byte(touched, p); p := p + 1;
            accepted := flags & 1 <> 0; transactional := flags & 2 <> 0; control := flags & 4 <> 0;
            v := '{}';
            -- Two plain varints, then zigzag ones: the producer's last three only where there is a producer.
            FOR k IN 1..7 LOOP
                EXIT WHEN k = 5 AND v[4] = -1;
                x := 0; shift := 0;
                LOOP b := get_byte(touched, p); p := p + 1; x := x | ((b & 127)::bigint << shift); shift := shift + 7; EXIT WHEN b < 128; END LOOP;
                IF k > 2 THEN
                    x := ((x >> 1) & 9223372036854775807) # -(x & 1);
                END IF;
                v := v || x;
            END LOOP;
            batch_bytes := v[1]; records := v[2]; max_timestamp := v[3];
            producer := NULLIF(v[4], -1); epoch := v[5]; first_sequence := v[6]; last_sequence := v[7];
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

-- For people who ask the database. Programs must not depend on the tables; these views stay.
CREATE VIEW skein_topics AS
SELECT t.name AS topic, t.id AS topic_id, count(p.*) AS partitions, t.configs, skein_timestamp(t.created) AS created,
    t.version
FROM topics t LEFT JOIN partitions p ON p.topic = t.id
GROUP BY t.id;

CREATE VIEW skein_partitions AS
SELECT t.name AS topic, p.idx AS partition, p.block, p.slot,
    skein_log_start(b.log_start, p.slot) AS log_start,
    coalesce(skein_photo_next(n.photo, p.slot), 0) AS high_watermark,
    skein_timestamp(skein_photo_max_ts(n.photo, p.slot)) AS max_timestamp,
    coalesce(skein_photo_bytes(n.photo, p.slot), 0) AS bytes_written,
    skein_timestamp(p.created) AS created
FROM partitions p
JOIN topics t ON t.id = p.topic
JOIN blocks b ON b.id = p.block
LEFT JOIN LATERAL (SELECT photo FROM level0 l WHERE l.block = p.block ORDER BY l.seq DESC LIMIT 1) n ON true;

CREATE VIEW skein_blocks AS
SELECT b.id AS block, b.used AS slots, b.shared, coalesce(n.seq, 0) AS seq, b.merged_seq,
    coalesce(n.seq, 0) - b.merged_seq AS unmerged_rows, skein_timestamp(n.time) AS last_commit,
    (SELECT max(c.seq) FROM checkpoints c WHERE c.block = b.id) AS checkpoint
FROM blocks b
LEFT JOIN LATERAL (SELECT seq, time FROM level0 l WHERE l.block = b.id ORDER BY l.seq DESC LIMIT 1) n ON true;

-- One row for each flush and block, newest last by (block, seq).
CREATE VIEW skein_flushes AS
SELECT l.block, l.seq, skein_timestamp(l.time) AS committed, l.flush AS flush_id, l.object, l.object IS NULL AS inline,
    x.partitions, x.batches, x.records, x.bytes
FROM level0 l
CROSS JOIN LATERAL (
    SELECT count(DISTINCT slot) AS partitions, count(*) AS batches, coalesce(sum(records) FILTER (WHERE accepted), 0) AS records,
        coalesce(sum(batch_bytes) FILTER (WHERE accepted), 0) AS bytes
    FROM skein_touched(l.touched)) x;

-- One row for each batch of level 0. base_offset is that of the extent's first accepted record.
CREATE VIEW skein_batches AS
SELECT t.name AS topic, p.idx AS partition, l.block, l.seq, skein_timestamp(l.time) AS committed, l.flush AS flush_id,
    l.object, x.position, x.length, x.batch, x.batch_bytes, x.records, skein_timestamp(x.max_timestamp) AS max_timestamp,
    x.producer, x.epoch, x.first_sequence, x.last_sequence, x.accepted, x.transactional, x.control
FROM level0 l
CROSS JOIN LATERAL skein_touched(l.touched) x
JOIN partitions p ON p.block = l.block AND p.slot = x.slot
JOIN topics t ON t.id = p.topic;

CREATE VIEW skein_objects AS
SELECT key, size, refs,
    CASE state WHEN 0 THEN 'registered' WHEN 1 THEN 'live' WHEN 2 THEN 'garbage' ELSE 'condemned' END AS state,
    skein_timestamp(time) AS since
FROM objects;

CREATE VIEW skein_inline AS SELECT flush AS flush_id, size FROM inline;
