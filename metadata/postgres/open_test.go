package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
)

// openFails asserts that Open fails at once with an error that says all of the words.
func openFails(t *testing.T, url string, words ...string) error {
	t.Helper()
	d, err := postgres.Open(within(t), url, postgres.Options{})
	if err == nil {
		d.Close()
		t.Fatalf("opened %s", url)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	return err
}

func TestOpenErrors(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	base := url[:strings.LastIndex(url, "/")]
	openFails(t, base+"/nosuch?sslmode=disable", `no database "nosuch"`, "CREATE DATABASE")
	openFails(t, strings.Replace(url, "postgres@", "nobody-here@", 1), "nobody-here")
	openFails(t, "postgres://[::1", "URL")

	nobody := testenv.FreeAddress(t)
	err := openFails(t, fmt.Sprintf("postgres://x:secret@%s/x", nobody), nobody, "cannot be reached")
	if !errors.Is(err, metadata.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// TestRefusesWeakDurability: nothing falls back silently to something weaker.
func TestRefusesWeakDurability(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	openFails(t, url+"&synchronous_commit=off", "synchronous_commit is off")
	d := openAt(t, url, postgres.Options{})
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), "ALTER DATABASE "+conn.Config().Database+" SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	openFails(t, url, "synchronous_commit is off")
	// A driver that is open already makes no new connection with it either: the one that it has is cut.
	if _, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skein'"); err != nil {
		t.Fatal(err)
	}
	var setting *postgres.SettingError
	if _, err := d.Now(within(t)); !errors.As(err, &setting) || !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("%v", err)
	}
	for _, c := range []struct {
		version       int
		fsync, commit string
		standby       bool
		setting       string
	}{
		{130011, "on", "on", false, "server_version_num"},
		{150000, "off", "on", false, "fsync"},
		{150000, "on", "off", false, "synchronous_commit"},
		{150000, "on", "on", true, "pg_is_in_recovery()"},
		{140000, "on", "local", false, ""},
		{170000, "on", "remote_apply", false, ""},
	} {
		err := postgres.Refuse(c.version, c.fsync, c.commit, c.standby)
		if c.setting == "" {
			if err != nil {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if !errors.As(err, &setting) || setting.Setting != c.setting {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestPlainUser: the owner of a database who is no superuser can run Skein, the lock watch included.
func TestPlainUser(t *testing.T) {
	server := testenv.NewPostgres(t)
	conn := connect(t, server.URL())
	for _, sql := range []string{"CREATE ROLE plain LOGIN", "CREATE DATABASE plain OWNER plain"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	url := strings.Replace(server.DatabaseURL("plain"), "postgres@", "plain@", 1)
	d := openAt(t, url, postgres.Options{})
	s, parts := newStore(t, d, "t", 1)
	if x := d.Incarnation(); x.System == 0 || x.Timeline == 0 || x.LSN == 0 {
		t.Errorf("incarnation %+v", x)
	}
	p, through := testenv.NewPostgresProxy(t, url)
	frozen := metadata.NewStore(metadata.Options{Driver: openAt(t, through, postgres.Options{})})
	frost := make(chan struct{})
	thaw := sync.OnceFunc(func() { close(frost) })
	t.Cleanup(thaw)
	rule, hit := once(binds("skein_add_receipts"), testenv.PostgresVerdict{Hold: frost})
	p.Rules(rule, nil)
	done := inBackground(t, frozen, flushOf(t, frozen, parts, metadata.NoProducer, 0, 1))
	await(t, "the freeze", hit)
	if out := await(t, "the other", inBackground(t, s, flushOf(t, s, parts, metadata.NoProducer, 0, 1))); out.err != nil {
		t.Fatalf("%+v", out)
	}
	awaitEnded(t, d, 1)
	thaw()
	await(t, "the frozen commit", done)
}

// TestAllocateUnderLock: a catalogue change that takes longer than lock_timeout does not fail those who want producer ids.
func TestAllocateUnderLock(t *testing.T) {
	_, url := open(t, postgres.Options{})
	p, through := testenv.NewPostgresProxy(t, url)
	d := openAt(t, through, postgres.Options{})
	holder := connect(t, url)
	for _, sql := range []string{"BEGIN", "SELECT FROM catalogue FOR UPDATE"} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var name atomic.Value // of the prepared statement
	rule, again := nth(2, func(m testenv.PostgresMessage) bool {
		if m.Kind == 'P' && strings.Contains(string(m.Body), "next_producer") {
			prepared, _, _ := strings.Cut(string(m.Body), "\x00")
			name.Store(prepared)
		}
		return m.Bound() != "" && m.Bound() == name.Load()
	})
	p.Rules(rule, nil)
	type answer struct {
		r   metadata.ProducerRange
		err error
	}
	done := make(chan answer, 1)
	go func() {
		r, err := d.AllocateProducerIDs(within(t), 10)
		done <- answer{r, err}
	}()
	await(t, "another attempt after lock_timeout", again)
	if _, err := holder.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if a := await(t, "the ids", done); a.err != nil || a.r.Count != 10 {
		t.Fatalf("%+v", a)
	}
}

// TestOpenAtOnce: several agents migrate one empty database.
func TestOpenAtOnce(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	var wg sync.WaitGroup
	ids := make(chan string, 8)
	for range cap(ids) {
		wg.Go(func() {
			d, err := postgres.Open(within(t), url, postgres.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			id, err := d.ClusterID(within(t))
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	wg.Wait()
	close(ids)
	first := <-ids
	if len(first) != 22 {
		t.Errorf("cluster id %q", first)
	}
	for id := range ids {
		if id != first {
			t.Errorf("cluster ids %q and %q", id, first)
		}
	}
}

func TestSchemaVersions(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	if _, err := postgres.Open(t.Context(), url, postgres.Options{SkipMigrate: true}); err == nil || !strings.Contains(err.Error(), "skein migrate") {
		t.Fatalf("an empty database: %v", err)
	}
	openAt(t, url, postgres.Options{})
	openAt(t, url, postgres.Options{SkipMigrate: true})
	conn := connect(t, url)
	newer := func() {
		t.Helper()
		if _, err := conn.Exec(t.Context(), "INSERT INTO skein_migrations SELECT max(version) + 1, 'newer' FROM skein_migrations"); err != nil {
			t.Fatal(err)
		}
	}
	newer()
	openAt(t, url, postgres.Options{}) // the version before still serves
	newer()
	openFails(t, url, "newer Skein")
}

// TestOpenWaits: with Wait, Open waits for a server that is not there yet.
func TestOpenWaits(t *testing.T) {
	server := testenv.NewPostgres(t)
	if err := server.Stop(false); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	waiting := make(chan struct{}, 1)
	go func() {
		d, err := postgres.Open(t.Context(), server.URL(), postgres.Options{Wait: patience, Logger: signalLogger("waiting for Postgres", waiting)})
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	await(t, "the wait", waiting)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "Open", opened); err != nil {
		t.Fatal(err)
	}
}

// TestIncarnationChange checks what counts as another history.
func TestIncarnationChange(t *testing.T) {
	d, _ := open(t, postgres.Options{})
	changes := 0
	d.OnIncarnation(func() { changes++ })
	at := d.Incarnation()
	for _, c := range []struct {
		what       string
		floor, now postgres.Incarnation
		changed    bool
	}{
		{"the log went on", at, postgres.Incarnation{System: at.System, Timeline: at.Timeline, LSN: at.LSN + 100}, false},
		{"asked earlier, heard later", at, postgres.Incarnation{System: at.System, Timeline: at.Timeline, LSN: at.LSN + 50}, false},
		{"the log went back", postgres.Incarnation{LSN: at.LSN + 100}, postgres.Incarnation{System: at.System, Timeline: at.Timeline, LSN: at.LSN + 99}, true},
		{"failover", at, postgres.Incarnation{System: at.System, Timeline: at.Timeline + 1, LSN: at.LSN + 200}, true},
		{"another system", at, postgres.Incarnation{System: at.System + 1, Timeline: at.Timeline + 1, LSN: at.LSN + 200}, true},
	} {
		before := changes
		d.SawIncarnation(c.floor, c.now)
		if (changes > before) != c.changed {
			t.Errorf("%s: hook called %d times", c.what, changes-before)
		}
	}
}

// TestViews reads every view over rows of every kind.
func TestViews(t *testing.T) {
	d, url := open(t, postgres.Options{})
	s, parts := newStore(t, d, "t.x", 66)
	ids, err := s.AllocateProducerIDs(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range metadata.Sequence(3) {
		commit(t, s, flushOf(t, s, parts[60:], ids.First, 7*i, 7))
	}
	_, err = s.DeleteRecords(t.Context(), []metadata.DeleteRecords{{Partition: metadata.PartitionID{Block: parts[65].Block, Slot: parts[65].Slot}, Before: 5}})
	if err != nil {
		t.Fatal(err)
	}
	inline := flushOf(t, s, parts[65:], metadata.NoProducer, 0, 1)
	inline.Object, inline.Inline = "", [][]byte{make([]byte, 100)}
	commit(t, s, inline)
	catalogue, err := s.Catalogue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = s.CommitOffsets(t.Context(), metadata.OffsetCommit{
		Group: "g", Check: func(metadata.Millis, *metadata.GroupRow, []metadata.MemberRow) error { return nil },
		Offsets: []metadata.GroupOffset{{TopicPartition: metadata.TopicPartition{Topic: catalogue.ByName("t.x").ID, Partition: 65}, Offset: 7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, url)
	for _, c := range []struct{ sql, want string }{
		{"SELECT group_id, kind, state, members FROM skein_groups", "g simple Empty 0"},
		{"SELECT topic, partition, committed_offset, log_start, high_watermark, lag FROM skein_lag", "t.x 65 7 5 22 15"},
		{"SELECT topic, partitions FROM skein_topics", "t.x 66"},
		{"SELECT log_start, high_watermark, bytes_written, max_timestamp > now() - interval '1 hour' FROM skein_partitions WHERE partition = 65", "5 22 400 t"},
		{"SELECT high_watermark, max_timestamp IS NULL, topic FROM skein_partitions WHERE partition = 3", "0 t t.x"},
		{"SELECT slots, shared, seq, unmerged_rows FROM skein_blocks ORDER BY block DESC LIMIT 1", "2 t 4 4"},
		{"SELECT count(*), sum(partitions), sum(records), sum(bytes), count(*) FILTER (WHERE inline) FROM skein_flushes", "7 19 127 1900 1"},
		{"SELECT min(first_sequence), max(last_sequence), min(producer), min(epoch), bool_and(accepted), count(*) FROM skein_batches WHERE partition = 64", fmt.Sprintf("0 20 %d 0 t 3", ids.First)},
		{"SELECT batch_bytes, records, producer IS NULL, position, length FROM skein_batches WHERE object IS NULL", "100 1 t 0 100"},
		{"SELECT state, sum(refs), count(*) FROM skein_objects GROUP BY 1", "live 6 3"},
		{"SELECT size FROM skein_inline", "100"},
	} {
		results, err := conn.PgConn().Exec(t.Context(), c.sql).ReadAll()
		if err != nil {
			t.Errorf("%s: %v", c.sql, err)
			continue
		}
		if got := firstRow(results); got != c.want {
			t.Errorf("%s: %q, want %q", c.sql, got, c.want)
		}
	}
}

// TestRowsStayWhole: a full level0 row and a receipt of a thousand batches are stored in one piece; a search would
// otherwise read three pages for a probe.
func TestRowsStayWhole(t *testing.T) {
	d, url := open(t, postgres.Options{})
	s, parts := newStore(t, d, "t", 1000)
	ids, err := s.AllocateProducerIDs(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, flushOf(t, s, parts, ids.First, 0, 1))
	conn := connect(t, url)
	for _, table := range []string{"level0", "receipts"} {
		var pieces int64
		var size int
		sql := "SELECT pg_relation_size(reltoastrelid), (SELECT max(pg_column_size(x.*)) FROM " + table + " x) FROM pg_class WHERE oid = $1::regclass"
		if err := conn.QueryRow(t.Context(), sql, table).Scan(&pieces, &size); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: a row of %d bytes", table, size)
		if pieces != 0 || size < 2048 {
			t.Errorf("%s: rows of up to %d bytes, %d bytes stored apart", table, size, pieces)
		}
	}
}

func firstRow(results []*pgconn.Result) string {
	if len(results) != 1 || len(results[0].Rows) == 0 {
		return "no row"
	}
	var fields []string
	for _, v := range results[0].Rows[0] {
		fields = append(fields, string(v))
	}
	return strings.Join(fields, " ")
}

func TestEvents(t *testing.T) {
	e := metadata.Event{
		Catalogue: 7, Changed: []metadata.BlockID{3, 4}, Blocks: []metadata.BlockSeq{{Block: 1, Seq: 20}, {Block: 1 << 40, Seq: 1 << 50}},
	}
	if got := postgres.DecodeEvent(postgres.EncodeEvent(e)); fmt.Sprint(got) != fmt.Sprint(e) {
		t.Errorf("%+v became %+v", e, got)
	}
	for payload, want := range map[string]bool{"all": true, "b1": true, "b1:x": true, "q3": true, "c": true, "b1:2 z": true, "c3 r4": false, "": false} {
		if got := postgres.DecodeEvent(payload); got.All != want {
			t.Errorf("%q: %+v", payload, got)
		}
	}
	for n := range 3000 {
		e.Blocks = append(e.Blocks, metadata.BlockSeq{Block: metadata.BlockID(n), Seq: 12345})
	}
	if got := postgres.EncodeEvent(e); got != "all" {
		t.Errorf("a payload of %d bytes, at most %d", len(got), postgres.MaxPayload)
	}
}

// TestWakeUps: what one driver tells, another hears; nobody hears of commits as such.
func TestWakeUps(t *testing.T) {
	d, url := open(t, postgres.Options{})
	p, through := testenv.NewPostgresProxy(t, url)
	listener := openAt(t, through, postgres.Options{})
	heard := make(chan metadata.Event, 64)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- listener.Listen(ctx, func(e metadata.Event) { heard <- e }) }()
	if e := await(t, "LISTEN", heard); !e.All {
		t.Fatalf("%+v", e)
	}
	s, parts := newStore(t, d, "t", 1)
	commit(t, s, flushOf(t, s, parts, metadata.NoProducer, 0, 1)) // without Run, nobody sends the wake-up
	want := metadata.Event{Blocks: []metadata.BlockSeq{{Block: 1, Seq: 2}}}
	if err := d.Notify(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if e := await(t, "the wake-up", heard); fmt.Sprint(e) != fmt.Sprint(want) {
		t.Fatalf("heard %+v, want %+v", e, want)
	}
	p.CutAll()
	if e := await(t, "the listener to come back", heard); !e.All {
		t.Fatalf("%+v", e)
	}
	stop()
	if err := await(t, "the listener's end", done); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestHoldSnapshot: the snapshot keeps dead rows from being removed until it is let go.
func TestHoldSnapshot(t *testing.T) {
	_, url := open(t, postgres.Options{})
	conn := connect(t, url)
	release, err := postgres.HoldSnapshot(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	held := func() (n int) {
		t.Helper()
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL AND state = 'idle in transaction'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := held(); n != 1 {
		t.Errorf("%d snapshots are held", n)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if n := held(); n != 0 {
		t.Errorf("%d snapshots are held after the release", n)
	}
}
