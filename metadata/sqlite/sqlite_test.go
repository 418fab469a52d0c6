package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/sqlite"
)

func open(t testing.TB, path string, opts sqlite.Options) *sqlite.Driver {
	t.Helper()
	d, err := sqlite.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// writer commits inline batches of one partition.
type writer struct {
	store *metadata.Store
	at    metadata.Partition
	seen  metadata.Millis
}

// newWriter makes a topic of one partition unless it is there.
func newWriter(ctx context.Context, d metadata.Driver) (*writer, error) {
	w := &writer{store: metadata.NewStore(metadata.Options{Driver: d})}
	_, errs, err := w.store.CreateTopics(ctx, []metadata.NewTopic{{Name: "t", Partitions: 1}}, false)
	if err != nil || (errs[0] != nil && !errors.Is(errs[0], metadata.ErrTopicExists)) {
		return nil, errors.Join(append(errs, err)...)
	}
	c, err := w.store.Catalogue(ctx)
	if err != nil {
		return nil, err
	}
	w.at = c.ByName("t").Partitions[0]
	w.seen, err = w.store.Now(ctx)
	return w, err
}

// write commits a batch of one record and gives its offset.
func (w *writer) write(ctx context.Context, payload []byte, timestamp metadata.Millis) (metadata.Offset, error) {
	id, err := metadata.NewFlushID()
	if err != nil {
		return 0, err
	}
	size := int32(len(payload))
	f := &metadata.Flush{ID: id, Seen: w.seen, Inline: [][]byte{payload}, Extents: []metadata.Extent{{
		Block: w.at.Block, Slot: w.at.Slot, Length: size, RawLength: size,
		Batches: []metadata.Batch{{Length: size, Records: 1, MaxTimestamp: timestamp, Producer: metadata.NoProducer, Validated: 1 << 60}},
	}}}
	r, err := w.store.Commit(ctx, []*metadata.Flush{f})
	if err != nil {
		return 0, err
	}
	return r[0].Batches[0].Base, nil
}

func mustWriter(t testing.TB, d metadata.Driver) *writer {
	t.Helper()
	w, err := newWriter(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// written asserts that the partition's high watermark, asked of the database, is next.
func written(t testing.TB, d metadata.Driver, w *writer, next metadata.Offset) {
	t.Helper()
	v, err := metadata.NewStore(metadata.Options{Driver: d}).View(t.Context(), w.at.Block)
	if err != nil {
		t.Fatal(err)
	}
	if hw := v.HighWatermark(w.at.Slot); hw != next {
		t.Fatalf("high watermark %d, want %d", hw, next)
	}
}

func TestOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "folder?#% ", "skein.db")
	d := open(t, path, sqlite.Options{})
	id, err := d.ClusterID(t.Context())
	if err != nil || !regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{21}$`).MatchString(id) {
		t.Fatalf("cluster id %q, %v", id, err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the database is not where it was asked for: %v", err)
	}
	if _, err := sqlite.Open(t.Context(), path, sqlite.Options{}); !errors.Is(err, sqlite.ErrLocked) {
		t.Fatalf("second open: %v, want ErrLocked", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AllocateProducerIDs(t.Context(), 1); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("closed driver: %v, want ErrUnavailable", err)
	}
	again := open(t, path, sqlite.Options{})
	if id2, err := again.ClusterID(t.Context()); err != nil || id2 != id {
		t.Fatalf("cluster id %q after reopening (%v), was %q", id2, err, id)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("not a database, but long enough to look at: "+strings.Repeat("x", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), file, sqlite.Options{}); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("a file that is no database: %v", err)
	}
	if _, err := sqlite.Open(t.Context(), filepath.Join(file, "skein.db"), sqlite.Options{}); err == nil {
		t.Error("a database below a file was opened")
	}
	newer := filepath.Join(dir, "newer.db")
	d := open(t, newer, sqlite.Options{})
	err := d.Write(t.Context(), func(execute func(string, ...any) error) error {
		return execute("INSERT INTO schema_migrations VALUES (1000, 'future', 0)")
	})
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), newer, sqlite.Options{}); !errors.Is(err, sqlite.ErrSchemaTooNew) {
		t.Errorf("a newer schema: %v", err)
	}
	if _, err := sqlite.Open(t.Context(), newer, sqlite.Options{}); errors.Is(err, sqlite.ErrLocked) {
		t.Errorf("a failed open keeps the lock: %v", err)
	}
}

// killedPath tells the test binary that it is the child of TestKilled.
const killedPath = "SKEIN_TEST_KILLED_DATABASE"

// TestKilled kills a process that commits, at any moment: what it said was committed is there, densely, and the next
// process goes on.
func TestKilled(t *testing.T) {
	if path := os.Getenv(killedPath); path != "" {
		commitUntilKilled(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "skein.db")
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	next := metadata.Offset(0)
	for round := range rounds {
		acknowledged := runAndKill(t, path, 150+100*round)
		if acknowledged < next {
			t.Fatalf("round %d: nothing was committed after offset %d", round, next)
		}
		d := open(t, path, sqlite.Options{})
		w := mustWriter(t, d)
		found, err := w.store.Locate(t.Context(), []metadata.LocateQuery{{
			Block: w.at.Block, Slot: w.at.Slot, MaxRows: 1 << 20, MaxBytes: 1 << 40,
		}})
		if err != nil {
			t.Fatal(err)
		}
		end := metadata.Offset(0)
		for _, x := range found[0] {
			data, err := d.LoadInline(t.Context(), []metadata.InlinePart{{Flush: x.Flush, Length: x.Length}})
			if err != nil || x.Base != end || x.End != end+1 || string(data[0]) != fmt.Sprint(end) {
				t.Fatalf("round %d, offset %d: %+v, payload %q, %v", round, end, x, data, err)
			}
			end = x.End
		}
		// The one whose answer was under way may be there too.
		if end != acknowledged+1 && end != acknowledged+2 {
			t.Fatalf("round %d: %d records, offset %d was acknowledged last", round, end, acknowledged)
		}
		next = end
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runAndKill runs the child until it has acknowledged some commits, kills it, and gives the last acknowledged offset.
func runAndKill(t *testing.T, path string, commits int) metadata.Offset {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.count=1")
	child.Env = append(os.Environ(), killedPath+"="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	last := int64(-1)
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if n == commits {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if last, err = strconv.ParseInt(lines.Text(), 10, 64); err != nil {
			t.Fatalf("the child said %q", lines.Text())
		}
	}
	if err := child.Wait(); err == nil || child.ProcessState.Exited() {
		t.Fatalf("the child was not killed: %v", err)
	}
	return metadata.Offset(last)
}

func commitUntilKilled(t *testing.T, path string) {
	d := open(t, path, sqlite.Options{})
	w := mustWriter(t, d)
	v, err := w.store.View(t.Context(), w.at.Block)
	if err != nil {
		t.Fatal(err)
	}
	for next := v.HighWatermark(w.at.Slot); ; next++ {
		offset, err := w.write(t.Context(), []byte(fmt.Sprint(next)), 0)
		if err != nil || offset != next {
			t.Fatalf("offset %d: %d, %v", next, offset, err)
		}
		fmt.Println(offset) // one write, whole lines
	}
}

// TestCommitItselfFails: an error of COMMIT is an unknown outcome, and the driver goes on.
func TestCommitItselfFails(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})
	err := d.Write(t.Context(), func(execute func(string, ...any) error) error {
		return execute("ROLLBACK") // COMMIT has nothing to commit then
	})
	if !errors.Is(err, metadata.ErrUnknownOutcome) {
		t.Fatalf("%v, want ErrUnknownOutcome", err)
	}
	w := mustWriter(t, d)
	if offset, err := w.write(t.Context(), []byte{1}, 0); err != nil || offset != 0 {
		t.Fatalf("the commit after it: %d, %v", offset, err)
	}
}

// TestFull: a full disk fails commits, saves nothing of them, and does no lasting harm.
func TestFull(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})
	w := mustWriter(t, d)
	limit := func(pages int) {
		t.Helper()
		// The pragma lasts as long as the connection; in a transaction it is the writer's.
		err := d.Write(t.Context(), func(execute func(string, ...any) error) error {
			return execute(fmt.Sprintf("PRAGMA max_page_count = %d", pages))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // as many as there are
	next := metadata.Offset(0)
	var err error
	for err == nil {
		if _, err = w.write(t.Context(), make([]byte, 8<<10), 0); err == nil {
			next++
		}
	}
	if !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("a commit to a full disk: %v", err)
	}
	written(t, d, w, next)
	limit(1 << 30)
	if offset, err := w.write(t.Context(), make([]byte, 8<<10), 0); err != nil || offset != next {
		t.Fatalf("offset %d, %v; want %d", offset, err, next)
	}
}

// TestForeignLock: somebody who looks at the file with another tool, and holds its lock, makes commits wait, not fail.
func TestForeignLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skein.db")
	d := open(t, path, sqlite.Options{})
	w := mustWriter(t, d)
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conn, err := other.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.write(t.Context(), []byte{1}, 0)
		done <- err
	}()
	written(t, d, w, 0) // reads do not wait
	select {
	case err := <-done:
		t.Fatalf("a commit did not wait for the lock: %v", err)
	default:
	}
	if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-done, conn.Close()); err != nil {
		t.Fatal(err)
	}
	written(t, d, w, 1)
}

// TestLogIsCopied: the write-ahead log does not grow with what is written.
func TestLogIsCopied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skein.db")
	d := open(t, path, sqlite.Options{})
	w := mustWriter(t, d)
	const payload, total = 256 << 10, 100 << 20
	largest := int64(0)
	for range total / payload {
		if _, err := w.write(t.Context(), make([]byte, payload), 0); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	if largest > total/2 {
		t.Errorf("the write-ahead log grew to %d of %d bytes written", largest, total)
	}
	written(t, d, w, total/payload)
}

// TestCloseWaits: who uses the driver while it is closed gets its answer or ErrUnavailable.
func TestCloseWaits(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})
	w := mustWriter(t, d)
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				var err error
				if i%2 == 0 {
					_, err = w.write(t.Context(), []byte{1}, 0)
				} else {
					_, err = d.LoadBlocks(t.Context(), []metadata.BlockSeq{{Block: w.at.Block, Seq: metadata.SeqCold}})
				}
				if n == 0 {
					started <- struct{}{}
				}
				if errors.Is(err, metadata.ErrUnavailable) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 8 {
		<-started
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestCancelledCaller: a caller who gives up while waiting for the writer gets ErrUnavailable, and nothing is saved.
func TestCancelledCaller(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})
	w := mustWriter(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	err := d.Write(t.Context(), func(func(string, ...any) error) error {
		cancel()
		_, err := w.write(ctx, []byte{1}, 0)
		return err
	})
	if !errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	written(t, d, w, 0)
}

// TestClock: what the driver calls the database's time is the clock it was given.
func TestClock(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{Now: func() time.Time { return now }})
	r, err := d.AllocateProducerIDs(t.Context(), 10)
	if err != nil || r.At != 1_700_000_000_000 {
		t.Fatalf("%+v, %v", r, err)
	}
	// Ranges that nobody asks about any more go, as new ones come.
	now = now.Add(3 * metadata.ProducerExpiry)
	if _, err := d.AllocateProducerIDs(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if found, err := d.ProducerRangeOf(t.Context(), []metadata.ProducerID{r.First, r.First + 10}); err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
}

// TestViews compares the SQL views with what Go reads.
func TestViews(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "skein.db"), sqlite.Options{})
	w := mustWriter(t, d)
	for range 300 {
		if _, err := w.write(t.Context(), make([]byte, 1000), 1_700_000_000_123); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.store.DeleteRecords(t.Context(), []metadata.DeleteRecords{
		{Partition: metadata.PartitionID{Block: w.at.Block, Slot: w.at.Slot}, Before: 257},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, errs, err := w.store.CreateTopics(t.Context(), []metadata.NewTopic{{Name: "empty", Partitions: 65}}, false)
	if err = errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	catalogue, err := w.store.Catalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.CommitOffsets(t.Context(), metadata.OffsetCommit{
		Group: "g", Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error { return nil },
		Offsets: []metadata.GroupOffset{{TopicPartition: metadata.TopicPartition{Topic: catalogue.ByName("t").ID, Partition: 0}, Offset: 7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		`SELECT group_id, kind, state, members FROM skein_groups`:                                                                    "g|simple|Empty|0",
		`SELECT topic, partition, committed_offset, log_start, high_watermark, lag FROM skein_lag`:                                   "t|0|7|257|300|43",
		`SELECT log_start, high_watermark, max_timestamp, bytes_written FROM skein_partitions WHERE topic = 't'`:                     "257|300|2023-11-14 22:13:20.123|300000",
		`SELECT count(*), sum(high_watermark), sum(bytes_written), count(max_timestamp) FROM skein_partitions WHERE topic = 'empty'`: "65|0|0|0",
		`SELECT topic, partitions FROM skein_topics ORDER BY topic`:                                                                  "empty|65\nt|1",
		`SELECT slots, seq, merged_seq, unmerged_rows, checkpoint FROM skein_blocks ORDER BY block`:                                  "2|300|0|300|<nil>\n64|0|0|0|<nil>",
		`SELECT count(*), min(seq), max(seq), sum(inline), count(object) FROM skein_flushes`:                                         "300|1|300|300|0",
		`SELECT count(*), sum(size), length(max(flush_id)) FROM skein_inline`:                                                        "300|300000|32",
		`SELECT count(*) FROM skein_objects`:                                                                                         "0",
	} {
		if got := text(t, d, query); got != want {
			t.Errorf("%s\n%s\nwant\n%s", query, got, want)
		}
	}
}

// text gives a query's answer, a line for each row.
func text(t *testing.T, d *sqlite.Driver, query string) string {
	t.Helper()
	var lines []string
	err := d.Query(t.Context(), query, nil, func(rows *sql.Rows) error {
		columns, err := rows.Columns()
		if err != nil {
			return err
		}
		values, at := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			at[i] = &values[i]
		}
		if err := rows.Scan(at...); err != nil {
			return err
		}
		line := make([]string, len(values))
		for i, v := range values {
			line[i] = fmt.Sprint(v)
		}
		lines = append(lines, strings.Join(line, "|"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// BenchmarkCommit commits one inline batch of a Kibibyte, as a developer's produce does.
func BenchmarkCommit(b *testing.B) {
	w := mustWriter(b, open(b, filepath.Join(b.TempDir(), "skein.db"), sqlite.Options{}))
	payload := make([]byte, 1<<10)
	for b.Loop() {
		if _, err := w.write(b.Context(), payload, 0); err != nil {
			b.Fatal(err)
		}
	}
}
