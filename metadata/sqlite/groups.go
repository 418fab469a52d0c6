package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
)

const (
	groupColumns  = "id, version, kind, state, protocol_type, data, since, coalesce(due, 0), coalesce(timer, 0)"
	memberColumns = "member, instance, data, session, heard, heard_by"
)

func scanGroup(row scanner, g *metadata.GroupRow) error {
	return failure(row.Scan(&g.ID, &g.Version, &g.Kind, &g.State, &g.ProtocolType, &g.Data, &g.Since, &g.Due, &g.Timer))
}

func scanMember(row scanner, m *metadata.MemberRow) error {
	var session int64
	var by []byte
	if err := row.Scan(&m.ID, &m.Instance, &m.Data, &session, &m.Heard, &by); err != nil {
		return failure(err)
	}
	m.Session = time.Duration(session) * time.Millisecond
	if copy(m.HeardBy[:], by) != len(m.HeardBy) {
		return fmt.Errorf("%w: agent id of %d bytes", metadata.ErrCorrupt, len(by))
	}
	return nil
}

// errNothing ends a transaction that has nothing to save.
var errNothing = errors.New("nothing to save")

// transact is write, with errNothing for no error.
func (d *Driver) transact(ctx context.Context, fn func(*session) error) error {
	err := d.write(ctx, fn, nil)
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// group loads a group; one that is not there has Version 0.
func (s *session) group(id metadata.GroupID) (rows metadata.GroupRows, err error) {
	err = scanGroup(s.row("SELECT "+groupColumns+" FROM groups WHERE id = ?", string(id)), &rows.Group)
	if errors.Is(err, sql.ErrNoRows) {
		rows.Group.ID, err = id, nil
	}
	if err != nil {
		return rows, err
	}
	err = s.each("SELECT "+memberColumns+" FROM group_members WHERE grp = ? ORDER BY member", []any{string(id)},
		func(r *sql.Rows) error {
			var m metadata.MemberRow
			err := scanMember(r, &m)
			rows.Members = append(rows.Members, m)
			return err
		})
	if err != nil {
		return rows, err
	}
	rows.Contacts, err = s.contacts()
	return rows, err
}

func (s *session) contacts() (map[metadata.AgentID]metadata.Contact, error) {
	all := map[metadata.AgentID]metadata.Contact{}
	err := s.each("SELECT agent, since, seen FROM group_agents", nil, func(r *sql.Rows) error {
		var raw []byte
		var c metadata.Contact
		if err := r.Scan(&raw, &c.Since, &c.Seen); err != nil {
			return err
		}
		var id metadata.AgentID
		if copy(id[:], raw) != len(id) {
			return fmt.Errorf("%w: agent id of %d bytes", metadata.ErrCorrupt, len(raw))
		}
		all[id] = c
		return nil
	})
	return all, err
}

// ChangeGroup implements metadata.Driver. The writing transaction is the lock.
func (d *Driver) ChangeGroup(
	ctx context.Context, id metadata.GroupID, fn func(metadata.Millis, *metadata.GroupRows) (*metadata.GroupSave, error),
) (version int64, err error) {
	err = d.transact(ctx, func(s *session) error {
		rows, err := s.group(id)
		if err != nil {
			return err
		}
		version = rows.Group.Version
		now := d.millis()
		save, err := fn(now, &rows)
		switch {
		case err != nil:
			return err
		case save == nil:
			return errNothing
		}
		version, err = s.saveGroup(id, version, now, save)
		return err
	})
	return version, err
}

func (s *session) saveGroup(id metadata.GroupID, version int64, now metadata.Millis, save *metadata.GroupSave) (int64, error) {
	g := &save.Group
	if save.Delete {
		for _, query := range []string{
			"DELETE FROM groups WHERE id = ?", "DELETE FROM group_members WHERE grp = ?", "DELETE FROM group_offsets WHERE grp = ?",
		} {
			if _, err := s.exec(query, string(id)); err != nil {
				return 0, err
			}
		}
		return 0, nil
	}
	if save.Quiet {
		_, err := s.exec("UPDATE groups SET due = nullif(?, 0), timer = nullif(?, 0) WHERE id = ?", int64(g.Due), int64(g.Timer), string(id))
		return version, err
	}
	version = metadata.NextVersion(version, now)
	_, err := s.exec(`INSERT INTO groups (id, version, kind, state, protocol_type, data, since, due, timer)
		VALUES (?, ?, ?, ?, ?, ?, ?, nullif(?, 0), nullif(?, 0)) ON CONFLICT (id) DO UPDATE SET version = excluded.version,
		kind = excluded.kind, state = excluded.state, protocol_type = excluded.protocol_type, data = excluded.data,
		since = excluded.since, due = excluded.due, timer = excluded.timer`,
		string(id), version, int64(g.Kind), g.State, g.ProtocolType, notNil(g.Data), int64(g.Since), int64(g.Due), int64(g.Timer))
	if err != nil {
		return 0, err
	}
	for _, m := range save.Drop {
		if _, err := s.exec("DELETE FROM group_members WHERE grp = ? AND member = ?", string(id), string(m)); err != nil {
			return 0, err
		}
	}
	for i := range save.Save {
		m := &save.Save[i]
		_, err := s.exec(`INSERT INTO group_members (grp, member, instance, data, session, heard, heard_by)
			VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (grp, member) DO UPDATE SET instance = excluded.instance,
			data = excluded.data, session = excluded.session, heard = max(heard, excluded.heard),
			heard_by = CASE WHEN excluded.heard >= heard THEN excluded.heard_by ELSE heard_by END`,
			string(id), string(m.ID), m.Instance, notNil(m.Data), m.Session.Milliseconds(), int64(m.Heard), m.HeardBy[:])
		if err != nil {
			return 0, err
		}
	}
	return version, nil
}

// notNil gives an empty slice for nil, which would be NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// LoadGroups implements metadata.Driver.
func (d *Driver) LoadGroups(ctx context.Context, ids []metadata.GroupID) (now metadata.Millis, groups []metadata.GroupRows, err error) {
	groups = make([]metadata.GroupRows, len(ids))
	err = d.read(ctx, func(s *session) error {
		for i, id := range ids {
			if groups[i], err = s.group(id); err != nil {
				return err
			}
		}
		return nil
	})
	return d.millis(), groups, err
}

// GroupVersions implements metadata.Driver.
func (d *Driver) GroupVersions(ctx context.Context, ids []metadata.GroupID) (versions map[metadata.GroupID]int64, err error) {
	err = d.read(ctx, func(s *session) error {
		versions, err = s.versions(ids)
		return err
	})
	return versions, err
}

func (s *session) versions(ids []metadata.GroupID) (map[metadata.GroupID]int64, error) {
	versions := make(map[metadata.GroupID]int64, len(ids))
	for _, id := range ids {
		var v int64
		err := s.row("SELECT version FROM groups WHERE id = ?", string(id)).Scan(&v)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, failure(err)
		default:
			versions[id] = v
		}
	}
	return versions, nil
}

