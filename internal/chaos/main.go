// Command chaos puts steady idempotent load of several clients on a cluster of `make up`, kills, freezes, drains and adds
// agents and stops or freezes the stores meanwhile, then reads everything back and counts what was lost, doubled or put
// out of order: all three must be zero. `make chaos` runs it.
//
// With -load txn the load is transactional writers of both protocols, and sessions that copy what they commit; connections
// to the database may be lost at COMMIT too. Every committed record must be there once, no aborted one, every transaction
// whole or not at all.
//
// It writes its report to stdout and exits 1 when a count is not zero.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	bootstrap  string
	scenario   string
	load       string
	cut        int64
	seed       uint64
	clients    string
	partitions int
	producers  int
	rate       int
	bytes      int
	freeze     time.Duration
	settle     time.Duration
	groups     int
	python     string
	out        string
}

func parse() *options {
	o := &options{}
	flag.StringVar(&o.bootstrap, "bootstrap", "127.0.0.1:19092", "agents, comma-separated")
	flag.StringVar(&o.scenario, "scenario", "agents", "faults: "+strings.Join(scenarioNames(), ", ")+"; "+groupScenario+" has a load of its own")
	flag.StringVar(&o.load, "load", "records", "records, or txn: transactions")
	flag.Int64Var(&o.cut, "cut", 0, "with -load txn: one of so many commits loses its connection to the database; 0: none")
	flag.Uint64Var(&o.seed, "seed", 1, "of what the transactional writers do")
	flag.StringVar(&o.clients, "clients", "franz", "who produces and consumes: franz,java,python,kcat")
	flag.IntVar(&o.partitions, "partitions", 12, "of the topic")
	flag.IntVar(&o.producers, "producers", 4, "franz-go producers")
	flag.IntVar(&o.rate, "rate", 300, "records per second and producer")
	flag.IntVar(&o.bytes, "bytes", 200, "bytes of a record")
	flag.DurationVar(&o.freeze, "freeze", time.Minute, "how long an agent is stopped with SIGSTOP")
	flag.DurationVar(&o.settle, "settle", 10*time.Second, "between faults")
	flag.IntVar(&o.groups, "groups", 20, "consumer groups of five members, in the scenario "+groupScenario)
	flag.StringVar(&o.python, "python", "python3", "a Python that has confluent-kafka")
	flag.StringVar(&o.out, "o", "table", "table or json")
	flag.Parse()
	return o
}

func run() error {
	o := parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.scenario == groupScenario {
		return runGroups(ctx, o)
	}
	steps, err := scenario(o)
	if err != nil {
		return err
	}
	switch o.load {
	case "records":
	case "txn":
		return runTxns(ctx, o, steps)
	default:
		return fmt.Errorf("unknown load %q; want records or txn", o.load)
	}
	topic := fmt.Sprintf("chaos-%d", time.Now().Unix())
	if err := createTopic(ctx, o, topic); err != nil {
		return err
	}
	l := newLedger()
	w, err := startLoad(ctx, o, topic, l)
	if err != nil {
		return err
	}
	faultErr := inject(ctx, o, steps, l)
	fmt.Fprintln(os.Stderr, "chaos: stopping producers")
	if err := w.stopProducers(); err != nil {
		w.kill()
		return errors.Join(faultErr, err)
	}
	r, err := verify(ctx, o, topic, l)
	if err != nil {
		w.kill()
		return err
	}
	w.awaitConsumers(ctx, r.ends)
	w.kill()
	l.report(r)
	if o.out == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		r.print(os.Stdout)
	}
	if !r.clean() {
		err = errors.Join(err, errors.New("records were lost, doubled, out of order or refused"))
	}
	return errors.Join(faultErr, err)
}
