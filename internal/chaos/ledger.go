package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// ledger remembers what was acknowledged, and when each client last made progress. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	acked   map[string]position // by value
	clients map[string]*client
	faults  []fault // the last is under way
}

// position is where a record was acknowledged; offset -1 where the client does not tell.
type position struct {
	partition int32
	offset    int64
}

// fault is one step of a scenario as it ran.
type fault struct {
	Name  string    `json:"name"`
	Began time.Time `json:"began"`
	// RecoveryMS is from the fault's end until every producer had an acknowledgement that came after it, in ms; FaultMS how
	// long the fault itself took.
	FaultMS    int64 `json:"fault_ms"`
	RecoveryMS int64 `json:"recovery_ms"`
	// PauseMS is the longest pause of any client that ended in this step, PauseOf that client.
	PauseMS int64  `json:"longest_pause_ms"`
	PauseOf string `json:"longest_pause_of"`
}

// client is a producer or consumer and its progress.
type client struct {
	Name      string `json:"name"`
	Records   int    `json:"records"`
	Failed    int    `json:"failed"`
	LastError string `json:"last_error,omitempty"`
	// PauseMS is the longest time between two acknowledgements, or two records read, of one partition; PauseIn the step it
	// ended in.
	PauseMS int64  `json:"longest_pause_ms"`
	PauseIn string `json:"longest_pause_in"`
	// Repeated and Skipped are a consumer's offsets that did not follow their predecessor.
	Repeated int `json:"repeated"`
	Skipped  int `json:"skipped"`

	consumer bool
	untimed  bool                // when it made progress is not known
	last     map[int32]time.Time // by partition
	next     map[int32]int64
}

func newLedger() *ledger { return &ledger{acked: map[string]position{}, clients: map[string]*client{}} }

// clientOf gives a client's entry. l.mu is held.
func (l *ledger) clientOf(name string, consumer bool) *client {
	c := l.clients[name]
	if c == nil {
		c = &client{Name: name, consumer: consumer, last: map[int32]time.Time{}, next: map[int32]int64{}}
		l.clients[name] = c
	}
	return c
}

// progress notes that a client got on with a partition. l.mu is held.
func (c *client) progress(l *ledger, partition int32) {
	now := time.Now()
	if last, ok := c.last[partition]; ok && len(l.faults) > 0 {
		pause := now.Sub(last).Milliseconds()
		f := &l.faults[len(l.faults)-1]
		if pause > c.PauseMS {
			c.PauseMS, c.PauseIn = pause, f.Name
		}
		if pause > f.PauseMS {
			f.PauseMS, f.PauseOf = pause, c.Name
		}
	}
	c.last[partition] = now
	c.Records++
}

// ack notes an acknowledged record.
func (l *ledger) ack(name, value string, p position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[value] = p
	c := l.clientOf(name, false)
	if p.offset < 0 {
		c.untimed = true // it tells only at its end that all went well
		c.Records++
		return
	}
	c.progress(l, p.partition)
}

// fail notes a record that its producer gave up.
func (l *ledger) fail(name string, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clientOf(name, false)
	c.Failed++
	c.LastError = why
}

// read notes a record that a consumer saw.
func (l *ledger) read(name string, p position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clientOf(name, true)
	c.progress(l, p.partition)
	switch want := c.next[p.partition]; {
	case p.offset < want:
		c.Repeated++
		return
	case p.offset > want:
		c.Skipped++
	}
	c.next[p.partition] = p.offset + 1
}

// behind says how many records a consumer has not seen.
func (l *ledger) behind(name string, ends map[int32]int64) (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clientOf(name, true)
	for p, end := range ends {
		n += max(0, end-c.next[p])
	}
	return n
}

// begin notes that a fault begins.
func (l *ledger) begin(name string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.faults = append(l.faults, fault{Name: name, Began: now})
	return now
}

// recovered notes how long the fault that began last took, and how long after it a producer still waited.
func (l *ledger) recovered(fault, after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.faults[len(l.faults)-1]
	f.FaultMS, f.RecoveryMS = fault.Milliseconds(), after.Milliseconds()
}

// slowest is when the producer and partition that is furthest behind had its last acknowledgement.
func (l *ledger) slowest() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	var t time.Time
	for _, c := range l.clients {
		if c.consumer || c.untimed {
			continue
		}
		for _, last := range c.last {
			if t.IsZero() || last.Before(t) {
				t = last
			}
		}
	}
	return t
}

// result is what a run proved.
type result struct {
	Topic        string    `json:"topic"`
	Acknowledged int       `json:"acknowledged"`
	Found        int       `json:"found"`
	Lost         int       `json:"lost"`
	Duplicated   int       `json:"duplicated"`
	OutOfOrder   int       `json:"out_of_order"`
	Misplaced    int       `json:"at_another_offset"`
	Clients      []*client `json:"clients"`
	Faults       []fault   `json:"faults"`

	ends map[int32]int64
}

// report adds the clients' side.
func (l *ledger) report(r *result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		r.Clients = append(r.Clients, c)
	}
	slices.SortFunc(r.Clients, func(a, b *client) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	r.Faults = l.faults
}

// clean says whether all counts are as they must be.
func (r *result) clean() bool {
	for _, c := range r.Clients {
		if c.Failed > 0 || c.Repeated > 0 || c.Skipped > 0 || c.consumer && c.Records != r.Found {
			return false
		}
	}
	return r.Acknowledged > 0 && r.Lost == 0 && r.Duplicated == 0 && r.OutOfOrder == 0 && r.Misplaced == 0
}

func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "topic %s: acknowledged %d, found %d, lost %d, duplicated %d, out of order %d, at another offset %d\n",
		r.Topic, r.Acknowledged, r.Found, r.Lost, r.Duplicated, r.OutOfOrder, r.Misplaced)
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "client\trecords\tfailed\trepeated\tskipped\tlongest pause\tin\tlast error")
	for _, c := range r.Clients {
		pause := fmt.Sprint(c.PauseMS, " ms")
		if c.untimed {
			pause = "not told"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", c.Name, c.Records, c.Failed, c.Repeated, c.Skipped, pause, c.PauseIn, c.LastError)
	}
	fmt.Fprintln(t, "fault\ttook\tall producers go on after\tlongest pause\tof")
	for _, f := range r.Faults {
		fmt.Fprintf(t, "%s\t%d ms\t%d ms\t%d ms\t%s\n", f.Name, f.FaultMS, f.RecoveryMS, f.PauseMS, f.PauseOf)
	}
	_ = t.Flush() // to stdout
}
