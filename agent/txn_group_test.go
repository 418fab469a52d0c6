package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/internal/record"
)

// TestTxnConsumeModifyProduce: franz-go's exactly-once loop, by both protocols, with aborts: every input is in the output
// once.
func TestTxnConsumeModifyProduce(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		for name, versions := range txnClients {
			t.Run(name, func(t *testing.T) {
				in, out, group := "in-"+name, "out-"+name, "g-"+name
				ts.createTopic(in, 3, nil)
				ts.createTopic(out, 2, nil)
				const records = 300
				ctx, cancel := context.WithTimeout(t.Context(), 2*testTimeout)
				defer cancel()
				producer := ts.client()
				for i := range records {
					producer.Produce(ctx, &kgo.Record{Topic: in, Key: []byte(strconv.Itoa(i)), Value: []byte(strconv.Itoa(i))}, nil)
				}
				if err := producer.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				s, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(ts.addr), kgo.TransactionalID("etl-"+name), kgo.MaxVersions(versions),
					kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumerGroup(group), kgo.ConsumeTopics(in),
					kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxPartitionBytes(2000),
					kgo.DefaultProduceTopic(out))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for done, round := 0, 0; done < records; round++ {
					n, committed := etl(ctx, t, s, round%3 == 1)
					if committed {
						done += n
					}
				}
				got := map[string]int{}
				c := ts.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics(out),
					kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
				for _, records := range consume(t, c, records) {
					for _, r := range records {
						got[string(r.Value)]++
					}
				}
				for i := range records {
					if v := "done " + strconv.Itoa(i); got[v] != 1 {
						t.Errorf("%s is there %d times", v, got[v])
					}
				}
				offsets, err := kadm.NewClient(c).FetchOffsets(ctx, group)
				if err != nil {
					t.Fatal(err)
				}
				var sum int64
				offsets.Each(func(o kadm.OffsetResponse) { sum += o.At })
				if sum != records {
					t.Errorf("committed offsets sum up to %d", sum)
				}
			})
		}
	})
}

// etl runs one transaction: what came in goes out.
func etl(ctx context.Context, t *testing.T, s *kgo.GroupTransactSession, abort bool) (n int, committed bool) {
	t.Helper()
	fetches := s.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Begin(); err != nil {
		t.Fatal(err)
	}
	e := kgo.AbortingFirstErrPromise(s.Client())
	fetches.EachRecord(func(r *kgo.Record) {
		n++
		s.Produce(ctx, &kgo.Record{Key: r.Key, Value: append([]byte("done "), r.Value...)}, e.Promise())
	})
	committed, err := s.End(ctx, kgo.TransactionEndTry(!abort && e.Err() == nil))
	if err != nil {
		t.Fatal(err)
	}
	return n, committed
}

