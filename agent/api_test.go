package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// TestEveryVersionIsAnswered asks every API in every version, with an empty request: the answer must decode, to its last
// byte, at that version.
func TestEveryVersionIsAnswered(t *testing.T) {
	ts := newTestServer(t)
	for _, a := range ts.table {
		c := ts.dial()
		for v := max(a.min, a.refuseBelow); v <= a.max; v++ {
			req := kmsg.RequestForKey(a.key)
			if d, ok := req.(interface{ Default() }); ok {
				d.Default()
			}
			if p, ok := req.(*kmsg.ProduceRequest); ok {
				p.Acks = -1
			}
			if av, ok := req.(*kmsg.ApiVersionsRequest); ok {
				av.ClientSoftwareName, av.ClientSoftwareVersion = "test", "1.0"
			}
			resp := ask[kmsg.Response](c, req, v)
			if resp.Key() != a.key {
				t.Fatalf("%s version %d: answered with a %T", a.name, v, resp)
			}
		}
	}
}

func TestApiVersions(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial()
	for v := int16(0); v <= 4; v++ {
		resp := ask[*kmsg.ApiVersionsResponse](c, apiVersionsRequest(), v)
		if resp.ErrorCode != 0 || len(resp.ApiKeys) != len(ts.table) {
			t.Fatalf("version %d: %+v", v, resp)
		}
		if !slices.IsSortedFunc(resp.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey - b.ApiKey) }) {
			t.Errorf("version %d: keys are not sorted", v)
		}
		if k := resp.ApiKeys[0]; k.ApiKey != 0 || k.MinVersion != 0 || k.MaxVersion != 13 {
			t.Errorf("version %d: Produce is %+v", v, k)
		}
	}
	for _, bad := range []string{"", "-a", "a-", ".", "a b", "a/b", "é"} {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "ok", bad
		if resp := ask[*kmsg.ApiVersionsResponse](c, req, 3); resp.ErrorCode != codeInvalidRequest {
			t.Errorf("software version %q: %+v", bad, resp)
		}
	}
}

func TestApiVersionsOfAnUnknownVersion(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial()
	for _, version := range []uint16{5, 99, 0x7fff, 0xffff} {
		// Neither the rest of the header nor the body is anything that could be read.
		frame := binary.BigEndian.AppendUint32(nil, 12)
		frame = binary.BigEndian.AppendUint16(frame, uint16(keyApiVersions))
		frame = binary.BigEndian.AppendUint16(frame, version)
		frame = binary.BigEndian.AppendUint32(frame, 42)
		c.sendBytes(append(frame, 0xff, 0xff, 0xff, 0xff))
		resp := kmsg.NewPtrApiVersionsResponse() // version 0
		if err := resp.ReadFrom(c.receiveFrame(42)); err != nil {
			t.Fatal(err)
		}
		want := kmsg.ApiVersionsResponseApiKey{ApiKey: keyApiVersions, MinVersion: 0, MaxVersion: 4}
		if resp.ErrorCode != codeUnsupportedVersion || len(resp.ApiKeys) != 1 || resp.ApiKeys[0].ApiKey != want.ApiKey ||
			resp.ApiKeys[0].MaxVersion != want.MaxVersion {
			t.Errorf("version %d: %+v", version, resp)
		}
	}
}

func TestFindCoordinator(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial()
	for v := int16(0); v <= 6; v++ {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKey, req.CoordinatorKeys = "g", []string{"g", "h"}
		resp := ask[*kmsg.FindCoordinatorResponse](c, req, v)
		if v < 4 {
			if resp.ErrorCode != 0 || resp.NodeID != 7 || resp.Host != "127.0.0.1" || resp.Port != ts.cfg.AdvertisedPort {
				t.Errorf("version %d: %+v", v, resp)
			}
			continue
		}
		if len(resp.Coordinators) != 2 || resp.Coordinators[1].Key != "h" || resp.Coordinators[1].NodeID != 7 {
			t.Errorf("version %d: %+v", v, resp)
		}
	}
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorType, req.CoordinatorKeys = 2, []string{"share"}
	if resp := ask[*kmsg.FindCoordinatorResponse](c, req, 6); resp.Coordinators[0].ErrorCode != codeInvalidRequest {
		t.Errorf("share group: %+v", resp)
	}
}

