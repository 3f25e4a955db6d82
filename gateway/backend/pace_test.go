package backend

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
)

// TestFirstTokens: p90 of the last half minute while many ask, of the last two minutes
// without the slowest while few do, and nothing where too few are known.
func TestFirstTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		for i, want := range []time.Duration{0, 0, 2, 3, 4, 5, 6, 7, 8, 9} {
			p.First(time.Now(), time.Duration(i+1)*time.Second)
			if d := p.TTFT(time.Now()); d != want*time.Second {
				t.Errorf("%v of %d", d, i+1)
			}
		}
		time.Sleep(20 * time.Second)
		for range 1000 { // more than are kept
			p.First(time.Now(), time.Second)
		}
		if d := p.TTFT(time.Now()); d != time.Second {
			t.Errorf("%v", d)
		}
		time.Sleep(31 * time.Second)
		if d := p.TTFT(time.Now()); d != 0 {
			t.Errorf("%v after half a minute in which nobody asked", d)
		}
	})
}

// TestFewFirstTokens: one request every twenty seconds is enough to see that a backend is
// slow, and that it no longer is; one slow request among others is not.
func TestFewFirstTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		ask := func(took ...time.Duration) time.Duration {
			for _, d := range took {
				time.Sleep(20 * time.Second)
				p.First(time.Now(), d)
			}
			return p.TTFT(time.Now())
		}
		const quick, slow = time.Second, 8 * time.Second
		if d := ask(quick, quick, slow, quick); d != quick {
			t.Errorf("%v with one slow request", d)
		}
		if d := ask(slow); d != slow {
			t.Errorf("%v with two slow requests", d)
		}
		if d := ask(quick, quick, quick, quick, quick); d != quick {
			t.Errorf("%v when it is quick again", d)
		}
		time.Sleep(2*time.Minute + 1)
		if d := p.TTFT(time.Now()); d != 0 {
			t.Errorf("%v after two minutes in which nobody asked", d)
		}
	})
}

// TestDecodeIsKnown: an answer in one piece tells nothing of its first token where no
// stream has shown the pace of late.
func TestDecodeIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		if _, known := p.Decode(100); known {
			t.Error("known without any stream")
		}
		p.Observe(time.Second, 990*time.Millisecond, 100)
		if d, known := p.Decode(101); !known || d != time.Second {
			t.Errorf("%v, %t", d, known)
		}
		time.Sleep(paceWindow + 1)
		if _, known := p.Decode(100); known {
			t.Error("known a minute after the last stream")
		}
	})
}

// TestBudget: retries are a share of the requests, beside a few at once.
func TestBudget(t *testing.T) {
	b := NewBudget(0.1)
	taken := 0
	for b.Retry() {
		taken++
	}
	if taken != 10 {
		t.Errorf("%d at once", taken)
	}
	for range 1000 {
		b.Request()
		if b.Retry() {
			taken++
		}
	}
	if taken < 105 || taken > 111 {
		t.Errorf("%d retries of 1000 requests", taken)
	}
	if b := NewBudget(0); b.Retry() {
		t.Error("a budget of nothing")
	}
}

// TestHarmless: what opens a breaker and what does not.
func TestHarmless(t *testing.T) {
	for _, c := range []struct {
		err      error
		harmless bool
	}{
		{ErrLeft, true}, {&StatusError{Status: 400}, true}, {&StatusError{Status: 429}, true}, {&StatusError{Status: 500}, true},
		{&StatusError{Status: 503}, true}, {&StatusError{Status: 502}, false}, {&StatusError{Status: 504}, false},
		{&TimeoutError{Phase: Total}, true}, {&TimeoutError{Phase: FirstToken}, false}, {&TimeoutError{Phase: Idle}, false}, {&TimeoutError{Phase: Connect}, false},
		{Broken("stream", errors.New("gone")), false}, {errors.New("no chunk"), true},
	} {
		if got := harmless(c.err); got != c.harmless {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

// TestMove: a backend hands on all that it has, beyond any budget, once a minute.
func TestMove(t *testing.T) {
	b := New(Config{URL: "http://gpu-a:8000"}, "agent")
	b.Seat.SetRotation(true)
	pool := admission.NewPool("m", nil)
	pool.Set([]*admission.Seat{b.Seat}, nil)
	c := admission.New(limit.New(&limit.Set{}, limit.Options{Store: limit.NewMemory(time.Now)}), admission.DefaultQueue())
	for range 3 {
		if _, err := c.Admit(t.Context(), &admission.Demand{Pool: pool}); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Unix(1000, 0)
	for i, want := range []bool{true, true, true, false, false} {
		if got := b.Move(at.Add(time.Duration(i) * time.Second)); got != want {
			t.Errorf("move %d: %v", i, got)
		}
	}
	if b.Move(at.Add(movesEvery-1)) || !b.Move(at.Add(movesEvery)) {
		t.Error("not once a minute")
	}
}
