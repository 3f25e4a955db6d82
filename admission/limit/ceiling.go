package limit

import "time"

// ceilingParts is the ceiling over a limit, in quarters of it.
const ceilingParts = 5

// most is behind the key of a ceiling.
const ceilingSuffix = ":most"

// ceilingOf is how much of a limit may be used in a window if every running request
// takes all that it can: a quarter more than the limit.
func ceilingOf(limit int64) int64 { return limit/4*ceilingParts + limit%4*ceilingParts/4 }

// bounded reports whether a counter has a ceiling: its reservations are only
// expected, so a caller could make them small and use much more.
func (c *counter) bounded() bool {
	return c.reserve == ReserveP90 && c.carries()
}

// carries reports whether usage over the limit is taken off the windows that follow.
// A running request's tokens are charged once in a heartbeat. A window shorter than two
// of them sees those of ten seconds as if they had come in one moment: it would carry
// an overage that there never was.
func (c *counter) carries() bool {
	return c.kind == Window && c.reserve != ReserveMax && c.output() && c.windowMs >= minCarriedWindow.Milliseconds()
}

// leastCarried is the shortest window that has a ceiling and carries an overage.
const minCarriedWindow = 2 * heartbeat

// output reports whether a counter counts what is known only afterwards.
func (c *counter) output() bool {
	return c.metric == Tokens || c.metric == OutputTokens || c.metric == ReasoningTokens
}

// carried is an amount whose overage is carried into the windows that follow: a token
// bucket of the whole limit refuses nothing that the window lets in, until more than
// the limit was used. It is left out where its debt could not be counted exactly.
func (c *counter) carried(a amount) amount {
	if a.burst == 0 && c.carries() && a.limit <= maxExact/c.windowMs {
		a.burst = a.limit
	}
	return a
}

// ceiling is the dimension that holds what may be used at most, beside one of what is
// expected. A burst of the whole limit is only there to carry an overage, and that is
// for the dimension of what was used.
func (c *counter) ceiling(d Dim, key string) Dim {
	raised := func(limit, burst int64) (int64, int64) {
		if burst >= limit {
			burst = 0
		}
		return ceilingOf(limit), ceilingOf(burst)
	}
	d.Key, d.Ceiling = key, true
	d.Limit, d.Burst = raised(d.Limit, d.Burst)
	d.NextLimit, d.NextBurst = raised(d.NextLimit, d.NextBurst)
	return d
}

// reach is what a request's answers may have within one window: all that they may
// have, or less where the model is known to be slower than that.
func (r *Request) maxAnswer(e Estimate, windowMs int64) int64 {
	if e.Pace <= 0 {
		return r.MaxTokens
	}
	perSequence := e.Pace * windowMs / 1000
	if r.MaxTokens/r.sequences() <= perSequence {
		return r.MaxTokens
	}
	return perSequence * r.sequences()
}

const (
	paceAnswers  = 64   // the last of a model whose pace is remembered
	paceKnown    = 8    // answers that must have been seen before the pace counts
	paceUnknown  = 100  // tokens per second, where fewer were seen: most engines are slower under load
	paceLong     = 64   // tokens of a sequence, of which the prompt took little of the time
	paceShort    = 16   // tokens of a sequence; shorter ones say nothing of the pace
	promptTokens = 16   // as many as come in the time that a short answer's prompt is taken to have had
	minPace      = 25   // tokens per second that an answer is always taken to be able to come at
	meanWeight   = 8    // the newest answer counts one in eight
	maxPace      = 1000 // tokens per second; what came faster is remembered as that
)

// paces are how fast the last answers of a model came, in tokens per second of one
// sequence, from their admission to their end. A caller that reads slowly only makes
// its own answers look slower, and the fastest counts. Short answers are remembered
// apart: nobody can make the pace of long ones forgotten with them.
type paces struct {
	long, short recentPaces
	mean        time.Duration // from admission to end, of answers of any length; a moving average
}

// recentPaces are those of the last paceAnswers answers, in tokens per second.
type recentPaces struct {
	values []int64
	next   int
}

func (p *recentPaces) add(pace int64) {
	if len(p.values) < paceAnswers {
		p.values = append(p.values, pace)
		return
	}
	p.values[p.next] = pace
	p.next = (p.next + 1) % paceAnswers
}

func (p *recentPaces) known() bool { return len(p.values) >= paceKnown }

// fastest returns the highest of them; 0: there is none.
func (p *recentPaces) fastest() (highest int64) {
	for _, pace := range p.values {
		highest = max(highest, pace)
	}
	return highest
}

func (p *paces) add(output, sequences int64, duration time.Duration) {
	p.mean = averaged(p.mean, duration)
	perSequence := output / max(sequences, 1)
	pace := func(tokens int64) int64 { return min(tokens*1000/max(duration.Milliseconds(), 1), maxPace) }
	switch {
	case perSequence >= paceLong:
		p.long.add(pace(perSequence))
	case perSequence >= paceShort:
		p.short.add(pace(perSequence + promptTokens))
	}
}

// fastest returns the tokens per second that an answer may come at, with an eighth to
// spare. Until enough long answers are known the short ones count too, and they lower
// what is believed of an unknown engine to its half at most.
func (p *paces) fastest() int64 {
	if p == nil || !p.long.known() && !p.short.known() {
		return paceUnknown
	}
	highest := p.long.fastest()
	if p.long.known() {
		return max(highest+highest/8, minPace)
	}
	highest = max(highest, p.short.fastest())
	return max(highest+highest/8, paceUnknown/2)
}

// lasting returns how long an answer lasts on the average; 0: none was seen.
func (p *paces) meanDuration() time.Duration {
	if p == nil {
		return 0
	}
	return p.mean
}

// turn returns when a request that a ceiling refused should be tried again: what runs
// gives back what it has not used as soon as it ends, which is long before that would
// leave the window.
func (p *plan) retryDelay(exact time.Duration) time.Duration {
	return min(exact, max(p.meanDuration, minRetryDelay))
}

const minRetryDelay = time.Second // also where nothing is known of the answers