// metadataOf makes a Metadata request for names.
func metadataOf(create bool, names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = create
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, n := range names {
		q := kmsg.NewMetadataRequestTopic()
		q.Topic = &n
		req.Topics = append(req.Topics, q)
	}
	return req
}

func TestMetadata(t *testing.T) {
	ts := newTestServer(t)
	topic := ts.createTopic("known", 3, nil)
	c := ts.dial()
	for v := int16(0); v <= 13; v++ {
		resp := ask[*kmsg.MetadataResponse](c, metadataOf(false, "known", "known"), v)
		if len(resp.Brokers) != 1 || resp.Brokers[0].NodeID != 7 || resp.Brokers[0].Port != ts.cfg.AdvertisedPort {
			t.Fatalf("version %d: brokers %+v", v, resp.Brokers)
		}
		if v >= 1 && resp.ControllerID != 7 || v >= 2 && (resp.ClusterID == nil || *resp.ClusterID == "") {
			t.Fatalf("version %d: controller %d, cluster %v", v, resp.ControllerID, resp.ClusterID)
		}
		if len(resp.Topics) != 1 || *resp.Topics[0].Topic != "known" || len(resp.Topics[0].Partitions) != 3 {
			t.Fatalf("version %d: topics %+v", v, resp.Topics)
		}
		if v >= 10 && resp.Topics[0].TopicID != topic.ID {
			t.Errorf("version %d: topic id %v", v, resp.Topics[0].TopicID)
		}
		for i, p := range resp.Topics[0].Partitions {
			if p.Partition != int32(i) || p.Leader != 7 || !slices.Equal(p.Replicas, []int32{7}) || !slices.Equal(p.ISR, []int32{7}) ||
				v >= 7 && p.LeaderEpoch != 0 {
				t.Errorf("version %d: partition %+v", v, p)
			}
		}
		// Empty: all in version 0, none later. Null: all.
		if n := len(ask[*kmsg.MetadataResponse](c, metadataOf(false), v).Topics); (v == 0) != (n == 1) {
			t.Errorf("version %d: an empty list gives %d topics", v, n)
		}
		null := metadataOf(false)
		null.Topics = nil
		if n := len(ask[*kmsg.MetadataResponse](c, null, v).Topics); v > 0 && n != 1 {
			t.Errorf("version %d: null gives %d topics", v, n)
		}
	}
}

func TestMetadataByID(t *testing.T) {
	ts := newTestServer(t)
	topic := ts.createTopic("known", 1, nil)
	c := ts.dial()
	for v := int16(12); v <= 13; v++ {
		req := kmsg.NewPtrMetadataRequest()
		for _, id := range []metadata.TopicID{topic.ID, metadata.NewTopicID(), topic.ID} {
			q := kmsg.NewMetadataRequestTopic()
			q.TopicID = id
			req.Topics = append(req.Topics, q)
		}
		resp := ask[*kmsg.MetadataResponse](c, req, v)
		if len(resp.Topics) != 2 || *resp.Topics[0].Topic != "known" || resp.Topics[0].ErrorCode != 0 {
			t.Fatalf("version %d: %+v", v, resp.Topics)
		}
		if x := resp.Topics[1]; x.ErrorCode != codeUnknownTopicID || x.TopicID != req.Topics[1].TopicID || x.Topic != nil {
			t.Errorf("version %d: unknown id gives %+v", v, x)
		}
	}
}

// TestLargeMetadataIsCounted: a response over its bound waits for memory, and gives it back when it is written.
func TestLargeMetadataIsCounted(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("large", 5000, nil)
	if err := ts.responseBytes.acquire(t.Context(), responsesBytes); err != nil {
		t.Fatal(err)
	}
	c := ts.dial()
	req := metadataOf(false, "large")
	req.SetVersion(9)
	c.send(req, 1)
	for ts.responseBytes.waiting.Load() == 0 {
		runtime.Gosched()
	}
	ts.responseBytes.release(responsesBytes)
	if resp := c.receive(req, 1).(*kmsg.MetadataResponse); len(resp.Topics[0].Partitions) != 5000 {
		t.Errorf("%d partitions", len(resp.Topics[0].Partitions))
	}
	ask[*kmsg.ApiVersionsResponse](c, apiVersionsRequest(), 3) // the one before is written and released
	if used := ts.responseBytes.used.Load(); used != 0 {
		t.Errorf("%d bytes are still pinned", used)
	}
}

