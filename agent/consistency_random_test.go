package agent

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/skeinio/skein/internal/record"
	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/objstore"
)

// history is what clients of three agents saw of one topic that is deleted, made again and grown all the while. Events have
// a place in one order: a counter that is read before a request is sent and after its response came. What two requests
// saw is compared only where one ended before the other began, and only within one life of the topic.
type history struct {
	t *testing.T

	mu    sync.Mutex
	moved *sync.Cond
	clock int64
	lives []*life
	done  bool
	// Produces by partition: sent, and answered.
	sent, answered [2]int64
}

// life is a topic from its creation's acknowledgement to the sending of its deletion.
type life struct {
	from, to int64 // to is MaxInt64 while it lives
	id       [16]byte
	grown    int64    // when a second partition was acknowledged; 0: not yet
	before   [2]int64 // produces that were answered before its creation was sent, and so are not in it
	parts    [2]partHistory
	steps    int // observations
}

type partHistory struct {
	values map[int64]string // by offset, as acknowledged or read
	ends   []observedEnd
}

// observedEnd: from this time on the end is at least that.
type observedEnd struct{ at, end int64 }

func newHistory(t *testing.T) *history {
	h := &history{t: t}
	h.moved = sync.NewCond(&h.mu)
	return h
}

func (h *history) now() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// during gives the life that covers a request from its sending to now, nil where there is none. h.mu is held.
func (h *history) during(sent int64) *life {
	if n := len(h.lives); n > 0 && h.lives[n-1].from < sent && h.lives[n-1].to == math.MaxInt64 {
		return h.lives[n-1]
	}
	return nil
}

// least is what the end is at least for who asks at a time.
func (p *partHistory) least(sent int64) (end int64) {
	for _, o := range p.ends {
		if o.at < sent {
			end = max(end, o.end)
		}
	}
	return end
}

// value notes what is at an offset; there is only one value.
func (h *history) value(p *partHistory, offset int64, value string) {
	if old, ok := p.values[offset]; ok && old != value {
		h.t.Errorf("offset %d is %q, and was %q", offset, value, old)
	}
	p.values[offset] = value
}

// step counts an observation of a life and wakes who waits for enough of them. h.mu is held.
func (h *history) step(l *life) {
	l.steps++
	h.moved.Broadcast()
}

// requester sends requests to one agent.
type requester struct {
	h      *history
	name   string
	byName *kgo.Client // speaks what was current before topics had ids in Produce and Fetch
	byID   *kgo.Client
	rnd    *rand.Rand
}

func (r *requester) ask(ctx context.Context, cl *kgo.Client, req kmsg.Request) kmsg.Response {
	resp, err := cl.SeedBrokers()[0].Request(ctx, req)
	if err != nil && ctx.Err() == nil {
		r.h.t.Errorf("%s: %T: %v", r.name, req, err)
	}
	if err != nil {
		return nil
	}
	return resp
}

// target chooses a partition that is known to be there, with the life it belongs to; nil where there is none.
func (r *requester) target() (l *life, partition int32, sent int64) {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	r.h.clock++
	l = r.h.during(r.h.clock)
	if l != nil && l.grown > 0 {
		partition = int32(r.rnd.IntN(2))
	}
	return l, partition, r.h.clock
}

// produce writes records one after the other. A stale agent may refuse one; the next must do.
func (r *requester) produce(ctx context.Context) {
	refused := map[*life]int{}
	for n := 0; ctx.Err() == nil; n++ {
		l, partition, sent := r.target()
		value := fmt.Sprintf("%s-%d", r.name, n)
		batch, err := record.NewBuilder().Append(1, nil, append([]byte(value+" "), make([]byte, r.rnd.IntN(3000))...)).Build()
		if err != nil {
			r.h.t.Error(err)
			return
		}
		r.h.mu.Lock()
		r.h.sent[partition]++
		r.h.mu.Unlock()
		resp, _ := r.ask(ctx, r.byName, produceOf("t", partition, acksAll, batch)).(*kmsg.ProduceResponse)
		if resp == nil {
			continue
		}
		p := resp.Topics[0].Partitions[0]
		r.h.mu.Lock()
		r.h.clock++
		r.h.answered[partition]++
		switch now := r.h.during(sent); {
		case now == nil || now != l: // it may be in the one or the other
		case p.ErrorCode == codeNone:
			r.h.value(&l.parts[partition], p.BaseOffset, value)
			l.parts[partition].ends = append(l.parts[partition].ends, observedEnd{r.h.clock, p.BaseOffset + 1})
			r.h.step(l)
		default:
			if refused[l]++; refused[l] > 1 {
				r.h.t.Errorf("%s: produce to a topic that is there: %s, again", r.name, codeName(p.ErrorCode))
			}
		}
		r.h.mu.Unlock()
	}
}

// list asks for ends.
func (r *requester) list(ctx context.Context) {
	for ctx.Err() == nil {
		l, partition, sent := r.target()
		resp, _ := r.ask(ctx, r.byName, listRequest("t", partition)).(*kmsg.ListOffsetsResponse)
		if resp == nil {
			continue
		}
		p := resp.Topics[0].Partitions[0]
		r.h.mu.Lock()
		r.h.clock++
		if now := r.h.during(sent); now != nil && now == l {
			x := &l.parts[partition]
			least, most := x.least(sent), r.h.sent[partition]-l.before[partition]
			if p.ErrorCode != codeNone || p.Offset < least || p.Offset > most {
				r.h.t.Errorf("%s: ListOffsets of partition %d gives %s, %d; want %d to %d", r.name, partition, codeName(p.ErrorCode),
					p.Offset, least, most)
			}
			x.ends = append(x.ends, observedEnd{r.h.clock, p.Offset})
			r.h.step(l)
		}
		r.h.mu.Unlock()
	}
}

