package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

func millisDuration(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// CommitOffsets implements metadata.Driver. Offsets of topics that are not there are left out.
func (d *Driver) CommitOffsets(ctx context.Context, c metadata.OffsetCommit) error {
	return d.transact(ctx, func(tx pgx.Tx) error {
		now, err := checkCommit(ctx, tx, &c)
		if err != nil {
			return err
		}
		return addOffsets(ctx, tx, &c, now)
	})
}

// checkCommit locks the group's row FOR SHARE and asks c.Check. A group that is not there is made when Check lets it be.
func checkCommit(ctx context.Context, tx pgx.Tx, c *metadata.OffsetCommit) (metadata.Millis, error) {
	for {
		var group metadata.GroupRow
		b := &pgx.Batch{}
		b.Queue("SELECT "+groupColumns+" FROM groups WHERE id = $1 FOR SHARE", string(c.Group))
		b.Queue("SELECT "+memberColumns+` FROM group_members WHERE grp = $1 AND (member = $2 OR instance = $3 AND $3 <> '')
			ORDER BY member`, string(c.Group), string(c.Member), c.Instance)
		b.Queue("SELECT skein_now()")
		r := tx.SendBatch(ctx, b)
		err := scanGroup(r.QueryRow(), &group)
		missing := errors.Is(err, pgx.ErrNoRows)
		if err != nil && !missing {
			r.Close()
			return 0, fmt.Errorf("lock group %q: %w", c.Group, err)
		}
		q, err := r.Query()
		members, err := scanAll(q, err, scanMember)
		if err != nil {
			r.Close()
			return 0, fmt.Errorf("load members: %w", err)
		}
		var now int64
		if err := errors.Join(r.QueryRow().Scan(&now), r.Close()); err != nil {
			return 0, fmt.Errorf("read the database's clock: %w", err)
		}
		group.ID = c.Group
		if err := c.Check(metadata.Millis(now), &group, members); err != nil {
			return 0, &decideError{err}
		}
		if !missing {
			return metadata.Millis(now), nil
		}
		// Another may make it at the same time: then it is looked at again, locked.
		if _, err := tx.Exec(ctx, `INSERT INTO groups (id, version, kind, state, protocol_type, data, since)
			VALUES ($1, $2, 0, 'Empty', '', '', $2) ON CONFLICT (id) DO NOTHING`, string(c.Group), now); err != nil {
			return 0, fmt.Errorf("make group %q: %w", c.Group, err)
		}
	}
}

func addOffsets(ctx context.Context, tx pgx.Tx, c *metadata.OffsetCommit, now metadata.Millis) error {
	// By key, so that commits of the same partitions do not deadlock; the last of a key counts.
	list := lastOffsets(c.Offsets)
	n := len(list)
	if n == 0 {
		return nil
	}
	topics, parts, offs := make([][16]byte, n), make([]int32, n), make([]int64, n)
	epochs, meta, expires := make([]int32, n), make([][]byte, n), make([]int64, n)
	for i := range list {
		o := &list[i]
		topics[i], parts[i], offs[i] = o.Topic, o.Partition, int64(o.Offset)
		epochs[i], meta[i], expires[i] = o.LeaderEpoch, notNil(o.Metadata), int64(o.Expires)
	}
	_, err := tx.Exec(ctx, `
INSERT INTO group_offsets (grp, topic, part, offs, leader_epoch, metadata, expires, committed)
SELECT $1, u.*, $8::int8 FROM unnest($2::uuid[], $3::int4[], $4::int8[], $5::int4[], $6::bytea[], $7::int8[])
	AS u (topic, part, offs, leader_epoch, metadata, expires)
WHERE u.topic IN (SELECT id FROM topics WHERE id = ANY ($9::uuid[]) FOR KEY SHARE)
ON CONFLICT (grp, topic, part) DO UPDATE SET offs = excluded.offs, leader_epoch = excluded.leader_epoch,
	metadata = excluded.metadata, committed = excluded.committed, expires = excluded.expires`,
		string(c.Group), topics, parts, offs, epochs, meta, expires, int64(now), distinct(topics))
	if err != nil {
		return fmt.Errorf("save offsets: %w", err)
	}
	return nil
}

// distinct gives each id once. ids are sorted.
func distinct(ids [][16]byte) [][16]byte { return slices.Compact(slices.Clone(ids)) }

// lastOffsets sorts offsets by key and keeps the last of each.
func lastOffsets(all []metadata.GroupOffset) []metadata.GroupOffset {
	list := slices.Clone(all)
	slices.SortStableFunc(list, func(a, b metadata.GroupOffset) int { return a.Compare(b.TopicPartition) })
	out := list[:0]
	for i := range list {
		if i+1 < len(list) && list[i].TopicPartition == list[i+1].TopicPartition {
			continue
		}
		out = append(out, list[i])
	}
	return out
}

// LoadOffsets implements metadata.Driver: one statement for all.
func (d *Driver) LoadOffsets(ctx context.Context, queries []metadata.OffsetQuery) (answers [][]metadata.GroupOffset, err error) {
	var all []string
	var allAt, someAt []int32
	var groups []string
	topics, parts := [][16]byte{}, []int32{}
	for i, q := range queries {
		if q.All {
			all, allAt = append(all, string(q.Group)), append(allAt, int32(i))
			continue
		}
		for _, p := range q.Partitions {
			groups, someAt = append(groups, string(q.Group)), append(someAt, int32(i))
			topics, parts = append(topics, p.Topic), append(parts, p.Partition)
		}
	}
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		answers = make([][]metadata.GroupOffset, len(queries))
		rows, err := conn.Query(ctx, loadOffsetsSQL, strs(all), ints(allAt), strs(groups), ints(someAt), topics, parts)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var i int32
			var o metadata.GroupOffset
			err := rows.Scan(&i, (*[16]byte)(&o.Topic), &o.Partition, (*int64)(&o.Offset), &o.LeaderEpoch, &o.Metadata,
				(*int64)(&o.Committed), (*int64)(&o.Expires))
			if err != nil {
				return err
			}
			answers[i] = append(answers[i], o)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("load offsets: %w", err)
	}
	for _, list := range answers {
		slices.SortFunc(list, func(a, b metadata.GroupOffset) int { return a.Compare(b.TopicPartition) })
	}
	return answers, nil
}