func apiVersionsRequest() *kmsg.ApiVersionsRequest {
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "franz-go", "v1.22.2"
	return req
}

func TestAutoCreation(t *testing.T) {
	ts := newTestServer(t, withConfig(func(c *Config) { c.DefaultPartitions = 2 }))
	c := ts.dial()
	codes := func(create bool, version int16, names ...string) []int16 {
		var codes []int16
		for _, x := range ask[*kmsg.MetadataResponse](c, metadataOf(create, names...), version).Topics {
			codes = append(codes, x.ErrorCode)
			if x.ErrorCode == 0 && len(x.Partitions) != 2 {
				t.Errorf("%s has %d partitions", *x.Topic, len(x.Partitions))
			}
		}
		return codes
	}
	for _, x := range []struct {
		create  bool
		version int16
		names   []string
		want    []int16
	}{
		{false, 9, []string{"a"}, []int16{codeUnknownTopicOrPartition}},
		{true, 9, []string{"a", "b/c", "d"}, []int16{0, codeInvalidTopicException, 0}},
		{false, 9, []string{"a", "d"}, []int16{0, 0}},
		{false, 1, []string{"before-version-4"}, []int16{0}}, // cannot say no
		{true, 12, []string{"e.f"}, []int16{0}},
		{true, 12, []string{"e_f"}, []int16{codeInvalidTopicException}}, // collides
		{false, 12, []string{"..", ""}, []int16{codeInvalidTopicException, codeInvalidTopicException}},
	} {
		if got := codes(x.create, x.version, x.names...); !slices.Equal(got, x.want) {
			t.Errorf("create %v, version %d, %q: %v, want %v", x.create, x.version, x.names, got, x.want)
		}
	}
	off := newTestServer(t, withConfig(func(c *Config) { c.AutoCreateTopics = false }))
	resp := ask[*kmsg.MetadataResponse](off.dial(), metadataOf(true, "a"), 9)
	if resp.Topics[0].ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("created although it is turned off: %+v", resp.Topics)
	}
}

// failingStore is a store whose database is out of reach while down.
type failingStore struct {
	Store
	mu   sync.Mutex
	down bool
}

func (f *failingStore) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *failingStore) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return metadata.ErrUnavailable
	}
	return nil
}

func (f *failingStore) Catalogue(ctx context.Context) (*metadata.Catalogue, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	return f.Store.Catalogue(ctx)
}

func (f *failingStore) RefreshCatalogue(ctx context.Context) (*metadata.Catalogue, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	return f.Store.RefreshCatalogue(ctx)
}

func (f *failingStore) AllocateProducerIDs(ctx context.Context, n int) (metadata.ProducerRange, error) {
	if err := f.err(); err != nil {
		return metadata.ProducerRange{}, err
	}
	return f.Store.AllocateProducerIDs(ctx, n)
}

func (f *failingStore) ClusterID(ctx context.Context) (string, error) {
	if err := f.err(); err != nil {
		return "", err
	}
	return f.Store.ClusterID(ctx)
}

