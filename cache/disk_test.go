package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/skeinio/skein/objstore"
)

// openDisk starts a tier over dir and waits until it knows what is there; stop ends it.
func openDisk(t *testing.T, dir string, change func(*Disk)) (d *Disk, stop func()) {
	t.Helper()
	d, err := NewDisk(DiskOptions{Dir: dir, Bytes: MinDiskBytes, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	<-d.scanned
	return d, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// diskRig is a bucket with a cache that keeps next to nothing in memory, over a disk tier.
type diskRig struct {
	*bucket
	disk  *Disk
	cache *Cache
	stop  func()
}

func newDiskRig(t *testing.T, dir string, change func(*Disk)) *diskRig {
	t.Helper()
	r := &diskRig{bucket: &bucket{Memory: objstore.NewMemory()}}
	r.open(t, dir, change)
	return r
}

func (r *diskRig) open(t *testing.T, dir string, change func(*Disk)) {
	t.Helper()
	r.disk, r.stop = openDisk(t, dir, change)
	t.Cleanup(r.stop)
	r.cache = newCache(t, r.bucket, func(o *Options) { o.Bytes, o.ColdBytes, o.Disk = 2, 1, r.disk })
}

// read reads extents one by one and waits until what is to be written is.
func (r *diskRig) read(t *testing.T, class Class, extents []Extent) {
	t.Helper()
	for i := range extents {
		wantData(t, r.cache.Get(t.Context(), class, extents[i:i+1]), extents[i:i+1])
		synctest.Wait()
	}
}

// wantReads checks how many GETs reading extents takes.
func (r *diskRig) wantReads(t *testing.T, what string, extents []Extent, gets int) {
	t.Helper()
	before := len(r.gets)
	r.read(t, Cold, extents)
	if got := len(r.gets) - before; got != gets {
		t.Errorf("%s: %d GETs, want %d", what, got, gets)
	}
}

func sizes(n, size int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = size
	}
	return out
}

func volumes(t *testing.T, dir string) (paths []string, bytes int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, volumePrefix+"*"+volumeSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		bytes += info.Size()
	}
	return paths, bytes
}

// TestDiskServesColdReaders: what cold readers read once costs no second GET, also after a restart; what the tail reads is
// not written.
func TestDiskServesColdReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "made", "when", "missing")
		r := newDiskRig(t, dir, nil)
		cold, tail := r.put(t, "a", 0, sizes(20, 10_000)...), r.put(t, "b", 0, 500)
		cold[3].Codec, cold[3].RawLength = 1, 20_000
		r.read(t, Tail, tail)
		if n := len(r.disk.index); n != 0 {
			t.Errorf("%d extents of the tail on disk", n)
		}
		read := func(what string, gets int) {
			before := len(r.gets)
			for i := range cold {
				res := r.cache.Get(t.Context(), Cold, cold[i:i+1])
				if res[0].Err != nil || int64(len(res[0].Data)) != cold[i].RawLength {
					t.Fatalf("%s: extent %d: %d bytes, %v", what, i, len(res[0].Data), res[0].Err)
				}
				synctest.Wait()
			}
			if got := len(r.gets) - before; got != gets {
				t.Errorf("%s: %d GETs, want %d", what, got, gets)
			}
		}
		read("first", 20)
		read("second", 0)
		r.stop()
		r.open(t, dir, nil)
		read("after a restart", 0)
		if hits := testutil.ToFloat64(r.disk.metrics.hits); hits != 20 {
			t.Errorf("%v hits after the restart", hits)
		}
		before := len(r.gets)
		wantData(t, r.cache.Get(t.Context(), Tail, cold[:1]), cold[:1])
		if len(r.gets) != before {
			t.Error("a reader at the tail was not served from disk")
		}
	})
}

// TestDiskLeavesGapsToTheBucket: of one call's extents some are on disk; the rest are read by GETs of their own.
func TestDiskLeavesGapsToTheBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDiskRig(t, t.TempDir(), nil)
		x := r.put(t, "a", 0, 1000, MaxGapBytes+1, 1000)
		r.read(t, Cold, x[1:2])
		r.gets = nil
		wantData(t, r.cache.Get(t.Context(), Cold, x), x)
		r.wantGets(t, "a[0:+1000]", fmt.Sprintf("a[%d:+1000]", x[2].Position))
	})
}

