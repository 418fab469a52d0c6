package agent

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// alterGroups changes dynamic configs through an agent and gives the code.
func alterGroups(c *rawConn, validateOnly bool, ops map[string]string) int16 {
	c.t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.ValidateOnly = validateOnly
	x := kmsg.NewIncrementalAlterConfigsRequestResource()
	x.ResourceType = kmsg.ConfigResourceTypeBroker
	for name, value := range ops {
		o := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		o.Name, o.Value = name, &value
		if value == "" {
			o.Op, o.Value = kmsg.IncrementalAlterConfigOpDelete, nil
		}
		x.Configs = append(x.Configs, o)
	}
	req.Resources = append(req.Resources, x)
	return ask[*kmsg.IncrementalAlterConfigsResponse](c, req, 1).Resources[0].ErrorCode
}

// TestDynamicGroupConfigs changes a config at one agent and waits until another goes by it.
func TestDynamicGroupConfigs(t *testing.T) {
	agents := newPostgresAgents(t, 2)
	c := agents[0].dial()
	const name = "group.max.session.timeout.ms"
	for what, ops := range map[string]map[string]string{
		"no number": {name: "x"}, "below the least": {name: "50"}, "not dynamic": {"log.dirs": "/x"}, "too large": {name: "3000000000"},
	} {
		if code := alterGroups(c, false, ops); code == codeNone {
			t.Errorf("%s was taken", what)
		}
	}
	wantGroupCode(t, "try", alterGroups(c, true, map[string]string{name: "200000"}), codeNone)
	if got := agents[0].groups.settings().MaxSession; got != quickGroups().MaxSession {
		t.Fatalf("a trial changed it to %v", got)
	}
	wantGroupCode(t, "change", alterGroups(c, false, map[string]string{name: "200000"}), codeNone)
	until := func(want time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		for agents[1].groups.settings().MaxSession != want {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("the other agent goes by %v, want %v", agents[1].groups.settings().MaxSession, want)
			}
		}
	}
	until(200 * time.Second)
	req := kmsg.NewPtrDescribeConfigsRequest()
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ConfigNames = kmsg.ConfigResourceTypeBroker, []string{name}
	r.ResourceName = "7"
	req.Resources, req.IncludeSynonyms = append(req.Resources, r), true
	got := ask[*kmsg.DescribeConfigsResponse](agents[1].dial(), req, 4).Resources[0]
	if got.ErrorCode != codeNone || len(got.Configs) != 1 || *got.Configs[0].Value != "200000" ||
		got.Configs[0].Source != kmsg.ConfigSourceDynamicDefaultBrokerConfig || got.Configs[0].ReadOnly {
		t.Errorf("described: %+v", got)
	}
	req.Resources[0].ResourceName, req.Resources[0].ConfigNames = "", nil
	all := ask[*kmsg.DescribeConfigsResponse](agents[1].dial(), req, 4).Resources[0]
	if all.ErrorCode != codeNone || len(all.Configs) != 1 || all.Configs[0].Name != name || len(all.Configs[0].ConfigSynonyms) != 1 {
		t.Errorf("described for all brokers: %+v", all)
	}
	q := joinRequest("g", "")
	q.SessionTimeoutMillis = 200_001
	wantGroupCode(t, "join over it", ask[*kmsg.JoinGroupResponse](agents[1].dial(), q, 5).ErrorCode, 26)
	wantGroupCode(t, "put back", alterGroups(c, false, map[string]string{name: ""}), codeNone)
	until(quickGroups().MaxSession)
}
