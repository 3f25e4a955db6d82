package backend

import (
	"slices"
	"sync"
	"time"
)

// Pace is how fast a backend has lately been making tokens, as moving averages
// over its streams. It serves to estimate what a request that was not streamed
// had made when it was cut, of which the server says nothing. It is safe for
// concurrent use.
type Pace struct {
	mu   sync.Mutex
	ttft time.Duration // to the first token
	itl  time.Duration // between two tokens
	seen time.Time     // when a stream was observed last

	first [firsts]sighting // the newest, at next-1 and before
	next  int
}

// sighting is how long one caller waited for its first token.
type sighting struct {
	at   time.Time
	took time.Duration
}

const (
	firsts       = 256              // sightings kept
	firstsFor    = 30 * time.Second // for which one counts
	firstsNeeded = 10               // to say anything of nine in ten
)

// First takes in how long a caller waited for the first token, from sending its
// request: waiting in the gateway included.
func (p *Pace) First(now time.Time, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first[p.next%firsts] = sighting{now, took}
	p.next++
}

// TTFT is within what time nine in ten of the callers of the last half minute had
// their first token; 0: too few to say.
func (p *Pace) TTFT(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all [firsts]time.Duration
	n := 0
	for k := range min(p.next, firsts) {
		s := &p.first[(p.next-1-k)%firsts]
		if now.Sub(s.at) > firstsFor {
			break
		}
		all[n] = s.took
		n++
	}
	if n < firstsNeeded {
		return 0
	}
	slices.Sort(all[:n])
	return all[(9*n+9)/10-1]
}

// Decode estimates how long one choice takes from its first token to its last; false
// where no stream has been observed of late, so that nobody can say.
func (p *Pace) Decode(tokens int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(max(tokens-1, 0)) * p.itl, p.itl > 0 && time.Since(p.seen) <= paceFor
}

// paceFor is how long after the last stream the time between two tokens is believed.
const paceFor = time.Minute

const paceWeight = 8 // the newest stream counts one in eight

// Observe takes in one stream: the time to its first token, the time from there
// to its last one, and its output tokens.
func (p *Pace) Observe(ttft, decode time.Duration, tokens int) {
	if ttft <= 0 || decode <= 0 || tokens < 2 {
		return
	}
	itl := decode / time.Duration(tokens-1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = time.Now()
	if p.itl == 0 {
		p.ttft, p.itl = ttft, itl
		return
	}
	p.ttft += (ttft - p.ttft) / paceWeight
	p.itl += (itl - p.itl) / paceWeight
}

// Tokens estimates how many tokens one choice has after a time since sending; 0
// while no stream has been observed.
func (p *Pace) Tokens(since time.Duration) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.itl <= 0 || since <= p.ttft {
		return 0
	}
	return 1 + int((since-p.ttft)/p.itl)
}

// Budget bounds retries to a share of all requests, so that those of a fleet that
// fails do not double its load. It is safe for concurrent use.
type Budget struct {
	share float64
	mu    sync.Mutex
	left  float64
}

// fewRetries may be made at once after a quiet time.
const fewRetries = 10

// NewBudget allows share retries for each request.
func NewBudget(share float64) *Budget {
	return &Budget{share: share, left: fewRetries * min(1, share*fewRetries)}
}

// Request counts a request.
func (b *Budget) Request() {
	b.mu.Lock()
	b.left = min(b.left+b.share, fewRetries)
	b.mu.Unlock()
}

// Retry takes one retry; false: there is none left.
func (b *Budget) Retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
