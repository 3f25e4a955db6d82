package backend

import (
	"sync"
	"sync/atomic"
	"time"
)

// progress records whether a backend works on its requests. An answer in one piece has
// no byte before it is complete, so one request alone cannot tell a hung engine from a
// slow one; the backend as a whole can. Signs of work are a byte of any answer, a
// changed figure on the engine's page of metrics, and the answer to a canary. A canary
// is a request for one token, which a working engine answers beside its other work. All
// methods are safe for concurrent use.
type progress struct {
	base     time.Time    // time of creation; its monotonic clock survives a jump of the wall clock
	lastSign atomic.Int64 // time of the last sign, in ns after base; 0 if none since the backend came up

	mu               sync.Mutex
	inFlight         int           // requests under way
	withoutSign      int           // unanswered requests that were under way at the last sign or were sent since
	busySince        time.Time     // start of the current period with a request under way
	withoutSignSince time.Time     // time at which withoutSign reached stallRequests, or of the last sign if it was higher then
	canarySent       time.Time     // time of sending of the unanswered canary; zero if there is none
	patience         time.Duration // twice the longest silence that the backend has ended by itself
}

const (
	stallRequests = 3                      // requests without a sign of work that make a hang
	signInterval  = 100 * time.Millisecond // resolution of the last sign
	maxPatience   = 30 * time.Second       // greatest patience that is learned
)

// quietAfter returns the silence after which a backend with requests is reported as
// silent and gets a canary. canaryFor returns the time without an answer to the canary
// that confirms the silence. Their sum is at most the silence that counts as a hang.
func quietAfter(stall time.Duration) time.Duration { return share(stall, 5) }
func canaryFor(stall time.Duration) time.Duration  { return share(stall, 3) }

// share returns so many eighths of a silence, of 8 s at most; 0 counts as 8 s.
func share(stall time.Duration, eighths int) time.Duration {
	const longest = 8 * time.Second
	if stall == 0 {
		stall = longest
	}
	return min(stall, longest) / 8 * time.Duration(eighths)
}

// begin records that a request is sent.
func (p *progress) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight++; p.inFlight == 1 {
		p.busySince, p.canarySent = now, time.Time{}
	}
	if p.withoutSign++; p.withoutSign == stallRequests {
		p.withoutSignSince = now
	}
}

// end records the end of a request; answered means that the backend has sent an answer,
// be it a refusal.
func (p *progress) end(answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if answered && p.withoutSign > 0 {
		p.withoutSign--
	}
}

// sign records a sign of work. It is called for each piece of each stream.
func (p *progress) sign(now time.Time) {
	age, last := int64(now.Sub(p.base)), p.lastSign.Load()
	if last != 0 && age-last < int64(signInterval) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastSign.Store(max(age, p.lastSign.Load(), 1))
	p.withoutSign, p.canarySent = p.inFlight, time.Time{}
	if p.withoutSign >= stallRequests {
		p.withoutSignSince = now
	}
}

// restart resets the state after an outage.
func (p *progress) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastSign.Store(0)
	p.canarySent, p.patience = time.Time{}, 0
}

// learn raises the patience to twice a silence after which a backend worked again by
// itself.
func (p *progress) learn(silence time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patience = max(p.patience, min(2*silence, maxPatience))
}

// canary records a canary; out means that it has been sent and has no result yet. A
// refused canary says nothing about the engine.
func (p *progress) canary(now time.Time, out bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !out:
		p.canarySent = time.Time{}
	case p.canarySent.IsZero():
		p.canarySent = now
	}
}

// last returns the time of the last sign of work; zero if there was none since the
// backend came up.
func (p *progress) last() time.Time {
	if last := p.lastSign.Load(); last != 0 {
		return p.base.Add(time.Duration(last))
	}
	return time.Time{}
}

// silence returns the number of requests under way and the start of the current silence;
// 0 if none is under way.
func (p *progress) silence() (requests int, start time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight == 0 {
		return 0, time.Time{}
	}
	return p.inFlight, latest(p.busySince, p.last())
}

// silentFor reports whether a backend has shown no sign of work for d, nor since start,
// and the evidence confirms it.
func (p *progress) silentFor(d time.Duration, start, now time.Time, e evidence) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(latest(start, p.last())) >= d && p.proven(now, e)
}

// evidence holds the facts that confirm a silence.
type evidence struct {
	hasMetrics bool          // whether the engine's metrics are read, so that they are known to stand still
	canary     time.Duration // otherwise the time for which a canary must be unanswered
}

// proven reports whether the evidence confirms a silence. The caller holds the lock.
func (p *progress) proven(now time.Time, e evidence) bool {
	return e.hasMetrics || !p.canarySent.IsZero() && now.Sub(p.canarySent) >= e.canary
}

// hangs reports whether a backend hangs: it has enough unanswered requests and has shown
// no sign of work for the limit.
func (p *progress) hangs(limit time.Duration, now time.Time, e evidence) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight > 0 && p.withoutSign >= stallRequests && p.proven(now, e) &&
		now.Sub(latest(p.withoutSignSince, latest(p.busySince, p.last()))) >= max(limit, p.patience)
}

// latest returns the later of two times.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
