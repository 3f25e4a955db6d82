package qwen

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// The texts measured do not repeat: they are drawn from the vocabulary, words by Zipf's
// law as in language (low ids are frequent tokens, as merges are sorted by frequency),
// which also draws words of more than one token.

func BenchmarkCount(b *testing.B) {
	tok := newTokenizer(b)
	for _, kind := range []string{"english", "chinese", "code", "mixed"} {
		text := sampleText(tok, kind, 4<<20)
		b.Run(kind, func(b *testing.B) { benchmarkCount(b, tok, text) })
	}
}

func BenchmarkAdversarial4MB(b *testing.B) {
	tok := newTokenizer(b)
	for name, text := range adversaries(4 << 20) {
		b.Run(name, func(b *testing.B) { benchmarkCount(b, tok, text) })
	}
}

func benchmarkCount(b *testing.B, tok *Tokenizer, text string) {
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	tokens := 0
	for b.Loop() {
		tokens = tok.Count(text)
	}
	b.ReportMetric(float64(len(text))/float64(tokens), "B/token")
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCounterWarm counts a conversation of 32 KiB whose messages are all remembered.
func BenchmarkCounterWarm(b *testing.B) {
	tok := newTokenizer(b)
	for _, messages := range []int{1, 20, 200} {
		b.Run(fmt.Sprintf("32KiB/%d_messages", messages), func(b *testing.B) {
			chat := Chat{Messages: conversationJSON(tok, messages, 32<<10)}
			counter := NewCounter(tok, 10_000)
			b.SetBytes(int64(len(chat.Messages)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := counter.Chat(chat); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCounterGrowingChat counts a conversation of 32 KiB in 20 messages, of which the
// last two are new.
func BenchmarkCounterGrowingChat(b *testing.B) {
	tok := newTokenizer(b)
	past := string(conversationJSON(tok, 18, 30<<10))
	counter := NewCounter(tok, 10_000)
	b.SetBytes(32 << 10)
	b.ReportAllocs()
	turn := string(appendPythonString(nil, []byte(sampleText(tok, "mixed", 1000))))[1:]
	var messages []byte
	for i := 0; b.Loop(); i++ {
		messages = fmt.Appendf(messages[:0], `%s,{"role":"assistant","content":"%d %s},{"role":"user","content":"%d %s}]`,
			past[:len(past)-1], i, turn, i, turn)
		if _, err := counter.Chat(Chat{Messages: messages}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheHit(b *testing.B) {
	c := newCache(1000)
	k := c.key([]byte("x"))
	c.store(k, entry{})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.load(k)
		}
	})
}

// conversationJSON is the messages array of a chat of about size bytes.
func conversationJSON(tok *Tokenizer, messages, size int) []byte {
	text := sampleText(tok, "mixed", size*9/10)
	out := []byte{'['}
	for i := range messages {
		part := text[i*len(text)/messages : (i+1)*len(text)/messages]
		part = strings.ToValidUTF8(part, "")
		role := [2]string{"user", "assistant"}[i%2]
		out = fmt.Appendf(out, `{"role":%q,"content":`, role)
		out = append(appendPythonString(out, []byte(part)), "},"...)
	}
	out[len(out)-1] = ']'
	return out
}

// sampleText returns about size bytes of text of a kind, always the same.
func sampleText(tok *Tokenizer, kind string, size int) string {
	words := map[string][]string{}
	for id := range uint32(baseTokens) {
		if w := string(tok.token(id)); len(w) > 1 {
			if k := wordKind(w); k != "" {
				words[k] = append(words[k], w)
			}
		}
	}
	r := rand.New(rand.NewPCG(5, uint64(len(kind))))
	draw := func(kind string) string {
		const skew, flat = 1.1, 30 // of Zipf's law, near what language has
		all := words[kind]
		return all[rand.NewZipf(r, skew, flat, uint64(len(all)-1)).Uint64()]
	}
	var b strings.Builder
	for b.Len() < size {
		k := kind
		if kind == "mixed" {
			k = [4]string{"english", "english", "chinese", "code"}[r.IntN(4)]
		}
		for n := 4 + r.IntN(12); n > 0; n-- {
			switch k {
			case "english":
				b.WriteString(draw("english"))
				if r.IntN(10) == 0 { // a rare word, of several tokens
					b.WriteString(draw("suffix"))
				}
			case "chinese":
				b.WriteString(draw("chinese"))
			default:
				b.WriteString(draw([3]string{"english", "suffix", "code"}[r.IntN(3)]))
			}
		}
		b.WriteString(map[string]string{"english": ".", "chinese": "，", "code": "\n    "}[k])
	}
	return b.String()
}

// wordKind says what texts a token is a word of, "" for none.
func wordKind(w string) string {
	if !utf8.ValidString(w) {
		return ""
	}
	all := func(s string, f func(rune) bool) bool {
		return strings.IndexFunc(s, func(r rune) bool { return !f(r) }) < 0
	}
	lower := func(r rune) bool { return 'a' <= r && r <= 'z' }
	switch {
	case w[0] == ' ' && len(w) > 2 && all(w[1:], lower):
		return "english"
	case all(w, lower):
		return "suffix"
	case all(w, func(r rune) bool { return unicode.Is(unicode.Han, r) }):
		return "chinese"
	case all(w, func(r rune) bool { return r < utf8.RuneSelf }):
		return "code"
	}
	return ""
}

// adversaries are texts of about size bytes made to be slow.
func adversaries(size int) map[string]string {
	r := rand.New(rand.NewPCG(7, 8))
	random := func(from, count rune) string {
		var b strings.Builder
		for b.Len() < size {
			b.WriteRune(from + r.Int32N(count))
		}
		return b.String()
	}
	invalid := make([]byte, size)
	for i := range invalid {
		invalid[i] = byte(0x80 + r.IntN(0x80))
	}
	repeat := func(s string) string { return strings.Repeat(s, size/len(s)) }
	return map[string]string{
		"one_letter":      repeat("a"),
		"random_letters":  random('a', 26),
		"spaces":          repeat(" ") + "x",
		"spaces_lines":    repeat("\n   \t   "),
		"equals_signs":    repeat("="),
		"slashes":         repeat("/"),
		"dashes":          repeat("-"),
		"number_signs":    repeat("#"),
		"short_slashes":   repeat(strings.Repeat("/", 15) + "a"),
		"ab":              repeat("ab"),
		"emoji":           repeat("👩‍👩‍👧🏽"),
		"invalid_utf8":    string(invalid),
		"han_no_marks":    random(0x4e00, 0x5000),
		"rare_han":        random(0x20000, 0xa000),
		"marks":           "a" + random(0x300, 0x50),
		"marks_unordered": "a" + repeat("\u0301\u0323"),
		"hangul_jamo":     repeat("\u1112\u1161\u11ab"),
		"angle_brackets":  repeat("<|im_<"),
		"digits":          repeat("0123456789"),
	}
}
