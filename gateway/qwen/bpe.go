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

// A path is the scratch memory of one encoding, and its result; not safe for concurrent use.
type path struct {
	tokens []uint32 // the tokens so far
	dead   []uint64 // one bit a place: no encoding of the piece has a border there
	window []uint32 // of merge: the tokens of the window
	pairs  []uint32 // of merge: what each of them and the next merge to
	steps  int      // turns of the loops, for tests
}

// searchSteps is how many turns a byte the search may take, beside a few, before merging
// takes over. Language takes less than one; runs of slashes would take fourteen.
const searchSteps, spareSteps = 2, 16

// encode leaves the BPE encoding of piece in p.tokens. id and n are the longest token that
// piece begins with and its length in bytes. Memory is 4 bytes a token and a bit a byte,
// and a fixed amount. Time is linear in the bytes.
func (e *bpe) encode(p *path, piece string, id uint32, n int) {
	if !e.search(p, piece, id, n, searchSteps*len(piece)+spareSteps) && !e.merge(p, piece) {
		e.search(p, piece, id, n, math.MaxInt)
	}
}

// search finds the encoding of piece as encode does, or gives up after so many turns and
// returns false.
//
// The loop holds a path of tokens up to at that is a valid encoding of piece[:at] and
// tries to add id. A place that turns out to lead nowhere is marked dead and not entered
// again, so each place is entered and killed once at most, and at each the candidates, the
// tokens that are prefixes of its longest, are gone through once: turns are linear in the
// bytes.
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
		// Nothing fits after the last token: it cannot end here.
		p.dead[pos/64] |= 1 << (pos % 64)
		last := len(p.tokens) - 1
		id, n = p.tokens[last], e.width(p.tokens[last])
		p.tokens = p.tokens[:last]
		pos -= n
	}
}

// alive prepares p for a piece of n bytes: no place in it is dead. For a long piece it makes
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

// width is the length of a token in bytes.
func (e *bpe) width(id uint32) int { return int(e.start[id+1] - e.start[id]) }

// adjacent reports whether the bytes of left and right together encode to left, right:
// whether at no stage of building the two would a merge across their border have come
// first. It undoes the merges on both sides, the latest first. before bounds the ids of
// merges across the border that would have come before the one undone last; a merge of the
// same rank comes first on the left, as BPE works left to right.
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
