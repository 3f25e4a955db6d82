package backend

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/backend/exchange/exchangetest"
	"tidegate/gateway/gatewaytest"
)

// pair is a model of two backends in rotation that are taken to hang after 8 s.
func pair(t *testing.T) (a, b *Backend) {
	t.Helper()
	a, b = New(Config{URL: "http://gpu-a:8000", breaker: DefaultModel().Breaker}, "agent"), New(Config{URL: "http://gpu-b:8000"}, "agent")
	both := []*Backend{a, b}
	for _, x := range both {
		x.peers.Store(&both)
		x.Seat.SetRotation(true)
	}
	return a, b
}

// tell has a backend's metrics read at a moment, with so many tokens made by then.
func tell(b *Backend, at time.Time, tokens int) {
	before := b.updateEngine(func(*Engine) *Engine { return &Engine{Time: at, Engines: 1, OutputTokens: tokens} })
	if e := b.Engine(); !before.Time.IsZero() && e.differs(before) {
		b.progress.sign(at)
	}
}

func watcherOf(b *Backend) *watcher {
	return &watcher{b: b, log: slog.New(slog.DiscardHandler)}
}

// TestHangs: what a backend shows, and when it is out of rotation for it, each second of
// twelve after its third request was sent.
func TestHangs(t *testing.T) {
	for _, c := range []struct {
		name     string
		requests int
		told     bool                           // its metrics are read
		each     func(s int, b, other *Backend) // what happens in second s
		out      int                            // the second in which it goes out; 0: it does not
		asked    int                            // the second in which it is asked for a token; 0: it is not
	}{
		{"an engine that stands still", 3, true, nil, 8, 5},
		{"an engine that has hung since it came up", 4, true, nil, 8, 5},
		{"two requests are no proof", 2, true, nil, 0, 5},
		{"a slow engine makes a token every four seconds", 5, true, func(s int, b, _ *Backend) {
			if s%4 == 0 {
				tell(b, b.progress.base.Add(time.Duration(s)*time.Second), s)
			}
		}, 0, 0},
		{"metrics that are not read, and a canary without an answer", 3, false, nil, 8, 5},
		{"metrics that are not read, and a canary that is refused", 3, false, func(s int, b, _ *Backend) {
			b.progress.canary(b.progress.base.Add(time.Duration(s)*time.Second), false)
		}, 0, 5},
		{"the canary is answered", 3, true, func(s int, b, _ *Backend) {
			if s == 7 {
				b.progress.sign(b.progress.base.Add(7 * time.Second))
			}
		}, 0, 5},
		{"the other backend is out", 3, true, func(_ int, _, other *Backend) { other.Seat.SetRotation(false) }, 0, 5},
		{"the other backend stands still too", 3, true, func(s int, _, other *Backend) {
			if s == 1 {
				other.progress.begin(other.progress.base)
			}
		}, 0, 5},
		{"a refusal is an answer", 3, true, func(s int, b, _ *Backend) {
			if s == 1 {
				b.progress.end(true)
			}
		}, 0, 5},
		{"all callers leave", 3, true, func(s int, b, _ *Backend) {
			if s == 1 {
				for range 3 {
					b.progress.end(false)
				}
			}
		}, 0, 0},
		{"callers leave, and ask again", 3, true, func(s int, b, _ *Backend) {
			if s == 4 {
				b.progress.end(false)
				b.progress.begin(b.progress.base.Add(4 * time.Second))
			}
		}, 8, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, asked := twelveSeconds(t, c.requests, c.told, c.each)
			if out != c.out || asked != c.asked {
				t.Errorf("out after %d s, asked for a token after %d; want %d and %d", out, asked, c.out, c.asked)
			}
		})
	}
}

// twelveSeconds looks at a backend with so many requests every second: it returns in which
// it went out of rotation, and in which it was asked for a token.
func twelveSeconds(t *testing.T, requests int, told bool, each func(s int, b, other *Backend)) (out, asked int) {
	b, other := pair(t)
	w := watcherOf(b)
	for range requests {
		b.progress.begin(b.progress.base)
	}
	for s := range 13 {
		now := b.progress.base.Add(time.Duration(s) * time.Second)
		if told {
			last := 0
			if e := b.Engine(); e != nil {
				last = e.OutputTokens
			}
			tell(b, now, last)
		}
		if each != nil {
			each(s, b, other)
		}
		if w.check(now) {
			if asked == 0 {
				asked = s
			}
			b.progress.canary(now, true)
		}
		if out == 0 && !b.Seat.InRotation() {
			out = s
		}
	}
	return out, asked
}

