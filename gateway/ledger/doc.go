// Package ledger keeps what was used: one record for each generation that held a
// place on a backend, in a database, counted once whatever crashes.
//
// A record goes three steps. Add puts it into a bounded buffer in memory, at once,
// so that a request never waits for a disk. The journal writes the buffer every 2 ms
// to an append-only file, a segment, and syncs it every 20 ms. The shipper copies
// batches from the segments into the database: one transaction inserts the rows whose
// request id is new, adds only those to the sums of their quarter of an hour, and
// notes up to which byte the segment has been shipped. A segment that is shipped as a
// whole is deleted.
//
// From its beginning until it is synced, a generation also stands in a slot of a
// mapped file, its flight, where a kill of the process does not reach it. The next
// process enters what it finds there.
//
// A crash between two steps repeats one, and the request id makes the repetition
// harmless. While the database is away, segments pile up on the disk; no memory
// grows with them.
//
// A report reads the sums and the shipped positions in one snapshot of the
// database, and adds what this gateway's segments hold after those positions and
// what its buffer holds. So it counts each record once at any moment, and a caller
// finds its last request in it.
//
// Sums are kept by quarter of an hour because every time zone in use stands at a
// multiple of 15 minutes from UTC: a calendar day, week or month of any zone is a
// whole number of quarters, so quotas are rebuilt from the sums without reading
// single records.
//
// A journal directory belongs to one gateway at a time.
package ledger
