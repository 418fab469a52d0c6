package agent

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// OffsetCommit, key 8, versions 2 to 10; from version 10 topics are named by id (KIP-848's follow-up).

const (
	commitTopicIDs int16 = 10
	// commitNoGroup is the first version that hears GROUP_ID_NOT_FOUND and STALE_MEMBER_EPOCH.
	commitNoGroup int16 = 9
	// commitTimeout bounds one commit of offsets.
	commitTimeout = 10 * time.Second
)

func (s *Server) offsetCommit(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.OffsetCommitRequest)
	resp := kmsg.NewPtrOffsetCommitResponse()
	resp.SetVersion(r.version)
	var code int16
	commit := metadata.OffsetCommit{
		Group: metadata.GroupID(req.Group), Member: metadata.MemberID(req.MemberID), Instance: deref(req.InstanceID),
	}
	var taken []*kmsg.OffsetCommitResponseTopicPartition
	if !validGroupID(req.Group) {
		code = codeInvalidGroupID
	}
	topics, err := s.commitTopics(ctx, r.version, req)
	if err != nil {
		code, _ = s.groupCode(ctx, "OffsetCommit", err)
	}
	limit := s.groups.settings().MaxOffsetMetadata
	for i := range req.Topics {
		t := &req.Topics[i]
		x := kmsg.NewOffsetCommitResponseTopic()
		x.Topic, x.TopicID = t.Topic, t.TopicID
		x.Partitions = make([]kmsg.OffsetCommitResponseTopicPartition, len(t.Partitions))
		for j := range t.Partitions {
			p, y := &t.Partitions[j], &x.Partitions[j]
			*y = kmsg.NewOffsetCommitResponseTopicPartition()
			y.Partition = p.Partition
			if y.ErrorCode = code; code != codeNone {
				continue
			}
			topic := topics[i]
			switch {
			case topic == nil && r.version >= commitTopicIDs:
				y.ErrorCode = codeUnknownTopicID
			case topic == nil || p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				y.ErrorCode = codeUnknownTopicOrPartition
			case len(deref(p.Metadata)) > limit:
				y.ErrorCode = codeOffsetMetadataTooLarge
			default:
				o := metadata.GroupOffset{
					TopicPartition: metadata.TopicPartition{Topic: topic.ID, Partition: p.Partition},
					Offset:         metadata.Offset(p.Offset), LeaderEpoch: p.LeaderEpoch, Metadata: []byte(deref(p.Metadata)),
				}
				commit.Offsets, taken = append(commit.Offsets, o), append(taken, y)
			}
		}
		resp.Topics = append(resp.Topics, x)
	}
	if code == codeNone && len(commit.Offsets) > 0 {
		code, err := s.commitOffsets(ctx, r, req, commit)
		if err != nil {
			return reply{}, err
		}
		for _, y := range taken {
			y.ErrorCode = code
		}
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			r.note(resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return reply{msg: resp}, nil
}

// commitTopics finds the topics of a request; nil for those that are not there.
func (s *Server) commitTopics(ctx context.Context, version int16, req *kmsg.OffsetCommitRequest) ([]*metadata.Topic, error) {
	find := func(c *metadata.Catalogue, t *kmsg.OffsetCommitRequestTopic) *metadata.Topic {
		if version >= commitTopicIDs {
			return c.ByID(t.TopicID)
		}
		return c.ByName(t.Topic)
	}
	c, err := s.catalogueWith(ctx, func(c *metadata.Catalogue) bool {
		for i := range req.Topics {
			if find(c, &req.Topics[i]) == nil {
				return false
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	topics := make([]*metadata.Topic, len(req.Topics))
	for i := range req.Topics {
		topics[i] = find(c, &req.Topics[i])
	}
	return topics, nil
}

// commitOffsets commits, and gives the code of all partitions. An error ends the connection.
func (s *Server) commitOffsets(ctx context.Context, r *request, req *kmsg.OffsetCommitRequest, commit metadata.OffsetCommit) (int16, error) {
	who := group.Committer{Member: commit.Member, Instance: commit.Instance, Generation: req.Generation}
	commit.Check = func(now metadata.Millis, row *metadata.GroupRow, members []metadata.MemberRow) error {
		if req.RetentionTimeMillis >= 0 && r.version <= 4 {
			for i := range commit.Offsets {
				commit.Offsets[i].Expires = now.Add(time.Duration(req.RetentionTimeMillis) * time.Millisecond)
			}
		}
		code, err := group.CheckCommit(row, members, who)
		if err != nil {
			return err
		}
		return refuse(commitCode(code, r.version))
	}
	call, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	code, ok := s.groupCode(ctx, "OffsetCommit", s.store.CommitOffsets(call, commit))
	if !ok {
		return 0, ctx.Err()
	}
	if code == codeNone {
		s.groups.heardCommit(commit.Group, commit.Member)
	}
	return code, nil
}

// commitCode gives a code as that version of the request knows it.
func commitCode(code group.Code, version int16) group.Code {
	if version >= commitNoGroup {
		return code
	}
	switch code {
	case group.GroupIDNotFound:
		return group.IllegalGeneration
	case group.StaleMemberEpoch:
		return group.IllegalGeneration
	}
	return code
}

// heardCommit renews the session of a member that committed, as Kafka does.
func (gs *groups) heardCommit(id metadata.GroupID, member metadata.MemberID) {
	if member == "" {
		return
	}
	gs.mu.Lock()
	var m *group.Member
	if x := gs.entries[id]; x != nil && x.snap != nil {
		m = x.snap.Members[member]
	}
	gs.mu.Unlock()
	if m != nil {
		gs.hear(id, m)
	}
}
