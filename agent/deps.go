package agent

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/metadata"
)

// Topics is what the server needs of the catalogue.
type Topics interface {
	// Catalogue gives the cached catalogue, RefreshCatalogue one at least as new as the call.
	Catalogue(ctx context.Context) (*metadata.Catalogue, error)
	RefreshCatalogue(ctx context.Context) (*metadata.Catalogue, error)
	CreateTopics(ctx context.Context, topics []metadata.NewTopic, validateOnly bool) ([]*metadata.Topic, []error, error)
	ClusterID(ctx context.Context) (string, error)
}

// ProducerIDs hands out producer ids, in ranges.
type ProducerIDs interface {
	AllocateProducerIDs(ctx context.Context, count int) (metadata.ProducerRange, error)
}

// Clock gives database time.
type Clock interface {
	Now(ctx context.Context) (metadata.Millis, error)
}

// Store is all that the server needs of *metadata.Store, in the small parts that the handlers ask for. The read path and
// the admin handlers add theirs here.
type Store interface {
	Topics
	ProducerIDs
	Clock
	Reads
	Admin
	GroupStore
	Txns
}

var _ Store = (*metadata.Store)(nil)

// Submitter takes the batches of Produce requests. Submit returns at once; the outcome comes through Produce.Done, once,
// from any goroutine, whatever happens. Submits of one connection come one after another, in the order of its requests.
type Submitter interface {
	Submit(p batcher.Produce)
}

// Deps are what a Server works with.
type Deps struct {
	Store    Store
	Producer Submitter
	Extents  Extents               // NewExtentCache makes one
	Bucket   cache.Source          // for the indexes of merged segments
	Cluster  *Cluster              // topology "direct"; nil: "virtual"
	Logger   *slog.Logger          // nil: discard
	Metrics  prometheus.Registerer // nil: a registry of its own
}
