// Package redislimit is the store of package limit for several replicas: the same
// decisions as limit.Memory, to the millisecond, over counters that lie in Redis.
//
// # Store
//
// A decision is one script call (limit.lua): it reads all counters, judges them
// and, if all fit, writes all. The server's clock decides, held against going
// back. A counter of a window or a quota is one string of packed numbers, that of
// leases a sorted set by their end; beside them lie one record for each
// reservation, an index of the records by their end, and the latest time seen.
// Every key expires, some time after the last moment at which it could matter.
//
// On a single primary (or one behind sentinels) all that a request meets is one
// call. On a cluster the dimensions of one home lie in one slot, and the homes are
// asked one after the other, in the order of the dimensions. What a later home
// refuses is taken back from the earlier ones as if it had never been, and then
// all homes are looked at, so that the answer is that of one store.
//
// Reservations of a gateway that died are found by the index. On a single primary
// every Renew sees all of them; on a cluster it sees those of the homes that this
// store was asked about since their index was last empty. A home that nobody asks
// about is reaped when somebody does.
//
// # Guarded
//
// Guarded stands in front of a Store and keeps deciding while Redis does not: it
// has a breaker, a budget of time for each call, and a shadow of what this replica
// admitted (failure.go describes what is then enforced, and how the counts are handed in).
package redislimit
