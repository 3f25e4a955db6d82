package limit

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Policy is the part of an unknown output that is reserved.
type Policy string

// The policies.
const (
	ReserveP90    Policy = "p90"    // amount that nine of ten recent outputs did not pass
	ReserveMax    Policy = "max"    // all that the request may produce
	ReservePrompt Policy = "prompt" // nothing; outputs are charged when they are known
)

// Failure is the behaviour of a rule while the store cannot be reached.
type Failure string

// The failure modes.
const (
	FailLocal  Failure = "local"  // each replica enforces its share
	FailClosed Failure = "closed" // nothing passes
	FailOpen   Failure = "open"   // everything passes
)

// The values of Rule.Exceed: the treatment of a request over a rule's limit.
const (
	ExceedReject  = "reject"
	ExceedDegrade = "degrade" // a smaller model serves it
)

const (
	defaultBuckets = 12
	maxBuckets     = 60
)

// Bounds holds the numbers of a rule.
type Bounds struct {
	Requests        Rate  `yaml:"requests"`         // in any window of that length, 1s to 1h
	Tokens          Rate  `yaml:"tokens"`           // input and output together
	InputTokens     Rate  `yaml:"input_tokens"`     // of prompts
	OutputTokens    Rate  `yaml:"output_tokens"`    // of answers, the reasoning included
	ReasoningTokens Rate  `yaml:"reasoning_tokens"` // of the reasoning
	Concurrency     Count `yaml:"concurrency"`      // requests that run at the same time
	Burst           Count `yaml:"burst"`            // of requests where they are limited, else of the one token rate
}

// Rule is a limit for each of some subjects.
type Rule struct {
	Name           string `yaml:"name"` // in refusals, metrics and overrides
	Scope          string `yaml:"per"`  // key, user, project, department, ip, model, global or two such as user,model
	Bounds         `yaml:",inline"`
	Schedule       []Schedule `yaml:"schedule"`
	UnderPressure  Pressure   `yaml:"under_pressure"`
	Buckets        int        `yaml:"buckets"`          // in a window; 0: 12
	Reserve        Policy     `yaml:"reserve"`          // p90 | max | prompt: for an answer, before it is known
	Exceed         string     `yaml:"exceed"`           // reject: 429 | degrade: served by the fallback
	OnStoreFailure Failure    `yaml:"on_store_failure"` // local | closed | open, while Redis does not answer
	Shadow         bool       `yaml:"shadow"`           // counted and reported, never enforced
	// longest time that a request over concurrency waits for a place, up to 1m; 0s: it is refused at once; left out: 2s
	Wait time.Duration `yaml:"wait"`
	Aux  bool          `yaml:"-"` // counts requests that generate nothing, and no others
}

const (
	// DefaultWait is the wait of a request over its concurrency where the rule states none. It
	// is long enough for most answers' places, and shorter than the patience of clients and
	// proxies.
	DefaultWait = 2 * time.Second
	maxWait     = time.Minute
	unsetWait   = time.Duration(math.MinInt64)
)

// UnmarshalYAML decodes a rule. A rule of concurrency without wait gets DefaultWait.
func (r *Rule) UnmarshalYAML(decode func(any) error) error {
	type plain Rule
	p := plain{Wait: unsetWait}
	if err := decode(&p); err != nil {
		return err
	}
	if p.Wait == unsetWait {
		p.Wait = 0
		if p.Concurrency != 0 {
			p.Wait = DefaultWait
		}
	}
	*r = Rule(p)
	return nil
}

// Schedule gives a rule other numbers in some hours.
type Schedule struct {
	Hours  string `yaml:"when"` // [Mon-Fri ]22:00-08:00 Asia/Shanghai
	Bounds `yaml:",inline"`
}

// Pressure shrinks a rule's limits while the GPUs are under pressure. A level
// that is left out has the factor of the one below it. The factor of a tier goes before the
// general one.
type Pressure struct {
	Levels   `yaml:",inline"`
	Critical Levels `yaml:"critical"`
	Standard Levels `yaml:"standard"`
	Batch    Levels `yaml:"batch"`
}

// Levels holds factors by level.
type Levels struct {
	L1 Factor `yaml:"L1"` // part of the limit that is left at L1, 0 to 1
	L2 Factor `yaml:"L2"` // at L2
	L3 Factor `yaml:"L3"` // at L3
	L4 Factor `yaml:"L4"` // at L4
}

