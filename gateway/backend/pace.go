package backend

import (
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
}

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
