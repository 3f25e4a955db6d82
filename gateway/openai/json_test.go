package openai

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// walk reads raw as an object or an array to its end.
func walk(raw []byte) error {
	w := elements(raw)
	if w.wrong != "" {
		w = members(raw)
	}
	for w.next() {
		w.value()
	}
	return w.failure()
}

// walkable is what walk should accept: what encoding/json takes for an object or
// an array, unless it is nested too deep.
func walkable(raw []byte) bool {
	if !json.Valid(raw) {
		return false
	}
	depth, deepest, inString := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	first := strings.TrimLeft(string(raw), " \t\r\n")[0]
	return (first == '{' || first == '[') && deepest <= maxDepth
}

func jsonSeeds() []string {
	return []string{
		``, ` `, `{`, `}`, `{}`, `[]`, ` { } `, "\t[\n]\r", `{"a":1}`, ` {"a" : [1,2,{"b":null}] , "c":"x\"y"} `, `{"a":1,}`, `[1,]`, `[,1]`,
		`{,}`, `{"a":1`, `{"a"`, `{"a":`, `{"a"}`, `{a:1}`, `{"a" 1}`, `{"a":1 "b":2}`, `{1:2}`, `[1 2]`, `{"a":01}`, `{"a":-}`, `{"a":-0}`, `{"a":1.}`,
		`{"a":.5}`, `{"a":1.5}`, `{"a":1e5}`, `{"a":1E+5}`, `{"a":1e-05}`, `{"a":1e}`, `{"a":1e+}`, `{"a":+1}`, `{"a":0x1}`, `{"a":1e5.5}`, "{\"a\":\"\x01\"}",
		"{\"a\":\"\x1f\"}", "{\"a\":\"\x20\x7f\"}", "{\"a\":\"\x80\xff\"}", "{\"\xc3\x28\":1}", `{"a":"\u12g4"}`, `{"a":"\u12G4"}`, `{"a":"\u12Af"}`, `{"a":"\u12`, `{"a":"\u123"}`, `{"a":"\u123x"}`, `{"a":"\u"}`,
		`{"a":"\x"}`, `{"a":"\`, `{"a":"\b\f\n\r\t\/\\\""}`, `{"a":tru}`, `{"a":true}`, `{"a":truex}`, `{"a":nul`, `{"a":null}`, `{"a":False}`, `{} x`, `{}{}`, `[][]`,
		`{"a":{}}}`, `[[]]]`, `[[}]`, `{"a":[}}`, "\ufeff{}", `"s"`, `1`, `null`, "{\"a\"\v:1}", `[1,2,"12345678\u0041bcdefgh","1234567"]`, `[""]`, "[\"\x00\"]", "{\"a\":\"1234567\n\"}",
		strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1),
		strings.Repeat(`{"a":`, maxDepth-1) + "[]" + strings.Repeat("}", maxDepth-1), strings.Repeat(`{"a":`, maxDepth) + "[]" + strings.Repeat("}", maxDepth),
		strings.Repeat("[", 1<<16),
	}
}

func TestWalkerAcceptsWhatJSONIs(t *testing.T) {
	for _, s := range jsonSeeds() {
		if err := walk([]byte(s)); (err == nil) != walkable([]byte(s)) {
			t.Errorf("%.80q: %v", s, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		raw := []byte(drawSpace(t) + drawJSON(t, 4) + drawSpace(t))
		if err := walk(raw); (err == nil) != walkable(raw) {
			t.Fatalf("%q: %v", raw, err)
		}
		raw = slices.Clone(raw)
		for range rapid.IntRange(1, 3).Draw(t, "mutations") {
			if len(raw) > 0 {
				raw[rapid.IntRange(0, len(raw)-1).Draw(t, "at")] = rapid.SampledFrom([]byte("{}[],:\"\\0-.eE+tfn \x00\x1f\x80")).Draw(t, "with")
			}
		}
		if rapid.Bool().Draw(t, "cut") {
			raw = raw[:rapid.IntRange(0, len(raw)).Draw(t, "length")]
		}
		if err := walk(raw); (err == nil) != walkable(raw) {
			t.Fatalf("%q: %v", raw, err)
		}
	})
}

func FuzzWalker(f *testing.F) {
	for _, s := range jsonSeeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := walk(raw); (err == nil) != walkable(raw) {
			t.Fatalf("%q: %v", raw, err)
		}
	})
}

// TestWalkerSpans compares the spans of members and elements with encoding/json.
func TestWalkerSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := []byte(drawSpace(t) + drawJSON(t, 3) + drawSpace(t))
		var got []pair
		if w := members(raw); w.wrong == "" {
			for w.next() {
				name, ok := text(quoted(w.key))
				if !ok || !keyIs(w.key, name) {
					t.Fatalf("key %q", w.key)
				}
				if from := string(raw[w.start:]); !strings.HasPrefix(from, `"`+string(w.key)+`"`) {
					t.Fatalf("member begins at %q", from)
				}
				got = append(got, pair{name, string(w.value())})
			}
			if want := pairsOf(t, raw); !slices.Equal(got, want) {
				t.Fatalf("%s:\n%q\n%q", raw, got, want)
			}
			for _, p := range got {
				if v := find(raw, p.name); v == nil {
					t.Fatalf("find %q: nothing", p.name)
				}
			}
			return
		}
		var want []json.RawMessage
		if json.Unmarshal(raw, &want) != nil || want == nil {
			return // no array
		}
		i := 0
		for w := elements(raw); w.next(); i++ {
			if v := w.value(); i >= len(want) || string(v) != string(want[i]) {
				t.Fatalf("%s: element %d is %s", raw, i, v)
			}
		}
		if n := Count(raw); i != len(want) || n != i {
			t.Fatalf("%s: %d elements, %d counted", raw, i, n)
		}
	})
}

// TestWalkerEnters loops over what is nested, sometimes leaving values untaken,
// and must see the same leaves as encoding/json, in order.
func TestWalkerEnters(t *testing.T) {
	const raw = ` {"a":1, "b":[ {"x":[1,[2],{}],"y":"s"} , {} , [] , 3 ], "c":{"d":{"e":{"f":[true]}}}, "g":[[[[[[[[0]]]]]]]] } `
	var leaves []string
	var inner func(w *walker)
	inner = func(w *walker) {
		for w.next() {
			if w.enter('{') || w.enter('[') {
				inner(w)
				continue
			}
			leaves = append(leaves, string(w.value()))
		}
	}
	w := members([]byte(raw))
	inner(&w)
	if w.failure() != nil {
		t.Fatal(w.failure())
	}
	// The outermost loop and seven more can be entered; the eighth is a value.
	if got := strings.Join(leaves, " "); got != `1 1 2 "s" 3 true [0]` {
		t.Errorf("%s", got)
	}
	for i := range raw { // cut anywhere, no loop goes on or ends well
		w := members([]byte(strings.TrimRight(raw[:i], " ")))
		inner(&w)
		if w.failure() == nil && i < len(strings.TrimRight(raw, " ")) {
			t.Errorf("%q passed", raw[:i])
		}
	}
}

func TestWalkerUntaken(t *testing.T) {
	w := members([]byte(`{"a":{"b":[1,2]},"c":[{"d":1},{"e":2}],"f":3}`))
	var keys []string
	for w.next() {
		keys = append(keys, string(w.key))
		if string(w.key) == "c" && w.enter('[') {
			for w.next() {
				if w.enter('[') {
					t.Error("entered an object as an array")
				}
			}
		}
	}
	if w.failure() != nil || strings.Join(keys, "") != "acf" {
		t.Errorf("%q, %v", keys, w.failure())
	}
	if w.next() || w.value() != nil {
		t.Error("goes on after its end")
	}
	w = members([]byte(`{"a":tru,"b":1}`))
	for w.next() {
		if w.value() != nil {
			t.Error("a value where there is none")
		}
	}
	if w.failure() == nil {
		t.Error("untaken garbage passed")
	}
}

// TestSpecial checks the lowest mark against a look at each byte.
func TestSpecial(t *testing.T) {
	check := func(v uint64) bool {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		want := slices.IndexFunc(b[:], func(c byte) bool { return c == '"' || c == '\\' || c < ' ' })
		m := special(v)
		if want < 0 {
			return m == 0
		}
		return m != 0 && bits.TrailingZeros64(m)/8 == want
	}
	edges := []byte{0, 1, 0x1f, 0x20, 0x21, '"', '#', 0x5b, '\\', 0x5d, 0x7f, 0x80, 0x9f, 0xa0, 0xa2, 0xdc, 0xff}
	for _, fill := range edges {
		for at := range 8 {
			for c := range 256 {
				b := [8]byte{fill, fill, fill, fill, fill, fill, fill, fill}
				b[at] = byte(c)
				if v := binary.LittleEndian.Uint64(b[:]); !check(v) {
					t.Fatalf("%x: %x", b, special(v))
				}
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.SampledFrom(edges)), 8, 8).Draw(t, "bytes")
		if v := binary.LittleEndian.Uint64(b); !check(v) {
			t.Fatalf("%x: %x", b, special(v))
		}
	})
}

func TestScalars(t *testing.T) {
	for raw, want := range map[string]string{`""`: "", `"a"`: "a", `"\u0041\n"`: "A\n", `"é"`: "é", "\"\xff\"": "\ufffd", `"\ud83d\ude00"`: "\U0001f600"} {
		if s, ok := text([]byte(raw)); !ok || s != want {
			t.Errorf("text %s = %q, %v", raw, s, ok)
		}
	}
	for _, raw := range []string{``, `"`, `1`, `null`, `{}`, `[]`} {
		if s, ok := text([]byte(raw)); ok || s != "" {
			t.Errorf("text %s = %q", raw, s)
		}
	}
	if v := find([]byte(`{"a":1,"\u0061":2,"b":3}`), "a"); string(v) != "2" {
		t.Errorf("of members of one name find takes %s", v)
	}
	for _, raw := range []string{``, `[]`, `"a"`, `{"b":1}`, `{`} {
		if v := find([]byte(raw), "a"); v != nil {
			t.Errorf("find in %q = %s", raw, v)
		}
	}
	for raw, name := range map[string]string{`\u0061b`: "ab", `a\u0062`: "ab", `\n\/\"\\`: "\n/\"\\", `\u00e9\ud83d\uDE00`: "é😀", `\ud83d`: "\ufffd", `\ud83dx`: "\ufffdx"} {
		if !keyIs([]byte(raw), name) || keyIs([]byte(raw), name+"a") || keyIs([]byte(raw+"a"), name) || keyIs([]byte(raw), "") || keyIs([]byte(raw), name[1:]) {
			t.Errorf("keyIs %s, %q", raw, name)
		}
	}
	if keyIs([]byte(`a\u0062`), "a") || keyIs([]byte("ab"), "a") || !keyIs([]byte(`\u0061`), "a") {
		t.Error("keyIs")
	}
}
