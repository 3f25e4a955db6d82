package backend

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Pace holds the recent speed of a backend, as moving averages over its answers. It serves
// the charge of cut answers, predictions of unary ones, and the signal ttft. It is safe for
// concurrent use.
type Pace struct {
	mu      sync.Mutex
	ttft    time.Duration // time to the first token of streams
	itl     time.Duration // time between two tokens of streams
	seen    time.Time     // time of the last stream
	prompt  time.Duration // time per token of a prompt, from streams; 0 before the first
	token   time.Duration // time between two tokens of all answers; 0 before the first
	learned time.Time     // time of the last change of token
	answers int           // number of answers in token
	initial time.Duration // time between two tokens before the first answer; 0 means DefaultPace

	first [firsts]firstToken // newest at next-1 and before
	next  int
}

// firstToken is the time to the first token of one request.
type firstToken struct {
	time time.Time
	took time.Duration
}

const (
	firsts           = 256              // first tokens kept
	firstsWindow     = 30 * time.Second // time for which one counts
	firstsLongWindow = 2 * time.Minute  // time for which one counts if there are few
	firstsEnough     = 10               // number that gives a percentile
	firstsNeeded     = 3                // least number that gives an answer
)

// First records the time from a request to its first token, waiting in the gateway
// included.
func (p *Pace) First(now time.Time, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first[p.next%firsts] = firstToken{now, took}
	p.next++
}

// TTFT returns the 90th percentile of the time to the first token over the last half
// minute; 0 if there were too few requests. With fewer than ten requests it leaves out the
// slowest: one slow request says nothing, two do. Old requests do not count against an idle
// backend.
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

// Decode estimates the time of one choice from its first token to its last; false if no
// recent stream was observed.
func (p *Pace) Decode(tokens int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(max(tokens-1, 0)) * p.itl, p.itl > 0 && time.Since(p.seen) <= paceWindow
}

// paceWindow is the time after the last stream for which its time between tokens holds.
const paceWindow = time.Minute

const paceWeight = 8 // the newest answer counts for one eighth

// DefaultPace is the speed of an unknown backend, in tokens per second of one choice. It
// is above the speed of most models on most cards, so that an answer of unknown length
// is not free.
const DefaultPace = 50

// SetInitial sets the speed before the first answer, in tokens per second of one choice;
// 0 means DefaultPace.
func (p *Pace) SetInitial(tokensPerSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.initial = 0; tokensPerSecond > 0 {
		p.initial = time.Second / time.Duration(tokensPerSecond)
	}
}

// ObserveWhole records an answer in one piece: the time from sending to its end, and the
// output tokens of one choice. It ignores short answers, whose time went mostly into the
// prompt. Decode does not use it, since the time of the first token is unknown.
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

// wholeTokens is the shortest answer in one piece that counts for the pace, in tokens.
const wholeTokens = 16

// learn adds the time between two tokens of an answer. The caller holds the lock.
func (p *Pace) learn(token time.Duration) {
	p.learned = time.Now()
	p.answers++
	if p.token == 0 {
		p.token = token
		return
	}
	p.token += (token - p.token) / paceWeight
}

// Observe records a stream: the time to its first token, the time from there to its last
// one, and the output tokens of its longest choice.
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
		p.ttft = ttft // a TTFT learned under load must not make tokens free once the engine is idle
		return
	}
	p.ttft += (ttft - p.ttft) / paceWeight
}

// ObservePrompt records the time of a stream to its first token, and the uncached tokens
// of its prompt. It ignores short prompts.
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

// Whole predicts the time of an answer in one piece from the tokens of its prompt and of
// its longest choice. token is the engine's current time per token of one choice; 0 if
// unknown. The slower one of token and the observed pace counts.
func (p *Pace) Whole(prompt, answer int, token time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	perToken := max(cmp.Or(p.prompt, promptSlow), promptFast)
	token = max(token, cmp.Or(p.token, p.initial, time.Second/DefaultPace))
	return times(prompt, perToken) + times(answer, token)
}

// times returns n times d, bounded so that sums and multiples of it do not overflow.
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

// Tokens estimates the tokens of one choice at a time since sending.
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

// RetryBudget bounds retries to a share of all requests, so that the retries of a failing
// fleet do not double its load. It is safe for concurrent use.
type RetryBudget struct {
	share float64
	mu    sync.Mutex
	left  float64
}

// fewRetries is the number of retries that are allowed at once after a quiet time.
const fewRetries = 10

// NewRetryBudget returns a budget of share retries per request.
func NewRetryBudget(share float64) *RetryBudget {
	return &RetryBudget{share: share, left: fewRetries * min(1, share*fewRetries)}
}

// Earn counts a request, which earns a share of a retry.
func (b *RetryBudget) Earn() {
	b.mu.Lock()
	b.left = min(b.left+b.share, fewRetries)
	b.mu.Unlock()
}

// Spend uses one retry and reports whether there was one.
func (b *RetryBudget) Spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// moves counts the requests that a failing backend may hand to its peers beyond their
// retry budget: per minute at most all that it had when the first of them failed, since the
// fleet carries these already.
type moves struct {
	mu     sync.Mutex
	left   int
	refill time.Time // time of the next refill
}

// movesEvery is the least time between two refills of moves.
const movesEvery = time.Minute

// SpendMove uses one retry outside the retry budget and reports whether there was one. The request
// still holds its seat on the backend.
func (b *Backend) SpendMove(now time.Time) bool {
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
