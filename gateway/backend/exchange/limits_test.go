package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/backend/exchange/exchangetest"
)

const (
	soon   = 30 * time.Millisecond
	opened = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

// TestTimeouts runs into each limit while all others are far.
func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		name   string
		stream bool
		set    func(*Timeouts)
		script func(*exchangetest.Peer)
		phase  Phase
		body   string
	}{
		{"no head", true, func(l *Timeouts) { l.FirstToken = soon }, func(p *exchangetest.Peer) { p.Request(); p.AwaitEnd() }, FirstToken, ""},
		{"no body", true, func(l *Timeouts) { l.FirstToken = soon }, func(p *exchangetest.Peer) { p.Request(); p.Say(opened); p.AwaitEnd() }, FirstToken, ""},
		{"only an empty frame", true, func(l *Timeouts) { l.FirstToken = soon }, func(p *exchangetest.Peer) { p.Request(); p.Say(opened + "5\r\n"); p.AwaitEnd() }, FirstToken, ""},
		{"silence", true, func(l *Timeouts) { l.Idle = soon }, func(p *exchangetest.Peer) { p.Request(); p.Say(opened + "1\r\na\r\n"); p.AwaitEnd() }, Idle, "a"},
		{"silence later", true, func(l *Timeouts) { l.Idle = soon }, func(p *exchangetest.Peer) {
			p.Request()
			p.Say(opened + strings.Repeat("1\r\na\r\n", 100))
			p.AwaitEnd()
		}, Idle, strings.Repeat("a", 100)},
		{"silence at the end", true, func(l *Timeouts) { l.Idle = soon }, func(p *exchangetest.Peer) { p.Request(); p.Say(opened + "1\r\na\r\n0\r\n"); p.AwaitEnd() }, Idle, "a"},
		{"total, stream", true, func(l *Timeouts) { l.Total = soon }, func(p *exchangetest.Peer) { p.Request(); p.Say(opened + "1\r\na\r\n"); p.AwaitEnd() }, Total, "a"},
		{"total, no head", true, func(l *Timeouts) { l.Total = soon }, func(p *exchangetest.Peer) { p.Request(); p.AwaitEnd() }, Total, ""},
		{"total, not streamed", false, func(l *Timeouts) { l.Total, l.FirstToken, l.Idle = soon, time.Millisecond, time.Millisecond }, func(p *exchangetest.Peer) { p.Request(); p.AwaitEnd() }, Total, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := exchangetest.Serve(t, nil, c.script)
			b := clientOf(t, s.Addr)
			q := post()
			q.Stream = c.stream
			c.set(&q.Limits)
			_, body, err := send(b, q)
			wantPhase(t, err, c.phase)
			if body != c.body && (c.phase != Total || body != "") {
				t.Errorf("%q, %v", body, err)
			}
			if len(b.pool.idle) > 0 {
				t.Error("the connection is kept")
			}
		})
	}
}

// TestLimit: from when each silence counts.
func TestLimit(t *testing.T) {
	began, waiting := time.Unix(1000, 0), time.Unix(2000, 0)
	limits := Timeouts{FirstToken: time.Second, FirstByte: 2 * time.Second, Idle: time.Minute, Total: time.Hour}
	before, later := waiting.Add(-time.Second), waiting.Add(time.Second)
	for _, c := range []struct {
		stream, spoken bool
		held           time.Time
		at             time.Time
		phase          Phase
	}{
		{true, false, time.Time{}, waiting.Add(time.Second), FirstToken},
		{true, true, time.Time{}, waiting.Add(time.Minute), Idle},
		{false, true, time.Time{}, waiting.Add(time.Minute), Idle},
		{false, false, time.Time{}, waiting.Add(2 * time.Second), FirstByte},
		{false, false, later, later.Add(2 * time.Second), FirstByte},
		{true, false, later, waiting.Add(time.Second), FirstToken},
		{true, true, before, waiting.Add(time.Minute), Idle},
		{true, true, later, later.Add(time.Minute), Idle},
	} {
		seen := &recorder{queuedSince: c.held}
		a := &Answer{client: &Client{observer: seen}, q: &Request{Stream: c.stream, Limits: limits}, began: began, silentSince: waiting, started: c.spoken}
		if at, phase := a.limit(); !at.Equal(c.at) || phase != c.phase {
			t.Errorf("%+v: %v, %s", c, at, phase)
		}
	}
}

