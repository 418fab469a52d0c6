package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// Keys in the bucket that are not segments.
const (
	markerKey = "gc/marker"
	clockKey  = "gc/clock"
	// maxMarkerBytes bounds what is read as a marker.
	maxMarkerBytes = 4 << 10
)

// prefixes are where segments are. Nothing else in the bucket is ever deleted.
var prefixes = [...]string{"run/", "seg/"}

// marker is what a pass that deletes leaves in the bucket before it does. A database that went back in time, or a copy of
// one, is behind it.
type marker struct {
	Generation int64  `json:"generation"`
	System     string `json:"system"`
	Timeline   int64  `json:"timeline"`
	LSN        int64  `json:"lsn"`
}

// ErrHalted: nothing is deleted until `skein fsck --repair` has looked and releases it.
var ErrHalted = errors.New("garbage collection is halted")

// Garbage condemns what nothing refers to, and deletes what was condemned long enough ago.
func (c *Compactor) Garbage(ctx context.Context) error {
	if err := c.showHalted(ctx); err != nil {
		return err
	}
	return c.alone(ctx, jobGarbage, func(ctx context.Context) error {
		for n := condemnLimit; n >= condemnLimit; {
			var err error
			if n, err = c.db.Condemn(ctx, max(c.cfg.GCGrace, metadata.MaxResubmit), condemnLimit); err != nil {
				return err
			}
			c.metrics.objects.WithLabelValues("condemned").Add(float64(n))
		}
		if err := c.crash(PointCondemned); err != nil {
			return err
		}
		return c.deleteCondemned(ctx)
	})
}

// showHalted shows whether deleting is halted, whoever found that it must be: this agent may have found it, and another one
// deletes again by now.
func (c *Compactor) showHalted(ctx context.Context) error {
	g, err := c.db.GCState(ctx)
	if err != nil {
		return err
	}
	halted := 0.0
	if g.Halted != "" {
		halted = 1
	}
	c.metrics.halted.Set(halted)
	return nil
}

func (c *Compactor) deleteCondemned(ctx context.Context) error {
	guarded := false
	for {
		condemned, err := c.db.Condemned(ctx, c.cfg.GCGrace, deleteLimit)
		if err != nil {
			return err
		}
		old, err := c.db.OldCondemned(ctx, metadata.CondemnedKept, deleteLimit)
		if err != nil {
			return err
		}
		if len(condemned)+len(old) == 0 {
			return nil
		}
		if !guarded {
			if err := c.guard(ctx); err != nil {
				return err
			}
			guarded = true
		}
		keys := make([]metadata.ObjectKey, len(condemned))
		for i := range condemned {
			keys[i] = condemned[i].Key
		}
		if err := c.remove(ctx, keys); err != nil {
			return err
		}
		if err := c.db.ObjectsDeleted(ctx, keys); err != nil {
			return err
		}
		c.metrics.objects.WithLabelValues("deleted").Add(float64(len(keys)))
		// Once more, for a PUT that landed after the first time; then the keys are forgotten.
		if err := c.remove(ctx, old); err != nil {
			return err
		}
		if _, err := c.db.ForgetObjects(ctx, old); err != nil {
			return err
		}
		c.metrics.removed.WithLabelValues("condemned_keys").Add(float64(len(old)))
	}
}

func (c *Compactor) remove(ctx context.Context, keys []metadata.ObjectKey) error {
	if len(keys) == 0 {
		return nil
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = string(k)
	}
	if err := c.bucket.Delete(ctx, names...); err != nil {
		return fmt.Errorf("delete %d objects: %w", len(keys), err)
	}
	return c.crash(PointDeleted)
}

// guard makes sure that the database is not one that went back in time, and leaves the marker that would show it the next
// time. The generation is counted up in the database first: a crash before the marker is written does no harm.
func (c *Compactor) guard(ctx context.Context) error {
	g, err := c.db.GCState(ctx)
	if err != nil {
		return err
	}
	m, err := readMarker(ctx, c.bucket)
	if err != nil {
		return err
	}
	if g.Halted == "" {
		g.Halted = behind(&g, m)
		if g.Halted != "" {
			if err := c.db.SetGC(ctx, g); err != nil {
				return err
			}
		}
	}
	if g.Halted != "" {
		c.metrics.halted.Set(1)
		return fmt.Errorf("%w: %s; run skein fsck --repair once the database is known to be right", ErrHalted, g.Halted)
	}
	c.metrics.halted.Set(0)
	if g, err = c.db.NextGC(ctx); err != nil {
		return err
	}
	if err := c.crash(PointGeneration); err != nil {
		return err
	}
	if err := writeMarker(ctx, c.bucket, &g); err != nil {
		return err
	}
	return c.crash(PointMarker)
}

