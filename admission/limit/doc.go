// Package limit decides whether a caller may have one more request now, by rate
// limits, concurrency and calendar quotas. It holds the rules as they are
// configured, the arithmetic of windows and calendars, a store in this process
// and the Limiter that a gateway asks. Another store (limit/redislimit) does the
// same for several replicas; limit/limittest is the suite that each must pass.
//
// # One decision
//
// Compile turns rules into a Set. A request meets some of them, each on one or
// more metrics, and each metric is one dimension (Dim): a counter with a key, a
// limit and a cost. All dimensions of a request are decided in one call of the
// store, all or nothing: everything is read and checked, and only if all fit is
// everything written. A refused request changes no counter. The order of the
// dimensions is that of their homes: address, tenant, model, everybody.
//
// # Windows
//
// Time is cut into buckets, 12 to a window unless the rule states another number. A
// bucket is counted in full until its newest charge is one window old, so in any
// interval of one window's length no more is charged than the limit: what an
// interval holds was in buckets that counted when its last charge was decided.
// This is the sliding log with its entries merged per bucket. The usual sliding
// counter that interpolates the oldest bucket lets 1.5 times the limit through
// when costs are tokens. Releasing a bucket by its newest charge, not by its
// edge, is what keeps a steady greedy caller near the whole limit.
//
// A rule may also have a burst: a token bucket of that capacity which drains at
// the rate of the limit (GCRA in another notation; I.371, and boulder's
// ratelimits/gcra.go), counted in integers as tokens times milliseconds of the
// window, so that nothing is rounded. A burst of the whole limit can never be
// the tighter one, so it is the same as none.
//
// The state holds what was charged and when, not how much of a limit is used, so
// an edited limit, window or number of buckets applies at once to the usage that
// is there and never resets it.
//
// # Quotas and leases
//
// A quota counts in a calendar period of a time zone; its counter belongs to the
// period's start and begins anew with the next. Weights make units of tokens, as
// integers in thousandths. Concurrency counts leases, which end by themselves
// when nobody renews them.
//
// # Reserve, then settle
//
// How much a request will use is not known when it is admitted. What is expected
// is reserved: the prompt and, by default, the p90 of this key's and model's
// recent outputs. Reserving all that a request may produce leaves nearly half of
// a limit unused, and charging afterwards lets five times the limit through when
// many ask at once; sim_test.go has the figures. When the truth is known, the
// difference is taken from or added to the bucket of the reservation while that
// counts; a later overage goes to now, a later refund is dropped, and no counter
// goes below zero. Reserve and Settle are idempotent by request id. A reservation
// that is no longer renewed is settled by the store at what was last known of it.
//
// Retry times of a store are exact as long as nothing ends: for windows the newest
// charge of the bucket whose release makes room, for bursts the drain, for quotas
// the period's end, for concurrency the lease that ends first; the largest of all
// that refused. The Limiter knows what runs here, and how long such requests take and what they use. It
// puts an estimate in the place of the lease's end, and of a window's end where running
// requests will give back enough before (places.go). It adds up to a tenth so that
// callers do not return together.
package limit
