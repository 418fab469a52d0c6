package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
)

// locatedOf makes an extent from "records:length" of its batches, a '-' before those that were not accepted.
func locatedOf(base metadata.Offset, batches ...string) metadata.Located {
	l := metadata.Located{Object: "o", Base: base, End: base}
	for _, s := range batches {
		b := metadata.Batch{Flags: metadata.FlagAccepted}
		if strings.HasPrefix(s, "-") {
			b.Flags, s = 0, s[1:]
		}
		if _, err := fmt.Sscanf(s, "%d:%d", &b.Records, &b.Length); err != nil {
			panic(err)
		}
		if b.Flags != 0 {
			l.End += metadata.Offset(b.Records)
		}
		l.RawLength += int64(b.Length)
		l.Batches = append(l.Batches, b)
	}
	return l
}

func TestPickBatches(t *testing.T) {
	two := []metadata.Located{locatedOf(10, "5:100", "5:200"), locatedOf(20, "10:300")}
	dup := []metadata.Located{locatedOf(0, "-3:100", "2:100", "-2:150", "4:200")}
	for _, tt := range []struct {
		name          string
		in            []metadata.Located
		offset, limit metadata.Offset
		max           int
		one           bool
		want          string // of each pick: from-to position base bytes
	}{
		{"all", two, 10, 30, 1000, true, "0-2@0 10 300, 0-1@0 20 300"},
		{"inside a batch", two, 12, 30, 1000, true, "0-2@0 10 300, 0-1@0 20 300"},
		{"second batch", two, 15, 30, 1000, true, "1-2@100 15 200, 0-1@0 20 300"},
		{"last offset of an extent", two, 19, 30, 1000, true, "1-2@100 15 200, 0-1@0 20 300"},
		{"exactly full", two, 10, 30, 300, true, "0-2@0 10 300"},
		{"no half batches", two, 10, 30, 299, true, "0-1@0 10 100"},
		{"one over the maximum", two, 10, 30, 1, true, "0-1@0 10 100"},
		{"none over the maximum", two, 10, 30, 99, false, ""},
		{"no room", two, 10, 30, 0, false, ""},
		{"up to the limit", two, 10, 15, 1000, true, "0-1@0 10 100"},
		{"limit at an extent", two, 10, 20, 1000, true, "0-2@0 10 300"},
		{"nothing below the limit", two, 10, 10, 1000, true, ""},
		{"a hole before", two, 3, 30, 100, true, "0-1@0 10 100"},
		{"not accepted ones left out", dup, 0, 6, 1000, true, "1-4@100 0 300"},
		{"not accepted ones before the offset", dup, 2, 6, 1000, true, "3-4@350 2 200"},
		{"not accepted ones take no room", dup, 0, 6, 300, true, "1-4@100 0 300"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			picks, err := pickBatches(tt.in, tt.offset, tt.limit, tt.max, tt.one)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, k := range picks {
				got = append(got, fmt.Sprintf("%d-%d@%d %d %d", k.from, k.to, k.position, k.base, k.bytes))
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func TestPickBatchesErrors(t *testing.T) {
	lies := locatedOf(20, "10:300")
	lies.RawLength++
	tiny := locatedOf(20, "10:60")
	for _, tt := range []struct {
		name string
		bad  metadata.Located
		want error
	}{{"lengths", lies, cache.ErrCorrupt}, {"tiny", tiny, cache.ErrCorrupt}} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := pickBatches([]metadata.Located{tt.bad}, 20, 30, 1000, true); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			picks, err := pickBatches([]metadata.Located{locatedOf(10, "10:100"), tt.bad}, 10, 30, 1000, true)
			if !errors.Is(err, tt.want) || len(picks) != 1 {
				t.Errorf("got %d picks and %v, want what comes before and %v", len(picks), err, tt.want)
			}
		})
	}
}
