package objstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// watchedDisk records what is made durable, in order, and fails on demand.
type watchedDisk struct {
	root   string
	mu     sync.Mutex
	events []string

	writeErr, syncErr error
	folderErr         func(path string) error
}

type watchedFile struct {
	tempFile
	disk *watchedDisk
}

func watch(t *testing.T, b *File) *watchedDisk {
	t.Helper()
	w := &watchedDisk{root: b.root}
	system := systemDisk()
	b.disk = disk{
		create: func(path string) (tempFile, error) {
			f, err := system.create(path)
			return &watchedFile{f, w}, err
		},
		syncFolder: func(path string) error {
			w.add("sync folder " + strings.TrimPrefix(path, filepath.Dir(w.root)))
			if w.folderErr != nil {
				if err := w.folderErr(path); err != nil {
					return err
				}
			}
			return system.syncFolder(path)
		},
	}
	return w
}

func (w *watchedDisk) add(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event)
}

func (w *watchedDisk) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

func (f *watchedFile) Write(p []byte) (int, error) {
	if f.disk.writeErr != nil {
		n, err := f.tempFile.Write(p[:len(p)/2])
		return n, errors.Join(err, f.disk.writeErr)
	}
	return f.tempFile.Write(p)
}

func (f *watchedFile) Sync() error {
	names, err := visible(f.disk.root)
	if err != nil {
		return err
	}
	f.disk.add("sync file; visible: " + strings.Join(names, " "))
	if f.disk.syncErr != nil {
		return f.disk.syncErr
	}
	return f.tempFile.Sync()
}

// visible are the objects in a folder.
func visible(root string) ([]string, error) {
	b, err := OpenFile(root)
	if err != nil {
		return nil, err
	}
	var names []string
	err = b.List(context.Background(), "", "", func(info Info) error {
		names = append(names, info.Key)
		return nil
	})
	return names, err
}

