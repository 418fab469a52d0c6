package group

import (
	"bytes"
	"slices"

	"github.com/skeinio/skein/metadata"
)

// Topic is what a consumer group knows of a topic that it subscribes to.
type Topic struct {
	ID         metadata.TopicID
	Partitions int32
}

// Consumer is the state of a group of KIP-848's protocol.
type Consumer struct {
	Epoch       int32 // raised when members, subscriptions or topics change
	TargetEpoch int32 // the Epoch that the members' targets were made for
	Topics      map[string]Topic
}

// MemberState is how far a member's reconciliation is.
type MemberState uint8

// States of members. The numbers are in the database.
const (
	MemberStable     MemberState = 0
	MemberUnrevoked  MemberState = 1 // it must give up partitions first
	MemberUnreleased MemberState = 2 // partitions of its target are still others'
)

// ConsumerMember is what KIP-848 adds to a member.
type ConsumerMember struct {
	Epoch     int32
	PrevEpoch int32
	State     MemberState
	Topics    []string // subscribed to by name, sorted
	Regex     string   // "" for none
	Rack      string
	Assignor  string // asked for, "" for none
	Assigned  Assignment
	Revoking  Assignment // owned, and to be given up
	Target    Assignment
	// RevokeDeadline is when the member is fenced if it has not given up Revoking; JoinDeadline when one that speaks the
	// classic protocol must have rejoined. 0: none.
	RevokeDeadline metadata.Millis
	JoinDeadline   metadata.Millis
	Classic        bool // it speaks the classic protocol
	Away           bool // a static member that left for a while (epoch -2)
}

// Assignment is partitions by topic, ascending.
type Assignment map[metadata.TopicID][]int32

func (a Assignment) topics() []metadata.TopicID {
	ids := make([]metadata.TopicID, 0, len(a))
	for id := range a {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y metadata.TopicID) int { return bytes.Compare(x[:], y[:]) })
	return ids
}

func (g *Group) removeConsumer(e Event, m *Member) {}
func (g *Group) tickConsumer(e Event)              {}
