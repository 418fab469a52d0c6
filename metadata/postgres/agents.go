package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

// Statements of agents. Registering is rare and done one at a time, so that no two take one free id.
const (
	lockAgentsSQL   = `LOCK TABLE agents IN SHARE ROW EXCLUSIVE MODE`
	forgetAgentsSQL = `DELETE FROM agents WHERE seen < skein_now() - $1::int8`
	findNodeSQL     = `
SELECT coalesce((SELECT max(node) FROM agents WHERE address = $1), (SELECT max(node) + 1 FROM agents), 1)`
	// holderSQL is who has a node id.
	holderSQL   = `SELECT addresses, draining, seen, skein_now() FROM agents WHERE node = $1`
	registerSQL = `
INSERT INTO agents (node, run, zone, address, addresses, draining, seen)
VALUES ($1, $2, $3, $4, $5, $6, skein_now())
ON CONFLICT (node) DO UPDATE SET run = excluded.run, zone = excluded.zone, address = excluded.address,
	addresses = excluded.addresses, draining = excluded.draining, seen = excluded.seen`

	// The rows that are read are those before the update; the caller knows its own.
	heartbeatSQL = `
WITH t AS MATERIALIZED (SELECT skein_now() AS now),
u AS (UPDATE agents SET seen = t.now, draining = $3 FROM t WHERE node = $1 AND run = $2 RETURNING node)
SELECT t.now, (SELECT count(*) FROM u), a.node, a.run, a.zone, a.addresses, a.draining, a.seen
FROM t LEFT JOIN agents a ON a.seen >= t.now - $4::int8 OR a.node = $1 ORDER BY a.node`
)

// RegisterAgent implements metadata.Driver.
func (d *Driver) RegisterAgent(ctx context.Context, a metadata.AgentRow) (metadata.NodeID, error) {
	addresses, err := json.Marshal(a.Addresses)
	if err != nil {
		return 0, err
	}
	node := a.Node
	err = d.transact(ctx, func(tx pgx.Tx) error {
		node = a.Node
		if _, err := tx.Exec(ctx, lockAgentsSQL); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, forgetAgentsSQL, metadata.AgentRetention.Milliseconds()); err != nil {
			return err
		}
		if node == 0 {
			if err := tx.QueryRow(ctx, findNodeSQL, a.Address()).Scan((*int32)(&node)); err != nil {
				return err
			}
		}
		if err := mayTake(ctx, tx, node, &a); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, registerSQL, int32(node), [16]byte(a.Run), a.Zone, a.Address(), addresses, a.Draining)
		return err
	})
	return node, err
}

// mayTake checks who has a node id.
func mayTake(ctx context.Context, tx pgx.Tx, node metadata.NodeID, a *metadata.AgentRow) error {
	holder := metadata.AgentRow{Node: node}
	var addresses []byte
	var now metadata.Millis
	err := tx.QueryRow(ctx, holderSQL, int32(node)).Scan(&addresses, &holder.Draining, (*int64)(&holder.Seen), (*int64)(&now))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(addresses, &holder.Addresses)
	}
	if err != nil {
		return fmt.Errorf("who has node %d: %w", node, err)
	}
	return metadata.CheckNode(&holder, a, now)
}

// Heartbeat implements metadata.Driver.
func (d *Driver) Heartbeat(ctx context.Context, a metadata.AgentRow) (now metadata.Millis, agents []metadata.AgentRow, err error) {
	var mine int
	err = d.again(ctx, func(conn *pgxpool.Conn) error {
		agents, mine = nil, 0
		rows, err := conn.Query(ctx, heartbeatSQL, int32(a.Node), [16]byte(a.Run), a.Draining, (2 * metadata.AgentLost).Milliseconds())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			row, err := scanAgent(rows, &now, &mine)
			if err != nil {
				return err
			}
			if row != nil {
				agents = append(agents, *row)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return 0, nil, err
	}
	if mine == 0 {
		return 0, nil, fmt.Errorf("%w: node %d", metadata.ErrReplaced, a.Node)
	}
	for i := range agents {
		if agents[i].Node == a.Node {
			agents[i].Seen, agents[i].Draining = now, a.Draining
		}
	}
	return now, agents, nil
}

// scanAgent reads a row of heartbeatSQL; nil when it has no agent.
func scanAgent(rows pgx.Rows, now *metadata.Millis, mine *int) (*metadata.AgentRow, error) {
	var node *int32
	var run *[16]byte
	var zone *string
	var addresses []byte
	var draining *bool
	var seen *int64
	if err := rows.Scan((*int64)(now), mine, &node, &run, &zone, &addresses, &draining, &seen); err != nil || node == nil {
		return nil, err
	}
	a := &metadata.AgentRow{
		Node: metadata.NodeID(*node), Run: metadata.AgentID(*run), Zone: *zone, Draining: *draining, Seen: metadata.Millis(*seen),
	}
	if err := json.Unmarshal(addresses, &a.Addresses); err != nil {
		return nil, fmt.Errorf("addresses of node %d: %w", a.Node, err)
	}
	return a, nil
}
