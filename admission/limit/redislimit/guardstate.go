package redislimit

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/admission/limit"
)

// link is the state of the connection to Redis. It is safe for concurrent use.
type link struct {
	alone  atomic.Bool  // Redis is not asked
	backMs atomic.Int64 // time at which Redis was last asked again, in milliseconds since 1970; 0 where it always was

	mu        sync.Mutex
	changedAt time.Time // time of the last change of alone; zero before the first
	err       error     // last failure of a call
	// outage numbers the counters that belong to one time without Redis: each end of such a
	// time begins another.
	outage int64
}

// setAlone records whether this replica decides without Redis, and returns the last
// failure.
func (l *link) setAlone(alone bool, now time.Time) error {
	l.alone.Store(alone)
	if !alone {
		l.backMs.Store(now.UnixMilli())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changedAt = now
	if !alone {
		l.outage++
	}
	return l.err
}

// setError sets the last failure.
func (l *link) setError(err error) {
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
}

// lastChange returns the time of the last change of alone, and the last failure.
func (l *link) lastChange() (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changedAt, l.err
}

// outageNumber returns the number of the current outage, or of the next one.
func (l *link) outageNumber() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outage
}

// loss is the last loss of counters in Redis. It is safe for concurrent use.
type loss struct {
	longestMs atomic.Int64 // longest window that was asked for, in milliseconds
	atMs      atomic.Int64 // time at which the loss was found, in milliseconds since 1970; 0 for never
}

// addWindows raises the longest window to those of dimensions.
func (l *loss) addWindows(dims []limit.Dim) {
	for i := range dims {
		if d := &dims[i]; d.Kind == limit.Window && d.WindowMs > l.longestMs.Load() {
			l.longestMs.Store(d.WindowMs) // a smaller one that comes between is soon corrected
		}
	}
}

// isRecent reports whether a window may be running that began before the loss.
func (l *loss) isRecent(now time.Time) bool {
	longest := max(time.Duration(l.longestMs.Load())*time.Millisecond, limit.LeaseLife)
	return isRecent(l.atMs.Load(), now, longest)
}

// localRequests holds the running requests that were admitted without Redis. It is safe for
// concurrent use.
type localRequests struct {
	count atomic.Int64 // length of byID, to be read without the lock

	mu   sync.Mutex
	byID map[string]*localRequest
}

func (r *localRequests) add(id string, l *localRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[id] = l
	r.count.Store(int64(len(r.byID)))
}

func (r *localRequests) contains(id string) bool {
	if r.count.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id] != nil
}

// remove removes and returns a request; nil where it was not admitted here.
func (r *localRequests) remove(id string) *localRequest {
	if r.count.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byID[id]
	delete(r.byID, id)
	r.count.Store(int64(len(r.byID)))
	return l
}

// unadopted returns the requests of which Redis holds no reservation.
func (r *localRequests) unadopted() map[string]*localRequest {
	if r.count.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*localRequest{}
	for id, l := range r.byID {
		if !l.adopted {
			out[id] = l
		}
	}
	return out
}

// setAdopted marks a request of which Redis holds a reservation. One that was removed
// meanwhile is being settled, and Redis knows its settlement by the id.
func (r *localRequests) setAdopted(id string, l *localRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[id] == l {
		l.adopted = true
	}
}

// split returns the renewals for Redis, and those for the shadow with its dimensions.
func (r *localRequests) split(renewals []limit.Renewal) (shared, shadow []limit.Renewal) {
	shared = make([]limit.Renewal, 0, len(renewals))
	shadow = make([]limit.Renewal, 0, len(renewals))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range renewals {
		l := r.byID[one.ID]
		if l == nil || l.adopted {
			shared = append(shared, one)
		}
		if l == nil {
			one.Dims = fineDims(one.Dims)
		} else {
			one.Dims = l.dims
		}
		shadow = append(shadow, one)
	}
	return shared, shadow
}

// backlog holds the settlements that Redis has not accepted, in their order. It is safe for
// concurrent use.
type backlog struct {
	mu      sync.Mutex
	waiting []settlement
	dropped int64 // settlements for which there was no room
}

func (b *backlog) add(s settlement) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) < maxWaiting {
		b.waiting = append(b.waiting, s)
	} else {
		b.dropped++
	}
}

// first returns the first settlement; false where there is none.
func (b *backlog) first() (settlement, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		b.waiting = nil
		return settlement{}, false
	}
	s := b.waiting[0]
	s.Charges = slices.Clone(s.Charges) // skipQuotas may change them meanwhile
	return s, true
}

func (b *backlog) removeFirst() {
	b.mu.Lock()
	b.waiting = b.waiting[1:]
	b.mu.Unlock()
}

// skipQuotas makes the settlements of requests that were admitted here (ms is not 0) charge
// no quota: Redis was given what a ledger knows, which has counted these requests, too.
func (b *backlog) skipQuotas() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.waiting {
		for i := range s.Dims {
			if s.Dims[i].Kind == limit.Quota && s.ms != 0 {
				s.Charges[i] = 0 // the slice is the settlement's own
			}
		}
	}
}

func (b *backlog) size() (waiting int, dropped int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting), b.dropped
}

// prober makes the reservations that test whether Redis is back. It is safe for concurrent
// use.
type prober struct {
	mu    sync.Mutex
	home  string // home where the last call failed
	count int64
}

// setHome sets the home of a call that failed.
func (p *prober) setHome(dims []limit.Dim) {
	if len(dims) == 0 {
		return
	}
	p.mu.Lock()
	p.home = tag(dims[0].Key)
	p.mu.Unlock()
}

// next returns the id and the dimensions of the next probe.
func (p *prober) next(replica string) (id string, dims []limit.Dim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	return fmt.Sprintf("probe:%s:%d", replica, p.count), []limit.Dim{{
		Key: "tg:" + p.home + ":probe:" + replica, Kind: limit.Window, Limit: 1000, Cost: 1, WindowMs: 1000, BucketMs: 100,
	}}
}

// recalls holds the last reading of the ledger. It is safe for concurrent use.
type recalls struct {
	mu   sync.Mutex
	last recalled
}

func (r *recalls) set(next recalled) {
	r.mu.Lock()
	r.last = next
	r.mu.Unlock()
}

func (r *recalls) get() recalled {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
