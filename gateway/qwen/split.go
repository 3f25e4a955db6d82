package qwen

import (
	"strings"
	"unicode/utf8"
)

// pieceEnd returns the end of the piece that begins at i of s. s is valid UTF-8, and i is
// the beginning of a character. The piece is the first alternative that matches of
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)
//	[^\r\n\p{L}\p{N}]?\p{L}+
//	\p{N}
//	 ?[^\s\p{L}\p{N}]+[\r\n]*
//	\s*[\r\n]+
//	\s+(?!\S)
//	\s+
//
// as Oniguruma reads the pattern. Every character begins one of them.
func (p *properties) pieceEnd(s string, i int) int {
	first := s[i]
	c, n := p.classAt(s, i)
	next := i + n
	switch c {
	case letter:
		return p.skip(s, next, letter)
	case number:
		return next
	case symbol:
		if first == '\'' {
			if n := contraction(s[next:]); n > 0 {
				return next + n
			}
		}
	}
	if next == len(s) {
		return next
	}
	following, m := p.classAt(s, next)
	if c != lineEnd && following == letter {
		return p.skip(s, next+m, letter)
	}
	if c == symbol {
		return p.skip(s, p.skip(s, next, symbol), lineEnd)
	}
	if first == ' ' && following == symbol {
		return p.skip(s, p.skip(s, next+m, symbol), lineEnd)
	}
	return p.spaceEnd(s, i)
}

// spaceEnd is pieceEnd for white space that the character behind it does not join.
func (p *properties) spaceEnd(s string, i int) int {
	line := 0     // end of the last line end so far
	previous := i // beginning of the last character so far
	end := i
	for end < len(s) {
		c, n := p.classAt(s, end)
		if c != space && c != lineEnd {
			break
		}
		previous = end
		end += n
		if c == lineEnd {
			line = end
		}
	}
	switch {
	case line > 0:
		return line
	case end < len(s) && previous > i:
		return previous // the last space belongs to the next piece
	}
	return end
}

// skip returns the end of the run of class c at i.
func (p *properties) skip(s string, i int, c class) int {
	for i < len(s) {
		current, n := p.classAt(s, i)
		if current != c {
			break
		}
		i += n
	}
	return i
}

// classAt returns the class and the width in bytes of the character at i.
func (p *properties) classAt(s string, i int) (class, int) {
	if b := s[i]; b < 0x80 {
		return p.ascii[b], 1
	}
	r, n := decode(s, i)
	return p.lookup(r).class(), n
}

// cut returns the first place after start, or len(s), at which s falls into two texts that
// can be normalized and split independently. Such a place is between a letter and a
// character that is none, neither of which NFC changes. No alternative of the pattern
// crosses it, and none that ends there looks ahead. s need not be valid UTF-8.
func (p *properties) cut(s string, start int) int {
	for start < len(s) && !utf8.RuneStart(s[start]) {
		start++
	}
	afterLetter := false
	for i := start; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		v := p.lookup(r)
		if afterLetter && v.settled() && v.class() != letter {
			return i
		}
		afterLetter = v.settled() && v.class() == letter
		i += n
	}
	return len(s)
}

// contraction returns the length in bytes of the English ending that s, the text after an
// apostrophe, begins with, or 0. The long s counts as an s, because the pattern ignores case
// by Unicode's folding. No other character folds to these letters.
func contraction(s string) int {
	if s == "" {
		return 0
	}
	switch s[0] | 0x20 {
	case 's', 't', 'm', 'd':
		return 1
	case 'r', 'v':
		if len(s) > 1 && s[1]|0x20 == 'e' {
			return 2
		}
	case 'l':
		if len(s) > 1 && s[1]|0x20 == 'l' {
			return 2
		}
	}
	if strings.HasPrefix(s, "ſ") {
		return len("ſ")
	}
	return 0
}
