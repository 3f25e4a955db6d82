package qwen

// Bounds of merging.
const (
	mergeWindow = 512 // bytes merged at a time
	openEnd     = 192 // bytes at the end of a window whose tokens may depend on the next bytes
	spareStarts = 8   // windows that may be repeated, beside one for each window
)

// merge stores the BPE encoding of piece in p.tokens by the definition of BPE: it merges
// the pairs of the lowest rank, from the left, until no pair merges. That takes about the
// same time for every text.
//
// It works on windows, since a round of merging reads all tokens of its text. It keeps the
// tokens of each window except those at the end, and the next window begins behind them.
// That is exact: tokens of which each is adjacent to the next are an encoding (see
// [bpe.adjacent]), and a text has only one. Where the tokens at the border are not
// adjacent, the next window begins a token earlier. No text is known for which that happens
// often; merge gives up then and returns false.
func (e *bpe) merge(p *path, piece string) bool {
	p.tokens = p.tokens[:0]
	starts := spareStarts
	for pos := 0; ; {
		end := min(pos+mergeWindow, len(piece))
		e.mergeAll(p, piece[pos:end])
		if last := len(p.tokens) - 1; last >= 0 && !e.adjacent(p.tokens[last], p.window[0]) {
			pos -= e.width(p.tokens[last])
			p.tokens = p.tokens[:last]
			if starts--; starts < 0 {
				return false
			}
			continue
		}
		starts++
		keep := end
		if end < len(piece) {
			keep -= openEnd
		}
		for _, id := range p.window {
			if pos+e.width(id) > keep {
				break
			}
			p.tokens = append(p.tokens, id)
			pos += e.width(id)
		}
		if pos == len(piece) {
			return true
		}
	}
}

// mergeAll stores the encoding of s in p.window.
func (e *bpe) mergeAll(p *path, s string) {
	tokens, pairs := p.window[:0], p.pairs[:0] // pairs: the merged id of each token and the next, or noToken
	for i := range len(s) {
		id, _ := e.longest(s[i : i+1])
		tokens, pairs = append(tokens, id), append(pairs, noToken)
		if i > 0 {
			pairs[i-1] = e.pair(tokens[i-1], id)
		}
	}
	for {
		lowest, pos := noToken, 0
		for i, id := range pairs {
			if id < lowest {
				lowest, pos = id, i
			}
		}
		if lowest == noToken {
			break
		}
		kept := pos
		for ; pos < len(tokens); kept++ {
			p.steps++
			if pairs[pos] == lowest {
				tokens[kept], pairs[kept] = lowest, noToken
				pos += 2
			} else {
				tokens[kept], pairs[kept] = tokens[pos], pairs[pos]
				pos++
			}
			if kept > 0 && (tokens[kept] == lowest || tokens[kept-1] == lowest) {
				pairs[kept-1] = e.pair(tokens[kept-1], tokens[kept])
			}
		}
		tokens, pairs = tokens[:kept], pairs[:kept]
	}
	p.window, p.pairs = tokens, pairs
}

// pair returns the token that left and right merge to, or noToken.
func (e *bpe) pair(left, right uint32) uint32 {
	if id, ok := e.pairs.merged(left, right); ok {
		return id
	}
	return noToken
}
