// Package sqlite is the embedded metadata driver: one database file of one agent. It loads and saves rows and decides
// nothing.
//
// Every commit is on the disk when it returns: write-ahead log with synchronous=FULL, which syncs the log at every
// commit. The folder is held by one process at a time through a lock file beside the database; within it one connection
// writes and several read, each read in one transaction, thus from one view. The clock is this machine's.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skeinio/skein/metadata"
)

// ErrLocked says that another process has the database open.
var ErrLocked = errors.New("database is in use by another process")

// ErrSchemaTooNew says that a newer Skein made the database.
var ErrSchemaTooNew = errors.New("database was made by a newer version of skein")

// defaultReaders is how many reads run at once.
const defaultReaders = 4

// Options of a Driver. Zero values take the defaults.
type Options struct {
	Logger  *slog.Logger
	Readers int              // connections for reads
	Now     func() time.Time // the database's clock
}

// Driver implements metadata.Driver on one SQLite file. It is safe for concurrent use.
type Driver struct {
	log  *slog.Logger
	now  func() time.Time
	path string
	lock io.Closer

	writer  chan *session // holds the one writer while it is free
	readers chan *session // holds the readers that are free
	every   []*session
	ready   bool // all sessions are open

	copying    atomic.Bool // the write-ahead log is being copied in the background
	background sync.WaitGroup
	closed     chan struct{}
	close      sync.Once

	residentKnown atomic.Bool // inline bytes were counted
	resident      atomic.Int64
}

var _ metadata.Driver = (*Driver)(nil)

// Open opens or makes the database at path, with its folder, and brings its schema up to date. The error wraps ErrLocked
// or ErrSchemaTooNew where these fit.
func Open(ctx context.Context, path string, opts Options) (*Driver, error) {
	d, err := open(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("open metadata database %s: %w", path, err)
	}
	return d, nil
}

func open(ctx context.Context, path string, opts Options) (*Driver, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Readers <= 0 {
		opts.Readers = defaultReaders
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	d := &Driver{
		log: opts.Logger, now: opts.Now, path: path, lock: lock,
		writer:  make(chan *session, 1),
		readers: make(chan *session, opts.Readers),
		closed:  make(chan struct{}),
	}
	if err := d.connect(ctx, opts.Readers); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// connect opens the connections and migrates.
func (d *Driver) connect(ctx context.Context, readers int) error {
	w, err := openSession(ctx, d.path, writerCacheKiB)
	if err != nil {
		return err
	}
	d.every = append(d.every, w)
	if err := w.checkDurable(); err != nil {
		return err
	}
	if err := migrate(w, d.millis()); err != nil {
		return err
	}
	if err := syncFolder(filepath.Dir(d.path)); err != nil {
		return err
	}
	for range readers {
		r, err := openSession(ctx, d.path, readerCacheKiB)
		if err != nil {
			return err
		}
		d.every = append(d.every, r)
		d.readers <- r
	}
	d.writer <- w
	d.ready = true
	return nil
}

// Close waits for what is under way and closes the database.
func (d *Driver) Close() error {
	var errs []error
	d.close.Do(func() {
		close(d.closed)
		if d.ready { // whoever holds a session gives it back; nobody gets one any more
			for range d.every {
				select {
				case <-d.writer:
				case <-d.readers:
				}
			}
		}
		d.background.Wait()
		for _, s := range d.every {
			errs = append(errs, s.close())
		}
		errs = append(errs, d.lock.Close())
	})
	return errors.Join(errs...)
}

// millis reads the database's clock.
func (d *Driver) millis() metadata.Millis { return metadata.Millis(d.now().UnixMilli()) }

// Now implements metadata.Driver.
func (d *Driver) Now(ctx context.Context) (metadata.Millis, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	return d.millis(), nil
}

// Notify implements metadata.Driver. There are no other agents to tell; the Store publishes its own commits itself.
func (d *Driver) Notify(context.Context, metadata.Event) error { return nil }

// Listen implements metadata.Driver: nothing comes from elsewhere.
func (d *Driver) Listen(ctx context.Context, fn func(metadata.Event)) error {
	fn(metadata.Event{All: true})
	<-ctx.Done()
	return ctx.Err()
}

// makeFolder makes a folder and its parents, each on the disk before its child.
func makeFolder(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

// syncFolder puts a folder's entries on the disk.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
