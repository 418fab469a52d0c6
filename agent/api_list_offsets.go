package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// ListOffsets, key 2, versions 1 to 11.
//
// It always asks the database, so that what was acknowledged anywhere before the request is in the answer. There is no
// tiered storage in Kafka's sense: -4 (earliest local, KIP-405) is the log's start, -5 and -6 answer -1.

// Timestamps with a meaning of their own, and the first versions that have them.
const (
	latestTimestamp              = -1
	earliestTimestamp            = -2
	maxTimestamp                 = -3 // KIP-734
	earliestLocalTimestamp       = -4
	latestTieredTimestamp        = -5
	earliestPendingUpload        = -6
	maxTimestampSince            = 7
	earliestLocalSince           = 8
	latestTieredSince            = 9
	earliestPendingSince         = 11
	listOffsetsTimeout           = 20 * time.Second
	noTimestamp            int64 = -1
)

// listed is one partition of a ListOffsets request being answered.
type listed struct {
	part      *partRead
	timestamp int64
	out       *kmsg.ListOffsetsResponseTopicPartition
}

// listOffsets serves a ListOffsets request.
func (s *Server) listOffsets(ctx context.Context, r *request) (reply, error) {
	req, ok := r.msg.(*kmsg.ListOffsetsRequest)
	if !ok {
		return reply{}, fmt.Errorf("list offsets: request is %T", r.msg)
	}
	var resp *kmsg.ListOffsetsResponse
	err := s.resolved(ctx, func(c *metadata.Catalogue, err error) (unknown bool, _ error) {
		resp, err = s.listIn(ctx, req, c, err)
		return err == nil && anyUnknown(resp), err
	})
	if err != nil {
		return reply{}, err
	}
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			r.note(resp.Topics[i].Partitions[j].ErrorCode)
		}
	}
	return reply{msg: resp}, nil
}

func anyUnknown(resp *kmsg.ListOffsetsResponse) bool {
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			if resp.Topics[i].Partitions[j].ErrorCode == codeUnknownTopicOrPartition {
				return true
			}
		}
	}
	return false
}

// listIn answers a request by a catalogue; err is why there is none.
func (s *Server) listIn(
	ctx context.Context, req *kmsg.ListOffsetsRequest, catalogue *metadata.Catalogue, err error,
) (*kmsg.ListOffsetsResponse, error) {
	resp := kmsg.NewPtrListOffsetsResponse()
	resp.Version = req.Version
	resp.Topics = make([]kmsg.ListOffsetsResponseTopic, len(req.Topics))
	var asked []listed
	for i := range req.Topics {
		t, out := &req.Topics[i], &resp.Topics[i]
		out.Topic = t.Topic
		out.Partitions = make([]kmsg.ListOffsetsResponseTopicPartition, len(t.Partitions))
		seen := map[int32]bool{}
		for j := range t.Partitions {
			p, x := &t.Partitions[j], &out.Partitions[j]
			x.Default()
			x.Partition = p.Partition
			part, code := findPart(catalogue, t.Topic, p.Partition, err)
			switch {
			case seen[p.Partition]:
				code = codeInvalidRequest
			case code == codeNone:
				if code = checkLeaderEpoch(p.CurrentLeaderEpoch); code == codeNone {
					code = checkTimestamp(p.Timestamp, req.Version)
				}
			}
			seen[p.Partition] = true
			if x.ErrorCode = code; code == codeNone {
				asked = append(asked, listed{part: part, timestamp: p.Timestamp, out: x})
			}
		}
	}
	return resp, s.answerOffsets(ctx, asked, req.IsolationLevel == readCommitted)
}

// checkTimestamp refuses special timestamps that the version does not have.
func checkTimestamp(ts int64, version int16) int16 {
	since := map[int64]int16{
		latestTimestamp: 0, earliestTimestamp: 0, maxTimestamp: maxTimestampSince, earliestLocalTimestamp: earliestLocalSince,
		latestTieredTimestamp: latestTieredSince, earliestPendingUpload: earliestPendingSince,
	}
	if v, special := since[ts]; ts < 0 && (!special || version < v) {
		return codeUnsupportedVersion
	}
	return codeNone
}

// answerOffsets fills in the answers.
func (s *Server) answerOffsets(ctx context.Context, asked []listed, committed bool) error {
	parts := make([]*partRead, len(asked))
	for i := range asked {
		parts[i] = asked[i].part
	}
	if err := s.reader.fresh(ctx, parts); err != nil {
		return err
	}
	var searches []*timeSearch
	var at []int
	for i := range asked {
		a := &asked[i]
		p := a.part
		if a.out.ErrorCode = p.code; p.failed() {
			continue
		}
		p.limit = p.highWatermark()
		if committed {
			p.limit = p.lso()
		}
		switch a.timestamp {
		case latestTimestamp:
			a.found(p.limit, noTimestamp)
		case earliestTimestamp, earliestLocalTimestamp:
			a.found(p.logStart(), noTimestamp)
		case latestTieredTimestamp, earliestPendingUpload:
		default:
			searches, at = append(searches, newTimeSearch(p, a.timestamp)), append(at, i)
		}
	}
	searchCtx, cancel := context.WithTimeout(ctx, listOffsetsTimeout)
	defer cancel()
	s.reader.searchTimes(searchCtx, searches)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i, q := range searches {
		a := &asked[at[i]]
		if a.out.ErrorCode = q.part.code; !q.part.failed() && q.found {
			a.found(q.foundOffset, int64(q.foundTime))
		}
	}
	return nil
}

func (a *listed) found(offset metadata.Offset, timestamp int64) {
	a.out.Offset, a.out.Timestamp, a.out.LeaderEpoch = int64(offset), timestamp, leaderEpoch
}
