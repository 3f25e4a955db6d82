package account

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what is remembered of addresses.
const (
	limitedAddrs = 1 << 14 // whose failures are counted: 3 MB
	trustedKeys  = 1 << 15 // pairs of address and key: 6 MB
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
type guessLimiter struct {
	mu        sync.Mutex
	perMinute int // and as many at once; 0: without bound
	byAddr    *lru[netip.Addr, *bucket]
	trusted   *lru[addrKey, struct{}]
}

// proof is a key that was good from an address.
type addrKey struct {
	addr netip.Addr
	key  hash
}

func newGuessLimiter() *guessLimiter {
	return &guessLimiter{byAddr: newLRU[netip.Addr, *bucket](limitedAddrs), trusted: newLRU[addrKey, struct{}](trustedKeys)}
}

// configure sets how many keys a minute may fail.
func (g *guessLimiter) configure(perMinute int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute != perMinute {
		g.perMinute = perMinute
		g.byAddr = newLRU[netip.Addr, *bucket](limitedAddrs)
	}
}

// failed counts a key that was not good.
func (g *guessLimiter) recordFailure(addr netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute == 0 {
		return
	}
	b, ok := g.byAddr.get(addr)
	if !ok {
		n := float64(g.perMinute)
		b = &bucket{rate: n / 60, burst: n, tokens: n, updated: now}
		g.byAddr.put(addr, b)
	}
	b.allow(now)
}

// locked says for how long no key of an address is looked at; 0: the next one is.
func (g *guessLimiter) lockout(addr netip.Addr, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.byAddr.get(addr)
	if !ok {
		return 0
	}
	return b.wait(now)
}

// prove remembers that a key was good from an address.
func (g *guessLimiter) trust(addr netip.Addr, key hash) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trusted.put(addrKey{addr, key}, struct{}{})
}

// isProven reports whether a key was good from an address before.
func (g *guessLimiter) isTrusted(addr netip.Addr, key hash) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.trusted.get(addrKey{addr, key})
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
func anonymousUser(addr netip.Addr) string {
	p := network(addr)
	if p.IsSingleIP() || !p.IsValid() {
		return addr.Unmap().String()
	}
	return p.String()
}
