// Package ledger stores usage: one record for each generation that held a place on a
// backend, in a database, counted once whatever crashes.
//
// A record takes three steps. Add puts it into a bounded buffer in memory, at once,
// so that a request never waits for a disk. The journal writes the buffer every 2 ms
// to an append-only file, a segment, and syncs it every 20 ms. The shipper copies
// batches from the segments into the database: one transaction inserts the rows whose
// request id is new, adds only those to the sums of their quarter of an hour, and
// notes up to which byte the segment has been shipped. A segment that is shipped as a
// whole is deleted.
//
// From its beginning until it is synced, a generation also has a slot of a mapped
// file, its flight, which survives a kill of the process. The next process adds the
// flights that it finds there.
//
// A crash between two steps repeats one, and the request id makes the repetition
// harmless. While the database is down, segments pile up on the disk; no memory
// grows with them.
//
// A report reads the sums and the shipped positions in one snapshot of the
// database, and adds the records in this gateway's segments after those positions and
// the records in its buffer. So it counts each record once at any moment, and a caller
// finds its last request in it.
//
// Sums are kept by quarter of an hour because the offset of every time zone in use is
// a multiple of 15 minutes: a calendar day, week or month of any zone is a
// whole number of quarters, so quotas are rebuilt from the sums without reading
// single records.
//
// A journal directory belongs to one gateway at a time.
package ledger
