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
