package limit

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// Set is the compiled rules in force. It is immutable, apart from caches of its calendars.
type Set struct {
	counters []counter // in the order of their homes
	weights  map[string]Weights
	generate keyParts // keys of the counters of generations
	aux      keyParts // keys of the counters of auxiliary requests
	size     int      // largest number of dimensions of a request
}

// keyParts holds the parts that the keys of some counters need.
type keyParts struct {
	subjects [subjectCount]bool // subjects that some counter counts by
	homes    [ofAll + 1]bool
}

// keyParts returns the parts for the counters that count one kind of request.
func (s *Set) keyParts(aux bool) *keyParts {
	if aux {
		return &s.aux
	}
	return &s.generate
}

// counter is one metric of one rule or quota.
type counter struct {
	counterID
	policy
	capacities

	windowMs, bucketMs int64 // lengths of a rate's window and bucket

	calendar *calendar // periods of a quota
	alertAt  []int     // percent of a quota, the smallest first

	variants map[owner]*counter // counters with the numbers of overrides
}

// counterID identifies a counter and the requests that it counts.
type counterID struct {
	rule     string
	scope    string // as the configuration writes it
	subjects subjectKinds
	home     home
	name     string // part of the keys
	metric   Metric
	kind     Kind
	aux      bool // it counts auxiliary requests alone
}

// policy is the treatment of the requests that a counter counts.
type policy struct {
	failure Failure
	reserve Policy
	shadow  bool
	degrade bool
	wait    time.Duration // longest wait of a request for a place; 0 for none
}

// capacities holds the limits of a counter by hour and by level of pressure.
type capacities struct {
	amounts  []amount // by schedule; the last is that of the rule itself
	largest  int64    // capacity under any schedule
	factors  [TierCount][levelCount]int64
	schedule *schedule
}

// amount is a limit and its burst.
type amount struct{ limit, burst int64 }

const (
	levelCount = 5 // L0 to L4
)

// schedule holds the hours of one rule.
type schedule struct {
	table timetable
	last  atomic.Pointer[spell]
}

// spell is a span of time in which the same schedule is in force.
type spell struct {
	start, end time.Time
	now, next  int // indexes of amounts
}

func (s *schedule) spellAt(t time.Time) *spell {
	if last := s.last.Load(); last != nil && !t.Before(last.start) && t.Before(last.end) {
		return last
	}
	found := &spell{start: t, now: s.index(t)}
	if end, ok := s.table.next(t); ok {
		found.end, found.next = end, s.index(end)
	} else {
		found.end, found.next = t.Add(horizon/2), found.now
	}
	s.last.Store(found)
	return found
}

func (s *schedule) index(t time.Time) int {
	if i := s.table.active(t); i >= 0 {
		return i
	}
	return len(s.table)
}

// calendar holds the periods of one quota.
type calendar struct {
	every periodLength
	zone  *time.Location
	last  atomic.Pointer[span]
}

type span struct{ begin, end time.Time }

func (c *calendar) periodAt(t time.Time) *span {
	if last := c.last.Load(); last != nil && !t.Before(last.begin) && t.Before(last.end) {
		return last
	}
	found := &span{}
	found.begin, found.end = c.every.bounds(t, c.zone)
	c.last.Store(found)
	return found
}

// Compile checks rules and quotas and compiles them. The weights are those of models by name;
// a model without weights counts every token as one unit.
func Compile(rules []Rule, quotas []QuotaRule, weights map[string]Weights) (*Set, error) {
	if err := Validate(rules, quotas); err != nil {
		return nil, err
	}
	var f faults
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		f.addPart(fmt.Sprintf("weights[%q]", name), weights[name].Validate())
	}
	if len(f) > 0 {
		return nil, errors.Join(f...)
	}
	s := &Set{weights: maps.Clone(weights)}
	for i := range rules {
		s.counters = append(s.counters, rules[i].counters()...)
	}
	for i := range quotas {
		s.counters = append(s.counters, quotas[i].counter())
	}
	slices.SortStableFunc(s.counters, func(a, b counter) int { return cmp.Compare(a.home, b.home) })
	s.size = len(s.counters)
	for i := range s.counters {
		if s.counters[i].bounded() {
			s.size++
		}
		parts := s.keyParts(s.counters[i].aux)
		parts.homes[s.counters[i].home] = true
		for _, one := range s.counters[i].subjects {
			parts.subjects[one] = true
		}
	}
	return s, nil
}

