package postgres

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

const (
	groupColumns  = `id, version, kind, state, protocol_type, data, since, coalesce(due, 0), coalesce(timer, 0)`
	memberColumns = `member, instance, data, session, heard, heard_by`
)

func scanGroup(row pgx.Row, g *metadata.GroupRow) error {
	return row.Scan((*string)(&g.ID), &g.Version, (*int16)(&g.Kind), &g.State, &g.ProtocolType, &g.Data, (*int64)(&g.Since),
		(*int64)(&g.Due), (*int64)(&g.Timer))
}

func scanMember(rows pgx.Rows, m *metadata.MemberRow) error {
	var session int64
	err := rows.Scan((*string)(&m.ID), &m.Instance, &m.Data, &session, (*int64)(&m.Heard), (*[16]byte)(&m.HeardBy))
	m.Session = millisDuration(session)
	return err
}

// transact runs fn in a transaction of the commit pool and commits it, with the outcomes that metadata.Driver has. An
// errNothing of fn rolls back and is no error.
func (d *Driver) transact(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return d.again(ctx, func(conn *pgxpool.Conn) error {
		guard := d.guard(ctx, conn.Conn().PgConn().PID())
		defer guard.stop()
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx)) // does nothing after a commit
		if err := fn(tx); err != nil {
			if errors.Is(err, errNothing) {
				return nil
			}
			return err
		}
		localOnly(conn.Conn().PgConn())
		err = tx.Commit(ctx)
		switch {
		case err == nil && localOnly(conn.Conn().PgConn()):
			return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, errLocalOnly)
		case err == nil, refused(err):
			return err
		case errors.Is(err, pgx.ErrTxCommitRollback):
			return fmt.Errorf("%w: %w", metadata.ErrUnavailable, errNotCommitted)
		}
		return fmt.Errorf("%w: %w", metadata.ErrUnknownOutcome, err)
	})
}

// errNothing ends a transaction that has nothing to save.
var errNothing = errors.New("nothing to save")

// insertGroup makes the row that is then locked; a transaction that saves nothing takes it back.
const insertGroup = `
INSERT INTO groups (id, version, kind, state, protocol_type, data, since)
VALUES ($1, 0, 0, 'Empty', '', '', skein_now()) ON CONFLICT (id) DO NOTHING`

// ChangeGroup implements metadata.Driver.
func (d *Driver) ChangeGroup(
	ctx context.Context, id metadata.GroupID, fn func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error),
) (version int64, err error) {
	err = d.transact(ctx, func(tx pgx.Tx) error {
		now, rows, err := lockGroup(ctx, tx, id)
		if err != nil {
			return err
		}
		version = rows.Group.Version
		save, err := fn(now, rows)
		switch {
		case err != nil:
			return &decideError{err}
		case save == nil:
			return errNothing
		}
		version, err = saveGroup(ctx, tx, id, version, now, save)
		return err
	})
	return version, err
}

// lockGroup locks and loads a group, and the contacts of all agents.
func lockGroup(ctx context.Context, tx pgx.Tx, id metadata.GroupID) (metadata.Millis, *metadata.GroupRows, error) {
	b := &pgx.Batch{}
	b.Queue(insertGroup, string(id))
	b.Queue("SELECT "+groupColumns+" FROM groups WHERE id = $1 FOR UPDATE", string(id))
	b.Queue("SELECT "+memberColumns+" FROM group_members WHERE grp = $1 ORDER BY member", string(id))
	b.Queue("SELECT agent, since, seen FROM group_agents")
	b.Queue("SELECT skein_now()")
	r := tx.SendBatch(ctx, b)
	defer r.Close()
	rows := &metadata.GroupRows{}
	if _, err := r.Exec(); err != nil {
		return 0, nil, fmt.Errorf("make a group: %w", err)
	}
	if err := scanGroup(r.QueryRow(), &rows.Group); err != nil {
		if errors.Is(err, pgx.ErrNoRows) { // deleted between the two statements
			err = fmt.Errorf("%w: group went while it was waited for", metadata.ErrUnavailable)
		}
		return 0, nil, fmt.Errorf("lock group %q: %w", id, err)
	}
	q, err := r.Query()
	if rows.Members, err = scanAll(q, err, scanMember); err != nil {
		return 0, nil, fmt.Errorf("load members: %w", err)
	}
	q, err = r.Query()
	if rows.Contacts, err = contacts(q, err); err != nil {
		return 0, nil, err
	}
	var now int64
	if err := r.QueryRow().Scan(&now); err != nil {
		return 0, nil, fmt.Errorf("read the database's clock: %w", err)
	}
	return metadata.Millis(now), rows, r.Close()
}