// TestLimitOfHungQueue: an engine that hangs while requests wait in it says for ever that
// they do. Its streams and whole answers end all the same.
func TestLimitOfHungQueue(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	seen := &recorder{queuedSince: at(5)} // its last sign of work
	limits := Timeouts{FirstToken: time.Second, FirstByte: 30 * time.Second, Idle: 20 * time.Second, Total: time.Hour}
	for _, c := range []struct {
		stream, spoken bool
		waiting, end   int
	}{
		{true, true, 1, 25},
		{true, true, 8, 28},
		{false, false, 1, 35},
	} {
		a := &Answer{client: &Client{observer: seen}, q: &Request{Stream: c.stream, Limits: limits}, began: began, silentSince: at(c.waiting), started: c.spoken}
		if end, _ := a.limit(); !end.Equal(at(c.end)) {
			t.Errorf("%+v: ends after %v", c, end.Sub(began))
		}
	}
}

// TestSlowCallerOfSilence: the time that a caller takes over a keep-alive is not silence
// of the server, before its first event and after it.
func TestSlowCallerOfSilence(t *testing.T) {
	for _, spoken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			now := time.Now()
			q := &Request{Stream: true, Limits: Timeouts{FirstToken: time.Minute, Idle: time.Minute, Total: time.Hour}}
			q.Silence = func(time.Time) time.Duration {
				time.Sleep(2 * time.Minute)
				return 30 * time.Second
			}
			a := &Answer{client: &Client{observer: &recorder{}}, c: &conn{nc: ours}, q: q, ctx: t.Context(), began: now, silentSince: now, nextSilence: now, started: spoken}
			if err := a.deadlinePassed(); err != nil {
				t.Fatal(err)
			}
			if left := time.Until(a.deadline); left != 30*time.Second {
				t.Errorf("an event before %v: the next deadline is %v away", spoken, left)
			}
			if err := a.deadlinePassed(); err != nil {
				t.Errorf("an event before %v: the server has had no time: %v", spoken, err)
			}
			time.Sleep(time.Minute)
			if err := a.deadlinePassed(); !errors.As(err, new(*TimeoutError)) {
				t.Errorf("an event before %v: %v after a minute of silence", spoken, err)
			}
		})
	}
}

// TestTotalWhileFlowing: the total limit also ends an answer that never pauses.
func TestTotalWhileFlowing(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened)
		for p.Say("1\r\na\r\n") {
		}
	})
	for _, stream := range []bool{false, true} {
		q := post()
		q.Stream, q.Limits.Total = stream, 5*soon
		_, body, err := send(clientOf(t, s.Addr), q)
		wantPhase(t, err, Total)
		t.Logf("%d bytes by then", len(body))
	}
}

// TestTotalWhileSending: a server that takes no bytes is a timeout like any other.
func TestTotalWhileSending(t *testing.T) {
	done := make(chan bool)
	s := exchangetest.Serve(t, nil, func(*exchangetest.Peer) { <-done })
	t.Cleanup(func() { close(done) })
	q := post()
	q.Limits.Total = soon
	q.Body = make([]byte, 64<<20)
	_, _, err := send(clientOf(t, s.Addr), q)
	wantPhase(t, err, Total)
}

