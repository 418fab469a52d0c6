//go:build !unix

package objstore

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const (
	errNotFolder = syscall.ENOTDIR
	errIsFolder  = syscall.EISDIR
)

// errNoDurability: without fsync of folders an acknowledged object could vanish, and a bucket that is
// weaker than it says is worse than none.
var errNoDurability = fmt.Errorf("file buckets need a Unix system: %w", errors.ErrUnsupported)

func unlink(string) error            { return errNoDurability }
func tryLock(*os.File) (bool, error) { return false, errNoDurability }
func accessible(string) error        { return errNoDurability }
