// Package limittest has the suite that every store of package limit must pass.
//
// Its heart compares a store, step by step through random histories, with a
// model that keeps every charge in a log and computes each number from the
// beginning: decisions, what remains, resets and retry times must be equal to
// the millisecond. The cases beside it are faults that other gateways had.
//
// A store reads its own clock, but a suite cannot wait for it: Open is given the
// clock of the suite, which the store must use in the place of its own. A store
// whose clock is in a server sends the time along and uses the server's own only
// where none is sent.
package limittest
