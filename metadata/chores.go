package metadata

import (
	"sync"
	"time"
)

// Chore is a kind of rows that are removed when they are of no use any more. Each has a bounded step, and a cursor or an
// index that gives the oldest first. Condemned keys and producer ids are the compactor's; a checkpoint goes when a newer one
// is saved, an expired producer with the next checkpoint.
type Chore string

// Chores.
const (
	ChoreReceipts Chore = "receipts"
	ChoreAborted  Chore = "aborted_transactions" // below the log's start
	ChoreTxnIDs   Chore = "transactional_ids"    // unused
	ChoreTimeouts Chore = "transaction_timeouts" // transactions that their producers left open
	ChoreOffsets  Chore = "offsets"              // of groups, and groups that are left with nothing
	ChoreContacts Chore = "group_contacts"       // of groups with agents long gone
)

// Chores are all of them.
func Chores() []Chore {
	return []Chore{ChoreReceipts, ChoreAborted, ChoreTxnIDs, ChoreTimeouts, ChoreOffsets, ChoreContacts}
}

// chores is when each was last done to the end, by this process.
type chores struct {
	mu    sync.Mutex
	start time.Time
	done  map[Chore]time.Time
}

// Did notes that a chore was done without an error.
func (s *Store) Did(c Chore) {
	s.chores.mu.Lock()
	defer s.chores.mu.Unlock()
	s.chores.done[c] = time.Now()
}

// SinceDone is how long ago a chore was last done without an error; while it never was, how long the Store has been there.
func (s *Store) SinceDone(c Chore) time.Duration {
	s.chores.mu.Lock()
	defer s.chores.mu.Unlock()
	if at, ok := s.chores.done[c]; ok {
		return time.Since(at)
	}
	return time.Since(s.chores.start)
}
