package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1024": 1024, "8MiB": 8 << 20, "8 MiB": 8 << 20, "64kib": 64 << 10, "1.5GiB": 3 << 29, "500MB": 500e6, "7B": 7, "1TiB": 1 << 40,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "8M", "-1", "-1MiB", "1.5", "1e3MiB", "MiB", "0x10", "99999999TiB", "NaNMiB", "8MiBs", "1_0MiB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 1000: "1000", 1024: "1KiB", 8 << 20: "8MiB", 8<<20 + 1: "8388609", 3 << 29: "1536MiB"} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "250ms": 250 * time.Millisecond, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "-1s", "d", "1.5d", "-2d", "s"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", text, got)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"linger", "listen", "put-budget", "commit-budget", "zone"}
	for name, want := range map[string]string{"lingr": "linger", "put_budget": "put-budget", "put-bugdet": "put-budget", "xyzzy": "", "zoen": "zone"} {
		if got := nearest(name, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParseDatabaseURL(t *testing.T) {
	for text, want := range map[string]string{
		"sqlite:///a/b.db":              "sqlite:///a/b.db",
		"sqlite:/a/b.db":                "sqlite:///a/b.db",
		"postgres://u:p@h:5432/d?x=1":   "postgres://u:xxxxx@h:5432/d?x=1",
		"postgresql://u@h/d?password=p": "postgresql://u@h/d?password=xxxxx",
	} {
		if got, err := parseDatabaseURL(text); err != nil || got.String() != want {
			t.Errorf("parseDatabaseURL(%q) = %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x.db", "sqlite:", "sqlite://host/x.db", "sqlite:///dir/", "sqlite:x.db?mode=memory", "sqlite::memory:", "mysql://h/d", "postgres:h", "postgres://u:p@h:port/d"} {
		if got, err := parseDatabaseURL(text); err == nil {
			t.Errorf("parseDatabaseURL(%q) = %v, want an error", text, got)
		}
	}
}

func TestParseStart(t *testing.T) {
	for text, want := range map[string]startPoint{
		"earliest": {kind: startEarliest}, "latest": {kind: startLatest}, "42": {startOffset, 42}, "-5": {startBeforeEnd, 5},
		"1700000000000": {startTime, 1700000000000}, "@5": {startTime, 5}, "2026-01-02T03:04:05Z": {startTime, 1767323045000},
		"2026-01-02T03:04:05.25+01:00": {startTime, 1767319445250},
	} {
		if got, err := parseStart(text); err != nil || got != want {
			t.Errorf("parseStart(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "yesterday", "@-1", "1.5", "2026-13-01"} {
		if got, err := parseStart(text); err == nil {
			t.Errorf("parseStart(%q) = %v, want an error", text, got)
		}
	}
}

func TestFormat(t *testing.T) {
	r := &kgo.Record{
		Topic: "t", Partition: 3, Offset: 7, Key: []byte("k"), Value: []byte("value"), Timestamp: time.UnixMilli(1234),
		Headers: []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}},
	}
	for text, want := range map[string]string{
		defaultFormat: "value\n", `%t/%p@%o %k=%s %T [%h] %K %S%%\t\x41\\\0`: "t/3@7 k=value 1234 [a=1,b=2] 1 5%\tA\\\x00", `%R`: "\x00\x00\x00\x05",
	} {
		f, err := parseFormat(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.append(nil, r)); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
	null, err := parseFormat(`%s%S%k%K%R`)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(null.append(nil, &kgo.Record{})); got != "-1-1\xff\xff\xff\xff" {
		t.Errorf("nulls give %q", got)
	}
	for _, text := range []string{"%", "%q", `\`, `\q`, `\x4`, `\xzz`} {
		if _, err := parseFormat(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

// TestHistogram compares quantiles with those of the sorted values.
func TestHistogram(t *testing.T) {
	source := rand.New(rand.NewPCG(1, 2))
	var h histogram
	values := make([]time.Duration, 10_000)
	for i := range values {
		values[i] = time.Duration(source.ExpFloat64() * float64(5*time.Millisecond))
		h.add(values[i])
	}
	slices.Sort(values)
	for _, q := range []float64{0.01, 0.5, 0.99, 1} {
		want := values[int(q*float64(len(values)))-1]
		got := h.quantile(q)
		if got < want || float64(got) > float64(want)*1.02+1 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if h.largest() != values[len(values)-1] {
		t.Errorf("largest is %v, want %v", h.largest(), values[len(values)-1])
	}
	for v := range uint64(1 << 20) {
		if b := bucketOf(v); bucketTop(b) < v || b > 0 && bucketTop(b-1) >= v {
			t.Fatalf("%d is in bucket %d of %d to %d", v, b, bucketTop(b-1)+1, bucketTop(b))
		}
	}
}

func TestHistogramWithoutValues(t *testing.T) {
	var h histogram
	if got := h.quantile(0.99); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
	if got := bucketOf(1 << 63); got >= histogramBuckets {
		t.Errorf("bucket %d of %d", got, histogramBuckets)
	}
}

func TestMemTotal(t *testing.T) {
	for text, want := range map[string]int64{
		"MemTotal:       24683848 kB\nMemFree: 1 kB\n": 24683848 << 10, "MemFree: 1 kB\n": 0, "": 0, "MemTotal: x kB": 0,
	} {
		if got := memTotal([]byte(text)); got != want {
			t.Errorf("memTotal(%q) = %d, want %d", text, got, want)
		}
	}
}
