package jsonwalk

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"tidegate/gateway/jsonwalk/jsontest"
)

// compareBorders checks that the functions that only find borders agree with the Walker on
// each text that it accepts.
func compareBorders(t interface {
	Helper()
	Fatalf(string, ...any)
}, raw []byte) {
	t.Helper()
	if walk(raw) != nil {
		_ = EachElement(raw, func(int, []byte) error { return nil }) // must not panic
		_ = EachMember(raw, func(_, _ []byte) error { return nil })
		_ = Depth(raw)
		return
	}
	if end := SkipValue(raw, SkipSpace(raw, 0)); SkipSpace(raw, end) != len(raw) {
		t.Fatalf("%q: the value ends at %d", raw, end)
	}
	w, loop := Members(raw), EachMember
	array := w.wrong != ""
	if array {
		w = Elements(raw)
		loop = func(b []byte, f func(_, value []byte) error) error {
			return EachElement(b, func(_ int, element []byte) error { return f(nil, element) })
		}
	}
	err := loop(raw, func(key, value []byte) error {
		if !w.Next() || !array && !KeyIs(w.Key, string(key)) {
			t.Fatalf("%q: key %q, the walker has %q", raw, key, w.Key)
		}
		if want := w.Value(); string(value) != string(want) {
			t.Fatalf("%q: value %q, the walker has %q", raw, value, want)
		}
		return nil
	})
	if err != nil || w.Next() {
		t.Fatalf("%q: ends early: %v", raw, err)
	}
	stop := errors.New("stop")
	if err := loop(raw, func(_, _ []byte) error { return stop }); Count(raw) > 0 && !errors.Is(err, stop) {
		t.Fatalf("%q: does not stop: %v", raw, err)
	}
}

func TestBorders(t *testing.T) {
	for _, s := range jsontest.Seeds(maxDepth) {
		compareBorders(t, []byte(s))
	}
	rapid.Check(t, func(t *rapid.T) {
		compareBorders(t, []byte(jsontest.Space(t)+jsontest.Value(t, 4)+jsontest.Space(t)))
	})
	for _, bad := range []string{"", "1", "{}", "[1", "[1 2]", "[1]x", "[,1]", "]"} {
		if err := EachElement([]byte(bad), func(int, []byte) error { return nil }); !errors.Is(err, ErrNotJSON) {
			t.Errorf("elements of %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "1", "[]", `{"a"`, `{"a":1`, `{"a":1 "b":2}`, `{a:1}`, `{"a":1}x`} {
		if err := EachMember([]byte(bad), func(_, _ []byte) error { return nil }); !errors.Is(err, ErrNotJSON) {
			t.Errorf("members of %q: %v", bad, err)
		}
	}
}

func FuzzBorders(f *testing.F) {
	for _, s := range jsontest.Seeds(maxDepth) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { compareBorders(t, raw) })
}
