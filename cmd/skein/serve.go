package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/skeinio/skein/agent"
	"github.com/skeinio/skein/agent/admin"
	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/metadata"
	"github.com/skeinio/skein/objstore"
)

// serve runs an agent until a signal or a failure. A first signal drains it, a second one ends the process.
func serve(ctx context.Context, p *process, cfg *serverConfig, log *slog.Logger) error {
	setMemoryLimit(cfg, log)
	for _, w := range cfg.warnings {
		log.Warn(w)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ready := &readiness{}
	web := admin.New(admin.Options{Listen: cfg.http, Ready: ready.why, Draining: agent.ErrDraining, Metrics: registry, Logger: log})
	if err := web.Listen(ctx); err != nil {
		return err
	}
	log.Info("starting", "http", "http://"+web.Addr().String(), "metadata", cfg.metadata.String(), "bucket", cfg.bucket, "version", version())
	// The HTTP side outlives all others: it says that they are draining.
	webCtx, closeWeb := context.WithCancel(ctx)
	defer closeWeb()
	webDone := make(chan error, 1)
	go func() { webDone <- web.Run(webCtx) }()

	signalled, release := p.interruptible(ctx)
	defer release()
	err := serveUntil(signalled, &stack{cfg: cfg, log: log, ready: ready, metrics: registry, web: web})
	if errors.Is(err, errInterrupted) {
		err = nil // a signal while starting
	}
	ready.notReady(errStopped)
	closeWeb()
	if err = errors.Join(err, <-webDone); err == nil {
		log.Info("stopped")
	}
	return err
}

// errStopped is why an agent that is about to exit is not ready.
var errStopped = errors.New("stopped")

// serveUntil opens what the agent stands on, serves until signalled ends, and drains.
func serveUntil(signalled context.Context, s *stack) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(signalled); err != nil {
		return err
	}
	if err := s.build(signalled); err != nil {
		return err
	}
	return s.run(signalled)
}

// stack is what an agent is made of, from the bottom up.
type stack struct {
	cfg     *serverConfig
	log     *slog.Logger
	ready   *readiness
	metrics *prometheus.Registry
	web     *admin.Server

	driver metadata.Driver
	bucket objstore.Bucket
	store  *metadata.Store
	// Of the role proxy; nil without it.
	cache   *cache.Cache
	disk    *cache.Disk // nil without cache-dir
	batcher *batcher.Batcher
	server  *agent.Server
	cluster *agent.Cluster // nil in topology virtual
	// Of the role compactor; nil without it.
	compactor *compactor.Compactor
}

// open reaches the database and the bucket. What is out of reach for now is waited for; a wrong credential, a missing
// database or a missing bucket is an error.
func (s *stack) open(ctx context.Context) error {
	err := untilReached(ctx, s.log, "database "+s.cfg.metadata.String(), s.ready.notReady, databaseTransient,
		func(ctx context.Context) (err error) {
			s.driver, err = openDatabase(ctx, s.cfg.metadata, s.log)
			return err
		})
	if err != nil {
		return err
	}
	if s.bucket, err = openBucket(ctx, s.cfg.bucket); err != nil {
		return err
	}
	requests, err := objstore.NewMetrics(s.metrics)
	if err != nil {
		return err
	}
	// Retries are outside the metrics: each is a request on the bill. Puts are retried by the batcher.
	s.bucket = objstore.RetryReads(requests.Wrap(s.bucket), objstore.DefaultRetryPolicy())
	err = untilReached(ctx, s.log, "bucket "+s.cfg.bucket, s.ready.notReady, objstore.Retriable, s.checkBucket)
	if err != nil {
		return err
	}
	s.ready.notReady(nil)
	return nil
}

// checkBucket makes sure that the bucket can be used, and creates it where that is wanted.
func (s *stack) checkBucket(ctx context.Context) error {
	err := s.bucket.Check(ctx)
	if !errors.Is(err, objstore.ErrNoBucket) {
		return err
	}
	if !s.cfg.createBucket {
		return fmt.Errorf("%w; create it, or start with --create-bucket", err)
	}
	if err := s.bucket.Create(ctx); err != nil {
		return err
	}
	s.log.Info("bucket created", "bucket", s.cfg.bucket)
	return s.bucket.Check(ctx)
}

// build makes the layers above the database and the bucket. It starts nothing.
func (s *stack) build(ctx context.Context) error {
	s.store = metadata.NewStore(metadata.Options{Driver: s.driver, Logger: s.log, MaxUnmerged: s.cfg.maxUnmerged})
	if err := s.buildCompactor(); err != nil {
		return err
	}
	if !s.cfg.proxy {
		s.ready.ask(func() error { return nil })
		return nil
	}
	return s.buildProxy(ctx)
}

