package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// database implements metadatatest.Database.
type database struct{ url string }

func (db *database) Driver(t testing.TB) metadata.Driver {
	return openAt(t, db.url, postgres.Options{CommitConns: 3, ReadConns: 3})
}

// with runs fn on a connection of its own.
func (db *database) with(t testing.TB, fn func(ctx context.Context, conn *pgx.Conn) error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := fn(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
}

func (db *database) Count(t testing.TB, table string) int {
	t.Helper()
	var n int
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT count(*) FROM "+pgx.Identifier{table}.Sanitize()).Scan(&n)
	})
	return n
}

func (db *database) Object(t testing.TB, key metadata.ObjectKey) (row metadata.ObjectRow, ok bool) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		var state int16
		err := conn.QueryRow(ctx, "SELECT key, size, refs, state FROM objects WHERE key = $1", string(key)).
			Scan((*string)(&row.Key), &row.Size, &row.Refs, &state)
		ok, row.State = err == nil, metadata.ObjectState(state)
		if err == pgx.ErrNoRows {
			return nil
		}
		return err
	})
	return row, ok
}

func (db *database) SetObject(t testing.TB, row metadata.ObjectRow) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `INSERT INTO objects (key, size, refs, state, time) VALUES ($1, $2, $3, $4, skein_now())
			ON CONFLICT (key) DO UPDATE SET size = excluded.size, refs = excluded.refs, state = excluded.state`,
			string(row.Key), row.Size, row.Refs, int16(row.State))
		return err
	})
}

func (db *database) Merge(t testing.TB, block metadata.BlockID, seq metadata.Seq, runs []metadata.RunRow) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, r := range runs {
				if _, err := tx.Exec(ctx, `INSERT INTO runs VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`, runColumns(&r)...); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, "UPDATE blocks SET merged_seq = $2, version = version + 1 WHERE id = $1", int64(block), int64(seq)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DELETE FROM level0 WHERE block = $1 AND seq <= $2
				AND seq < (SELECT max(seq) FROM level0 WHERE block = $1)`, int64(block), int64(seq))
			return err
		})
	})
}

func runColumns(r *metadata.RunRow) []any {
	return []any{
		int64(r.Block), int16(r.Slot), int64(r.Base), int64(r.Last), string(r.Object), r.Position, r.Length, int64(r.MaxTS),
		int64(r.RunningMaxTS), r.Bytes, r.Level,
	}
}

func (db *database) FillRows(t testing.TB, n int, row func(i int) (*metadata.Row, int)) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"level0"}, []string{"block", "seq", "time", "flush", "object", "touched", "photo"},
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				r, size := row(i)
				var object *string
				if r.Object != "" {
					object = (*string)(&r.Object)
				}
				photo := r.Photo.AppendTo(make([]byte, 0, metadata.PhotoSize))[:size]
				return []any{
					int64(r.Block), int64(r.Seq), int64(r.Time), [16]byte(r.Flush), object, metadata.AppendTouched(nil, r.Touched), photo,
				}, nil
			}))
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "VACUUM ANALYZE level0")
		return err
	})
}

func (db *database) FillRuns(t testing.TB, n int, run func(i int) metadata.RunRow) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"runs"},
			[]string{"block", "slot", "base", "last", "object", "position", "length", "max_ts", "running_max_ts", "bytes", "level"},
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				r := run(i)
				return runColumns(&r), nil
			}))
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "VACUUM ANALYZE runs")
		return err
	})
}

func (db *database) FillAborted(t testing.TB, n int, aborted func(i int) metadata.AbortedTxn) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"aborted"}, []string{"block", "slot", "marker", "first", "producer", "lso"},
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				a := aborted(i)
				return []any{
					int64(a.Partition.Block), int16(a.Partition.Slot), int64(a.Marker), int64(a.First), int64(a.Producer), int64(a.LSO),
				}, nil
			}))
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "VACUUM ANALYZE aborted")
		return err
	})
}

// searched are the tables that no statement may walk through.
var searched = map[string]bool{
	"level0": true, "runs": true, "receipts": true, "checkpoints": true, "inline": true, "objects": true, "producer_ids": true,
	"transactions": true, "txn_open": true, "txn_offsets": true, "aborted": true,
}

func (db *database) CheckPlans(t testing.TB) {
	t.Helper()
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		for name, value := range postgres.HotSettings() {
			if _, err := conn.Exec(ctx, fmt.Sprintf("SET %s = %s", name, value)); err != nil {
				return err
			}
		}
		for _, s := range postgres.Statements() {
			for _, problem := range walks(explain(ctx, t, conn, s), false) {
				t.Errorf("%s: %s", s.Name, problem)
			}
		}
		return nil
	})
}

type plan struct {
	Node      string `json:"Node Type"`
	Relation  string `json:"Relation Name"`
	Condition string `json:"Index Cond"`
	Plans     []plan `json:"Plans"`
}

var parameter = regexp.MustCompile(`\$(\d+)`)

// explain gives a statement's plan as a session that prepared it has it.
func explain(ctx context.Context, t testing.TB, conn *pgx.Conn, s postgres.Statement) plan {
	t.Helper()
	n := 0
	for _, m := range parameter.FindAllStringSubmatch(s.SQL, -1) {
		i, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n = max(n, i)
	}
	if _, err := conn.Exec(ctx, "PREPARE explained AS "+s.SQL); err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	nulls := strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ")
	results, err := conn.PgConn().Exec(ctx, "EXPLAIN (FORMAT JSON) EXECUTE explained ("+nulls+")").ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	var plans []struct{ Plan plan }
	if err := json.Unmarshal(results[0].Rows[0][0], &plans); err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	if _, err := conn.Exec(ctx, "DEALLOCATE explained"); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan
}

// walks gives what of a plan does not search. An index walked in its order under a Limit searches as well.
func walks(p plan, limited bool) []string {
	var found []string
	scan := strings.Contains(p.Node, "Scan")
	index := strings.Contains(p.Node, "Index") && (p.Condition != "" || limited)
	if scan && searched[p.Relation] && !index && p.Node != "Bitmap Heap Scan" && p.Node != "Tid Scan" {
		found = append(found, fmt.Sprintf("%s of %s", p.Node, p.Relation))
	}
	for _, child := range p.Plans {
		found = append(found, walks(child, p.Node == "Limit" || (limited && p.Node == "LockRows"))...)
	}
	return found
}

func TestPlanCheckFindsScans(t *testing.T) {
	db := &database{url: testenv.PostgresDatabase(t)}
	if err := postgres.Migrate(t.Context(), db.url, postgres.Options{}); err != nil {
		t.Fatal(err)
	}
	db.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "SET plan_cache_mode = force_generic_plan"); err != nil {
			return err
		}
		for _, s := range []postgres.Statement{
			{Name: "sequential", SQL: "SELECT * FROM level0 WHERE time = $1"},
			{Name: "whole index", SQL: "SELECT sum(size) FROM inline WHERE $1 = 1"},
			{Name: "not the leading column", SQL: "SELECT * FROM runs WHERE object = $1 ORDER BY block, slot, base"},
		} {
			if len(walks(explain(ctx, t, conn, s), false)) == 0 {
				t.Errorf("%s was taken for a search", s.Name)
			}
		}
		return nil
	})
	db.CheckPlans(t)
}
