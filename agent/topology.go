package agent

import (
	"strings"

	"github.com/skeinio/skein/metadata"
)

// How agents show as brokers. Topology "virtual": one broker, whose address is a load balancer's, and which is this agent
// whoever is asked. Topology "direct": every agent is a broker (cluster.go).

// zoneField is what of a client.id says which zone the client is in: "zone=eu-1,shipper-7".
const zoneField = "zone="

// clientZone finds the zone in a client.id, "" where it says none. Fields are separated by commas, semicolons or spaces.
func clientZone(clientID string) string {
	for field := range strings.FieldsFuncSeq(clientID, func(r rune) bool { return r == ',' || r == ';' || r == ' ' }) {
		if zone, ok := strings.CutPrefix(field, zoneField); ok {
			return zone
		}
	}
	return ""
}

// node is this agent's id as a broker.
func (s *Server) node() int32 {
	if s.peers != nil {
		return s.peers.Node()
	}
	return s.cfg.NodeID
}

// AgentRow is this agent as it joins a Cluster. The listeners are open.
func (s *Server) AgentRow() metadata.AgentRow {
	me := metadata.AgentRow{
		Node: metadata.NodeID(s.cfg.NodeID), Zone: s.cfg.Rack,
		Addresses: []metadata.AgentAddress{{Host: s.cfg.AdvertisedHost, Port: s.cfg.AdvertisedPort}},
	}
	for _, l := range s.cfg.Listeners {
		me.Addresses = append(me.Addresses, metadata.AgentAddress{Listener: l.Name, Host: l.AdvertisedHost, Port: l.AdvertisedPort})
	}
	return me
}

// self is this agent as clients of a listener see it.
func (s *Server) self(listener string) broker {
	b := broker{id: s.node(), host: s.cfg.AdvertisedHost, port: s.cfg.AdvertisedPort, rack: s.cfg.Rack}
	for _, l := range s.cfg.Listeners {
		if l.Name == listener {
			b.host, b.port = l.AdvertisedHost, l.AdvertisedPort
		}
	}
	return b
}

// members are the agents of topology "direct", nil in "virtual".
func (s *Server) members() *members {
	if s.peers == nil {
		return nil
	}
	return s.peers.members()
}

// brokers are the agents that clients of a listener are told of.
func (s *Server) brokers(listener string) []broker {
	m := s.members()
	if m == nil {
		return []broker{s.self(listener)}
	}
	list := make([]broker, 0, len(m.agents))
	for i := range m.agents {
		list = append(list, s.brokerOf(&m.agents[i], listener))
	}
	return list
}

// brokerOf is an agent as clients of a listener see it.
func (s *Server) brokerOf(a *metadata.AgentRow, listener string) broker {
	if int32(a.Node) == s.node() {
		return s.self(listener)
	}
	address, err := addressOf(a, listener)
	if err != nil {
		s.log.Warn("agent cannot be advertised", "error", err)
	}
	return broker{id: int32(a.Node), host: address.Host, port: address.Port, rack: a.Zone}
}

// controller is the id that is shown as the controller's: this agent, or, while it drains, one that stays.
func (s *Server) controller() int32 {
	m := s.members()
	if m == nil || m.has(metadata.NodeID(s.node())) {
		return s.node()
	}
	return int32(m.agents[0].Node)
}

// placement gives the replicas of partitions to one client; the first is the leader. One request has one view.
type placement struct {
	members *members // nil: all is at alone
	alone   []int32
	zone    string
}

// placement is how a client sees partitions placed.
func (s *Server) placement(clientID string) placement {
	return placement{members: s.members(), alone: []int32{s.node()}, zone: clientZone(clientID)}
}

func (p *placement) replicas(topic metadata.TopicID, index int32) []int32 {
	if p.members == nil {
		return p.alone
	}
	return p.members.replicas(partitionKey(topic, index), p.zone)
}

// preferredReplica is the agent that a consumer of a zone is to fetch from instead of this one: the zone's choice, unless
// this agent is in that zone itself.
func (s *Server) preferredReplica(rack string, topic metadata.TopicID, index int32) (node int32, other bool) {
	m := s.members()
	if m == nil || rack == "" || rack == s.cfg.Rack || !m.hasZone(rack) {
		return noReplica, false
	}
	return m.replicas(partitionKey(topic, index), rack)[0], true
}

func (m *members) hasZone(zone string) bool {
	for _, indices := range m.zones {
		if m.agents[indices[0]].Zone == zone {
			return true
		}
	}
	return false
}

// coordinatorOf is the agent that clients of a listener are sent to for a group or transactional id.
func (s *Server) coordinatorOf(id, listener string) broker {
	m := s.members()
	if m == nil {
		return s.self(listener)
	}
	return s.brokerOf(m.coordinator(coordinatorKey(id)), listener)
}

// coordinates says whether this agent lists a group or transactional id: those that it is the coordinator of, since tools
// ask every broker.
func (s *Server) coordinates(id string) bool {
	m := s.members()
	return m == nil || int32(m.coordinator(coordinatorKey(id)).Node) == s.node()
}
