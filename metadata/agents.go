package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NodeID is an agent's id as a broker, from 1; the same in every run of it.
type NodeID int32

// Times of agents, in the database's clock.
const (
	// HeartbeatInterval is how often an agent says that it is there.
	HeartbeatInterval = 2 * time.Second
	// AgentLost is how long after its last heartbeat an agent counts as dead. With two intervals of whoever looks, it is
	// out of the metadata within ten seconds.
	AgentLost = 6 * time.Second
	// AgentRetention is how long the node id of an agent that is gone is kept for its address.
	AgentRetention = 30 * 24 * time.Hour
)

// AgentAddress is where clients reach an agent, on the listener of that name.
type AgentAddress struct {
	Listener string `json:"listener"` // "" is the first one
	Host     string `json:"host"`
	Port     int32  `json:"port"`
}

// AgentRow is an agent as a broker.
type AgentRow struct {
	Node      NodeID
	Run       AgentID // of the process
	Zone      string  // "" = none
	Addresses []AgentAddress
	Draining  bool
	Seen      Millis // last heartbeat
}

// Address is the first address, by which the node id is remembered.
func (a *AgentRow) Address() string {
	if len(a.Addresses) == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", a.Addresses[0].Host, a.Addresses[0].Port)
}

// ErrReplaced: another process has taken the agent's node id.
var ErrReplaced = errors.New("node id is used by another agent")

// ErrNodeTaken: a node id was asked for that an agent at another address has, and that agent is alive. Whoever runs is
// not pushed out by a mistake in the configuration of whoever starts.
var ErrNodeTaken = errors.New("node id belongs to another agent, which is alive")

// CheckNode says whether an agent may take the node id of a row as of now: of its own address, since it was started again,
// or of an agent that drains or is dead. The error wraps ErrNodeTaken.
func CheckNode(holder, taker *AgentRow, now Millis) error {
	if holder.Address() == taker.Address() || holder.Draining || now.Sub(holder.Seen) >= AgentLost {
		return nil
	}
	return fmt.Errorf("%w: node %d at %s, heard of %s ago", ErrNodeTaken, holder.Node, holder.Address(), now.Sub(holder.Seen))
}

// AgentDriver loads and saves agents' rows. It is part of Driver.
type AgentDriver interface {
	// RegisterAgent takes a node id for a run: the one given, if CheckNode allows it; for 0 the one that its address had
	// before, else one that nobody has. It gives that id.
	RegisterAgent(ctx context.Context, a AgentRow) (NodeID, error)

	// Heartbeat says that a run is there, and gives the agents seen within twice AgentLost, by node. The error wraps
	// ErrReplaced when the node id is not the run's.
	Heartbeat(ctx context.Context, a AgentRow) (now Millis, agents []AgentRow, err error)
}

// RegisterAgent takes a node id for an agent: the given one, or for 0 the one its address had before, or a free one. The
// error wraps ErrNodeTaken when the given one belongs to a living agent at another address.
func (s *Store) RegisterAgent(ctx context.Context, a AgentRow) (NodeID, error) {
	node, err := s.driver.RegisterAgent(ctx, a)
	if err != nil {
		return 0, fmt.Errorf("register the agent at %s: %w", a.Address(), err)
	}
	return node, nil
}

// Heartbeat says that an agent is there, and gives those that are or lately were.
func (s *Store) Heartbeat(ctx context.Context, a AgentRow) (Millis, []AgentRow, error) {
	now, agents, err := s.driver.Heartbeat(ctx, a)
	if err != nil {
		return 0, nil, fmt.Errorf("heartbeat of node %d: %w", a.Node, err)
	}
	s.clock.saw(now)
	return now, agents, nil
}

// OnAgents sets who is told that agents came or went. It is called before Run, and its function must not block.
func (s *Store) OnAgents(fn func()) { s.onAgents = fn }

// TellAgents tells all other agents that this one came, drains or left.
func (s *Store) TellAgents() { s.pending.add(Event{Agents: true}) }

// agentsMoved tells of an event's agents.
func (s *Store) agentsMoved(e Event) {
	if s.onAgents != nil && (e.Agents || e.All) {
		s.onAgents()
	}
}