// TestSilence: while nothing comes the callback is called as it asks, and not
// before its time; limits still hold.
func TestSilence(t *testing.T) {
	speak := make(chan bool)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened)
		<-speak
		p.Say("1\r\na\r\n")
		<-speak
		p.Say("1\r\nb\r\n0\r\n\r\n")
	})
	q := post()
	q.Stream, q.SilenceAfter = true, soon
	var calls []time.Time
	q.Silence = func(now time.Time) time.Duration {
		if calls = append(calls, now); len(calls)%3 == 0 {
			speak <- true
		}
		return time.Duration(len(calls)) * 10 * time.Millisecond
	}
	began := time.Now()
	_, body, err := send(clientOf(t, s.Addr), q)
	if err != nil || body != "ab" || len(calls) != 6 {
		t.Fatalf("%q, %v, %d calls", body, err, len(calls))
	}
	if calls[0].Sub(began) < soon {
		t.Errorf("first after %v", calls[0].Sub(began))
	}
	for i := 1; i < len(calls); i++ {
		if gap := calls[i].Sub(calls[i-1]); gap < time.Duration(i)*10*time.Millisecond {
			t.Errorf("call %d comes %v after the one before", i, gap)
		}
	}
	q.Silence, q.Limits.FirstToken = func(time.Time) time.Duration { return time.Millisecond }, soon
	silent := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) { p.AwaitEnd() })
	_, _, err = send(clientOf(t, silent.Addr), q)
	wantPhase(t, err, FirstToken)
}

