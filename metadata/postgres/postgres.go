// Package postgres is the metadata driver for Postgres 14 and newer. It loads and saves rows in bulk and decides nothing:
// the rules are in package metadata.
//
// A commit is two round trips. The first begins the transaction, inserts inline payloads, locks the blocks in id order
// and then, as later statements, reads what is new. The second inserts rows, receipts and objects and commits. Both are
// pipelines of prepared statements whose parameters are arrays, one for each column.
//
// Connections: one pool for commits and catalogue changes, one for reads, so that a reader far behind does not slow
// producers; one connection for wake-ups sent, one for wake-ups heard, and one that ends Skein's own sessions whose
// client is frozen while they hold a lock (see lockwatch.go).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skeinio/skein/metadata"
)

// Bounds and defaults.
const (
	// DefaultCommitConns and DefaultReadConns are how many connections the two pools have at most, when neither Options
	// nor pool_max_conns in the URL, for both together, says it.
	DefaultCommitConns = 8
	DefaultReadConns   = 8
	// idleInTransactionTimeout ends a session that stopped between the round trips of a commit.
	idleInTransactionTimeout = 2 * time.Second
	// lockTimeout bounds one wait for a lock; the commit then begins again, as long as its context lasts.
	lockTimeout = time.Second
	// statementTimeout bounds one statement.
	statementTimeout = 10 * time.Second
	// connectTimeout bounds the making of one connection, when the URL has no connect_timeout.
	connectTimeout = 5 * time.Second
	// maxIdleConn is how long an unused connection is kept.
	maxIdleConn = 5 * time.Minute
	// applicationName marks Skein's sessions in pg_stat_activity. The lock watch ends only sessions of this name.
	applicationName = "skein"
	// minServerVersion is Postgres 14.
	minServerVersion = 140000
	// maxScratch bounds the parameter buffers that are kept for use again, in bytes each.
	maxScratch = 4 << 20
)

// Options of a Driver. Zero values take the defaults.
type Options struct {
	Logger      *slog.Logger
	CommitConns int
	ReadConns   int
	// Wait is how long Open waits for a server that cannot be reached or is starting; 0: not at all.
	Wait time.Duration
	// SkipMigrate: fail when the schema is older than this version instead of migrating it.
	SkipMigrate bool
	// OnIncarnation is told when the database turns out to be another one, or an older state of it, than before
	// (failover, restore). It is called before any connection to that database is used.
	OnIncarnation func(before, now Incarnation)
}

// Driver implements metadata.Driver. It is safe for concurrent use.
type Driver struct {
	opts    Options
	log     *slog.Logger
	url     string
	commits *pgxpool.Pool
	reads   *pgxpool.Pool
	notify  *pgxpool.Pool // one connection, synchronous_commit off
	watch   *pgxpool.Pool // one connection, for the lock watch

	scratch     sync.Pool // *params
	incarnation incarnations
	ended       atomic.Int64 // sessions that the lock watch ended
}

var (
	_ metadata.Driver             = (*Driver)(nil)
	_ metadata.IncarnationWatcher = (*Driver)(nil)
)

// Open connects to the database at url (pgx's syntax), checks the server and brings the schema up to date.
func Open(ctx context.Context, url string, opts Options) (*Driver, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	commits, reads := poolSizes(url)
	if opts.CommitConns <= 0 {
		opts.CommitConns = commits
	}
	if opts.ReadConns <= 0 {
		opts.ReadConns = reads
	}
	d := &Driver{opts: opts, log: opts.Logger, url: url}
	d.scratch.New = func() any { return &params{} }
	config, err := connConfig(url)
	if err != nil {
		return nil, err
	}
	if err := d.prepareSchema(ctx, config); err != nil {
		return nil, err
	}
	if err := d.openPools(ctx, config); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// poolSizes gives the default sizes of the pools: pool_max_conns of the URL, shared out, or constants.
func poolSizes(url string) (commits, reads int) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil || !strings.Contains(url, "pool_max_conns") {
		return DefaultCommitConns, DefaultReadConns
	}
	total := int(config.MaxConns)
	return max(1, (total+1)/2), max(1, total/2)
}

