package objstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
)

// disk is what durability rests on, as functions so that tests can watch and fail them.
type disk struct {
	create     func(path string) (tempFile, error) // a new file
	syncFolder func(path string) error
}

// tempFile is a file that is being written.
type tempFile interface {
	io.WriteCloser
	Sync() error
}

func systemDisk() disk {
	return disk{
		create: func(path string) (tempFile, error) {
			return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		},
		syncFolder: syncPath,
	}
}

// folder is a folder of objects whose own name is durable. Puts that finish in it at the same time
// share one fsync.
type folder struct {
	path string
	disk disk

	mu      sync.Mutex
	waiting *syncRound // the round that has not begun; nil when nobody waits
	running sync.Mutex // held by the round that is under way
}

// syncRound is one fsync and those who wait for it.
type syncRound struct {
	done chan struct{}
	err  error // valid once done is closed
}

// sync makes every name given in the folder before the call durable. Only an fsync that begins after
// the call will do, so a caller joins the next round, never the running one.
func (f *folder) sync() error {
	round, leader := f.join()
	if !leader {
		<-round.done
		return round.err
	}
	return f.lead(round)
}

// join gives the round that a caller waits for, and whether the caller is to lead it.
func (f *folder) join() (round *syncRound, leader bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting != nil {
		return f.waiting, false
	}
	f.waiting = &syncRound{done: make(chan struct{})}
	return f.waiting, true
}

// lead does a round's fsync when the one under way has ended.
func (f *folder) lead(round *syncRound) error {
	f.running.Lock()
	defer f.running.Unlock()
	f.mu.Lock()
	f.waiting = nil // from here on callers belong to the next round
	f.mu.Unlock()
	round.err = f.disk.syncFolder(f.path)
	close(round.done)
	return round.err
}

// folder gives the folder at path, made and durable with all the folders above it up to the root.
func (b *File) folder(path string) (*folder, error) {
	b.mu.Lock()
	f := b.folders[path]
	b.mu.Unlock()
	if f != nil {
		return f, nil
	}
	if path != b.root {
		parent, err := b.folder(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			if !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			if info, err := os.Stat(path); err != nil {
				return nil, err
			} else if !info.IsDir() {
				return nil, &fs.PathError{Op: "make folder", Path: path, Err: errNotFolder}
			}
		}
		// Also when it existed: whoever made it may not have got to the fsync.
		if err := parent.sync(); err != nil {
			return nil, err
		}
	} else if !b.exists() {
		return nil, &fs.PathError{Op: "open folder", Path: b.root, Err: fs.ErrNotExist}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.folders[path]; f != nil {
		return f, nil // another Put was faster; one folder, one queue of rounds
	}
	if len(b.folders) >= maxKnownFolders {
		clear(b.folders)
	}
	f = &folder{path: path, disk: b.disk}
	b.folders[path] = f
	return f, nil
}

// forget drops all that is known of folders and temporary files.
func (b *File) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.folders)
	if b.session != nil {
		b.session.lock.Close() // its folder is gone, so is what it could clean
		b.session = nil
	}
}

// makeFolders is MkdirAll that makes the names durable.
func makeFolders(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "make folder", Path: path, Err: errNotFolder}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeFolders(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncPath(parent)
}

// syncPath fsyncs a folder.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// tempSession is this process's folder of temporary files. The folder is locked for as long as the
// process lives, so that others can tell a dead process's files from a slow one's.
type tempSession struct {
	path string
	disk disk
	lock *os.File
	next atomic.Uint64
}

func (b *File) tempSession() (*tempSession, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != nil {
		return b.session, nil
	}
	if !b.exists() { // never make the bucket itself in passing
		return nil, &fs.PathError{Op: "open folder", Path: b.root, Err: fs.ErrNotExist}
	}
	parent := filepath.Join(b.root, tempFolder)
	if err := os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	const attempts = 10
	for range attempts {
		s, err := newTempSession(filepath.Join(parent, rand.Text()), b.disk)
		if err == nil {
			b.session = s
			return s, nil
		}
		if !errors.Is(err, errSessionLost) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("make a folder for temporary files in %s: removed by others %d times", parent, attempts)
}

// errSessionLost: another process took the new folder for a dead one's before it was locked.
var errSessionLost = errors.New("temporary folder was removed before it was locked")

func newTempSession(path string, d disk) (*tempSession, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errSessionLost
	}
	if err != nil {
		return nil, err
	}
	locked, err := tryLock(lock)
	if err == nil && locked {
		// The lock may be on a folder that has just been removed.
		if _, err := os.Stat(path); err == nil {
			return &tempSession{path: path, disk: d, lock: lock}, nil
		}
	}
	lock.Close()
	if err != nil {
		return nil, err
	}
	return nil, errSessionLost
}

func (s *tempSession) close() error {
	err := os.RemoveAll(s.path)
	return errors.Join(err, s.lock.Close())
}

// removeDeadSessions removes the temporary files of processes that are gone.
func removeDeadSessions(parent string) error {
	entries, err := os.ReadDir(parent)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(parent, entry.Name())
		d, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		locked, err := tryLock(d)
		if err == nil && locked {
			err = os.RemoveAll(path)
		}
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// write puts body into a new temporary file and fsyncs it.
func (s *tempSession) write(ctx context.Context, body Payload) (_ string, err error) {
	path := filepath.Join(s.path, strconv.FormatUint(s.next.Add(1), 10))
	f, err := s.disk.create(path)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := writeVector(ctx, f, body); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return path, f.Close()
}

// writeVector writes large slices as they are and gathers small ones, a system call each being dearer
// than the copy.
func writeVector(ctx context.Context, f io.Writer, body Payload) error {
	var gathered []byte
	flush := func() error {
		if len(gathered) == 0 {
			return nil
		}
		_, err := f.Write(gathered)
		gathered = gathered[:0]
		return err
	}
	for _, s := range body {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(gathered)+len(s) > gatherBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(s) >= gatherBytes/4 {
			if err := flush(); err != nil {
				return err
			}
			if _, err := f.Write(s); err != nil {
				return err
			}
			continue
		}
		if gathered == nil {
			gathered = make([]byte, 0, gatherBytes)
		}
		gathered = append(gathered, s...)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return flush()
}
