package degrade

import (
	"testing"
	"time"
)

func TestConfirmation(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 25
	r.want("L3 at once when it is confirmed", r.run(5), "00033")
	r = newRig(t)
	r.r.Waiting = 25
	r.want("asking", r.run(3), "000")
	r.r.Waiting = 0
	r.want("a spike", r.run(3), "000")
	r.r.Waiting = 25
	r.want("asking again", r.run(4), "0003")
	r.r.Waiting = 50
	r.want("L4 is confirmed by itself", r.run(4), "3334")
	// A reading that was seen before is no second sample.
	r = newRig(t)
	r.r.EngineAt, r.r.KV = r.now.Add(10*time.Second), .99
	r.want("one sample, looked at often", r.run(8), "00000000")
	r.r.EngineAt = r.r.EngineAt.Add(time.Millisecond)
	r.want("a second one", r.run(1), "4")
	r = newRig(t)
	r.r.EngineAt, r.r.KV = r.now, .99
	r.run(1)
	r.r.EngineAt = r.now
	r.want("two that are too near to each other", r.run(3), "000")
	r.r.EngineAt = r.now
	r.want("and one that is not", r.run(1), "4")
}

// TestQueueIsOldWithItsEngine: what the engine says of its queue is confirmed by the
// engine's next word, and what waits here by looking.
func TestQueueIsOldWithItsEngine(t *testing.T) {
	r := newRig(t)
	r.r.EngineAt, r.r.KV, r.r.Waiting = r.now, .1, 0
	r.run(1)
	r.r.EngineAt, r.r.Waiting = r.now, 50
	r.want("read once", r.run(8), "00000000")
	r.r.Queued = 12
	r.want("12 of them wait here", r.run(4), "0002")

	r = newRig(t)
	c := DefaultConfig()
	c.Signals.KVCache.Disabled, c.Signals.Preemptions.Disabled = true, true
	r.k = newRules(c)
	r.r.Waiting = 50
	for range 40 {
		r.r.EngineAt = r.now.Add(time.Second)
		r.run(1)
	}
	r.run(3)
	r.r.Waiting = 0
	r.want("an engine that is silent", r.run(7), "4444444")
	if r.run(1); !r.w.blind[acting] {
		t.Error("the engine's queue is not known any more, and the backend is not blind")
	}
}

// TestConfirmationStep is the pure step by itself: samples at the times of offsets, each of
// which calls for L2, and whether the last one confirms it.
func TestConfirmationStep(t *testing.T) {
	for name, test := range map[string]struct {
		samples int           // that are needed
		rise    time.Duration // between the first and the last of them
		need    proof
		raised  bool
		offsets []time.Duration
		repeat  bool // the last one is no new reading
		want    Level
	}{
		"one of two":                    {2, 3 * time.Second, eachLevel, false, []time.Duration{0}, false, Full},
		"two, 3 s apart":                {2, 3 * time.Second, eachLevel, false, []time.Duration{0, 3 * time.Second}, false, ThinkingOff},
		"two, too near":                 {2, 3 * time.Second, eachLevel, false, []time.Duration{0, 2999 * time.Millisecond}, false, Full},
		"the second is a repetition":    {2, 3 * time.Second, eachLevel, false, []time.Duration{0, 3 * time.Second}, true, Full},
		"three of four, long apart":     {4, 3 * time.Second, eachLevel, false, []time.Duration{0, 10 * time.Second, 20 * time.Second}, false, Full},
		"four of four":                  {4, 3 * time.Second, eachLevel, false, []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}, false, ThinkingOff},
		"raised needs it just the same": {2, 3 * time.Second, eachLevel, true, []time.Duration{0}, false, Full},
		"any level, first sample":       {2, 3 * time.Second, anyLevel, false, []time.Duration{0}, false, Full},
		"any level, raised":             {2, 3 * time.Second, anyLevel, true, []time.Duration{0}, false, ThinkingOff},
		"no proof":                      {2, 3 * time.Second, noProof, false, []time.Duration{0}, false, ThinkingOff},
	} {
		var c confirmation
		begin, got := time.Unix(1e9, 0), Full
		for i, offset := range test.offsets {
			sample := !test.repeat || i < len(test.offsets)-1
			got = c.step(flat(1, ThinkingOff, ThinkingOff), sample, test.raised, test.need, &Dwell{UpSamples: test.samples, Rise: test.rise}, begin.Add(offset))
		}
		if got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
