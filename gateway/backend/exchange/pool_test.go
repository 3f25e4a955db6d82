package exchange

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// pipe is an idle connection and the server's end of it.
func pipe() (*conn, net.Conn) {
	ours, theirs := net.Pipe()
	return &conn{nc: ours, buffers: &buffers{}}, theirs
}

// closed reports whether the other end of a connection has been closed.
func closed(theirs net.Conn) bool {
	theirs.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := theirs.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded) && errors.Is(err, io.EOF)
}

func TestPool(t *testing.T) {
	var p pool
	at := time.Now()
	if p.pop(at) != nil {
		t.Error("an empty pool gives something")
	}
	var conns []*conn
	var ends []net.Conn
	for i := range 4 {
		c, end := pipe()
		t.Cleanup(func() { c.nc.Close() })
		conns, ends = append(conns, c), append(ends, end)
		c.x = &Answer{}
		p.release(c, at.Add(time.Duration(i)*time.Second))
		if !c.used || c.x != nil {
			t.Errorf("%+v", c)
		}
	}
	if c := p.pop(at.Add(3 * time.Second)); c != conns[3] {
		t.Error("not the youngest")
	}
	p.release(conns[3], at.Add(3*time.Second))
	p.prune(at.Add(IdleLife)) // the oldest is just of age, not older
	if len(p.idle) != 4 {
		t.Errorf("%d are left", len(p.idle))
	}
	p.prune(at.Add(IdleLife + 1500*time.Millisecond))
	if got := []bool{closed(ends[0]), closed(ends[1]), closed(ends[2]), closed(ends[3])}; !slices.Equal(got, []bool{true, true, false, false}) {
		t.Errorf("closed: %v", got)
	}
	if c := p.pop(at.Add(3*time.Second + IdleLife)); c != conns[3] {
		t.Error("one of just the allowed age is refused")
	}
	if c := p.pop(at.Add(2*time.Second + IdleLife + 1)); c != nil || !closed(ends[2]) || len(p.idle) != 0 {
		t.Error("an old one is used, or kept")
	}
	p.release(conns[3], at)
	if p.isClosed() {
		t.Error("closed before it is closed")
	}
	p.close()
	if !closed(ends[3]) || p.pop(at) != nil || !p.isClosed() {
		t.Error("close leaves one open")
	}
	c, end := pipe()
	if p.release(c, at); !closed(end) || len(p.idle) != 0 {
		t.Error("one that comes back later is kept")
	}
}

func TestPoolIsBounded(t *testing.T) {
	var p pool
	at := time.Now()
	idle := make([]*conn, maxIdle)
	for i := range idle {
		idle[i] = &conn{nc: &pieces{}, buffers: &buffers{}}
		p.release(idle[i], at)
	}
	c, end := pipe()
	if p.release(c, at); len(p.idle) != maxIdle || !closed(end) {
		t.Errorf("%d idle connections", len(p.idle))
	}
}

// TestPoolLosesNone: every connection is idle, in use or closed, never two of
// them, whatever happens.
func TestPoolLosesNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pool
		now := time.Unix(0, 0)
		isClosed := map[*conn]bool{}
		all, inUse := 0, []*conn{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				p.prune(now)
			case 1:
				if rapid.IntRange(0, 9).Draw(t, "close") == 0 {
					p.close()
				}
			case 2, 3:
				if len(inUse) > 0 {
					p.release(inUse[0], now)
					inUse = inUse[1:]
				}
			default:
				c := p.pop(now)
				if c == nil {
					nc := &counted{}
					c = &conn{nc: nc, buffers: &buffers{}}
					nc.close = func() { isClosed[c] = true }
					all++
				} else if now.Sub(c.idleSince) > IdleLife {
					t.Fatalf("idle for %v", now.Sub(c.idleSince))
				}
				inUse = append(inUse, c)
			}
			for _, c := range inUse {
				if isClosed[c] || slices.Contains(p.idle, c) {
					t.Fatal("one in use is closed or idle")
				}
			}
			for i, c := range p.idle {
				if isClosed[c] || i > 0 && c.idleSince.Before(p.idle[i-1].idleSince) {
					t.Fatal("an idle one is closed or out of order")
				}
			}
			if len(inUse)+len(p.idle)+len(isClosed) != all {
				t.Fatalf("%d in use, %d idle, %d closed of %d", len(inUse), len(p.idle), len(isClosed), all)
			}
		}
	})
}

// counted notes its closing.
type counted struct {
	net.Conn
	close func()
}

func (c *counted) Close() error {
	c.close()
	return nil
}
