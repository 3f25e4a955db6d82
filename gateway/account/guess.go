package account

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what is remembered of addresses.
const (
	guessingAddrs = 1 << 14 // whose failures are counted: 3 MB
	provenKeys    = 1 << 15 // pairs of address and key: 6 MB
)

// GuessingError says that too many keys that are not good came from the caller's
// address, so that no more are looked at.
type GuessingError struct {
	RetryAfter time.Duration // until the next one is looked at
}

func (e *GuessingError) Error() string {
	return fmt.Sprintf("too many keys that are not good came from this address: the next one is looked at in %v", e.RetryAfter)
}

// guesses bounds how fast one address may try keys. A failed key takes a token from
// its address's bucket. While that is empty the gateway looks at no key that somebody
// could have guessed: every answer is the same whether the key would have been good.
// Keys that were good from that address before still are. It is safe for concurrent
// use.
type guesses struct {
	mu        sync.Mutex
	perMinute int // and as many at once; 0: without bound
	byAddr    *lru[netip.Addr, *bucket]
	proven    *lru[proof, struct{}]
}

// proof is a key that was good from an address.
type proof struct {
	from netip.Addr
	key  hash
}

func newGuesses() *guesses {
	return &guesses{byAddr: newLRU[netip.Addr, *bucket](guessingAddrs), proven: newLRU[proof, struct{}](provenKeys)}
}

// configure sets how many keys a minute may fail.
func (g *guesses) configure(perMinute int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute != perMinute {
		g.perMinute = perMinute
		g.byAddr = newLRU[netip.Addr, *bucket](guessingAddrs)
	}
}

// failed counts a key that was not good.
func (g *guesses) failed(from netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute == 0 {
		return
	}
	b, ok := g.byAddr.get(from)
	if !ok {
		n := float64(g.perMinute)
		b = &bucket{rate: n / 60, burst: n, left: n, at: now}
		g.byAddr.put(from, b)
	}
	b.take(now)
}

// locked says for how long no key of an address is looked at; 0: the next one is.
func (g *guesses) locked(from netip.Addr, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.byAddr.get(from)
	if !ok {
		return 0
	}
	return b.wait(now)
}

// prove remembers that a key was good from an address.
func (g *guesses) prove(from netip.Addr, key hash) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.proven.put(proof{from, key}, struct{}{})
}

// isProven reports whether a key was good from an address before.
func (g *guesses) isProven(from netip.Addr, key hash) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.proven.get(proof{from, key})
	return ok
}

// network is what one caller has of an address: all of an IPv4 address, of an IPv6
// address the /64.
func network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil { // there is no address
		return netip.Prefix{}
	}
	return p
}

// anonymous is the user in open mode: the address, or of IPv6 the network.
func anonymous(from netip.Addr) string {
	p := network(from)
	if p.IsSingleIP() || !p.IsValid() {
		return from.Unmap().String()
	}
	return p.String()
}