func ints(list []int32) []int32 {
	if list == nil {
		return []int32{}
	}
	return list
}

const loadOffsetsSQL = `
SELECT u.i, o.topic, o.part, o.offs, o.leader_epoch, o.metadata, o.committed, o.expires
FROM unnest($1::text[], $2::int4[]) AS u (grp, i)
CROSS JOIN LATERAL (SELECT * FROM group_offsets g WHERE g.grp = u.grp ORDER BY g.grp, g.topic, g.part) o
UNION ALL
SELECT u.i, o.topic, o.part, o.offs, o.leader_epoch, o.metadata, o.committed, o.expires
FROM unnest($3::text[], $4::int4[], $5::uuid[], $6::int4[]) AS u (grp, i, topic, part)
CROSS JOIN LATERAL (
	SELECT * FROM group_offsets g WHERE g.grp = u.grp AND g.topic = u.topic AND g.part = u.part LIMIT 1) o`

// DeleteOffsets implements metadata.Driver.
func (d *Driver) DeleteOffsets(ctx context.Context, id metadata.GroupID, partitions []metadata.TopicPartition,
	committedBefore metadata.Millis, check func(metadata.Millis, *metadata.GroupRows) error,
) error {
	return d.transact(ctx, func(tx pgx.Tx) error {
		now, rows, err := lockGroup(ctx, tx, id)
		if err != nil {
			return err
		}
		if check != nil {
			if err := check(now, rows); err != nil {
				return &decideError{err}
			}
		}
		if rows.Group.Version == 0 {
			return errNothing
		}
		topics, parts := make([][16]byte, len(partitions)), make([]int32, len(partitions))
		for i, p := range partitions {
			topics[i], parts[i] = p.Topic, p.Partition
		}
		_, err = tx.Exec(ctx, `DELETE FROM group_offsets o USING unnest($2::uuid[], $3::int4[]) AS u (topic, part)
			WHERE o.grp = $1 AND o.topic = u.topic AND o.part = u.part AND ($4::int8 = 0 OR o.committed < $4::int8)`,
			string(id), topics, parts, int64(committedBefore))
		if err != nil {
			return fmt.Errorf("delete offsets: %w", err)
		}
		return nil
	})
}

// OldOffsets implements metadata.Driver.
func (d *Driver) OldOffsets(ctx context.Context, before metadata.Millis, after metadata.GroupID, limit int) (
	old []metadata.GroupID, next metadata.GroupID, err error,
) {
	err = d.query(ctx, func(conn *pgxpool.Conn) error {
		old, next = nil, ""
		rows, err := conn.Query(ctx, `
SELECT g.id, NOT EXISTS (SELECT FROM group_offsets o WHERE o.grp = g.id AND o.committed >= $1 AND o.expires = 0)
	OR EXISTS (SELECT FROM group_offsets o WHERE o.grp = g.id AND (o.committed < $1 OR o.expires > 0))
FROM (SELECT id FROM groups WHERE id > $2 ORDER BY id LIMIT $3) g ORDER BY g.id`, int64(before), string(after), limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for rows.Next() {
			var id string
			var is bool
			if err := rows.Scan(&id, &is); err != nil {
				return err
			}
			if is {
				old = append(old, metadata.GroupID(id))
			}
			n, next = n+1, metadata.GroupID(id)
		}
		if n < limit {
			next = ""
		}
		return rows.Err()
	})
	return old, next, err
}

// LoadSettings implements metadata.Driver.
func (d *Driver) LoadSettings(ctx context.Context) (settings map[string]string, err error) {
	err = d.query(ctx, func(conn *pgxpool.Conn) (err error) {
		settings, err = loadSettings(ctx, conn)
		return err
	})
	return settings, err
}

func loadSettings(ctx context.Context, from interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}) (map[string]string, error) {
	rows, err := from.Query(ctx, "SELECT name, value FROM broker_settings")
	if err != nil {
		return nil, fmt.Errorf("load settings: %w", err)
	}
	settings := map[string]string{}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		settings[name] = value
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load settings: %w", err)
	}
	return settings, nil
}

// ChangeSettings implements metadata.Driver. The lock lets readers in.
func (d *Driver) ChangeSettings(ctx context.Context, decide metadata.SettingsFunc) error {
	return d.transact(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE broker_settings IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return fmt.Errorf("lock settings: %w", err)
		}
		settings, err := loadSettings(ctx, tx)
		if err != nil {
			return err
		}
		changes, err := decide(settings)
		if err != nil {
			return err
		}
		for name, value := range changes {
			if value == nil {
				_, err = tx.Exec(ctx, "DELETE FROM broker_settings WHERE name = $1", name)
			} else {
				_, err = tx.Exec(ctx, `INSERT INTO broker_settings (name, value) VALUES ($1, $2)
					ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, *value)
			}
			if err != nil {
				return fmt.Errorf("save setting %s: %w", name, err)
			}
		}
		return nil
	})
}