func contacts(rows pgx.Rows, err error) (map[metadata.AgentID]metadata.Contact, error) {
	type agent struct {
		id metadata.AgentID
		c  metadata.Contact
	}
	list, err := scanAll(rows, err, func(rows pgx.Rows, a *agent) error {
		return rows.Scan((*[16]byte)(&a.id), (*int64)(&a.c.Since), (*int64)(&a.c.Seen))
	})
	if err != nil {
		return nil, fmt.Errorf("load agents' contacts: %w", err)
	}
	m := make(map[metadata.AgentID]metadata.Contact, len(list))
	for _, a := range list {
		m[a.id] = a.c
	}
	return m, nil
}

// saveGroup writes a change and gives the new version.
func saveGroup(ctx context.Context, tx pgx.Tx, id metadata.GroupID, version int64, now metadata.Millis, s *metadata.GroupSave) (int64, error) {
	b := &pgx.Batch{}
	g := &s.Group
	switch {
	case s.Delete:
		version = 0
		b.Queue("DELETE FROM groups WHERE id = $1", string(id))
		b.Queue("DELETE FROM group_members WHERE grp = $1", string(id))
		b.Queue("DELETE FROM group_offsets WHERE grp = $1", string(id))
	case s.Quiet:
		b.Queue("UPDATE groups SET due = nullif($2::int8, 0), timer = nullif($3::int8, 0) WHERE id = $1", string(id), int64(g.Due), int64(g.Timer))
	default:
		version = metadata.NextVersion(version, now)
		b.Queue(`UPDATE groups SET version = $2, kind = $3, state = $4, protocol_type = $5, data = $6, since = $7,
			due = nullif($8::int8, 0), timer = nullif($9::int8, 0) WHERE id = $1`,
			string(id), version, int16(g.Kind), g.State, g.ProtocolType, notNil(g.Data), int64(g.Since), int64(g.Due), int64(g.Timer))
		queueMembers(b, id, s)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return 0, fmt.Errorf("save group %q: %w", id, err)
	}
	return version, nil
}

func queueMembers(b *pgx.Batch, id metadata.GroupID, s *metadata.GroupSave) {
	if len(s.Drop) > 0 {
		b.Queue("DELETE FROM group_members WHERE grp = $1 AND member = ANY ($2::text[])", string(id), texts(s.Drop))
	}
	n := len(s.Save)
	if n == 0 {
		return
	}
	list := slices.Clone(s.Save)
	slices.SortFunc(list, func(a, b metadata.MemberRow) int { return cmp.Compare(a.ID, b.ID) })
	ids, instances, data := make([]string, n), make([]string, n), make([][]byte, n)
	session, heard, by := make([]int64, n), make([]int64, n), make([][16]byte, n)
	for i := range list {
		m := &list[i]
		ids[i], instances[i], data[i] = string(m.ID), m.Instance, notNil(m.Data)
		session[i], heard[i], by[i] = m.Session.Milliseconds(), int64(m.Heard), m.HeardBy
	}
	b.Queue(`
INSERT INTO group_members AS m (grp, member, instance, data, session, heard, heard_by)
SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bytea[], $5::int8[], $6::int8[], $7::uuid[])
ON CONFLICT (grp, member) DO UPDATE SET instance = excluded.instance, data = excluded.data, session = excluded.session,
	heard = greatest(m.heard, excluded.heard),
	heard_by = CASE WHEN excluded.heard >= m.heard THEN excluded.heard_by ELSE m.heard_by END`,
		string(id), ids, instances, data, session, heard, by)
}

// notNil gives an empty slice for nil, of which pgx makes NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// texts gives ids as pgx takes them.
func texts[T ~string](ids []T) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	return list
}

