package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParseReset(t *testing.T) {
	for text, want := range map[string]resetTarget{
		"earliest": {toEarliest, 0}, "latest": {toLatest, 0}, "17": {toOffset, 17}, "+5": {toShift, 5}, "-5": {toShift, -5},
		"@1700000000000": {toTime, 1700000000000}, "2023-11-14T22:13:20Z": {toTime, 1700000000000},
	} {
		if got, err := parseReset(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	var usage *usageError
	for _, text := range []string{"", "soon", "@x", "1.5"} {
		if _, err := parseReset(text); !errors.As(err, &usage) {
			t.Errorf("%q: %v, want a usage error", text, err)
		}
	}
	for _, c := range []struct {
		target          resetTarget
		from, at, wants int64
	}{
		{resetTarget{toEarliest, 0}, 50, 0, 10}, {resetTarget{toLatest, 0}, 50, 0, 100}, {resetTarget{toOffset, 5}, 50, 0, 10},
		{resetTarget{toOffset, 500}, 50, 0, 100}, {resetTarget{toShift, -7}, 50, 0, 43}, {resetTarget{toShift, 7}, -1, 0, 17},
		{resetTarget{toTime, 1}, 50, 33, 33}, {resetTarget{toTime, 1}, 50, -1, 100},
	} {
		if got := c.target.offset(c.from, 10, 100, c.at); got != c.wants {
			t.Errorf("%+v from %d: %d, want %d", c.target, c.from, got, c.wants)
		}
	}
}

func TestGroupCommands(t *testing.T) {
	s := dev(t, t.TempDir(), "--group-initial-rebalance-delay=0s")
	mustSkein(t, strings.NewReader(numbered("a", 20)), s.flags("produce", "t")...)
	describe := func() (g groupDescription) {
		t.Helper()
		if err := json.Unmarshal([]byte(mustSkein(t, nil, s.flags("group", "describe", "g", "-o", "json")...)), &g); err != nil {
			t.Fatal(err)
		}
		return g
	}
	if code, _, stderr := skein(t, nil, s.flags("group", "describe", "g")...); code != exitFailed || !strings.Contains(stderr, "GROUP_ID_NOT_FOUND") {
		t.Errorf("describe of no group: exit %d, %q", code, stderr)
	}
	plan := mustSkein(t, nil, s.flags("group", "reset", "g", "--topic", "t", "--to", "5", "--dry-run")...)
	if !strings.Contains(plan, "t      0          -     5") {
		t.Errorf("plan:\n%s", plan)
	}
	if list := mustSkein(t, nil, s.flags("group", "list")...); strings.Contains(list, "g ") {
		t.Errorf("a dry run made a group:\n%s", list)
	}
	mustSkein(t, nil, s.flags("group", "reset", "g", "--topic", "t:0", "--to", "5")...)
	if g := describe(); g.State != "Empty" || g.Lag != 15 || len(g.Partitions) != 1 || g.Partitions[0].Committed != 5 {
		t.Errorf("after a reset: %+v", g)
	}
	mustSkein(t, nil, s.flags("group", "reset", "g", "--topic", "t", "--to=-2")...)
	if g := describe(); g.Lag != 17 {
		t.Errorf("after a shift: %+v", g)
	}
	if list := mustSkein(t, nil, s.flags("group", "list", "-o", "json")...); !strings.Contains(list, `"name": "g"`) {
		t.Errorf("list:\n%s", list)
	}
	mustSkein(t, nil, s.flags("group", "delete", "g")...)
	if code, _, stderr := skein(t, nil, s.flags("group", "delete", "g")...); code != exitFailed || !strings.Contains(stderr, "GROUP_ID_NOT_FOUND") {
		t.Errorf("delete of no group: exit %d, %q", code, stderr)
	}
	if code, _, _ := skein(t, nil, s.flags("group", "reset", "g", "--topic", "t")...); code != exitUsage {
		t.Errorf("reset without --to: exit %d", code)
	}
}
