package main

import (
	"bytes"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/skeinio/skein/cache"
	"github.com/skeinio/skein/compactor"
	"github.com/skeinio/skein/metadata"
)

// memoryBase is what the process takes beside what has a bound of its own, in bytes: code, connections, goroutines.
const memoryBase = 256 << 20

// memoryBound is the sum of the bounds of all that an agent holds, in bytes.
func (c *serverConfig) memoryBound() int64 {
	bound := int64(memoryBase + metadata.DefaultFoldCacheBytes)
	if c.compactor != nil {
		bound += compactor.MemoryBound(c.compactor.LargestExtent)
	}
	if c.proxy {
		uploads := int64(c.batcher.Uploads) * c.batcher.SegmentBytes
		bound += c.agent.MemoryBound() + uploads + c.batcher.SequenceHoldBytes +
			c.cacheBytes + cache.DefaultInFlightBytes + cache.DefaultColdInFlightBytes
	}
	if c.cacheDir != "" {
		bound += cache.DiskMemoryBytes
	}
	return bound
}

// setMemoryLimit derives GOMEMLIMIT from the bounds, unless it is set: the collector then works harder rather than let the
// process outgrow what the configuration promises.
func setMemoryLimit(c *serverConfig, log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit := c.memoryBound()
	debug.SetMemoryLimit(limit)
	log.Debug("memory limit", "bytes", limit)
	if has := machineMemory(); has > 0 && limit > has {
		log.Warn("the configured buffers and caches may need more memory than there is: lower produce-buffer-bytes and cache-bytes",
			"needs", formatSize(limit), "has", formatSize(has))
	}
}

// machineMemory is what the process may use, in bytes: the machine's memory or its control group's limit (Linux, cgroup
// v2); 0 where that is not known.
func machineMemory() int64 {
	total := memTotal(readSmall("/proc/meminfo"))
	if n, err := strconv.ParseInt(string(bytes.TrimSpace(readSmall("/sys/fs/cgroup/memory.max"))), 10, 64); err == nil && n > 0 {
		if total == 0 || n < total {
			return n
		}
	}
	return total
}

// readSmall reads a file of the kernel's; nil where there is none.
func readSmall(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // another operating system: what is not known is not warned of
	}
	return data
}

// memTotal finds MemTotal in /proc/meminfo; 0 where it is not.
func memTotal(meminfo []byte) int64 {
	for line := range bytes.Lines(meminfo) {
		fields := bytes.Fields(line)
		if len(fields) == 3 && string(fields[0]) == "MemTotal:" && string(fields[2]) == "kB" {
			if n, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil {
				return n << 10
			}
		}
	}
	return 0
}
