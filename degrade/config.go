package degrade

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Config configures the ladder.
type Config struct {
	Observe   bool          `yaml:"observe"` // everything is reported and nothing done: every model stands at L0 and no backend is left out
	Signals   Signals       `yaml:"signals"`
	Dwell     Dwell         `yaml:"dwell"`
	Baseline  time.Duration `yaml:"baseline"` // after a backend is up, over which the memory beside its engine is measured
	L1        L1            `yaml:"l1"`
	Canned    Answer        `yaml:"canned"`
	GPUModels []GPUModel    `yaml:"gpu_models"` // other tables for some cards; the first that matches counts
}

// Signals configures the signals that may raise a backend's level.
type Signals struct {
	GPUTemperature Table  `yaml:"gpu_temperature"` // margin to the slowdown, in degrees Celsius: falling levels; leaves exit degrees above
	GPUThrottle    Switch `yaml:"gpu_throttle"`    // clocks held down by heat or a power brake
	GPUMemory      Table  `yaml:"gpu_memory"`      // share of the headroom beside the engine that is gone; leaves exit below
	GPUMemoryUsed  Table  `yaml:"gpu_memory_used"` // share of all memory, for engines that do not pre-allocate; leaves exit below
	KVCache        Table  `yaml:"kv_cache"`        // share of the fullest cache; leaves exit below
	Queue          Table  `yaml:"queue"`           // requests that wait; leaves at exit times the level
	Preemptions    Switch `yaml:"preemptions"`     // sequences that the engine threw out
	TTFT           Table  `yaml:"ttft"`            // p90 over the objective; leaves at exit times the level
}

// Switch disables a signal, or only observes it.
type Switch struct {
	Disabled bool `yaml:"off"`     // it is not looked at
	Observe  bool `yaml:"observe"` // it is reported, and moves nothing
}

// Table holds the readings at which a signal enters each level and leaves it.
type Table struct {
	Switch `yaml:",inline"`
	Levels []float64 `yaml:"levels"` // where L1, L2, L3 and L4 begin
	Exit   float64   `yaml:"exit"`   // how far back the signal must go before it leaves a level
}

// GPUModel changes the tables of the GPU signals for some cards.
type GPUModel struct {
	Match          string        `yaml:"match"` // part of the GPU's name, such as L40S; case does not count
	GPUTemperature TableOverride `yaml:"gpu_temperature"`
	GPUThrottle    TableOverride `yaml:"gpu_throttle"`
	GPUMemory      TableOverride `yaml:"gpu_memory"`
	GPUMemoryUsed  TableOverride `yaml:"gpu_memory_used"`
}

// TableOverride holds what differs from a signal's own table; nil fields are as there.
type TableOverride struct {
	Levels   []float64 `yaml:"levels"`  // as in signals
	Exit     *float64  `yaml:"exit"`    // as in signals
	Disabled *bool     `yaml:"off"`     // it is not looked at on these cards
	Observe  *bool     `yaml:"observe"` // it is reported, and moves nothing on these cards
}

// Dwell bounds how fast levels move.
type Dwell struct {
	UpSamples int           `yaml:"up_samples"` // readings in a row that ask for a level before it is entered
	Rise      time.Duration `yaml:"up"`         // between the first and the last of those, at least
	Fall      time.Duration `yaml:"down"`       // on each level on the way down
	DownMax   time.Duration `yaml:"down_max"`   // to which down doubles where a level comes back soon
}

// L1 configures the first level, beside switching streaming off.
type L1 struct {
	MaxTokens int `yaml:"max_tokens"` // an answer's limit from L1 on
}

// Answer configures the canned answer of L4.
type Answer struct {
	Status            int               `yaml:"status"`             // 200, or an error such as 503
	ConstrainedStatus int               `yaml:"constrained_status"` // where the request demands a tool call or a format and status is 200: an error such as 503, or 200
	Text              map[string]string `yaml:"text"`               // by language: zh, en, ...
}

