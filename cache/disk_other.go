//go:build !unix

package cache

import (
	"errors"
	"fmt"
	"os"
)

// tryLock refuses: without a lock two processes could share the folder.
func tryLock(*os.File) (bool, error) {
	return false, fmt.Errorf("the disk cache needs a Unix system: %w", errors.ErrUnsupported)
}
