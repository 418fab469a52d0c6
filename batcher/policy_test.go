package batcher

import (
	"testing"
	"time"
)

func TestPolicy(t *testing.T) {
	const ms = time.Millisecond
	p := policy{linger: 250 * ms, segmentBytes: 8 << 20, inlineMax: 64 << 10, inlineResident: 1 << 20, uploads: 2}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tokens := func(rate, balance float64) bucket {
		return bucket{rate: rate, burst: 100, balance: balance, limited: true}
	}
	never := time.Duration(-1)
	tests := []struct {
		name  string
		load  load // oldest is start
		now   time.Duration
		want  verdict // without again
		again time.Duration
	}{
		{name: "idle writes nothing", load: load{}, now: time.Hour, again: never},
		{name: "idle writes nothing even when draining", load: load{draining: true}, now: time.Hour, again: never},
		{name: "small and tokens: inline at once", load: load{bytes: 100, batches: 1},
			want: verdict{flush: true, kind: KindInline, reason: ReasonEarly}, again: never},
		{name: "large and tokens: PUT at once", load: load{bytes: 64 << 10, batches: 1},
			want: verdict{flush: true, kind: KindPut, reason: ReasonEarly}, again: never},
		{name: "no PUT tokens: wait for them", load: load{bytes: 1 << 20, batches: 1, puts: tokens(10, 0)},
			want: verdict{kind: KindPut}, again: 100*ms + 1},
		{name: "no PUT tokens for longer than linger", load: load{bytes: 1 << 20, batches: 1, puts: tokens(1, 0)},
			want: verdict{kind: KindPut}, again: 250 * ms},
		{name: "linger passed: into debt", load: load{bytes: 1 << 20, batches: 1, puts: tokens(1, -5), commitTokens: tokens(1, -5)},
			now: 250 * ms, want: verdict{flush: true, kind: KindPut, reason: ReasonLinger}, again: never},
		{name: "full: into debt", load: load{bytes: 8 << 20, batches: 1, puts: tokens(1, -5), commitTokens: tokens(1, -5)},
			want: verdict{flush: true, kind: KindPut, reason: ReasonFull}, again: never},
		{name: "full by number of batches", load: load{bytes: 100, batches: maxFlushBatches, commitTokens: tokens(1, -5)},
			want: verdict{flush: true, kind: KindInline, reason: ReasonFull}, again: never},
		{name: "full goes though all slots are taken", load: load{bytes: 8 << 20, batches: 1, uploads: 2},
			want: verdict{flush: true, kind: KindPut, reason: ReasonFull}, again: never},
		{name: "linger passed but all slots are taken", load: load{bytes: 1 << 20, batches: 1, uploads: 2}, now: time.Second,
			want: verdict{kind: KindPut}, again: never},
		{name: "inline does not need a slot", load: load{bytes: 100, batches: 1, uploads: 2},
			want: verdict{flush: true, kind: KindInline, reason: ReasonEarly}, again: never},
		{name: "inline spends no PUT tokens", load: load{bytes: 100, batches: 1, puts: tokens(1, -1)},
			want: verdict{flush: true, kind: KindInline, reason: ReasonEarly}, again: never},
		{name: "no commit tokens: wait", load: load{bytes: 100, batches: 1, commitTokens: tokens(50, 0)},
			want: verdict{kind: KindInline}, again: 20*ms + 1},
		{name: "a commit in flight: company comes", load: load{bytes: 100, batches: 1, commits: 1},
			want: verdict{kind: KindInline}, again: 250 * ms},
		{name: "a commit in flight but linger passed", load: load{bytes: 100, batches: 1, commits: 1, queued: 1}, now: 250 * ms,
			want: verdict{flush: true, kind: KindInline, reason: ReasonLinger}, again: never},
		{name: "a commit in flight does not stop a PUT", load: load{bytes: 1 << 20, batches: 1, commits: 1},
			want: verdict{flush: true, kind: KindPut, reason: ReasonEarly}, again: never},
		{name: "uploads waiting for a commit stop a PUT", load: load{bytes: 1 << 20, batches: 1, commits: 1, queued: 1},
			want: verdict{kind: KindPut}, again: 250 * ms},
		{name: "commit queue full", load: load{bytes: 100, batches: 1, queued: maxQueued}, now: time.Second,
			want: verdict{kind: KindInline}, again: never},
		{name: "inline budget spent: PUT", load: load{bytes: 100, batches: 1, inline: tokens(1000, 99)},
			want: verdict{flush: true, kind: KindPut, reason: ReasonEarly}, again: never},
		{name: "inline resident bound reached: PUT", load: load{bytes: 100, batches: 1, resident: 1<<20 - 99},
			want: verdict{flush: true, kind: KindPut, reason: ReasonEarly}, again: never},
		{name: "inline resident bound just not reached", load: load{bytes: 100, batches: 1, resident: 1<<20 - 100},
			want: verdict{flush: true, kind: KindInline, reason: ReasonEarly}, again: never},
		{name: "draining: at once whatever the budgets", load: load{bytes: 100, batches: 1, commits: 1, draining: true,
			commitTokens: tokens(1, -5)}, want: verdict{flush: true, kind: KindInline, reason: ReasonDrain}, again: never},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.load
			if l.batches > 0 {
				l.oldest = start
			}
			got := p.decide(&l, start.Add(tt.now))
			again := never
			if !got.again.IsZero() {
				again = got.again.Sub(start)
			}
			got.again = time.Time{}
			if got != tt.want || again != tt.again {
				t.Errorf("got %+v again after %v, want %+v again after %v", got, again, tt.want, tt.again)
			}
		})
	}
}

