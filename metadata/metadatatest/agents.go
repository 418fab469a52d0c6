package metadatatest

import (
	"errors"
	"reflect"

	"github.com/skeinio/skein/metadata"
)

// testAgents takes node ids, given and found, and heartbeats.
func testAgents(e *env) {
	d, ctx := e.db.Driver(e.T), e.Context()
	agent := func(node metadata.NodeID, host string) metadata.AgentRow {
		return metadata.AgentRow{Node: node, Run: metadata.NewAgentID(), Zone: "z", Addresses: []metadata.AgentAddress{
			{Host: host, Port: 9092}, {Listener: "outside", Host: host + ".example", Port: 19092},
		}}
	}
	register := func(a metadata.AgentRow, want metadata.NodeID) metadata.AgentRow {
		e.Helper()
		node, err := d.RegisterAgent(ctx, a)
		if err != nil || node != want {
			e.Fatalf("register %s: node %d, %v; want %d", a.Address(), node, err, want)
		}
		a.Node = node
		return a
	}
	a := register(agent(0, "a"), 1)
	b := register(agent(7, "b"), 7)
	c := register(agent(0, "c"), 8)
	b.Draining = true
	now, all, err := d.Heartbeat(ctx, b)
	if err != nil || len(all) != 3 {
		e.Fatalf("heartbeat: %d agents, %v; want 3", len(all), err)
	}
	for i, want := range []metadata.AgentRow{a, b, c} {
		want.Seen = all[i].Seen
		if !reflect.DeepEqual(all[i], want) || now.Sub(want.Seen) < 0 || now.Sub(want.Seen) > patience {
			e.Errorf("agent %d is %+v, want %+v, seen before %d", i, all[i], want, now)
		}
	}
	// Another run at the same address has the same node id, and the run before it hears that.
	again := register(agent(0, "b"), 7)
	if _, _, err := d.Heartbeat(ctx, b); !errors.Is(err, metadata.ErrReplaced) {
		e.Errorf("heartbeat of the run that was replaced: %v, want ErrReplaced", err)
	}
	if _, all, err = d.Heartbeat(ctx, again); err != nil || len(all) != 3 || all[1].Draining || all[1].Run != again.Run {
		e.Errorf("heartbeat of the new run: %+v, %v", all, err)
	}
	// Nobody pushes out an agent at another address, unless it leaves.
	if _, err := d.RegisterAgent(ctx, agent(1, "elsewhere")); !errors.Is(err, metadata.ErrNodeTaken) {
		e.Errorf("register with the node id of an agent that is alive: %v, want ErrNodeTaken", err)
	}
	if _, _, err := d.Heartbeat(ctx, a); err != nil {
		e.Errorf("heartbeat of the agent whose node id another one wanted: %v", err)
	}
	a.Draining = true
	if _, _, err := d.Heartbeat(ctx, a); err != nil {
		e.Fatal(err)
	}
	register(agent(1, "elsewhere"), 1)
	// Whose id was taken away finds another one.
	register(agent(0, "a"), 9)
}
