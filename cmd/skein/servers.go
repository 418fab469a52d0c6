package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skeinio/skein/agent"
	"github.com/skeinio/skein/batcher"
	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/internal/segment"
	"github.com/skeinio/skein/objstore"
)

// serverConfig is what `skein dev` and `skein agent` run with.
type serverConfig struct {
	agent        agent.Config
	batcher      batcher.Config
	compactor    *compactor.Config // nil: not in this process's roles
	proxy        bool              // serves clients
	maxUnmerged  int64             // 0: producers are never slowed
	metadata     databaseURL
	bucket       string // URL
	createBucket bool
	cacheBytes   int64
	cacheDir     string // of the cache's disk tier; "": none
	cacheDisk    int64  // its bytes
	http         string // address
	direct       bool   // every agent is a broker
	drainTimeout time.Duration
	warnings     []string // to be logged once
}

func newDev(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "dev", Short: "Run everything in one process on an embedded database and a local folder", Args: exactArgs(),
	}
	addFlags(cmd, inDev)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serveCommand(cmd, p, inDev, devPlaces)
	}
	return cmd
}

func newAgent(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use: "agent", Short: "Run one agent of a cluster on a database and a bucket", Args: exactArgs(),
	}
	addFlags(cmd, inAgent)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serveCommand(cmd, p, inAgent, agentPlaces)
	}
	return cmd
}

// serveCommand reads the settings, checks them and serves until a signal.
func serveCommand(cmd *cobra.Command, p *process, sc scope, places func(*settings, *serverConfig) error) error {
	s, err := readSettings(cmd.Flags(), sc)
	if err != nil {
		return err
	}
	if s.on("print-config") {
		return s.print(p.stdout)
	}
	if sc == inAgent {
		if err := s.checkRequired(cmd.CommandPath()); err != nil {
			return err
		}
	}
	cfg, err := newServerConfig(s)
	if err == nil {
		err = places(s, cfg)
	}
	if err != nil {
		return &usageError{err}
	}
	log := newLogger(p.stderr, s)
	return serve(cmd.Context(), p, cfg, log)
}

// newServerConfig makes the typed configuration and checks what spans options.
func newServerConfig(s *settings) (*serverConfig, error) {
	compression, err := segment.ParseCompression(s.str("compression"))
	if err != nil {
		return nil, fmt.Errorf("--compression: %w", err)
	}
	cfg := &serverConfig{
		batcher: batcher.DefaultConfig(),
		agent: agent.Config{
			Listen: s.str("listen"), NodeID: int32(s.count("node-id")), Rack: s.str("zone"),
			MaxRequestBytes: int(s.size("max-request-bytes")), ProduceBufferBytes: s.size("produce-buffer-bytes"),
			MaxConnections: s.count("max-connections"), MaxConnectionAge: s.dur("max-connection-age"),
			AutoCreateTopics: s.on("auto-create-topics"), DefaultPartitions: int32(s.count("default-partitions")),
		},
		maxUnmerged: int64(s.count("max-unmerged")),
		cacheBytes:  s.size("cache-bytes"), cacheDir: s.str("cache-dir"), cacheDisk: s.size("cache-disk-bytes"), http: s.str("http"), drainTimeout: s.dur("drain-timeout"),
	}
	cfg.agent.Groups = groupSettings(s)
	if err := cfg.agent.Groups.Validate(); err != nil {
		return nil, err
	}
	b := &cfg.batcher
	b.Linger, b.SegmentBytes = s.dur("linger"), s.size("segment-bytes")
	b.PutBudget, b.CommitBudget = s.rate("put-budget"), s.rate("commit-budget")
	b.InlineMaxBytes, b.InlineBytesPerSecond = s.size("inline-max-bytes"), s.size("inline-bytes-per-second")
	b.InlineResidentBytes = s.size("inline-resident-bytes")
	b.Uploads, b.SequenceHold, b.Compression = s.count("uploads"), s.dur("sequence-hold"), compression
	b.Hedge = s.on("hedge")
	if err := b.Validate(); err != nil {
		return nil, err
	}
	if x, limit := s.size("max-request-bytes"), s.size("produce-buffer-bytes"); x > limit {
		return nil, fmt.Errorf("max-request-bytes (%s) is above produce-buffer-bytes (%s): such a request could never be read",
			formatSize(x), formatSize(limit))
	}
	if x, limit := s.size("segment-bytes"), s.size("produce-buffer-bytes"); x > limit {
		return nil, fmt.Errorf("segment-bytes (%s) is above produce-buffer-bytes (%s): such a segment could never fill",
			formatSize(x), formatSize(limit))
	}
	if (cfg.cacheDir == "") != (cfg.cacheDisk == 0) {
		return nil, errors.New("cache-dir and cache-disk-bytes go together: give both or neither")
	}
	if cfg.cacheDir != "" && cfg.cacheDisk < cache.MinDiskBytes {
		return nil, fmt.Errorf("--cache-disk-bytes: %s is below the least, %s", formatSize(cfg.cacheDisk), formatSize(cache.MinDiskBytes))
	}
	if cfg.http == "" {
		return nil, errors.New("--http is empty; give an address such as 127.0.0.1:9090")
	}
	cfg.proxy = s.scope != inAgent || slices.Contains(s.names("roles"), roleProxy)
	if !cfg.proxy {
		return cfg, nil
	}
	if err := cfg.advertise(s.str("advertise")); err != nil {
		return nil, err
	}
	return cfg, nil
}

