package qwen

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"
	"golang.org/x/text/unicode/norm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTokenizer(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// A vector is one line of golden.jsonl or corpus.jsonl.gz; see testdata/README.md.
type vector struct {
	Name   string
	Args   *chatArgs
	Prompt string
	IDs    []uint32
}

type chatArgs struct {
	Messages            json.RawMessage `json:"messages"`
	Tools               json.RawMessage `json:"tools,omitempty"`
	EnableThinking      *bool           `json:"enable_thinking,omitempty"`
	AddGenerationPrompt *bool           `json:"add_generation_prompt,omitempty"`
	FillNulls           bool            `json:"fill_nulls,omitempty"`
}

func (a *chatArgs) chat() Chat {
	return Chat{
		Messages:           a.Messages,
		Tools:              a.Tools,
		NoThinking:         a.EnableThinking != nil && !*a.EnableThinking,
		NoGenerationPrompt: a.AddGenerationPrompt != nil && !*a.AddGenerationPrompt,
		Dialect:            a.dialect(),
	}
}

// dialect is that of reference.py, whose fill_nulls does what vLLM did before 0.21.
func (a *chatArgs) dialect() Dialect {
	if a.FillNulls {
		return V12
	}
	return Template
}

// dialects are all there are.
func dialects() []Dialect { return []Dialect{Template, V12, V21, V23, V24, V27, V29, V32} }

