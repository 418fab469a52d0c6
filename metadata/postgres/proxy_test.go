package postgres_test

import (
	"sync"
	"sync/atomic"

	"github.com/skeinio/skein/internal/testenv"
)

// match tells whether a rule is about a message; rule says what becomes of one.
type (
	match = func(testenv.PostgresMessage) bool
	rule  = func(testenv.PostgresMessage) testenv.PostgresVerdict
)

// once gives a rule that applies v to the first message that matches, and tells of it.
func once(applies match, v testenv.PostgresVerdict) (r rule, hit <-chan struct{}) {
	done := make(chan struct{})
	var first sync.Once
	return func(m testenv.PostgresMessage) testenv.PostgresVerdict {
		var verdict testenv.PostgresVerdict
		if applies(m) {
			first.Do(func() {
				verdict = v
				close(done)
			})
		}
		return verdict
	}, done
}

// nth gives a rule that passes everything and tells when the n-th message that matches came.
func nth(n int64, applies match) (r rule, hit <-chan struct{}) {
	done := make(chan struct{})
	var count atomic.Int64
	return func(m testenv.PostgresMessage) testenv.PostgresVerdict {
		if applies(m) && count.Add(1) == n {
			close(done)
		}
		return testenv.PostgresVerdict{}
	}, done
}
