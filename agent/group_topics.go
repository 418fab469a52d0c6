package agent

import (
	"iter"

	"github.com/skeinio/skein/agent/group"
	"github.com/skeinio/skein/metadata"
)

// groupTopics is a catalogue as the rules of groups see it.
type groupTopics struct{ c *metadata.Catalogue }

func asGroupTopic(t *metadata.Topic) group.Topic {
	return group.Topic{ID: t.ID, Partitions: int32(len(t.Partitions))}
}

// Topic implements group.Topics.
func (t groupTopics) Topic(name string) (group.Topic, bool) {
	x := t.c.ByName(name)
	if x == nil {
		return group.Topic{}, false
	}
	return asGroupTopic(x), true
}

// Name implements group.Topics.
func (t groupTopics) Name(id metadata.TopicID) string {
	if x := t.c.ByID(id); x != nil {
		return x.Name
	}
	return ""
}

// All implements group.Topics.
func (t groupTopics) All() iter.Seq2[string, group.Topic] {
	return func(yield func(string, group.Topic) bool) {
		for _, x := range t.c.Topics() {
			if !yield(x.Name, asGroupTopic(x)) {
				return
			}
		}
	}
}
