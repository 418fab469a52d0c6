// Package compactor makes long runs out of what flushes left behind, drops what is not wanted any more, and deletes what
// nothing names. It plans in pure functions (plan.go) and acts under leases in database time: several compactors work at
// once on different blocks, and a dead one's work is taken over when its lease runs out.
//
// # Merging
//
// A merge takes level0 rows of up to jobBlocks blocks, as many as fit jobBytes, reads their extents object by object,
// writes one run for each partition into one object, and swaps: in one transaction for each block the runs appear and the
// merged seq moves on. The rows' references are taken back afterwards, in steps, and the rows deleted. Runs are merged
// again by size tiers until they are long. What cannot be read (a corrupt or lost extent) stays where it is, as a run of
// level 0, so that nothing is lost and nothing gets stuck.
//
// Every step may be the last one before a crash: outputs are registered before they are put, and become live only by the
// swap; what was registered and never swapped in is condemned when it is old.
//
// # Garbage
//
// Condemn, then delete: a key is condemned in a transaction of its own, after which no commit and no swap can name it; its
// object is deleted when it has been condemned for the grace. The row stays for metadata.CondemnedKept, and the key is deleted
// once more before the row goes, for a PUT that landed late. A slow listing of the bucket condemns what no row names. Ages are of
// the database's clock, or of the bucket's own dates against a marker that was just put.
//
// Deleting stops when the database is another incarnation than before, or is behind the bucket's marker, until fsck releases it.
//
// It never talks to clients, and knows nothing of the agent.
package compactor
