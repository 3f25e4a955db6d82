package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A process has so many file descriptors, and one that has none left can neither take a
// connection nor reach a backend, its database or its journal. So callers' connections
// are bounded to half of them: each may need another one to a backend. Operators'
// connections are few, and some descriptors are held for them, which are let go where
// there are no others: who looks for the reason of trouble gets in.

const (
	opsConns      = 64 // connections of operators at a time
	spareFiles    = 8  // descriptors that are held for them
	leastFront    = 16 // connections of callers, however few descriptors there are
	saidFullEvery = time.Minute
)

// frontConns returns how many connections of callers a process with so many descriptors
// takes at a time; 0: any number.
func frontConns(descriptors uint64) int {
	if descriptors == 0 {
		return 0
	}
	return max(int(min(descriptors, 1<<30)/2)-opsConns-spareFiles, leastFront)
}

// limitListener bounds the connections of a listener that are open at a time. Those
// beyond wait to be accepted.
type limitListener struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	close  sync.Once
	full   func() // is called when a connection has to wait; may be nil
}

// newLimitListener bounds l to most connections.
func newLimitListener(l net.Listener, limit int, full func()) *limitListener {
	return &limitListener{Listener: l, places: make(chan struct{}, limit), closed: make(chan struct{}), full: full}
}

// Accept waits for a place, and then for the next connection.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	default:
		if l.full != nil {
			l.full()
		}
		select {
		case l.places <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &closingConn{Conn: c, closed: func() { <-l.places }}, nil
}

// Close ends the listener, and Accept too.
func (l *limitListener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// spareListener holds descriptors that it lets go where a connection cannot be accepted
// for want of one.
type spareListener struct {
	net.Listener
	mu    sync.Mutex
	spare []*os.File
}

// newSpareListener holds descriptors for l.
func newSpareListener(l net.Listener) *spareListener {
	s := &spareListener{Listener: l}
	s.refill()
	return s
}

// refill takes descriptors until all are held, or there are none.
func (l *spareListener) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.spare) < spareFiles {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		l.spare = append(l.spare, f)
	}
}

// release lets one descriptor go; false: none is held.
func (l *spareListener) release() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.spare) == 0 {
		return false
	}
	last := len(l.spare) - 1
	l.spare[last].Close()
	l.spare = l.spare[:last]
	return true
}

// Accept waits for the next connection.
func (l *spareListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			return &closingConn{Conn: c, closed: l.refill}, nil
		}
		// Another may be faster to take what is let go, hence more than one is held.
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) || !l.release() {
			return nil, err
		}
	}
}

// Close ends the listener and lets all descriptors go.
func (l *spareListener) Close() error {
	for l.release() {
	}
	return l.Listener.Close()
}

// closingConn is a connection that tells of its end, once.
type closingConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

// Close closes the connection.
func (c *closingConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.closed)
	return err
}

// CloseWrite says that nothing more will come.
func (c *closingConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// bound bounds the listeners of the gateway to what its descriptors allow.
func (d *daemon) bound(descriptors uint64) {
	if limit := frontConns(descriptors); limit > 0 {
		d.front = newLimitListener(d.front, limit, sayFull(d.log, limit, descriptors))
	}
	if d.ops != nil {
		d.ops = newLimitListener(newSpareListener(d.ops), opsConns, nil)
	}
}

// sayFull logs that callers' connections wait, once a minute.
func sayFull(log *slog.Logger, limit int, descriptors uint64) func() {
	var last atomic.Int64
	return func() {
		now, previous := time.Now().UnixNano(), last.Load()
		if (previous == 0 || now-previous >= int64(saidFullEvery)) && last.CompareAndSwap(previous, now) {
			log.Warn("callers' connections wait: as many are open as the file descriptors allow; raise the limit (ulimit -n, LimitNOFILE, ulimits.nofile)",
				"connections", limit, "descriptors", descriptors)
		}
	}
}
