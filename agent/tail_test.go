package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/testenv"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/metadata/postgres"
	"github.com/skeinio/skein/objstore"
)

// inlineReads is Postgres, with the reads of inline payloads counted.
type inlineReads struct {
	*postgres.Driver
	reads atomic.Int64
}

func (d *inlineReads) LoadInline(ctx context.Context, parts []metadata.InlinePart) ([][]byte, error) {
	d.reads.Add(1)
	return d.Driver.LoadInline(ctx, parts)
}

// TestTailReadsAcrossAgents: consumers wait at one agent for what is written through another. All of them get each record
// by the commit's wake-up, and their agent reads it once: by one GET, or from the database where it is inline. The agent
// that wrote it reads it no more often: never, unless a consumer of its own wakes before what was written is in the cache.
func TestTailReadsAcrossAgents(t *testing.T) {
	url := testenv.PostgresDatabase(t)
	open := func() *inlineReads {
		driver, err := postgres.Open(t.Context(), url, postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { driver.Close() })
		return &inlineReads{Driver: driver}
	}
	shared := objstore.NewMemory()
	writers, readers := open(), open()
	writerBucket, readerBucket := &countedBucket{Bucket: shared}, &countedBucket{Bucket: shared}
	w := wholeAgent(t, runStore(t, writers), writerBucket)
	r := wholeAgent(t, runStore(t, readers), readerBucket)
	w.createTopic("t", 1, nil)
	const consumers = 20
	conns := make([]*rawConn, consumers)
	for i := range conns {
		conns[i] = r.dial()
	}
	own, writer := w.dial(), see(w)
	for i, size := range []int{5000, 10, 3000, 20} { // an object, inline, an object, inline
		got := fetchAll(t, append(conns, own), int64(i))
		writer.mustProduce("t", 0, make([]byte, size), int64(i))
		for range consumers + 1 {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		objects, inline := (i+2)/2, (i+1)/2
		if n := readerBucket.count(); n != objects {
			t.Errorf("after %d records, %d of them objects: %d GETs for %d consumers", i+1, objects, n, consumers)
		}
		if n := readers.reads.Load(); n != int64(inline) {
			t.Errorf("after %d records, %d of them inline: %d reads of the database for %d consumers", i+1, inline, n, consumers)
		}
	}
	if gets, reads := writerBucket.count(), writers.reads.Load(); gets > 2 || reads > 2 {
		t.Errorf("the agent that wrote read %d objects and %d inline payloads", gets, reads)
	}
}

// fetchAll begins to wait for an offset on every connection; each one's outcome is sent.
func fetchAll(t *testing.T, conns []*rawConn, offset int64) <-chan error {
	t.Helper()
	got := make(chan error, len(conns))
	for _, c := range conns {
		req := fetchOne("t", [16]byte{}, 0, offset)
		req.SetVersion(11)
		c.send(req, int32(offset))
		go func() {
			resp := kmsg.NewPtrFetchResponse()
			resp.Version = 11
			if err := resp.ReadFrom(c.receiveFrame(int32(offset))); err != nil {
				got <- err
				return
			}
			p := part(resp, 0)
			if p.ErrorCode != codeNone || len(p.RecordBatches) == 0 {
				got <- fmt.Errorf("fetch of offset %d: %s, %d bytes", offset, codeName(p.ErrorCode), len(p.RecordBatches))
				return
			}
			got <- nil
		}()
	}
	return got
}
