package testenv

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func mountSmallDisk(dir string, size int64) (unmount func() error, err error) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return nil, fmt.Errorf("%w: mount: %w", errNoMount, err)
	}
	return func() error { return unix.Unmount(dir, unix.MNT_DETACH) }, nil
}