// temporaries are the files left in the bucket's folder for temporary files.
func temporaries(t *testing.T, b *File) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(b.root, tempFolder, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func openWatched(t *testing.T) (*File, *watchedDisk) {
	t.Helper()
	b, err := OpenFile(filepath.Join(t.TempDir(), "B"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b, watch(t, b)
}

// TestFilePutOrder wants the bytes to be durable before the object has a name, and the name and all
// new folders before Put returns.
func TestFilePutOrder(t *testing.T) {
	b, w := openWatched(t)
	steps := []struct {
		key  string
		opts PutOptions
		want []string
	}{
		{"x/y/one", PutOptions{}, []string{"sync folder /B", "sync folder /B/x", "sync file; visible: ", "sync folder /B/x/y"}},
		{"x/y/two", PutOptions{IfNoneMatch: true}, []string{"sync file; visible: x/y/one", "sync folder /B/x/y"}},
		{"top", PutOptions{}, []string{"sync file; visible: x/y/one x/y/two", "sync folder /B"}},
		{"x/three", PutOptions{}, []string{"sync file; visible: top x/y/one x/y/two", "sync folder /B/x"}},
	}
	for _, step := range steps {
		if err := b.Put(t.Context(), step.key, Bytes([]byte("data")), step.opts); err != nil {
			t.Fatal(err)
		}
		if got := w.take(); !slices.Equal(got, step.want) {
			t.Errorf("put %s:\n got %q\nwant %q", step.key, got, step.want)
		}
	}
	if err := b.Delete(t.Context(), "x/y/one", "x/y/two", "x/y/none"); err != nil {
		t.Fatal(err)
	}
	if got, want := w.take(), []string{"sync folder /B/x/y"}; !slices.Equal(got, want) {
		t.Errorf("delete: got %q, want %q", got, want)
	}
}

func TestFilePutFailures(t *testing.T) {
	b, w := openWatched(t)
	broken := errors.New("broken disk")
	tests := []struct {
		name             string
		fail             func()
		want             error
		mayBeThere, once bool
	}{
		{name: "write", fail: func() { w.writeErr = syscall.ENOSPC }, want: ErrFull},
		{name: "write over the quota", fail: func() { w.writeErr = syscall.EDQUOT }, want: ErrFull},
		{name: "fsync finds the disk full", fail: func() { w.syncErr = syscall.ENOSPC }, want: ErrFull},
		{name: "fsync", fail: func() { w.syncErr = broken }, want: ErrUnavailable},
		{name: "fsync of a conditional put", fail: func() { w.syncErr = broken }, want: ErrUnavailable, once: true},
		{name: "fsync of the folder", fail: func() { w.folderErr = func(string) error { return broken } }, want: ErrUnavailable, mayBeThere: true},
		{name: "read-only", fail: func() { w.writeErr = syscall.EROFS }, want: ErrAccess},
	}
	mustPut := func() {
		if err := b.Put(t.Context(), "d/before", Bytes([]byte("x")), PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mustPut()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.fail()
			err := b.Put(t.Context(), "d/object", Bytes(make([]byte, 1<<20)), PutOptions{IfNoneMatch: test.once})
			w.writeErr, w.syncErr, w.folderErr = nil, nil, nil
			if !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
			names, err := visible(b.root)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(names, "d/object") && !test.mayBeThere {
				t.Errorf("the object is there")
			}
			if left := temporaries(t, b); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
			mustPut() // and the bucket works on
			if err := b.Delete(t.Context(), "d/object"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestFileNewFolderFailure wants a folder whose own name is not known to be durable to be made so by
// the next Put.
func TestFileNewFolderFailure(t *testing.T) {
	b, w := openWatched(t)
	w.folderErr = func(path string) error {
		if path == b.root {
			return errors.New("broken disk")
		}
		return nil
	}
	if err := b.Put(t.Context(), "d/object", nil, PutOptions{}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("put: %v", err)
	}
	w.folderErr = nil
	w.take()
	if err := b.Put(t.Context(), "d/object", nil, PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := w.take(); !slices.Contains(got, "sync folder /B") {
		t.Errorf("the folder's own name was not made durable: %q", got)
	}
}

// TestFolderSyncIsShared holds the first fsync of a folder and wants those who come meanwhile to share
// one later fsync: not the first, which may have begun before their rename.
func TestFolderSyncIsShared(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	calls := 0
	f := &folder{path: "p", disk: disk{syncFolder: func(string) error {
		calls++ // rounds do not overlap
		entered <- struct{}{}
		<-release
		return nil
	}}}
	var waiters sync.WaitGroup
	waiters.Go(func() {
		if err := f.sync(); err != nil {
			t.Error(err)
		}
	})
	<-entered
	second, leader := f.join()
	if !leader {
		t.Error("who comes during the first fsync waits for that one")
	}
	for range 5 {
		if round, leader := f.join(); round != second || leader {
			t.Error("who comes later makes another round")
		}
	}
	waiters.Go(func() {
		if err := f.lead(second); err != nil {
			t.Error(err)
		}
	})
	release <- struct{}{}
	<-entered
	if third, leader := f.join(); third == second || !leader {
		t.Error("who comes during the second fsync waits for that one")
	}
	select {
	case <-second.done:
		t.Error("the second round is over before its fsync")
	default:
	}
	release <- struct{}{}
	<-second.done
	waiters.Wait()
	if calls != 2 {
		t.Errorf("%d fsyncs, want 2", calls)
	}
}

// TestFileTemporaries wants a dead process's temporary files to go, and a living one's to stay.
func TestFileTemporaries(t *testing.T) {
	b, _ := openWatched(t)
	if err := b.Put(t.Context(), "object", Bytes([]byte("x")), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	alive := filepath.Join(b.session.path, "being-written")
	dead := filepath.Join(b.root, tempFolder, "dead", "being-written")
	if err := os.Mkdir(filepath.Dir(dead), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{alive, dead} {
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	names, err := visible(b.root) // opens the bucket a second time
	if err != nil || !slices.Equal(names, []string{"object"}) {
		t.Errorf("listed %q, error %v", names, err)
	}
	if got := temporaries(t, b); !slices.Equal(got, []string{alive}) {
		t.Errorf("left %q, want %q", got, alive)
	}
	if err := b.Put(t.Context(), tempFolder+"/x", nil, PutOptions{}); !errors.Is(err, ErrInvalidKey) {
		t.Errorf("a key among the temporary files: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := temporaries(t, b); len(got) != 0 {
		t.Errorf("after close: %q", got)
	}
}

// TestFileFolderRemovedBehindOurBack wants Put to make again what somebody removed.
func TestFileFolderRemovedBehindOurBack(t *testing.T) {
	b, w := openWatched(t)
	for range 2 {
		if err := b.Put(t.Context(), "d/e/object", nil, PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := w.take(); len(got) < 4 {
			t.Errorf("new folders were not made durable: %q", got)
		}
		for _, dir := range []string{"d", tempFolder} {
			if err := os.RemoveAll(filepath.Join(b.root, dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(b.root); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "d/e/object", nil, PutOptions{}); !errors.Is(err, ErrNoBucket) {
		t.Errorf("put into a removed bucket: %v", err)
	}
}

// TestFileKeyIsFolder wants an object that would have to be a folder to be refused, not to replace it.
func TestFileKeyIsFolder(t *testing.T) {
	b, _ := openWatched(t)
	if err := b.Put(t.Context(), "a/b", nil, PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "a/b/c"} {
		for _, once := range []bool{false, true} {
			if err := b.Put(t.Context(), key, nil, PutOptions{IfNoneMatch: once}); !errors.Is(err, ErrInvalidKey) {
				t.Errorf("put %q beside a/b: %v", key, err)
			}
		}
	}
	if err := b.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete of a folder's name: %v", err)
	}
	if _, err := b.Head(t.Context(), "a/b"); err != nil {
		t.Errorf("a/b is gone: %v", err)
	}
}

// TestFileSymlinks wants links in the folder not to be objects.
func TestFileSymlinks(t *testing.T) {
	b, _ := openWatched(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(b.root, "link")); err != nil {
		t.Fatal(err)
	}
	names, err := visible(b.root)
	if err != nil || len(names) != 0 {
		t.Errorf("listed %q, error %v", names, err)
	}
	if _, err := b.Head(t.Context(), "link"); !errors.Is(err, ErrNotFound) {
		t.Errorf("head of a link: %v", err)
	}
}
