package backend

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/gateway/backend/exchange"
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
	b := NewRetryBudget(0.1)
	taken := 0
	for b.Spend() {
		taken++
	}
	if taken != 10 {
		t.Errorf("%d at once", taken)
	}
	for range 1000 {
		b.Earn()
		if b.Spend() {
			taken++
		}
	}
	if taken < 105 || taken > 111 {
		t.Errorf("%d retries of 1000 requests", taken)
	}
	if b := NewRetryBudget(0); b.Spend() {
		t.Error("a budget of nothing")
	}
}

// TestHarmless: what opens a breaker and what does not.
func TestHarmless(t *testing.T) {
	for _, c := range []struct {
		err      error
		harmless bool
	}{
		{exchange.ErrLeft, true}, {&StatusError{Status: 400}, true}, {&StatusError{Status: 429}, true}, {&StatusError{Status: 500}, true},
		{&StatusError{Status: 503}, true}, {&StatusError{Status: 502}, false}, {&StatusError{Status: 504}, false},
		{&exchange.TimeoutError{Phase: exchange.Total}, true}, {&exchange.TimeoutError{Phase: exchange.FirstToken}, false}, {&exchange.TimeoutError{Phase: exchange.Idle}, false}, {&exchange.TimeoutError{Phase: exchange.Connect}, false},
		{&exchange.BrokenError{Action: "stream", Err: errors.New("gone")}, false}, {errors.New("no chunk"), true},
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
		if got := b.SpendMove(at.Add(time.Duration(i) * time.Second)); got != want {
			t.Errorf("move %d: %v", i, got)
		}
	}
	if b.SpendMove(at.Add(movesEvery-1)) || !b.SpendMove(at.Add(movesEvery)) {
		t.Error("not once a minute")
	}
}

func TestPace(t *testing.T) {
	var p Pace
	if n := p.Tokens(time.Second); n != 1+DefaultPace || p.Tokens(0) != 0 {
		t.Errorf("%d tokens of a second of which nothing is known", n)
	}
	p.Observe(100*time.Millisecond, time.Second, 1) // says nothing of the time between tokens
	p.Observe(0, time.Second, 10)
	p.Observe(-time.Second, time.Second, 10)
	p.Observe(time.Second, 0, 10)
	if n := p.Tokens(time.Second); n != 1+DefaultPace {
		t.Errorf("%d tokens of what says nothing", n)
	}
	p.Observe(100*time.Millisecond, time.Second, 101) // 10 ms a token
	for since, want := range map[time.Duration]int{-time.Second: 0, 0: 0, 100 * time.Millisecond: 0, 101 * time.Millisecond: 1, 110 * time.Millisecond: 2, 1100 * time.Millisecond: 101} {
		if n := p.Tokens(since); n != want {
			t.Errorf("%d tokens after %v; want %d", n, since, want)
		}
	}
	p.Observe(900*time.Millisecond, 9*time.Second, 101) // 90 ms a token: counts one in eight
	if p.ttft != 200*time.Millisecond || p.itl != 20*time.Millisecond {
		t.Errorf("%v, %v", p.ttft, p.itl)
	}
	for range 200 {
		p.Observe(time.Second, 5*time.Second, 101)
	}
	if n := p.Tokens(2 * time.Second); n < 20 || n > 22 {
		t.Errorf("%d tokens after a second at 50 ms each", n)
	}
}

// TestPaceOfWholeAnswers: where there are no streams, answers in one piece show the
// pace, but nothing of when a first token came.
func TestPaceOfWholeAnswers(t *testing.T) {
	var p Pace
	p.SetInitial(20)
	if n := p.Tokens(time.Second); n != 21 {
		t.Errorf("%d tokens in a second at 20 tokens/s", n)
	}
	p.ObserveWhole(time.Hour, wholeTokens-1)
	p.ObserveWhole(0, 100)
	if n := p.Tokens(time.Second); n != 21 {
		t.Errorf("%d tokens after answers that say nothing", n)
	}
	p.ObserveWhole(time.Second, 100)
	if n := p.Tokens(time.Second); n != 101 {
		t.Errorf("%d tokens in a second at 10 ms each", n)
	}
	if _, known := p.Decode(100); known {
		t.Error("whole answers cannot tell decoding from what came before")
	}
	p.Observe(100*time.Millisecond, 990*time.Millisecond, 100) // 10 ms as well
	p.ObserveWhole(1090*time.Millisecond, 100)
	if n := p.Tokens(1100 * time.Millisecond); n != 101 {
		t.Errorf("%d tokens; the time to the first one is known now", n)
	}
	// A first token that was late once makes nothing free once it is not.
	p.Observe(9*time.Second, 990*time.Millisecond, 100)
	p.Observe(50*time.Millisecond, 990*time.Millisecond, 100)
	if n := p.Tokens(1050 * time.Millisecond); n != 101 {
		t.Errorf("%d tokens in a second after the first", n)
	}
	p.SetInitial(0)
	if p.initial != 0 {
		t.Error(p.initial)
	}
}
