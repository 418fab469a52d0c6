package objstore_test

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// dropPrivileges makes the rest of this test access files as nobody where it runs as root, who may
// access everything. Linux keeps the user for files per thread; the thread ends with the test.
func dropPrivileges(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	runtime.LockOSThread()
	if err := unix.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setfsgid(nobody); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // files and folders of the test have to be removed
		if err := unix.Setfsuid(0); err != nil {
			t.Error(err)
		}
		if err := unix.Setfsgid(0); err != nil {
			t.Error(err)
		}
	})
}
