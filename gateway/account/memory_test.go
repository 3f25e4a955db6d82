package account

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestSecrets(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := NewSecret()
		if !wellFormed(s) || seen[s] {
			t.Fatal(s)
		}
		seen[s] = true
	}
	body := strings.Repeat("a", 43)
	for text, want := range map[string]bool{
		"tg-" + body: true, "tg-" + body + "a": false, "tg-" + body[1:]: false, "tg_" + body: false, "TG-" + body: false,
		"tg-" + body[1:] + "-": false, "tg-" + body[1:] + "\x00": false, "": false, "tg-": false, "tg-" + body[2:] + "\u00e9": false,
	} {
		if wellFormed(text) != want {
			t.Errorf("%q", text)
		}
	}
}

// TestMemoryLRU plays against a list that is kept in the plainest way.
func TestMemoryLRU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 4
		l := newLRU[hash, int](size)
		var order []byte // the last used first
		values := map[byte]int{}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			k := rapid.ByteRange(0, 7).Draw(t, "key")
			at := slices.Index(order, k)
			if rapid.Bool().Draw(t, "put") {
				l.Add(hash{k}, i)
				values[k] = i
				if at < 0 {
					order = append(order, k)
					at = len(order) - 1
				}
			} else if v, ok := l.Get(hash{k}); ok != (at >= 0) || ok && v != values[k] {
				t.Fatalf("%d: %d, %v", k, v, ok)
			}
			if at >= 0 {
				order = slices.Insert(slices.Delete(order, at, at+1), 0, k)
			}
			order = order[:min(len(order), size)]
			if l.Len() != len(order) {
				t.Fatalf("%d entries, expected %d", l.Len(), len(order))
			}
			for i, sum := range l.Keys() { // the last used one comes last
				if sum != (hash{order[len(order)-1-i]}) {
					t.Fatalf("entries %v, expected %v backwards", l.Keys(), order)
				}
			}
		}
	})
}

func TestMemoryPrints(t *testing.T) {
	p := newFingerprints([]uint64{9, 1, 5})
	const n = maxRecent + maxRecent/2
	for i := range uint64(n) {
		p.add(1_000_000_000 - 7*i)
		p.add(1_000_000_000 - 7*i)
	}
	for i := range uint64(n) {
		if !p.contains(1_000_000_000-7*i) || p.contains(1_000_000_001-7*i) {
			t.Fatal(i)
		}
	}
	if !p.contains(5) || p.contains(6) || len(p.recent) != n-maxRecent || len(p.sorted) != 3+maxRecent {
		t.Errorf("%d sorted, %d fresh", len(p.sorted), len(p.recent))
	}
}

func TestMemoryBucket(t *testing.T) {
	now := time.Unix(1, 0)
	b := bucket{rate: 10, burst: 3}
	took := func() (n int) {
		for b.allow(now) {
			n++
		}
		return n
	}
	if n := took(); n != 3 {
		t.Errorf("%d at first", n)
	}
	now = now.Add(-time.Hour) // a clock that goes back gives nothing
	if n := took(); n != 0 {
		t.Errorf("%d in the past", n)
	}
	now = now.Add(200 * time.Millisecond)
	if n := took(); n != 2 {
		t.Errorf("%d after 200ms", n)
	}
	now = now.Add(time.Hour)
	if n := took(); n != 3 {
		t.Errorf("%d after an hour", n)
	}
}
