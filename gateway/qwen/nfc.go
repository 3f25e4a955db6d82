package qwen

import "unicode/utf8"

// countingSortFrom is the length of a run of combining marks, in characters, from which on
// counting sort beats insertion sort. Real text has runs of one to three. Only hostile text
// has thousands, for which insertion sort would be quadratic.
const countingSortFrom = 32

// A character packs a code point into the low 24 bits and its canonical combining class
// above them.
type character uint32

func newCharacter(r rune, mark uint8) character { return character(r) | character(mark)<<24 }

func (c character) rune() rune  { return rune(c & (1<<24 - 1)) }
func (c character) mark() uint8 { return uint8(c >> 24) }

// A normalizer brings text to NFC. It holds the scratch memory for that and is not safe for
// concurrent use.
type normalizer struct {
	table   *properties
	out     []byte
	cluster []character
	sorted  []character
}

// isNFC reports whether s is valid UTF-8 and certainly NFC. It may be false for a text that
// is NFC.
func (p *properties) isNFC(s string) bool {
	i := 0
	for ; len(s)-i >= 8; i += 8 {
		b := s[i : i+8]
		word := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
			uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		if word&0x8080808080808080 != 0 {
			return utf8.ValidString(s[i:]) && p.isOrdered(s[i:])
		}
	}
	for ; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return utf8.ValidString(s[i:]) && p.isOrdered(s[i:])
		}
	}
	return true
}

// isOrdered is isNFC for valid UTF-8.
func (p *properties) isOrdered(s string) bool {
	last := uint8(0)
	for i := 0; i < len(s); {
		if b := s[i]; p.plain[b] {
			last = 0
			i += width(b)
			continue
		}
		r, n := decode(s, i)
		i += n
		v := p.lookup(r)
		if v&mayChange != 0 || v.mark() != 0 && v.mark() < last {
			return false
		}
		last = v.mark()
	}
	return true
}

// width returns the length in bytes of a character of valid UTF-8 with this first byte.
func width(lead byte) int {
	switch {
	case lead < 0x80:
		return 1
	case lead < 0xe0:
		return 2
	case lead < 0xf0:
		return 3
	}
	return 4
}

// decode is utf8.DecodeRuneInString without its checks, for valid text.
func decode(s string, i int) (rune, int) {
	b := s[i]
	switch {
	case b < 0x80:
		return rune(b), 1
	case b < 0xe0:
		return rune(b&0x1f)<<6 | rune(s[i+1]&0x3f), 2
	case b < 0xf0:
		_ = s[i+2]
		return rune(b&0x0f)<<12 | rune(s[i+1]&0x3f)<<6 | rune(s[i+2]&0x3f), 3
	}
	_ = s[i+3]
	return rune(b&0x07)<<18 | rune(s[i+1]&0x3f)<<12 | rune(s[i+2]&0x3f)<<6 | rune(s[i+3]&0x3f), 4
}

// normalize returns the NFC of s with each invalid byte as U+FFFD. The result is valid
// until the next call. It works on clusters of a settled character and the unsettled ones
// behind it. No rule of NFC crosses the beginning of a cluster.
func (n *normalizer) normalize(s string) []byte {
	n.out, n.cluster = n.out[:0], n.cluster[:0]
	for _, r := range s { // an invalid byte is U+FFFD here
		v := n.table.lookup(r)
		if v.settled() {
			n.flush()
		}
		n.cluster = append(n.cluster, newCharacter(r, v.mark()))
	}
	n.flush()
	return n.out
}

// flush writes the cluster in NFC and empties it.
func (n *normalizer) flush() {
	if len(n.cluster) > 1 || len(n.cluster) == 1 && !n.table.lookup(n.cluster[0].rune()).settled() {
		n.decompose()
		n.order()
		n.compose()
	}
	for _, c := range n.cluster {
		n.out = utf8.AppendRune(n.out, c.rune())
	}
	n.cluster = n.cluster[:0]
}

// decompose replaces each character of the cluster by its full decomposition.
func (n *normalizer) decompose() {
	n.sorted = append(n.sorted[:0], n.cluster...)
	n.cluster = n.cluster[:0]
	for _, c := range n.sorted {
		n.decomposeRune(c.rune())
	}
}

func (n *normalizer) decomposeRune(r rune) {
	if s := r - hangulBase; s >= 0 && s < hangulCount {
		n.cluster = append(n.cluster,
			newCharacter(leadBase+s/(vowelCount*tailCount), 0),
			newCharacter(vowelBase+s%(vowelCount*tailCount)/tailCount, 0))
		if tail := s % tailCount; tail > 0 {
			n.cluster = append(n.cluster, newCharacter(tailBase+tail, 0))
		}
		return
	}
	parts, ok := n.table.decomposed[r]
	if !ok {
		n.cluster = append(n.cluster, newCharacter(r, n.table.lookup(r).mark()))
		return
	}
	for _, part := range parts { // the recursion is three deep at most
		n.decomposeRune(part)
	}
}

// order sorts each run of marks by combining class; the sort is stable.
func (n *normalizer) order() {
	for i := 0; i < len(n.cluster); {
		if n.cluster[i].mark() == 0 {
			i++
			continue
		}
		end := i + 1
		for end < len(n.cluster) && n.cluster[end].mark() != 0 {
			end++
		}
		n.sort(n.cluster[i:end])
		i = end
	}
}

func (n *normalizer) sort(run []character) {
	if len(run) < countingSortFrom {
		for i := 1; i < len(run); i++ {
			for j := i; j > 0 && run[j].mark() < run[j-1].mark(); j-- {
				run[j], run[j-1] = run[j-1], run[j]
			}
		}
		return
	}
	n.sorted = append(n.sorted[:0], run...)
	var offsets [257]int
	for _, c := range run {
		offsets[int(c.mark())+1]++
	}
	for i := 1; i < len(offsets); i++ {
		offsets[i] += offsets[i-1]
	}
	for _, c := range n.sorted {
		run[offsets[c.mark()]] = c
		offsets[c.mark()]++
	}
}

// compose joins each character of the cluster to the last starter before it if they have a
// composite and no character between them blocks it.
func (n *normalizer) compose() {
	const nothing = -1
	starter, last, kept := nothing, nothing, 0
	for _, c := range n.cluster {
		if starter != nothing && last < int(c.mark()) {
			if r, ok := n.table.compose(n.cluster[starter].rune(), c.rune()); ok {
				n.cluster[starter] = newCharacter(r, 0)
				continue
			}
		}
		if c.mark() == 0 {
			starter, last = kept, nothing
		} else {
			last = int(c.mark())
		}
		n.cluster[kept] = c
		kept++
	}
	n.cluster = n.cluster[:kept]
}

func (p *properties) compose(a, b rune) (rune, bool) {
	if l, v := a-leadBase, b-vowelBase; l >= 0 && l < leadCount && v >= 0 && v < vowelCount {
		return hangulBase + (l*vowelCount+v)*tailCount, true
	}
	if s, t := a-hangulBase, b-tailBase; s >= 0 && s < hangulCount && s%tailCount == 0 && t > 0 && t < tailCount {
		return a + t, true
	}
	r, ok := p.composed[[2]rune{a, b}]
	return r, ok
}
