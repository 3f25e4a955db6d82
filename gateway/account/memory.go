package account

import (
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// newLRU returns a cache that keeps the last used entries, up to a positive size. It is not
// safe for concurrent use.
func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, _ := simplelru.NewLRU[K, V](size, nil) // fails only for a size that is not positive
	return l
}

// fingerprints holds the fingerprints of the hashes of all keys: a sorted list, and those
// added since it was sorted. It is not safe for concurrent use.
type fingerprints struct {
	sorted []uint64
	recent map[uint64]struct{}
}

func newFingerprints(values []uint64) *fingerprints {
	slices.Sort(values)
	return &fingerprints{sorted: values, recent: map[uint64]struct{}{}}
}

func (p *fingerprints) contains(x uint64) bool {
	if _, ok := p.recent[x]; ok {
		return true
	}
	_, ok := slices.BinarySearch(p.sorted, x)
	return ok
}

// maxRecent bounds the map, which needs several times the memory of the list.
const maxRecent = 1 << 14

func (p *fingerprints) add(x uint64) {
	if p.contains(x) {
		return
	}
	p.recent[x] = struct{}{}
	if len(p.recent) < maxRecent {
		return
	}
	for x := range p.recent {
		p.sorted = append(p.sorted, x)
	}
	slices.Sort(p.sorted)
	clear(p.recent)
}

// bucket is a token bucket.
type bucket struct {
	rate, burst float64 // tokens a second; most tokens
	tokens      float64 // tokens as of updated
	updated     time.Time
}

// allow takes a token, and reports whether there was one.
func (b *bucket) allow(now time.Time) bool {
	b.tokens = min(b.burst, b.tokens+b.rate*max(now.Sub(b.updated).Seconds(), 0))
	b.updated = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// wait returns the time until allow succeeds; 0 if it does now.
func (b *bucket) wait(now time.Time) time.Duration {
	tokens := min(b.burst, b.tokens+b.rate*max(now.Sub(b.updated).Seconds(), 0))
	if tokens >= 1 {
		return 0
	}
	return time.Duration((1 - tokens) / b.rate * float64(time.Second))
}