// TestWaiting: whatever was read has been handed out before each wait; the server
// here goes on only when the client has said that it is about to wait.
func TestWaiting(t *testing.T) {
	for _, secure := range []bool{false, true} {
		waits := make(chan bool, 1000)
		var server, client *tls.Config
		if secure {
			server, client = exchangetest.TLSPair(t)
		}
		parts := []string{opened + "1\r\na\r\n", "2\r\nbc\r\n1\r\nd\r\n", "3\r", "\ne", "fg\r\n", "0\r\n\r\n"}
		s := exchangetest.Serve(t, server, func(p *exchangetest.Peer) {
			p.Request()
			for i, part := range parts {
				if i > 0 {
					<-waits
				}
				p.Say(part)
			}
			p.AwaitEnd()
		})
		b := clientOf(t, s.Addr)
		if secure {
			b = clientWith(t, Config{Address: s.Addr, TLS: client})
		}
		q := post()
		q.Stream = true
		read, armed := 0, false
		var at []int
		pause := func() bool {
			if at = append(at, read); armed {
				select {
				case waits <- true:
				default:
				}
			}
			return true
		}
		a, err := b.Send(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		armed = true
		var body []byte
		err = a.Follow(func() (err error) {
			for p := make([]byte, 100); err == nil; {
				var n int
				n, err = a.Read(p)
				body = append(body, p[:n]...)
				read += n
			}
			return err
		}, pause)
		a.Close()
		if !errors.Is(err, io.EOF) || string(body) != "abcdefg" {
			t.Errorf("%q, %v", body, err)
		}
		// What each part adds has been handed out before the next is waited for.
		if at = slices.DeleteFunc(at, func(n int) bool { return n == 0 }); !slices.Equal(at, []int{1, 4, 4, 5, 7}) {
			t.Errorf("TLS %v: waits with %v bytes handed out", secure, at)
		}
	}
}

// TestCancel: the caller's leaving reaches the server at once, what the server had
// sent by then is still read, and the connection is not used again.
func TestCancel(t *testing.T) {
	server, client := exchangetest.TLSPair(t)
	for _, c := range []struct {
		name   string
		secure bool
		leave  func(a *Answer, cancel context.CancelFunc)
	}{
		{"context", false, func(_ *Answer, cancel context.CancelFunc) { cancel() }},
		{"context, TLS", true, func(_ *Answer, cancel context.CancelFunc) { cancel() }},
		{"Leave", false, func(a *Answer, _ context.CancelFunc) { a.Cancel() }},
		{"Leave, TLS", true, func(a *Answer, _ context.CancelFunc) { a.Cancel(); a.Cancel() }},
		{"Leave and context", false, func(a *Answer, cancel context.CancelFunc) { a.Cancel(); cancel() }},
		{"context and Leave", false, func(a *Answer, cancel context.CancelFunc) { cancel(); a.Cancel() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ready, gone, more := make(chan bool, 1), make(chan time.Time, 1), make(chan bool)
			var config *tls.Config
			if c.secure {
				config = server
			}
			s := exchangetest.Serve(t, config, func(p *exchangetest.Peer) {
				p.Request()
				p.Say(opened + "1\r\na\r\n")
				<-more
				p.Say("1\r\nb\r\n1\r\nc\r\n")
				ready <- true
				p.AwaitEnd()
				gone <- time.Now()
			})
			b := clientOf(t, s.Addr)
			if c.secure {
				b = clientWith(t, Config{Address: s.Addr, TLS: client})
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			q := post()
			q.Stream = true
			a, err := b.Send(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 1)
			if n, err := a.Read(p); n != 1 || err != nil || p[0] != 'a' {
				t.Fatal(n, err)
			}
			close(more)
			<-ready // b and c are on their way; on the loopback that is: there
			left := time.Now()
			c.leave(a, cancel)
			rest, err := io.ReadAll(a)
			if string(rest) != "bc" || !errors.Is(err, ErrLeft) {
				t.Errorf("%q, %v", rest, err)
			}
			a.Close()
			took := (<-gone).Sub(left)
			t.Logf("the server sees it after %v", took)
			if took > 2*time.Second {
				t.Errorf("the server sees it after %v", took)
			}
			if len(b.pool.idle) > 0 || b.seen.failures() > 0 {
				t.Error("the connection is kept, or the server is blamed")
			}
		})
	}
}

// TestCancelIsSeenBeforeClose: the half-close alone tells the server; the answer
// is not closed until the server has seen it.
func TestCancelIsSeenBeforeClose(t *testing.T) {
	gone := make(chan bool, 1)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened + "1\r\na\r\n")
		p.AwaitEnd()
		gone <- true
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := post()
	q.Stream = true
	a, err := clientOf(t, s.Addr).Send(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, ErrLeft) {
		t.Error(err)
	}
	<-gone
}

// TestCancelBeforeTheHead: also while the server has said nothing, or while it
// takes the request, a caller's leaving ends the exchange.
func TestCancelBeforeTheHead(t *testing.T) {
	for name, c := range map[string]struct {
		size int
		then func(p *exchangetest.Peer, left context.Context)
	}{
		"waiting": {10, func(p *exchangetest.Peer, _ context.Context) { p.AwaitEnd() }},
		"sending": {64 << 20, func(_ *exchangetest.Peer, left context.Context) { <-left.Done() }}, // reads no more
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
				p.ReadByte()
				cancel()
				c.then(p, ctx)
			})
			b := clientOf(t, s.Addr)
			q := post()
			q.Body = make([]byte, c.size)
			if _, err := b.Send(ctx, q); !errors.Is(err, ErrLeft) {
				t.Error(err)
			}
			if b.seen.failures() > 0 || len(b.pool.idle) > 0 {
				t.Error("the server is blamed, or the connection is kept")
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := exchangetest.Serve(t, nil, exchangetest.Answering(exchangetest.OK))
	b := clientOf(t, s.Addr)
	if _, err := b.Send(ctx, post()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	if b.seen.failures() > 0 {
		t.Error("the server is blamed")
	}
}

// followed is all that Follow gives, and how it ends.
func followed(a *Answer, pause func() bool) (body []byte, err error) {
	err = a.Follow(func() error {
		more, err := io.ReadAll(a)
		body = append(body, more...)
		return err
	}, pause)
	return body, err
}

// TestWaitingLeaves: a caller that takes no more is noticed when it is to be
// given what was read, and what comes meanwhile is read on. Its context may end
// at any time then.
func TestWaitingLeaves(t *testing.T) {
	gone := make(chan bool, 1)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened + "1\r\na\r\n")
		p.AwaitEnd() // the half-close
		p.Say("1\r\nb\r\n")
		gone <- true
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := clientOf(t, s.Addr)
	q := post()
	q.Stream = true
	a, err := b.Send(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	body, err := followed(a, func() bool {
		cancel()
		return false
	})
	if string(body) != "ab" || !errors.Is(err, ErrLeft) {
		t.Errorf("%q, %v", body, err)
	}
	<-gone
}

// TestLookAfterDeadline: on a starved machine the time for reading on may pass before
// anybody has looked; what has come is read all the same.
func TestLookAfterDeadline(t *testing.T) {
	said := make(chan bool)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened + "1\r\na\r\n")
		p.AwaitEnd()
		p.Say("1\r\nb\r\n")
		close(said)
	})
	q := post()
	q.Stream = true
	a, err := clientOf(t, s.Addr).Send(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	body, err := followed(a, func() bool {
		a.Cancel()
		<-said
		a.drainEnd = time.Unix(1, 0)
		if err := a.c.nc.SetReadDeadline(a.drainEnd); err != nil {
			t.Error(err)
		}
		return false
	})
	if string(body) != "ab" || !errors.Is(err, ErrLeft) {
		t.Errorf("%q, %v", body, err)
	}
}