// TestTxnRequireStable: who asks for stable offsets is told of pending ones.
func TestTxnRequireStable(t *testing.T) {
	onBothDatabases(t, func(t *testing.T, ts *testServer) {
		topic := ts.createTopic("t", 2, nil)
		c := ts.dial()
		id := "tx"
		begin := kmsg.NewPtrInitProducerIDRequest()
		begin.TransactionalID, begin.TransactionTimeoutMillis = &id, 60_000
		me := ask[*kmsg.InitProducerIDResponse](c, begin, 5)
		commit := kmsg.NewPtrTxnOffsetCommitRequest()
		commit.TransactionalID, commit.Group, commit.ProducerID, commit.ProducerEpoch = id, "g", me.ProducerID, me.ProducerEpoch
		commit.Generation = -1
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = 1, 42
		commit.Topics = []kmsg.TxnOffsetCommitRequestTopic{{Topic: "t", Partitions: []kmsg.TxnOffsetCommitRequestTopicPartition{p}}}
		if r := ask[*kmsg.TxnOffsetCommitResponse](c, commit, 4); r.Topics[0].Partitions[0].ErrorCode != codeInvalidTxnState {
			t.Fatalf("offsets before the transaction began: %+v", r)
		}
		if r := ask[*kmsg.TxnOffsetCommitResponse](c, commit, 5); r.Topics[0].Partitions[0].ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
		offsets := func(version int16, stable bool) map[int32]string {
			t.Helper()
			req := kmsg.NewPtrOffsetFetchRequest()
			req.RequireStable = stable
			g := kmsg.NewOffsetFetchRequestGroup()
			g.Group, g.Topics = "g", []kmsg.OffsetFetchRequestGroupTopic{{Topic: "t", TopicID: topic.ID, Partitions: []int32{0, 1}}}
			req.Groups = []kmsg.OffsetFetchRequestGroup{g}
			req.Group, req.Topics = "g", []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0, 1}}}
			resp := ask[*kmsg.OffsetFetchResponse](c, req, version)
			got := map[int32]string{}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					got[p.Partition] = fmt.Sprint(p.Offset, " ", p.ErrorCode)
				}
			}
			for _, g := range resp.Groups {
				for _, t := range g.Topics {
					for _, p := range t.Partitions {
						got[p.Partition] = fmt.Sprint(p.Offset, " ", p.ErrorCode)
					}
				}
			}
			return got
		}
		expect := func(what, stable, unstable string) {
			t.Helper()
			for _, v := range []int16{7, 8, 10} {
				if got := offsets(v, true); got[0] != "-1 0" || got[1] != stable {
					t.Errorf("%s, version %d, stable: %v", what, v, got)
				}
				if got := offsets(v, false); got[0] != "-1 0" || got[1] != unstable {
					t.Errorf("%s, version %d: %v", what, v, got)
				}
			}
		}
		expect("pending", "-1 88", "-1 0")
		end := kmsg.NewPtrEndTxnRequest()
		end.TransactionalID, end.ProducerID, end.ProducerEpoch, end.Commit = id, me.ProducerID, me.ProducerEpoch, true
		for range 2 { // the second is a retry
			if r := ask[*kmsg.EndTxnResponse](c, end, 5); r.ErrorCode != 0 || r.ProducerID != me.ProducerID || r.ProducerEpoch != me.ProducerEpoch+1 {
				t.Fatalf("%+v", r)
			}
		}
		expect("committed", "42 0", "42 0")
		commit.Generation = 3
		commit.ProducerEpoch++
		if r := ask[*kmsg.TxnOffsetCommitResponse](c, commit, 5); r.Topics[0].Partitions[0].ErrorCode != codeUnknownMemberID {
			t.Errorf("not a member: %+v", r)
		}
		_, txns, err := ts.store.LoadTxns(t.Context(), "tx")
		if err != nil || txns[0].State.String() != "CompleteCommit" {
			t.Errorf("a refused commit began a transaction: %+v, %v", txns, err)
		}
	})
}

