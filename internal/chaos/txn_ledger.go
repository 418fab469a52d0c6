package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// fate is what a writer knows of one of its transactions.
type fate uint8

const (
	fateAborted   fate = iota // or its commit was never asked for
	fateUnknown               // its commit was asked for and not answered
	fateCommitted             // its commit was acknowledged
)

// txnLedger is what all writers know. It is safe for concurrent use.
type txnLedger struct {
	mu    sync.Mutex
	fates map[string]txnFate
}

type txnFate struct {
	fate fate
	size int // records over all partitions
}

func (l *txnLedger) note(txn string, f fate, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fates[txn] = txnFate{f, size}
}

// txnResult is what a run with transactions proved.
type txnResult struct {
	Topics    []string `json:"topics"`
	Committed int      `json:"committed"`
	Aborted   int      `json:"aborted"`
	Unknown   int      `json:"unknown"`
	// UnknownCommitted are those of unknown outcome that are there, whole.
	UnknownCommitted int `json:"unknown_committed"`
	Records          int `json:"records"`
	Lost             int `json:"lost"`
	Doubled          int `json:"doubled"`
	Leaked           int `json:"aborted_records_read"`
	Torn             int `json:"torn_transactions"`
	// EtlIn and EtlOut are the records that consume-modify-produce was given and made; EtlMissing and EtlDoubled what is
	// wrong with them.
	EtlIn      int     `json:"etl_in"`
	EtlOut     int     `json:"etl_out"`
	EtlMissing int     `json:"etl_missing"`
	EtlDoubled int     `json:"etl_doubled"`
	CutBefore  int64   `json:"cut_before_commit"`
	CutAfter   int64   `json:"cut_after_commit"`
	Faults     []fault `json:"faults"`
}

// compare judges what a read_committed reader saw: how often each value came.
func (l *txnLedger) compare(seen map[string]int) *txnResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &txnResult{Records: len(seen)}
	found := map[string]int{}
	for value, times := range seen {
		found[txnOf(value)]++
		r.Doubled += times - 1
	}
	for txn, f := range l.fates {
		n := found[txn]
		delete(found, txn)
		switch f.fate {
		case fateAborted:
			r.Aborted++
			r.Leaked += n
		case fateCommitted:
			r.Committed++
			r.Lost += max(0, f.size-n)
		case fateUnknown:
			if r.Unknown++; n > 0 {
				r.UnknownCommitted++
			}
		}
		if n != 0 && n != f.size && f.fate != fateAborted {
			r.Torn++
		}
	}
	for _, n := range found { // nobody wrote it
		r.Leaked += n
	}
	return r
}

// txnOf gives the transaction of a value: "transaction/number".
func txnOf(value string) string {
	txn, _, _ := strings.Cut(value, "/")
	return txn
}

// compareEtl judges what consume-modify-produce made of what was read.
func (r *txnResult) compareEtl(in, out map[string]int) {
	r.EtlIn = len(in)
	for value := range in {
		if out[value] == 0 {
			r.EtlMissing++
		}
	}
	for value, times := range out {
		r.EtlOut += times
		r.EtlDoubled += times - 1
		if in[value] == 0 {
			r.EtlDoubled++ // made of nothing
		}
	}
}

func (r *txnResult) clean() bool {
	return r.Committed > 0 && r.Lost+r.Doubled+r.Leaked+r.Torn+r.EtlMissing+r.EtlDoubled == 0
}

func (r *txnResult) print(w io.Writer) {
	fmt.Fprintf(w, "transactions: committed %d, aborted %d, outcome unknown %d (of these committed %d); connections lost before COMMIT %d, after %d\n",
		r.Committed, r.Aborted, r.Unknown, r.UnknownCommitted, r.CutBefore, r.CutAfter)
	fmt.Fprintf(w, "read_committed: %d records, lost %d, doubled %d, of aborted transactions %d, torn transactions %d\n",
		r.Records, r.Lost, r.Doubled, r.Leaked, r.Torn)
	fmt.Fprintf(w, "consume-modify-produce: in %d, out %d, missing %d, doubled %d\n", r.EtlIn, r.EtlOut, r.EtlMissing, r.EtlDoubled)
	for _, f := range r.Faults {
		fmt.Fprintf(w, "  %s: all writers committed again after %d ms\n", f.Name, f.RecoveryMS)
	}
}