// buildProxy makes what serves clients, opens the listeners and joins the cluster.
func (s *stack) buildProxy(ctx context.Context) (err error) {
	if s.cfg.cacheDir != "" {
		s.disk, err = cache.NewDisk(cache.DiskOptions{
			Dir: s.cfg.cacheDir, Bytes: s.cfg.cacheDisk, Registerer: s.metrics, Logger: s.log,
		})
		if err != nil {
			return err
		}
	}
	s.cache, err = agent.NewExtentCache(s.store, cache.Options{
		Bucket: s.bucket, Bytes: s.cfg.cacheBytes, ColdBytes: s.cfg.cacheBytes / coldShare, Disk: s.disk, Registerer: s.metrics,
	})
	if err != nil {
		return err
	}
	s.batcher, err = batcher.New(batcher.Options{
		Config: s.cfg.batcher, Bucket: s.bucket, Store: s.store, Sink: agent.CacheSink{Cache: s.cache},
		Registerer: s.metrics, Logger: s.log,
	})
	if err != nil {
		return err
	}
	if s.cfg.direct {
		s.cluster = agent.NewCluster(s.store, s.log)
	}
	s.server, err = agent.New(s.cfg.agent, agent.Deps{
		Cluster: s.cluster,
		Store:   s.store, Producer: s.batcher, Extents: s.cache, Bucket: s.bucket, Logger: s.log, Metrics: s.metrics,
	})
	if err != nil {
		return &usageError{err}
	}
	if err := s.server.Listen(ctx); err != nil {
		return err
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	s.ready.ask(s.server.Ready)
	return nil
}

// coldShare is the part of the cache that readers far behind get: one of so many.
const coldShare = 4

// run runs all parts until signalled ends or one of them fails, then drains from the top down: the server answers what
// waits, which the batcher and the store must serve until then.
func (s *stack) run(signalled context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(signalled))
	defer stop()
	g, failed := errgroup.WithContext(running)
	g.Go(func() error { return s.store.Run(failed) })
	var kafka []any
	if s.server != nil {
		g.Go(func() error { return s.batcher.Run(failed) })
		g.Go(func() error { return s.server.Run(failed) })
		kafka = []any{"kafka", s.server.Addr().String()}
	}
	if s.disk != nil {
		g.Go(func() error { return s.disk.Run(failed) })
	}
	if s.cluster != nil {
		g.Go(func() error { return s.cluster.Run(failed) })
	}
	if s.compactor != nil {
		g.Go(func() error { return s.compactor.Run(failed) })
	}
	s.log.Info("ready", append(kafka, "http", "http://"+s.web.Addr().String(), "metadata", s.cfg.metadata.String(),
		"bucket", s.cfg.bucket)...)
	select {
	case <-failed.Done():
		// A part failed: its error is the group's.
	case <-signalled.Done():
		s.drain(signalled)
	}
	stop()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// drain lets everything end that was begun, for as long as the configuration allows. What does not is cut off, which loses
// nothing that was acknowledged.
func (s *stack) drain(signalled context.Context) {
	started := time.Now()
	s.log.Info("draining", "reason", context.Cause(signalled), "timeout", s.cfg.drainTimeout)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(signalled), s.cfg.drainTimeout)
	defer cancel()
	if s.cluster != nil {
		if err := s.cluster.Drain(ctx); err != nil {
			s.log.Warn("the other agents were not told", "error", err)
		}
	}
	if s.server == nil {
		s.ready.notReady(agent.ErrDraining) // what the compactor has begun is begun again by another
	} else {
		s.drainProxy(ctx)
	}
	s.log.Info("drained", "took", time.Since(started).Round(time.Millisecond))
}

// drainProxy answers what waits.
func (s *stack) drainProxy(ctx context.Context) {
	if err := s.server.Drain(ctx); err != nil {
		s.log.Warn("connections were cut off", "error", err)
	}
	if err := s.batcher.Drain(ctx); err != nil {
		s.log.Warn("records that were not acknowledged were given up", "error", err)
	}
}

// close closes what open and build opened.
func (s *stack) close() error {
	var errs []error
	if s.cache != nil {
		s.cache.Close()
	}
	if s.disk != nil {
		errs = append(errs, s.disk.Close())
	}
	if s.driver != nil {
		errs = append(errs, s.driver.Close())
	}
	if s.bucket != nil {
		errs = append(errs, s.bucket.Close())
	}
	return errors.Join(errs...)
}