// TestTxnErrors: what each request of the protocol answers to what does not fit, by version.
func TestTxnErrors(t *testing.T) {
	ts := newStoreServer(t, newTestStore(t))
	ts.createTopic("t", 2, nil)
	c := ts.dial()
	id := "tx"
	begin := kmsg.NewPtrInitProducerIDRequest()
	begin.TransactionalID, begin.TransactionTimeoutMillis = &id, 60_000
	old := ask[*kmsg.InitProducerIDResponse](c, begin, 5)
	me := ask[*kmsg.InitProducerIDResponse](c, begin, 5)
	if old.ErrorCode != 0 || me.ProducerID != old.ProducerID || me.ProducerEpoch != 1 {
		t.Fatalf("%+v, %+v", old, me)
	}
	add := func(version int16, id string, producer int64, epoch int16, topics map[string][]int32) map[string]int16 {
		t.Helper()
		req := kmsg.NewPtrAddPartitionsToTxnRequest()
		req.TransactionalID, req.ProducerID, req.ProducerEpoch = id, producer, epoch
		for _, name := range slices.Sorted(maps.Keys(topics)) {
			req.Topics = append(req.Topics, kmsg.AddPartitionsToTxnRequestTopic{Topic: name, Partitions: topics[name]})
		}
		got := map[string]int16{}
		for _, t := range ask[*kmsg.AddPartitionsToTxnResponse](c, req, version).Topics {
			for _, p := range t.Partitions {
				got[fmt.Sprint(t.Topic, p.Partition)] = p.ErrorCode
			}
		}
		return got
	}
	some := map[string][]int32{"t": {0}}
	for _, x := range []struct {
		what     string
		version  int16
		id       string
		producer int64
		epoch    int16
		topics   map[string][]int32
		want     map[string]int16
	}{
		{"unknown id", 3, "nobody", me.ProducerID, 1, some, map[string]int16{"t0": codeInvalidProducerIDMapping}},
		{"no id", 3, "", me.ProducerID, 1, some, map[string]int16{"t0": codeInvalidRequest}},
		{"another producer", 3, id, me.ProducerID + 1, 1, some, map[string]int16{"t0": codeInvalidProducerIDMapping}},
		{"fenced", 2, id, me.ProducerID, 0, some, map[string]int16{"t0": codeProducerFenced}},
		{"fenced, old", 1, id, me.ProducerID, 0, some, map[string]int16{"t0": codeInvalidProducerEpoch}},
		{"all or nothing", 3, id, me.ProducerID, 1, map[string][]int32{"t": {0, 7}, "u": {0}}, map[string]int16{
			"t0": codeOperationNotAttempted, "t7": codeUnknownTopicOrPartition, "u0": codeUnknownTopicOrPartition,
		}},
		{"added", 0, id, me.ProducerID, 1, some, map[string]int16{"t0": 0}},
	} {
		if got := add(x.version, x.id, x.producer, x.epoch, x.topics); !maps.Equal(got, x.want) {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
	}
	end := func(version int16, epoch int16, commit bool) *kmsg.EndTxnResponse {
		t.Helper()
		req := kmsg.NewPtrEndTxnRequest()
		req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = id, me.ProducerID, epoch, commit
		return ask[*kmsg.EndTxnResponse](c, req, version)
	}
	for _, x := range []struct {
		what    string
		version int16
		epoch   int16
		commit  bool
		want    int16
	}{
		{"fenced", 4, 0, true, codeProducerFenced},
		{"fenced, old", 1, 0, true, codeInvalidProducerEpoch},
		{"commit", 1, 1, true, 0},
		{"again", 1, 1, true, 0},
		{"the other way", 1, 1, false, codeInvalidTxnState},
		{"KIP-890, commit of nothing", 5, 1, true, codeInvalidTxnState},
		{"KIP-890, abort of nothing", 5, 1, false, 0},
		{"KIP-890, again", 5, 1, false, 0},
	} {
		if got := end(x.version, x.epoch, x.commit); got.ErrorCode != x.want {
			t.Errorf("%s: %+v, want %d", x.what, got, x.want)
		}
	}
	if got := end(5, 1, false); got.ProducerEpoch != 2 || got.ProducerID != me.ProducerID {
		t.Errorf("%+v", got)
	}
}

// TestTxnProduceVersions: a batch outside of its transaction, by version of Produce.
func TestTxnProduceVersions(t *testing.T) {
	ts := newStoreServer(t, newTestStore(t))
	topic := ts.createTopic("t", 1, nil)
	c := ts.dial()
	id := "tx"
	begin := kmsg.NewPtrInitProducerIDRequest()
	begin.TransactionalID, begin.TransactionTimeoutMillis = &id, int32(time.Minute.Milliseconds())
	me := ask[*kmsg.InitProducerIDResponse](c, begin, 5)
	for version, want := range map[int16]int16{
		3: codeInvalidTxnState, 10: codeInvalidTxnState, 11: codeTransactionAbortable, 12: 0, 13: 0,
	} {
		req := produceOf("t", 0, -1, builtBatch(t, record.NewBuilder().Append(time.Now().UnixMilli(), nil, []byte("v")).
			SetProducer(me.ProducerID, me.ProducerEpoch, 0).SetTransactional()))
		req.TransactionID = &id
		req.Topics[0].TopicID = topic.ID
		got := ask[*kmsg.ProduceResponse](c, req, version).Topics[0].Partitions[0].ErrorCode
		if got != want {
			t.Errorf("version %d: %d, want %d", version, got, want)
		}
		end := kmsg.NewPtrEndTxnRequest()
		end.TransactionalID, end.ProducerID, end.ProducerEpoch = id, me.ProducerID, me.ProducerEpoch
		if r := ask[*kmsg.EndTxnResponse](c, end, 5); r.ErrorCode != 0 {
			t.Fatalf("%+v", r)
		}
		me.ProducerEpoch++
	}
}
