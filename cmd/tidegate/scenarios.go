package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidegate/gateway/gatewaytest"
)

// heatTrace is degrade/testdata/heat.jsonl: a synthetic trace of this project, of a
// card with two time constants that loses its cooling and gets it back, 26 minutes
// at one reading a second. It was not recorded from a card.
//
//go:embed heat.jsonl.gz
var heatTrace []byte

// scenario is a play of the demo: what the GPUs read, how the gateway and its servers
// differ from the usual, and who asks.
type scenario struct {
	name, synopsis string
	seconds        int // that are told of, from the recording's point of view
	note           string
	// gpu is what the GPU of a server reads: 0 and 1 are those of the larger model.
	gpu     func(second, server int) reading
	change  func(c *config, s []gatewaytest.Options)
	callers []caller
}

// reading is one reading of a simulated GPU.
type reading struct {
	margin, used int // degrees Celsius, MiB
	reasons      uint64
}

// caller asks again and again, the same number of requests at a time.
type caller struct {
	user       string
	atOnce     int
	pause      time.Duration // between an answer and the next request
	start, end float64       // shares of the play
	shown      bool          // what it gets is printed where it differs from before
}

// The simulated card: an H200 whose vLLM has taken its share.
const (
	calmMargin = 32
	engineUses = 132270 // MiB
	cardTotal  = 143771 // MiB
	idleReason = 4      // the driver's bit for a power cap: it says nothing of heat
)

func calm() reading { return reading{calmMargin, engineUses, idleReason} }

// scenarios are all plays.
func scenarios() ([]scenario, error) {
	recorded, err := readHeat()
	if err != nil {
		return nil, err
	}
	one := []caller{{user: "you", atOnce: 4, pause: 700 * time.Millisecond, end: 1, shown: true}}
	return []scenario{
		{
			name: "heat", synopsis: "the cards of the larger model lose their cooling and get it back", seconds: 360,
			note: "a synthetic trace of 26 minutes, of which those 6 are played in which something changes; card B is 10 s behind card A.",
			gpu: func(second, server int) reading {
				if server > 1 {
					return calm()
				}
				second = max(second-10*server, 0) + 260
				if second >= 410 {
					second += 280 // nothing changes there
				}
				return recorded[min(second, len(recorded)-1)]
			},
			callers: one,
		},
		{
			name: "memory", synopsis: "another process takes the memory beside the engines, and gives it back", seconds: 360,
			note: "what the engines leave free is measured first, and then burned by another process on both cards.",
			gpu: func(second, server int) reading {
				r := calm()
				if server < 2 {
					r.used += int(curve{{90, 0}, {170, 10500}, {200, 10500}, {230, 0}}.value(second))
				}
				return r
			},
			callers: one,
		},
		{
			name: "queue", synopsis: "one of two users floods small servers, so that requests wait", seconds: 360,
			note: "bob sends one request after the other, and ann 22 at a time, for a while 46. Each server answers 4 at a\n" +
				"time. No TTFT is promised, so that only the queue counts.",
			gpu: func(int, int) reading { return calm() },
			change: func(c *config, s []gatewaytest.Options) {
				for i := range s {
					s[i].Slots, s[i].ITL = 4, []time.Duration{6 * time.Millisecond, 3 * time.Millisecond}[i/2]
				}
				for i := range c.Models {
					c.Models[i].Objectives.TTFT = 0
					for j := range c.Models[i].Backends {
						c.Models[i].Backends[j].MaxInFlight = 4
					}
				}
			},
			callers: []caller{
				{user: "ann", atOnce: 22, start: .1, end: .55},
				{user: "ann", atOnce: 24, start: .25, end: .45},
				{user: "bob", atOnce: 1, pause: 200 * time.Millisecond, end: 1, shown: true},
			},
		},
		{
			name: "recover", synopsis: "hot, cool, hot again within two minutes: the second time it comes down at half the speed", seconds: 360,
			note: "both cards read the same, so that the model follows them step by step.",
			gpu: func(second, server int) reading {
				r := calm()
				if server < 2 {
					r.margin = int(curve{{25, calmMargin}, {35, 8}, {50, 8}, {60, calmMargin}, {135, calmMargin}, {145, 8}, {160, 8}, {170, calmMargin}}.value(second))
				}
				return r
			},
			callers: one,
		},
	}, nil
}

// scenarioNamed finds a play; the error names those there are.
func scenarioNamed(name string) (*scenario, error) {
	list, err := scenarios()
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range list {
		if list[i].name == name {
			return &list[i], nil
		}
		names = append(names, list[i].name)
	}
	return nil, usageError{fmt.Errorf("--scenario %s: there is none such; expected one of %s", name, strings.Join(names, ", "))}
}

// curve is straight lines between points of time, in seconds, and value.
type curve [][2]float64

func (c curve) value(second int) float64 {
	t := float64(second)
	i := slices.IndexFunc(c, func(p [2]float64) bool { return t < p[0] })
	switch i {
	case -1:
		return c[len(c)-1][1]
	case 0:
		return c[0][1]
	}
	a, b := c[i-1], c[i]
	return a[1] + (b[1]-a[1])*(t-a[0])/(b[0]-a[0])
}

// readHeat is the recorded trace, second by second.
func readHeat() ([]reading, error) {
	z, err := gzip.NewReader(bytes.NewReader(heatTrace))
	if err != nil {
		return nil, err
	}
	var out []reading
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		var l struct {
			Margin  int    `json:"margin"`
			Used    int    `json:"used"`
			Reasons uint64 `json:"reasons"`
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, err
		}
		out = append(out, reading{l.Margin, l.Used, l.Reasons})
	}
	return out, lines.Err()
}

// trace returns the readings of the servers' GPUs, for a source of readings to replay, so many
// times as fast. What they read last stays for a while, so that it does not begin
// again while the play ends.
func (s *scenario) trace(servers int, speed float64) []byte {
	var b []byte
	for second := range s.seconds + int(30*speed) {
		for i := range servers {
			r := s.gpu(second, i)
			b = fmt.Appendf(b, `{"t_ms":%.0f,"uuid":"GPU-simulated-%d","name":"Simulated H200","margin":%d,"temp":%d,"used":%d,"total":%d,"reasons":%d}`+"\n",
				1000*float64(second)/speed, i, r.margin, 87-r.margin, r.used, cardTotal, r.reasons)
		}
	}
	return b
}

// hasten makes the times of the ladder that can be set as much shorter as the trace
// is; in a second there must still be some looks at a reading.
func (s *scenario) hasten(c *config, speed float64) {
	shorter := func(d *time.Duration, floor time.Duration) {
		*d = max(time.Duration(float64(*d)/speed).Round(100*time.Millisecond), floor)
	}
	l := &c.Degrade
	shorter(&l.Dwell.Rise, 0)
	shorter(&l.Dwell.Fall, time.Second)
	shorter(&l.Dwell.DownMax, l.Dwell.Fall)
	shorter(&l.Baseline, time.Second)
}