func TestPolicyNeverInline(t *testing.T) {
	p := policy{linger: time.Second, segmentBytes: 8 << 20, uploads: 1}
	if v := p.decide(&load{bytes: 100, batches: 1}, time.Now()); v.kind != KindPut || !v.flush {
		t.Errorf("inline-max-bytes 0: got %+v, want a PUT", v)
	}
}

func TestBucket(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := newBucket(8, 1)
	b.fill(start)
	for range 8 {
		if b.until(1) != 0 {
			t.Fatalf("a full bucket of 8 is empty at %v", b.balance)
		}
		b.spend(1)
	}
	if got := b.until(1); got != 125*time.Millisecond+1 {
		t.Errorf("empty: until(1) is %v, want an eighth of a second", got)
	}
	for range 100 {
		b.spend(1)
	}
	b.fill(start.Add(1125 * time.Millisecond))
	if !b.has(1) {
		t.Errorf("the debt is not bounded by a second: balance %v", b.balance)
	}
	b.fill(start.Add(time.Hour))
	if b.balance != 8 {
		t.Errorf("the burst is not bounded by a second: balance %v", b.balance)
	}
	b.spend(-5)
	if b.balance != 8 {
		t.Errorf("tokens given back beyond the burst: balance %v", b.balance)
	}
	if free := newBucket(0, 1); !free.has(1e12) || free.until(1e12) != 0 {
		t.Error("a rate of 0 is a limit")
	}
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"linger": func(c *Config) { c.Linger = -1 }, "segment-bytes": func(c *Config) { c.SegmentBytes = 0 },
		"put-budget": func(c *Config) { c.PutBudget = -1 }, "commit-budget": func(c *Config) { c.CommitBudget = -1 },
		"inline-max-bytes":        func(c *Config) { c.InlineMaxBytes = 1 << 30 },
		"inline-bytes-per-second": func(c *Config) { c.InlineBytesPerSecond = -1 },
		"inline-resident-bytes":   func(c *Config) { c.InlineResidentBytes = -1 },
		"uploads":                 func(c *Config) { c.Uploads = 0 }, "sequence-hold": func(c *Config) { c.SequenceHold = time.Hour },
		"compression": func(c *Config) { c.Compression = 9 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: a bad value passes", name)
		}
	}
}
