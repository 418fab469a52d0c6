package metadata

// CatalogueVersion counts changes of topics and their configs in the whole cluster: every change gets the next one.
type CatalogueVersion int64

// Limits of the catalogue.
const (
	// MaxPartitionsPerTopic bounds one topic.
	MaxPartitionsPerTopic = 100_000
	// TombstonesKept bounds the tombstones of deleted topics, which serve agents that refresh incrementally; an agent that
	// missed more than these reloads everything.
	TombstonesKept = 10_000
)

// Topic is a topic and where its partitions live. Topics in a Catalogue are never changed.
type Topic struct {
	ID                TopicID
	Name              string
	Configs           map[string]string // only what was set on the topic
	ReplicationFactor int16             // as asked for, for display
	Partitions        []Partition       // by index
	Version           CatalogueVersion  // of its last change
	Created           Millis
}

// Partition is a partition's place.
type Partition struct {
	Block   BlockID
	Slot    Slot
	Created Millis
}

// Catalogue is all topics at one version. It is never changed: a refresh makes a new one.
type Catalogue struct {
	Version CatalogueVersion
	byName  map[string]*Topic
	byID    map[TopicID]*Topic
	sorted  []*Topic
}

// ByName gives the topic of that name, or nil.
func (c *Catalogue) ByName(name string) *Topic { return c.byName[name] }

// ByID gives the topic of that id, or nil.
func (c *Catalogue) ByID(id TopicID) *Topic { return c.byID[id] }

// Topics gives all topics by name. The slice must not be changed.
func (c *Catalogue) Topics() []*Topic { return c.sorted }

// NewTopic asks for a topic.
type NewTopic struct {
	Name              string
	Partitions        int32 // 1 to MaxPartitionsPerTopic
	ReplicationFactor int16
	Configs           map[string]string // validated by the caller
}

// ConfigChange sets and deletes configs of one topic; Set wins over Delete; Replace first removes all that are set.
type ConfigChange struct {
	Topic   string
	Replace bool
	Set     map[string]string
	Delete  []string
	// Edit, where not nil, gives the new configs from the present ones under the lock (APPEND and SUBTRACT). It must be
	// pure: it may be called again. An error of it is this change's error.
	Edit func(configs map[string]string) (map[string]string, error)
}

// PartitionID names a partition by its place.
type PartitionID struct {
	Block BlockID
	Slot  Slot
}

// DeleteRecords asks to move a partition's log start.
type DeleteRecords struct {
	Partition PartitionID
	Before    Offset // new log start; -1: the high watermark
}

// DeleteRecordsResult is the partition's log start afterwards, or why not.
type DeleteRecordsResult struct {
	LogStart Offset
	Err      error // ErrOffsetOutOfRange, ErrUnknownTopic (deleted)
}
