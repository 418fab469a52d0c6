package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// File is a bucket in a local folder: a key is a path below it. An object is durable when Put returns:
// its bytes are written to a temporary file and fsynced, the file gets its name in one step, and the
// folder that names it is fsynced (with every folder above it that this process has not seen before).
//
// Several processes may use one folder at once. Folders that have become empty are not removed, since
// another process may be about to put something there; keys should have a bounded number of folders.
// A key cannot be both an object and a folder of others ("a" and "a/b"): the second is ErrInvalidKey.
// LastModified is the file system's date.
type File struct {
	root string // absolute
	disk disk

	mu      sync.Mutex
	session *tempSession       // where temporary files go; nil before the first Put and after Close
	folders map[string]*folder // by path: those whose own names are durable
}

var _ Bucket = (*File)(nil)

// tempFolder, below the root, holds one folder of temporary files per process. Keys in it are refused,
// and listings leave it out.
const tempFolder = ".skein-tmp"

// gatherBytes is how much of many small slices goes to the file in one write.
const gatherBytes = 256 << 10

// maxKnownFolders bounds the memory of File.folders; beyond it the map is started afresh.
const maxKnownFolders = 4096

// OpenFile opens the bucket in dir. The folder need not exist yet: Check tells, Create makes it.
// Temporary files that a killed process left are removed.
func OpenFile(dir string) (*File, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open file bucket %s: %w", dir, err)
	}
	b := &File{root: root, disk: systemDisk(), folders: make(map[string]*folder)}
	if err := removeDeadSessions(filepath.Join(root, tempFolder)); err != nil {
		return nil, fmt.Errorf("open file bucket %s: remove temporary files of dead processes: %w", root, err)
	}
	return b, nil
}

// Root is the bucket's folder, absolute.
func (b *File) Root() string { return b.root }

// Put implements Bucket.
func (b *File) Put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	if err := b.checkKey(OpPut, key); err != nil {
		return err
	}
	err := b.put(ctx, key, body, opts)
	if errors.Is(err, fs.ErrNotExist) && b.exists() {
		// Somebody removed folders behind our back: what we know of them is worth nothing.
		b.forget()
		err = b.put(ctx, key, body, opts)
	}
	if err != nil {
		return NewError(ctx, OpPut, key, b.kind(OpPut, err), err)
	}
	return nil
}

func (b *File) put(ctx context.Context, key string, body Payload, opts PutOptions) error {
	session, err := b.tempSession()
	if err != nil {
		return err
	}
	path := filepath.Join(b.root, filepath.FromSlash(key))
	parent, err := b.folder(filepath.Dir(path))
	if err != nil {
		return err
	}
	temp, err := session.write(ctx, body)
	if err != nil {
		return err
	}
	if opts.IfNoneMatch {
		err = os.Link(temp, path)
		os.Remove(temp) // a leftover is removed with the session
	} else if err = os.Rename(temp, path); err != nil {
		os.Remove(temp)
	}
	if err != nil {
		if info, statErr := os.Lstat(path); statErr == nil && info.IsDir() {
			err = &fs.PathError{Op: "put", Path: path, Err: errIsFolder} // else it would read as an object
		}
		return err
	}
	return parent.sync()
}

// Get implements Bucket.
func (b *File) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := b.checkKey(OpGet, key); err != nil {
		return nil, err
	}
	if err := CheckGet(key, offset, length); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, NewRangeError(ctx, key, offset, length, nil, nil)
	}
	f, err := os.Open(filepath.Join(b.root, filepath.FromSlash(key)))
	if err != nil {
		return nil, NewRangeError(ctx, key, offset, length, b.kind(OpGet, err), err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = NewRangeError(ctx, key, offset, length, b.kind(OpGet, err), err)
	case !info.Mode().IsRegular():
		err = rangeError(OpGet, key, offset, length, ErrNotFound, nil)
	case !rangeWithin(offset, length, info.Size()):
		err = rangeError(OpGet, key, offset, length, ErrRange, nil)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	n := info.Size() - offset
	if length >= 0 {
		n = min(n, length)
	}
	return &contextReader{
		ctx: ctx, r: io.NewSectionReader(f, offset, n), closer: f, key: key, offset: offset, length: length,
		fail: func(err error) error { return b.kind(OpGet, err) },
	}, nil
}

// Head implements Bucket.
func (b *File) Head(ctx context.Context, key string) (Info, error) {
	if err := b.checkKey(OpHead, key); err != nil {
		return Info{}, err
	}
	if ctx.Err() != nil {
		return Info{}, NewError(ctx, OpHead, key, nil, nil)
	}
	info, err := os.Lstat(filepath.Join(b.root, filepath.FromSlash(key)))
	if err != nil {
		return Info{}, NewError(ctx, OpHead, key, b.kind(OpHead, err), err)
	}
	if !info.Mode().IsRegular() {
		return Info{}, &Error{Op: OpHead, Key: key, Kind: ErrNotFound}
	}
	return Info{Key: key, Size: info.Size(), LastModified: info.ModTime()}, nil
}

// Delete implements Bucket: a removal is durable when it returns.
func (b *File) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := b.checkKey(OpDelete, key); err != nil {
			return err
		}
	}
	var failed []KeyError
	touched := make(map[string][]string) // folder → keys removed from it
	for _, key := range keys {
		if ctx.Err() != nil {
			return NewError(ctx, OpDelete, key, nil, nil)
		}
		path := filepath.Join(b.root, filepath.FromSlash(key))
		err := unlink(path)
		switch {
		case err == nil:
			dir := filepath.Dir(path)
			touched[dir] = append(touched[dir], key)
		case isMissing(err) && b.exists():
		default:
			failed = append(failed, KeyError{Key: key, Err: NewError(ctx, OpDelete, key, b.kind(OpDelete, err), err)})
		}
	}
	for dir, removed := range touched {
		if err := b.disk.syncFolder(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			for _, key := range removed {
				failed = append(failed, KeyError{Key: key, Err: NewError(ctx, OpDelete, key, b.kind(OpDelete, err), err)})
			}
		}
	}
	return DeleteFailure(failed)
}