// counters returns one counter for each metric of a valid rule.
func (r *Rule) counters() []counter {
	subjects, _ := parseSubjectKinds(r.Scope)
	common := counter{
		counterID:  counterID{rule: r.Name, scope: r.Scope, subjects: subjects, home: subjects.home(), aux: r.Aux},
		policy:     policy{failure: cmp.Or(r.OnStoreFailure, FailLocal), reserve: cmp.Or(r.Reserve, ReserveP90), shadow: r.Shadow, degrade: r.Exceed == ExceedDegrade},
		capacities: capacities{factors: r.UnderPressure.factors()},
	}
	bounds := make([]Bounds, 0, len(r.Schedule)+1)
	if len(r.Schedule) > 0 {
		common.schedule = &schedule{}
		for i := range r.Schedule {
			h, _ := parseHours(r.Schedule[i].Hours)
			common.schedule.table = append(common.schedule.table, h)
			bounds = append(bounds, r.merged(r.Schedule[i].Bounds))
		}
	}
	bounds = append(bounds, r.Bounds)
	var out []counter
	for i, m := range r.rates() {
		if m.rate == (Rate{}) {
			continue
		}
		c := common
		c.metric, c.kind, c.windowMs = m.metric, Window, m.rate.Window.Milliseconds()
		c.bucketMs = ceilDiv(c.windowMs, int64(cmp.Or(r.Buckets, defaultBuckets)))
		for j := range bounds {
			a := amount{limit: bounds[j].rates()[i].rate.Count}
			if metric, _, ok := bounds[j].bursting(); ok && metric == m.metric && int64(bounds[j].Burst) < a.limit {
				a.burst = int64(bounds[j].Burst)
			}
			c.amounts = append(c.amounts, a)
		}
		out = append(out, c.complete())
	}
	if r.Concurrency != 0 {
		c := common
		c.metric, c.kind, c.wait = Concurrency, Lease, r.Wait
		for j := range bounds {
			c.amounts = append(c.amounts, amount{limit: int64(bounds[j].Concurrency)})
		}
		out = append(out, c.complete())
	}
	return out
}

func (c counter) complete() counter {
	c.name = "r:" + c.rule + ":" + c.metric.String() + ":"
	for _, a := range c.amounts {
		c.largest = max(c.largest, capacity(a.limit, a.burst))
	}
	return c
}

// counter returns the counter of a valid quota. Its name holds the calendar: a quota by
// another calendar is another counter.
func (q *QuotaRule) counter() counter {
	subjects, _ := parseSubjectKinds(q.Scope)
	e, _ := parseEvery(q.Every)
	zone, _ := LoadZone(q.Zone)
	c := counter{
		counterID:  counterID{rule: q.Name, scope: q.Scope, subjects: subjects, home: subjects.home(), kind: Quota, metric: Units},
		policy:     policy{reserve: ReserveP90, failure: cmp.Or(q.OnStoreFailure, FailLocal)},
		capacities: capacities{factors: (&Pressure{}).factors()},
		calendar:   &calendar{every: e, zone: zone}, alertAt: q.AlertAt,
	}
	if len(c.alertAt) == 0 {
		c.alertAt = []int{80, 95, 100}
	}
	a := amount{limit: int64(q.Units) * 1000}
	if q.Tokens != 0 {
		c.metric, a.limit = Tokens, int64(q.Tokens)
	}
	c.amounts, c.largest = []amount{a}, a.limit
	c.name = "q:" + q.Name + ":" + c.metric.String() + ":" + q.Every + "@" + zone.String() + ":"
	return c
}

// factors returns the factors of every tier and level, in thousandths.
func (p *Pressure) factors() (out [TierCount][levelCount]int64) {
	general := p.list()
	for tier, levels := range [TierCount]Levels{p.Critical, p.Standard, p.Batch} {
		last := int64(1000)
		out[tier][0] = last
		for i, f := range levels.list() {
			last = cmp.Or(int64(f), int64(general[i]), last)
			out[tier][i+1] = last
		}
	}
	return out
}

// scaled returns an amount under pressure, at least 1.
func (a amount) scaled(factor int64) amount {
	if factor == 1000 {
		return a
	}
	a.limit = max(a.limit*factor/1000, 1)
	if a.burst > 0 {
		a.burst = max(a.burst*factor/1000, 1)
	}
	return a
}

// Request is a request that asks to be admitted.
type Request struct {
	ID string // made by the gateway: a caller who could choose it would pay once for many
	Subjects
	Tier      string // critical | standard | batch; empty: standard
	Served    string // model that is to answer, as far as is known; empty for the one that is asked for
	Level     int    // level of pressure, 0 to 4
	Reason    string // reason of the level, for rejections
	Prompt    int64  // exact tokens
	MaxTokens int64  // tokens that all its answers may have together; 0 where it generates nothing
	Sequences int64  // answers that are generated at the same time, prompts times choices; 0: 1
	Thinking  bool
	Aux       bool // it generates nothing, and only rules of auxiliary requests count it
	// Waiting means that it waits for a place already: the store is asked whatever it answered
	// a moment ago, and a rejection counts for no metric.
	Waiting bool
	// Behind reports whether others wait for places of a counter, who go first; nil where
	// nobody waits anywhere.
	Behind func(counter string) bool
}

