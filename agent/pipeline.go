package agent

import (
	"context"
	"sync"
)

// pipeline is the requests of a connection that overlap: they were read, and their responses are not all written. The
// reading side pushes, any goroutine completes, and the writing side takes what is complete in the order of the pushes.
type pipeline struct {
	mu        sync.Mutex
	items     []*pending
	bytes     int64 // of frames
	responses int64 // bytes, estimated
	writing   bool  // somebody writes; they end when items is empty
	broken    bool  // nothing will be written any more
	complete  chan struct{}
	moved     chan struct{}
}

// pending is one request in a pipeline.
type pending struct {
	pipe      *pipeline
	r         *request
	bytes     int64
	responses int64
	dropFrame func()
	answer    answer // nil: not complete
	release   func()
}

// expect tells about how many bytes the response will take.
func (x *pending) expect(responses int64) {
	p := x.pipe
	p.mu.Lock()
	defer p.mu.Unlock()
	p.responses += responses - x.responses
	x.responses = responses
}

// done completes the request. release, where not nil, is called when the response was written or never will be.
func (x *pending) done(a answer, release func()) {
	p := x.pipe
	p.mu.Lock()
	if p.broken {
		p.mu.Unlock()
		call(release)
		return
	}
	x.answer, x.release = a, release
	head := len(p.items) > 0 && p.items[0] == x
	p.mu.Unlock()
	if head {
		signal(p.complete)
	}
}

func call(f func()) {
	if f != nil {
		f()
	}
}

func newPipeline() *pipeline {
	return &pipeline{complete: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// push adds a request; it says whether the caller must start a writing side.
func (p *pipeline) push(x *pending) (start bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x.pipe = p
	if p.broken {
		return false
	}
	p.items = append(p.items, x)
	p.bytes += x.bytes
	start = !p.writing
	p.writing = p.writing || start
	return start
}

// next waits for the oldest request to be complete. It gives nil when there is none, and then the writing side has
// ended; or when the pipeline is broken.
func (p *pipeline) next(ctx context.Context) *pending {
	for {
		p.mu.Lock()
		if len(p.items) == 0 || p.broken {
			p.writing = false
			p.mu.Unlock()
			signal(p.moved)
			return nil
		}
		x := p.items[0]
		done := x.answer != nil
		p.mu.Unlock()
		if done {
			return x
		}
		select {
		case <-p.complete:
		case <-ctx.Done():
			p.fail()
		}
	}
}

// ready gives the oldest request if it is complete.
func (p *pipeline) ready() *pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.items) == 0 || p.broken || p.items[0].answer == nil {
		return nil
	}
	return p.items[0]
}

// pop takes the oldest request away: its response is encoded.
func (p *pipeline) pop() {
	p.mu.Lock()
	if p.broken {
		p.mu.Unlock()
		return
	}
	x := p.items[0]
	p.items[0] = nil
	p.items = p.items[1:]
	if len(p.items) == 0 {
		p.items = nil // the array starts anew
	}
	p.bytes -= x.bytes
	p.responses -= x.responses
	p.mu.Unlock()
	call(x.release)
	signal(p.moved)
}

// fail breaks the pipeline: nothing is written any more.
func (p *pipeline) fail() {
	p.mu.Lock()
	p.broken = true
	items := p.items
	p.items = nil
	p.mu.Unlock()
	for _, x := range items {
		call(x.release) // of those that are not complete, done calls it
	}
	signal(p.moved)
	signal(p.complete)
}

// waitRoom waits until a request of so many bytes may be read. Only the reading side waits.
func (p *pipeline) waitRoom(ctx context.Context, bytes int64) error {
	return p.wait(ctx, func() bool {
		return len(p.items) == 0 || (len(p.items) < maxPipelinedRequests && p.bytes+bytes <= maxPipelinedBytes &&
			p.responses <= maxPipelinedResponseBytes)
	})
}

// waitIdle waits until all responses are written and nobody is writing.
func (p *pipeline) waitIdle(ctx context.Context) error {
	return p.wait(ctx, func() bool { return !p.writing })
}

func (p *pipeline) wait(ctx context.Context, until func() bool) error {
	for {
		p.mu.Lock()
		ok, broken := until(), p.broken
		p.mu.Unlock()
		switch {
		case broken:
			return errBroken
		case ok:
			return nil
		}
		select {
		case <-p.moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
