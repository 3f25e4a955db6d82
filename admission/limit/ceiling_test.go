package limit

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestCeilingBeforeAnythingIsKnown: callers who set no max_tokens are not refused one
// after the other because nothing is known of the engine yet, and who is refused for
// what is running is told to wait for an answer to end, not for a window to pass.
func TestCeilingBeforeAnythingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, compile(t, []Rule{{Name: "t", Scope: "user", Bounds: Bounds{Tokens: perMinute(100_000)}}}, nil, nil))
		q := alice()
		q.Prompt, q.MaxTokens = 10, 32_768
		fill := func() (running []*Grant, denied *Rejection) {
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
		if !denied.Running || denied.RetryAfter > 2*minRetryDelay {
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

// TestShortWindows: streams that use half of a limit are let in, and short requests
// beside them are refused no more than the lumps of their heartbeats refuse in a window
// of their length.
func TestShortWindows(t *testing.T) {
	const streams, msPerToken = 10, 20 // 500 tokens a second in all, of 1,000
	for window, most := range map[int64]int{1: 90, 2: 180, 5: 360, 10: 30, 15: 0, 20: 0} {
		s := newSim(t, Rule{Name: "t", Scope: "user", Bounds: Bounds{Tokens: Rate{1_000 * window, time.Duration(window) * time.Second}}})
		start, refused := s.ms, 0
		began := map[*Grant]int64{}
		for ms := int64(0); ms < 120_000; ms += 100 {
			s.ms = start + ms
			if ms%heartbeat.Milliseconds() == 9_900 {
				for g, from := range began {
					g.Progress(Usage{Input: 100, Output: (s.ms - from) / msPerToken})
				}
				s.limiter.beat(context.Background())
			}
			switch {
			case ms >= 30_000:
				g, denied := s.admit(10, 10)
				if denied != nil {
					refused++
				} else if err := g.Settle(Usage{Input: 10, Output: 5}, ""); err != nil {
					t.Fatal(err)
				}
			case len(began) < streams && ms%1_000 == 0:
				if g, _ := s.admit(100, 8_192); g != nil {
					began[g] = s.ms
				}
			}
		}
		t.Logf("%d tokens in %d s: %d streams, %d of 900 short requests refused", 1_000*window, window, len(began), refused)
		if len(began) < streams || refused > most {
			t.Errorf("%d s: %d streams were let in, and %d short requests refused", window, len(began), refused)
		}
	}
}

// TestCeilingOfOverriddenWindow: the window in force decides whether there is a ceiling,
// not that of the rule, and a ceiling has a counter of its own.
func TestCeilingOfOverriddenWindow(t *testing.T) {
	for _, c := range []struct {
		rule, override string
		want           int
	}{{"1000/1m", "1000/19s", 1}, {"1000/19s", "1000/20s", 2}, {"1000/1m", "2000/1m", 2}, {"1000/1s", "2000/1s", 1}} {
		rate, _ := ParseRate(c.rule)
		set, err := compile(t, []Rule{{Name: "t", Scope: "user", Bounds: Bounds{Tokens: rate}}}, nil, nil).
			WithOverrides([]Override{{Rule: "t", Scope: "user", Name: "alice", Numbers: map[string]string{"tokens": c.override}}})
		if err != nil {
			t.Fatal(err)
		}
		q := alice()
		q.MaxTokens = 10
		dims := set.Dims(q, Estimate{}, time.Now())
		if len(dims) != c.want {
			t.Fatalf("%s with an override of %s: %d dimensions, want %d", c.rule, c.override, len(dims), c.want)
		}
		if strings.HasSuffix(dims[0].Key, ceilingSuffix) || len(dims) > 1 && dims[1].Key != dims[0].Key+ceilingSuffix {
			t.Errorf("%s with an override of %s: %+v", c.rule, c.override, dims)
		}
		if carried := dims[0].Burst > 0; carried != (c.want == 2) {
			t.Errorf("%s with an override of %s: burst %d", c.rule, c.override, dims[0].Burst)
		}
	}
}

// TestPace: an answer that came from no engine bounds the pace all the same, and short
// answers never change what long ones have shown.
func TestPace(t *testing.T) {
	var p paces
	add := func(n int, tokens int64, took time.Duration) {
		for range n {
			p.add(tokens, 1, took)
		}
	}
	expect := func(when string, want int64) {
		t.Helper()
		if got := p.fastest(); got != want {
			t.Errorf("%s: %d tokens a second, want %d", when, got, want)
		}
	}
	expect("nothing is known", paceUnknown)
	add(2*paceAnswers, paceShort-1, time.Second)
	expect("answers say nothing", paceUnknown)
	add(paceKnown, 16, time.Second) // 32 tokens with the prompt's
	expect("short answers", paceUnknown/2)
	add(1, 800, 10*time.Second)
	expect("one long answer, faster", 90)
	add(paceKnown, 240, 10*time.Second)
	expect("long answers", 90)
	add(2*paceAnswers, 63, 100*time.Millisecond)
	expect("short answers that seem faster", 90)
	add(paceAnswers, 240, 10*time.Second)
	expect("the fast one is forgotten", 27)
	add(1, 100_000, 0)
	expect("an answer out of a cache", maxPace+maxPace/8)
	r := Request{MaxTokens: 100_000}
	if got := r.maxAnswer(Estimate{Pace: p.fastest()}, simWindow); got != 67_500 {
		t.Errorf("it may have %d tokens in a minute", got)
	}
}
