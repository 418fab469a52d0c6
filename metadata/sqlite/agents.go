package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/skeinio/skein/metadata"
)

// RegisterAgent implements metadata.Driver.
func (d *Driver) RegisterAgent(ctx context.Context, a metadata.AgentRow) (metadata.NodeID, error) {
	addresses, err := json.Marshal(a.Addresses)
	if err != nil {
		return 0, err
	}
	node := a.Node
	err = d.write(ctx, func(s *session) error {
		now := d.millis()
		if _, err := s.exec("DELETE FROM agents WHERE seen < ?", int64(now.Add(-metadata.AgentRetention))); err != nil {
			return err
		}
		if node == 0 {
			err := s.row(`SELECT coalesce((SELECT max(node) FROM agents WHERE address = ?), (SELECT max(node) + 1 FROM agents), 1)`,
				a.Address()).Scan(&node)
			if err != nil {
				return failure(err)
			}
		}
		if err := mayTake(s, node, &a, now); err != nil {
			return err
		}
		_, err := s.exec(`INSERT INTO agents (node, run, zone, address, addresses, draining, seen) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (node) DO UPDATE SET run = excluded.run, zone = excluded.zone, address = excluded.address,
			addresses = excluded.addresses, draining = excluded.draining, seen = excluded.seen`,
			int64(node), a.Run[:], a.Zone, a.Address(), string(addresses), a.Draining, int64(now))
		return err
	}, nil)
	return node, err
}

// mayTake checks who has a node id.
func mayTake(s *session, node metadata.NodeID, a *metadata.AgentRow, now metadata.Millis) error {
	return s.each("SELECT addresses, draining, seen FROM agents WHERE node = ?", []any{int64(node)}, func(r *sql.Rows) error {
		holder := metadata.AgentRow{Node: node}
		var addresses string
		if err := r.Scan(&addresses, &holder.Draining, &holder.Seen); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(addresses), &holder.Addresses); err != nil {
			return fmt.Errorf("who has node %d: %w", node, err)
		}
		return metadata.CheckNode(&holder, a, now)
	})
}

// Heartbeat implements metadata.Driver.
func (d *Driver) Heartbeat(ctx context.Context, a metadata.AgentRow) (now metadata.Millis, agents []metadata.AgentRow, err error) {
	err = d.write(ctx, func(s *session) error {
		now, agents = d.millis(), nil
		n, err := s.exec("UPDATE agents SET seen = ?, draining = ? WHERE node = ? AND run = ?", int64(now), a.Draining, int64(a.Node), a.Run[:])
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%w: node %d", metadata.ErrReplaced, a.Node)
		}
		return s.each("SELECT node, run, zone, addresses, draining, seen FROM agents WHERE seen >= ? ORDER BY node",
			[]any{int64(now.Add(-2 * metadata.AgentLost))}, func(r *sql.Rows) error {
				var row metadata.AgentRow
				var run sql.RawBytes
				var addresses string
				if err := r.Scan(&row.Node, &run, &row.Zone, &addresses, &row.Draining, &row.Seen); err != nil {
					return err
				}
				copy(row.Run[:], run)
				agents = append(agents, row)
				return json.Unmarshal([]byte(addresses), &agents[len(agents)-1].Addresses)
			})
	}, nil)
	if err != nil {
		return 0, nil, err
	}
	return now, agents, nil
}
