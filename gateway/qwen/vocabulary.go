package qwen

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"hash/maphash"
	"io"
	"math/bits"

	_ "embed"
)

//go:embed merges.txt.gz
var mergesFile []byte

const (
	byteTokens  = 256     // number of tokens of a single byte, which have the first ids
	baseTokens  = 151643  // number of tokens before the added ones
	tokenBytes  = 1 << 20 // capacity for the text of all tokens, in bytes
	largestFile = 4 << 20 // bound of merges.txt, unpacked, in bytes; the real one has 1.7 million
)

// A vocabulary holds the tokens of merges.txt: the bytes of each and the two tokens that it
// was merged from. Immutable.
type vocabulary struct {
	text   []byte   // bytes of all tokens, in the order of their ids
	start  []uint32 // offsets into text: a token is text[start[id]:start[id+1]]
	halves [][2]uint32
	pairs  pairTable
}

func newVocabulary() (*vocabulary, error) {
	zr, err := gzip.NewReader(bytes.NewReader(mergesFile))
	if err != nil {
		return nil, fmt.Errorf("merges.txt.gz: %w", err)
	}
	merges, err := io.ReadAll(io.LimitReader(zr, largestFile))
	if err != nil {
		return nil, fmt.Errorf("merges.txt.gz: %w", err)
	}
	v := &vocabulary{
		text:   make([]byte, 0, tokenBytes),
		start:  make([]uint32, 1, baseTokens+1),
		halves: make([][2]uint32, 0, baseTokens),
		pairs:  newPairTable(baseTokens - byteTokens),
	}
	index := newTokenIndex(v)
	alphabet := v.addBytes(index)
	for line := 1; len(merges) > 0; line++ {
		var left, right []byte
		left, merges, _ = bytes.Cut(merges, []byte(" "))
		right, merges, _ = bytes.Cut(merges, []byte("\n"))
		if err := v.addMerge(index, &alphabet, left, right); err != nil {
			return nil, fmt.Errorf("merges.txt line %d: %w", line, err)
		}
	}
	if n := len(v.halves); n != baseTokens {
		return nil, fmt.Errorf("merges.txt.gz makes %d tokens, want %d", n, baseTokens)
	}
	return v, nil
}

// An alphabet maps each character of merges.txt to the byte that it represents, plus one; 0
// is none. GPT-2 writes printable bytes as themselves and the others as U+0100 and up.
type alphabet [324]uint16

// addBytes adds the 256 byte tokens in GPT-2's order, printable bytes first.
func (v *vocabulary) addBytes(index *tokenIndex) alphabet {
	var a alphabet
	add := func(b byte, r rune) {
		a[r] = uint16(b) + 1
		id := uint32(len(v.halves))
		v.text = append(v.text, b)
		v.add(index, id, id)
	}
	printable := func(b int) bool {
		return 0x21 <= b && b <= 0x7e || 0xa1 <= b && b <= 0xac || 0xae <= b
	}
	for b := range 256 {
		if printable(b) {
			add(byte(b), rune(b))
		}
	}
	next := rune(256)
	for b := range 256 {
		if !printable(b) {
			add(byte(b), next)
			next++
		}
	}
	return a
}

// addMerge adds the token of one line of merges.txt.
func (v *vocabulary) addMerge(index *tokenIndex, a *alphabet, left, right []byte) error {
	begin := len(v.text)
	var err error
	if v.text, err = a.appendBytes(v.text, left); err != nil {
		return err
	}
	middle := len(v.text)
	if v.text, err = a.appendBytes(v.text, right); err != nil {
		return err
	}
	l, ok := index.find(v.text[begin:middle])
	if !ok {
		return fmt.Errorf("%q is no token yet", left)
	}
	r, ok := index.find(v.text[middle:])
	if !ok {
		return fmt.Errorf("%q is no token yet", right)
	}
	if len(v.halves) == baseTokens {
		return fmt.Errorf("more than %d tokens", baseTokens)
	}
	v.pairs.put(l, r, uint32(len(v.halves)))
	v.add(index, l, r)
	return nil
}

