package limit

import "time"

// ceilingParts is the ceiling above a limit, in quarters of the limit.
const ceilingParts = 5

// ceilingSuffix ends the key of a ceiling.
const ceilingSuffix = ":most"

// ceilingOf returns the ceiling above a limit: the amount that may be used in a window if
// every running request takes all that it can. It is a quarter more than the limit.
func ceilingOf(limit int64) int64 { return limit/4*ceilingParts + limit%4*ceilingParts/4 }

// bounded reports whether a counter has a ceiling: its reservations are only expected, so a
// caller could make them small and use much more.
func (c *counter) bounded() bool {
	return c.reserve == ReserveP90 && c.carries()
}

// carries reports whether usage above the limit is taken off the windows that follow. A
// running request's tokens are charged once per heartbeat. A window shorter than two
// heartbeats sees the tokens of ten seconds as if they had come in one moment, and would carry
// an overage that never was.
func (c *counter) carries() bool {
	return c.kind == Window && c.reserve != ReserveMax && c.output() && c.windowMs >= minCarriedWindow.Milliseconds()
}

// minCarriedWindow is the shortest window that has a ceiling and carries an overage.
const minCarriedWindow = 2 * heartbeat

// output reports whether a counter counts an amount that is known only after the answer.
func (c *counter) output() bool {
	return c.metric == Tokens || c.metric == OutputTokens || c.metric == ReasoningTokens
}

// carried returns an amount whose overage is carried into the windows that follow. It adds a
// token bucket of the whole limit, which refuses nothing that the window lets in until more
// than the limit was used. There is no bucket where its debt could not be counted exactly.
func (c *counter) carried(a amount) amount {
	if a.burst == 0 && c.carries() && a.limit <= maxExact/c.windowMs {
		a.burst = a.limit
	}
	return a
}

// ceiling returns the dimension that bounds what may be used at most, beside the dimension d
// of what is expected. A burst of the whole limit only carries an overage, and that belongs to
// the dimension of what was used.
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

// maxAnswer returns the tokens that the answers of a request may have within one window: all
// that they may have, or less where the model is known to be slower than that.
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
	paceAnswers  = 64   // answers of a model whose pace is kept
	paceKnown    = 8    // answers that must have been seen before the pace counts
	paceUnknown  = 100  // tokens per second, where fewer were seen: most engines are slower under load
	paceLong     = 64   // tokens of a sequence, of which the prompt took little of the time
	paceShort    = 16   // tokens of a sequence; shorter ones do not show the pace
	promptTokens = 16   // tokens that would come in the time that a short answer's prompt takes
	minPace      = 25   // tokens per second that an answer can always come at
	meanWeight   = 8    // the newest answer counts one in eight
	maxPace      = 1000 // tokens per second; a faster answer is kept as this
)

// paces holds how fast the last answers of a model came, in tokens per second of one sequence,
// from admission to end. A caller that reads slowly only makes its own answers look slower,
// and the fastest counts. Short answers are kept apart, so that nobody can displace the pace
// of long ones with them.
type paces struct {
	long, short recentPaces
	mean        time.Duration // moving average from admission to end, of answers of any length
}

// recentPaces holds the paces of the last paceAnswers answers, in tokens per second.
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

// fastest returns the highest pace; 0 where there is none.
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

// fastest returns the tokens per second that an answer may come at, with an eighth to spare.
// Until enough long answers are known the short ones count too, and they halve at most the
// pace that is assumed of an unknown engine.
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

// meanDuration returns the average duration of an answer; 0 where none was seen.
func (p *paces) meanDuration() time.Duration {
	if p == nil {
		return 0
	}
	return p.mean
}

// retryDelay returns the time after which a request that a ceiling rejected should be tried
// again. A running request gives back what it has not used as soon as it ends, which is long
// before that would leave the window.
func (p *plan) retryDelay(exact time.Duration) time.Duration {
	return min(exact, max(p.meanDuration, minRetryDelay))
}

// minRetryDelay also serves where the duration of answers is not known.
const minRetryDelay = time.Second