// LoadGroups implements metadata.Driver.
func (d *Driver) LoadGroups(ctx context.Context, ids []metadata.GroupID) (now metadata.Millis, groups []metadata.GroupRows, err error) {
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		groups = make([]metadata.GroupRows, len(ids))
		at := make(map[metadata.GroupID]int, len(ids))
		for i, id := range ids {
			groups[i].Group.ID = id
			at[id] = i
		}
		// One statement, thus one view: a group's row, and its members, and the agents.
		rows, err := conn.Query(ctx, loadGroupsSQL, texts(ids))
		if err != nil {
			return err
		}
		defer rows.Close()
		all := map[metadata.AgentID]metadata.Contact{}
		for rows.Next() {
			if err := scanLoaded(rows, groups, at, all, &now); err != nil {
				return err
			}
		}
		for i := range groups {
			groups[i].Contacts = all
			slices.SortFunc(groups[i].Members, func(a, b metadata.MemberRow) int { return cmp.Compare(a.ID, b.ID) })
		}
		return rows.Err()
	})
	return now, groups, err
}

// kind 0: the clock; 1: a group; 2: a member; 3: an agent.
const loadGroupsSQL = `
SELECT 0 AS what, '' AS grp, skein_now() AS a, 0::int8 AS b, 0::int8 AS c, 0::int8 AS d, 0::int2 AS kind, '' AS s1, '' AS s2,
	''::bytea AS data, '00000000-0000-0000-0000-000000000000'::uuid AS id
UNION ALL
SELECT 1, g.id, g.version, g.since, coalesce(g.due, 0), coalesce(g.timer, 0), g.kind, g.state, g.protocol_type, g.data,
	'00000000-0000-0000-0000-000000000000'::uuid
FROM groups g WHERE g.id = ANY ($1::text[])
UNION ALL
SELECT 2, m.grp, m.session, m.heard, 0, 0, 0, m.member, m.instance, m.data, m.heard_by
FROM group_members m WHERE m.grp = ANY ($1::text[])
UNION ALL
SELECT 3, '', a.since, a.seen, 0, 0, 0, '', '', '', a.agent FROM group_agents a`

func scanLoaded(rows pgx.Rows, groups []metadata.GroupRows, at map[metadata.GroupID]int,
	all map[metadata.AgentID]metadata.Contact, now *metadata.Millis,
) error {
	var what int
	var grp, s1, s2 string
	var a, b, c, d int64
	var kind int16
	var data []byte
	var id [16]byte
	if err := rows.Scan(&what, &grp, &a, &b, &c, &d, &kind, &s1, &s2, &data, &id); err != nil {
		return err
	}
	i, known := at[metadata.GroupID(grp)]
	switch {
	case what == 0:
		*now = metadata.Millis(a)
	case what == 3:
		all[id] = metadata.Contact{Since: metadata.Millis(a), Seen: metadata.Millis(b)}
	case !known:
	case what == 1:
		groups[i].Group = metadata.GroupRow{
			ID: metadata.GroupID(grp), Version: a, Since: metadata.Millis(b), Due: metadata.Millis(c), Timer: metadata.Millis(d),
			Kind: metadata.GroupKind(kind), State: s1, ProtocolType: s2, Data: bytes.Clone(data),
		}
	case what == 2:
		groups[i].Members = append(groups[i].Members, metadata.MemberRow{
			ID: metadata.MemberID(s1), Instance: s2, Data: bytes.Clone(data), Session: millisDuration(a), Heard: metadata.Millis(b),
			HeardBy: id,
		})
	}
	return nil
}

// GroupVersions implements metadata.Driver.
func (d *Driver) GroupVersions(ctx context.Context, ids []metadata.GroupID) (map[metadata.GroupID]int64, error) {
	var list []metadata.GroupVersion
	err := d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, "SELECT id, version FROM groups WHERE id = ANY ($1::text[])", texts(ids))
		list, err = scanAll(rows, err, func(rows pgx.Rows, v *metadata.GroupVersion) error {
			return rows.Scan((*string)(&v.ID), &v.Version)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read versions of groups: %w", err)
	}
	return versionMap(list), nil
}

func versionMap(list []metadata.GroupVersion) map[metadata.GroupID]int64 {
	m := make(map[metadata.GroupID]int64, len(list))
	for _, v := range list {
		m[v.ID] = v.Version
	}
	return m
}

