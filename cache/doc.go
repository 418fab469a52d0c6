// Package cache keeps decoded extents of objects in memory, so that what is read often, or was just written, costs no
// request. It reads the bucket (and, through a function, payloads that are not in the bucket), checks and decodes what it
// read by a function of the caller's, and knows neither record batches nor the database.
//
// # Two classes of readers
//
// Readers at the tail and readers far behind (Tail and Cold) have an LRU of their own each, and limits of their own for
// concurrent GETs and bytes in flight: a replay neither evicts the tail's entries nor queues in front of its reads. A
// reader of one class is served from the other's entries where they are there, without making them younger.
//
// LRU rather than an admission policy by frequency: at the tail the newest entry is the one that will be read, whatever
// the past says. Measured with 512 MiB of entries of 100 KiB, each read once by a reader that lags by up to half of the
// cache: a W-TinyLFU cache hit 33 %, LRU hits all.
//
// # Single flight
//
// An extent is read once whatever the number of readers that ask for it meanwhile. A load belongs to nobody: it goes on
// as long as one reader waits for it and is cancelled when the last one gives up. One call's extents that lie close
// together in one object are one GET.
//
// # The disk tier
//
// What cold readers read from the bucket is also written to a Disk, where there is one, as it is stored; both classes look
// there before the bucket. The tail's extents are not written: they are in memory, and by the time they leave it the
// compactor has moved their records into other objects, under which nobody would find them. A write never delays a
// reader: what the disk cannot take in time is not kept.
//
// # What is counted
//
// Every extent is read into memory of its own, exactly its size, so an entry pins what it shows. An entry's weight is its
// bytes plus EntryOverheadBytes. Data handed out is shared and must not be changed; it stays valid after its eviction
// (and is then the holder's to count).
//
// Lock order: Cache.mu and Disk.mu are never held together; nothing is called under either but the LRU and metrics.
package cache
