package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// quietLimit is how long after the writers have ended something may stay open: their timeout and the sweeper's interval.
	quietLimit = txnTimeout + 2*time.Minute
	quietPoll  = 200 * time.Millisecond
	// copyLimit is how long the sessions may take to copy what is left.
	copyLimit = 3 * time.Minute
)

// runTxns is a run with transactions.
func runTxns(ctx context.Context, o *options, steps []step) (err error) {
	name := fmt.Sprintf("chaos-txn-%d", time.Now().Unix())
	w := &txnLoad{
		o: o, topics: []string{name + "-narrow", name + "-wide"}, copies: name + "-copies", l: newLedger(),
		txns: &txnLedger{fates: map[string]txnFate{}},
	}
	if err := w.createTopics(ctx); err != nil {
		return err
	}
	var lost *cuts
	if o.cut > 0 {
		if lost, err = startCuts(ctx, o.cut); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lost.close()) }()
	}
	w.start(ctx)
	faultErr := inject(ctx, o, steps, w.l)
	fmt.Fprintln(os.Stderr, "chaos: stopping writers")
	w.stop()
	w.work.Wait()
	r, err := w.verify(ctx)
	w.end()
	w.etl.Wait()
	if err != nil {
		return errors.Join(faultErr, err)
	}
	if r.Topics, r.Faults = w.topics, w.l.faults; lost != nil {
		r.CutBefore, r.CutAfter = lost.before.Load(), lost.after.Load()
	}
	if o.out == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		r.print(os.Stdout)
	}
	if !r.clean() {
		err = errors.Join(err, errors.New("records of transactions were lost, doubled, torn or leaked"))
	}
	return errors.Join(faultErr, err)
}

// verify waits until nothing is open any more, reads all topics and compares.
func (w *txnLoad) verify(ctx context.Context) (*txnResult, error) {
	in := map[string]int{}
	for _, topic := range w.topics {
		ends, err := w.quiet(ctx, topic)
		if err != nil {
			return nil, err
		}
		if err := w.read(ctx, topic, ends, in); err != nil {
			return nil, err
		}
	}
	r := w.txns.compare(in)
	out, err := w.readCopies(ctx, len(in))
	if err != nil {
		return nil, err
	}
	r.compareEtl(in, out)
	return r, nil
}

// quiet waits until a topic's last stable offsets are its ends, and gives them.
func (w *txnLoad) quiet(ctx context.Context, topic string) (map[int32]int64, error) {
	cl, err := kgo.NewClient(w.seeds())
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	for began := time.Now(); ; {
		ends, err := endOffsets(ctx, cl, topic)
		if err != nil {
			return nil, err
		}
		stable, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
		if err != nil {
			return nil, fmt.Errorf("list last stable offsets: %w", err)
		}
		open := 0
		stable.Each(func(o kadm.ListedOffset) {
			if o.Offset != ends[o.Partition] {
				open++
			}
		})
		if open == 0 {
			return ends, nil
		}
		if time.Since(began) > quietLimit {
			return nil, fmt.Errorf("%s: transactions are open in %d partitions %s after the writers ended", topic, open, quietLimit)
		}
		if err := rest(ctx, quietPoll); err != nil {
			return nil, err
		}
	}
}

// read reads a topic up to ends as a read_committed reader, and counts how often each value came.
func (w *txnLoad) read(ctx context.Context, topic string, ends map[int32]int64, seen map[string]int) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	at, left := map[int32]kgo.Offset{}, map[int32]int64{}
	for p, end := range ends {
		if end > 0 {
			at[p], left[p] = kgo.NewOffset().AtStart(), end
		}
	}
	cl, err := kgo.NewClient(w.seeds(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}), kgo.KeepControlRecords(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return err
	}
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read %s: the ends of %d partitions do not come: %w", topic, len(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, reading := left[r.Partition]
			if !reading || r.Offset >= end {
				return
			}
			if r.Offset == end-1 { // a marker: everything here is in transactions
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				seen[string(r.Value)]++
			}
		})
	}
	return nil
}

// readCopies reads the copies until there are as many as were to be made, and then what comes after them.
func (w *txnLoad) readCopies(ctx context.Context, want int) (map[string]int, error) {
	for began := time.Now(); ; {
		out := map[string]int{}
		ends, err := w.quiet(ctx, w.copies)
		if err == nil {
			err = w.read(ctx, w.copies, ends, out)
		}
		if err != nil {
			return nil, err
		}
		if len(out) < want && time.Since(began) < copyLimit {
			continue
		}
		return out, nil
	}
}
