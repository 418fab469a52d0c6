//go:build !unix

package sqlite

import (
	"errors"
	"io"
)

// lockFile refuses: without the lock two processes could write one database.
func lockFile(path string) (io.Closer, error) {
	return nil, errors.New("locking " + path + " is not supported on this operating system")
}