func (l Levels) list() [4]Factor { return [...]Factor{l.L1, l.L2, l.L3, l.L4} }

// QuotaRule is an amount for each calendar period.
type QuotaRule struct {
	Name           string  `yaml:"name"`             // in refusals, alerts and overrides
	Scope          string  `yaml:"per"`              // as in limits; one counter for each
	Units          Count   `yaml:"units"`            // tokens by their weights
	Tokens         Count   `yaml:"tokens"`           // plain tokens
	Every          string  `yaml:"every"`            // hour | day | week | month
	Zone           string  `yaml:"zone"`             // empty: UTC
	AlertAt        []int   `yaml:"alert_at"`         // percent; empty: 80, 95, 100
	OnStoreFailure Failure `yaml:"on_store_failure"` // local | closed | open, while Redis does not answer
}

// Weights turn tokens of one model into quota units.
type Weights struct {
	Input     Milli `yaml:"input"`     // of a prompt token
	Cached    Milli `yaml:"cached"`    // of a prompt token that the server had in its cache, instead of input
	Output    Milli `yaml:"output"`    // of an answer token
	Reasoning Milli `yaml:"reasoning"` // of a reasoning token, instead of output
}

// DefaultWeights returns the weights that count every token as one unit.
func DefaultWeights() Weights { return Weights{1000, 1000, 1000, 1000} }

// UnmarshalYAML decodes weights; those that are left out are 1.
func (w *Weights) UnmarshalYAML(decode func(any) error) error {
	type plain Weights
	p := plain(DefaultWeights())
	if err := decode(&p); err != nil {
		return err
	}
	*w = Weights(p)
	return nil
}

// faults collects the errors of a configuration, each with its path first.
type faults []error

func (f *faults) add(path, format string, args ...any) {
	*f = append(*f, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

// addText adds a fault unless the text is empty.
func (f *faults) addText(path, fault string) {
	if fault != "" {
		f.add(path, "%s", fault)
	}
}

// addPart adds the faults of a part under its path.
func (f *faults) addPart(path string, err error) {
	if err == nil {
		return
	}
	parts := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		parts = joined.Unwrap()
	}
	for _, e := range parts {
		*f = append(*f, fmt.Errorf("%s.%w", path, e))
	}
}

// Validate returns all faults of the weights, each with its path first.
func (w Weights) Validate() error {
	var f faults
	for _, m := range []struct {
		path string
		n    Milli
	}{{"input", w.Input}, {"cached", w.Cached}, {"output", w.Output}, {"reasoning", w.Reasoning}} {
		if m.n < 0 || m.n > maxMilli {
			f.add(m.path, "must be from 0 to 1000 with at most three decimals, such as 0.1")
		}
	}
	return errors.Join(f...)
}

// Validate returns all faults of the sections limits and quotas of a configuration, each with
// its path first.
func Validate(rules []Rule, quotas []QuotaRule) error {
	var f faults
	owner := map[string]string{}
	name := func(path, name string) {
		if previous, twice := owner[name]; twice && name != "" {
			f.add(path+".name", "%q already names %s", name, previous)
			return
		}
		owner[name] = path
	}
	for i := range rules {
		path := fmt.Sprintf("limits[%d]", i)
		f.addPart(path, rules[i].Validate())
		name(path, rules[i].Name)
	}
	for i := range quotas {
		path := fmt.Sprintf("quotas[%d]", i)
		f.addPart(path, quotas[i].Validate())
		name(path, quotas[i].Name)
	}
	return errors.Join(f...)
}

// Validate returns all faults of a rule, each with its path first.
func (r *Rule) Validate() error {
	var f faults
	f.addText("name", nameFault(r.Name))
	if _, ok := parseSubjectKinds(r.Scope); !ok {
		f.addText("per", scopeFault(r.Scope))
	}
	hasLimit := r.validateBounds(&f)
	if !hasLimit {
		f.add("requests", "is missing, and so is every other limit; expected one of requests, tokens, input_tokens, output_tokens, reasoning_tokens, concurrency")
	}
	r.validateBurst(&f, "", r.Bounds)
	r.validateSchedule(&f)
	r.UnderPressure.validate(&f)
	if r.Buckets < 0 || r.Buckets > maxBuckets {
		f.add("buckets", "must be from 1 to %d", maxBuckets)
	}
	switch {
	case r.Wait < 0 || r.Wait > maxWait:
		f.add("wait", "is %v; expected 0s (a request over the concurrency is refused at once) to 1m, such as 2s", r.Wait)
	case r.Wait > 0 && r.Concurrency == 0:
		f.add("wait", "needs concurrency: only a place that another request gives back is waited for")
	}
	oneOf(&f, "reserve", string(r.Reserve), string(ReserveP90), string(ReserveMax), string(ReservePrompt))
	oneOf(&f, "exceed", r.Exceed, ExceedReject, ExceedDegrade)
	oneOf(&f, "on_store_failure", string(r.OnStoreFailure), string(FailLocal), string(FailClosed), string(FailOpen))
	return errors.Join(f...)
}

// oneOf adds a fault unless word is empty or one of words.
func oneOf(f *faults, path, word string, words ...string) {
	if word != "" && !slices.Contains(words, word) {
		f.add(path, "must be one of %s, not %q", strings.Join(words, ", "), word)
	}
}

func nameFault(name string) string {
	ok := len(name) >= 1 && len(name) <= 64
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Sprintf("must be 1 to 64 letters, digits, dots, dashes and underscores, not %q", name)
	}
	return ""
}

