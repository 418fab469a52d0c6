package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	errAway  = errors.New("away")
	errWrong = errors.New("wrong credential")
)

func isAway(err error) bool { return errors.Is(err, errAway) }

func TestUntilReachedWaitsEverLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		var waits []time.Duration
		var reasons []string
		last := time.Now()
		err := untilReached(t.Context(), log, "database", func(err error) { reasons = append(reasons, err.Error()) }, isAway,
			func(context.Context) error {
				waits = append(waits, time.Since(last))
				last = time.Now()
				if len(waits) < 8 {
					return errAway
				}
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		want := []time.Duration{0, 250, 500, 1000, 2000, 4000, 5000, 5000}
		for i := range want {
			if waits[i] != want[i]*time.Millisecond {
				t.Errorf("wait %d is %v, want %v ms", i, waits[i], want[i])
			}
		}
		if len(reasons) != 7 || reasons[0] != "waiting for the database: away" {
			t.Errorf("reasons are %q", reasons)
		}
	})
}

func TestUntilReachedGivesUp(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	never := func(error) {}
	err := untilReached(t.Context(), log, "bucket", never, isAway, func(context.Context) error { return errWrong })
	if !errors.Is(err, errWrong) || !strings.HasPrefix(err.Error(), "bucket: ") {
		t.Errorf("for good: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err = untilReached(ctx, log, "bucket", func(error) { cancel(errInterrupted) }, isAway, func(context.Context) error { return errAway })
	if !errors.Is(err, errInterrupted) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestProgressIsForTerminals(t *testing.T) {
	for _, tty := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			s := showProgress(&process{stderr: &out, stderrTTY: tty}, func() string { return "half" })
			time.Sleep(2500 * time.Millisecond) // synctest's clock
			s.end()
			if got := strings.Count(out.String(), "half"); tty && got != 2 || !tty && out.Len() > 0 {
				t.Errorf("terminal %v: %q", tty, out.String())
			}
		})
	}
}