// DefaultConfig returns the ladder of a configuration that names none. The levels of the margin and the
// dwell are those that a simulated card with two time constants was held below its
// limit with, at some 25 changes an hour.
func DefaultConfig() Config {
	table := func(exit float64, levels ...float64) Table { return Table{Levels: levels, Exit: exit} }
	return Config{
		Signals: Signals{
			GPUTemperature: table(5, 12, 9, 6, 2),
			GPUMemory:      table(.15, .40, .60, .75, .90),
			GPUMemoryUsed:  table(.03, .88, .92, .95, .98),
			KVCache:        table(.10, .80, .87, .92, .97),
			Queue:          table(.5, 5, 10, 20, 40),
			TTFT:           table(.5, 1, 1.5, 2, 4),
		},
		Dwell:    Dwell{UpSamples: 2, Rise: 3 * time.Second, Fall: 30 * time.Second, DownMax: 300 * time.Second},
		Baseline: time.Minute,
		L1:       L1{MaxTokens: 2048},
		Canned: Answer{Status: 200, ConstrainedStatus: 503, Text: map[string]string{
			"zh": "服务繁忙,请稍后再试。",
			"en": "The service is busy, please try again shortly.",
		}},
	}
}

// UnmarshalYAML lets the ladder say only what differs from the defaults.
func (c *Config) UnmarshalYAML(decode func(any) error) error {
	type plain Config
	p := plain(DefaultConfig())
	if err := decode(&p); err != nil {
		return err
	}
	*c = Config(p)
	return nil
}

// Validate returns all faults at once, each with its path first.
func (c *Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for s := range signals {
		if t := c.table(s); t != nil {
			faults = append(faults, checkTable("signals."+s.String(), s, t)...)
		}
	}
	d := c.Dwell
	if d.UpSamples < 1 || d.UpSamples > 100 {
		fault("dwell.up_samples: is %d; expected 1 to 100", d.UpSamples)
	}
	if d.Rise < 0 || d.Rise > 5*time.Minute {
		fault("dwell.up: is %v; expected 0s to 5m", d.Rise)
	}
	if d.Fall < time.Second || d.Fall > time.Hour {
		fault("dwell.down: is %v; expected 1s to 1h", d.Fall)
	}
	if d.DownMax < d.Fall || d.DownMax > 24*time.Hour {
		fault("dwell.down_max: is %v; expected dwell.down or more, to 24h", d.DownMax)
	}
	if c.Baseline < time.Second || c.Baseline > time.Hour {
		fault("baseline: is %v; expected 1s to 1h", c.Baseline)
	}
	if c.L1.MaxTokens < 1 {
		fault("l1.max_tokens: is %d; expected 1 or more", c.L1.MaxTokens)
	}
	for _, status := range []struct {
		name string
		code int
	}{{"status", c.Canned.Status}, {"constrained_status", c.Canned.ConstrainedStatus}} {
		if s := status.code; s != 200 && (s < 400 || s > 599) {
			fault("canned.%s: is %d; expected 200, or an error from 400 to 599", status.name, s)
		}
	}
	if len(c.Canned.Text) == 0 {
		fault("canned.text: is empty; expected a text by language, such as {en: ...}")
	}
	for language, text := range c.Canned.Text {
		if language == "" || strings.ToLower(language) != language || strings.TrimSpace(text) == "" || !utf8.ValidString(text) {
			fault("canned.text: %q is not a language code in small letters with a text that is not empty; expected such as {zh: ..., en: ...}", language)
		}
	}
	for i := range c.GPUModels {
		faults = append(faults, c.checkModel(i)...)
	}
	return errors.Join(faults...)
}

// checkModel checks what a card's tables come to, not what it says of them.
func (c *Config) checkModel(i int) (faults []error) {
	path, m := fmt.Sprintf("gpu_models[%d]", i), &c.GPUModels[i]
	if strings.TrimSpace(m.Match) == "" {
		faults = append(faults, fmt.Errorf("%s.match: is empty; expected a part of the GPU's name, such as L40S", path))
	}
	if m.GPUThrottle.Levels != nil || m.GPUThrottle.Exit != nil {
		faults = append(faults, fmt.Errorf("%s.gpu_throttle: has levels or an exit; expected off or observe, the reasons have no scale", path))
	}
	for s := range signals {
		if o, t := m.override(s), c.table(s); o != nil && t != nil && (o.Levels != nil || o.Exit != nil) {
			changed := o.apply(*t)
			faults = append(faults, checkTable(path+"."+s.String(), s, &changed)...)
		}
	}
	return faults
}