// read asks for the topic and fetches from an offset that is known to be there.
func (r *requester) read(ctx context.Context) {
	for ctx.Err() == nil {
		l, partition, sent := r.target()
		resp, _ := r.ask(ctx, r.byName, metadataRequest("t")).(*kmsg.MetadataResponse)
		if resp == nil {
			continue
		}
		topic := resp.Topics[0]
		r.h.mu.Lock()
		r.h.clock++
		here := l != nil && r.h.during(sent) == l
		var end int64
		if here {
			if topic.ErrorCode != codeNone || topic.TopicID != l.id || l.grown > 0 && l.grown < sent && len(topic.Partitions) != 2 {
				r.h.t.Errorf("%s: Metadata gives %s, %x, %d partitions; the topic is %x", r.name, codeName(topic.ErrorCode),
					topic.TopicID, len(topic.Partitions), l.id)
			}
			end = l.parts[partition].least(sent)
			r.h.step(l)
		}
		r.h.mu.Unlock()
		if end > 0 {
			r.fetch(ctx, l, partition, r.rnd.Int64N(end))
		}
	}
}

func (r *requester) fetch(ctx context.Context, l *life, partition int32, offset int64) {
	sent := r.h.now()
	id, cl := l.id, r.byID
	if r.rnd.IntN(2) == 0 {
		id, cl = [16]byte{}, r.byName
	}
	resp, _ := r.ask(ctx, cl, fetchOne("t", id, partition, offset)).(*kmsg.FetchResponse)
	if resp == nil {
		return
	}
	p := part(resp, 0)
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	r.h.clock++
	if r.h.during(sent) != l {
		return
	}
	if p.ErrorCode != codeNone || len(p.RecordBatches) == 0 {
		r.h.t.Errorf("%s: fetch of offset %d, which is there: %s, %d bytes", r.name, offset, codeName(p.ErrorCode), len(p.RecordBatches))
	}
	next := offset
	for b, err := range record.Batches(p.RecordBatches) {
		if err != nil || b.BaseOffset != next {
			r.h.t.Errorf("%s: batch at %d, want %d: %v", r.name, b.BaseOffset, next, err)
			return
		}
		values, err := valuesOf(b.Bytes)
		if err != nil || len(values) != 1 {
			r.h.t.Errorf("%s: offset %d: %v", r.name, next, err)
			return
		}
		var value string
		if _, err := fmt.Sscan(values[0], &value); err != nil {
			r.h.t.Error(err)
		}
		r.h.value(&l.parts[partition], next, value)
		next++
	}
	r.h.step(l)
}

// live makes the topic, lets it be observed, grows it, lets it be observed again, and deletes it.
func (h *history) live(agents []*testServer, rnd *rand.Rand, observations int) {
	h.mu.Lock()
	l := &life{to: math.MaxInt64, before: h.answered}
	h.mu.Unlock()
	l.id = agents[rnd.IntN(len(agents))].createTopic("t", 1, nil).ID
	for i := range l.parts {
		l.parts[i].values = map[int64]string{}
	}
	h.mu.Lock()
	h.clock++
	l.from = h.clock
	h.lives = append(h.lives, l)
	h.await(l, observations)
	h.mu.Unlock()
	grow(h.t, agents[rnd.IntN(len(agents))], "t", 2)
	h.mu.Lock()
	h.clock++
	l.grown = h.clock
	h.await(l, 2*observations)
	h.clock++
	l.to = h.clock
	h.mu.Unlock()
	deleteTopic(h.t, agents[rnd.IntN(len(agents))], "t")
}

// await waits for so many observations of a life. h.mu is held.
func (h *history) await(l *life, steps int) {
	for l.steps < steps && !h.done {
		h.moved.Wait()
	}
}

// TestAgentsAgree: two agents are written to, three are asked, while the topic is deleted, made again and grown by any of them.
// Nobody sees less than what was acknowledged or seen before he asked, a record of another life, or an offset out of range.
func TestAgentsAgree(t *testing.T) {
	url, bucket := testenv.PostgresDatabase(t), objstore.NewMemory()
	agents := make([]*testServer, 3)
	for i := range agents {
		agents[i] = wholeAgent(t, newPostgresStore(t, url), bucket)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := newHistory(t)
	ctx, stop := context.WithTimeout(t.Context(), 4*testTimeout)
	defer context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.done = true
		h.moved.Broadcast()
	})()
	var all sync.WaitGroup
	start := func(agent int, what string, run func(*requester, context.Context)) {
		r := &requester{
			h: h, name: fmt.Sprintf("%s@%d", what, agent), rnd: rand.New(rand.NewPCG(seed, uint64(agent)<<8+uint64(what[0]))),
			byName: agents[agent].client(kgo.MaxVersions(kversion.V2_8_0()), kgo.RetryTimeout(time.Millisecond)),
			byID:   agents[agent].client(kgo.RetryTimeout(time.Millisecond)),
		}
		all.Go(func() { run(r, ctx) })
	}
	for agent := range agents {
		if agent < 2 {
			start(agent, "write", (*requester).produce)
		}
		start(agent, "list", (*requester).list)
		start(agent, "read", (*requester).read)
	}
	const lives, observations = 6, 150
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range lives {
		h.live(agents, rnd, observations)
	}
	if ctx.Err() != nil {
		t.Error("not enough was observed in time")
	}
	stop()
	all.Wait()
}
