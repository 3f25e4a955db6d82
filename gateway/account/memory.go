package account

import (
	"container/list"
	"slices"
	"time"
)

// lru keeps the last used of its entries. It is not safe for concurrent use.
type lru[K comparable, V any] struct {
	max   int
	byKey map[K]*list.Element
	order *list.List // of *entry[K, V], the last used first
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](size int) *lru[K, V] {
	return &lru[K, V]{max: size, byKey: map[K]*list.Element{}, order: list.New()}
}

func (l *lru[K, V]) get(key K) (value V, ok bool) {
	e, ok := l.byKey[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

func (l *lru[K, V]) put(key K, value V) {
	if e, ok := l.byKey[key]; ok {
		e.Value.(*entry[K, V]).value = value
		l.order.MoveToFront(e)
		return
	}
	if l.order.Len() >= l.max {
		last := l.order.Remove(l.order.Back()).(*entry[K, V])
		delete(l.byKey, last.key)
	}
	l.byKey[key] = l.order.PushFront(&entry[K, V]{key, value})
}

// forget drops the entries that a function picks.
func (l *lru[K, V]) forget(pick func(V) bool) {
	for key, e := range l.byKey {
		if pick(e.Value.(*entry[K, V]).value) {
			l.order.Remove(e)
			delete(l.byKey, key)
		}
	}
}

// prints are the beginnings of the hashes of all keys: a sorted list, and those
// that came since it was sorted. It is not safe for concurrent use.
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

// maxFresh bounds what is kept in the map, which takes several times the memory.
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

// bucket lets so many things happen a second, and some more at once.
type bucket struct {
	rate, burst float64
	tokens      float64
	updated     time.Time
}

func (b *bucket) allow(now time.Time) bool {
	b.tokens = min(b.burst, b.tokens+b.rate*max(now.Sub(b.updated).Seconds(), 0))
	b.updated = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// wait is how long it takes until take works; 0: it works now.
func (b *bucket) wait(now time.Time) time.Duration {
	tokens := min(b.burst, b.tokens+b.rate*max(now.Sub(b.updated).Seconds(), 0))
	if tokens >= 1 {
		return 0
	}
	return time.Duration((1 - tokens) / b.rate * float64(time.Second))
}