func scopeFault(text string) string {
	if text == "" {
		return "is missing; expected key, user, project, department, ip, model, global or two of them such as user,model"
	}
	return fmt.Sprintf("must be key, user, project, department, ip, model, global or two of them such as user,model, not %q", text)
}

// rates returns a rule's rates by metric.
func (b *Bounds) rates() [5]struct {
	metric Metric
	rate   Rate
} {
	return [...]struct {
		metric Metric
		rate   Rate
	}{
		{Requests, b.Requests}, {Tokens, b.Tokens}, {InputTokens, b.InputTokens},
		{OutputTokens, b.OutputTokens}, {ReasoningTokens, b.ReasoningTokens},
	}
}

// bursting returns the metric and the rate that a burst belongs to; false where that is not
// clear.
func (b *Bounds) bursting() (Metric, Rate, bool) {
	var found []int
	rates := b.rates()
	for i, r := range rates {
		if r.rate != (Rate{}) {
			found = append(found, i)
		}
	}
	if len(found) == 0 || found[0] != 0 && len(found) > 1 {
		return 0, Rate{}, false
	}
	return rates[found[0]].metric, rates[found[0]].rate, true
}

func (r *Rule) validateBounds(f *faults) (hasLimit bool) {
	for _, m := range r.rates() {
		if m.rate != (Rate{}) {
			hasLimit = true
			f.addText(m.metric.String(), m.rate.fault())
		}
	}
	if r.Concurrency != 0 {
		hasLimit = true
		f.addText("concurrency", r.Concurrency.fault())
	}
	return hasLimit
}

func (r *Rule) validateBurst(f *faults, path string, b Bounds) {
	if b.Burst == 0 {
		return
	}
	metric, rate, ok := b.bursting()
	switch fault := b.Burst.fault(); {
	case fault != "":
		f.addText(path+"burst", fault)
	case !ok:
		f.add(path+"burst", "needs requests, or exactly one rate of tokens, to be a burst of")
	case rate.fault() == "" && int64(b.Burst) > rate.Count:
		f.add(path+"burst", "is more than the %d %s of the whole window", rate.Count, metric)
	case rate.fault() == "" && int64(b.Burst) > maxExact/rate.Window.Milliseconds():
		f.add(path+"burst", "must be at most %d for a window of %s", maxExact/rate.Window.Milliseconds(), rate.Window)
	}
}

func (r *Rule) validateSchedule(f *faults) {
	var week weekMinutes
	zone := ""
	for i := range r.Schedule {
		s := &r.Schedule[i]
		path := fmt.Sprintf("schedule[%d]", i)
		hours, err := parseHours(s.Hours)
		switch {
		case err != nil:
			f.addText(path+".when", err.Error())
		case zone != "" && hours.zone.String() != zone:
			f.add(path+".when", "must be in the zone of the others, %s", zone)
		case !week.add(hours):
			f.add(path+".when", "overlaps another of the rule's schedules")
		}
		if err == nil {
			zone = hours.zone.String()
		}
		r.validateOverride(f, path+".", s)
	}
}