// sequences returns the number of sequences, 1 at least.
func (r *Request) sequences() int64 { return max(r.Sequences, 1) }

// Estimate is the expected answer of a request, in tokens.
type Estimate struct {
	Output, Reasoning int64
	Cold              bool          // too little is known; it is bounded by a quarter of the smallest limit
	Pace              int64         // tokens per second that one sequence may come at; 0 for any number
	MeanDuration      time.Duration // average duration of an answer, from admission to end; 0 where unknown
	CallerDuration    time.Duration // the same of the key's own answers, where some were seen
	MedianDuration    time.Duration // time in which half of the key's answers have ended; 0 where unknown
	LikelyUsage       Usage         // amount that three of four of the key's answers do not pass, their prompts aside; no output where unknown
}

// plan holds the dimensions of one request and their counters. A ceiling is the dimension of
// what a counter may be used at most; it follows the counter's own.
type plan struct {
	dims           []Dim
	counters       []*counter
	meanDuration   time.Duration // average duration of an answer; 0 where unknown
	callerDuration time.Duration // average duration of such an answer of this key; 0 where unknown
	medianDuration time.Duration // time in which half of such answers have ended
	likelyUsage    Usage         // probable usage of such an answer at most; no output where unknown
	level          int           // level of pressure
	tier           int
	reason         string // reason of the level
}

func (p *plan) add(d Dim, c *counter) {
	p.dims, p.counters = append(p.dims, d), append(p.counters, c)
}

// ceiling reports whether a dimension is a ceiling.
func (p *plan) ceiling(i int) bool { return i > 0 && p.counters[i] == p.counters[i-1] }

// Dims returns the dimensions that a request meets, in the order of their homes.
func (s *Set) Dims(r Request, e Estimate, now time.Time) []Dim { return s.plan(&r, e, now).dims }

func (s *Set) plan(r *Request, e Estimate, now time.Time) plan {
	p := plan{dims: make([]Dim, 0, s.size), counters: make([]*counter, 0, s.size), meanDuration: e.MeanDuration, callerDuration: e.CallerDuration, likelyUsage: e.LikelyUsage, medianDuration: e.MedianDuration}
	parts := s.keyParts(r.Aux)
	n := r.names(parts.subjects, parts.homes)
	p.level, p.tier, p.reason = min(max(r.Level, 0), levelCount-1), TierIndex(r.Tier), r.Reason
	for i := range s.counters {
		c := &s.counters[i]
		if c.aux != r.Aux {
			continue
		}
		c = c.variant(&r.Subjects) // its window may have a ceiling where the rule's has none
		suffix := ""
		if c.bounded() {
			suffix = ceilingSuffix
		}
		key := n.key(c.home, c.name, c.subjects, suffix) // one text for both
		if key == "" {
			continue
		}
		d := Dim{
			Key: key[:len(key)-len(suffix)], Kind: c.kind, Rule: c.rule, Metric: c.metric, Failure: c.failure, Soft: c.shadow || c.degrade,
			WindowMs: c.windowMs, BucketMs: c.bucketMs,
		}
		c.limit(&d, c.factors[p.tier][p.level], now)
		p.add(d, c)
		if c.bounded() {
			p.add(c.ceiling(d, key), c)
		}
	}
	if e.Cold {
		e = e.capped(p)
	}
	w := s.weightsOf(r.Model)
	for i := range p.dims {
		p.counters[i].cost(&p.dims[i], r, e, w, p.ceiling(i))
	}
	return p
}

// limit sets the limit that is in force at a time.
func (c *counter) limit(d *Dim, factor int64, now time.Time) {
	if c.kind == Quota {
		period := c.calendar.periodAt(now)
		d.Limit, d.BeginMs, d.EndMs = c.amounts[0].limit, period.begin.UnixMilli(), period.end.UnixMilli()
		return
	}
	a := c.amounts[len(c.amounts)-1]
	if c.schedule != nil {
		spell := c.schedule.spellAt(now)
		a = c.amounts[spell.now]
		// A retry reaches over one change at most: the window's length and a bucket's.
		reach := max(2*time.Duration(c.windowMs)*time.Millisecond, 2*LeaseLife)
		if spell.end.Sub(now) <= reach {
			next := c.carried(c.amounts[spell.next].scaled(factor))
			d.EdgeMs, d.NextLimit, d.NextBurst = spell.end.UnixMilli(), next.limit, next.burst
		}
	}
	a = c.carried(a.scaled(factor))
	d.Limit, d.Burst = a.limit, a.burst
}

