package txn

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/skeinio/skein/metadata"
)

const (
	now   metadata.Millis = 1_000_000
	fresh                 = metadata.ProducerID(99)
	none                  = metadata.NoProducer
	limit                 = 60 * time.Second
)

// at makes a row; last is NoIdentity unless it is set.
func at(state metadata.TxnState, producer metadata.ProducerID, epoch metadata.ProducerEpoch) metadata.Txn {
	t := metadata.Txn{TxnRow: metadata.TxnRow{
		ID: "id", Version: 5, Producer: producer, Epoch: epoch, LastProducer: none, LastEpoch: -1, State: state,
		Protocol: metadata.TxnOriginal, Timeout: limit, Updated: now - 10,
	}}
	if state == metadata.TxnOngoing {
		t.Started = now - 10
	}
	return t
}

func after(t metadata.Txn, last Identity) metadata.Txn {
	t.LastProducer, t.LastEpoch = last.Producer, last.Epoch
	return t
}

const (
	empty   = metadata.TxnEmpty
	ongoing = metadata.TxnOngoing
	commits = metadata.TxnCompleteCommit
	aborts  = metadata.TxnCompleteAbort
	top     = lastEpoch
)

// want is what a change is to be; a nil change is a zero want.
type want struct {
	err    error
	reply  Identity
	state  metadata.TxnState
	id     Identity // of the row
	last   Identity
	end    metadata.TxnOutcome
	marker Identity
	none   bool // no change
}

func check(t *testing.T, name string, c *metadata.TxnChange, reply Identity, err error, w want) {
	t.Helper()
	if !errors.Is(err, w.err) || (w.err == nil && err != nil) || reply != w.reply {
		t.Errorf("%s: %v, %v; want %v, %v", name, reply, err, w.reply, w.err)
	}
	if (c == nil) != w.none {
		t.Errorf("%s: change %+v", name, c)
	}
	if c == nil || w.none {
		return
	}
	got := want{
		err: w.err, reply: reply, state: c.Row.State, id: current(&c.Row), last: last(&c.Row), end: c.End,
		marker: Identity{c.Producer, c.Epoch},
	}
	if c.End == metadata.TxnGoesOn {
		got.marker = Identity{}
	}
	if got != w {
		t.Errorf("%s:\n got %+v\nwant %+v", name, got, w)
	}
	if c.Row.Updated != now || (c.Row.State == ongoing) != (c.Row.Started != 0) {
		t.Errorf("%s: started %d, updated %d", name, c.Row.Started, c.Row.Updated)
	}
}

