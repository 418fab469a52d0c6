package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// step is one fault. After do, and what it undoes, every producer must get on.
type step struct {
	name string
	do   func(ctx context.Context) error
	// undo is run after hold; nil: nothing is to be undone.
	hold time.Duration
	undo func(ctx context.Context) error
}

const (
	// storeFreeze is how long a store is frozen or down: longer than most timeouts, shorter than those of a produce.
	storeFreeze = 20 * time.Second
	// recoveryLimit is how long after a fault every producer must have had an acknowledgement.
	recoveryLimit = 3 * time.Minute
	recoveryPoll  = 20 * time.Millisecond
)

func scenarioNames() []string { return []string{"none", "kill", "agents", "stores", "all"} }

// scenario gives the steps.
func scenario(o *options) ([]step, error) {
	agents := []step{
		{name: "kill -9 agent-1", do: signal9("agent-1"), hold: 3 * time.Second, undo: launch("agent-1")},
		{name: "SIGSTOP agent-2 for " + o.freeze.String(), do: each(syscall.SIGSTOP, "agent-2"), hold: o.freeze, undo: each(syscall.SIGCONT, "agent-2")},
		{name: "drain agent-3", do: script("scripts/down.sh", "agent-3"), hold: 3 * time.Second, undo: launch("agent-3")},
		{name: "add agent-4", do: launch("agent-4")},
		{name: "kill -9 agents 1 to 3 in turn", do: rolling(signal9)},
		{name: "roll agents 1 to 3", do: rolling(func(a string) func(context.Context) error { return script("scripts/down.sh", a) })},
	}
	stores := []step{
		{name: "restart Postgres", do: script("scripts/down.sh", "postgres"), undo: launch("postgres")},
		{name: "kill -9 Postgres", do: each(syscall.SIGKILL, "postgres"), hold: time.Second, undo: launch("postgres")},
		{name: "freeze Postgres for " + storeFreeze.String(), do: each(syscall.SIGSTOP, "postgres"), hold: storeFreeze, undo: each(syscall.SIGCONT, "postgres")},
		{name: "restart MinIO", do: script("scripts/down.sh", "minio"), undo: launch("minio")},
		{name: "kill -9 MinIO", do: each(syscall.SIGKILL, "minio"), hold: storeFreeze, undo: launch("minio")},
		{name: "freeze MinIO for " + storeFreeze.String(), do: each(syscall.SIGSTOP, "minio"), hold: storeFreeze, undo: each(syscall.SIGCONT, "minio")},
	}
	switch o.scenario {
	case "none":
		return []step{{name: "nothing", do: func(context.Context) error { return nil }}}, nil
	case "kill":
		return agents[:1], nil
	case "agents":
		return agents, nil
	case "stores":
		return stores, nil
	case "all":
		return slices.Concat(agents, stores), nil
	}
	return nil, fmt.Errorf("unknown scenario %q; want one of %s", o.scenario, strings.Join(scenarioNames(), ", "))
}

// inject runs the steps, with rest between them.
func inject(ctx context.Context, o *options, steps []step, l *ledger) error {
	l.begin("start")
	if err := rest(ctx, o.settle); err != nil {
		return err
	}
	for _, s := range steps {
		began := l.begin(s.name)
		fmt.Fprintf(os.Stderr, "chaos: %s\n", s.name)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := rest(ctx, s.hold); err != nil {
			return err
		}
		if s.undo != nil {
			if err := s.undo(ctx); err != nil {
				return fmt.Errorf("after %s: %w", s.name, err)
			}
		}
		if err := awaitRecovery(ctx, l, began, time.Now()); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := rest(ctx, o.settle); err != nil {
			return err
		}
	}
	return nil
}

// awaitRecovery waits until every producer got an acknowledgement after the fault was over.
func awaitRecovery(ctx context.Context, l *ledger, began, over time.Time) error {
	for !l.slowest().After(over) {
		if time.Since(over) > recoveryLimit {
			return fmt.Errorf("a producer got nothing acknowledged for %s after it was over", recoveryLimit)
		}
		if err := rest(ctx, recoveryPoll); err != nil {
			return err
		}
	}
	l.recovered(over.Sub(began), time.Since(over))
	return nil
}

func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func script(args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
}

func launch(name string) func(context.Context) error { return script("scripts/up.sh", "start", name) }

func signal9(name string) func(context.Context) error { return each(syscall.SIGKILL, name) }

// rolling does something to each agent and starts it again before it comes to the next.
func rolling(do func(agent string) func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, a := range []string{"agent-1", "agent-2", "agent-3"} {
			if err := do(a)(ctx); err != nil {
				return err
			}
			if err := launch(a)(ctx); err != nil {
				return err
			}
			if err := rest(ctx, 3*time.Second); err != nil {
				return err
			}
		}
		return nil
	}
}

// each sends a signal to a process of the topology and all its children: Postgres has many.
func each(sig syscall.Signal, name string) func(context.Context) error {
	return func(context.Context) error {
		b, err := os.ReadFile(".skein-up/" + name + ".pid")
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return fmt.Errorf("%s.pid: %w", name, err)
		}
		if err := syscall.Kill(pid, sig); err != nil {
			return fmt.Errorf("signal %s: %w", name, err)
		}
		kids, err := children(pid)
		if err != nil {
			return err
		}
		for _, kid := range kids {
			if err := syscall.Kill(kid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal a child of %s: %w", name, err)
			}
		}
		return nil
	}
}

// children are the processes whose parent is pid.
func children(pid int) (kids []int, err error) {
	lists, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // killed, and so gone
	}
	if err != nil {
		return nil, err
	}
	for _, task := range lists {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			kid, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			kids = append(kids, kid)
		}
	}
	return kids, nil
}
