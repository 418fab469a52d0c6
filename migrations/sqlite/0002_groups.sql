-- Consumer groups. docs/ARCHITECTURE.md says what a row of each table is.

CREATE TABLE groups (
    id            TEXT    NOT NULL PRIMARY KEY,
    version       INTEGER NOT NULL, -- raised by every change of the group or a member
    kind          INTEGER NOT NULL, -- 0 offsets only, 1 classic, 2 consumer (KIP-848)
    state         TEXT    NOT NULL,
    protocol_type TEXT    NOT NULL,
    data          BLOB    NOT NULL,
    since         INTEGER NOT NULL, -- ms, when it came into its state
    due           INTEGER,          -- ms, when it is to be looked at again
    timer         INTEGER           -- ms, what of due does not come from sessions
) STRICT, WITHOUT ROWID;
CREATE INDEX groups_due ON groups (due) WHERE due IS NOT NULL;

CREATE TABLE group_members (
    grp      TEXT    NOT NULL,
    member   TEXT    NOT NULL,
    instance TEXT    NOT NULL, -- group.instance.id
    data     BLOB    NOT NULL,
    session  INTEGER NOT NULL, -- ms
    heard    INTEGER NOT NULL, -- ms, as last written back
    heard_by BLOB    NOT NULL, -- agent
    PRIMARY KEY (grp, member)
) STRICT, WITHOUT ROWID;

-- Agents that hear members: in touch with the database without a gap from since to seen.
CREATE TABLE group_agents (
    agent BLOB    NOT NULL PRIMARY KEY,
    since INTEGER NOT NULL, -- ms
    seen  INTEGER NOT NULL  -- ms
) STRICT, WITHOUT ROWID;

CREATE TABLE group_offsets (
    grp          TEXT    NOT NULL,
    topic        BLOB    NOT NULL,
    part         INTEGER NOT NULL,
    offs         INTEGER NOT NULL,
    leader_epoch INTEGER NOT NULL, -- -1: none
    metadata     BLOB    NOT NULL,
    committed    INTEGER NOT NULL, -- ms
    expires      INTEGER NOT NULL, -- ms; 0: by the group's rules
    PRIMARY KEY (grp, topic, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_offsets_by_topic ON group_offsets (topic);

-- Settings of all agents that were changed while they run.
CREATE TABLE broker_settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
