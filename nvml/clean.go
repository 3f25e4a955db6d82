package nvml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// clean makes what came from outside fit for use: GPUs without a UUID, second ones
// of the same UUID and those that say nothing are left out, texts are bounded, and
// numbers that no GPU can have are unknown. doubts tells what was not believed, by
// GPU and value without the numbers, so that it stays the same while the fault does.
func clean(gpus []*GPU, name string) (out []*GPU, doubts string) {
	seen := make(map[string]bool, len(gpus))
	var mute, odd []string
	for _, g := range gpus {
		g.Source = name
		for _, s := range []*string{&g.UUID, &g.Name, &g.Parent, &g.State} {
			*s = cleanText(*s)
		}
		if g.UUID == "" || seen[g.UUID] || len(out) == maxGPUs {
			continue
		}
		seen[g.UUID] = true
		if g.State != StateWedged && g.State != StateLost {
			g.State = StateOK
		}
		if saysNothing(&g.Reading) {
			mute = append(mute, g.UUID)
			continue
		}
		if values := disbelieve(&g.Reading); len(values) > 0 {
			odd = append(odd, g.UUID+" ("+strings.Join(values, ", ")+")")
		}
		g.XIDs = g.XIDs[max(len(g.XIDs)-MaxXIDs, 0):]
		g.Reasons = g.Reasons[:min(len(g.Reasons), maxReasons)]
		for i := range g.Reasons {
			g.Reasons[i] = cleanText(g.Reasons[i])
		}
		cleanThrottle(&g.Reading)
		out = append(out, g)
	}
	order(out)
	if len(mute) > 0 {
		doubts = "0 C, 0 W and 0 bytes are no reading, so these GPUs have none: " + shortened(mute) + "; does the source reach the driver?"
	}
	if len(odd) > 0 {
		doubts = join(doubts, "values that no GPU can have are left out: "+shortened(odd))
	}
	return slices.Clip(out), doubts
}

// shortened is the begin of a list in words.
func shortened(all []string) string {
	const shown = 4
	if len(all) <= shown {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:shown], ", "), len(all)-shown)
}

// saysNothing reports whether all of temperature, power and memory that a reading
// gives is 0, as of an exporter that does not reach the driver: no GPU is at 0
// degrees, draws nothing and has no memory. Of a MIG device only the heat, which is
// its GPU's, and its memory are given.
func saysNothing(r *Reading) bool {
	given := 0
	for _, v := range []*uint64{r.Power, r.MemoryTotal, r.MemoryUsed, r.MemoryFree} {
		if v != nil {
			given++
			if *v != 0 {
				return false
			}
		}
	}
	for _, v := range []*int{r.Temperature, r.HBM} {
		if v != nil {
			given++
			if *v != 0 {
				return false
			}
		}
	}
	return given > 1 && (r.Margin == nil || *r.Margin == 0)
}

// disbelieve makes unknown what no GPU can have, and returns the names of what was
// beyond all bounds. A 0 that stands for a value that is not known is no fault.
func disbelieve(r *Reading) (odd []string) {
	doubt := func(is bool, name string) {
		if is && !slices.Contains(odd, name) {
			odd = append(odd, name)
		}
	}
	doubt(within(&r.Margin, -100, 200), "margin")
	doubt(within(&r.Temperature, -50, 200), "temperature")
	doubt(within(&r.HBM, -50, 200), "memory temperature")
	doubt(within(&r.Utilisation, 0, 100), "utilisation")
	// A sensor that is not there says 0, and the margin that was reckoned from it too.
	if r.Temperature != nil && *r.Temperature == 0 {
		if r.Temperature = nil; r.Margin != nil && *r.Margin == 0 {
			r.Margin = nil
		}
	}
	if r.HBM != nil && *r.HBM == 0 {
		r.HBM = nil
	}
	const watt, mebibyte = 1000, 1 << 20
	doubt(within(&r.Power, 0, 1e6*watt), "power")
	doubt(within(&r.PowerLimit, 0, 1e6*watt), "power limit")
	for _, m := range []**uint64{&r.MemoryTotal, &r.MemoryUsed, &r.MemoryFree, &r.MemoryReserved} {
		doubt(within(m, 0, 1<<24*mebibyte), "memory")
	}
	if r.Power != nil && *r.Power == 0 {
		r.Power = nil
	}
	if r.MemoryTotal != nil && *r.MemoryTotal == 0 {
		r.MemoryTotal = nil
	}
	if total := r.MemoryTotal; total != nil {
		for _, m := range []**uint64{&r.MemoryUsed, &r.MemoryFree, &r.MemoryReserved} {
			doubt(within(m, 0, *total), "memory above its total")
		}
	} else if r.MemoryUsed != nil && r.MemoryFree != nil && *r.MemoryUsed+*r.MemoryFree == 0 {
		r.MemoryUsed, r.MemoryFree = nil, nil
	}
	return odd
}

// order sorts GPUs by index, and marks those whose index another has.
func order(gpus []*GPU) {
	lost := func(g *GPU) int {
		if g.State == StateLost {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(gpus, func(a, b *GPU) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), strings.Compare(a.Parent, b.Parent), cmp.Compare(lost(a), lost(b)))
	})
	for i := 1; i < len(gpus); i++ {
		// A lost GPU keeps its index, which the driver may have given to another since.
		gpus[i].shadowed = gpus[i].Parent == "" && gpus[i-1].Parent == "" && gpus[i].Index == gpus[i-1].Index
	}
}

// tooOld tells which GPUs have values that are too old for any decision; empty: none.
func tooOld(gpus []*GPU, now time.Time) string {
	var old []string
	for _, g := range gpus {
		if g.State == StateOK && g.Freshness(now) == Dropped {
			old = append(old, g.Ref())
		}
	}
	if len(old) == 0 {
		return ""
	}
	return fmt.Sprintf("values older than %v are not used: %s", heldFor, shortened(old))
}

// cleanThrottle leaves out a map that would make series without end.
func cleanThrottle(r *Reading) {
	for reason := range r.ThrottleNs {
		if len(r.ThrottleNs) > maxReasons || cleanText(reason) != reason {
			r.ThrottleNs = nil
			return
		}
	}
}

// cleanText bounds a text, and drops what a terminal could take for an order.
func cleanText(s string) string {
	plain := len(s) <= maxText
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), maxText)], ""))
}

// within makes unknown what is out of bounds, and reports whether it was.
func within[N int | uint64](v **N, low, high N) bool {
	if *v != nil && (**v < low || **v > high) {
		*v = nil
		return true
	}
	return false
}
