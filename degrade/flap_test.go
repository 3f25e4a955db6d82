package degrade

import (
	"bufio"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"tidegate/nvml"
)

// limit is the temperature at which the margin is 0, in degrees Celsius.
const limit = 87.0

// loads is what the card works at each level: an assumption, as all of the plant.
func loads(l Level) float64 { return [...]float64{1, 1, .72, .5, .12}[l] }

// one steps a model with one backend on one card, as the ladder does.
type one struct {
	book    *rules
	backend *watched
	states  states
	at      time.Time
	changes int
}

func newOne(c Config) *one {
	return &one{book: newRules(c), backend: &watched{gauge: NewGauge("a", 1, nil)}, at: time.Unix(1e9, 0)}
}

// second takes one reading and looks at it four times.
func (o *one) second(margin int, reasons []string) Level {
	g := &nvml.GPU{Reading: nvml.Reading{UUID: "GPU-0", State: nvml.StateOK, Margin: &margin, Reasons: reasons}, MeasuredAt: o.at}
	for range 4 {
		was := o.states[acting].stage.level
		o.backend.step(o.book, &Readings{GPUs: []*nvml.GPU{g}, InRotation: true, KV: -1, Waiting: -1, Preempted: -1}, o.at)
		o.states.step([]*watched{o.backend}, o.book, o.at)
		if o.states[acting].stage.level != was {
			o.changes++
		}
		o.at = o.at.Add(tick)
	}
	return o.states[acting].stage.level
}

// loose is the ladder without hysteresis, confirmation and dwell.
func loose() Config {
	c := DefaultConfig()
	c.Signals.GPUTemperature.Exit = 0
	c.Dwell = Dwell{UpSamples: 1}
	return c
}

// plant is a card with two time constants: 30 % of the rise in 3 s, 70 % in 45 s.
type plant struct {
	fast, slow float64
	noise      *rand.Rand
}

// second runs the card, and returns its temperature and what it reads of its margin.
func (p *plant) second(load, cooling float64) (temperature float64, margin int) {
	for range 10 {
		target := 60 * load * (1 + .05*p.noise.NormFloat64()) * cooling
		p.fast += (.3*target - p.fast) * .1 / 3
		p.slow += (.7*target - p.slow) * .1 / 45
	}
	temperature = 30 + p.fast + p.slow
	return temperature, int(limit - math.Round(temperature+.3*p.noise.NormFloat64()))
}

// profile is the load and the rise of the recorded trace's plant, by phases.
func profile(second int) (load, cooling float64) {
	second %= 1560
	for _, phase := range []struct {
		until         int
		load, degrees float64
	}{{60, .05, 30}, {300, 1, 30}, {720, 1, 62}, {1020, .5, 62}, {1440, .6, 30}, {1560, .05, 30}} {
		if second < phase.until {
			return phase.load, phase.degrees / 60
		}
	}
	return 0, 0
}

// TestFlapping closes the loop: the level lowers the load of a card that has lost its
// cooling. Twenty seeds, an hour each.
func TestFlapping(t *testing.T) {
	steady := func(int) float64 { return 1 }
	for _, test := range []struct {
		name            string
		demand, cooling func(second int) float64
		flaps           bool // without hysteresis and dwell
	}{
		{"cooling lost", steady, func(s int) float64 {
			if s < 900 {
				return .75
			}
			return 1.5
		}, true},
		{"weak cooling", steady, func(int) float64 { return 1.05 }, true},
		{"square wave, cooling lost", func(s int) float64 {
			if s/60%2 == 0 {
				return 1
			}
			return .35
		}, func(s int) float64 {
			if s < 900 {
				return .75
			}
			return 1.5
		}, true},
		{"the trace's profile", func(s int) float64 { load, _ := profile(s); return load }, func(s int) float64 { _, cooling := profile(s); return cooling }, false},
		{"good cooling", steady, func(int) float64 { return .75 }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			seeds := float64(max(20/slower, 2))
			run := func(c Config) (mean, worst, over, hottest float64) {
				for seed := range uint64(seeds) {
					o, card := newOne(c), &plant{noise: rand.New(rand.NewPCG(seed, 1))}
					level := Full
					for s := range 3600 {
						temperature, margin := card.second(test.demand(s)*loads(level), test.cooling(s))
						if temperature > limit {
							over++
						}
						hottest = max(hottest, temperature)
						level = o.second(margin, []string{})
					}
					mean += float64(o.changes) / seeds
					worst = max(worst, float64(o.changes))
				}
				return mean, worst, over / seeds, hottest
			}
			mean, worst, over, hottest := run(DefaultConfig())
			t.Logf("as it is: %.1f changes an hour, at worst %.0f; %.1f s over %v C, at hottest %.1f C", mean, worst, over, limit, hottest)
			if worst > 30 || over > 0 {
				t.Errorf("%.0f changes in an hour, %.1f s over the limit; want 30 at most, and none", worst, over)
			}
			mean, worst, over, hottest = run(loose())
			t.Logf("without hysteresis and dwell: %.1f changes an hour, at worst %.0f; %.1f s over, at hottest %.1f C", mean, worst, over, hottest)
			if test.flaps && mean <= 300 {
				t.Errorf("without hysteresis and dwell %.1f changes an hour: the plant does not tell a good ladder from a bad one", mean)
			}
		})
	}
}

// TestHeatTrace replays a recorded loss of cooling, over and over for an hour. The
// loop is open: the card of the trace does not know that it is spared.
func TestHeatTrace(t *testing.T) {
	type line struct {
		Margin  int    `json:"margin"`
		Reasons uint64 `json:"reasons"`
	}
	f, err := os.Open("testdata/heat.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []line
	for in := bufio.NewScanner(f); in.Scan(); {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	if len(lines) != 1560 {
		t.Fatalf("%d lines", len(lines))
	}
	run := func(c Config) (once, hour int, highest Level) {
		o := newOne(c)
		for s := range 3600 {
			l := lines[s%len(lines)]
			highest = max(highest, o.second(l.Margin, nvml.ReasonNames(l.Reasons)))
			if s == len(lines)-1 {
				once = o.changes
			}
		}
		return once, o.changes, highest
	}
	once, hour, highest := run(DefaultConfig())
	t.Logf("as it is: %d changes in the trace's 26 minutes, %d in an hour of it, up to %v", once, hour, highest)
	if hour > 30 || highest != Canned {
		t.Errorf("%d changes in an hour, up to %v; want 30 at most, and L4", hour, highest)
	}
	if once, hour, _ := run(loose()); true {
		t.Logf("without hysteresis and dwell: %d changes in 26 minutes, %d in an hour", once, hour)
	}
}
