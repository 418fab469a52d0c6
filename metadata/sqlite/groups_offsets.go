package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// CommitOffsets implements metadata.Driver. Offsets of topics that are not there are left out.
func (d *Driver) CommitOffsets(ctx context.Context, c metadata.OffsetCommit) error {
	return d.write(ctx, func(s *session) error {
		now, err := s.checkCommit(d.millis(), &c)
		if err != nil {
			return err
		}
		for i := range c.Offsets {
			o := &c.Offsets[i]
			_, err := s.exec(`INSERT INTO group_offsets (grp, topic, part, offs, leader_epoch, metadata, committed, expires)
				SELECT ?, t.id, ?, ?, ?, ?, ?, ? FROM topics t WHERE t.id = ?
				ON CONFLICT (grp, topic, part) DO UPDATE SET offs = excluded.offs, leader_epoch = excluded.leader_epoch,
				metadata = excluded.metadata, committed = excluded.committed, expires = excluded.expires`,
				string(c.Group), o.Partition, int64(o.Offset), o.LeaderEpoch, notNil(o.Metadata), int64(now), int64(o.Expires), o.Topic[:])
			if err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// checkCommit asks c.Check, and makes the group when it is not there.
func (s *session) checkCommit(now metadata.Millis, c *metadata.OffsetCommit) (metadata.Millis, error) {
	var group metadata.GroupRow
	err := scanGroup(s.row("SELECT "+groupColumns+" FROM groups WHERE id = ?", string(c.Group)), &group)
	missing := errors.Is(err, sql.ErrNoRows)
	if err != nil && !missing {
		return 0, err
	}
	group.ID = c.Group
	var members []metadata.MemberRow
	err = s.each("SELECT "+memberColumns+" FROM group_members WHERE grp = ? AND (member = ? OR instance = ? AND ? <> '')",
		[]any{string(c.Group), string(c.Member), c.Instance, c.Instance}, func(r *sql.Rows) error {
			var m metadata.MemberRow
			err := scanMember(r, &m)
			members = append(members, m)
			return err
		})
	if err != nil {
		return 0, err
	}
	if err := c.Check(now, &group, members); err != nil {
		return 0, err
	}
	if missing {
		_, err = s.exec("INSERT INTO groups (id, version, kind, state, protocol_type, data, since) VALUES (?, ?, 0, 'Empty', '', x'', ?)",
			string(c.Group), int64(now), int64(now))
	}
	return now, err
}

const offsetColumns = "topic, part, offs, leader_epoch, metadata, committed, expires"

func scanOffset(row scanner, o *metadata.GroupOffset) error {
	var topic []byte
	err := row.Scan(&topic, &o.Partition, &o.Offset, &o.LeaderEpoch, &o.Metadata, &o.Committed, &o.Expires)
	if err != nil {
		return failure(err)
	}
	if copy(o.Topic[:], topic) != len(o.Topic) {
		return fmt.Errorf("%w: topic id of %d bytes", metadata.ErrCorrupt, len(topic))
	}
	return nil
}

// LoadOffsets implements metadata.Driver.
func (d *Driver) LoadOffsets(ctx context.Context, queries []metadata.OffsetQuery) (answers [][]metadata.GroupOffset, err error) {
	answers = make([][]metadata.GroupOffset, len(queries))
	err = d.read(ctx, func(s *session) error {
		for i := range queries {
			if answers[i], err = s.offsets(&queries[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return answers, err
}

func (s *session) offsets(q *metadata.OffsetQuery) (list []metadata.GroupOffset, err error) {
	if q.All {
		err := s.each("SELECT "+offsetColumns+" FROM group_offsets WHERE grp = ? ORDER BY topic, part", []any{string(q.Group)},
			func(r *sql.Rows) error {
				var o metadata.GroupOffset
				err := scanOffset(r, &o)
				list = append(list, o)
				return err
			})
		return list, err
	}
	for _, p := range q.Partitions {
		var o metadata.GroupOffset
		err := scanOffset(s.row("SELECT "+offsetColumns+" FROM group_offsets WHERE grp = ? AND topic = ? AND part = ?",
			string(q.Group), p.Topic[:], p.Partition), &o)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, err
		default:
			list = append(list, o)
		}
	}
	return list, nil
}

// DeleteOffsets implements metadata.Driver.
func (d *Driver) DeleteOffsets(ctx context.Context, id metadata.GroupID, partitions []metadata.TopicPartition,
	committedBefore metadata.Millis, check func(metadata.Millis, *metadata.GroupRows) error,
) error {
	return d.write(ctx, func(s *session) error {
		rows, err := s.group(id)
		if err != nil {
			return err
		}
		if check != nil {
			if err := check(d.millis(), &rows); err != nil {
				return err
			}
		}
		for _, p := range partitions {
			_, err := s.exec("DELETE FROM group_offsets WHERE grp = ? AND topic = ? AND part = ? AND (? = 0 OR committed < ?)",
				string(id), p.Topic[:], p.Partition, int64(committedBefore), int64(committedBefore))
			if err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// OldOffsets implements metadata.Driver.
func (d *Driver) OldOffsets(ctx context.Context, before metadata.Millis, after metadata.GroupID, limit int) (
	old []metadata.GroupID, next metadata.GroupID, err error,
) {
	err = d.read(ctx, func(s *session) error {
		n := 0
		err := s.each(`SELECT id, NOT EXISTS (SELECT 1 FROM group_offsets o WHERE o.grp = g.id AND o.committed >= ? AND o.expires = 0)
			OR EXISTS (SELECT 1 FROM group_offsets o WHERE o.grp = g.id AND (o.committed < ? OR o.expires > 0))
			FROM groups g WHERE id > ? ORDER BY id LIMIT ?`, []any{int64(before), int64(before), string(after), limit},
			func(r *sql.Rows) error {
				var id metadata.GroupID
				var is bool
				if err := r.Scan(&id, &is); err != nil {
					return err
				}
				if is {
					old = append(old, id)
				}
				n, next = n+1, id
				return nil
			})
		if n < limit {
			next = ""
		}
		return err
	})
	return old, next, err
}

// LoadSettings implements metadata.Driver.
func (d *Driver) LoadSettings(ctx context.Context) (map[string]string, error) {
	var settings map[string]string
	err := d.read(ctx, func(s *session) (err error) {
		settings, err = loadSettings(s)
		return err
	})
	return settings, err
}

func loadSettings(s *session) (map[string]string, error) {
	settings := map[string]string{}
	err := s.each("SELECT name, value FROM broker_settings", nil, func(r *sql.Rows) error {
		var name, value string
		if err := r.Scan(&name, &value); err != nil {
			return err
		}
		settings[name] = value
		return nil
	})
	return settings, err
}

// ChangeSettings implements metadata.Driver.
func (d *Driver) ChangeSettings(ctx context.Context, decide metadata.SettingsFunc) error {
	return d.write(ctx, func(s *session) error {
		settings, err := loadSettings(s)
		if err != nil {
			return err
		}
		changes, err := decide(settings)
		if err != nil {
			return err
		}
		for name, value := range changes {
			if value == nil {
				_, err = s.exec("DELETE FROM broker_settings WHERE name = ?", name)
			} else {
				_, err = s.exec("INSERT INTO broker_settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
					name, *value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, nil)
}
