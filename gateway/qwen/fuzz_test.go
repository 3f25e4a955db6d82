package qwen

import (
	"slices"
	"testing"

	"tidegate/gateway/jsonwalk"
)

func FuzzCount(f *testing.F) {
	tok := newTokenizer(f)
	g := newGenerator(tok, 31)
	for range 50 {
		f.Add(g.text(20))
	}
	f.Add("\xff<|im_end|>\xe4\xb8")
	n := normalizer{table: tok.table}
	f.Fuzz(func(t *testing.T, text string) {
		ids := tok.Append(nil, text)
		if got := tok.Count(text); got != len(ids) {
			t.Fatalf("Count = %d, Append makes %d", got, len(ids))
		}
		if again := tok.Append(ids[:len(ids):len(ids)], text); !slices.Equal(again[len(ids):], ids) {
			t.Fatalf("%d, then %d", ids, again[len(ids):])
		}
		// The ids spell the text, with what lies between added tokens in NFC.
		var got, want []byte
		for _, id := range ids {
			got = tok.AppendToken(got, id)
		}
		for rest := text; rest != ""; {
			i, id := tok.nextAdded(rest)
			want = append(want, n.normalize(rest[:i])...)
			if rest = rest[i:]; rest != "" {
				want = tok.AppendToken(want, id)
				rest = rest[len(tok.added[id-baseTokens]):]
			}
		}
		if string(got) != string(want) {
			t.Fatalf("%d spell %+q, want %+q", ids, got, want)
		}
	})
}

func FuzzRender(f *testing.F) {
	tok := newTokenizer(f)
	counter := NewCounter(tok, 100)
	g := newGenerator(tok, 32)
	for i := range 50 {
		c := g.chat(5)
		f.Add(c.Messages, c.Tools, uint8(i))
	}
	f.Add([]byte(`[{"role":"user","content":[{"type":"image_url"}]}]`), []byte(`[{}]`), uint8(4))
	f.Fuzz(func(t *testing.T, messages, tools []byte, flags uint8) {
		chat := Chat{Messages: messages, Tools: tools, NoThinking: flags&1 != 0, NoGenerationPrompt: flags&2 != 0, Continue: flags&4 != 0, Dialect: dialects()[int(flags>>3)%len(dialects())]}
		want, wantErr := plainCount(tok, chat)
		for range 2 { // the second time from memory
			got, err := counter.Chat(chat)
			if wantErr == nil && (err != nil || got != want) {
				t.Fatalf("Chat = %d, %v, want %d", got, err, want)
			}
			if wantErr != nil && (err == nil || err.Error() != wantErr.Error()) {
				t.Fatalf("Chat's error is %v, want %v", err, wantErr)
			}
		}
	})
}

// FuzzDump checks the dumper against itself: what it writes it reads as the same.
func FuzzDump(f *testing.F) {
	g := newGenerator(newTokenizer(f), 33)
	for range 50 {
		f.Add([]byte(g.value(4)))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, ok := appendPython(nil, in)
		if !ok {
			return
		}
		if again, ok := appendPython(nil, out); !ok || string(again) != string(out) {
			t.Fatalf("%q is dumped as %q, that as %q, %v", in, out, again, ok)
		}
		if end := jsonwalk.SkipValue(in, jsonwalk.SkipSpace(in, 0)); jsonwalk.SkipSpace(in, end) != len(in) {
			t.Fatalf("%q is a value, but skipValue ends at %d", in, end)
		}
	})
}