// ListGroups implements metadata.Driver.
func (d *Driver) ListGroups(ctx context.Context, after metadata.GroupID, limit int) (list []metadata.GroupRow, err error) {
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, `SELECT id, version, kind, state, protocol_type, ''::bytea, since, coalesce(due, 0),
			coalesce(timer, 0) FROM groups WHERE id > $1 ORDER BY id LIMIT $2`, string(after), limit)
		list, err = scanAll(rows, err, func(rows pgx.Rows, g *metadata.GroupRow) error { return scanGroup(rows, g) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	return list, nil
}

// Rows are locked in the order of their key, as everywhere. An agent's contact begins anew after a gap.
const writeBackSQL = `
WITH t AS MATERIALIZED (SELECT skein_now() AS now),
a AS (
	INSERT INTO group_agents AS a (agent, since, seen) SELECT $1::uuid, t.now, t.now FROM t
	ON CONFLICT (agent) DO UPDATE SET
		since = CASE WHEN excluded.seen - a.seen > $2::int8 THEN excluded.seen ELSE a.since END,
		seen = greatest(a.seen, excluded.seen)
	RETURNING seen),
u AS (
	SELECT m.grp, m.member, u.heard
	FROM unnest($3::text[], $4::text[], $5::int8[]) AS u (grp, member, heard)
	JOIN group_members m ON m.grp = u.grp AND m.member = u.member
	WHERE m.heard < u.heard
	ORDER BY m.grp, m.member FOR NO KEY UPDATE OF m),
w AS (
	UPDATE group_members m SET heard = u.heard, heard_by = $1::uuid
	FROM u WHERE m.grp = u.grp AND m.member = u.member)
SELECT t.now, g.id, g.version FROM t CROSS JOIN a LEFT JOIN groups g ON g.id = ANY ($6::text[])`

// WriteBack implements metadata.Driver.
func (d *Driver) WriteBack(ctx context.Context, w metadata.WriteBack) (*metadata.WrittenBack, error) {
	n := len(w.Heard)
	groups, members, heard := make([]string, n), make([]string, n), make([]int64, n)
	for i, h := range w.Heard {
		groups[i], members[i], heard[i] = string(h.Group), string(h.Member), int64(h.At)
	}
	done := &metadata.WrittenBack{}
	err := d.again(ctx, func(conn *pgxpool.Conn) error {
		done.Versions = make(map[metadata.GroupID]int64, len(w.Confirm))
		rows, err := conn.Query(ctx, writeBackSQL, [16]byte(w.Agent), metadata.ContactGap.Milliseconds(), groups, members, heard,
			texts(w.Confirm))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id *string
			var version *int64
			if err := rows.Scan((*int64)(&done.Now), &id, &version); err != nil {
				return err
			}
			if id != nil {
				done.Versions[metadata.GroupID(*id)] = *version
			}
		}
		return rows.Err()
	})
	return done, err
}

// Groups whose members were all heard of since are put off; the rest is given, and stays due.
const sweepGroupsSQL = `
WITH t AS MATERIALIZED (SELECT skein_now() AS now),
d AS MATERIALIZED (
	SELECT g.id, g.timer FROM groups g, t WHERE g.due <= t.now ORDER BY g.due LIMIT $1 FOR NO KEY UPDATE OF g SKIP LOCKED),
n AS (
	SELECT d.id, least(d.timer, (SELECT min(m.heard + m.session) FROM group_members m WHERE m.grp = d.id)) AS due FROM d),
p AS (
	UPDATE groups g SET due = n.due FROM n, t WHERE g.id = n.id AND (n.due IS NULL OR n.due > t.now) RETURNING g.id)
SELECT n.id FROM n WHERE n.id NOT IN (SELECT id FROM p)`

// SweepGroups implements metadata.Driver.
func (d *Driver) SweepGroups(ctx context.Context, limit int) (list []metadata.GroupID, err error) {
	err = d.again(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, sweepGroupsSQL, limit)
		list, err = scanAll(rows, err, func(rows pgx.Rows, id *metadata.GroupID) error { return rows.Scan((*string)(id)) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sweep groups: %w", err)
	}
	return list, nil
}

// ForgetAgents implements metadata.Driver.
func (d *Driver) ForgetAgents(ctx context.Context, before metadata.Millis) error {
	return d.exec(ctx, "DELETE FROM group_agents WHERE seen < $1", int64(before))
}

// exec runs one statement that does no harm when it is done twice.
func (d *Driver) exec(ctx context.Context, sql string, args ...any) error {
	return d.query(ctx, func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}
