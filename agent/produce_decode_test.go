package agent

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// sameProduce compares a decoded request with kmsg's reading of the same bytes.
func sameProduce(t *testing.T, got *produceRequest, want *kmsg.ProduceRequest) {
	t.Helper()
	if (got.transactionalID == nil) != (want.TransactionID == nil) ||
		(got.transactionalID != nil && *got.transactionalID != *want.TransactionID) {
		t.Fatalf("transactional id %v, want %v", got.transactionalID, want.TransactionID)
	}
	if got.acks != want.Acks || got.timeoutMillis != want.TimeoutMillis || len(got.topics) != len(want.Topics) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	next := 0
	for i, topic := range want.Topics {
		g := got.topics[i]
		if g.name != topic.Topic && want.Version < produceTopicIDs || g.count != len(topic.Partitions) {
			t.Fatalf("topic %d: got %+v, want %+v", i, g, topic)
		}
		if want.Version >= produceTopicIDs && g.id != topic.TopicID {
			t.Fatalf("topic %d: id %v, want %v", i, g.id, topic.TopicID)
		}
		for _, p := range topic.Partitions {
			x := got.partitions[next]
			next++
			if x.index != p.Partition || (x.records == nil) != (p.Records == nil) || !bytes.Equal(x.records, p.Records) {
				t.Fatalf("partition: got %+v, want %+v", x, p)
			}
		}
	}
	if next != len(got.partitions) {
		t.Fatalf("%d partitions, want %d", len(got.partitions), next)
	}
}

func TestDecodeProduce(t *testing.T) {
	for version := int16(3); version <= 13; version++ {
		rng := rand.New(rand.NewPCG(1, uint64(version)))
		for range 200 {
			req := randomRequest(rng, keyProduce, version).(*kmsg.ProduceRequest)
			b := req.AppendTo(nil)
			want := kmsg.NewPtrProduceRequest()
			want.SetVersion(version)
			if err := want.ReadFrom(b); err != nil {
				t.Fatal(err)
			}
			size, err := measureProduce(b, version)
			if err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			got, err := decodeProduce(b, version, size)
			if err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			sameProduce(t, got, want)
			for n := range b {
				if _, err := measureProduce(b[:n], version); err == nil {
					t.Fatalf("version %d: %d of %d bytes pass", version, n, len(b))
				}
			}
		}
	}
}

// TestMeasureProduceAllocatesNothing: the walk comes before memory is asked for.
func TestMeasureProduceAllocatesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b := randomRequest(rng, keyProduce, 11).AppendTo(nil)
	if n := testing.AllocsPerRun(100, func() { _, _ = measureProduce(b, 11) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestDecodedRecordsAreTheFrames: no copy is made of them.
func TestDecodedRecordsAreTheFrames(t *testing.T) {
	records := []byte("not really records")
	b := produceOf("t", 0, -1, records).AppendTo(nil)
	size, err := measureProduce(b, 9)
	if err != nil {
		t.Fatal(err)
	}
	req, err := decodeProduce(b, 9, size)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, records)] = 'N'
	if got := string(req.partitions[0].records); got != "Not really records" {
		t.Errorf("records are %q", got)
	}
}

func FuzzDecodeProduce(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for version := int16(3); version <= 13; version++ {
		for range 3 {
			f.Add(version, randomRequest(rng, keyProduce, version).AppendTo(nil))
		}
	}
	f.Fuzz(func(t *testing.T, version int16, b []byte) {
		if version < 3 || version > 13 {
			return
		}
		size, err := measureProduce(b, version)
		if err != nil {
			return
		}
		if size.topics+size.partitions > len(b) {
			t.Fatalf("%d bytes hold %+v", len(b), size)
		}
		got, err := decodeProduce(b, version, size)
		if err != nil {
			t.Fatal(err)
		}
		want := kmsg.NewPtrProduceRequest()
		want.SetVersion(version)
		if err := want.ReadFrom(b); err != nil {
			return // a null where kmsg wants none
		}
		sameProduce(t, got, want)
	})
}

// FuzzFrame: a request as it comes from the network, up to its decoded message.
func FuzzFrame(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	s, err := New(Config{Listen: "none"}, Deps{})
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range s.table {
		f.Add(frameOf(randomRequest(rng, a.key, a.max), 1))
		f.Add(frameOf(randomRequest(rng, a.key, max(a.min, a.refuseBelow)), 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeadBytes {
			return
		}
		h, err := parseFrameHead(b)
		if err != nil {
			return
		}
		a, err := s.checkFrame(h)
		if err != nil || !a.serves(h.version) {
			return
		}
		r := &request{key: h.key, version: h.version, frame: b[4:], api: a}
		if err := r.parseHeader(a.flexible(h.version)); err != nil || a.schema == nil {
			return
		}
		message := r.frame[r.body:]
		if used, _, err := a.schema.check(message, r.version); err == nil {
			_ = r.decode(message[:used]) // refuses or not, but neither panics nor hangs
		}
	})
}
