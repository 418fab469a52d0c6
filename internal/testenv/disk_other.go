//go:build !linux

package testenv

func mountSmallDisk(string, int64) (unmount func() error, err error) { return nil, errNoMount }