// advertise sets the address that clients are told. Without one it is the listener's, which must then be an address that
// clients can connect to.
func (c *serverConfig) advertise(address string) error {
	if address == "" {
		host, _, err := net.SplitHostPort(c.agent.Listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			c.agent.AdvertisedHost = "127.0.0.1"
			c.warnings = append(c.warnings, "clients are told to connect to 127.0.0.1: set --advertise when they are on other machines")
		}
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--advertise: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("--advertise %s: want a port from 1 to 65535", address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("--advertise %s: want a host that clients can connect to", address)
	}
	c.agent.AdvertisedHost, c.agent.AdvertisedPort = host, int32(n)
	return nil
}

// devPlaces puts the database and the bucket into the data folder.
func devPlaces(s *settings, cfg *serverConfig) error {
	data := s.str("data")
	if data == "" {
		return errors.New("--data is empty; give a folder")
	}
	dir, err := filepath.Abs(data)
	if err != nil {
		return fmt.Errorf("--data %s: %w", data, err)
	}
	cfg.metadata = databaseURL{kind: databaseSQLite, path: filepath.Join(dir, "metadata.db")}
	cfg.bucket = objstore.URL{Scheme: objstore.SchemeFile, Path: filepath.Join(dir, "bucket")}.String()
	cfg.createBucket = true
	cfg.compactor = compactorConfig(s)
	return nil
}

// compactorConfig is the compactor's part of the configuration.
func compactorConfig(s *settings) *compactor.Config {
	return &compactor.Config{
		Interval: s.dur("compaction-interval"), MaxUnmerged: int64(s.count("max-unmerged")), GCGrace: s.dur("gc-grace"),
		BytesPerSecond: s.size("compaction-bytes-per-second"), InlineResidentBytes: s.size("inline-resident-bytes"),
		// A flush is full at segment-bytes, and the batch that filled it may be as large as a request.
		LargestExtent: s.size("segment-bytes") + s.size("max-request-bytes"),
	}
}

// agentPlaces reads the URLs of the database and the bucket.
func agentPlaces(s *settings, cfg *serverConfig) error {
	var err error
	if cfg.metadata, err = parseDatabaseURL(s.str("metadata")); err != nil {
		return fmt.Errorf("--metadata: %w", err)
	}
	cfg.bucket = s.str("bucket")
	u, err := objstore.ParseURL(cfg.bucket)
	if err != nil {
		return fmt.Errorf("--bucket: %w", err)
	}
	if cfg.proxy {
		if err := readTopology(s, cfg); err != nil {
			return err
		}
	}
	cfg.createBucket = s.on("create-bucket") || u.Scheme == objstore.SchemeMemory
	if u.Scheme == objstore.SchemeMemory {
		cfg.warnings = append(cfg.warnings, "the bucket is in memory: its records are gone, and lost to the database, when the process ends")
	}
	if slices.Contains(s.names("roles"), roleCompactor) {
		cfg.compactor = compactorConfig(s)
	}
	if !cfg.proxy && cfg.compactor == nil {
		return errors.New("--roles is empty: want proxy, compactor or both")
	}
	return nil
}

// newLogger makes the log.
func newLogger(w io.Writer, s *settings) *slog.Logger {
	level := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[s.str("log-level")]
	opts := &slog.HandlerOptions{Level: level}
	if s.str("log-format") == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// databaseKind is a metadata driver.
type databaseKind string

const (
	databasePostgres databaseKind = "postgres"
	databaseSQLite   databaseKind = "sqlite"
)

// databaseURL names the metadata database.
type databaseURL struct {
	kind databaseKind
	path string // sqlite: the file
	raw  string // postgres: the URL, with its password
}

// parseDatabaseURL reads postgres://…, sqlite:///abs/path.db or sqlite:rel/path.db.
func parseDatabaseURL(raw string) (databaseURL, error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	switch {
	case !ok:
		return databaseURL{}, fmt.Errorf("%q has no scheme; want postgres://user@host:port/db, sqlite:///abs/path.db or sqlite:rel/path.db", raw)
	case scheme == "postgres" || scheme == "postgresql":
		if !strings.HasPrefix(rest, "//") {
			return databaseURL{}, errors.New("want postgres://user@host:port/db")
		}
		if _, err := url.Parse(raw); err != nil {
			return databaseURL{}, errors.New("does not parse as a URL; want postgres://user@host:port/db") // err would show the password
		}
		return databaseURL{kind: databasePostgres, raw: raw}, nil
	case scheme == "sqlite":
		path, isURL := strings.CutPrefix(rest, "//")
		if isURL && !strings.HasPrefix(path, "/") {
			return databaseURL{}, fmt.Errorf("%s: want sqlite:///abs/path.db or sqlite:rel/path.db", raw)
		}
		if path == "" || strings.HasSuffix(path, "/") || strings.ContainsAny(path, "?#") || path == ":memory:" {
			return databaseURL{}, fmt.Errorf("%s: want the path of a file", raw)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return databaseURL{}, fmt.Errorf("%s: %w", raw, err)
		}
		return databaseURL{kind: databaseSQLite, path: abs}, nil
	}
	return databaseURL{}, fmt.Errorf("unknown scheme %q; want postgres or sqlite", scheme)
}

// String is the URL without its secrets.
func (u databaseURL) String() string {
	if u.kind == databaseSQLite {
		return "sqlite://" + u.path
	}
	return hideSecrets(u.raw)
}

// backoff of what is out of reach at the start.
const (
	reachBackoffBase = 250 * time.Millisecond
	reachBackoffMax  = 5 * time.Second
)

// untilReached calls try until it succeeds, fails for good (by the judgement of transient), or ctx ends. What it waits for
// is logged, and told to waiting.
func untilReached(ctx context.Context, log *slog.Logger, what string, waiting func(reason error), transient func(error) bool,
	try func(context.Context) error) error {
	delay := reachBackoffBase
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !transient(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		waiting(fmt.Errorf("waiting for the %s: %s", what, oneLine(err.Error())))
		log.Warn("waiting for the "+what, "error", oneLine(err.Error()), "retry_in", delay)
		if !sleepUntil(ctx, time.Now().Add(delay)) {
			return context.Cause(ctx)
		}
		delay = min(delay*2, reachBackoffMax)
	}
}
