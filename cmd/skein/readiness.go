package main

import (
	"errors"
	"sync/atomic"
)

// errStarting is why an agent that has only begun is not ready.
var errStarting = errors.New("starting")

// readiness says whether the process is ready, and if not, why. It is safe for concurrent use.
type readiness struct {
	reason atomic.Pointer[error]
	server atomic.Pointer[func() error] // of the protocol server, once there is one
}

// notReady sets the reason; nil leaves the answer to the protocol server.
func (r *readiness) notReady(reason error) { r.reason.Store(&reason) }

// ask sets what is asked when there is no reason.
func (r *readiness) ask(fn func() error) { r.server.Store(&fn) }

// why is the reason why the process is not ready, or nil.
func (r *readiness) why() error {
	if reason := r.reason.Load(); reason != nil && *reason != nil {
		return *reason
	}
	if fn := r.server.Load(); fn != nil {
		return (*fn)()
	}
	return errStarting
}
