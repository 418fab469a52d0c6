// Package record reads, checks, patches and builds Kafka's v2 record batches
// (KIP-98; the layout is in Kafka's documentation under "Record Batch").
//
// A batch is kept byte for byte as its producer sent it. This package is where
// those bytes are looked into: the 61 header bytes on every produce, the records
// inside only where a rule needs them. It works on byte slices and never on
// sockets, files or Kafka error codes, and it never keeps a slice it was given.
//
// Everything here parses bytes from outside. Lengths and counts are checked
// before anything is allocated for them, and decompression always has a bound.
package record
