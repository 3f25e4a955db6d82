package account

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Capacities of the memory of addresses.
const (
	limitedAddrs = 1 << 14 // addresses whose failures are counted: 3 MB
	trustedKeys  = 1 << 15 // pairs of address and key: 6 MB
)

// GuessingError reports that too many invalid keys came from the caller's address, so that
// the gateway checks no more of them for a while.
type GuessingError struct {
	RetryAfter time.Duration // time until the next key is checked
}

func (e *GuessingError) Error() string {
	return fmt.Sprintf("too many invalid keys came from this address: try again in %v", e.RetryAfter)
}

// guessLimiter limits how fast one address may try keys. A failed key takes a token from
// the bucket of its address. While the bucket is empty, the gateway checks no key that
// somebody could have guessed, so the answer is the same for valid keys. Keys that were
// used from that address before are still accepted. It is safe for concurrent use.
type guessLimiter struct {
	mu        sync.Mutex
	perMinute int // rate and burst; 0 for no limit
	byAddr    *simplelru.LRU[netip.Addr, *bucket]
	trusted   *simplelru.LRU[addrKey, struct{}]
}

// addrKey is a key that was valid from an address.
type addrKey struct {
	addr netip.Addr
	key  hash
}

func newGuessLimiter() *guessLimiter {
	return &guessLimiter{byAddr: newLRU[netip.Addr, *bucket](limitedAddrs), trusted: newLRU[addrKey, struct{}](trustedKeys)}
}

// configure sets the number of keys that may fail in a minute.
func (g *guessLimiter) configure(perMinute int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute != perMinute {
		g.perMinute = perMinute
		g.byAddr = newLRU[netip.Addr, *bucket](limitedAddrs)
	}
}

// recordFailure counts an invalid key.
func (g *guessLimiter) recordFailure(addr netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.perMinute == 0 {
		return
	}
	b, ok := g.byAddr.Get(addr)
	if !ok {
		n := float64(g.perMinute)
		b = &bucket{rate: n / 60, burst: n, tokens: n, updated: now}
		g.byAddr.Add(addr, b)
	}
	b.allow(now)
}

// lockout returns the time for which no key of an address is checked; 0 if the next one
// is.
func (g *guessLimiter) lockout(addr netip.Addr, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.byAddr.Get(addr)
	if !ok {
		return 0
	}
	return b.wait(now)
}

// trust remembers that a key was valid from an address.
func (g *guessLimiter) trust(addr netip.Addr, key hash) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trusted.Add(addrKey{addr, key}, struct{}{})
}

// isTrusted reports whether a key was valid from an address before.
func (g *guessLimiter) isTrusted(addr netip.Addr, key hash) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.trusted.Get(addrKey{addr, key})
	return ok
}

// network returns the addresses that one caller has: a single IPv4 address, or the /64 of
// an IPv6 address.
func network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil { // the address is the zero Addr
		return netip.Prefix{}
	}
	return p
}

// anonymousUser returns the user of open mode: the address, or its network for IPv6.
func anonymousUser(addr netip.Addr) string {
	p := network(addr)
	if p.IsSingleIP() || !p.IsValid() {
		return addr.Unmap().String()
	}
	return p.String()
}