func (d *Driver) openPools(ctx context.Context, config *pgx.ConnConfig) error {
	hot := config.Copy()
	for name, value := range hotSettings() {
		hot.RuntimeParams[name] = value
	}
	lazy := config.Copy()
	lazy.RuntimeParams["synchronous_commit"] = "off"
	pools := []struct {
		to       **pgxpool.Pool
		config   *pgx.ConnConfig
		min, max int
		after    func(context.Context, *pgx.Conn) error
	}{
		{&d.commits, hot, 0, d.opts.CommitConns, d.prepareHot},
		{&d.reads, hot, 0, d.opts.ReadConns, d.prepareHot},
		{&d.notify, lazy, 0, 1, nil},
		{&d.watch, config, 1, 1, nil}, // kept open: it is needed when connections may be short
	}
	for _, p := range pools {
		c, err := pgxpool.ParseConfig(d.url)
		if err != nil {
			return fmt.Errorf("postgres: %w", err)
		}
		c.ConnConfig, c.AfterConnect = p.config, p.after
		c.MinConns, c.MaxConns, c.MaxConnIdleTime = int32(p.min), int32(p.max), maxIdleConn
		pool, err := pgxpool.NewWithConfig(ctx, c)
		if err != nil {
			return fmt.Errorf("postgres: %w", err)
		}
		*p.to = pool
	}
	// The first connection: what would keep the pools from working is an error now.
	conn, err := acquire(ctx, d.commits)
	if err != nil {
		return err
	}
	conn.Release()
	return nil
}

// acquire waits for a connection of a pool.
func acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	conn, err := pool.Acquire(ctx)
	if err == nil {
		return conn, nil
	}
	if stat := pool.Stat(); ctx.Err() != nil && stat.AcquiredConns() == stat.MaxConns() {
		return nil, fmt.Errorf("%w: all %d connections of the pool are in use: %w", metadata.ErrUnavailable, stat.MaxConns(), err)
	}
	return nil, unavailable(explain(err, pool.Config().ConnConfig))
}

// prepareHot makes a new connection ready for commits and reads.
func (d *Driver) prepareHot(ctx context.Context, conn *pgx.Conn) error {
	if err := d.checkServer(ctx, conn); err != nil {
		return err
	}
	return prepare(ctx, conn)
}

// Close closes all connections; it waits for those in use.
func (d *Driver) Close() error {
	for _, pool := range []*pgxpool.Pool{d.commits, d.reads, d.notify, d.watch} {
		if pool != nil {
			pool.Close()
		}
	}
	return nil
}

// params gives a parameter buffer; done takes it back.
func (d *Driver) params() *params { return d.scratch.Get().(*params).reset() }

func (d *Driver) done(p *params) {
	if cap(p.buf) <= maxScratch {
		d.scratch.Put(p)
	}
}

// query runs fn on a connection of the read pool, and again when the session turns out to be lost: what fn does must do
// no harm when it is done twice. Its errors are marked as unavailable.
func (d *Driver) query(ctx context.Context, fn func(*pgxpool.Conn) error) error {
	for reconnects := 0; ; reconnects++ {
		conn, err := acquire(ctx, d.reads)
		if err != nil {
			return err
		}
		err = fn(conn)
		conn.Release()
		if err == nil || !lost(err) || ctx.Err() != nil || reconnects == maxReconnects {
			return unavailable(err)
		}
	}
}

// read runs a prepared statement on the read pool. collect gives what each row of its answer goes to; it is called again
// for every attempt.
func (d *Driver) read(ctx context.Context, name statement, p *params, collect func() func(*column) error) error {
	return d.query(ctx, func(conn *pgxpool.Conn) error {
		rr := conn.Conn().PgConn().ExecPrepared(ctx, string(name), p.list(), binaryFormat, binaryFormat)
		return eachRow(rr, collect())
	})
}

// eachRow reads an answer to its end.
func eachRow(rr *pgconn.ResultReader, row func(*column) error) error {
	var failed error
	for rr.NextRow() {
		if failed != nil || row == nil {
			continue
		}
		c := column{values: rr.Values()}
		if failed = row(&c); failed == nil {
			failed = c.err
		}
	}
	_, err := rr.Close()
	return errors.Join(err, failed)
}
