package qwen

import (
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Bounds of what a Tally keeps, in bytes.
const (
	tallyStep = 256     // kept bytes between two searches for a place where counts add up
	maxTally  = 4 << 10 // kept bytes that are counted even without such a place
)

// A Tally counts the tokens of a text that comes in parts, in constant memory: it keeps
// less than 4 KiB and the last part. It cuts between a letter and a character that is none,
// where counts add up, so its count is that of the whole text. A text without such a place
// for 4 KiB may count a token or two more for each 4 KiB. One goroutine may use it.
type Tally struct {
	tokens *Tokenizer
	count  int    // tokens before tail
	tail   []byte // text that is not counted yet
	next   int    // length of tail at which it is searched again, in bytes
}

// NewTally returns an empty tally.
func (t *Tokenizer) NewTally() *Tally { return &Tally{tokens: t, next: tallyStep} }

// Add appends the next part of the text.
func (y *Tally) Add(part string) {
	y.tail = append(y.tail, part...)
	if len(y.tail) < y.next {
		return
	}
	end := y.safeCut()
	if end == 0 && len(y.tail) >= maxTally {
		for end = len(y.tail) - 1; end > len(y.tail)-utf8.UTFMax && !utf8.RuneStart(y.tail[end]); {
			end--
		}
	}
	if end == 0 {
		y.next = 2 * len(y.tail)
		return
	}
	y.count += y.tokens.Count(view(y.tail[:end]))
	y.tail = append(y.tail[:0], y.tail[end:]...)
	y.next = len(y.tail) + tallyStep
}

// Tokens returns the number of tokens of all parts so far.
func (y *Tally) Tokens() int { return y.count + y.tokens.Count(view(y.tail)) }

// safeCut returns the last place in tail at which counts add up whatever follows, or 0. It
// searches ever longer ends of tail, so that all of it is read twice at most.
func (y *Tally) safeCut() (end int) {
	s := view(y.tail)
	for i := len(s) - 1; i >= max(len(s)-utf8.UTFMax, 0); i-- {
		if utf8.RuneStart(s[i]) && !utf8.FullRuneInString(s[i:]) {
			s = s[:i] // the rest of the character has not come yet
		}
	}
	for back := tallyStep / 4; ; back *= 2 {
		start := max(len(s)-back, 0)
		for pos := start; ; {
			if pos = y.tokens.table.cut(s, pos); pos == len(s) {
				break
			}
			if !y.tokens.splits(s, pos) {
				end = pos
			}
			pos++
		}
		if end > 0 || start == 0 {
			return end
		}
	}
}

// splits reports whether a cut at place may split an added token of s.
func (t *Tokenizer) splits(s string, place int) bool {
	const longest = len("<|object_ref_start|>")
	head := s[max(place-longest, 0):place]
	i := strings.LastIndexByte(head, '<')
	if i < 0 {
		return false
	}
	rest := s[place-len(head)+i:]
	behind := len(head) - i // bytes between the '<' and the place
	for _, token := range t.added {
		if len(token) > behind && (strings.HasPrefix(rest, token) || strings.HasPrefix(token, rest)) {
			return true
		}
	}
	return false
}

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
