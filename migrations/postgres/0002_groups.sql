-- Consumer groups. See docs/ARCHITECTURE.md, "Consumer groups". Ids are compared by their bytes (COLLATE "C").

CREATE TABLE groups (
    id            text COLLATE "C" PRIMARY KEY,
    version       bigint   NOT NULL, -- raised by every change of the group or a member
    kind          smallint NOT NULL, -- 0 offsets only, 1 classic, 2 consumer (KIP-848)
    state         text     NOT NULL,
    protocol_type text     NOT NULL,
    data          bytea    NOT NULL,
    since         bigint   NOT NULL, -- when it came into its state
    due           bigint,            -- when it is to be looked at again
    timer         bigint             -- what of due does not come from sessions
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
CREATE INDEX groups_due ON groups (due) WHERE due IS NOT NULL;

CREATE TABLE group_members (
    grp      text COLLATE "C" NOT NULL,
    member   text COLLATE "C" NOT NULL,
    instance text   NOT NULL, -- group.instance.id
    data     bytea  NOT NULL,
    session  bigint NOT NULL, -- ms
    heard    bigint NOT NULL, -- as last written back
    heard_by uuid   NOT NULL, -- agent
    PRIMARY KEY (grp, member)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);

-- Agents that hear members: in touch with the database without a gap from since to seen.
CREATE TABLE group_agents (
    agent uuid PRIMARY KEY,
    since bigint NOT NULL,
    seen  bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

CREATE TABLE group_offsets (
    grp          text COLLATE "C" NOT NULL,
    topic        uuid   NOT NULL,
    part         int    NOT NULL,
    offs         bigint NOT NULL,
    leader_epoch int    NOT NULL, -- -1: none
    metadata     bytea  NOT NULL,
    committed    bigint NOT NULL,
    expires      bigint NOT NULL, -- 0: by the group's rules
    PRIMARY KEY (grp, topic, part)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX group_offsets_topic ON group_offsets (topic);

-- Settings of all agents that were changed while they run.
CREATE TABLE broker_settings (
    name  text PRIMARY KEY,
    value text NOT NULL
);

CREATE VIEW skein_groups AS
SELECT g.id AS group_id, CASE g.kind WHEN 1 THEN 'classic' WHEN 2 THEN 'consumer' ELSE 'simple' END AS kind, g.state,
    g.protocol_type, (SELECT count(*) FROM group_members m WHERE m.grp = g.id) AS members,
    (SELECT skein_timestamp(max(m.heard)) FROM group_members m WHERE m.grp = g.id) AS last_heard,
    skein_timestamp(g.since) AS since, g.version
FROM groups g;

CREATE VIEW skein_lag AS
SELECT o.grp AS group_id, p.topic, p.partition, o.offs AS committed_offset, p.log_start, p.high_watermark,
    greatest(p.high_watermark - greatest(o.offs, p.log_start), 0) AS lag, skein_timestamp(o.committed) AS committed
FROM group_offsets o
JOIN topics t ON t.id = o.topic
JOIN skein_partitions p ON p.topic = t.name AND p.partition = o.part;
