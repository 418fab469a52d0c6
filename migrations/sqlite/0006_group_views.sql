-- Groups and their lag for people, as on Postgres.

CREATE VIEW skein_groups AS
SELECT g.id AS group_id, CASE g.kind WHEN 1 THEN 'classic' WHEN 2 THEN 'consumer' ELSE 'simple' END AS kind, g.state,
    g.protocol_type, (SELECT count(*) FROM group_members m WHERE m.grp = g.id) AS members,
    (SELECT strftime('%Y-%m-%d %H:%M:%f', max(m.heard) / 1000.0, 'unixepoch') FROM group_members m WHERE m.grp = g.id) AS last_heard,
    strftime('%Y-%m-%d %H:%M:%f', g.since / 1000.0, 'unixepoch') AS since, g.version
FROM groups g;

CREATE VIEW skein_lag AS
SELECT o.grp AS group_id, p.topic, p.partition, o.offs AS committed_offset, p.log_start, p.high_watermark,
    max(p.high_watermark - max(o.offs, p.log_start), 0) AS lag,
    strftime('%Y-%m-%d %H:%M:%f', o.committed / 1000.0, 'unixepoch') AS committed
FROM group_offsets o
JOIN topics t ON t.id = o.topic
JOIN skein_partitions p ON p.topic = t.name AND p.partition = o.part;