func TestInit(t *testing.T) {
	N := NoIdentity
	for name, c := range map[string]struct {
		txn      metadata.Txn
		supplied Identity
		fresh    metadata.ProducerID
		want     want
	}{
		"new, without an id yet": {metadata.Txn{}, N, none, want{err: ErrNeedProducerID, reply: N, none: true}},
		"new":                    {metadata.Txn{}, N, fresh, want{reply: Identity{fresh, 0}, state: empty, id: Identity{fresh, 0}, last: N}},
		"expired, of a producer that lives": {
			metadata.Txn{}, Identity{7, 3}, fresh, want{reply: Identity{fresh, 0}, state: empty, id: Identity{fresh, 0}, last: N},
		},
		"empty":         {at(empty, 7, 3), N, none, want{reply: Identity{7, 4}, state: empty, id: Identity{7, 4}, last: N}},
		"committed":     {at(commits, 7, 3), N, none, want{reply: Identity{7, 4}, state: empty, id: Identity{7, 4}, last: N}},
		"aborted":       {at(aborts, 7, 3), N, none, want{reply: Identity{7, 4}, state: empty, id: Identity{7, 4}, last: N}},
		"current given": {at(aborts, 7, 3), Identity{7, 3}, none, want{reply: Identity{7, 4}, state: empty, id: Identity{7, 4}, last: Identity{7, 3}}},
		"former given, a retry": {
			after(at(empty, 7, 4), Identity{7, 3}), Identity{7, 3}, none, want{reply: Identity{7, 4}, none: true},
		},
		"former given, of another instance": {at(empty, 7, 4), Identity{7, 3}, none, want{err: ErrFenced, reply: N, none: true}},
		"older given":                       {after(at(empty, 7, 4), Identity{7, 3}), Identity{7, 2}, none, want{err: ErrFenced, reply: N, none: true}},
		"another producer given":            {at(empty, 7, 4), Identity{8, 4}, none, want{err: ErrFenced, reply: N, none: true}},
		"ongoing": {at(ongoing, 7, 3), N, none, want{
			err: ErrConcurrent, reply: N, state: aborts, id: Identity{7, 4}, last: N, end: metadata.TxnAborts, marker: Identity{7, 4},
		}},
		"ongoing, current given": {at(ongoing, 7, 3), Identity{7, 3}, none, want{
			err: ErrConcurrent, reply: N, state: aborts, id: Identity{7, 4}, last: Identity{7, 3}, end: metadata.TxnAborts, marker: Identity{7, 4},
		}},
		"ongoing, older given": {at(ongoing, 7, 3), Identity{7, 2}, none, want{err: ErrFenced, reply: N, none: true}},
		"last epoch":           {at(empty, 7, top), N, none, want{err: ErrNeedProducerID, reply: N, none: true}},
		"last epoch but one":   {at(empty, 7, top-1), N, none, want{reply: Identity{7, top}, state: empty, id: Identity{7, top}, last: N}},
		"last epoch, with an id": {
			at(empty, 7, top), Identity{7, top}, fresh, want{reply: Identity{fresh, 0}, state: empty, id: Identity{fresh, 0}, last: Identity{7, top}},
		},
		"last epoch given again, a retry": {
			after(at(empty, fresh, 0), Identity{7, top}), Identity{7, top}, none, want{reply: Identity{fresh, 0}, none: true},
		},
		"ongoing at the last epoch": {at(ongoing, 7, top), N, fresh, want{
			err: ErrConcurrent, reply: N, state: aborts, id: Identity{fresh, 0}, last: N, end: metadata.TxnAborts, marker: Identity{7, top + 1},
		}},
	} {
		change, reply, err := Init{Timeout: limit, Supplied: c.supplied, Fresh: c.fresh}.Decide(now, &c.txn)
		check(t, name, change, reply, err, c.want)
	}
}

func TestEndOriginal(t *testing.T) {
	N := NoIdentity
	me := Identity{7, 3}
	for name, c := range map[string]struct {
		txn    metadata.Txn
		from   Identity
		commit bool
		want   want
	}{
		"commit":                      {at(ongoing, 7, 3), me, true, want{reply: me, state: commits, id: me, last: N, end: metadata.TxnCommits, marker: me}},
		"abort":                       {at(ongoing, 7, 3), me, false, want{reply: me, state: aborts, id: me, last: N, end: metadata.TxnAborts, marker: me}},
		"commit, again":               {at(commits, 7, 3), me, true, want{reply: me, none: true}},
		"abort, again":                {at(aborts, 7, 3), me, false, want{reply: me, none: true}},
		"abort of what is committed":  {at(commits, 7, 3), me, false, want{err: ErrState, reply: N, none: true}},
		"commit of what is aborted":   {at(aborts, 7, 3), me, true, want{err: ErrState, reply: N, none: true}},
		"commit of nothing":           {at(empty, 7, 3), me, true, want{err: ErrState, reply: N, none: true}},
		"abort of nothing":            {at(empty, 7, 3), me, false, want{err: ErrState, reply: N, none: true}},
		"another epoch":               {at(ongoing, 7, 4), me, true, want{err: ErrFenced, reply: N, none: true}},
		"another producer":            {at(ongoing, 8, 3), me, true, want{err: ErrMapping, reply: N, none: true}},
		"unknown":                     {metadata.Txn{}, me, true, want{err: ErrMapping, reply: N, none: true}},
		"after its timeout (a retry)": {at(aborts, 7, 4), me, true, want{err: ErrFenced, reply: N, none: true}},
	} {
		change, reply, err := End{Producer: c.from, Commit: c.commit, Protocol: metadata.TxnOriginal}.Decide(now, &c.txn)
		check(t, name, change, reply, err, c.want)
	}
}

