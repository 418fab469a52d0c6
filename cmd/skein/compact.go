package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/metadata"
)

// The roles of an agent: to serve clients; to merge, delete and collect garbage.
const (
	roleProxy     = "proxy"
	roleCompactor = "compactor"
)

// errNoCompaction: a driver without the compactor's methods. Both of ours have them.
var errNoCompaction = errors.New("the metadata driver has no compaction")

// buildCompactor makes the compactor, where it is one of the roles, and the metrics of its effect on producers.
func (s *stack) buildCompactor() error {
	err := s.registerStore()
	if err != nil || s.cfg.compactor == nil {
		return err
	}
	db, ok := s.driver.(metadata.Compaction)
	if !ok {
		return errNoCompaction
	}
	holder, err := holderName()
	if err != nil {
		return err
	}
	s.compactor, err = compactor.New(compactor.Options{
		Config: *s.cfg.compactor, Holder: holder, Driver: db, Store: s.store, Bucket: s.bucket, Logger: s.log, Registerer: s.metrics,
	})
	return err
}

// registerStore registers the metrics of what the compactor's work, or the lack of it, does to producers, and of housekeeping.
func (s *stack) registerStore() error {
	list := []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "skein_commits_stalled_total", Help: "Commits that were slowed because a block had more than max-unmerged rows.",
		}, func() float64 { return float64(s.store.Stalls()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "skein_commit_stall_seconds_total", Help: "How long commits were slowed, because of max-unmerged, all together.",
		}, func() float64 { return s.store.Stalled().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skein_unmerged_rows_worst_block",
			Help: "Unmerged level-0 rows of the block with most, of those that this agent uses. It rises long before producers are slowed.",
		}, func() float64 { return float64(s.store.Unmerged()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skein_unmerged_rows_limit", Help: "max-unmerged: rows of a block over which producers are slowed; 0: never.",
		}, func() float64 { return float64(s.cfg.maxUnmerged) }),
	}
	for _, chore := range metadata.Chores() {
		list = append(list, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skein_housekeeping_age_seconds", ConstLabels: prometheus.Labels{"job": string(chore)},
			Help: "By job: since this agent last removed rows that are of no use any more, to the end and without an error, or its start.",
		}, func() float64 { return s.store.SinceDone(chore).Seconds() }))
	}
	for _, c := range list {
		if err := s.metrics.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// holderName names this process in leases, for people; what counts is a lease's token.
func holderName() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("name of the compactor: %w", err)
	}
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), hex.EncodeToString(b[:])), nil
}
