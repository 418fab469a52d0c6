// Package segment is the format of Skein's objects: extents of record batches back
// to back, an index of them in the footer, and a trailer that finds the footer.
// docs/SEGMENT.md describes it byte by byte; this package is its only
// implementation.
//
// The writer never copies the bytes it is given unless it compresses them; the
// reader trusts nothing that it has not bounded and checked. The package does no
// I/O of its own, and knows neither buckets nor the database.
package segment
