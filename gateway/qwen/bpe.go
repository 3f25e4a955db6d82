package qwen

import (
	"math"
	"slices"
)

// bpe encodes pieces. Immutable.
type bpe struct {
	*vocabulary
	trie
}

// A path is the scratch memory of one encoding, and its result. It is not safe for
// concurrent use.
type path struct {
	tokens []uint32 // tokens so far
	dead   []uint64 // bit set of places at which no encoding of the piece has a border
	window []uint32 // tokens of the window of merge
	pairs  []uint32 // merged ids of each token of the window and the next
	steps  int      // iterations of the loops, for tests
}

// searchSteps is the number of iterations for each byte, beside a few spare ones, after
// which search gives up in favour of merge. Language needs less than one; runs of slashes
// would need fourteen.
const searchSteps, spareSteps = 2, 16

// encode stores the BPE encoding of piece in p.tokens. id and n are the longest token that
// piece begins with and its length in bytes. Memory is a fixed amount, 4 bytes for each
// token and a bit for each byte. Time is linear in the bytes.
func (e *bpe) encode(p *path, piece string, id uint32, n int) {
	if !e.search(p, piece, id, n, searchSteps*len(piece)+spareSteps) && !e.merge(p, piece) {
		e.search(p, piece, id, n, math.MaxInt)
	}
}

// search finds the encoding of piece as encode does. After the given number of turns, the
// iterations of its loop, it gives up and returns false.
//
// The invariant of the loop: p.tokens is a valid encoding of piece[:pos], and id is the next
// candidate. A place that leads nowhere is marked dead and not visited again, so each place
// is visited and marked once at most. At each place the candidates are the prefixes of its
// longest token, each tried once. So turns are linear in the bytes.
func (e *bpe) search(p *path, piece string, id uint32, n, turns int) bool {
	p.tokens = p.tokens[:0]
	p.reset(len(piece))
	for pos := 0; ; turns-- {
		if turns == 0 {
			return false
		}
		p.steps++
		end := pos + n
		if p.dead[end/64]&(1<<(end%64)) == 0 && (pos == 0 || e.adjacent(p.tokens[len(p.tokens)-1], id)) {
			p.tokens = append(p.tokens, id)
			if end == len(piece) {
				return true
			}
			pos = end
			id, n = e.longest(piece[pos:])
			continue
		}
		if next := e.shorter[id]; next != noToken {
			id, n = next, e.width(next)
			continue
		}
		// No token fits behind the last one, so that one cannot end here.
		p.dead[pos/64] |= 1 << (pos % 64)
		last := len(p.tokens) - 1
		id, n = p.tokens[last], e.width(p.tokens[last])
		p.tokens = p.tokens[:last]
		pos -= n
	}
}

// reset prepares p for a piece of n bytes: no place in it is dead. For a long piece it makes
// room at once, for text that encodes badly, instead of by doubling.
func (p *path) reset(n int) {
	if n > keptTokens {
		p.tokens = slices.Grow(p.tokens, n/2)
	}
	words := n/64 + 1
	if cap(p.dead) < words {
		p.dead = make([]uint64, words)
		return
	}
	p.dead = p.dead[:words]
	clear(p.dead)
}

// width returns the length of a token in bytes.
func (e *bpe) width(id uint32) int { return int(e.start[id+1] - e.start[id]) }

// adjacent reports whether the bytes of left and right together encode to left, right. They
// do if no merge across their border would have come before one of the merges that build
// the two. adjacent undoes those merges, the latest first. limit bounds the ids of merges
// across the border that come before the one undone last. Of two merges of the same rank
// the left one comes first, as BPE works from left to right.
func (e *bpe) adjacent(left, right uint32) bool {
	limit := uint32(math.MaxUint32)
	for {
		if id, ok := e.pairs.merged(left, right); ok && id < limit {
			return false
		}
		switch {
		case left > right && left >= byteTokens:
			limit = left
			left = e.halves[left][1]
		case right >= byteTokens:
			limit = right + 1
			right = e.halves[right][0]
		case left >= byteTokens:
			limit = left
			left = e.halves[left][1]
		default:
			return true
		}
	}
}
