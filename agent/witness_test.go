package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/internal/record"
)

// witness stands before a batcher and remembers what every waiter was told about every batch, whatever its client then made
// of it. A value names its topic and writer: "topic/writer/number".
type witness struct {
	next Submitter

	mu     sync.Mutex
	told   []told
	failed map[string]*tally // by writer
	broken error             // what the witness could not read
}

// told is one batch and its result.
type told struct {
	topic  string
	writer string
	values []string
	result batcher.Result
}

func newWitness(next Submitter) *witness {
	return &witness{next: next, failed: map[string]*tally{}}
}

// Submit implements Submitter.
func (w *witness) Submit(p batcher.Produce) {
	batches := make([]told, len(p.Batches))
	for i, b := range p.Batches {
		values, err := valuesOf(b.Data)
		if err != nil {
			w.mu.Lock()
			w.broken = err
			w.mu.Unlock()
		}
		batches[i].values = values
		if parts := strings.Split(values[0], "/"); len(parts) == 3 {
			batches[i].topic, batches[i].writer = parts[0], parts[1]
		}
	}
	done := p.Done
	p.Done = func(results []batcher.Result) {
		w.note(batches, results)
		done(results)
	}
	w.next.Submit(p)
}

func (w *witness) note(batches []told, results []batcher.Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range results {
		batches[i].result = r
		if r.Err != nil {
			w.failuresOf(batches[i].writer).add()
		}
	}
	w.told = append(w.told, batches...)
}

// failures counts the batches of a writer that were answered with an error.
func (w *witness) failures(writer string) *tally {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failuresOf(writer)
}

func (w *witness) failuresOf(writer string) *tally {
	if w.failed[writer] == nil {
		w.failed[writer] = newTally()
	}
	return w.failed[writer]
}

// valuesOf gives the values of a batch's records.
func valuesOf(batch []byte) ([]string, error) {
	values := []string{""}[:0]
	for r, err := range record.Records(batch, 1<<20) {
		if err != nil {
			return []string{""}, err
		}
		values = append(values, string(r.Value))
	}
	return values, nil
}

// check compares what the waiters were told with the log of a topic's one partition: who was told of success has the batch
// at that offset, and alone; who was told that nothing was committed has nothing there; and who was told that it is not
// known has it once at most. So nothing is there that was not asked for, nor more often.
func (w *witness) check(t *testing.T, topic string, log []*kgo.Record) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		t.Fatalf("a batch that the witness cannot read: %v", w.broken)
	}
	is := func(values []string, base int) bool {
		if base < 0 || base+len(values) > len(log) {
			return false
		}
		for i, v := range values {
			if string(log[base+i].Value) != v {
				return false
			}
		}
		return true
	}
	taken := make([]bool, len(log))
	take := func(values []string, base int) bool {
		if slices.Contains(taken[base:base+len(values)], true) {
			return false
		}
		for i := range values {
			taken[base+i] = true
		}
		return true
	}
	unknown := map[string][][]string{} // by first value
	counts := map[string]int{}
	for _, x := range w.told {
		if x.topic != topic {
			continue
		}
		base := int(x.result.Base)
		switch {
		case x.result.Err == nil && x.result.Duplicate:
			counts["duplicate"]++
			if x.result.Base != -1 && !is(x.values, base) {
				t.Errorf("%s: told that it was a duplicate of offset %d, where it is not", x.values[0], base)
			}
		case x.result.Err == nil:
			counts["committed"]++
			if !is(x.values, base) || !take(x.values, base) {
				t.Errorf("%s: told of offset %d, where it is not, or where somebody else's is", x.values[0], base)
			}
		case errors.Is(x.result.Err, batcher.ErrMaybePersisted):
			counts["unknown"]++
			unknown[x.values[0]] = append(unknown[x.values[0]], x.values)
		case errors.Is(x.result.Err, batcher.ErrNotPersisted):
			counts["not persisted"]++
		default:
			t.Errorf("%s: told %v", x.values[0], x.result.Err)
		}
	}
	for base := range log {
		if taken[base] {
			continue
		}
		value := string(log[base].Value)
		at := slices.IndexFunc(unknown[value], func(values []string) bool { return is(values, base) && take(values, base) })
		if at < 0 {
			t.Errorf("%s is at offset %d, and nobody was told so", value, base)
			continue
		}
		unknown[value] = slices.Delete(unknown[value], at, at+1)
	}
	t.Logf("%s: %d records; batches by what was told: %v", topic, len(log), counts)
}

var _ Submitter = (*witness)(nil)
