package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// contract checks that out is one JSON object with positive numbers under the keys, and gives it.
func contract(t *testing.T, out string, keys ...string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(out))
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if d.More() {
		t.Errorf("more than one object in %q", out)
	}
	for _, key := range keys {
		value := any(object)
		for part := range strings.SplitSeq(key, ".") {
			in, ok := value.(map[string]any)
			if !ok {
				t.Fatalf("%s: %v is no object", key, value)
			}
			value = in[part]
		}
		if n, ok := value.(float64); !ok || n <= 0 {
			t.Errorf("%s is %v in %s", key, value, out)
		}
	}
	return object
}

// TestBenchContracts runs every benchmark as scripts do.
func TestBenchContracts(t *testing.T) {
	s := dev(t, t.TempDir())
	quiet := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := skein(t, nil, args...)
		if code != exitOK || stderr != "" {
			t.Fatalf("skein %v: exit %d, %q", args, code, stderr)
		}
		return stdout
	}
	made := contract(t, quiet(s.flags("bench", "produce", "--topic", "b", "--partitions", "3", "--record-bytes", "1024", "--producers", "2",
		"--duration", "1s", "--rate", "2000", "--compression", "none", "--random", "-o", "json")...),
		"mib_per_second", "records_per_second", "p50_ms", "p99_ms", "records")
	if n, ok := made["errors"].(float64); !ok || n != 0 {
		t.Errorf("errors is %v", made["errors"])
	}
	if got := quiet(s.flags("topic", "describe", "b", "-o", "json")...); strings.Count(got, `"partition":`) != 3 {
		t.Errorf("the topic is not made with 3 partitions: %s", got)
	}
	for _, command := range []string{"consume", "replay"} {
		read := contract(t, quiet(s.flags("bench", command, "--topic", "b", "--consumers", "2", "--from", "earliest", "-o", "json")...),
			"mib_per_second", "records_per_second", "records")
		if read["records"] != made["records"] {
			t.Errorf("%s read %v records of %v", command, read["records"], made["records"])
		}
	}
	late := contract(t, quiet(s.flags("bench", "latency", "--topic", "l", "--rate", "200", "--record-bytes", "100", "--duration", "1s", "-o", "json")...),
		"produce.p50_ms", "produce.p99_ms", "produce.max_ms", "end_to_end.p50_ms", "end_to_end.p99_ms", "end_to_end.max_ms", "records")
	if late["records"] != late["received"] {
		t.Errorf("%v of %v records were received", late["received"], late["records"])
	}
	beats := contract(t, quiet(s.flags("bench", "groups", "--groups", "2", "--members", "6", "--interval", "100ms", "--duration", "500ms",
		"--commit-partitions", "20", "-o", "json")...), "heartbeats_per_second", "p50_ms", "p99_ms", "commit_p50_ms")
	if n, ok := beats["errors"].(float64); !ok || n != 0 {
		t.Errorf("%v heartbeats failed", beats["errors"])
	}
	contract(t, quiet("bench", "commit", "--metadata", "sqlite:"+t.TempDir()+"/m.db", "--partitions", "10", "--committers", "2",
		"--duration", "300ms", "-o", "json"), "partition_commits_per_second", "commits_per_second", "p50_ms", "p99_ms")
}

// TestBenchRate writes at a rate: no more than what is due within the duration, and one record more of each producer. A machine
// that stands still at the end leaves some of it out.
func TestBenchRate(t *testing.T) {
	s := dev(t, t.TempDir())
	got := contract(t, mustSkein(t, nil, s.flags("bench", "produce", "--topic", "b", "--producers", "3", "--duration", "2s", "--rate", "300", "-o", "json")...),
		"records")
	if n, ok := got["records"].(float64); !ok || n > 603 {
		t.Errorf("%v records in 2 s at 300 a second", got["records"])
	}
}

func TestBenchOfNothingExits1(t *testing.T) {
	s := dev(t, t.TempDir())
	mustSkein(t, nil, s.flags("topic", "create", "empty")...)
	code, _, stderr := skein(t, nil, s.flags("bench", "consume", "--topic", "empty")...)
	if code != exitFailed || !strings.Contains(stderr, "nothing to measure") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}
