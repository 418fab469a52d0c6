package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Statement is one that the tests explain.
type Statement struct{ Name, SQL string }

// Statements gives those of the hot path and of readers, as their sessions run them.
func Statements() []Statement {
	list := []Statement{
		{"saveCheckpoint", saveCheckpointSQL}, {"allocate", allocateSQL}, {"ranges", rangesSQL}, {"resident", residentSQL},
		{"expire", expireSQL}, {"loadInline", loadInlineSQL},
	}
	for name, sql := range statements {
		if name != stBegin && name != stCommit {
			list = append(list, Statement{string(name), sql})
		}
	}
	list = append(list, Statement{"loadTxns", loadTxnsSQL}, Statement{"pending", pendingSQL}, Statement{"aborted", abortedSQL},
		Statement{"prune", pruneSQL})
	// The compactor's, but for countReferences, which reads all.
	list = append(list, Statement{"backlog", backlogSQL}, Statement{"rowsAbove", rowsAboveSQL}, Statement{"loadRuns", loadRunsSQL},
		Statement{"tailRuns", tailRunsSQL}, Statement{"retention", retentionSQL}, Statement{"condemn", condemnSQL},
		Statement{"condemned", condemnedSQL}, Statement{"oldCondemned", oldCondemnedSQL}, Statement{"objectsDeleted", objectsDeletedSQL},
		Statement{"forgetObjects", forgetObjectsSQL}, Statement{"listInline", listInlineSQL}, Statement{"expireProducers", expireProducersSQL})
	for name, sql := range txnStatements {
		list = append(list, Statement{string(name), sql})
	}
	return list
}

// HotSettings are the settings of those sessions.
var HotSettings = hotSettings

// Ended is how many sessions the lock watch ended.
func (d *Driver) Ended() int64 { return d.ended.Load() }

// QueryRow asks the database of d.
func (d *Driver) QueryRow(ctx context.Context, sql string) pgx.Row { return d.reads.QueryRow(ctx, sql) }

var (
	EncodeEvent = encodeEvent
	DecodeEvent = decodeEvent
)

const MaxPayload = maxPayload

// Refuse checks a server's settings.
func Refuse(version int, fsync, synchronousCommit string, standby bool) error {
	s := server{version: version, fsync: fsync, synchronousCommit: synchronousCommit, standby: standby}
	return s.refuse()
}

// SawIncarnation is what a new connection does.
func (d *Driver) SawIncarnation(floor, now Incarnation) { d.sawIncarnation(floor, now) }
