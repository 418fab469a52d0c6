//go:build !linux

package postgres

import "syscall"

// setUserTimeout does nothing here: the keepalives have to do.
func setUserTimeout(string, string, syscall.RawConn) error { return nil }