// TestHungComesBack: a sign of work ends it, and a server that ended its silence by
// itself is given twice as long the next time.
func TestHungComesBack(t *testing.T) {
	b, _ := pair(t)
	w := watcherOf(b)
	at := func(s int) time.Time { return b.progress.base.Add(time.Duration(s) * time.Second) }
	look := func(s, tokens int) {
		tell(b, at(s), tokens)
		w.check(at(s))
	}
	for range 3 {
		b.progress.begin(at(0))
	}
	for s := range 9 {
		look(s, 0)
	}
	if b.Seat.InRotation() || b.stalled() == "" {
		t.Fatal("it is not out after 8 s")
	}
	b.Seat.SetRotation(true) // by a probe that had begun before
	if look(9, 0); b.Seat.InRotation() {
		t.Error("a health probe lets it in")
	}
	look(10, 1)
	if b.stalled() != "" {
		t.Error("it makes tokens, and is still kept out")
	}
	b.Seat.SetRotation(true)
	for s := 11; s < 30; s++ {
		look(s, 1)
	}
	if !b.Seat.InRotation() {
		t.Error("out again after less than twice the silence that it ended by itself")
	}
	if look(30, 1); b.Seat.InRotation() {
		t.Error("not out after twice that silence")
	}
	if n, since := b.Unanswered(at(30)); n != 3 || !since.Equal(at(10)) {
		t.Errorf("%d requests without progress since %v", n, since.Sub(at(0)))
	}
}

// TestReloadOfHung: a reload that replaces the watcher of a backend which is taken to hang
// does not keep it out for ever.
func TestReloadOfHung(t *testing.T) {
	b, _ := pair(t)
	at := func(s int) time.Time { return b.progress.base.Add(time.Duration(s) * time.Second) }
	for range 3 {
		b.progress.begin(at(0))
	}
	w := watcherOf(b)
	for s := range 9 {
		tell(b, at(s), 0)
		w.check(at(s))
	}
	if b.stalled() == "" {
		t.Fatal("it is not out after 8 s")
	}
	for range 3 { // they go elsewhere
		b.progress.end(false)
	}
	w = watcherOf(b)
	if !w.check(at(9)) {
		t.Error("it is not asked for a token any more")
	}
	tell(b, at(10), 1)
	if w.check(at(10)); b.stalled() != "" {
		t.Error("it works again, and is still kept out")
	}
}

// TestClockJump: when the clock of the machine is set, no silence gets longer.
func TestClockJump(t *testing.T) {
	b, _ := pair(t)
	b.progress.begin(time.Now())
	b.progress.sign(time.Now())
	if set := time.Now().Round(0).Sub(b.progress.last().Round(0)); set > time.Minute {
		t.Fatal(set)
	}
	if b.progress.last() == b.progress.last().Round(0) {
		t.Error("the last sign of work has no monotonic clock")
	}
}

// TestWholePrediction: the time of an answer in one piece, by what was observed, what the
// engine says now, or what is assumed.
func TestWholePrediction(t *testing.T) {
	b, _ := pair(t)
	now := time.Now()
	if d := (observer{b}).Predict(1000, 500, now); d != 2*time.Second+10*time.Second {
		t.Errorf("%v of a backend of which nothing is known", d)
	}
	b.Pace.ObservePrompt(time.Second, promptTokens-1) // too short
	b.Pace.ObservePrompt(time.Second, 1000)
	b.Pace.Observe(time.Second, 99*100*time.Millisecond, 100)
	if d := (observer{b}).Predict(1000, 500, now); d != time.Second+50*time.Second {
		t.Errorf("%v, at 10 tokens a second", d)
	}
	b.updateEngine(func(*Engine) *Engine { return &Engine{Time: now, Running: 8, Speed: 40} })
	if d := (observer{b}).Predict(1000, 500, now); d != time.Second+100*time.Second {
		t.Errorf("%v, while the engine makes 5 tokens a second for each of 8 requests", d)
	}
	b.Pace.ObservePrompt(time.Nanosecond, 1<<30)
	if d := (observer{b}).Predict(1<<40, 1<<40, now); d <= 0 {
		t.Errorf("%v of a request that nobody can send", d)
	}
}