func TestDatabaseOutOfReach(t *testing.T) {
	var f *failingStore
	ts := newTestServer(t, func(_ *Config, d *Deps) {
		f = &failingStore{Store: d.Store, down: true}
		d.Store = f
	})
	ts.createTopic("known", 1, nil)

	// Nothing was ever known: named topics can be asked for again; "all" has no honest answer.
	resp := ask[*kmsg.MetadataResponse](ts.dial(), metadataOf(false, "known"), 9)
	if resp.Topics[0].ErrorCode != codeLeaderNotAvailable || len(resp.Brokers) != 1 {
		t.Errorf("%+v", resp)
	}
	all := metadataOf(false)
	all.Topics = nil
	all.SetVersion(9)
	c := ts.dial()
	c.send(all, 1)
	c.wantClosed()
	produced := firstPartition(t, ask[*kmsg.ProduceResponse](ts.dial(), produceOf("known", 0, -1, oneRecord(t, 1)), 9))
	if produced.ErrorCode != codeNotEnoughReplicas || produced.BaseOffset != -1 {
		t.Errorf("produce: %+v", produced)
	}
	init := kmsg.NewPtrInitProducerIDRequest()
	if r := ask[*kmsg.InitProducerIDResponse](ts.dial(), init, 4); r.ErrorCode != codeCoordinatorLoadInProgress || r.ProducerID != -1 {
		t.Errorf("init producer id: %+v", r)
	}

	// What was known is answered while it is out of reach.
	f.set(false)
	c = ts.dial()
	ask[*kmsg.MetadataResponse](c, metadataOf(false, "known"), 9)
	f.set(true)
	for _, req := range []*kmsg.MetadataRequest{metadataOf(false, "known"), all} {
		if resp := ask[*kmsg.MetadataResponse](c, req, 9); len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
			t.Errorf("%+v", resp)
		}
	}
	if n := testutil.ToFloat64(ts.Server.metrics.requests.WithLabelValues("InitProducerId", "COORDINATOR_LOAD_IN_PROGRESS")); n != 1 {
		t.Errorf("the failed request was counted %v times", n)
	}
}

func TestInitProducerID(t *testing.T) {
	ts := newTestServer(t)
	seen := map[int64]bool{}
	c := ts.dial()
	for v := int16(0); v <= 5; v++ {
		for range producerIDRange {
			resp := ask[*kmsg.InitProducerIDResponse](c, kmsg.NewPtrInitProducerIDRequest(), v)
			if resp.ErrorCode != 0 || resp.ProducerID < 0 || resp.ProducerEpoch != 0 || seen[resp.ProducerID] {
				t.Fatalf("version %d: %+v, seen before: %v", v, resp, seen[resp.ProducerID])
			}
			seen[resp.ProducerID] = true
		}
	}
	for id, want := range map[string]int16{"": codeInvalidRequest, "tx": codeInvalidTransactionTimeout} {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID, req.TransactionTimeoutMillis = &id, 15*60_000+1
		if resp := ask[*kmsg.InitProducerIDResponse](c, req, 4); resp.ErrorCode != want || resp.ProducerID != -1 {
			t.Errorf("transactional id %q: %+v", id, resp)
		}
	}
}

// countingIDs counts allocations.
type countingIDs struct {
	calls int
	err   error
}

func (c *countingIDs) AllocateProducerIDs(_ context.Context, n int) (metadata.ProducerRange, error) {
	if c.err != nil {
		return metadata.ProducerRange{}, c.err
	}
	c.calls++
	return metadata.ProducerRange{First: metadata.ProducerID(c.calls * 1000), Count: n}, nil
}

func TestProducerIDsComeFromYoungRanges(t *testing.T) {
	store := &countingIDs{}
	ids := newProducerIDs(store)
	now := time.Unix(1000, 0)
	ids.now = func() time.Time { return now }
	next := func(version metadata.CatalogueVersion, want metadata.ProducerID) {
		t.Helper()
		if id, err := ids.next(t.Context(), version); err != nil || id != want {
			t.Fatalf("got %d, %v, want %d", id, err, want)
		}
	}
	next(5, 1000)
	next(5, 1001)
	now = now.Add(producerIDAge)
	next(5, 1002)
	now = now.Add(1) // too old
	next(5, 2000)
	next(6, 3000) // a topic may have been made since
	next(6, 3001)
	for i := 2; i < producerIDRange; i++ {
		next(6, metadata.ProducerID(3000+i))
	}
	next(6, 4000) // used up
	store.err = errors.New("down")
	next(6, 4001)
	if _, err := ids.next(t.Context(), 7); !errors.Is(err, store.err) {
		t.Errorf("got %v", err)
	}
}