func (s *Set) weightsOf(model string) Weights {
	if w, ok := s.weights[model]; ok {
		return w
	}
	return DefaultWeights()
}

// capped bounds an estimate without experience by a quarter of the smallest limit of tokens,
// so that a small limit admits its first request.
func (e Estimate) capped(p plan) Estimate {
	for i := range p.dims {
		if p.ceiling(i) {
			continue
		}
		d := &p.dims[i]
		quarter := capacity(d.Limit, d.Burst) / 4
		switch d.Metric {
		case Units:
			quarter /= 1000
		case Tokens, OutputTokens:
		case ReasoningTokens:
			e.Reasoning = min(e.Reasoning, max(quarter, 1))
			continue
		default:
			continue
		}
		e.Output = min(e.Output, max(quarter, 1))
	}
	e.Reasoning = min(e.Reasoning, e.Output)
	return e
}

// cost sets the amount that a request reserves of a dimension, and its charge if nothing more
// is ever heard of it: itself and its prompt.
func (c *counter) cost(d *Dim, r *Request, e Estimate, w Weights, ceiling bool) {
	if c.metric == Requests || c.metric == Concurrency {
		d.Floor, d.Cost = r.sequences(), r.sequences()
		return
	}
	output, reasoning := min(e.Output, r.MaxTokens), min(e.Reasoning, r.MaxTokens)
	switch {
	case ceiling:
		output = r.maxAnswer(e, c.windowMs)
		reasoning = output
	case c.reserve == ReserveMax:
		output, reasoning = r.MaxTokens, r.MaxTokens
	case c.reserve == ReservePrompt:
		output, reasoning = 0, 0
	}
	if !r.Thinking {
		reasoning = 0
	}
	prompt := Usage{Input: r.Prompt}
	expected := Usage{Input: r.Prompt, Output: output, Reasoning: reasoning}
	d.Floor, d.Cost = charge(c.metric, prompt, w), charge(c.metric, expected, w)
	if c.metric == Units && c.reserve == ReserveMax {
		d.Cost = max(d.Cost, charge(c.metric, Usage{Input: r.Prompt, Output: output}, w))
	}
	// What reserves nothing could not be refused once the limit is reached.
	generates := r.MaxTokens > 0 && (c.metric == OutputTokens || c.metric == ReasoningTokens && r.Thinking || c.metric == Tokens || c.metric == Units)
	if generates {
		d.Cost = max(d.Cost, 1)
	}
	// An estimate alone makes no request too large.
	if c.reserve != ReserveMax {
		if room := capacity(d.Limit, d.Burst); d.Floor <= room {
			d.Cost = min(d.Cost, room)
		}
	}
}

// lower reduces the reservation of a quota to what is left, and reports whether it did: the
// prompt must fit.
func (p *plan) lower(i int, left int64) bool {
	d := &p.dims[i]
	if d.Kind != Quota || left < max(d.Floor, 1) || left >= d.Cost {
		return false
	}
	d.Cost = left
	return true
}

// Usage is the number of tokens that a request has used.
type Usage struct {
	Input     int64 // includes Cached
	Cached    int64
	Output    int64 // includes Reasoning
	Reasoning int64
	Sequences int64 // sequences that were sent to a backend; 0 for those of the request
}

// maxTokens bounds the tokens that one request is charged.
const maxTokens = 1_000_000_000

// sane returns a usage within the bounds of what an engine can truly report.
func (u Usage) sane() Usage {
	u.Input, u.Output = min(max(u.Input, 0), maxTokens), min(max(u.Output, 0), maxTokens)
	u.Cached, u.Reasoning = min(max(u.Cached, 0), u.Input), min(max(u.Reasoning, 0), u.Output)
	return u
}

// Units returns the amount that a usage counts against quotas, in thousandths of a unit.
func (w Weights) Units(u Usage) int64 { return charge(Units, u, w) }

// charge returns a usage in a metric; units are in thousandths.
func charge(m Metric, u Usage, w Weights) int64 {
	u = u.sane()
	switch m {
	case Requests, Concurrency:
		return 1
	case Tokens:
		return u.Input + u.Output
	case InputTokens:
		return u.Input
	case OutputTokens:
		return u.Output
	case ReasoningTokens:
		return u.Reasoning
	case Units:
		return (u.Input-u.Cached)*int64(w.Input) + u.Cached*int64(w.Cached) + (u.Output-u.Reasoning)*int64(w.Output) + u.Reasoning*int64(w.Reasoning)
	}
	return 0
}
