package degrade

import (
	"slices"
	"time"

	"tidegate/nvml"
)

// maxSamples bounds the samples of a baseline.
const maxSamples = 256

// headroom is the memory of a card beside the engine. The zero value knows no baseline.
type headroom struct {
	begin    time.Time // time of the first sample
	samples  []float64 // free bytes in that window; nil once the baseline is known
	baseline float64   // median of the samples in bytes; 0 before it is known
}

// step returns the headroom after one more sample of free bytes. The baseline is the median
// of the samples of the first window. It is pure: the samples of h stay as they are.
func (h headroom) step(free float64, window time.Duration, now time.Time) headroom {
	if len(h.samples) == 0 {
		h.begin = now
	}
	if len(h.samples) < maxSamples {
		h.samples = append(slices.Clip(h.samples), free)
	}
	if now.Sub(h.begin) >= window {
		sorted := slices.Sorted(slices.Values(h.samples))
		h.baseline, h.samples = sorted[len(sorted)/2], nil
	}
	return h
}

// burned returns the share of the baseline that is gone, 0 to 1. It is not known before the
// baseline is, nor where the engine leaves no room beside it: that never had any to burn.
func (h *headroom) burned(m gpuMemory) (share float64, known bool) {
	floor := max(256<<20, m.total/400)
	if h.baseline <= floor {
		return 0, false
	}
	return min(max((h.baseline-m.free)/(h.baseline-floor), 0), 1), true
}

// gpuMemory is the memory of a card in bytes; negative where it is not known.
type gpuMemory struct{ total, used, free, reserved float64 }

// memoryOf returns the memory of a reading. It derives the free bytes from the others where
// the card does not report them.
func memoryOf(g *nvml.GPU) gpuMemory {
	m := gpuMemory{bytesOf(g.MemoryTotal), bytesOf(g.MemoryUsed), bytesOf(g.MemoryFree), max(bytesOf(g.MemoryReserved), 0)}
	if m.free < 0 && m.total > 0 && m.used >= 0 {
		m.free = max(m.total-m.used-m.reserved, 0)
	}
	return m
}

// bytesOf returns a number of bytes; negative where it is not known.
func bytesOf(v *uint64) float64 {
	if v == nil {
		return -1
	}
	return float64(*v)
}
