package qwen

import (
	"strings"
	"sync"
	"unsafe"
)

// Vocabulary is the number of rows of Qwen3's embedding, the same for all sizes of the model
// (vocab_size of config.json). vLLM accepts every token id below it, although only the first
// 151,669 are tokens: it compares with the larger of the two numbers.
const Vocabulary = 151936

// chunkSize is the length in bytes above which a text is encoded in chunks.
const chunkSize = 16 << 10

const (
	// Larger scratch memory is not kept for the next call, so that one huge word does not
	// occupy memory for good.
	keptTokens     = 64 << 10  // entries of 4 bytes
	keptText       = 256 << 10 // bytes
	keptCharacters = 64 << 10  // entries of 4 bytes
)

// A Tokenizer is Qwen3's tokenizer. It is immutable, safe for concurrent use, and uses about
// 9 MB.
type Tokenizer struct {
	bpe
	table   *properties
	added   []string  // texts of the added tokens; the first has the id baseTokens
	scratch sync.Pool // of *work
}

// New builds the tokenizer from the embedded vocabulary, which takes some 200 ms. The error
// is a fault of the embedded files; in a binary that passed its tests it is nil.
func New() (*Tokenizer, error) {
	table, err := newProperties()
	if err != nil {
		return nil, err
	}
	v, err := newVocabulary()
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{bpe: bpe{v, newTrie(v)}, table: table, added: addedTokens()}
	t.scratch.New = func() any { return &work{text: normalizer{table: table}} }
	return t, nil
}

func addedTokens() []string {
	return []string{
		"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
		"<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
		"<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
		"</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
		"<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
	}
}

// Count returns the number of tokens of text. It matches added tokens anywhere in text.
// Each byte of invalid UTF-8 counts as U+FFFD. In the usual case it allocates nothing.
func (t *Tokenizer) Count(text string) int {
	w := t.scratch.Get().(*work)
	w.count, w.keep = 0, false
	t.encodeText(w, text)
	n := w.count
	t.release(w)
	return n
}

// Append appends the token ids of text, as many as Count returns, to ids.
func (t *Tokenizer) Append(ids []uint32, text string) []uint32 {
	w := t.scratch.Get().(*work)
	w.count, w.keep, w.ids = 0, true, ids
	t.encodeText(w, text)
	ids = w.ids
	t.release(w)
	return ids
}

// AppendToken appends the bytes of one token, which may be a part of a character, to dst.
// An unknown id appends nothing.
func (t *Tokenizer) AppendToken(dst []byte, id uint32) []byte {
	if id < baseTokens {
		return append(dst, t.token(id)...)
	}
	if i := int(id - baseTokens); i < len(t.added) {
		return append(dst, t.added[i]...)
	}
	return dst
}

// work is the state of one call.
type work struct {
	count int
	keep  bool // whether ids are wanted, not only their number
	ids   []uint32
	path  path
	text  normalizer
}

func (t *Tokenizer) release(w *work) {
	w.ids = nil
	if cap(w.path.tokens) > keptTokens || cap(w.path.dead) > keptTokens {
		w.path = path{}
	}
	if cap(w.text.out) > keptText || cap(w.text.cluster) > keptCharacters || cap(w.text.sorted) > keptCharacters {
		w.text = normalizer{table: t.table}
	}
	t.scratch.Put(w)
}

func (w *work) emit(id uint32) {
	w.count++
	if w.keep {
		w.ids = append(w.ids, id)
	}
}

func (t *Tokenizer) encodeText(w *work, text string) {
	for text != "" {
		i, id := t.nextAdded(text)
		if i > 0 {
			t.encodeSegment(w, text[:i])
		}
		if i == len(text) {
			return
		}
		w.emit(id)
		text = text[i+len(t.added[id-baseTokens]):]
	}
}

// nextAdded returns the place and the id of the first added token of s, or len(s). All
// added tokens begin with "<", which occurs nowhere else in them, and none is a prefix of
// another, so the first match is the right one.
func (t *Tokenizer) nextAdded(s string) (int, uint32) {
	for i := 0; ; i++ {
		n := strings.IndexByte(s[i:], '<')
		if n < 0 {
			return len(s), 0
		}
		i += n
		rest := s[i:]
		if len(rest) < len("<think>") {
			return len(s), 0
		}
		if c := rest[1]; c != '|' && c != '/' && c != 't' {
			continue
		}
		for id, token := range t.added {
			if strings.HasPrefix(rest, token) {
				return i, baseTokens + uint32(id)
			}
		}
	}
}

// encodeSegment encodes the text between two added tokens, in chunks, so that the memory
// for normalizing does not grow with the text.
func (t *Tokenizer) encodeSegment(w *work, s string) {
	for len(s) > chunkSize {
		end := t.table.cut(s, chunkSize)
		t.encodeChunk(w, s[:end])
		s = s[end:]
	}
	t.encodeChunk(w, s)
}

func (t *Tokenizer) encodeChunk(w *work, s string) {
	if !t.table.isNFC(s) {
		out := w.text.normalize(s)
		// A view, not a copy: s is not used after the next call of normalize.
		s = unsafe.String(unsafe.SliceData(out), len(out))
	}
	for i := 0; i < len(s); {
		end := t.table.pieceEnd(s, i)
		piece := s[i:end]
		i = end
		id, n := t.longest(piece)
		if n == len(piece) {
			// Every token encodes to itself; a test checks all of them.
			w.emit(id)
			continue
		}
		t.encode(&w.path, piece, id, n)
		w.count += len(w.path.tokens)
		if w.keep {
			w.ids = append(w.ids, w.path.tokens...)
		}
	}
}
