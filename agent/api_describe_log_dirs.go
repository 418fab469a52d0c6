package agent

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// DescribeLogDirs, key 35, versions 1 to 4: one virtual folder that holds everything. A partition's size is the bytes ever
// appended to it, as they came; its lag is 0. How much room there is nobody knows: that is the bucket's.

// viewsAtOnce bounds the blocks whose views are asked for at a time.
const viewsAtOnce = 64

// sized is one partition of a DescribeLogDirs response.
type sized struct {
	place     metadata.Partition
	topic     int // in the response
	partition int // in the topic
}

func (s *Server) describeLogDirs(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.DescribeLogDirsRequest)
	resp := kmsg.NewPtrDescribeLogDirsResponse()
	resp.SetVersion(r.version)
	dir := kmsg.NewDescribeLogDirsResponseDir()
	dir.Dir = virtualLogDir
	call, cancel := context.WithTimeout(ctx, defaultAdminTimeout)
	defer cancel()
	c, err := s.freshCatalogue(call)
	if err == nil {
		parts := logDirTopics(c, req, &dir)
		err = s.fillSizes(call, parts, &dir)
	}
	if err != nil {
		if err := s.ended(ctx, "DescribeLogDirs", err); err != nil {
			return reply{}, err
		}
		dir.ErrorCode, dir.Topics = r.note(codeOf(err)), nil
	}
	resp.Dirs = append(resp.Dirs, dir)
	return reply{msg: resp}, nil
}

// logDirTopics fills in the topics and partitions that are asked for and exist, each once.
func logDirTopics(c *metadata.Catalogue, req *kmsg.DescribeLogDirsRequest, dir *kmsg.DescribeLogDirsResponseDir) []sized {
	var parts []sized
	add := func(t *metadata.Topic, indexes []int32) {
		x := kmsg.NewDescribeLogDirsResponseDirTopic()
		x.Topic = t.Name
		for _, i := range indexes {
			if i < 0 || int(i) >= len(t.Partitions) {
				continue
			}
			p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
			p.Partition = i
			parts = append(parts, sized{place: t.Partitions[i], topic: len(dir.Topics), partition: len(x.Partitions)})
			x.Partitions = append(x.Partitions, p)
		}
		if len(x.Partitions) > 0 {
			dir.Topics = append(dir.Topics, x)
		}
	}
	if req.Topics == nil {
		for _, t := range c.Topics() {
			all := make([]int32, len(t.Partitions))
			for i := range all {
				all[i] = int32(i)
			}
			add(t, all)
		}
		return parts
	}
	asked := map[string][]int32{}
	var names []string
	for i := range req.Topics {
		q := &req.Topics[i]
		if asked[q.Topic] == nil {
			names = append(names, q.Topic)
		}
		asked[q.Topic] = append(asked[q.Topic], q.Partitions...)
	}
	for _, name := range names {
		if t := c.ByName(name); t != nil {
			slices.Sort(asked[name])
			add(t, slices.Compact(asked[name]))
		}
	}
	return parts
}

// fillSizes fills in the partitions' sizes, as fresh as the request.
func (s *Server) fillSizes(ctx context.Context, parts []sized, dir *kmsg.DescribeLogDirsResponseDir) error {
	byBlock := map[metadata.BlockID][]sized{}
	var ids []metadata.BlockID
	for _, p := range parts {
		if byBlock[p.place.Block] == nil {
			ids = append(ids, p.place.Block)
		}
		byBlock[p.place.Block] = append(byBlock[p.place.Block], p)
	}
	for chunk := range slices.Chunk(ids, viewsAtOnce) {
		if err := s.store.Refresh(ctx, chunk...); err != nil {
			return err
		}
		views, err := s.store.Views(ctx, chunk)
		if err != nil {
			return err
		}
		for i, v := range views {
			if v == nil {
				continue // deleted meanwhile
			}
			for _, p := range byBlock[chunk[i]] {
				dir.Topics[p.topic].Partitions[p.partition].Size = v.Photo.Bytes[p.place.Slot]
			}
		}
	}
	return nil
}
