package agent

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/metadata"
)

// Bounds of the metrics of lag.
const (
	// maxLagSeries bounds the partitions shown, maxLagGroups the groups; what is over is counted.
	maxLagSeries = 10_000
	maxLagGroups = 1_000
	// lagTimeout bounds the reading, lagKept is how long it is shown again without reading anew.
	lagTimeout = 5 * time.Second
	lagKept    = 5 * time.Second
)

// lagCollector shows how far groups are behind. It reads when it is asked, so that it costs nothing where nobody scrapes.
// Every agent shows all groups: consumers that are gone are what lag is watched for.
type lagCollector struct {
	gs      *groups
	lag     *prometheus.Desc
	sum     *prometheus.Desc
	omitted *prometheus.Desc

	mu   sync.Mutex
	read time.Time
	last []prometheus.Metric
}

func newLagCollector(gs *groups) *lagCollector {
	return &lagCollector{
		gs: gs,
		lag: prometheus.NewDesc("skein_group_lag", "Records between a group's committed offset and the high watermark.",
			[]string{"group", "topic", "partition"}, nil),
		sum: prometheus.NewDesc("skein_group_lag_sum", "skein_group_lag of all partitions of a group.", []string{"group"}, nil),
		omitted: prometheus.NewDesc("skein_group_lag_omitted",
			"Partitions left out of skein_group_lag because there are too many; more groups than are looked at count as one each.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *lagCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.lag
	ch <- c.sum
	ch <- c.omitted
}

// Collect implements prometheus.Collector.
func (c *lagCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.read) > lagKept {
		ctx, cancel := context.WithTimeout(context.Background(), lagTimeout)
		defer cancel()
		list, err := c.gather(ctx)
		if err != nil {
			c.gs.log.Debug("lag of groups was not read", "error", err)
			list = nil // better none than an old one
		}
		c.last, c.read = list, time.Now()
	}
	for _, m := range c.last {
		ch <- m
	}
}

func (c *lagCollector) gather(ctx context.Context) ([]prometheus.Metric, error) {
	rows, err := c.gs.store.ListGroups(ctx, "", maxLagGroups+1)
	if err != nil {
		return nil, err
	}
	omitted := 0
	if len(rows) > maxLagGroups {
		rows, omitted = rows[:maxLagGroups], 1
	}
	queries := make([]metadata.OffsetQuery, len(rows))
	for i := range rows {
		queries[i] = metadata.OffsetQuery{Group: rows[i].ID, All: true}
	}
	offsets, err := c.gs.store.LoadOffsets(ctx, queries)
	if err != nil {
		return nil, err
	}
	catalogue, err := c.gs.store.Catalogue(ctx)
	if err != nil {
		return nil, err
	}
	views, err := c.views(ctx, offsets, catalogue)
	if err != nil {
		return nil, err
	}
	var list []prometheus.Metric
	series := 0
	for i := range rows {
		id := string(rows[i].ID)
		sum := int64(0)
		for _, o := range offsets[i] {
			t := catalogue.ByID(o.Topic)
			if t == nil || int(o.Partition) >= len(t.Partitions) || views[t.Partitions[o.Partition].Block] == nil {
				continue
			}
			p := t.Partitions[o.Partition]
			v := views[p.Block]
			lag := max(int64(v.HighWatermark(p.Slot)-max(o.Offset, v.LogStart(p.Slot))), 0)
			if sum += lag; series == maxLagSeries {
				omitted++
				continue
			}
			series++
			list = append(list, prometheus.MustNewConstMetric(c.lag, prometheus.GaugeValue, float64(lag), id, t.Name, strconv.Itoa(int(o.Partition))))
		}
		if len(offsets[i]) > 0 {
			list = append(list, prometheus.MustNewConstMetric(c.sum, prometheus.GaugeValue, float64(sum), id))
		}
	}
	return append(list, prometheus.MustNewConstMetric(c.omitted, prometheus.GaugeValue, float64(omitted))), nil
}

// views gives the views of the blocks that have the offsets' partitions, as they are now.
func (c *lagCollector) views(ctx context.Context, offsets [][]metadata.GroupOffset, catalogue *metadata.Catalogue) (map[metadata.BlockID]*metadata.View, error) {
	var blocks []metadata.BlockID
	for _, list := range offsets {
		for _, o := range list {
			if t := catalogue.ByID(o.Topic); t != nil && int(o.Partition) < len(t.Partitions) {
				blocks = append(blocks, t.Partitions[o.Partition].Block)
			}
		}
	}
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	if len(blocks) == 0 {
		return nil, nil
	}
	if err := c.gs.store.Refresh(ctx, blocks...); err != nil {
		return nil, err
	}
	list, err := c.gs.store.Views(ctx, blocks)
	if err != nil {
		return nil, err
	}
	views := make(map[metadata.BlockID]*metadata.View, len(blocks))
	for i, id := range blocks {
		views[id] = list[i]
	}
	return views, nil
}
