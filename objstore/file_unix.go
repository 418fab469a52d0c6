//go:build unix

package objstore

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	errNotFolder = unix.ENOTDIR
	errIsFolder  = unix.EISDIR
)

// unlink removes a file and never a folder, which os.Remove would.
func unlink(path string) error {
	err := unix.Unlink(path)
	if errors.Is(err, unix.EPERM) {
		// POSIX's answer for a folder; Linux says EISDIR.
		if info, statErr := os.Lstat(path); statErr == nil && info.IsDir() {
			err = unix.EISDIR
		}
	}
	if err != nil {
		return &fs.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// tryLock takes an exclusive lock that ends with the open file, thus with the process at the latest.
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return true, nil
}

// accessible tells whether this process, as it is now, may read, write and search a folder.
func accessible(path string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}
