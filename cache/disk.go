package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the disk tier.
const (
	// MinDiskBytes is the least size of the tier.
	MinDiskBytes = 64 << 20
	// MaxDiskEntries bounds the extents on disk, whatever their size, since each has a place in memory.
	MaxDiskEntries = 1 << 20
	// DiskEntryOverheadBytes is about what the place in memory of an extent on disk takes.
	DiskEntryOverheadBytes = 64
	// DiskQueueBytes bounds what waits to be written; over it extents are not kept.
	DiskQueueBytes = 32 << 20
	// DiskMemoryBytes bounds what the tier takes of memory.
	DiskMemoryBytes = DiskQueueBytes + MaxDiskEntries*DiskEntryOverheadBytes

	// A volume is one part in diskVolumes of the tier, between these bounds. An extent that is larger is not kept.
	diskVolumes    = 16
	minVolumeBytes = 4 << 20
	maxVolumeBytes = 256 << 20
	// diskPause is how long nothing is written after an error: a full disk stays full for a while.
	diskPause = time.Minute
)

// ErrDiskInUse: another process has the folder.
var ErrDiskInUse = errors.New("the folder of the disk cache is in use by another process")

// DiskOptions of a Disk.
type DiskOptions struct {
	// Dir is the folder, made when it is missing. Files in it that are not the tier's are left alone.
	Dir string
	// Bytes bounds the files, with what is being written, from MinDiskBytes.
	Bytes int64
	// Registerer takes the metrics; nil: none are registered.
	Registerer prometheus.Registerer
	Logger     *slog.Logger // nil: discard
}

// Disk keeps extents as they are stored in the bucket in files of a folder: the cache's second tier, which holds what
// readers far behind read. It is safe for concurrent use.
//
// The files are volumes, written from start to end by one goroutine and never changed afterwards; room is made by
// removing the volume whose extents were not read for the longest. No file is held open between operations: whoever
// removes files, or the folder, gets the space at once, and what was in them is a miss. Nothing is fsynced: whatever is
// found, after a crash too, is checked by two checksums, the record's and the extent's.
type Disk struct {
	dir         string
	volumeBytes int64
	maxBytes    int64
	maxEntries  int // of all volumes
	log         *slog.Logger
	metrics     *diskMetrics
	files       fileSystem
	seed        maphash.Seed
	wake        chan struct{} // something is queued
	scanned     chan struct{} // closed when Run knows what was there

	mu      sync.Mutex
	index   map[uint64]place
	sealed  *simplelru.LRU[uint32, *volume] // by the last read
	active  *volume                         // written to; nil: none
	doomed  []*volume                       // could not be removed yet
	used    int64                           // bytes of all volumes
	queue   []diskWrite
	queued  int64 // bytes of queue and of what is being written
	writing int64
	stopped bool

	// Of Run alone.
	lock     *os.File
	nextID   uint32
	resumeAt time.Time // nothing is written before
}

// place is where an extent is.
type place struct {
	volume uint32
	offset uint32 // of the record
	length uint32 // of the payload
}

// volume is a file.
type volume struct {
	id     uint32
	size   int64    // guarded by Disk.mu
	hashes []uint64 // of its extents; guarded by Disk.mu
	// reading is held shared by readers; who removes the file waits for them, so that its space is free afterwards.
	reading sync.RWMutex
}

// diskWrite is an extent to be written.
type diskWrite struct {
	key    Key
	stored []byte
}

func (w *diskWrite) pinned() int64 { return int64(len(w.stored)) + EntryOverheadBytes }