// checkTable checks one table. What its levels may be depends on what is measured.
func checkTable(path string, s signal, t *Table) (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(path+format, args...)) }
	low, high, order := 0.0, 1.0, "rising"
	switch s {
	case temperature:
		low, high, order = -50, 150, "falling"
	case queue, ttft:
		high = 1e6
	}
	wrong := len(t.Levels) != 4
	for i, v := range t.Levels {
		wrong = wrong || !(v >= low && v <= high) || s != temperature && v <= 0
		if i > 0 {
			wrong = wrong || (t.Levels[i-1] < v) == (s == temperature) || t.Levels[i-1] == v
		}
	}
	if wrong {
		fault(".levels: is %v; expected four %s numbers from %v to %v, where L1 to L4 begin", t.Levels, order, low, high)
		return faults
	}
	switch s {
	case temperature:
		if !(t.Exit >= 0 && t.Exit <= 100) {
			fault(".exit: is %v; expected 0 to 100 degrees", t.Exit)
		}
	case queue, ttft:
		if !(t.Exit > 0 && t.Exit <= 1) {
			fault(".exit: is %v; expected more than 0 and at most 1: the part of a level at which it is left", t.Exit)
		}
	default:
		if !(t.Exit >= 0 && t.Exit < t.Levels[0]) {
			fault(".exit: is %v; expected 0 or more and less than the first level", t.Exit)
		}
	}
	return faults
}

// table returns the table of a signal; nil where it has no scale.
func (c *Config) table(s signal) *Table {
	switch s {
	case temperature:
		return &c.Signals.GPUTemperature
	case memory:
		return &c.Signals.GPUMemory
	case memoryUsed:
		return &c.Signals.GPUMemoryUsed
	case kvCache:
		return &c.Signals.KVCache
	case queue:
		return &c.Signals.Queue
	case ttft:
		return &c.Signals.TTFT
	}
	return nil
}

// toggle returns the switch of a signal that has no scale.
func (c *Signals) toggle(s signal) Switch {
	switch s {
	case throttle:
		return c.GPUThrottle
	case preemptions:
		return c.Preemptions
	}
	return Switch{}
}

// override returns what a card's model overrides of a signal; nil where it is no signal of a GPU.
func (m *GPUModel) override(s signal) *TableOverride {
	switch s {
	case temperature:
		return &m.GPUTemperature
	case throttle:
		return &m.GPUThrottle
	case memory:
		return &m.GPUMemory
	case memoryUsed:
		return &m.GPUMemoryUsed
	}
	return nil
}

// apply returns a table with the overrides applied.
func (o *TableOverride) apply(t Table) Table {
	if o.Levels != nil {
		t.Levels = o.Levels
	}
	if o.Exit != nil {
		t.Exit = *o.Exit
	}
	if o.Disabled != nil {
		t.Disabled = *o.Disabled
	}
	if o.Observe != nil {
		t.Observe = *o.Observe
	}
	return t
}

// rule is one signal's switch and scale for one kind of card.
type rule struct {
	Switch
	scale scale
}

// ruleSet holds the rules of all signals.
type ruleSet [signals]rule

// rules returns the rules for backends on a card with a name.
func (c *Config) rules(gpu string) *ruleSet {
	var card *GPUModel
	for i := range c.GPUModels {
		if strings.Contains(strings.ToLower(gpu), strings.ToLower(c.GPUModels[i].Match)) {
			card = &c.GPUModels[i]
			break
		}
	}
	set := &ruleSet{}
	for s := range signals {
		var t Table
		if table := c.table(s); table != nil {
			t = *table
		} else {
			t.Switch = c.Signals.toggle(s)
		}
		if card != nil {
			if o := card.override(s); o != nil {
				t = o.apply(t)
			}
		}
		set[s].Switch = t.Switch
		set[s].Observe = t.Observe || c.Observe
		if len(t.Levels) == 4 {
			set[s].scale = newScale(s, t)
		}
	}
	return set
}

// Effect describes what a level does to a request. The levels add up: SmallerModel also
// does what those below it do.
type Effect struct {
	Stream    bool // the answer may be streamed
	Thinking  bool // the model may think
	MaxTokens int  // of the answer; 0: what was asked for
}

// Effect returns what a level does to a request.
func (c *Config) Effect(l Level) Effect {
	e := Effect{Stream: l < StreamingOff, Thinking: l < ThinkingOff}
	if l >= StreamingOff {
		e.MaxTokens = c.L1.MaxTokens
	}
	return e
}

// Shift returns the level for requests that yield, with a positive shift, to others, or
// with a negative one go before them. At L0 there is no pressure to share out, so nobody's
// answer is changed; and no shift makes an answer canned, which serves a batch worse than
// waiting.
func Shift(l, shift Level) Level {
	switch {
	case l <= Full:
		return Full
	case shift > 0:
		return max(min(l+shift, SmallerModel), min(l, Canned))
	}
	return max(min(l+shift, Canned), Full)
}

// finite reports whether a number is one.
func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
