package bench

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	subBits = 6
	subs    = 1 << subBits
	bucketN = (64 - subBits) * subs
)

// Hist is a lock-free histogram of durations of fixed size. Its buckets are
// log-linear: every power of two is cut into 64 equal steps, so a quantile is at
// most 1.6 % above the true value. The zero value is ready, and any number of
// goroutines may record.
type Hist struct {
	counts [bucketN]atomic.Uint64
	n      atomic.Uint64
	max    atomic.Uint64
}

// bucketOf returns the bucket of a value in nanoseconds; bucketTop is the inverse, the
// largest value in it.
func bucketOf(v uint64) int {
	if v < subs {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)*subs + int(v>>shift) - subs
}

func bucketTop(i int) uint64 {
	if i < subs {
		return uint64(i)
	}
	shift := i/subs - 1
	return (uint64(i%subs+subs)+1)<<shift - 1
}

// Record adds one duration; negative durations count as zero.
func (h *Hist) Record(d time.Duration) {
	v := uint64(max(d, 0))
	h.counts[bucketOf(v)].Add(1)
	h.n.Add(1)
	for {
		if old := h.max.Load(); v <= old || h.max.CompareAndSwap(old, v) {
			return
		}
	}
}

// Quantile returns the smallest bucket bound that covers fraction q of values.
func (h *Hist) Quantile(q float64) time.Duration {
	n := h.n.Load()
	if n == 0 {
		return 0
	}
	rank := max(uint64(math.Ceil(q*float64(n))), 1)
	var seen uint64
	for i := range h.counts {
		seen += h.counts[i].Load()
		if seen >= rank {
			return time.Duration(min(bucketTop(i), h.max.Load()))
		}
	}
	return time.Duration(h.max.Load())
}

// Summary holds the figures that are shown of a histogram.
type Summary struct {
	Count    uint64
	P50, P99 time.Duration
	Max      time.Duration
}

// Summary reads the histogram; it is zero when nothing was recorded.
func (h *Hist) Summary() Summary {
	return Summary{h.n.Load(), h.Quantile(0.50), h.Quantile(0.99), time.Duration(h.max.Load())}
}
