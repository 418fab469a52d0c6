package compactor

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/metadata"
)

// logged is a record of the model's log.
type logged struct {
	offset    int64
	key       string
	value     string // "<nil>": a tombstone
	producer  int64  // of a transaction, -1: none
	committed bool
	aborted   bool
}

// TestSieve compares what key compaction leaves of random logs, with transactions, in several passes of a small map, with
// what a model says: of every committed key the newest value, or a tombstone as long as it is young, at the same offset.
func TestSieve(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			s := newSieveLog(t, random)
			const retention = 1000
			now := int64(1_000_000)
			dirty := int64(0)
			batches := s.batches
			for pass := range 3 {
				end := len(batches)
				if pass == 0 {
					end = s.stable(len(batches) * 2 / 3)
				}
				keys := s.keys(batches[:end], dirty)
				sv := newSieve(keys, math.MaxInt64, metadata.Millis(now), retention)
				var out []batch
				for from := 0; from < end; { // groups
					to := min(end, from+1+random.IntN(10))
					stay, _, err := sv.sift(batches[from:to], s.aborted)
					if err != nil {
						t.Fatal(err)
					}
					if last := stay[len(stay)-1].LastOffset(); last != batches[to-1].LastOffset() {
						t.Fatalf("pass %d: a group ends at %d, it did at %d", pass, last, batches[to-1].LastOffset())
					}
					out = append(out, stay...)
					from = to
				}
				dirty = batches[end-1].LastOffset() + 1
				batches = append(out, batches[end:]...)
				young := pass < 2 // before the horizon of the first pass
				s.compare(pass, batches, dirty, young)
				if pass == 1 {
					now += retention + 1
				}
			}
			if _, _, err := newSieve(newKeyMap(1), math.MaxInt64, metadata.Millis(now), retention).sift(batches, s.aborted); err != nil {
				t.Fatal(err)
			}
			for i := range batches {
				if err := record.VerifyCRC(batches[i].data); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

type sieveLog struct {
	t       *testing.T
	batches []batch
	log     []logged
	open    map[int64][]int // by producer: indexes in log
	ends    []int           // numbers of batches at which no transaction is open
	begun   map[int64]int64 // by producer: where the open transaction begins
	aborted abortedTxns
}

// keys is the map of all batches from an offset on, which has room for them.
func (s *sieveLog) keys(batches []batch, from int64) *keyMap {
	s.t.Helper()
	m := newKeyMap(1 << 10)
	if _, full, err := m.add(batches, from, s.aborted); err != nil || full {
		s.t.Fatalf("full %v, error %v", full, err)
	}
	return m
}

func newSieveLog(t *testing.T, random *rand.Rand) *sieveLog {
	s := &sieveLog{t: t, open: map[int64][]int{}, begun: map[int64]int64{}, aborted: abortedTxns{}}
	offset := int64(0)
	add := func(data []byte) {
		record.SetBaseOffset(data, offset)
		h, err := record.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		s.batches = append(s.batches, batch{Header: h, data: data})
		offset = h.LastOffset() + 1
		if len(s.open) == 0 {
			s.ends = append(s.ends, len(s.batches))
		}
	}
	for range 60 {
		producer := int64(-1)
		if random.IntN(2) == 0 {
			producer = int64(random.IntN(3))
		}
		if _, open := s.open[producer]; producer >= 0 && open && random.IntN(3) == 0 {
			s.end(producer, random.IntN(2) == 0, offset, add)
			continue
		}
		b := record.NewBuilder().SetCodec([]record.Codec{record.CodecNone, record.CodecZstd, record.CodecGzip}[random.IntN(3)], record.DefaultLevel)
		if producer >= 0 {
			b.SetProducer(producer, 0, 0).SetTransactional()
			if s.open[producer] == nil {
				s.open[producer], s.begun[producer] = []int{}, offset
			}
		}
		for i := range 1 + random.IntN(4) {
			x := logged{offset: offset + int64(i), key: fmt.Sprint("k", random.IntN(12)), producer: producer, value: fmt.Sprint("v", offset+int64(i))}
			var value []byte
			if random.IntN(4) == 0 {
				x.value = "<nil>"
			} else {
				value = []byte(x.value)
			}
			b.Append(int64(900_000+random.IntN(1000)), []byte(x.key), value)
			s.log = append(s.log, x)
			if producer >= 0 {
				s.open[producer] = append(s.open[producer], len(s.log)-1)
			}
		}
		data, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		add(data)
	}
	for p := range s.open {
		s.end(p, random.IntN(2) == 0, offset, add)
	}
	return s
}

func (s *sieveLog) end(producer int64, commit bool, at int64, add func([]byte)) {
	kind := record.ControlAbort
	if commit {
		kind = record.ControlCommit
	}
	for _, i := range s.open[producer] {
		s.log[i].committed, s.log[i].aborted = commit, !commit
	}
	delete(s.open, producer)
	if !commit {
		s.aborted[producer] = append(s.aborted[producer], txnRange{first: s.begun[producer], marker: at})
	}
	add(record.ControlBatch(kind, producer, 0, 0, 900_500))
}

// stable gives the last number of batches, up to n, at which no transaction is open.
func (s *sieveLog) stable(n int) int {
	end := s.ends[0]
	for _, e := range s.ends {
		if e <= n {
			end = e
		}
	}
	return end
}

// compare checks what is left. A transaction's records count as of its commit, but a record is newer by its offset.
func (s *sieveLog) compare(pass int, batches []batch, upTo int64, tombstones bool) {
	s.t.Helper()
	newest := map[string]int64{}
	for _, x := range s.log {
		if x.offset < upTo && !x.aborted {
			newest[x.key] = x.offset
		}
	}
	var want []string
	for _, x := range s.log {
		switch {
		case x.offset >= upTo:
		case x.aborted, newest[x.key] != x.offset, x.value == "<nil>" && !tombstones:
			continue
		}
		want = append(want, fmt.Sprintf("%d:%s=%s", x.offset, x.key, x.value))
	}
	var got []string
	last := int64(-1)
	for i := range batches {
		b := &batches[i]
		if b.BaseOffset <= last {
			s.t.Fatalf("pass %d: batch at %d after %d", pass, b.BaseOffset, last)
		}
		last = b.LastOffset()
		if b.Control() {
			continue
		}
		for r, err := range record.Records(b.data, 0) {
			if err != nil {
				s.t.Fatal(err)
			}
			value := string(r.Value)
			if r.Value == nil {
				value = "<nil>"
			}
			if o := b.BaseOffset + int64(r.OffsetDelta); !tombstones && value == "<nil>" && o < upTo {
				s.t.Errorf("pass %d: a tombstone at %d after its horizon", pass, o)
			}
			if r.Timestamp < 900_000 || r.Timestamp > 901_000 {
				s.t.Errorf("pass %d: timestamp %d", pass, r.Timestamp)
			}
			got = append(got, fmt.Sprintf("%d:%s=%s", b.BaseOffset+int64(r.OffsetDelta), r.Key, value))
		}
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("pass %d up to %d:\n got %v\nwant %v", pass, upTo, got, want)
	}
}

// TestKeyMapFull: a map that is full stops at a batch, whose keys are the next pass's.
func TestKeyMapFull(t *testing.T) {
	s := newSieveLog(t, rand.New(rand.NewPCG(6, 6)))
	all := s.keys(s.batches, 0).newest
	got := map[keyHash]int64{}
	passes := 0
	for from, more := int64(0), true; more; passes++ {
		m := newKeyMap(3)
		next, full, err := m.add(s.batches, from, s.aborted)
		if err != nil || full && next <= from || len(m.newest) >= 3+4 { // a batch has up to four keys
			t.Fatalf("from %d: to %d, full %v, %d keys, error %v", from, next, full, len(m.newest), err)
		}
		maps.Copy(got, m.newest)
		from, more = next, full
	}
	if passes < 3 || !maps.Equal(got, all) {
		t.Errorf("%d passes: %v, want %v", passes, got, all)
	}
}

// TestMarkersGo: markers go after the horizon once their transaction's records are gone.
func TestMarkersGo(t *testing.T) {
	s := newSieveLog(t, rand.New(rand.NewPCG(5, 5)))
	batches := s.batches
	now := metadata.Millis(1_000_000)
	for range 4 {
		stay, _, err := newSieve(s.keys(batches, 0), math.MaxInt64, now, 10).sift(batches, s.aborted)
		if err != nil {
			t.Fatal(err)
		}
		batches = stay
		now += 11
	}
	kept := map[int64]bool{}
	for i := range batches {
		b := &batches[i]
		if !b.Control() {
			kept[b.ProducerID] = kept[b.ProducerID] || b.RecordCount > 0
			continue
		}
		if !kept[b.ProducerID] && b.RecordCount > 0 && i < len(batches)-1 {
			t.Errorf("marker at %d of a transaction without records", b.BaseOffset)
		}
		kept[b.ProducerID] = false
	}
}

// TestClean produces, compacts and reads again through store and bucket, in rounds, with a map too small for all keys, and
// compares with a model at every round.
func TestClean(t *testing.T) {
	r := newRig(t, 2, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "60000"})
	c := r.compactor(Options{Config: Config{KeyMapEntries: 20}})
	type kept struct {
		offset int
		value  string
	}
	model := make([]map[string]kept, 2)
	for i := range model {
		model[i] = map[string]kept{}
	}
	for round := range 12 {
		for range 10 {
			index := r.random.IntN(2)
			var pairs []string
			for range 1 + r.random.IntN(6) {
				key, value := fmt.Sprint("k", r.random.IntN(60)), fmt.Sprint("v", r.random.Uint32())
				model[index][key] = kept{len(r.want[index]) + len(pairs)/2, value}
				pairs = append(pairs, key, value)
			}
			r.write(r.random.IntN(2) == 0, part{index, [][]byte{r.batchOf(r.clock.now().UnixMilli(), record.CodecNone, pairs...)}})
		}
		r.must(c.MergeEverything(t.Context()))
		r.must(c.Clean(t.Context()))
		if round%3 == 2 {
			r.must(c.Remerge(t.Context()))
			r.must(c.Release(t.Context()))
			r.must(c.Garbage(t.Context()))
		}
		for index := range 2 {
			got := r.read(r.store, index, 0)
			var want []string
			for key, k := range model[index] {
				want = append(want, fmt.Sprintf("%d:%s=%s", k.offset, key, k.value))
			}
			slices.Sort(want)
			sorted := slices.Sorted(slices.Values(got))
			if !slices.Equal(sorted, want) {
				t.Fatalf("round %d, partition %d: %d records, want %d\n got %v\nwant %v", round, index, len(sorted), len(want), sorted, want)
			}
			// Whatever was removed, the log ends where it ended, and a reader gets there.
			place := r.topic.Partitions[index]
			if end, _ := r.readOnce(r.store, place, metadata.Offset(len(r.want[index])-1)); int(end) != len(r.want[index]) {
				t.Fatalf("round %d: the last offset leads to %d of %d", round, end, len(r.want[index]))
			}
		}
		for _, p := range check(r).Problems {
			t.Errorf("round %d: %+v", round, p)
		}
	}
}

// TestCleanLags: records younger than min.compaction.lag.ms stay, and those older than max.compaction.lag.ms do not wait for
// the ratio.
func TestCleanLags(t *testing.T) {
	write := func(r *rig) {
		for i := range 5 {
			r.write(false, part{0, [][]byte{r.batchOf(r.clock.now().UnixMilli(), record.CodecNone, "k", fmt.Sprint(i))}})
		}
	}
	r := newRig(t, 1, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0", "min.compaction.lag.ms": "3600000"})
	c := r.compactor(Options{})
	write(r)
	r.must(c.MergeEverything(t.Context()))
	r.must(c.Clean(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 5 {
		t.Errorf("within the minimum lag: %v", got)
	}
	r.clock.advance(2 * time.Hour)
	r.must(c.Clean(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 1 || got[0] != "4:k=4" {
		t.Errorf("after it: %v", got)
	}

	r = newRig(t, 1, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "1", "max.compaction.lag.ms": "3600000"})
	c = r.compactor(Options{})
	// Of a higher tier than what follows, so that it is not merged with it.
	r.write(false, part{0, [][]byte{r.batchOf(r.clock.now().UnixMilli(), record.CodecNone, "long", strings.Repeat("x", 2*tierBase))}})
	write(r)
	r.must(c.MergeEverything(t.Context()))
	r.must(c.Clean(t.Context())) // all of it is dirty
	write(r)
	r.must(c.MergeEverything(t.Context()))
	r.must(c.Clean(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 7 {
		t.Errorf("below the ratio: %v", got)
	}
	// A run that is merged with a later one has the later one's timestamp; what is in it has not become younger.
	r.clock.advance(40 * time.Minute)
	for range fanIn {
		write(r)
		r.must(c.MergeEverything(t.Context()))
	}
	r.must(c.Remerge(t.Context()))
	r.must(c.Clean(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 7+5*fanIn {
		t.Errorf("below the ratio: %v", got)
	}
	r.clock.advance(40 * time.Minute)
	r.must(c.Clean(t.Context()))
	if got := r.read(r.store, 0, 0); len(got) != 2 {
		t.Errorf("after the maximum lag: %v", got)
	}
}