// ListGroups implements metadata.Driver.
func (d *Driver) ListGroups(ctx context.Context, after metadata.GroupID, limit int) (list []metadata.GroupRow, err error) {
	err = d.read(ctx, func(s *session) error {
		return s.each(`SELECT id, version, kind, state, protocol_type, x'', since, coalesce(due, 0), coalesce(timer, 0)
			FROM groups WHERE id > ? ORDER BY id LIMIT ?`, []any{string(after), limit}, func(r *sql.Rows) error {
			var g metadata.GroupRow
			err := scanGroup(r, &g)
			list = append(list, g)
			return err
		})
	})
	return list, err
}

// WriteBack implements metadata.Driver.
func (d *Driver) WriteBack(ctx context.Context, w metadata.WriteBack) (*metadata.WrittenBack, error) {
	done := &metadata.WrittenBack{}
	err := d.write(ctx, func(s *session) (err error) {
		done.Now = d.millis()
		_, err = s.exec(`INSERT INTO group_agents (agent, since, seen) VALUES (?, ?, ?) ON CONFLICT (agent) DO UPDATE SET
			since = CASE WHEN excluded.seen - seen > ? THEN excluded.seen ELSE since END, seen = max(seen, excluded.seen)`,
			w.Agent[:], int64(done.Now), int64(done.Now), metadata.ContactGap.Milliseconds())
		if err != nil {
			return err
		}
		for _, h := range w.Heard {
			_, err := s.exec("UPDATE group_members SET heard = ?, heard_by = ? WHERE grp = ? AND member = ? AND heard < ?",
				int64(h.At), w.Agent[:], string(h.Group), string(h.Member), int64(h.At))
			if err != nil {
				return err
			}
		}
		done.Versions, err = s.versions(w.Confirm)
		return err
	}, nil)
	return done, err
}

// SweepGroups implements metadata.Driver.
func (d *Driver) SweepGroups(ctx context.Context, limit int) (list []metadata.GroupID, err error) {
	now := int64(d.millis())
	found := false
	err = d.read(ctx, func(s *session) error { // most of the time nothing is due: then nothing is written
		return failure(s.row("SELECT EXISTS (SELECT 1 FROM groups WHERE due <= ?)", now).Scan(&found))
	})
	if err != nil || !found {
		return nil, err
	}
	err = d.write(ctx, func(s *session) error {
		list = nil
		var off []metadata.GroupRow
		err := s.each(`SELECT id, CASE WHEN timer IS NULL THEN coalesce(least_heard, 0) WHEN least_heard IS NULL THEN timer
			ELSE min(timer, least_heard) END FROM (SELECT id, timer,
				(SELECT min(m.heard + m.session) FROM group_members m WHERE m.grp = g.id) AS least_heard
			FROM groups g WHERE due <= ? ORDER BY due LIMIT ?)`, []any{now, limit}, func(r *sql.Rows) error {
			var g metadata.GroupRow
			if err := r.Scan(&g.ID, &g.Due); err != nil {
				return err
			}
			if g.Due == 0 || int64(g.Due) > now {
				off = append(off, g)
			} else {
				list = append(list, g.ID)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, g := range off {
			if _, err := s.exec("UPDATE groups SET due = nullif(?, 0) WHERE id = ?", int64(g.Due), string(g.ID)); err != nil {
				return err
			}
		}
		return nil
	}, nil)
	return list, err
}

// ForgetAgents implements metadata.Driver.
func (d *Driver) ForgetAgents(ctx context.Context, before metadata.Millis) error {
	return d.write(ctx, func(s *session) error {
		_, err := s.exec("DELETE FROM group_agents WHERE seen < ?", int64(before))
		return err
	}, nil)
}
