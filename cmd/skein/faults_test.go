package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/skeinio/skein/internal/testenv"
)

// deafAddress gives an address where connections are taken and nothing ever answers.
func deafAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
		}
		for _, c := range open {
			c.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		accepting.Wait()
	})
	return l.Addr().String()
}

// TestClientCommandsEndWithoutAnAgent: whatever is wrong with the way to the agents, every command says so in one line.
func TestClientCommandsEndWithoutAnAgent(t *testing.T) {
	elsewhere := start(t, nil, agentFlags("sqlite:"+t.TempDir()+"/metadata.db", "mem:")...) // it advertises 127.0.0.1:1
	elsewhere.ready(t)
	places := []struct{ name, address, want string }{
		{"nobody listens", testenv.FreeAddress(t), "no agent answers at"},
		{"nobody answers", deafAddress(t), "no agent answers at"},
		{"nobody at the advertised address", elsewhere.kafka, "but none where the agents tell clients to connect"},
	}
	commands := []string{
		"topic list", "topic describe", "topic create t", "topic alter t -c retention.ms=1", "topic delete t",
		"group list", "group describe g", "group delete g", "group reset g --topic t --to earliest",
		"produce t", "consume t", "consume t --exit-at-end", "consume t -g g",
		"bench produce --duration 1s", "bench consume", "bench replay", "bench latency --duration 1s",
	}
	var all sync.WaitGroup // at once, not one after the other: each waits for its timeout
	for _, p := range places {
		for _, c := range commands {
			all.Go(func() {
				code, stdout, stderr := skein(t, strings.NewReader("line\n"), append(strings.Fields(c), "--bootstrap", p.address)...)
				if code != exitFailed || stdout != "" || !strings.Contains(stderr, p.want) || strings.Count(stderr, "\n") != 1 {
					t.Errorf("%s, %s: exit %d, output %q, %q; want exit 1 and one line with %q", c, p.name, code, stdout, stderr, p.want)
				}
			})
		}
	}
	all.Wait()
}

// corrupt turns a byte of a partition's extent in an object of the folder bucket that has one, and gives the object's key.
func corrupt(t *testing.T, dir string, partition int32) string {
	t.Helper()
	for _, key := range objectsIn(t, dir) {
		var dump struct {
			Extents []struct {
				Partition int32 `json:"partition"`
				Position  int   `json:"position"`
			} `json:"extents"`
		}
		decode(t, mustSkein(t, nil, "segment", "dump", "file://"+dir, key, "-o", "json"), &dump)
		for _, x := range dump.Extents {
			if x.Partition == partition {
				turnByte(t, filepath.Join(dir, filepath.FromSlash(key)), x.Position+10)
				return key
			}
		}
	}
	t.Fatalf("no object has an extent of partition %d", partition)
	return ""
}

// objectsIn gives the keys of a folder bucket.
func objectsIn(t *testing.T, dir string) []string {
	t.Helper()
	var keys []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			key, relErr := filepath.Rel(dir, path)
			keys, err = append(keys, filepath.ToSlash(key)), relErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestCorruptObject turns a byte of a segment: who reads that partition gets CORRUPT_MESSAGE, and the log names the object and
// the range; all others go on, and so does writing.
func TestCorruptObject(t *testing.T) {
	data := t.TempDir()
	s := dev(t, data, "--inline-max-bytes=0")
	s.after.damaged = true
	mustSkein(t, nil, s.flags("topic", "create", "t", "-p", "3")...)
	const each = 500
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var records []*kgo.Record
	for i := range 3 * each {
		records = append(records, &kgo.Record{Partition: int32(i % 3), Value: fmt.Appendf(nil, "record %d", i)})
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if code := s.end(t, syscall.SIGTERM); code != exitOK { // its cache goes with it
		t.Fatalf("SIGTERM: exit %d", code)
	}
	key := corrupt(t, filepath.Join(data, "bucket"), 1)

	s = dev(t, data)
	first := kgo.NewOffset().AtStart()
	reader, err := kgo.NewClient(kgo.SeedBrokers(s.kafka), kgo.KeepRetryableFetchErrors(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: first, 1: first, 2: first}}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	counts, failure := map[int32]int{}, error(nil)
	for counts[0] < each || counts[2] < each || failure == nil {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("records by partition %v, error of partition 1: %v", counts, failure)
		}
		fetches.EachRecord(func(r *kgo.Record) { counts[r.Partition]++ })
		fetches.EachError(func(_ string, partition int32, err error) {
			if failure = err; partition != 1 || !errors.Is(err, kerr.CorruptMessage) {
				t.Fatalf("partition %d: %v, want CORRUPT_MESSAGE of partition 1 alone", partition, err)
			}
		})
	}
	if counts[1] > 0 {
		t.Errorf("%d records came from the corrupt extent", counts[1])
	}
	s.await(t, regexp.MustCompile(`level=ERROR.*`+regexp.QuoteMeta(key)+`.*\d+`))
	mustSkein(t, strings.NewReader("more\n"), s.flags("produce", "t", "--partition", "1")...)
	if got := mustSkein(t, nil, s.flags("consume", "t", "-p", "1", "--from", strconv.Itoa(each), "--exit-at-end")...); got != "more\n" {
		t.Errorf("behind the corrupt extent: %q", got)
	}
}
