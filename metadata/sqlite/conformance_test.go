package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/metadatatest"
	"github.com/skeinio/skein/metadata/sqlite"
)

func TestConformance(t *testing.T) {
	metadatatest.Run(t, func(t *testing.T) metadatatest.Database {
		return &database{d: open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})}
	})
}

// database gives the one driver to all: SQLite has one process.
type database struct{ d *sqlite.Driver }

func (b *database) Driver(testing.TB) metadata.Driver { return b.d }

func (b *database) write(t testing.TB, fn func(exec func(query string, args ...any) error) error) {
	t.Helper()
	if err := b.d.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func (b *database) Count(t testing.TB, table string) int {
	t.Helper()
	n := 0
	err := b.d.Query(t.Context(), "SELECT count(*) FROM "+table, nil, func(rows *sql.Rows) error { return rows.Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (b *database) Object(t testing.TB, key metadata.ObjectKey) (row metadata.ObjectRow, ok bool) {
	t.Helper()
	err := b.d.Query(t.Context(), "SELECT key, size, refs, state FROM objects WHERE key = ?", []any{string(key)},
		func(rows *sql.Rows) error {
			ok = true
			return rows.Scan(&row.Key, &row.Size, &row.Refs, &row.State)
		})
	if err != nil {
		t.Fatal(err)
	}
	return row, ok
}

func (b *database) SetObject(t testing.TB, row metadata.ObjectRow) {
	t.Helper()
	b.write(t, func(exec func(string, ...any) error) error {
		return exec("INSERT OR REPLACE INTO objects (key, size, refs, state, changed) VALUES (?, ?, ?, ?, 1)",
			string(row.Key), row.Size, row.Refs, int(row.State))
	})
}

const insertRun = `INSERT INTO runs (block, slot, base, last, object, position, length, max_ts, running_max_ts, bytes, level)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

func runArgs(r *metadata.RunRow) []any {
	return []any{
		int64(r.Block), int64(r.Slot), int64(r.Base), int64(r.Last), string(r.Object), r.Position, r.Length,
		int64(r.MaxTS), int64(r.RunningMaxTS), r.Bytes, r.Level,
	}
}

func (b *database) FillAborted(t testing.TB, n int, aborted func(i int) metadata.AbortedTxn) {
	t.Helper()
	b.write(t, func(exec func(string, ...any) error) error {
		for i := range n {
			a := aborted(i)
			err := exec("INSERT INTO aborted (block, slot, marker, first, producer, lso) VALUES (?, ?, ?, ?, ?, ?)",
				int64(a.Partition.Block), int64(a.Partition.Slot), int64(a.Marker), int64(a.First), int64(a.Producer), int64(a.LSO))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *database) Merge(t testing.TB, block metadata.BlockID, seq metadata.Seq, runs []metadata.RunRow) {
	t.Helper()
	b.write(t, func(exec func(string, ...any) error) error {
		for i := range runs {
			if err := exec(insertRun, runArgs(&runs[i])...); err != nil {
				return err
			}
		}
		err := exec("UPDATE blocks SET merged_seq = ?, version = version + 1 WHERE block = ?", int64(seq), int64(block))
		if err != nil {
			return err
		}
		first, last := sqlite.Place(block, 0), sqlite.Place(block+1, 0)-1
		return exec(`DELETE FROM level0 WHERE place BETWEEN ? AND ?
			AND place < (SELECT max(place) FROM level0 WHERE place BETWEEN ? AND ?)`,
			first, sqlite.Place(block, seq), first, last)
	})
}

func (b *database) FillRows(t testing.TB, n int, row func(i int) (*metadata.Row, int)) {
	t.Helper()
	var photo, touched []byte
	b.write(t, func(exec func(string, ...any) error) error {
		for i := range n {
			r, photoBytes := row(i)
			photo, touched = r.Photo.AppendTo(photo[:0]), metadata.AppendTouched(touched[:0], r.Touched)
			err := exec("INSERT INTO level0 (place, time, flush, object, photo, touched) VALUES (?, ?, ?, ?, ?, ?)",
				sqlite.Place(r.Block, r.Seq), int64(r.Time), r.Flush[:], string(r.Object), photo[:photoBytes], touched)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *database) FillRuns(t testing.TB, n int, run func(i int) metadata.RunRow) {
	t.Helper()
	b.write(t, func(exec func(string, ...any) error) error {
		for i := range n {
			r := run(i)
			if err := exec(insertRun, runArgs(&r)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// bounded are the places where a statement may scan: from one end of an index, up to a LIMIT; and one count for the life
// of the process.
var bounded = []string{
	"SELECT id FROM receipts ORDER BY id LIMIT ?",
	"SELECT first FROM producer_ids ORDER BY first LIMIT ?",
	"SELECT coalesce(sum(size), 0) FROM inline",
	"SELECT count(*) FROM", // of these tests
}

// CheckPlans looks at every statement that was run so far on this database.
func (b *database) CheckPlans(t testing.TB) {
	t.Helper()
	if _, err := b.d.ExpireReceipts(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := b.d.InlineResident(t.Context()); err != nil {
		t.Fatal(err)
	}
	statements, err := b.d.Statements(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, query := range statements {
		verb, _, _ := strings.Cut(strings.TrimSpace(query), " ")
		if verb != "SELECT" && verb != "DELETE" && verb != "UPDATE" && verb != "INSERT" {
			continue
		}
		checked++
		exempt := false
		for _, part := range bounded {
			exempt = exempt || strings.Contains(query, part)
		}
		err := b.d.Query(t.Context(), "EXPLAIN QUERY PLAN "+query, make([]any, strings.Count(query, "?")), func(rows *sql.Rows) error {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				return err
			}
			for _, table := range []string{
				"level0", "runs", "receipts", "checkpoints", "inline", "objects", "producer_ids", "transactions", "txn_open",
				"txn_offsets", "aborted",
			} {
				if strings.Contains(step, "SCAN "+table) && !exempt {
					t.Errorf("%s\n%s", step, query)
				}
			}
			if strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s\n%s", step, query)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if checked < 20 {
		t.Errorf("only %d statements were looked at", checked)
	}
}
