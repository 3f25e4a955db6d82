package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of what others name, in characters: names, versions and reasons come from
// servers, callers and the store.
const (
	maxCell = 160
	maxNote = 1000 // of a warning or an error
)

// cell returns a text fit for one cell of a table: on one line, without what a
// terminal could take for an order, and bounded.
func cell(text string) string { return visible(text, maxCell) }

// note returns a text fit for one line that is shown by itself.
func note(text string) string { return visible(text, maxNote) }

// bounded returns an error as lines of bounded length: what it says may be a server's.
func bounded(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = note(lines[i])
	}
	return strings.Join(lines, "\n")
}

func visible(text string, width int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > width {
			fmt.Fprintf(&b, "… (%d bytes)", len(text))
			break
		}
		if unicode.IsGraphic(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(escaped(r))
		}
	}
	return b.String()
}

// escaped is a character as JSON writes it, so that a text in JSON stays the same.
func escaped(r rune) string {
	if a, b := utf16.EncodeRune(r); a != unicode.ReplacementChar {
		return fmt.Sprintf(`\u%04x\u%04x`, a, b)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// terminal passes on what is written to people, and escapes what a terminal could
// take for an order wherever it comes from: control characters other than the end of
// a line and the tab, and characters that change the direction of text. Safe for
// concurrent use.
type terminal struct {
	mu   sync.Mutex
	out  io.Writer
	part []byte // begin of a character of which the rest has not been written yet
}

// Write takes in all of p.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.part) == 0 && harmless(p) {
		return t.out.Write(p)
	}
	rest := append(t.part, p...)
	t.part = nil
	text := make([]byte, 0, len(rest)+16)
	for len(rest) > 0 {
		r, n := utf8.DecodeRune(rest)
		if n == 1 && r == utf8.RuneError && !utf8.FullRune(rest) {
			t.part = append([]byte(nil), rest...)
			break
		}
		switch {
		case r == utf8.RuneError && n == 1:
			text = utf8.AppendRune(text, r)
		case r == '\n', r == '\t', unicode.IsGraphic(r):
			text = append(text, rest[:n]...)
		default:
			text = append(text, escaped(r)...)
		}
		rest = rest[n:]
	}
	if _, err := t.out.Write(text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// interactive reports whether somebody looks at what is written: a terminal, not a file, a
// pipe or the null device.
func (t *terminal) interactive() bool {
	file, ok := t.out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// clear empties the screen, by the codes of ECMA-48 that every terminal knows.
func (t *terminal) clear() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := io.WriteString(t.out, "\x1b[H\x1b[2J")
	return err
}

// harmless reports whether a text is printable ASCII in lines, as most of it is.
func harmless(p []byte) bool {
	for _, b := range p {
		if (b < ' ' || b > '~') && b != '\n' && b != '\t' {
			return false
		}
	}
	return true
}
