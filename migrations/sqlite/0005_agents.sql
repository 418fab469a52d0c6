-- Agents as brokers (topology direct).

CREATE TABLE agents (
    node      INTEGER NOT NULL PRIMARY KEY,
    run       BLOB    NOT NULL, -- process
    zone      TEXT    NOT NULL,
    address   TEXT    NOT NULL, -- first address, by which the node id is remembered
    addresses TEXT    NOT NULL, -- JSON
    draining  INTEGER NOT NULL,
    seen      INTEGER NOT NULL  -- ms, last heartbeat
) STRICT;
