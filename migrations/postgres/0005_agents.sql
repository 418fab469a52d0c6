-- Agents as brokers (topology direct).

CREATE TABLE agents (
    node      int     PRIMARY KEY,
    run       uuid    NOT NULL, -- process
    zone      text    NOT NULL,
    address   text    NOT NULL, -- first address, by which the node id is remembered
    addresses jsonb   NOT NULL,
    draining  boolean NOT NULL,
    seen      bigint  NOT NULL  -- last heartbeat
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

CREATE VIEW skein_agents AS
SELECT node, zone, address, addresses, draining, skein_timestamp(seen) AS last_seen,
    seen >= skein_now() - 6000 AS alive, run
FROM agents;
