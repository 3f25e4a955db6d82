package backend

import (
	"sync"
	"sync/atomic"
	"time"
)

// progress follows whether a backend works on the requests that it has. An answer in one
// piece brings nothing until it is whole, so one request alone cannot tell a hung engine
// from a slow one; the backend as a whole can. A sign of work is a byte of any answer, a
// change of any figure on the engine's page of metrics, and the answer to a canary: a
// request for one token, which a working engine answers beside whatever else it does.
// All methods are safe for concurrent use.
type progress struct {
	base     time.Time    // when it was made; its monotonic clock outlives a jump of the other
	lastSign atomic.Int64 // the last sign, in ns after base; 0: none since the server came up

	mu            sync.Mutex
	inFlight      int           // requests that are under way
	unsigned      int           // requests that were under way when the last sign came, or were sent since, and were not answered
	busySince     time.Time     // since when a request has been under way without a break
	unsignedSince time.Time     // when unsigned rose to stallRequests, or the sign after which it was so
	canarySent    time.Time     // when the canary was sent that is not answered; zero: none is out
	patience      time.Duration // learned: a silence that the server once ended by itself, doubled
}

const (
	stallRequests = 3                      // without a sign of work, to say that a backend hangs
	signInterval  = 100 * time.Millisecond // how exactly the last sign is known
	maxPatience   = 30 * time.Second       // that is learned
)

// quietAfter is how long a backend with a request under way may show no sign of work
// before that is said and a canary is sent, and canaryFor how long that must be without
// an answer to say something: together they are at most the silence after which a backend
// is taken to hang.
func quietAfter(stall time.Duration) time.Duration { return share(stall, 5) }
func canaryFor(stall time.Duration) time.Duration  { return share(stall, 3) }

// share is so many eighths of a silence, of 8 s at most; 0 counts as 8 s.
func share(stall time.Duration, eighths int) time.Duration {
	const longest = 8 * time.Second
	if stall == 0 {
		stall = longest
	}
	return min(stall, longest) / 8 * time.Duration(eighths)
}

// begin notes that a request is sent.
func (p *progress) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight++; p.inFlight == 1 {
		p.busySince, p.canarySent = now, time.Time{}
	}
	if p.unsigned++; p.unsigned == stallRequests {
		p.unsignedSince = now
	}
}

// end notes that a request is over; answered: the server has said something to it, be
// that a refusal.
func (p *progress) end(answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if answered && p.unsigned > 0 {
		p.unsigned--
	}
}

// sign notes a sign of work. It is called for each piece of each stream.
func (p *progress) sign(now time.Time) {
	age, last := int64(now.Sub(p.base)), p.lastSign.Load()
	if last != 0 && age-last < int64(signInterval) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastSign.Store(max(age, p.lastSign.Load(), 1))
	p.unsigned, p.canarySent = p.inFlight, time.Time{}
	if p.unsigned >= stallRequests {
		p.unsignedSince = now
	}
}

// restart forgets what is known of a server that was down.
func (p *progress) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastSign.Store(0)
	p.canarySent, p.patience = time.Time{}, 0
}

// learn takes in that a server which was thought to hang has shown a sign of work by
// itself after such a silence: next time it is given twice as long.
func (p *progress) learn(silence time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patience = max(p.patience, min(2*silence, maxPatience))
}

// canary notes that one was sent; out: and how it fared is not known yet. One that was
// refused says nothing of the engine.
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

// last is the last sign of work; zero: none since the server came up.
func (p *progress) last() time.Time {
	if last := p.lastSign.Load(); last != 0 {
		return p.base.Add(time.Duration(last))
	}
	return time.Time{}
}

// silence is how many requests are under way and since when none of them, nor anything
// else, has shown that the backend works; 0: none is under way.
func (p *progress) silence() (requests int, start time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight == 0 {
		return 0, time.Time{}
	}
	return p.inFlight, latest(p.busySince, p.last())
}

// silentFor reports whether a backend has shown no sign of work for so long, nor since a
// moment, and that says something.
func (p *progress) silentFor(d time.Duration, start, now time.Time, e evidence) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(latest(start, p.last())) >= d && p.proven(now, e)
}

// evidence is what makes silence say that nothing is made.
type evidence struct {
	hasMetrics bool          // the engine's metrics are read, so they stand still
	canary     time.Duration // else how long a canary must be without an answer
}

// proven reports whether silence says something. The lock is held.
func (p *progress) proven(now time.Time, e evidence) bool {
	return e.hasMetrics || !p.canarySent.IsZero() && now.Sub(p.canarySent) >= e.canary
}

// hangs reports whether a backend hangs: so many requests have been sent, and so long
// has there been no sign of work.
func (p *progress) hangs(limit time.Duration, now time.Time, e evidence) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight > 0 && p.unsigned >= stallRequests && p.proven(now, e) &&
		now.Sub(latest(p.unsignedSince, latest(p.busySince, p.last()))) >= max(limit, p.patience)
}

// latest is the later one of two moments.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
