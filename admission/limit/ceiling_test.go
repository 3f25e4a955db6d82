package limit

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestCeilingBeforeAnythingIsKnown: callers who set no max_tokens are not refused one
// after the other because nothing is known of the engine yet, and who is refused for
// what is running is told to wait for an answer to end, not for a window to pass.
func TestCeilingBeforeAnythingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "t", Per: "user", Bounds: Bounds{Tokens: perMinute(100_000)}}}, nil, nil))
		q := alice()
		q.Prompt, q.MaxTokens = 10, 32_768
		fill := func() (running []*Grant, denied *Denied) {
			for denied == nil {
				var g *Grant
				if g, denied = r.ask(q); g != nil {
					running = append(running, g)
				}
			}
			return running, denied
		}
		running, denied := fill()
		if n := len(running); n < 20 || n > 125_000/(60*paceUnknown) {
			t.Errorf("%d were let in", n)
		}
		if !denied.Running || denied.RetryAfter > 2*leastTurn {
			t.Errorf("%+v, although nothing is known of answers", denied)
		}
		for range recentOutputs { // 25 tokens a second
			time.Sleep(8 * time.Second)
			for _, g := range running {
				r.settle(g, Usage{Input: 10, Output: 200})
			}
			time.Sleep(time.Minute)
			running, denied = fill()
		}
		if n := len(running); n < 70 {
			t.Errorf("%d were let in", n)
		}
		if !denied.Running || denied.RetryAfter < 8*time.Second || denied.RetryAfter > 9*time.Second {
			t.Errorf("%+v, although answers take 8 s", denied)
		}
	})
}
