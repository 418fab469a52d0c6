//go:build !linux

package objstore_test

import (
	"os"
	"testing"
)

func dropPrivileges(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Fatal("run this test as another user than root, who may access everything")
	}
}
