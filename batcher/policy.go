package batcher

import "time"

// Kind is where a flush's bytes go.
type Kind uint8

// Kinds of flushes.
const (
	KindPut    Kind = iota // a segment in the bucket
	KindInline             // a row in the database
	kinds
)

func (k Kind) String() string {
	return [...]string{"put", "inline"}[k]
}

// Reason is why a flush was cut.
type Reason uint8

// Reasons of flushes.
const (
	ReasonFull    Reason = iota // the segment is full
	ReasonLinger                // the oldest record has waited long enough
	ReasonEarly                 // the budgets have tokens
	ReasonDrain                 // the agent stops
	ReasonBarrier               // a chain's next batch must not share a commit with the one before
	reasons
)

func (r Reason) String() string {
	return [...]string{"full", "linger", "early", "drain", "barrier"}[r]
}

// policy is what of the configuration decides when to flush.
type policy struct {
	linger         time.Duration
	segmentBytes   int64
	inlineMax      int64 // bytes; a flush must be smaller
	inlineResident int64 // bytes
	uploads        int
}

// load is the state that the policy judges.
type load struct {
	bytes   int64 // in the open flush
	batches int
	oldest  time.Time // when the open flush's first batch came; counts only when there is one

	uploads int // flushes that hold or wait for an upload slot
	commits int // commits in flight
	queued  int // flushes that wait for their commit

	puts, commitTokens, inline bucket // as of now
	resident                   int64  // inline bytes in the database

	draining bool
}

// verdict is the policy's answer.
type verdict struct {
	flush  bool
	kind   Kind
	reason Reason
	// again is when to ask again when nothing else happens; zero: only when something does.
	again time.Time
}

// decide is the flush policy. It is pure: what it says follows from its arguments alone.
//
// A flush goes when the segment is full, or when its oldest record has waited linger and the pipeline has room, whatever
// the budgets say. It goes earlier when budgets have tokens and it would not have to queue: an inline one when no commit
// is under way (those that come meanwhile share the next one), a PUT when a slot is free and nothing waits for a commit.
func (p *policy) decide(l *load, now time.Time) verdict {
	if l.batches == 0 {
		return verdict{}
	}
	v := verdict{kind: p.kind(l)}
	full := l.bytes >= p.segmentBytes || l.batches >= maxFlushBatches
	room := l.queued < maxQueued
	if v.kind == KindPut {
		room = l.uploads < p.uploads
	}
	due := l.oldest.Add(p.linger)
	switch {
	case full:
		v.flush, v.reason = true, ReasonFull
	case !room:
	case l.draining:
		v.flush, v.reason = true, ReasonDrain
	case !now.Before(due):
		v.flush, v.reason = true, ReasonLinger
	default:
		wait, free := p.early(l, v.kind)
		if free && wait == 0 {
			v.flush, v.reason = true, ReasonEarly
			break
		}
		v.again = due
		if free {
			v.again = earliest(due, now.Add(wait))
		}
	}
	return v
}

// kind says where the open flush would go now.
func (p *policy) kind(l *load) Kind {
	if l.bytes < p.inlineMax && l.inline.has(float64(l.bytes)) && l.resident+l.bytes <= p.inlineResident {
		return KindInline
	}
	return KindPut
}

// early says whether the pipeline would take the flush at once, and how long it takes until the budgets do.
func (p *policy) early(l *load, kind Kind) (wait time.Duration, free bool) {
	if kind == KindInline {
		return l.commitTokens.until(1), l.queued == 0 && l.commits == 0
	}
	return max(l.commitTokens.until(1), l.puts.until(1)), l.queued == 0
}

// earliest gives the earlier of two times, where zero means never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// bucket is a token bucket with bounded burst and bounded debt. The zero value has no limit.
type bucket struct {
	rate    float64 // tokens per second
	burst   float64 // the balance stays within -burst to burst
	balance float64
	at      time.Time // of the balance
	limited bool
}

// maxTokenWait bounds what until answers.
const maxTokenWait = time.Hour

// newBucket makes a full bucket that holds what comes in a second, and at least atLeast; a rate of 0 has no limit.
func newBucket(rate, atLeast float64) bucket {
	if rate <= 0 {
		return bucket{}
	}
	burst := max(rate, atLeast)
	return bucket{rate: rate, burst: burst, balance: burst, limited: true}
}

// fill brings the balance up to now.
func (b *bucket) fill(now time.Time) {
	if b.limited && !b.at.IsZero() && now.After(b.at) {
		b.balance = min(b.burst, b.balance+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

// spend takes n tokens, into debt if need be; a negative n gives them back.
func (b *bucket) spend(n float64) {
	if b.limited {
		b.balance = min(b.burst, max(-b.burst, b.balance-n))
	}
}

func (b *bucket) has(n float64) bool { return !b.limited || b.balance >= n }

// until says how long it takes until there are n tokens.
func (b *bucket) until(n float64) time.Duration {
	if b.has(n) {
		return 0
	}
	// A nanosecond more, so that rounding does not ask again a moment too early.
	wait := (n-b.balance)/b.rate*float64(time.Second) + 1
	return time.Duration(min(wait, float64(maxTokenWait)))
}
