package agent

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Operations of KIP-339.
const (
	opSet = iota
	opDelete
	opAppend
	opSubtract
)

// incrementalRequest changes a topic; ops are name, operation and value (nil for none).
func incrementalRequest(topic string, ops ...any) *kmsg.IncrementalAlterConfigsRequest {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	for i := 0; i < len(ops); i += 3 {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name, c.Op = ops[i].(string), kmsg.IncrementalAlterConfigOp(ops[i+1].(int))
		if v, ok := ops[i+2].(string); ok {
			c.Value = &v
		}
		r.Configs = append(r.Configs, c)
	}
	req.Resources = append(req.Resources, r)
	return req
}

func TestIncrementalAlterConfigs(t *testing.T) {
	ts := newTestServer(t)
	conn := ts.dial()
	for _, v := range versions(0, 1) {
		topic := fmt.Sprintf("t%d", v)
		ts.createTopic(topic, 1, nil)
		for _, step := range []struct {
			req  *kmsg.IncrementalAlterConfigsRequest
			want string
		}{
			{incrementalRequest(topic, "retention.ms", opSet, "5", "segment.ms", opSet, "6"), "retention.ms:5 segment.ms:6"},
			{incrementalRequest(topic, "retention.ms", opDelete, nil), "segment.ms:6"},
			{incrementalRequest(topic, "segment.ms", opDelete, "whatever"), ""},
			{incrementalRequest(topic, "retention.ms", opDelete, nil), ""}, // not set
			{incrementalRequest(topic, "foo", opDelete, nil), ""},          // not known
			{incrementalRequest(topic, "cleanup.policy", opAppend, "compact"), "cleanup.policy:delete,compact"},
			{incrementalRequest(topic, "cleanup.policy", opAppend, "compact"), "cleanup.policy:delete,compact"},
			{incrementalRequest(topic, "cleanup.policy", opSubtract, "delete"), "cleanup.policy:compact"},
			{incrementalRequest(topic, "cleanup.policy", opSubtract, "compact"), "cleanup.policy:"},
			{incrementalRequest(topic, "cleanup.policy", opDelete, nil), ""},
			{incrementalRequest(topic, "leader.replication.throttled.replicas", opAppend, "0:7,0:7"), "leader.replication.throttled.replicas:0:7"},
			{incrementalRequest(topic, "leader.replication.throttled.replicas", opSet, "*"), "leader.replication.throttled.replicas:*"},
			{incrementalRequest(topic), "leader.replication.throttled.replicas:*"},
		} {
			r := ask[*kmsg.IncrementalAlterConfigsResponse](conn, step.req, v).Resources[0]
			if r.ErrorCode != 0 || r.ErrorMessage != nil {
				t.Errorf("version %d, %+v: %+v", v, step.req.Resources[0].Configs, outcomeOf(r.ErrorCode, r.ErrorMessage))
			}
			wantConfigs(t, ts, topic, step.want)
		}
	}
}

func TestIncrementalAlterConfigsRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, map[string]string{"retention.ms": "1", "min.compaction.lag.ms": "10"})
	conn := ts.dial()
	for _, c := range []struct {
		req  *kmsg.IncrementalAlterConfigsRequest
		want outcome
	}{
		{incrementalRequest("t", "foo", opSet, "x"), outcome{40, "Unknown topic config name: foo"}},
		{incrementalRequest("t", "foo", opAppend, "x"), outcome{40, "Can't APPEND to key foo because its type is not LIST."}},
		{incrementalRequest("t", "retention.ms", opAppend, "x"), outcome{40, "Can't APPEND to key retention.ms because its type is not LIST."}},
		{incrementalRequest("t", "retention.ms", opSubtract, "x"), outcome{40, "Can't SUBTRACT to key retention.ms because its type is not LIST."}},
		{incrementalRequest("t", "retention.ms", opSet, nil), outcome{42, "Null value not supported for : retention.ms"}},
		{incrementalRequest("t", "cleanup.policy", opAppend, nil), outcome{42, "Null value not supported for : cleanup.policy"}},
		{incrementalRequest("t", "retention.ms", 9, "1"), outcome{42, "Unknown operations type 9"}},
		{incrementalRequest("t", "retention.ms", -1, "1"), outcome{42, "Unknown operations type -1"}},
		{incrementalRequest("t", "cleanup.policy", opAppend, "nope"), outcome{40, "Invalid value nope for configuration cleanup.policy: String must be one of: compact, delete"}},
		{incrementalRequest("t", "retention.ms", opSet, "1", "retention.ms", opDelete, nil), outcome{42, "Error due to duplicate config keys"}},
		{incrementalRequest("t", "max.compaction.lag.ms", opSet, "9"), outcome{40, "conflict topic config setting min.compaction.lag.ms (10) > max.compaction.lag.ms (9)"}},
		// One bad change undoes the good ones of its resource.
		{incrementalRequest("t", "retention.ms", opSet, "2", "foo", opSet, "x"), outcome{40, "Unknown topic config name: foo"}},
		{incrementalRequest("nope", "retention.ms", opSet, "1"), outcome{3, "The topic 'nope' does not exist."}},
		{incrementalRequest("", "retention.ms", opSet, "1"), outcome{42, "Default topic resources are not allowed."}},
	} {
		for _, validateOnly := range []bool{false, true} {
			c.req.ValidateOnly = validateOnly
			r := ask[*kmsg.IncrementalAlterConfigsResponse](conn, c.req, 1).Resources[0]
			if got := outcomeOf(r.ErrorCode, r.ErrorMessage); got != c.want {
				t.Errorf("%+v, validate only %t:\n got  %+v\n want %+v", c.req.Resources[0], validateOnly, got, c.want)
			}
		}
	}
	wantConfigs(t, ts, "t", "min.compaction.lag.ms:10 retention.ms:1")
	broker := incrementalRequest("", "log.cleaner.threads", opSet, "1")
	broker.Resources[0].ResourceType = kmsg.ConfigResourceTypeBroker
	r := ask[*kmsg.IncrementalAlterConfigsResponse](conn, broker, 1).Resources[0]
	if r.ErrorCode != codeInvalidRequest || !strings.Contains(*r.ErrorMessage, "while agents run") {
		t.Errorf("dynamic broker configs: %+v", r)
	}
}

func TestIncrementalAlterConfigsValidateOnly(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	before := mustTopic(t, ts, "t").Version
	req := incrementalRequest("t", "retention.ms", opSet, "5")
	req.ValidateOnly = true
	if r := ask[*kmsg.IncrementalAlterConfigsResponse](ts.dial(), req, 1).Resources[0]; r.ErrorCode != 0 {
		t.Errorf("validated: %+v", r)
	}
	wantConfigs(t, ts, "t", "")
	if after := mustTopic(t, ts, "t").Version; after != before {
		t.Errorf("version moved from %d to %d", before, after)
	}
}

// TestIncrementalAlterConfigsTogether: changes of different configs from many connections do not undo each other.
func TestIncrementalAlterConfigsTogether(t *testing.T) {
	ts := newTestServer(t)
	ts.createTopic("t", 1, nil)
	names := []string{"retention.ms", "segment.ms", "flush.ms", "delete.retention.ms", "file.delete.delay.ms", "segment.jitter.ms"}
	var wg sync.WaitGroup
	for _, name := range names {
		conn := ts.dial()
		wg.Go(func() {
			for i := range 20 {
				req := incrementalRequest("t", name, opSet, fmt.Sprint(i+1))
				if r := ask[*kmsg.IncrementalAlterConfigsResponse](conn, req, 1).Resources[0]; r.ErrorCode != 0 {
					t.Errorf("%s: %+v", name, r)
				}
			}
		})
	}
	wg.Wait()
	wantConfigs(t, ts, "t", "delete.retention.ms:20 file.delete.delay.ms:20 flush.ms:20 retention.ms:20 segment.jitter.ms:20 segment.ms:20")
}
