package qwen

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

// A trie finds the longest token that a text begins with. It is a double array (Aoe 1989):
// the child of slot p for byte b is slot base(p) xor b if that slot has p as its parent, so
// a step is one load. Immutable.
type trie struct {
	slots   []trieSlot
	shorter []uint32 // longest token that is a proper prefix of the token, by id, or noToken
}

// A trieSlot packs parent (21 bits), base (21 bits) and token plus one (18 bits). A free
// slot is all ones: no slot has that number, so it is nobody's child.
type trieSlot uint64

const (
	noToken      = ^uint32(0) // no token
	slotBits     = 21
	slotMask     = 1<<slotBits - 1
	tokenBits    = 18
	tokenMask    = 1<<tokenBits - 1
	baseShift    = tokenBits
	parentShift  = tokenBits + slotBits
	freeSlot     = ^trieSlot(0)
	trieBlock    = 256 // slots that the children of one base can occupy
	wideNode     = 4   // children from which on a node is placed before the others
	openBlocks   = 4   // blocks at the end that are searched for room for two or more children
	expectedTrie = 333000
)

func (s trieSlot) parent() uint32 { return uint32(s >> parentShift) }
func (s trieSlot) base() uint32   { return uint32(s>>baseShift) & slotMask }
func (s trieSlot) token() uint32  { return uint32(s & tokenMask) }

// longest returns the longest token that s begins with and its length in bytes. s is not
// empty; each byte is a token, so there is one.
func (t *trie) longest(s string) (id uint32, n int) {
	slots := t.slots
	current, slot := uint32(0), slots[0]
	found := uint32(0)
	for i := range len(s) {
		child := slot.base() ^ uint32(s[i])
		slot = slots[child]
		if slot.parent() != current {
			break
		}
		current = child
		if token := slot.token(); token != 0 {
			found, n = token, i+1
		}
	}
	return found - 1, n
}

// trieBuilder collects the nodes of a trie, then finds each a base.
type trieBuilder struct {
	nodes []trieNode
	trie  trie

	free []uint64 // bit set of the free slots
	low  int      // first word of free that may have a bit set
}

type trieNode struct {
	token    uint32 // noToken if the node is only a prefix
	first    uint32 // first child: the children are nodes[first:first+children]
	base     uint32
	children uint16
	label    byte
}

func newTrie(v *vocabulary) trie {
	b := &trieBuilder{nodes: make([]trieNode, 1, expectedTrie)}
	b.trie.shorter = make([]uint32, len(v.halves))
	b.nodes[0].token = noToken
	sorted := sortedTokens(v)
	b.expand(v, sorted, 0, 0, noToken)
	b.place()
	b.fill(0, 0, 0)
	return b.trie
}

// sortedTokens returns the ids in the order of their bytes.
func sortedTokens(v *vocabulary) []uint32 {
	type keyed struct {
		head uint64 // first eight bytes, so that most comparisons stay in registers
		id   uint32
	}
	tokens := make([]keyed, len(v.halves))
	var head [8]byte
	for id := range tokens {
		clear(head[:])
		copy(head[:], v.token(uint32(id)))
		tokens[id] = keyed{binary.BigEndian.Uint64(head[:]), uint32(id)}
	}
	slices.SortFunc(tokens, func(a, b keyed) int {
		if c := cmp.Compare(a.head, b.head); c != 0 {
			return c
		}
		return bytes.Compare(v.token(a.id), v.token(b.id))
	})
	ids := make([]uint32, len(tokens))
	for i, t := range tokens {
		ids[i] = t.id
	}
	return ids
}

// expand adds the nodes below node, which represents the first depth bytes that all of
// sorted share. shorter is the last token on the path to it.
func (b *trieBuilder) expand(v *vocabulary, sorted []uint32, node uint32, depth int, shorter uint32) {
	if len(sorted) > 0 && len(v.token(sorted[0])) == depth {
		id := sorted[0]
		b.nodes[node].token = id
		b.trie.shorter[id] = shorter
		shorter, sorted = id, sorted[1:]
	}
	first := uint32(len(b.nodes))
	var ends [256]int
	count := 0
	for i := 0; i < len(sorted); count++ {
		label := v.token(sorted[i])[depth]
		for i < len(sorted) && v.token(sorted[i])[depth] == label {
			i++
		}
		ends[count] = i
		b.nodes = append(b.nodes, trieNode{token: noToken, label: label})
	}
	b.nodes[node].first, b.nodes[node].children = first, uint16(count)
	begin := 0
	for i, end := range ends[:count] {
		b.expand(v, sorted[begin:end], first+uint32(i), depth+1, shorter)
		begin = end
	}
}

// place finds a base for every node. Wide nodes come first, while there is room. The others
// fill the holes in the order of the trie, so that neighbours share cache lines.
func (b *trieBuilder) place() {
	b.addBlock()
	b.occupy(0) // the root's own slot
	var wide []uint32
	for i, n := range b.nodes {
		if n.children >= wideNode {
			wide = append(wide, uint32(i))
		}
	}
	slices.SortStableFunc(wide, func(x, y uint32) int {
		return cmp.Compare(b.nodes[y].children, b.nodes[x].children)
	})
	for _, i := range wide {
		b.placeNode(&b.nodes[i])
	}
	for i := range b.nodes {
		if n := b.nodes[i].children; n > 0 && n < wideNode {
			b.placeNode(&b.nodes[i])
		}
	}
	b.trie.slots = make([]trieSlot, 64*len(b.free))
	for i := range b.trie.slots {
		b.trie.slots[i] = freeSlot
	}
}

// placeNode finds a base for n at which the slots of all its children are free.
func (b *trieBuilder) placeNode(n *trieNode) {
	children := b.nodes[n.first : n.first+uint32(n.children)]
	word := b.low
	if n.children > 1 {
		word = max(word, len(b.free)-openBlocks*trieBlock/64)
	}
	for ; ; word++ {
		if word == len(b.free) {
			b.addBlock()
		}
		if b.free[word] == 0 && word == b.low {
			b.low++
		}
		for left := b.free[word]; left != 0; left &= left - 1 {
			base := uint32(word*64+bits.TrailingZeros64(left)) ^ uint32(children[0].label)
			if b.fits(base, children[1:]) {
				n.base = base
				for _, c := range children {
					b.occupy(base ^ uint32(c.label))
				}
				return
			}
		}
	}
}

func (b *trieBuilder) fits(base uint32, children []trieNode) bool {
	for _, c := range children {
		slot := base ^ uint32(c.label)
		if b.free[slot/64]&(1<<(slot%64)) == 0 {
			return false
		}
	}
	return true
}

// addBlock adds a block of free slots.
func (b *trieBuilder) addBlock() {
	for range trieBlock / 64 {
		b.free = append(b.free, ^uint64(0))
	}
}

func (b *trieBuilder) occupy(slot uint32) { b.free[slot/64] &^= 1 << (slot % 64) }

// fill writes node and all nodes below it to their slots.
func (b *trieBuilder) fill(node, slot, parent uint32) {
	n := b.nodes[node]
	token := n.token + 1 // noToken becomes 0
	b.trie.slots[slot] = trieSlot(parent)<<parentShift | trieSlot(n.base)<<baseShift | trieSlot(token)
	for i := range uint32(n.children) {
		b.fill(n.first+i, n.base^uint32(b.nodes[n.first+i].label), slot)
	}
}
