package degrade

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigFaults(t *testing.T) {
	valid := DefaultConfig()
	if err := valid.Validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string // the beginnings of the faults
	}{
		"three levels":  {func(c *Config) { c.Signals.KVCache.Levels = []float64{.1, .2, .3} }, []string{"signals.kv_cache.levels: "}},
		"five levels":   {func(c *Config) { c.Signals.Queue.Levels = []float64{1, 2, 3, 4, 5} }, []string{"signals.queue.levels: "}},
		"rising margin": {func(c *Config) { c.Signals.GPUTemperature.Levels = []float64{2, 6, 9, 12} }, []string{"signals.gpu_temperature.levels: "}},
		"falling queue": {func(c *Config) { c.Signals.Queue.Levels = []float64{40, 20, 10, 5} }, []string{"signals.queue.levels: "}},
		"equal levels":  {func(c *Config) { c.Signals.TTFT.Levels = []float64{1, 1, 2, 4} }, []string{"signals.ttft.levels: "}},
		"NaN":           {func(c *Config) { c.Signals.GPUMemory.Levels[2] = math.NaN() }, []string{"signals.gpu_memory.levels: "}},
		"infinite":      {func(c *Config) { c.Signals.Queue.Levels[3] = math.Inf(1) }, []string{"signals.queue.levels: "}},
		"more than all": {func(c *Config) { c.Signals.GPUMemoryUsed.Levels[3] = 1.1 }, []string{"signals.gpu_memory_used.levels: "}},
		"level of zero": {func(c *Config) { c.Signals.Queue.Levels[0] = 0 }, []string{"signals.queue.levels: "}},
		"negative exit": {func(c *Config) { c.Signals.GPUTemperature.Exit = -1 }, []string{"signals.gpu_temperature.exit: "}},
		"exit of NaN":   {func(c *Config) { c.Signals.TTFT.Exit = math.NaN() }, []string{"signals.ttft.exit: "}},
		"never left":    {func(c *Config) { c.Signals.KVCache.Exit = .8 }, []string{"signals.kv_cache.exit: "}},
		"left above":    {func(c *Config) { c.Signals.Queue.Exit = 2 }, []string{"signals.queue.exit: "}},
		"dwell":         {func(c *Config) { c.Dwell = Dwell{Rise: -1, DownMax: -1} }, []string{"dwell.up_samples: ", "dwell.up: ", "dwell.down: ", "dwell.down_max: "}},
		"cap":           {func(c *Config) { c.L1.MaxTokens = 0 }, []string{"l1.max_tokens: "}},
		"answer":        {func(c *Config) { c.Canned = Answer{Status: 302, ConstrainedStatus: 99} }, []string{"canned.status: ", "canned.constrained_status: ", "canned.text: "}},
		"empty text":    {func(c *Config) { c.Canned.Text["en"] = " " }, []string{"canned.text: "}},
		"model":         {func(c *Config) { c.GPUModels = []GPUModel{{}} }, []string{"gpu_models[0].match: "}},
		"model's levels": {func(c *Config) {
			c.GPUModels = []GPUModel{{Match: "T4", GPUTemperature: TableOverride{Levels: []float64{1, 2}}}}
		}, []string{"gpu_models[0].gpu_temperature.levels: "}},
		"model's exit":    {func(c *Config) { c.GPUModels = []GPUModel{{Match: "T4", GPUMemory: TableOverride{Exit: new(.5)}}} }, []string{"gpu_models[0].gpu_memory.exit: "}},
		"reasons' levels": {func(c *Config) { c.GPUModels = []GPUModel{{Match: "T4", GPUThrottle: TableOverride{Exit: new(.5)}}} }, []string{"gpu_models[0].gpu_throttle: "}},
	} {
		t.Run(name, func(t *testing.T) {
			c := DefaultConfig()
			test.change(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("no fault")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("faults:\n%v\nwant %q", err, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(lines[i], want) || !strings.Contains(lines[i], "; expected ") {
					t.Errorf("fault %q, want %q... with what was expected", lines[i], want)
				}
			}
		})
	}
}

