package bench

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestIndexUpperRoundTrip(t *testing.T) {
	for _, v := range []uint64{0, 1, 63, 64, 65, 127, 128, 1000, 1 << 20, 1<<40 + 12345, 1<<62 + 7} {
		i := bucketOf(v)
		if up := bucketTop(i); up < v {
			t.Errorf("bucketTop(%d)=%d is below its value %d", i, up, v)
		}
		if i > 0 && bucketTop(i-1) >= v {
			t.Errorf("value %d also fits bucket %d", v, i-1)
		}
	}
}

func TestQuantilesWithinTolerance(t *testing.T) {
	var h Hist
	vals := make([]time.Duration, 100_000)
	for i := range vals {
		vals[i] = time.Duration(rand.ExpFloat64() * float64(time.Millisecond))
		h.Record(vals[i])
	}
	slices.Sort(vals)
	for _, q := range []float64{0.5, 0.9, 0.99, 0.999, 1} {
		want := float64(vals[int(q*float64(len(vals)))-1])
		got := float64(h.Quantile(q))
		if got < want || got > want*1.02 {
			t.Errorf("q%v: got %v want %v (+2%%)", q, got, want)
		}
	}
}

func TestEmptyHistogram(t *testing.T) {
	var h Hist
	if h.Summary() != (Summary{}) {
		t.Fatal("the summary of an empty histogram is not zero")
	}
}