// validateOverride checks the numbers of a schedule beside those of its rule.
func (r *Rule) validateOverride(f *faults, path string, s *Schedule) {
	hasNumber := s.Concurrency != 0 || s.Burst != 0
	scheduled, base := s.rates(), r.rates()
	for i, m := range scheduled {
		if m.rate == (Rate{}) {
			continue
		}
		hasNumber = true
		switch fault := m.rate.fault(); {
		case fault != "":
			f.addText(path+m.metric.String(), fault)
		case base[i].rate == (Rate{}):
			f.add(path+m.metric.String(), "the rule itself has none to replace")
		case base[i].rate.Window != m.rate.Window:
			f.add(path+m.metric.String(), "must have the rule's own window of %s", base[i].rate.Window)
		}
	}
	if s.Concurrency != 0 {
		f.addText(path+"concurrency", s.Concurrency.fault())
		if r.Concurrency == 0 {
			f.add(path+"concurrency", "the rule itself has none to replace")
		}
	}
	if s.Burst != 0 && r.Burst == 0 {
		f.add(path+"burst", "the rule itself has none to replace")
	} else if s.Burst != 0 {
		r.validateBurst(f, path, r.merged(s.Bounds))
	}
	if !hasNumber {
		f.add(path+"requests", "is missing, and so is every other number that the schedule could replace")
	}
}

// merged returns the rule's numbers, replaced by those of s that are set.
func (r *Rule) merged(s Bounds) Bounds {
	b := r.Bounds
	for _, m := range []struct {
		target *Rate
		source Rate
	}{
		{&b.Requests, s.Requests}, {&b.Tokens, s.Tokens}, {&b.InputTokens, s.InputTokens},
		{&b.OutputTokens, s.OutputTokens}, {&b.ReasoningTokens, s.ReasoningTokens},
	} {
		if m.source != (Rate{}) {
			*m.target = m.source
		}
	}
	if s.Concurrency != 0 {
		b.Concurrency = s.Concurrency
	}
	if s.Burst != 0 {
		b.Burst = s.Burst
	}
	return b
}

func (p *Pressure) validate(f *faults) {
	for _, tier := range []struct {
		path   string
		levels Levels
	}{
		{"under_pressure.", p.Levels}, {"under_pressure.critical.", p.Critical},
		{"under_pressure.standard.", p.Standard}, {"under_pressure.batch.", p.Batch},
	} {
		last := Factor(1000)
		for i, factor := range tier.levels.list() {
			path := fmt.Sprintf("%sL%d", tier.path, i+1)
			switch {
			case factor == 0:
			case factor < 0 || factor > 1000:
				f.add(path, "must be more than 0 and at most 1, with at most three decimals, such as 0.5")
			case factor > last:
				f.add(path, "must not be more than at a lower level")
			default:
				last = factor
			}
		}
	}
}

// Validate returns all faults of a quota, each with its path first.
func (q *QuotaRule) Validate() error {
	var f faults
	f.addText("name", nameFault(q.Name))
	if _, ok := parseSubjectKinds(q.Scope); !ok {
		f.addText("per", scopeFault(q.Scope))
	}
	switch {
	case q.Units == 0 && q.Tokens == 0:
		f.add("units", "is missing; expected units (weighted) or tokens (plain)")
	case q.Units != 0 && q.Tokens != 0:
		f.add("tokens", "stands beside units; expected one of them")
	case q.Units != 0:
		f.addText("units", q.Units.fault())
	default:
		f.addText("tokens", q.Tokens.fault())
	}
	if _, ok := parseEvery(q.Every); !ok {
		f.add("every", "must be hour, day, week or month, not %q", q.Every)
	}
	if _, err := LoadZone(q.Zone); err != nil {
		f.addText("zone", err.Error())
	}
	for i, percent := range q.AlertAt {
		switch {
		case percent < 1 || percent > 100:
			f.add(fmt.Sprintf("alert_at[%d]", i), "must be a percentage from 1 to 100")
		case i > 0 && percent <= q.AlertAt[i-1]:
			f.add(fmt.Sprintf("alert_at[%d]", i), "must be more than the one before it")
		}
	}
	oneOf(&f, "on_store_failure", string(q.OnStoreFailure), string(FailLocal), string(FailClosed), string(FailOpen))
	return errors.Join(f...)
}

// LoadZone returns a time zone; an empty name is UTC. The machine's own zone is not accepted,
// since it differs between machines.
func LoadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if name != "Local" {
		if zone, err := time.LoadLocation(name); err == nil {
			return zone, nil
		}
	}
	return nil, fmt.Errorf("there is no time zone %q; expected UTC or a name such as Asia/Shanghai", name)
}