func TestConfigKeepsDefaults(t *testing.T) {
	var c Config
	err := c.UnmarshalYAML(func(v any) error {
		// A decoder sets what is written and leaves the rest.
		return nil
	})
	if err != nil || c.Signals.GPUTemperature.Exit != 5 || c.Validate() != nil {
		t.Fatalf("%v: %+v", err, c)
	}
	broken := errors.New("broken")
	if err := c.UnmarshalYAML(func(any) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

func TestGPUModels(t *testing.T) {
	c := DefaultConfig()
	c.GPUModels = []GPUModel{
		{Match: "l40s", GPUTemperature: TableOverride{Levels: []float64{30, 20, 10, 5}}, GPUThrottle: TableOverride{Disabled: new(true)}},
		{Match: "L40", GPUMemory: TableOverride{Observe: new(true)}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	l40s, l40, h200 := c.rules("NVIDIA L40S"), c.rules("NVIDIA L40"), c.rules("NVIDIA H200")
	if got := l40s[temperature].scale; got.entry(StreamingOff) != 30 || got.exit(StreamingOff) != 35 {
		t.Errorf("L40S enters L1 at %v and leaves it at %v", got.entry(StreamingOff), got.exit(StreamingOff))
	}
	if !l40s[throttle].Disabled || l40[throttle].Disabled || !l40[memory].Observe || l40s[memory].Observe || h200[memory].Observe || h200[throttle].Disabled {
		t.Error("a switch of one card counts for another")
	}
	if got := h200[temperature].scale.entry(StreamingOff); got != 12 {
		t.Errorf("H200 enters L1 at %v", got)
	}
}

func TestEffect(t *testing.T) {
	c := DefaultConfig()
	for level, want := range []Effect{
		{Stream: true, Thinking: true},
		{Thinking: true, MaxTokens: 2048},
		{MaxTokens: 2048},
		{MaxTokens: 2048},
		{MaxTokens: 2048},
	} {
		if got := c.Effect(Level(level)); got != want {
			t.Errorf("%v: %+v, want %+v", Level(level), got, want)
		}
	}
}

func TestShift(t *testing.T) {
	for shift, want := range map[Level][]Level{
		1:  {Full, ThinkingOff, SmallerModel, SmallerModel, Canned},
		0:  {Full, StreamingOff, ThinkingOff, SmallerModel, Canned},
		-1: {Full, Full, StreamingOff, ThinkingOff, SmallerModel},
	} {
		var got []Level
		for l := Full; l <= Canned; l++ {
			got = append(got, Shift(l, shift))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", shift, got, want)
		}
	}
}

// FuzzValidate: a configuration that is let through can be stepped with, whatever
// its numbers are.
func FuzzValidate(f *testing.F) {
	f.Add(uint8(0), 12., 9., 6., 2., 5., int64(3), int64(30), int64(300), 2)
	f.Add(uint8(4), .1, .2, .3, math.Inf(1), math.NaN(), int64(-1), int64(1<<62), int64(-1<<62), -5)
	f.Fuzz(func(t *testing.T, which uint8, a, b, c, d, exit float64, up, down, most int64, samples int) {
		config := DefaultConfig()
		table := config.table(signal(which % uint8(signals)))
		if table == nil {
			return
		}
		table.Levels, table.Exit = []float64{a, b, c, d}, exit
		config.Dwell = Dwell{UpSamples: samples, Rise: time.Duration(up), Fall: time.Duration(down), DownMax: time.Duration(most)}
		if config.Validate() != nil {
			return
		}
		o := newOne(config)
		for s := range 60 {
			o.second(40-s, nil)
		}
		if p := o.states[acting].pressure; !(p >= 0 && p <= 1) {
			t.Fatalf("a pressure of %v", p)
		}
	})
}
