package backend

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Pace is how fast a backend has lately been making tokens, as moving averages
// over its answers. It serves to estimate what a request that was not streamed
// had made when it was cut, of which the server says nothing. It is safe for
// concurrent use.
type Pace struct {
	mu      sync.Mutex
	ttft    time.Duration // to the first token, of streams
	itl     time.Duration // between two tokens, of streams
	seen    time.Time     // when a stream was observed last
	prompt  time.Duration // for each token of a prompt, of streams; 0: none observed
	token   time.Duration // between two tokens, of streams and of whole answers; 0: none observed
	learned time.Time     // when token was
	answers int           // of which token is
	initial time.Duration // between two tokens, until any answer has been observed; 0: DefaultPace

	first [firsts]firstToken // the newest, at next-1 and before
	next  int
}

// sighting is how long one caller waited for its first token.
type firstToken struct {
	time time.Time
	took time.Duration
}

const (
	firsts           = 256              // sightings kept
	firstsWindow     = 30 * time.Second // for which one counts
	firstsLongWindow = 2 * time.Minute  // for which one counts where there are always few
	firstsEnough     = 10               // of which nine in ten can be told
	firstsNeeded     = 3                // to say anything
)

// First takes in how long a caller waited for the first token, from sending its
// request: waiting in the gateway included.
func (p *Pace) First(now time.Time, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first[p.next%firsts] = firstToken{now, took}
	p.next++
}

// TTFT is within what time nine in ten of the callers of the last half minute had
// their first token; 0: too few to say. Where fewer than ten came in two minutes, all of
// these count, and the slowest is left out: one slow request says nothing, two do. A
// server that was busy and is asked by nobody now is not judged by what was.
func (p *Pace) TTFT(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var waits [firsts]time.Duration
	n, recent := 0, 0
	for k := range min(p.next, firsts) {
		s := &p.first[(p.next-1-k)%firsts]
		ago := now.Sub(s.time)
		if ago > firstsLongWindow || ago > firstsWindow && n >= firstsEnough {
			break
		}
		if ago <= firstsWindow {
			recent++
		}
		waits[n] = s.took
		n++
	}
	if n >= firstsEnough {
		n = recent
	}
	switch {
	case n < firstsNeeded:
		return 0
	case n < firstsEnough:
		slices.Sort(waits[:n])
		return waits[n-2]
	}
	slices.Sort(waits[:n])
	return waits[(9*n+9)/10-1]
}

// Decode estimates how long one choice takes from its first token to its last; false
// where no stream has been observed of late, so that nobody can say.
func (p *Pace) Decode(tokens int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(max(tokens-1, 0)) * p.itl, p.itl > 0 && time.Since(p.seen) <= paceWindow
}

// paceFor is how long after the last stream the time between two tokens is believed.
const paceWindow = time.Minute

const paceWeight = 8 // the newest answer counts one in eight

// DefaultPace is the speed of a backend of which nothing is known, in tokens per
// second of one choice. It is above what most models make on most cards, so that an
// answer whose length nobody saw is not free.
const DefaultPace = 50

// SetInitial sets the speed that holds until an answer has been observed, in tokens
// per second of one choice; 0: DefaultPace.
func (p *Pace) SetInitial(tokensPerSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.initial = 0; tokensPerSecond > 0 {
		p.initial = time.Second / time.Duration(tokensPerSecond)
	}
}

// ObserveWhole takes in one answer that came in one piece: the time from sending to
// its end, and the output tokens of one choice. A short one says too little, since
// most of its time went into the prompt. It tells nothing of when its first token
// came, so Decode does not use it.
func (p *Pace) ObserveWhole(took time.Duration, tokens int) {
	if took <= 0 || tokens < wholeTokens {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if decode := took - p.ttft; p.ttft > 0 && decode > 0 {
		p.learn(decode / time.Duration(tokens-1))
		return
	}
	p.learn(took / time.Duration(tokens))
}

// wholeTokens is the shortest whole answer from which the pace is learned.
const wholeTokens = 16

// learn takes in the time between two tokens of an answer. The lock is held.
func (p *Pace) learn(token time.Duration) {
	p.learned = time.Now()
	p.answers++
	if p.token == 0 {
		p.token = token
		return
	}
	p.token += (token - p.token) / paceWeight
}

// Observe takes in one stream: the time to its first token, the time from there
// to its last one, and the output tokens of its longest choice.
func (p *Pace) Observe(ttft, decode time.Duration, tokens int) {
	if ttft <= 0 || decode <= 0 || tokens < 2 {
		return
	}
	itl := decode / time.Duration(tokens-1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = time.Now()
	p.learn(itl)
	if p.itl == 0 {
		p.ttft, p.itl = ttft, itl
		return
	}
	p.itl += (itl - p.itl) / paceWeight
	if ttft < p.ttft {
		p.ttft = ttft // what a full engine took longer must make nothing free on an idle one
		return
	}
	p.ttft += (ttft - p.ttft) / paceWeight
}

// ObservePrompt takes in how long a stream took to its first token, and the tokens of its
// prompt that no cache had. A short prompt says too little.
func (p *Pace) ObservePrompt(ttft time.Duration, tokens int) {
	if ttft <= 0 || tokens < promptTokens {
		return
	}
	perToken := ttft / time.Duration(tokens)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.prompt == 0 {
		p.prompt = perToken
		return
	}
	p.prompt += (perToken - p.prompt) / paceWeight
}

const (
	promptTokens = 256                  // the shortest prompt from which the speed of reading is learned
	promptSlow   = time.Second / 500    // for a token of a prompt, until one has been observed
	promptFast   = time.Second / 10_000 // the least that a token of a prompt is believed to take: caches are quick, and not always there
)

// Whole predicts how long an answer in one piece takes whose prompt and longest choice
// have so many tokens. token is how long the engine says that it takes now for one token
// of one choice; 0: it does not say. The slower one of that and of what was observed
// counts.
func (p *Pace) Whole(prompt, answer int, token time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	perToken := max(cmp.Or(p.prompt, promptSlow), promptFast)
	token = max(token, cmp.Or(p.token, p.initial, time.Second/DefaultPace))
	return times(prompt, perToken) + times(answer, token)
}

// times is n times d, bounded so that sums and multiples of it do not overflow.
func times(n int, d time.Duration) time.Duration {
	const limit = 1000 * time.Hour
	if n <= 0 || d <= 0 {
		return 0
	}
	if time.Duration(n) > limit/d {
		return limit
	}
	return time.Duration(n) * d
}

// Tokens estimates how many tokens one choice has after a time since sending.
func (p *Pace) Tokens(elapsed time.Duration) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	elapsed -= p.ttft
	token := cmp.Or(p.token, p.initial, time.Second/DefaultPace)
	if elapsed <= 0 {
		return 0
	}
	return 1 + int(elapsed/token)
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

// moves are the requests that a failing backend may hand to others beyond their Budget:
// all that it had when the first of them failed, since these are no more than the fleet
// carries already.
type moves struct {
	mu     sync.Mutex
	left   int
	refill time.Time // when there may be as many once more
}

// movesEvery is how often a backend may fail all that it has.
const movesEvery = time.Minute

// Move takes one retry that costs no Budget; false: there is none. The request that
// asks still holds its place on the backend.
func (b *Backend) Move(now time.Time) bool {
	m := &b.moves
	m.mu.Lock()
	defer m.mu.Unlock()
	if !now.Before(m.refill) {
		m.left, m.refill = b.Seat.InFlight(), now.Add(movesEvery)
	}
	if m.left < 1 {
		return false
	}
	m.left--
	return true
}