// add adds a token for the bytes at the end of v.text.
func (v *vocabulary) add(index *tokenIndex, left, right uint32) {
	v.halves = append(v.halves, [2]uint32{left, right})
	v.start = append(v.start, uint32(len(v.text)))
	index.put(uint32(len(v.halves) - 1))
}

// token returns the bytes of a token of merges.txt.
func (v *vocabulary) token(id uint32) []byte {
	return v.text[v.start[id]:v.start[id+1]]
}

func (a *alphabet) appendBytes(dst, s []byte) ([]byte, error) {
	for _, r := range string(s) {
		if int(r) >= len(a) || a[r] == 0 {
			return nil, fmt.Errorf("%q stands for no byte", r)
		}
		dst = append(dst, byte(a[r]-1))
	}
	return dst, nil
}

// A tokenIndex maps bytes to ids while the vocabulary is built. It is an open-addressed
// table.
type tokenIndex struct {
	vocabulary *vocabulary
	seed       maphash.Seed
	slots      []uint32 // id plus one; 0 is free
}

func newTokenIndex(v *vocabulary) *tokenIndex {
	return &tokenIndex{vocabulary: v, seed: maphash.MakeSeed(), slots: make([]uint32, 1<<bits.Len(2*baseTokens))}
}

func (x *tokenIndex) slot(token []byte) int {
	mask := len(x.slots) - 1
	i := int(maphash.Bytes(x.seed, token)) & mask
	for x.slots[i] != 0 && !bytes.Equal(x.vocabulary.token(x.slots[i]-1), token) {
		i = (i + 1) & mask
	}
	return i
}

func (x *tokenIndex) find(token []byte) (uint32, bool) {
	id := x.slots[x.slot(token)]
	return id - 1, id != 0
}

// put adds a token; the first of two with the same bytes stays.
func (x *tokenIndex) put(id uint32) {
	if i := x.slot(x.vocabulary.token(id)); x.slots[i] == 0 {
		x.slots[i] = id + 1
	}
}

// A pairTable maps two tokens to the token that they merge to, by open addressing with one
// word for each merge. Most lookups are for pairs that do not merge. A filter small enough
// to stay in the cache (256 KiB, one bit in fourteen set) answers nearly all of these. Ids
// have 18 bits.
type pairTable struct {
	slots  []uint64 // left<<46 | right<<28 | merged; 0 is free, as no pair merges to token 0
	shift  uint     // right shift of a hash that gives a slot's number
	filter [1 << (filterBits - 6)]uint64
}

const (
	leftShift  = 46
	rightShift = 28
	pairMask   = ^uint64(1<<rightShift - 1)
	golden     = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio: Fibonacci hashing
	filterBits = 21
)

func newPairTable(merges int) pairTable {
	n := bits.Len(uint(merges)) // fills the table by half or more; 58% for Qwen3
	return pairTable{slots: make([]uint64, 1<<n), shift: uint(64 - n)}
}

func (p *pairTable) put(left, right, merged uint32) {
	key := uint64(left)<<leftShift | uint64(right)<<rightShift
	hash := key * golden
	bit := hash >> (64 - filterBits)
	p.filter[bit/64] |= 1 << (bit % 64)
	i := hash >> p.shift
	for p.slots[i] != 0 {
		i = (i + 1) & uint64(len(p.slots)-1)
	}
	p.slots[i] = key | uint64(merged)
}

// merged returns the token that left and right merge to; ok is false if they do not merge.
func (p *pairTable) merged(left, right uint32) (id uint32, ok bool) {
	key := uint64(left)<<leftShift | uint64(right)<<rightShift
	hash := key * golden
	bit := hash >> (64 - filterBits)
	if p.filter[bit/64]&(1<<(bit%64)) == 0 {
		return 0, false
	}
	for i := hash >> p.shift; ; i++ {
		slot := p.slots[i&uint64(len(p.slots)-1)]
		if slot == 0 {
			return 0, false
		}
		if slot&pairMask == key {
			return uint32(slot &^ pairMask), true
		}
	}
}