// Check implements Bucket.
func (b *File) Check(ctx context.Context) error {
	info, err := os.Stat(b.root)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open folder", Path: b.root, Err: syscall.ENOTDIR}
	}
	if err == nil {
		err = accessible(b.root)
	}
	if err != nil {
		return NewError(ctx, OpCheck, "", b.kind(OpCheck, err), err)
	}
	return nil
}

// Create implements Bucket.
func (b *File) Create(ctx context.Context) error {
	if err := makeFolders(b.root); err != nil {
		return NewError(ctx, OpCreate, "", b.kind(OpCreate, err), err)
	}
	return b.Check(ctx)
}

// Close implements Bucket.
func (b *File) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session == nil {
		return nil
	}
	err := b.session.close()
	b.session = nil
	return err
}

// checkKey refuses keys that would reach the temporary files, beside what ValidateKey refuses.
func (b *File) checkKey(op Op, key string) error {
	if err := checkKey(op, key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == tempFolder {
		return &Error{Op: op, Key: key, Kind: ErrInvalidKey, Err: fmt.Errorf("%s is kept for temporary files", tempFolder)}
	}
	return nil
}

// exists tells whether the bucket itself is there, which decides what a missing path means. A folder
// that may not be looked at is there.
func (b *File) exists() bool {
	info, err := os.Stat(b.root)
	if err != nil {
		return !isMissing(err)
	}
	return info.IsDir()
}

// kind maps the operating system's errors to the package's.
func (b *File) kind(op Op, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return ErrFull
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return ErrAccess
	case isMissing(err):
		switch {
		case !b.exists():
			return ErrNoBucket
		case op == OpPut && errors.Is(err, fs.ErrNotExist): // somebody removes folders as fast as we make them
			return ErrUnavailable
		case op == OpPut: // a file where the key wants a folder, or the other way round
			return ErrInvalidKey
		default:
			return ErrNotFound
		}
	case op == OpPut && errors.Is(err, fs.ErrExist):
		return ErrExists
	case errors.Is(err, syscall.ENAMETOOLONG):
		return ErrInvalidKey
	default:
		return ErrUnavailable // EIO, EMFILE, ESTALE and the like: the next attempt uses a new file
	}
}

// isMissing tells whether there is no file of that name: nothing, a folder, or a file where a folder
// should be.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR)
}

// List implements Bucket, a folder at a time: no more than one folder per level is in memory.
func (b *File) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	dir := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
		if err := b.checkKey(OpList, dir); err != nil {
			return err
		}
	}
	if !b.exists() {
		return NewError(ctx, OpList, prefix, ErrNoBucket, fmt.Errorf("%s", b.root))
	}
	w := &fileWalk{bucket: b, ctx: ctx, prefix: prefix, startAfter: startAfter, fn: fn}
	return w.folder(dir)
}

// fileWalk is one listing.
type fileWalk struct {
	bucket             *File
	ctx                context.Context // of the List call that the walk is
	prefix, startAfter string
	fn                 func(Info) error
}

func (w *fileWalk) folder(dir string) error {
	entries, err := os.ReadDir(filepath.Join(w.bucket.root, filepath.FromSlash(dir)))
	if isMissing(err) {
		return nil // removed meanwhile, or a prefix of nothing
	}
	if errors.Is(err, fs.ErrPermission) && dir == "lost+found" {
		return nil // the bucket is the root of a file system; that folder is not ours
	}
	if err != nil {
		return NewError(w.ctx, OpList, w.prefix, w.bucket.kind(OpList, err), err)
	}
	// Byte order of keys: "a-b" comes before "a/b", so a folder sorts as if its name ended in a slash.
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(sortName(a), sortName(b)) })
	for _, entry := range entries {
		key := entry.Name()
		if dir != "" {
			key = dir + "/" + key
		}
		if err := w.entry(key, entry); err != nil {
			return err
		}
	}
	return nil
}

func sortName(e fs.DirEntry) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}

func (w *fileWalk) entry(key string, entry fs.DirEntry) error {
	if w.ctx.Err() != nil {
		return NewError(w.ctx, OpList, w.prefix, nil, nil)
	}
	if entry.IsDir() {
		below := key + "/"
		mayMatch := strings.HasPrefix(below, w.prefix) || strings.HasPrefix(w.prefix, below)
		mayFollow := below > w.startAfter || strings.HasPrefix(w.startAfter, below)
		if key == tempFolder || !mayMatch || !mayFollow {
			return nil
		}
		return w.folder(key)
	}
	if !entry.Type().IsRegular() || !strings.HasPrefix(key, w.prefix) || key <= w.startAfter || ValidateKey(key) != nil {
		return nil
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return NewError(w.ctx, OpList, w.prefix, w.bucket.kind(OpList, err), err)
	}
	return w.fn(Info{Key: key, Size: info.Size(), LastModified: info.ModTime()})
}
