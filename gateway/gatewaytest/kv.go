package gatewaytest

import "container/list"

// blockTokens is vLLM's block size.
const blockTokens = 16

// kvCache is the block pool: live sequences hold blocks, full blocks of a
// prompt are shared by the hash of everything before them, and blocks nobody
// holds stay as prefix cache until they are needed. Usage counts held blocks
// only, as vLLM's gauge does, so it falls to 0 when idle.
type kvCache struct {
	total   int
	private int // held by one sequence, not shared
	shared  int // held by at least one sequence, in blocks
	blocks  map[uint64]*kvBlock
	idle    *list.List // of *kvBlock, least recently used first
}

type kvBlock struct {
	hash uint64
	refs int
	idle *list.Element
}

func newKVCache(total int) *kvCache {
	return &kvCache{total: total, blocks: map[uint64]*kvBlock{}, idle: list.New()}
}

func (k *kvCache) used() int { return k.private + k.shared }

func (k *kvCache) usage() float64 { return float64(k.used()) / float64(k.total) }

// room makes n blocks free, evicting the prefix cache; false if they are held.
func (k *kvCache) room(n int) bool {
	if k.used()+n > k.total {
		return false
	}
	for k.used()+k.idle.Len()+n > k.total {
		b := k.idle.Remove(k.idle.Front()).(*kvBlock)
		delete(k.blocks, b.hash)
	}
	return true
}

// hit counts the leading blocks that are already there.
func (k *kvCache) hit(hashes []uint64) int {
	for i, h := range hashes {
		if k.blocks[h] == nil {
			return i
		}
	}
	return len(hashes)
}

// acquire holds the blocks of a prompt and those private blocks its rest
// needs. It tells how many leading blocks were cached, or false and holds
// nothing.
func (k *kvCache) acquire(hashes []uint64, private int) (cached int, ok bool) {
	cached = k.hit(hashes)
	revived := 0
	for _, h := range hashes {
		if b := k.blocks[h]; b == nil || b.refs == 0 {
			revived++
		}
	}
	if k.used()+revived+private > k.total {
		return 0, false
	}
	for _, h := range hashes {
		b := k.blocks[h]
		if b == nil {
			k.room(1)
			b = &kvBlock{hash: h}
			k.blocks[h] = b
		}
		if b.idle != nil {
			k.idle.Remove(b.idle)
			b.idle = nil
		}
		if b.refs == 0 {
			k.shared++
		}
		b.refs++
	}
	k.room(private)
	k.private += private
	return cached, true
}

// grow takes one more private block.
func (k *kvCache) grow() bool {
	if !k.room(1) {
		return false
	}
	k.private++
	return true
}

// release frees blocks; made are the hashes of the full blocks among the
// private ones, which stay as prefix cache.
func (k *kvCache) release(hashes []uint64, private int, made []uint64) {
	k.private -= private
	for _, h := range hashes {
		b := k.blocks[h]
		b.refs--
		if b.refs == 0 {
			k.shared--
			b.idle = k.idle.PushBack(b)
		}
	}
	for _, h := range made {
		if k.blocks[h] == nil && k.room(1) {
			b := &kvBlock{hash: h}
			b.idle = k.idle.PushBack(b)
			k.blocks[h] = b
		}
	}
}

// forget drops the prefix cache (sleep, reset).
func (k *kvCache) forget() {
	for e := k.idle.Front(); e != nil; e = k.idle.Front() {
		delete(k.blocks, k.idle.Remove(e).(*kvBlock).hash)
	}
}

// blockHashes chains a hash over the full blocks of ids, beginning from salt.
func blockHashes(salt uint64, ids []uint32) []uint64 {
	hashes := make([]uint64, 0, len(ids)/blockTokens)
	h := salt ^ 14695981039346656037
	for i, id := range ids {
		for shift := 0; shift < 32; shift += 8 {
			h = (h ^ uint64(byte(id>>shift))) * 1099511628211
		}
		if (i+1)%blockTokens == 0 {
			hashes = append(hashes, h)
		}
	}
	return hashes
}

func saltOf(s string) uint64 {
	h := uint64(0)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
