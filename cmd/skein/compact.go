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
	err := s.metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "skein_commits_stalled_total", Help: "Commits that were slowed because a block had more than max-unmerged rows.",
	}, func() float64 { return float64(s.store.Stalls()) }))
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