// TestDiskIsBounded: the files never take more than the bound, and the volume that was read last is the last to go.
func TestDiskIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := newDiskRig(t, dir, nil)
		var all []Extent
		for i := range 100 {
			all = append(all, r.put(t, fmt.Sprint("o", i), 0, 1<<20)...)
		}
		for i := range all {
			r.read(t, Cold, all[i:i+1])
			r.read(t, Cold, all[:1]) // the favourite
			if _, n := volumes(t, dir); n > MinDiskBytes || n != r.disk.used {
				t.Fatalf("%d bytes on disk, counted %d, bound %d", n, r.disk.used, MinDiskBytes)
			}
		}
		if n := len(r.gets); n != 100 {
			t.Errorf("%d GETs, want one for each extent: the favourite was evicted", n)
		}
		r.wantReads(t, "the newest", all[len(all)-40:], 0)
		r.wantReads(t, "the oldest", all[4:5], 1)
		if r.disk.metrics.evictedBytes == nil || testutil.ToFloat64(r.disk.metrics.evictedBytes) < 30<<20 {
			t.Error("evicted bytes are not counted")
		}
	})
}

// TestDiskEntriesAreBounded: small extents are bounded by number, since each takes memory.
func TestDiskEntriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDiskRig(t, t.TempDir(), func(d *Disk) { d.maxEntries = 64 })
		x := r.put(t, "a", 0, sizes(200, 10)...)
		for i := range x {
			r.read(t, Cold, x[i:i+1])
			if n := len(r.disk.index); n > 64 {
				t.Fatalf("%d extents on disk, bound 64", n)
			}
		}
		r.wantReads(t, "the newest", x[len(x)-40:], 0)
	})
}

// TestDamagedDiskIsAMiss flips each byte of a small volume in turn, and cuts it at each length, while running and before a
// start: what is damaged is read from the bucket and never served.
func TestDamagedDiskIsAMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := newDiskRig(t, dir, nil)
		x := r.put(t, "object", 0, 30, 40)
		r.read(t, Cold, x)
		paths, _ := volumes(t, dir)
		good, err := os.ReadFile(paths[0])
		if err != nil || len(paths) != 1 {
			t.Fatal(paths, err)
		}
		index := map[uint64]place{}
		for h, p := range r.disk.index {
			index[h] = p
		}
		check := func(what string, data []byte) {
			if err := os.WriteFile(paths[0], data, 0o600); err != nil {
				t.Fatal(err)
			}
			for h, p := range index {
				r.disk.index[h] = p
			}
			before := len(r.gets)
			r.read(t, Cold, x)
			if len(r.gets) == before {
				t.Fatalf("%s: served from disk", what)
			}
		}
		for i := range good {
			bad := append([]byte{}, good...)
			bad[i] ^= 1 << rand.N(8)
			check(fmt.Sprintf("byte %d flipped", i), bad)
			check(fmt.Sprintf("cut to %d", i), good[:i])
		}
		for i := range good {
			r.stop()
			clear := t.TempDir()
			bad := append([]byte{}, good...)
			bad[i] ^= 1 << rand.N(8)
			if err := os.WriteFile(filepath.Join(clear, volumeName(7)), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			r.open(t, clear, nil)
			before := len(r.gets)
			r.read(t, Cold, x)
			if len(r.gets) == before {
				t.Fatalf("byte %d flipped before the start: served from disk", i)
			}
		}
	})
}

// TestDiskMayVanish: a file, all of them, the folder, or the lock are removed while readers read; the tier goes on.
func TestDiskMayVanish(t *testing.T) {
	for what, remove := range map[string]func(dir string) error{
		"a file": func(dir string) error { return os.Remove(filepath.Join(dir, volumeName(0))) },
		"all":    os.RemoveAll,
		"content": func(dir string) error {
			entries, err := os.ReadDir(dir)
			for _, e := range entries {
				if err == nil {
					err = os.Remove(filepath.Join(dir, e.Name()))
				}
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "cache")
				r := newDiskRig(t, dir, nil)
				x := r.put(t, "a", 0, sizes(10, 1000)...)
				r.wantReads(t, "first", x[:5], 5)
				if err := remove(dir); err != nil {
					t.Fatal(err)
				}
				r.wantReads(t, "written into what is gone", x[5:], 5)
				r.wantReads(t, "gone", x[:5], 5)
				r.wantReads(t, "all, again", x, 0)
				if _, n := volumes(t, dir); n != r.disk.used {
					t.Errorf("%d bytes on disk, counted %d", n, r.disk.used)
				}
				if _, err := NewDisk(DiskOptions{Dir: dir, Bytes: MinDiskBytes}); err == nil || !strings.Contains(err.Error(), "in use") {
					t.Errorf("a second process: %v", err)
				}
			})
		})
	}
}

// fullDisk is a file system without room, part of the time.
type fullDisk struct {
	osFiles
	full atomic.Bool
	room int64 // bytes of a write that still fit
}

func (d *fullDisk) open(path string, flag int) (file, error) {
	f, err := d.osFiles.open(path, flag)
	return &fullFile{f, d}, err
}