// TestCanary: what each answer to the request for one token says.
func TestCanary(t *testing.T) {
	var status atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if status.Load() == 0 {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer server.Close()
	b := New(Config{URL: server.URL}, "agent")
	w := newWatcher(&prober{b: b, client: server.Client()})
	for code, want := range map[int32]canary{200: answered, 400: refused, 500: refused} {
		status.Store(code)
		if got := w.ask(t.Context()); got != want {
			t.Errorf("%d: %d", code, got)
		}
	}
	status.Store(0)
	w.limit = time.Millisecond
	if got := w.ask(t.Context()); got != unanswered {
		t.Errorf("no answer: %d", got)
	}
	b.progress.canary(time.Now(), true)
	if w.setResult(time.Now(), unanswered); b.progress.canarySent.IsZero() {
		t.Error("a canary without an answer is forgotten")
	}
	if w.setResult(time.Now(), refused); !b.progress.canarySent.IsZero() {
		t.Error("a canary that was refused counts as one without an answer")
	}
	if w.setResult(time.Now(), answered); b.progress.last().IsZero() {
		t.Error("an answer is no sign of work")
	}
}

// TestLeftBehind: a request of which nothing has come leaves a backend that goes out of
// rotation, where another one can take it; else, and when the backend only left the
// configuration, it is waited for.
func TestLeftBehind(t *testing.T) {
	for _, c := range []struct {
		why    string
		stream bool
		other  bool
		moved  bool
	}{
		{"GET /health: no answer", false, true, true}, {"GET /health: no answer", true, true, true},
		{"GET /health: no answer", false, false, false}, {removed, false, true, false}, {removed, true, true, false},
	} {
		asked := make(chan struct{})
		answer := make(chan struct{})
		s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
			p.Request()
			close(asked)
			<-answer
			p.Say(exchangetest.OK)
		})
		b := backendOf(t, s.Addr)
		b.Seat.SetRotation(true)
		q := post()
		q.Stream = c.stream
		q.Silence, q.SilenceAfter = func(time.Time) time.Duration { return time.Millisecond }, time.Millisecond
		looked := make(chan struct{}, 1)
		q.CanMove = func() bool {
			select {
			case looked <- struct{}{}:
			default:
			}
			return c.other
		}
		ended := make(chan error, 1)
		go func() {
			_, err := send(b, q)
			ended <- err
		}()
		<-asked
		b.takeOut(c.why)
		if !c.moved {
			if c.why != removed {
				<-looked
			}
			close(answer)
		}
		if err := <-ended; Retryable(err) != c.moved || c.moved == (err == nil) {
			t.Errorf("%+v: %v", c, err)
		}
		if c.moved {
			close(answer)
		}
		b.Close()
	}
}

// TestSilentServer: with a server that does nothing at all a request fails after
// first_byte, whatever its answer was predicted to take; one that works is given three
// times the predicted time.
func TestSilentServer(t *testing.T) {
	const soon = 30 * time.Millisecond
	o := gatewaytest.Default()
	for _, c := range []struct {
		name   string
		worked bool // since it came up
		silent bool
	}{{"it hangs", true, true}, {"its first request may compile", false, false}} {
		s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
			p.Request()
			p.Request() // until the gateway leaves
		})
		b := backendOf(t, s.Addr)
		q := post()
		q.Limits.FirstByte, q.Limits.Total = soon, 20*soon
		q.Answer = o.MaxModelLen
		q.Silence, q.SilenceAfter = func(now time.Time) time.Duration {
			b.updateEngine(func(*Engine) *Engine { return &Engine{Time: now} })
			return time.Millisecond
		}, time.Millisecond
		c1 := b.tuned.Load().config
		c1.Stall = soon / 2
		b.tune(Config{breaker: c1})
		if c.worked {
			b.progress.sign(time.Now())
		}
		_, err := send(b, q)
		timeout, is := err.(*exchange.TimeoutError)
		if !is || timeout.Silent != true || (timeout.Phase == exchange.FirstByte) != c.silent || (timeout.Phase == exchange.Total) == c.silent {
			t.Errorf("%s: %v", c.name, err)
		}
		b.Close()
	}
}

// TestBlameForFirstByte: a backend that works, but is late with one answer, is asked again
// elsewhere without being blamed for it; one that does nothing is blamed at once.
func TestBlameForFirstByte(t *testing.T) {
	late, hung := &exchange.TimeoutError{Phase: exchange.FirstByte}, &exchange.TimeoutError{Phase: exchange.FirstByte, Silent: true}
	if !Retryable(late) || !Retryable(hung) {
		t.Error("not tried again")
	}
	if !harmless(late) || harmless(hung) || !Doubtful(late) || Doubtful(hung) {
		t.Error("blamed wrongly")
	}
}
