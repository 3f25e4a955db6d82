package limit

import "math"

// Metric is what a limit counts.
type Metric int

// The metrics.
const (
	Requests Metric = iota + 1
	Tokens
	InputTokens
	OutputTokens
	ReasoningTokens
	Concurrency
	Units
)

// String is the metric's name in configurations and answers.
func (m Metric) String() string {
	names := [...]string{"", "requests", "tokens", "input_tokens", "output_tokens", "reasoning_tokens", "concurrency", "units"}
	if m < Requests || m > Units {
		return "unknown"
	}
	return names[m]
}

// Kind is how a dimension counts.
type Kind int

// The kinds.
const (
	Window Kind = iota + 1 // a sliding window, perhaps with a burst
	Lease                  // what is held now
	Quota                  // a calendar period
)

// never is later than any time.
const farFuture = math.MaxInt64

// Dim is one dimension of a decision: one counter and what is asked of it. Times
// are in milliseconds since 1970, durations in milliseconds; amounts of units are
// in thousandths. All numbers are integers that a double holds exactly.
type Dim struct {
	Key     string // of the counter; {…} in it names its home, and dimensions with one home lie in one slot of a cluster
	Kind    Kind
	Rule    string
	Metric  Metric
	Failure Failure
	Soft    bool  // never refuses; where it is over, it is not charged either
	Ceiling bool  // counts what running requests may use at most, beside the dimension of what they are expected to use
	Limit   int64 // until EdgeMs
	Cost    int64 // what is reserved; 0 refuses nothing, but may be settled to more
	Floor   int64 // what a reservation is charged that nobody settles or renews

	// Of windows.
	WindowMs int64
	BucketMs int64
	Burst    int64 // capacity of the token bucket; 0: none

	// When the limit changes by the clock, soon enough to matter for a retry; 0:
	// it does not. Of windows and leases.
	EdgeMs    int64
	NextLimit int64
	NextBurst int64

	// Of quotas.
	BeginMs, EndMs int64
}

// inForce are the limit and the burst at a time.
func (d *Dim) inForce(now int64) (limit, burst int64) {
	if d.EdgeMs != 0 && now >= d.EdgeMs {
		return d.NextLimit, d.NextBurst
	}
	return d.Limit, d.Burst
}

// capacity is the most that one request can have of a window.
func capacity(limit, burst int64) int64 {
	if burst > 0 {
		return min(limit, burst)
	}
	return limit
}

// State is a dimension after a decision.
type State struct {
	Limit        int64 // in force
	Used         int64 // may be over the limit, by what was settled or by a limit that shrank
	Remaining    int64
	ResetMs      int64 // until all is there again, if nothing else is asked
	Exceeded     bool  // it refused, or would have if it were not soft
	TooLarge     bool  // the cost can never fit the limit in force, or the one that follows
	RetryAfterMs int64 // where Over and not Never: until the same would fit, if nothing else is asked
	Share        int64 // where Over: the part of the limit that this replica enforces alone, and which refused although the limit may have room; 0: the limit itself refused
}

// part is what a reservation has of one counter.
type part struct {
	charged   int64
	floor     int64 // what it is charged if nobody settles it
	chargedAt int64 // when; of a quota the begin of the period
	debt      int64 // of the token bucket after the reservation
	skipped   bool  // it was soft and over, and is not in the counter
	ageMs     int64 // how long ago what a window is charged was used
}

// cell is the state of one counter. Its methods are the arithmetic of limits:
// functions of state, dimension and now that know no clock.
type cell interface {
	// check says what the dimension would find, and changes nothing.
	check(d *Dim, now int64) State
	// charge takes the cost and returns what adjust needs to change it.
	charge(d *Dim, id string, now, leaseEnds int64) part
	// adjust charges delta more, or less, for a reservation.
	adjust(d *Dim, p *part, delta, now int64)
	// renew lets what a reservation holds live until a later time.
	renew(id string, now, leaseEnds int64)
	// release gives back what a reservation holds beside what it is charged.
	release(id string)
	// idleAt is from when on the state says no more than none.
	idleAt() int64
}

func newCell(kind Kind) cell {
	switch kind {
	case Lease:
		return &leases{}
	case Quota:
		return &quota{}
	}
	return &window{}
}

// ceilDiv divides positive numbers and rounds up.
func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }
