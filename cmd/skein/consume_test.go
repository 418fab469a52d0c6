package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}

// TestConsumeFromATime reads from the time between two runs of records.
func TestConsumeFromATime(t *testing.T) {
	s := dev(t, t.TempDir())
	mustSkein(t, strings.NewReader(numbered("before", 20)), s.flags("produce", "t")...)
	last := mustSkein(t, nil, s.flags("consume", "t", "--from", "-1", "-n", "1", "-f", "%T")...)
	var after string
	for { // until a millisecond has passed on the clock that stamps the records
		mustSkein(t, strings.NewReader("after\n"), s.flags("produce", "t")...)
		if after = mustSkein(t, nil, s.flags("consume", "t", "--from", "-1", "-n", "1", "-f", "%T")...); after > last {
			break
		}
	}
	got := mustSkein(t, nil, s.flags("consume", "t", "--from", after, "--exit-at-end")...)
	if got != "after\n" {
		t.Errorf("from %s: %q", after, got)
	}
	if got := mustSkein(t, nil, s.flags("consume", "t", "--from", "2100-01-01", "--exit-at-end")...); got != "" {
		t.Errorf("from the future: %q", got)
	}
}

// TestSegmentCommands looks at what produce left in the bucket, and at what is left when a byte of it is turned.
func TestSegmentCommands(t *testing.T) {
	data := t.TempDir()
	s := dev(t, data, "--inline-max-bytes=0")
	s.after.damaged = true
	mustSkein(t, strings.NewReader(numbered("a", 100)), s.flags("produce", "t")...)
	bucket := "file://" + data + "/bucket"
	key := onlyObject(t, data+"/bucket")
	if got := mustSkein(t, nil, "segment", "verify", bucket, key, "--records"); !strings.Contains(got, "100 records, 0 problems") {
		t.Errorf("verified as %s", got)
	}
	var report verifyResult
	decode(t, mustSkein(t, nil, "segment", "verify", bucket, key, "-o", "json"), &report)
	if report.Records != 100 || report.Count != 0 || report.Extents != 1 {
		t.Errorf("verified as %+v", report)
	}
	contract(t, mustSkein(t, nil, "segment", "dump", bucket, key, "-o", "json"))
	turnByte(t, data+"/bucket/"+key, 40)
	code, _, stderr := skein(t, nil, "segment", "verify", bucket, key)
	if code != exitFailed || !strings.Contains(stderr, "problem") {
		t.Errorf("a turned byte: exit %d, %s", code, stderr)
	}
	code, _, stderr = skein(t, nil, "segment", "dump", bucket, "nowhere")
	if code != exitFailed || !strings.Contains(stderr, "no such object") {
		t.Errorf("missing object: exit %d, %s", code, stderr)
	}
}