func TestEndKIP890(t *testing.T) {
	N := NoIdentity
	me, next := Identity{7, 3}, Identity{7, 4}
	for name, c := range map[string]struct {
		txn    metadata.Txn
		from   Identity
		commit bool
		fresh  metadata.ProducerID
		want   want
	}{
		"commit":                         {at(ongoing, 7, 3), me, true, none, want{reply: next, state: commits, id: next, last: me, end: metadata.TxnCommits, marker: next}},
		"abort":                          {at(ongoing, 7, 3), me, false, none, want{reply: next, state: aborts, id: next, last: me, end: metadata.TxnAborts, marker: next}},
		"commit, a retry":                {at(commits, 7, 4), me, true, none, want{reply: next, none: true}},
		"abort, a retry":                 {at(aborts, 7, 4), me, false, none, want{reply: next, none: true}},
		"commit after its timeout":       {at(aborts, 7, 4), me, true, none, want{err: ErrState, reply: N, none: true}},
		"abort of what was committed":    {at(commits, 7, 4), me, false, none, want{err: ErrState, reply: N, none: true}},
		"late, in the next transaction":  {at(ongoing, 7, 4), me, true, none, want{err: ErrFenced, reply: N, none: true}},
		"late, after the next":           {at(commits, 7, 5), me, true, none, want{err: ErrFenced, reply: N, none: true}},
		"late, after a new instance":     {at(empty, 7, 4), me, false, none, want{err: ErrFenced, reply: N, none: true}},
		"abort of nothing":               {at(empty, 7, 3), me, false, none, want{reply: next, state: aborts, id: next, last: me, end: metadata.TxnAborts, marker: next}},
		"abort of nothing, after commit": {at(commits, 7, 3), me, false, none, want{reply: next, state: aborts, id: next, last: me, end: metadata.TxnAborts, marker: next}},
		"commit of nothing":              {at(empty, 7, 3), me, true, none, want{err: ErrState, reply: N, none: true}},
		"commit of nothing, after one":   {at(commits, 7, 3), me, true, none, want{err: ErrState, reply: N, none: true}},
		"unknown":                        {metadata.Txn{}, me, true, none, want{err: ErrMapping, reply: N, none: true}},
		"no identity":                    {at(aborts, 7, 0), N, false, none, want{err: ErrMapping, reply: N, none: true}},
		"another producer":               {at(ongoing, 8, 3), me, true, none, want{err: ErrMapping, reply: N, none: true}},
		"last epoch":                     {at(ongoing, 7, top), Identity{7, top}, true, none, want{err: ErrNeedProducerID, reply: N, none: true}},
		"last epoch, with an id": {at(ongoing, 7, top), Identity{7, top}, true, fresh, want{
			reply: Identity{fresh, 0}, state: commits, id: Identity{fresh, 0}, last: Identity{7, top}, end: metadata.TxnCommits, marker: Identity{7, top + 1},
		}},
		"last epoch, a retry": {
			after(at(commits, fresh, 0), Identity{7, top}), Identity{7, top}, true, none, want{reply: Identity{fresh, 0}, none: true},
		},
	} {
		change, reply, err := End{Producer: c.from, Commit: c.commit, Protocol: metadata.TxnKIP890, Fresh: c.fresh}.Decide(now, &c.txn)
		check(t, name, change, reply, err, c.want)
	}
}