type fullFile struct {
	file
	disk *fullDisk
}

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.disk.full.Load() {
		return f.file.WriteAt(p, off)
	}
	n, err := f.file.WriteAt(p[:min(int64(len(p)), f.disk.room)], off)
	if err == nil {
		err = &os.PathError{Op: "write", Path: "volume", Err: syscall.ENOSPC}
	}
	return n, err
}

// TestFullDisk: after an error nothing is written for a while; what is there is served, and the rest comes from the bucket.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		disk := &fullDisk{room: 10}
		r := newDiskRig(t, dir, func(d *Disk) { d.files = disk })
		x := r.put(t, "a", 0, sizes(6, 1000)...)
		r.wantReads(t, "first", x[:2], 2)
		disk.full.Store(true)
		r.wantReads(t, "full", x[2:], 4)
		r.wantReads(t, "from the bucket", x[2:], 4)
		r.wantReads(t, "what was there", x[:2], 0)
		if n := testutil.ToFloat64(r.disk.metrics.errors.WithLabelValues("write")); n != 1 {
			t.Errorf("%v errors, want one: nothing is tried for a while", n)
		}
		if n := testutil.ToFloat64(r.disk.metrics.dropped[dropPaused]); n != 8 {
			t.Errorf("%v dropped, want 8", n)
		}
		if _, n := volumes(t, dir); n != r.disk.used {
			t.Errorf("%d bytes on disk, counted %d", n, r.disk.used)
		}
		disk.full.Store(false)
		time.Sleep(diskPause) // the bubble's clock
		r.wantReads(t, "room again", x[2:], 4)
		r.wantReads(t, "written", x, 0)
		r.stop()
		r.open(t, dir, nil)
		r.wantReads(t, "after a restart", x, 0)
	})
}

// TestDiskIsTakenOnce: two processes cannot share a folder; one after the other can, the second with a smaller bound.
func TestDiskIsTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := newDiskRig(t, dir, func(d *Disk) { d.maxBytes *= 2 })
		var x []Extent
		for i := range 100 {
			x = append(x, r.put(t, fmt.Sprint("o", i), 0, 1<<20)...)
		}
		r.read(t, Cold, x)
		if _, err := NewDisk(DiskOptions{Dir: dir, Bytes: MinDiskBytes}); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a second process: %v", err)
		}
		other := filepath.Join(dir, "somebody's file")
		if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.stop()
		r.open(t, dir, nil)
		if _, n := volumes(t, dir); n > MinDiskBytes || n != r.disk.used {
			t.Errorf("%d bytes on disk, counted %d, bound %d", n, r.disk.used, MinDiskBytes)
		}
		if _, err := os.Stat(other); err != nil {
			t.Errorf("another's file: %v", err)
		}
		r.wantReads(t, "the newest", x[60:], 0)
	})
}

// TestDiskUnderLoad reads and writes from many goroutines while files vanish.
func TestDiskUnderLoad(t *testing.T) {
	dir := t.TempDir()
	b := &bucket{Memory: objstore.NewMemory()}
	d, stop := openDisk(t, dir, nil)
	defer stop()
	c := newCache(t, b, func(o *Options) { o.Bytes, o.ColdBytes, o.Disk = 1<<20, 1<<19, d })
	var x []Extent
	for i := range 50 {
		x = append(x, b.put(t, fmt.Sprint("o", i), 0, sizes(20, 100<<10)...)...)
	}
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for i := range 400 {
				at := rnd.IntN(len(x) - 5)
				some := x[at : at+1+rnd.IntN(5)]
				wantData(t, c.Get(t.Context(), Class(rnd.IntN(2)), some), some)
				if i%100 == 50 {
					paths, err := filepath.Glob(filepath.Join(dir, volumePrefix+"*"))
					if err != nil || len(paths) == 0 {
						continue
					}
					_ = os.Remove(paths[rnd.IntN(len(paths))]) // another may have been faster
				}
			}
		})
	}
	wg.Wait()
	if hits := testutil.ToFloat64(d.metrics.hits); hits == 0 {
		t.Error("nothing came from disk")
	}
	if _, n := volumes(t, dir); n > MinDiskBytes {
		t.Errorf("%d bytes on disk, bound %d", n, MinDiskBytes)
	}
}

// BenchmarkDiskRead reads extents of 256 KiB that are in the page cache.
func BenchmarkDiskRead(b *testing.B) {
	d, err := NewDisk(DiskOptions{Dir: b.TempDir(), Bytes: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	stored := make([]byte, 256<<10)
	const n = 1000
	for i := range int64(n) {
		d.write(diskWrite{Key{Object: "o", Position: i}, stored})
	}
	b.SetBytes(int64(len(stored)))
	for i := 0; b.Loop(); i++ {
		e := Extent{Key: Key{Object: "o", Position: int64(i % n)}, Length: int64(len(stored))}
		if _, ok := d.read(&e); !ok {
			b.Fatal("a miss")
		}
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
}
