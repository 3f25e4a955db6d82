package limit

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRecent: what is kept in order answer by answer is what sorting the last answers gives.
func TestRecent(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var r recent
	var all []int32
	for i := range 1000 {
		value := random.Int32N(1 << random.IntN(20))
		r.add(value)
		all = append(all, value)
		last := slices.Clone(all[max(len(all)-recentOutputs, 0):])
		if !slices.Equal(last, slices.Concat(r.inTime[r.next:], r.inTime[:r.next])) {
			t.Fatalf("after %d values: the last are %v, want %v", i+1, r.inTime, last)
		}
		slices.Sort(last)
		if !slices.Equal(r.bySize, last) {
			t.Fatalf("after %d values: by size %v, want %v", i+1, r.bySize, last)
		}
	}
}