func TestAdd(t *testing.T) {
	me := Identity{7, 3}
	p, q := metadata.PartitionID{Block: 1, Slot: 2}, metadata.PartitionID{Block: 1, Slot: 3}
	running := at(ongoing, 7, 3)
	running.Open = []metadata.PartitionID{p}
	offsets := &metadata.OffsetCommit{Group: "g"}
	for name, c := range map[string]struct {
		txn     metadata.Txn
		add     Add
		err     error
		started metadata.Millis // 0: no change
	}{
		"begins":                        {at(empty, 7, 3), Add{Producer: me, Partitions: []metadata.PartitionID{p}, Protocol: metadata.TxnOriginal}, nil, now},
		"begins after another":          {at(commits, 7, 3), Add{Producer: me, Partitions: []metadata.PartitionID{p}, Protocol: metadata.TxnOriginal}, nil, now},
		"goes on":                       {running, Add{Producer: me, Partitions: []metadata.PartitionID{p, q}, Protocol: metadata.TxnOriginal}, nil, now - 10},
		"is there":                      {running, Add{Producer: me, Partitions: []metadata.PartitionID{p}, Protocol: metadata.TxnOriginal}, nil, 0},
		"offsets begin":                 {at(empty, 7, 3), Add{Producer: me, Protocol: metadata.TxnOriginal}, nil, now},
		"offsets go on":                 {running, Add{Producer: me, Protocol: metadata.TxnOriginal}, nil, 0},
		"offsets committed":             {running, Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnOriginal}, nil, now - 10},
		"offsets of no transaction":     {at(empty, 7, 3), Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnOriginal}, ErrState, 0},
		"offsets that begin (KIP-890)":  {at(empty, 7, 3), Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnKIP890}, nil, now},
		"older epoch":                   {at(ongoing, 7, 4), Add{Producer: me, Protocol: metadata.TxnOriginal}, ErrFenced, 0},
		"newer epoch than was given":    {at(ongoing, 7, 2), Add{Producer: me, Protocol: metadata.TxnOriginal}, ErrFenced, 0},
		"another producer":              {at(ongoing, 8, 3), Add{Producer: me, Protocol: metadata.TxnOriginal}, ErrMapping, 0},
		"unknown":                       {metadata.Txn{}, Add{Producer: me, Protocol: metadata.TxnOriginal}, ErrMapping, 0},
		"offsets of an unknown one":     {metadata.Txn{}, Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnKIP890}, ErrMapping, 0},
		"offsets of a fenced one":       {at(ongoing, 7, 4), Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnKIP890}, ErrFenced, 0},
		"offsets of another's producer": {at(ongoing, 9, 3), Add{Producer: me, Offsets: offsets, Protocol: metadata.TxnKIP890}, ErrMapping, 0},
	} {
		change, err := c.add.Decide(now, &c.txn)
		if !errors.Is(err, c.err) || (change != nil) != (c.started != 0) {
			t.Errorf("%s: %+v, %v", name, change, err)
			continue
		}
		if change == nil {
			continue
		}
		if r := change.Row; r.State != ongoing || r.Started != c.started || r.Updated != now || r.Protocol != c.add.Protocol ||
			current(&r) != me || change.End != metadata.TxnGoesOn {
			t.Errorf("%s: %+v", name, change)
		}
		if !reflect.DeepEqual(change.Add, c.add.Partitions) || change.Offsets != c.add.Offsets {
			t.Errorf("%s: %+v", name, change)
		}
	}
}

func TestExpire(t *testing.T) {
	for name, c := range map[string]struct {
		state metadata.TxnState
		at    metadata.Millis
		want  bool
	}{
		"just before":    {ongoing, now - 10 + 60_000 - 1, false},
		"at its time":    {ongoing, now - 10 + 60_000, true},
		"nothing open":   {empty, now + 1_000_000, false},
		"it has ended":   {commits, now + 1_000_000, false},
		"it was aborted": {aborts, now + 1_000_000, false},
	} {
		txn := at(c.state, 7, 3)
		change, err := Expire(c.at, &txn, none)
		if err != nil || (change != nil) != c.want {
			t.Errorf("%s: %+v, %v", name, change, err)
		}
		if change != nil && (change.End != metadata.TxnAborts || current(&change.Row) != Identity{7, 4} || change.Epoch != 4) {
			t.Errorf("%s: %+v", name, change)
		}
	}
}
