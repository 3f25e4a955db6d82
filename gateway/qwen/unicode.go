package qwen

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	_ "embed"
)

//go:embed unicode.txt
var unicodeTable string

// A class is a kind of character that the splitting pattern distinguishes.
type class uint8

const (
	symbol class = iota
	letter
	number
	space   // white space other than line ends
	lineEnd // carriage return or line feed
)

// A property packs the properties of one code point: its class in the low three bits, then
// whether NFC may change it or join it to the character before it, then its combining class
// in the high byte.
type property uint16

const (
	classMask   property = 0x07
	mayChange   property = 0x08
	markShift            = 8
	blockShift           = 7 // code points in a block, as a power of two
	blockSize            = 1 << blockShift
	unsettled            = mayChange | 0xff<<markShift
	hangulBase           = 0xac00
	hangulCount          = 11172
	leadBase             = 0x1100
	leadCount            = 19
	vowelBase            = 0x1161
	vowelCount           = 21
	tailBase             = 0x11a7 // one before the first tail, for no tail
	tailCount            = 28     // including no tail
)

func (p property) class() class { return class(p & classMask) }

// mark returns the canonical combining class; only combining marks have another than 0.
func (p property) mark() uint8 { return uint8(p >> markShift) }

// settled reports whether NFC leaves p's character unchanged in every context and nothing
// behind it can change the characters before it.
func (p property) settled() bool { return p&unsettled == 0 }

// properties is the reference tokenizer's view of Unicode. Immutable.
type properties struct {
	ascii  [utf8.RuneSelf]class
	plain  [256]bool // whether all characters with this lead byte are settled
	index  [(utf8.MaxRune + 1) >> blockShift]uint16
	blocks []property // blocks of blockSize properties; equal ones are shared

	decomposed map[rune][]rune // decompositions, not yet expanded
	composed   map[[2]rune]rune
}

func newProperties() (*properties, error) {
	p := &properties{
		decomposed: make(map[rune][]rune, 2200),
		composed:   make(map[[2]rune]rune, 1000),
	}
	flat := make([]property, utf8.MaxRune+1)
	for line := range strings.Lines(unicodeTable) {
		if err := p.parse(flat, strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("unicode.txt: %q: %w", line[:min(len(line), 40)], err)
		}
	}
	flat['\r'] = property(lineEnd)
	flat['\n'] = property(lineEnd)
	// Vowels and tails of Hangul join the character before them.
	for r := rune(vowelBase); r < vowelBase+vowelCount; r++ {
		flat[r] |= mayChange
	}
	for r := rune(tailBase + 1); r < tailBase+tailCount; r++ {
		flat[r] |= mayChange
	}
	p.pack(flat)
	return p, nil
}

// parse reads one line of the table into flat, or into p's maps.
func (p *properties) parse(flat []property, fields []string) error {
	if len(fields) == 0 || fields[0] == "#" {
		return nil
	}
	var set property
	switch kind, rest := fields[0], fields[1:]; kind {
	case "L":
		set, fields = property(letter), rest
	case "N":
		set, fields = property(number), rest
	case "S":
		set, fields = property(space), rest
	case "C":
		n, err := strconv.ParseUint(rest[0], 10, 8)
		if err != nil {
			return err
		}
		set, fields = property(n)<<markShift, rest[1:]
	default:
		return p.parseMapping(flat, kind, rest)
	}
	for _, f := range fields {
		first, last, ok := strings.Cut(f, "-")
		if !ok {
			last = first
		}
		low, err := parseRune(first)
		if err != nil {
			return err
		}
		high, err := parseRune(last)
		if err != nil {
			return err
		}
		for r := low; r <= high; r++ {
			flat[r] |= set
		}
	}
	return nil
}

// parseMapping reads a line "P c a b" or "E c d...". The table is sorted by c. The first
// half of a composite may come later, so decompositions are expanded when they are used.
func (p *properties) parseMapping(flat []property, kind string, fields []string) error {
	runes := make([]rune, len(fields))
	for i, f := range fields {
		r, err := parseRune(f)
		if err != nil {
			return err
		}
		runes[i] = r
	}
	switch {
	case kind == "P" && len(runes) == 3:
		p.composed[[2]rune{runes[1], runes[2]}] = runes[0]
		flat[runes[2]] |= mayChange
	case kind == "E" && len(runes) >= 2:
		flat[runes[0]] |= mayChange
	default:
		return fmt.Errorf("unknown line")
	}
	p.decomposed[runes[0]] = runes[1:]
	return nil
}

func parseRune(s string) (rune, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		return 0, err
	}
	if n > utf8.MaxRune {
		return 0, fmt.Errorf("%s is no code point", s)
	}
	return rune(n), nil
}

// pack folds the flat table into shared blocks; most blocks of Unicode are equal.
func (p *properties) pack(flat []property) {
	for i := range p.ascii {
		p.ascii[i] = flat[i].class()
	}
	for i := range p.plain {
		p.plain[i] = i < 0xf5
	}
	seen := map[[blockSize]property]uint16{}
	var lead [utf8.UTFMax]byte
	for i := range p.index {
		block := [blockSize]property(flat[i<<blockShift:])
		n, ok := seen[block]
		if !ok {
			n = uint16(len(seen))
			seen[block] = n
			p.blocks = append(p.blocks, block[:]...)
		}
		p.index[i] = n
		for j, v := range block {
			if !v.settled() {
				utf8.EncodeRune(lead[:], rune(i<<blockShift|j))
				p.plain[lead[0]] = false
			}
		}
	}
}

// lookup returns the property of the code point r.
func (p *properties) lookup(r rune) property {
	return p.blocks[int(p.index[r>>blockShift])<<blockShift|int(r&(blockSize-1))]
}
