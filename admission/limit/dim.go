package limit

import "math"

// Metric is a quantity that a limit counts.
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

// String returns the metric's name in configurations and answers.
func (m Metric) String() string {
	names := [...]string{"", "requests", "tokens", "input_tokens", "output_tokens", "reasoning_tokens", "concurrency", "units"}
	if m < Requests || m > Units {
		return "unknown"
	}
	return names[m]
}

// Kind is the way in which a dimension counts.
type Kind int

// The kinds.
const (
	Window Kind = iota + 1 // sliding window, perhaps with a burst
	Lease                  // amount that is held now
	Quota                  // calendar period
)

// farFuture is later than any time.
const farFuture = math.MaxInt64

// Dim is one dimension of a decision: one counter and the amount that is asked of it. Times
// are in milliseconds since 1970, durations in milliseconds; amounts of units are in
// thousandths. All numbers are integers that a double holds exactly.
type Dim struct {
	Key     string // key of the counter; {…} in it names its home, and dimensions with one home lie in one slot of a cluster
	Kind    Kind
	Rule    string
	Metric  Metric
	Failure Failure
	Soft    bool  // it never refuses; where it is exceeded, it is not charged either
	Ceiling bool  // it counts what running requests may use at most, beside the dimension of what they are expected to use
	Limit   int64 // limit until EdgeMs
	Cost    int64 // amount to reserve; 0 refuses nothing, but may be settled to more
	Floor   int64 // charge of a reservation that nobody settles or renews

	// Fields of windows.
	WindowMs int64
	BucketMs int64
	Burst    int64 // capacity of the token bucket; 0 for none

	// Time at which the limit changes by the clock, where that is soon enough to matter for
	// a retry, and the limit after it; 0 for none. Fields of windows and leases.
	EdgeMs    int64
	NextLimit int64
	NextBurst int64

	// Fields of quotas: the period.
	BeginMs, EndMs int64
}

// inForce returns the limit and the burst at a time.
func (d *Dim) inForce(now int64) (limit, burst int64) {
	if d.EdgeMs != 0 && now >= d.EdgeMs {
		return d.NextLimit, d.NextBurst
	}
	return d.Limit, d.Burst
}

// capacity returns the largest cost that one request can have of a window.
func capacity(limit, burst int64) int64 {
	if burst > 0 {
		return min(limit, burst)
	}
	return limit
}

// State is the state of a dimension after a decision.
type State struct {
	Limit        int64 // limit in force
	Used         int64 // may be above the limit, by what was settled or by a limit that shrank
	Remaining    int64
	ResetMs      int64 // time until all is free again, if nothing else is asked
	Exceeded     bool  // it refused, or would have if it were not soft
	TooLarge     bool  // the cost can never fit the limit in force, or the one that follows
	RetryAfterMs int64 // where Exceeded and not TooLarge: time until the same would fit, if nothing else is asked
	Share        int64 // where Exceeded: part of the limit that this replica enforces alone, and which refused although the limit may have room; 0 where the limit itself refused
}

// part is a reservation's share of one counter.
type part struct {
	charged   int64
	floor     int64 // charge if nobody settles it
	chargedAt int64 // time of the charge; of a quota the begin of the period
	debt      int64 // debt of the token bucket after the reservation
	skipped   bool  // it was soft and exceeded, and is not in the counter
	ageMs     int64 // age of the usage that a window is charged
}

// cell is the state of one counter. Its methods are the arithmetic of limits: functions of
// state, dimension and now that read no clock.
type cell interface {
	// check returns the state that the dimension would find, and changes nothing.
	check(d *Dim, now int64) State
	// charge adds the cost and returns what adjust needs to change it.
	charge(d *Dim, id string, now, leaseEnds int64) part
	// adjust charges delta more, or less, for a reservation.
	adjust(d *Dim, p *part, delta, now int64)
	// renew extends what a reservation holds to a later time.
	renew(id string, now, leaseEnds int64)
	// release gives back what a reservation holds beside its charge.
	release(id string)
	// idleAt returns the time from which the state is the same as none.
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
