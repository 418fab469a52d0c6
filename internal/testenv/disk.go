package testenv

import (
	"errors"
	"testing"
)

// errNoMount: this process may not mount file systems.
var errNoMount = errors.New("mounting a small disk needs Linux and root")

// SmallDisk gives a folder on a file system of its own with room for about size bytes, to be filled.
// It goes when the test ends. Ask CanMount first.
func SmallDisk(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	unmount, err := mountSmallDisk(dir, size)
	if err != nil {
		t.Fatalf("small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Errorf("unmount small disk: %v", err)
		}
	})
	return dir
}

// CanMount tells whether SmallDisk works for this process.
func CanMount(t testing.TB) bool {
	t.Helper()
	unmount, err := mountSmallDisk(t.TempDir(), 1<<20)
	if err != nil {
		return false
	}
	if err := unmount(); err != nil {
		t.Fatalf("unmount small disk: %v", err)
	}
	return true
}