// NewDisk takes the folder. It starts nothing and finds nothing before Run.
func NewDisk(o DiskOptions) (*Disk, error) {
	if o.Dir == "" || o.Bytes < MinDiskBytes {
		return nil, fmt.Errorf("disk cache: a folder and at least %d bytes are needed", MinDiskBytes)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("disk cache: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	sealed, err := simplelru.NewLRU[uint32, *volume](math.MaxInt32, nil)
	if err != nil {
		return nil, fmt.Errorf("disk cache: %w", err)
	}
	d := &Disk{
		dir: dir, maxBytes: o.Bytes, volumeBytes: min(max(o.Bytes/diskVolumes, minVolumeBytes), maxVolumeBytes),
		maxEntries: MaxDiskEntries, log: o.Logger.With("dir", dir), files: osFiles{}, seed: maphash.MakeSeed(),
		wake: make(chan struct{}, 1), scanned: make(chan struct{}), index: map[uint64]place{}, sealed: sealed,
	}
	if d.metrics, err = newDiskMetrics(d, o.Registerer); err != nil {
		return nil, fmt.Errorf("disk cache: register metrics: %w", err)
	}
	if err := d.hold(); err != nil {
		return nil, fmt.Errorf("disk cache: %w", err)
	}
	return d, nil
}

// Run finds what an earlier process left, then writes what is queued, until ctx ends.
func (d *Disk) Run(ctx context.Context) error {
	d.scan(ctx)
	close(d.scanned)
	for {
		select {
		case <-ctx.Done():
			d.stop()
			return nil
		case <-d.wake:
		}
		for ctx.Err() == nil {
			w, ok := d.next()
			if !ok {
				break
			}
			d.write(w)
		}
	}
}

// Close gives the folder to others. Run must have ended. What is there stays for the next process.
func (d *Disk) Close() error { return d.lock.Close() }

// stop takes and drops what is queued.
func (d *Disk) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped, d.queue, d.queued, d.writing = true, nil, 0, 0
}

func (d *Disk) hash(k Key) uint64 { return maphash.Comparable(d.seed, k) }

// offer queues an extent that was read from the bucket. It copies nothing: stored must not be changed any more.
func (d *Disk) offer(k Key, stored []byte) {
	if k.Object == "" || len(k.Object) > maxKeyBytes {
		return
	}
	w := diskWrite{k, stored}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.stopped:
		return
	case recordBytes(k, int64(len(stored))) > d.volumeBytes:
		d.metrics.dropped[dropSize].Inc()
		return
	case d.queued+w.pinned() > DiskQueueBytes:
		d.metrics.dropped[dropQueue].Inc()
		return
	}
	d.queue = append(d.queue, w)
	d.queued += w.pinned()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// next takes the first of the queue. Its bytes count until the next call.
func (d *Disk) next() (w diskWrite, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queued -= d.writing
	d.writing = 0
	if len(d.queue) == 0 {
		d.queue = nil
		return diskWrite{}, false
	}
	w, d.queue[0] = d.queue[0], diskWrite{}
	d.queue = d.queue[1:]
	d.writing = w.pinned()
	return w, true
}

// read gives an extent's stored bytes; ok is false for a miss, which every error is.
func (d *Disk) read(e *Extent) (stored []byte, ok bool) {
	if e.Object == "" {
		return nil, false
	}
	h := d.hash(e.Key)
	d.mu.Lock()
	p, v := d.find(h)
	if v == nil || int64(p.length) != e.Length {
		d.mu.Unlock()
		d.metrics.misses.Inc()
		return nil, false
	}
	v.reading.RLock() // never waits: who takes it alone has removed the volume from the index before
	d.mu.Unlock()
	stored, err := d.readRecord(v.id, p, e.Key)
	v.reading.RUnlock()
	switch {
	case err == nil:
		d.metrics.hits.Inc()
		d.metrics.readBytes.Add(float64(len(stored)))
		return stored, true
	case errors.Is(err, fs.ErrNotExist):
		d.lose(v)
	default:
		d.metrics.failed("read")
		d.log.Debug("an extent on disk cannot be used", "extent", e.String(), "error", err)
		d.forget(e.Key, p)
	}
	d.metrics.misses.Inc()
	return nil, false
}

// find is where an extent is; the volume becomes the youngest. d.mu is held.
func (d *Disk) find(h uint64) (place, *volume) {
	p, ok := d.index[h]
	if !ok {
		return place{}, nil
	}
	if d.active != nil && d.active.id == p.volume {
		return p, d.active
	}
	v, _ := d.sealed.Get(p.volume)
	return p, v
}

// unusable forgets an extent whose bytes are not what the bucket's are.
func (d *Disk) unusable(k Key) {
	d.metrics.failed("read")
	d.mu.Lock()
	p, ok := d.index[d.hash(k)]
	d.mu.Unlock()
	if ok {
		d.forget(k, p)
	}
}

// forget removes an extent from the index, where it is still at that place.
func (d *Disk) forget(k Key, p place) {
	h := d.hash(k)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.index[h] == p {
		delete(d.index, h)
	}
}

// lose notes that a volume's file is gone.
func (d *Disk) lose(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.detach(v) {
		d.used -= v.size
		d.log.Info("a file of the disk cache is gone", "file", volumeName(v.id))
	}
}

// detach removes a volume from what readers find; false: it was already. d.mu is held.
func (d *Disk) detach(v *volume) bool {
	switch {
	case d.active == v:
		d.active = nil
	case d.sealed.Contains(v.id):
		d.sealed.Remove(v.id)
	default:
		return false
	}
	for _, h := range v.hashes {
		if p, ok := d.index[h]; ok && p.volume == v.id {
			delete(d.index, h)
		}
	}
	v.hashes = nil
	return true
}
