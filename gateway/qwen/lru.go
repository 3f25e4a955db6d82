package qwen

import (
	"hash/maphash"
	"sync"
)

// shardCount is the number of locks of the cache, a power of two. A hit holds one for the
// time of a map lookup, so a few are enough.
const shardCount = 16

// A key is a hash of 128 bits and the only identity of a message. With a million messages
// in the cache, the chance that a new one collides is below 2^-100. The seeds are secret and
// random in each process, so nobody can search for a collision.
type key struct{ a, b uint64 }

// withDialect returns the key of the same bytes in a dialect.
func (k key) withDialect(d Dialect) key { return key{k.a, k.b + uint64(d)} }

// A cache keeps the entries of the latest messages. It is sharded, and each shard evicts by
// the clock algorithm, an approximation of LRU in which a hit writes one bit. It starts no
// goroutine and is safe for concurrent use.
type cache struct {
	seeds  [2]maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu    sync.Mutex
	index map[key]int32 // into slots
	slots []slot
	limit int // slots
	hand  int // next slot that the search for a victim visits
	_     [64]byte
}

type slot struct {
	key   key
	entry entry
	used  bool // since the hand last passed
}

func newCache(entries int) *cache {
	c := &cache{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	for i := range c.shards {
		c.shards[i].limit = (max(entries, 0) + shardCount - 1) / shardCount
		c.shards[i].index = make(map[key]int32)
	}
	return c
}

func (c *cache) key(b []byte) key {
	return key{maphash.Bytes(c.seeds[0], b), maphash.Bytes(c.seeds[1], b)}
}

func (c *cache) load(k key) (entry, bool) {
	s := &c.shards[k.a%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[k]
	if !ok {
		return entry{}, false
	}
	s.slots[i].used = true
	return s.slots[i].entry, true
}

func (c *cache) store(k key, e entry) {
	s := &c.shards[k.a%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.index[k]; ok {
		s.slots[i].entry = e
		return
	}
	if s.limit == 0 {
		return
	}
	if len(s.slots) < s.limit {
		s.index[k] = int32(len(s.slots))
		s.slots = append(s.slots, slot{key: k, entry: e})
		return
	}
	for s.slots[s.hand].used {
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.slots)
	}
	delete(s.index, s.slots[s.hand].key)
	s.index[k] = int32(s.hand)
	s.slots[s.hand] = slot{key: k, entry: e}
	s.hand = (s.hand + 1) % len(s.slots)
}