func readVectors(t *testing.T, name string) []vector {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	var all []vector
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var v vector
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestVectors(t *testing.T) {
	tok := newTokenizer(t)
	counter := NewCounter(tok, 1000)
	for _, file := range []struct {
		name string
		want int // vectors
	}{{"testdata/golden.jsonl", 24}, {"testdata/corpus.jsonl.gz", 1000}} {
		all := readVectors(t, file.name)
		if len(all) != file.want {
			t.Errorf("%s has %d vectors, want %d", file.name, len(all), file.want)
		}
		for _, v := range all {
			if got := tok.Append(nil, v.Prompt); !slices.Equal(got, v.IDs) {
				t.Errorf("%s: ids of %q\n got %d\nwant %d", v.Name, v.Prompt, got, v.IDs)
			}
			if got := tok.Count(v.Prompt); got != len(v.IDs) {
				t.Errorf("%s: Count = %d, want %d", v.Name, got, len(v.IDs))
			}
			if v.Args == nil {
				continue
			}
			prompt, err := Render(v.Args.chat())
			if err != nil || prompt != v.Prompt {
				t.Errorf("%s: Render = %q, %v\nwant %q", v.Name, prompt, err, v.Prompt)
			}
			if got, err := counter.Chat(v.Args.chat()); err != nil || got != len(v.IDs) {
				t.Errorf("%s: Chat = %d, %v, want %d", v.Name, got, err, len(v.IDs))
			}
		}
	}
}

// TestEveryTokenEncodesToItself checks the property that lets a piece that is a token be
// looked up.
func TestEveryTokenEncodesToItself(t *testing.T) {
	tok := newTokenizer(t)
	for id := range uint32(baseTokens) {
		piece := string(tok.token(id))
		if got, n := tok.longest(piece); got != id || n != len(piece) {
			t.Fatalf("token %d %q: longest = %d, %d bytes", id, piece, got, n)
		}
		if id < byteTokens {
			continue
		}
		// By the rules of BPE, not by the trie: the two halves must meet in the end.
		if got := slowBPE(tok, piece); !slices.Equal(got, []uint32{id}) {
			t.Fatalf("token %d %q encodes to %d", id, piece, got)
		}
	}
}

// slowBPE is BPE as its definition says it: the lowest merge first, leftmost of equals.
func slowBPE(tok *Tokenizer, piece string) []uint32 {
	ids := make([]uint32, len(piece))
	for i := range len(piece) {
		ids[i], _ = tok.longest(piece[i : i+1])
	}
	for {
		best, at := noToken, 0
		for i := range len(ids) - 1 {
			if id, ok := tok.pairs.merged(ids[i], ids[i+1]); ok && id < best {
				best, at = id, i
			}
		}
		if best == noToken {
			return ids
		}
		ids[at] = best
		ids = slices.Delete(ids, at+1, at+2)
	}
}

func TestEncodeIsBPE(t *testing.T) {
	tok := newTokenizer(t)
	r := rand.New(rand.NewPCG(1, 2))
	var p path
	for range 60_000 {
		piece := randomPiece(tok, r)
		id, n := tok.longest(piece)
		tok.encode(&p, piece, id, n)
		if want := slowBPE(tok, piece); !slices.Equal(p.tokens, want) {
			t.Fatalf("%q\n got %d\nwant %d", piece, p.tokens, want)
		}
	}
}

// TestMergeIsBPE: what takes the search long is merged, in windows, to the same tokens,
// and no window's border is a bad one often.
func TestMergeIsBPE(t *testing.T) {
	tok := newTokenizer(t)
	r := rand.New(rand.NewPCG(3, 4))
	var p, q path
	for i := range 3000 {
		var b strings.Builder
		for size := r.IntN(4 * mergeWindow); b.Len() <= size; {
			unit := string(tok.token(r.Uint32N(baseTokens)))
			switch i % 3 {
			case 0: // runs, which are the hardest
				unit = strings.Repeat(string("/-=*#_ \n"[r.IntN(8)]), 1+r.IntN(1+size))
			case 1:
				unit = strings.Repeat(unit, 1+r.IntN(200))
			}
			b.WriteString(unit)
		}
		piece := b.String()
		id, n := tok.longest(piece)
		tok.search(&p, piece, id, n, math.MaxInt)
		if !tok.merge(&q, piece) || !slices.Equal(p.tokens, q.tokens) {
			t.Fatalf("%q\n got %d\nwant %d", piece, q.tokens, p.tokens)
		}
	}
}

// randomPiece returns up to some 60 bytes that are hard to encode: few letters over and
// over, any bytes, or parts of tokens.
func randomPiece(tok *Tokenizer, r *rand.Rand) string {
	var b []byte
	letters := []string{"ab", "aeiou ", "\n \t", "=-*", "的一是不了", "\xe4\xb8\x80\xef\xbf\xbd"}[r.IntN(6)]
	kind := r.IntN(3)
	for n := 1 + r.IntN(20); n > 0; n-- {
		switch kind {
		case 0:
			b = append(b, letters[r.IntN(len(letters))])
		case 1:
			b = append(b, byte(r.Uint32()))
		default:
			token := tok.token(r.Uint32N(baseTokens))
			if len(token) < 16 {
				b = append(b, token[r.IntN(len(token)):]...)
			}
		}
	}
	return string(append(b, 'x'))
}

func TestEncodeIsLinear(t *testing.T) {
	tok := newTokenizer(t)
	const (
		factor       = 4
		tolerance    = 1.1
		stepsPerByte = 4 // the worst seen is 3.6
	)
	small, large := adversaries(1<<14), adversaries(factor<<14)
	for name, s := range small {
		few, many := encodeSteps(tok, s), encodeSteps(tok, large[name])
		if float64(many) > factor*tolerance*float64(few) {
			t.Errorf("%s: %d times the bytes take %d steps, not %d", name, factor, many, few)
		}
		if few > stepsPerByte*len(s) {
			t.Errorf("%s: %d steps for %d bytes", name, few, len(s))
		}
	}
}

// encodeSteps is the turns of the encoder's loop for all of text.
func encodeSteps(tok *Tokenizer, text string) int {
	text = string((&normalizer{table: tok.table}).normalize(text))
	var p path
	for i := 0; i < len(text); {
		end := tok.table.pieceEnd(text, i)
		id, n := tok.longest(text[i:end])
		tok.encode(&p, text[i:end], id, n)
		i = end
	}
	return p.steps
}

// TestCut checks that a text encodes as its two parts do, at every place that cut returns.
func TestCut(t *testing.T) {
	tok := newTokenizer(t)
	g := newGenerator(tok, 41)
	whole := func(text string) []uint32 {
		w := &work{keep: true, text: normalizer{table: tok.table}}
		tok.encodeChunk(w, text)
		return w.ids
	}
	cuts := 0
	for range 4000 {
		text := g.text(8)
		if g.IntN(8) == 0 {
			text += "\xe4\xb8" + g.text(2)
		}
		want := whole(text)
		for from := 0; from < len(text); from++ {
			at := tok.table.cut(text, from)
			if got := append(whole(text[:at]), whole(text[at:])...); !slices.Equal(got, want) {
				t.Fatalf("%+q cut at %d\n got %d\nwant %d", text, at, got, want)
			}
			if at < len(text) {
				cuts++
			}
			from = max(from, at-1)
		}
	}
	if cuts < 5_000 {
		t.Errorf("only %d cuts", cuts)
	}
	long := sampleText(tok, "mixed", 10*chunkSize)
	if got, want := tok.Count(long), len(whole(long)); got != want {
		t.Errorf("in chunks %d tokens, in one %d", got, want)
	}
}

func TestCountAllocatesNothing(t *testing.T) {
	tok := newTokenizer(t)
	text := strings.Repeat("The quick brown fox, 敏捷的棕色狐狸跳过了懒狗. Cafe\u0301! <|im_end|>\n", 50)
	w := &work{text: normalizer{table: tok.table}} // not from the pool, which forgets at times
	if n := testing.AllocsPerRun(100, func() { tok.encodeText(w, text) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAddedTokens(t *testing.T) {
	tok := newTokenizer(t)
	for i, text := range addedTokens() {
		id := uint32(baseTokens + i)
		if got := tok.Append(nil, text); !slices.Equal(got, []uint32{id}) {
			t.Errorf("%s = %d, want %d", text, got, id)
		}
		if got := tok.Append(nil, "<"+text+text[:len(text)-1]); len(got) < 3 || got[1] != id || slices.Contains(got[2:], id) {
			t.Errorf("%s between others = %d", text, got)
		}
		if got := string(tok.AppendToken([]byte("x"), id)); got != "x"+text {
			t.Errorf("AppendToken(%d) = %q", id, got)
		}
	}
	for id, text := range map[uint32]string{
		151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>",
		151657: "<tool_call>", 151658: "</tool_call>",
		151665: "<tool_response>", 151666: "</tool_response>",
		151667: "<think>", 151668: "</think>",
	} {
		if got := string(tok.AppendToken(nil, id)); got != text {
			t.Errorf("AppendToken(%d) = %q, want %q", id, got, text)
		}
	}
	if got := tok.AppendToken(nil, baseTokens+26); got != nil {
		t.Errorf("AppendToken of an unknown id = %q", got)
	}
}

func TestSplit(t *testing.T) {
	tok := newTokenizer(t)
	for _, test := range []struct{ text, want string }{
		{"Hello world", "Hello| world"},
		{"don't I'LL we'Re 'ſx", "don|'t| I|'LL| we|'Re| '|ſx"},
		{"x'ſy", "x|'ſ|y"},
		{"a1234 5", "a|1|2|3|4| |5"},
		{"a  b   ", "a| | b|   "},
		{"a \n\n b", "a| \n\n| b"},
		{"a\r\n  \n\tb", "a|\r\n  \n|\tb"},
		{"!!\n\n?", "!!\n\n|?"},
		{" !? -x", " !?| -|x"},
		{"\t!\u00a0!", "\t|!|\u00a0|!"},
		{"你好，世界。", "你好|，世界|。"},
		{"\u3000\u3000x", "\u3000|\u3000x"},
		{"½²Ⅷ", "½|²|Ⅷ"},
		{"a\u0301b", "a|\u0301b"},
	} {
		var pieces []string
		for i := 0; i < len(test.text); {
			end := tok.table.pieceEnd(test.text, i)
			pieces = append(pieces, test.text[i:end])
			i = end
		}
		if got := strings.Join(pieces, "|"); got != test.want {
			t.Errorf("%q splits to %q, want %q", test.text, got, test.want)
		}
	}
}

// TestNormalize compares the normalizer with x/text on texts for which x/text and the
// reference agree. They disagree on runs of more than 30 marks and on marks that Unicode 9
// does not have.
func TestNormalize(t *testing.T) {
	tok := newTokenizer(t)
	n := normalizer{table: tok.table}
	r := rand.New(rand.NewPCG(3, 4))
	alphabet := normAlphabet(tok.table)
	for range 50_000 {
		var b strings.Builder
		for range 1 + r.IntN(12) {
			b.WriteRune(alphabet[r.IntN(len(alphabet))])
		}
		s := b.String()
		want := norm.NFC.String(s)
		if got := string(n.normalize(s)); got != want {
			t.Fatalf("%+q: got %+q, want %+q", s, got, want)
		}
		if tok.table.isNFC(s) && s != want {
			t.Fatalf("%+q passes as NFC", s)
		}
	}
	for r := rune(hangulBase); r < hangulBase+hangulCount; r++ {
		jamo := norm.NFD.String(string(r))
		if got := string(n.normalize(jamo + "\u0301\u0323")); got != string(r)+"\u0323\u0301" {
			t.Fatalf("%+q becomes %+q", jamo, got)
		}
	}
	marks := strings.Repeat("\u0301\u0323", 50)
	want := "ạ" + strings.Repeat("\u0323", 49) + strings.Repeat("\u0301", 50)
	if got := string(n.normalize("a" + marks)); got != want {
		t.Errorf("a long run of marks: %+q", got)
	}
	if got := string(n.normalize("a\xffb\xe4\xb8")); got != "a\ufffdb\ufffd\ufffd" {
		t.Errorf("invalid bytes: %q", got)
	}
}

// normAlphabet is characters that NFC may change, some that they meet, and Hangul.
func normAlphabet(p *properties) []rune {
	out := []rune("aeiouAEK<>=\u1100\u1112\u1161\u1175\u11a8\u11c2가각힣한글")
	for r := range rune(utf8.MaxRune) {
		if !utf8.ValidRune(r) {
			continue
		}
		known := p.decomposed[r] != nil || p.lookup(r).mark() != 0
		if known && norm.NFC.PropertiesString(string(r)).CCC() == p.lookup(r).mark() || p.lookup(r)&mayChange != 0 {
			out = append(out, r)
		}
	}
	return slices.DeleteFunc(out, func(r rune) bool { return r == 0x11930 })
}

func TestInvalidUTF8CountsAsReplacement(t *testing.T) {
	tok := newTokenizer(t)
	for _, s := range []string{"\xff", "a\xc3", "\xe4\xb8<|im_end|>\x80", "你\xe5\xa5好"} {
		var valid []rune
		for _, r := range s {
			valid = append(valid, r)
		}
		if got, want := tok.Append(nil, s), tok.Append(nil, string(valid)); !slices.Equal(got, want) {
			t.Errorf("%q = %d, want %d", s, got, want)
		}
	}
}
