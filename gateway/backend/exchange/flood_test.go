package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/backend/exchange/exchangetest"
)

// TestFlood: a server that sends without a pause, and no event, runs into the same
// limits as one that is silent; the caller's leaving ends it as well.
func TestFlood(t *testing.T) {
	server, client := exchangetest.TLSPair(t)
	for _, c := range []struct {
		name   string
		set    func(*Timeouts)
		events int // before nothing but comments come
		leaves bool
		phase  Phase
	}{
		{"no event", func(l *Timeouts) { l.FirstToken = soon }, 0, false, FirstToken},
		{"one event", func(l *Timeouts) { l.Idle = soon }, 1, false, Idle},
		{"total", func(l *Timeouts) { l.Total = soon }, 1, false, Total},
		{"the caller leaves", func(*Timeouts) {}, 1, true, ""},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", c.name, secure), func(t *testing.T) {
				var config *tls.Config
				if secure {
					config = server
				}
				comments := strings.Repeat("8\r\n: ping\n\n\r\n", 1000)
				s := exchangetest.Serve(t, config, func(p *exchangetest.Peer) {
					p.Request()
					p.Say(opened)
					for p.Say(comments) {
					}
				})
				b := clientOf(t, s.Addr)
				if secure {
					b = clientWith(t, Config{Address: s.Addr, TLS: client})
				}
				q := post()
				q.Stream = true
				c.set(&q.Limits)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				a, err := b.Send(ctx, q)
				if err != nil { // on a slow machine the head alone takes so long
					wantPhase(t, err, c.phase)
					return
				}
				defer a.Close()
				var held [4 << 10]byte
				events := 0
				err = a.Follow(func() (err error) {
					for err == nil {
						if _, err = a.Read(held[:]); err == nil && events < c.events {
							events++
							a.Progress()
						}
					}
					if c.leaves {
						cancel()
					}
					return err
				}, func() bool { return true })
				if c.leaves {
					if !errors.Is(err, ErrLeft) {
						t.Error(err)
					}
					return
				}
				wantPhase(t, err, c.phase)
			})
		}
	}
}

// TestClockInAFlood: while there is always more to be read, the clock is looked at all
// the same.
func TestClockInAFlood(t *testing.T) {
	begun, said := make(chan bool), make(chan bool)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened)
		<-begun
		p.Say(strings.Repeat("8\r\n: ping\n\n\r\n", 1000))
		close(said)
		p.AwaitEnd()
	})
	q := post()
	q.Stream = true
	a, err := clientOf(t, s.Addr).Send(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.c.direct == nil {
		t.Skip("every read waits here")
	}
	close(begun)
	<-said
	a.c.release()
	a.c.buf, a.deadline, a.flush = make([]byte, 64), a.began, func() bool { return true }
	a.c.followed = true
	reads := 0
	_, err = a.c.direct.follow(a.c, func() error {
		reads++
		a.c.r, a.c.w = 0, 0
		return ErrNothing
	})
	if !isTimeout(err) || reads >= readsPerCheck {
		t.Errorf("%v after %d reads", err, reads)
	}
}

// TestSilenceInAFlood: the caller's stream is kept alive while the server sends nothing
// but comments.
func TestSilenceInAFlood(t *testing.T) {
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		p.Request()
		p.Say(opened)
		for p.Say("8\r\n: ping\n\n\r\n") {
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := post()
	q.Stream, q.SilenceAfter = true, time.Millisecond
	calls := 0
	q.Silence = func(time.Time) time.Duration {
		if calls++; calls == 3 {
			cancel()
		}
		return time.Millisecond
	}
	a, err := clientOf(t, s.Addr).Send(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := followed(a, func() bool { return true }); !errors.Is(err, ErrLeft) || calls < 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// TestSlowCallerInAFlood: while a caller takes long over what it is given, nobody reads.
// What the server sent meanwhile is seen afterwards, and it is not called silent.
func TestSlowCallerInAFlood(t *testing.T) {
	// Four events fill a read, and the wait comes right after a look at the clock.
	const event, size, total = "b\r\ndata: {}1\n\n\r\n", 64, 4 * (16*readsPerCheck - 1)
	for _, inFlood := range []bool{true, false} {
		t.Run(fmt.Sprintf("before any wait %v", inFlood), func(t *testing.T) {
			begun, said, waits := make(chan bool), make(chan bool), make(chan bool)
			s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
				p.Request()
				p.Say(opened)
				<-begun
				p.Say(strings.Repeat(event, total))
				close(said)
				<-waits
				p.Say("0\r\n\r\n")
				p.AwaitEnd()
			})
			q := post()
			q.Stream, q.Limits.Idle, q.Limits.Total = true, time.Minute, time.Hour
			a, err := clientOf(t, s.Addr).Send(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if a.c.direct == nil {
				t.Skip("every read waits here")
			}
			close(begun)
			<-said
			a.c.release()
			a.c.buf = make([]byte, size) // so that there are many reads

			// As if two minutes had gone by since the last look at the clock.
			stall := func() {
				a.silentSince, a.deadline = a.silentSince.Add(-2*q.Limits.Idle), a.began
				if err := a.c.nc.SetReadDeadline(a.began); err != nil {
					t.Error(err)
				}
			}
			var held [11]byte
			events, paused := 0, false
			err = a.Follow(func() (err error) {
				for {
					if _, err = a.Read(held[:]); err != nil {
						return err
					}
					a.Progress()
					if events++; events == total/2 && inFlood {
						stall()
					}
				}
			}, func() bool {
				if !paused {
					paused = true
					if !inFlood {
						stall()
					}
					close(waits)
				}
				return true
			})
			if !errors.Is(err, io.EOF) || events != total {
				t.Errorf("%v after %d events", err, events)
			}
			if !paused {
				close(waits)
			}
		})
	}
}
