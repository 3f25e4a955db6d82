package degrade

import "testing"

// TestEverySignalIsConfigured holds that each signal has a name, and a table or a switch of
// its own: a new one that lacks them would take another's, or none.
func TestEverySignalIsConfigured(t *testing.T) {
	names := map[string]bool{}
	c := DefaultConfig()
	c.Signals.GPUThrottle.Disabled, c.Signals.Preemptions.Disabled = true, true
	for s := range signals {
		if s.String() == "" || names[s.String()] {
			t.Errorf("signal %d has no name of its own", s)
		}
		names[s.String()] = true
		if (c.table(s) != nil) == c.Signals.toggle(s).Disabled {
			t.Errorf("%v has neither a table nor a switch, or both", s)
		}
		if m := (&GPUModel{}); (m.override(s) != nil) != s.ofGPU() {
			t.Errorf("%v: gpu_models can change it: %v; it is read from cards: %v", s, m.override(s) != nil, s.ofGPU())
		}
	}
	for i, s := range []signal{temperature, throttle, memory, memoryUsed} {
		if int(s) != i || !s.ofGPU() {
			t.Errorf("%v stands behind a signal of an engine", s)
		}
	}
}