// TestWatchAfterLeave: the watch over the context fires after Leave has set its
// own deadline, and takes nothing from it.
func TestWatchAfterLeave(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened + "1\r\na\r\n")
		p.AwaitEnd()
		p.Say("1\r\nb\r\n")
	})
	a, err := clientOf(t, s.Addr).Send(t.Context(), post())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Cancel()
	if err := a.c.nc.SetDeadline(time.Unix(1, 0)); err != nil { // as the watch does
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(a); string(rest) != "ab" || !errors.Is(err, ErrLeft) {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestLeaveThenWholeAnswer: an answer that ends well after its caller left is
// still one whose caller left, and its connection is half closed.
func TestLeaveThenWholeAnswer(t *testing.T) {
	s := exchangetest.Serve(t, nil, exchangetest.Answering(exchangetest.OK))
	b := clientOf(t, s.Addr)
	a, err := b.Send(t.Context(), post())
	if err != nil {
		t.Fatal(err)
	}
	a.Cancel()
	rest, err := io.ReadAll(a)
	a.Close()
	if string(rest) != "ok" || !errors.Is(err, ErrLeft) || len(b.pool.idle) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestDrainIsBounded: a server that goes on sending after the caller left is
// read for a moment only.
func TestDrainIsBounded(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened)
		for p.Say("1\r\na\r\n") {
		}
	})
	a, err := clientOf(t, s.Addr).Send(t.Context(), post())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Cancel()
	if rest, err := io.ReadAll(a); len(rest) == 0 || !errors.Is(err, ErrLeft) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

// TestContextEndsAtTheEnd: the context ends between the last read and Close, or
// after it.
func TestContextEndsAtTheEnd(t *testing.T) {
	s := exchangetest.Serve(t, nil, exchangetest.Answering(exchangetest.OK))
	b := clientOf(t, s.Addr)
	ctx, cancel := context.WithCancel(t.Context())
	a, err := b.Send(ctx, post())
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(a); err != nil || string(body) != "ok" {
		t.Fatal(string(body), err)
	}
	cancel()
	a.Close() // the deadline of the connection may be in the past now
	if _, body, err := send(b, post()); err != nil || body != "ok" {
		t.Errorf("%q, %v", body, err)
	}
	if n := s.Conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	// And after a Close a context's end no longer matters to the connection.
	ctx, cancel = context.WithCancel(t.Context())
	if a, err = b.Send(ctx, post()); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, a)
	a.Close()
	cancel()
	if _, body, err := send(b, post()); err != nil || body != "ok" || s.Conns.Load() != 2 {
		t.Errorf("%q, %v, %d connections", body, err, s.Conns.Load())
	}
}