// behind says why a database must not delete, or "".
func behind(g *metadata.GCState, m *marker) string {
	switch {
	case g.Moved():
		return fmt.Sprintf("the database is another incarnation than in the last pass: system %s, timeline %d, it was %s and %d",
			g.NowSystem, g.NowTimeline, g.System, g.Timeline)
	case m == nil:
		return ""
	case m.Generation > g.Generation:
		return fmt.Sprintf("the bucket has seen %d passes that delete, this database %d: it is an older state or a copy", m.Generation, g.Generation)
	case m.System != g.NowSystem:
		return fmt.Sprintf("the bucket belongs to the database system %s, this one is %s", m.System, g.NowSystem)
	case m.Timeline == g.NowTimeline && m.LSN > g.NowLSN:
		return fmt.Sprintf("the bucket has seen log position %d, this database is at %d: it is an older state", m.LSN, g.NowLSN)
	}
	return ""
}

// readMarker gives the bucket's marker, nil where there is none.
func readMarker(ctx context.Context, bucket objstore.Bucket) (*marker, error) {
	data, err := objstore.ReadAll(ctx, bucket, markerKey, maxMarkerBytes)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", markerKey, err)
	}
	m := &marker{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("read %s: %w", markerKey, err)
	}
	return m, nil
}

func writeMarker(ctx context.Context, bucket objstore.Bucket, g *metadata.GCState) error {
	data, err := json.Marshal(marker{Generation: g.Generation, System: g.NowSystem, Timeline: g.NowTimeline, LSN: g.NowLSN})
	if err != nil {
		return err
	}
	if err := bucket.Put(ctx, markerKey, objstore.Bytes(data), objstore.PutOptions{}); err != nil {
		return fmt.Errorf("write %s: %w", markerKey, err)
	}
	return nil
}

// bucketNow gives the bucket's clock: the date of an object that was just put.
func bucketNow(ctx context.Context, bucket objstore.Bucket) (time.Time, error) {
	if err := bucket.Put(ctx, clockKey, objstore.Bytes([]byte("now")), objstore.PutOptions{}); err != nil {
		return time.Time{}, fmt.Errorf("read the bucket's clock: %w", err)
	}
	info, err := bucket.Head(ctx, clockKey)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the bucket's clock: %w", err)
	}
	return info.LastModified, nil
}

// Orphans lists all segments of the bucket and condemns those that are older than the grace, by the bucket's own dates,
// and that no row names.
func (c *Compactor) Orphans(ctx context.Context) error {
	return c.alone(ctx, jobOrphans, func(ctx context.Context) error {
		now, err := bucketNow(ctx, c.bucket)
		if err != nil {
			return err
		}
		cutoff := now.Add(-max(c.cfg.GCGrace, metadata.MaxResubmit))
		for _, prefix := range prefixes {
			var page []metadata.ObjectRow
			err := c.bucket.List(ctx, prefix, "", func(info objstore.Info) error {
				if !info.LastModified.Before(cutoff) {
					return nil
				}
				page = append(page, metadata.ObjectRow{Key: metadata.ObjectKey(info.Key), Size: info.Size})
				if len(page) < condemnLimit {
					return nil
				}
				err := c.condemnUnknown(ctx, page)
				page = page[:0]
				return err
			})
			if err == nil && len(page) > 0 {
				err = c.condemnUnknown(ctx, page)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Compactor) condemnUnknown(ctx context.Context, page []metadata.ObjectRow) error {
	unknown, err := c.db.CondemnUnknown(ctx, page)
	if err != nil {
		return err
	}
	c.metrics.objects.WithLabelValues("orphans").Add(float64(len(unknown)))
	for _, k := range unknown {
		c.log.Info("object that no row names condemned", "key", string(k))
	}
	return nil
}

// producerIDsKept is how long it is remembered when producer ids were handed out: nobody asks once no state is left.
const producerIDsKept = 2 * metadata.ProducerExpiry

// Tidy removes rows that are of no use any more. (Receipts are removed by the Store, checkpoints when a newer one is saved.)
func (c *Compactor) Tidy(ctx context.Context) error {
	return c.alone(ctx, jobTidy, func(ctx context.Context) error {
		for n := condemnLimit; n == condemnLimit; {
			var err error
			if n, err = c.db.ExpireProducerIDs(ctx, producerIDsKept, condemnLimit); err != nil {
				return err
			}
			c.metrics.removed.WithLabelValues("producer_ids").Add(float64(n))
		}
		return nil
	})
}
