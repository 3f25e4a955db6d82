package qwen

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// FuzzTally: however a text is split, its count is that of the whole text, and what is
// kept of it is bounded.
func FuzzTally(f *testing.F) {
	f.Add("The quick brown fox.", uint64(1))
	f.Add(strings.Repeat("if (x_1 == 42) { return \"déjà vu\"; }\n\t", 30), uint64(2))
	f.Add(strings.Repeat("潮汐闸门，开放。今天是2026年。", 60), uint64(3))
	f.Add(strings.Repeat("word <|im_end|>x<tool_call>\n{\"name\": \"f\"}\n</tool_call>", 20), uint64(4))
	f.Add(strings.Repeat("a\u0301b <|object_ref", 40)+"_start|>", uint64(5))
	f.Add(strings.Repeat("word\xff\xfe<th", 50)+"ink>", uint64(6))
	tokenizer, err := New()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		if len(text) > maxTally {
			text = text[:maxTally]
		}
		text = strings.ToValidUTF8(text, "\ufffd") // as JSON is decoded
		rng := rand.New(rand.NewPCG(seed, 0))
		y := tokenizer.NewTally()
		for rest := text; rest != ""; {
			n := 1 + rng.IntN(min(len(rest), 40))
			y.Add(rest[:n])
			rest = rest[n:]
		}
		if got, want := y.Tokens(), tokenizer.Count(text); got != want && len(y.tail) < maxTally/2 {
			t.Errorf("%q: %d tokens in parts, %d in one piece", text, got, want)
		}
	})
}

// TestTallyIsBounded: text that cannot be divided anywhere is counted all the same.
func TestTallyIsBounded(t *testing.T) {
	tokenizer, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{" ", "aaaaaaaaaaaaaaa", "汉", "🙂", "1", "<", "\n"} {
		y := tokenizer.NewTally()
		n := 64 << 10 / len(piece)
		for range n {
			y.Add(piece)
			if len(y.tail) > 2*maxTally {
				t.Fatalf("%q: %d bytes are kept", piece, len(y.tail))
			}
		}
		want := tokenizer.Count(strings.Repeat(piece, n))
		if got := y.Tokens(); got < want-2 || got > want+64 {
			t.Errorf("%q: %d tokens in parts, %d in one piece", piece, got, want)
		}
	}
}
