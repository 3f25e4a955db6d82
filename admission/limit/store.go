package limit

import (
	"context"
	"errors"
	"time"
)

// ErrDims means that a reservation is settled or renewed with other dimensions than it was
// made with.
var ErrDims = errors.New("the dimensions are not those of the reservation")

// Times of reservations, the same in every store.
const (
	LeaseLife   = 30 * time.Second // life of a reservation that nobody renews
	SettledLife = time.Minute      // time for which a settled id is remembered
	ReapedLife  = 15 * time.Minute // time for which the true usage of a reaped id may still come
	// CalendarSkew is the time by which an asker's calendar may be behind the store's clock: a
	// quota's last period is not forgotten sooner.
	CalendarSkew = time.Minute
)

// Store keeps the counters and decides over them, atomically over all dimensions
// of a call. It reads its own clock, held against going back; decisions are the
// same as those of Memory, to the millisecond. An error means that nothing is
// held: a store that cannot know cancels the id itself or lets its lease run out.
type Store interface {
	// Reserve checks all dimensions and, if all fit, charges all. A refused request changes
	// nothing. An id that was admitted is admitted again and charged nothing, until it is
	// forgotten.
	Reserve(ctx context.Context, r Reservation) (Decision, error)
	// Settle replaces the reservation by the true usage and ends the leases, once for each id.
	// After a reservation was reaped, the charge of then is replaced. The store bounds the
	// time that this takes: the context may have no deadline.
	Settle(ctx context.Context, s Settlement) (Settled, error)
	// Renew extends reservations by another LeaseLife and charges what they have used beyond
	// what they reserved. It also reaps: every reservation whose time is over is settled with
	// the largest usage that was reported of it, its floor at least. It returns the ids whose
	// reservations no longer exist.
	Renew(ctx context.Context, renewals []Renewal) (lost []string, err error)
}

var _ Store = (*Memory)(nil)

// Reservation asks for a decision.
type Reservation struct {
	ID   string // made by the gateway, never the caller's own
	Dims []Dim  // not to be changed afterwards; no key twice
	Peek bool   // only look: nothing is written, no id is needed
	// Settled, with Peek, leaves out of quotas what unsettled reservations hold, since they
	// may give it back.
	Settled bool
}

// Decision answers a Reservation.
type Decision struct {
	Allowed      bool
	Repeated     bool    // the id was admitted before and is charged nothing now
	Forgotten    bool    // refused, and the id is being settled to nothing: it must not be used again
	Shared       bool    // the counters of all replicas decided, not those of this process alone
	TooLarge     bool    // refused by a dimension that can never hold the cost
	Binding      int     // index of the dimension that refuses longest; -1 for none
	RetryAfterMs int64   // time until all dimensions would fit, if nothing else is asked and no schedule shrinks another limit before
	States       []State // by dimension, after the decision
}

// Settlement is the final usage of a request.
type Settlement struct {
	ID      string
	Dims    []Dim   // dimensions of the reservation
	Charges []int64 // by dimension
	// New charges an id that was never reserved here, now: a reservation made
	// elsewhere while the store was away, or a counter that is rebuilt.
	New bool
	// AgeMs is the time since an id that was never reserved here used what windows are charged
	// for it, in milliseconds. What is a window old is not charged. Quotas are charged now.
	AgeMs int64
}

// Settled answers a Settlement.
type Settled struct {
	Applied bool // false where the id was settled before, or is not known
	States  []State
}

// Renewal reports that a request is still running.
type Renewal struct {
	ID      string
	Dims    []Dim   // dimensions of the reservation
	Charges []int64 // usage so far, by dimension; empty where unknown
}

// Decide returns the decision that every store makes of the states of all dimensions.
func Decide(dims []Dim, states []State) Decision {
	out := Decision{Allowed: true, Binding: -1, States: states}
	for i := range states {
		s := &states[i]
		if !s.Exceeded || dims[i].Soft {
			continue
		}
		out.Allowed = false
		out.RetryAfterMs = max(out.RetryAfterMs, s.RetryAfterMs)
		if b := out.Binding; b < 0 || !states[b].TooLarge && (s.TooLarge || s.RetryAfterMs > states[b].RetryAfterMs) {
			out.Binding = i
		}
	}
	if !out.Allowed && states[out.Binding].TooLarge {
		out.TooLarge, out.RetryAfterMs = true, 0
	}
	return out
}
