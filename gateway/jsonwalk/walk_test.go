package jsonwalk

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

// walk reads raw as an object or an array to its end.
func walk(raw []byte) error {
	w := Elements(raw)
	if w.wrong != "" {
		w = Members(raw)
	}
	for w.Next() {
		w.Value()
	}
	return w.Err()
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

func TestWalkerAcceptsWhatJSONIs(t *testing.T) {
	for _, s := range jsontest.Seeds(maxDepth) {
		if err := walk([]byte(s)); (err == nil) != walkable([]byte(s)) {
			t.Errorf("%.80q: %v", s, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		raw := []byte(jsontest.Space(t) + jsontest.Value(t, 4) + jsontest.Space(t))
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
	for _, s := range jsontest.Seeds(maxDepth) {
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
		raw := []byte(jsontest.Space(t) + jsontest.Value(t, 3) + jsontest.Space(t))
		var got []jsontest.Pair
		if w := Members(raw); w.wrong == "" {
			for w.Next() {
				name, ok := Text(Quote(w.Key))
				if !ok || !KeyIs(w.Key, name) {
					t.Fatalf("key %q", w.Key)
				}
				if from := string(raw[w.Start:]); !strings.HasPrefix(from, `"`+string(w.Key)+`"`) {
					t.Fatalf("member begins at %q", from)
				}
				got = append(got, jsontest.Pair{Name: name, Value: string(w.Value())})
			}
			if want := jsontest.Pairs(t, raw); !slices.Equal(got, want) {
				t.Fatalf("%s:\n%q\n%q", raw, got, want)
			}
			for _, p := range got {
				if v := Find(raw, p.Name); v == nil {
					t.Fatalf("find %q: nothing", p.Name)
				}
			}
			return
		}
		var want []json.RawMessage
		if json.Unmarshal(raw, &want) != nil || want == nil {
			return // no array
		}
		i := 0
		for w := Elements(raw); w.Next(); i++ {
			if v := w.Value(); i >= len(want) || string(v) != string(want[i]) {
				t.Fatalf("%s: element %d is %s", raw, i, v)
			}
		}
		if n := Count(raw); i != len(want) || n != i {
			t.Fatalf("%s: %d elements, %d counted", raw, i, n)
		}
	})
}

// TestWalkerEnters loops over nested values, sometimes leaving values unread,
// and must see the same leaves as encoding/json, in order.
func TestWalkerEnters(t *testing.T) {
	const raw = ` {"a":1, "b":[ {"x":[1,[2],{}],"y":"s"} , {} , [] , 3 ], "c":{"d":{"e":{"f":[true]}}}, "g":[[[[[[[[0]]]]]]]] } `
	var leaves []string
	var inner func(w *Walker)
	inner = func(w *Walker) {
		for w.Next() {
			if w.Enter('{') || w.Enter('[') {
				inner(w)
				continue
			}
			leaves = append(leaves, string(w.Value()))
		}
	}
	w := Members([]byte(raw))
	inner(&w)
	if w.Err() != nil {
		t.Fatal(w.Err())
	}
	// The outermost loop and seven more can be entered; the eighth is a value.
	if got := strings.Join(leaves, " "); got != `1 1 2 "s" 3 true [0]` {
		t.Errorf("%s", got)
	}
	for i := range raw { // cut anywhere, no loop goes on or ends well
		w := Members([]byte(strings.TrimRight(raw[:i], " ")))
		inner(&w)
		if w.Err() == nil && i < len(strings.TrimRight(raw, " ")) {
			t.Errorf("%q passed", raw[:i])
		}
	}
}

func TestWalkerUnread(t *testing.T) {
	w := Members([]byte(`{"a":{"b":[1,2]},"c":[{"d":1},{"e":2}],"f":3}`))
	var keys []string
	for w.Next() {
		keys = append(keys, string(w.Key))
		if string(w.Key) == "c" && w.Enter('[') {
			for w.Next() {
				if w.Enter('[') {
					t.Error("entered an object as an array")
				}
			}
		}
	}
	if w.Err() != nil || strings.Join(keys, "") != "acf" {
		t.Errorf("%q, %v", keys, w.Err())
	}
	if w.Next() || w.Value() != nil {
		t.Error("goes on after its end")
	}
	w = Members([]byte(`{"a":tru,"b":1}`))
	for w.Next() {
		if w.Value() != nil {
			t.Error("a value where there is none")
		}
	}
	if w.Err() == nil {
		t.Error("unread garbage passed")
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
