package nvml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// clean makes readings from outside safe to use. It leaves out GPUs without a UUID, with the
// UUID of another, or without any value. It bounds texts, and clears numbers that no GPU can
// have. The warning names the GPUs and values concerned, without the numbers, so that it stays
// the same while the fault lasts.
func clean(gpus []*GPU, name string) (out []*GPU, warning string) {
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
		if isEmpty(&g.Reading) {
			mute = append(mute, g.UUID)
			continue
		}
		if values := clearImpossible(&g.Reading); len(values) > 0 {
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
	sortGPUs(out)
	if len(mute) > 0 {
		warning = "0 C, 0 W and 0 bytes are no reading, so these GPUs have none: " + shorten(mute) + "; does the source reach the driver?"
	}
	if len(odd) > 0 {
		warning = join(warning, "values that no GPU can have are left out: "+shorten(odd))
	}
	return slices.Clip(out), warning
}

// shorten returns the first names of a list and the number of the rest.
func shorten(names []string) string {
	const shown = 4
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// isEmpty reports whether temperature, power and memory are all 0 where a reading has them. An
// exporter that does not reach the driver reports that: no GPU is at 0 degrees, draws nothing
// and has no memory. A MIG device has only the temperature of its GPU, and its own memory.
func isEmpty(r *Reading) bool {
	present := 0
	for _, v := range []*uint64{r.Power, r.MemoryTotal, r.MemoryUsed, r.MemoryFree} {
		if v != nil {
			present++
			if *v != 0 {
				return false
			}
		}
	}
	for _, v := range []*int{r.Temperature, r.HBM} {
		if v != nil {
			present++
			if *v != 0 {
				return false
			}
		}
	}
	return present > 1 && (r.Margin == nil || *r.Margin == 0)
}

// clearImpossible clears values that no GPU can have, and returns the names of those that were
// out of bounds. A 0 that stands for an unknown value is cleared, but is no fault.
func clearImpossible(r *Reading) (odd []string) {
	doubt := func(invalid bool, name string) {
		if invalid && !slices.Contains(odd, name) {
			odd = append(odd, name)
		}
	}
	doubt(clearOutside(&r.Margin, -100, 200), "margin")
	doubt(clearOutside(&r.Temperature, -50, 200), "temperature")
	doubt(clearOutside(&r.HBM, -50, 200), "memory temperature")
	doubt(clearOutside(&r.Utilisation, 0, 100), "utilisation")
	// A missing sensor reads 0, and so does a margin that was computed from it.
	if r.Temperature != nil && *r.Temperature == 0 {
		if r.Temperature = nil; r.Margin != nil && *r.Margin == 0 {
			r.Margin = nil
		}
	}
	if r.HBM != nil && *r.HBM == 0 {
		r.HBM = nil
	}
	const watt, mebibyte = 1000, 1 << 20
	doubt(clearOutside(&r.Power, 0, 1e6*watt), "power")
	doubt(clearOutside(&r.PowerLimit, 0, 1e6*watt), "power limit")
	for _, m := range []**uint64{&r.MemoryTotal, &r.MemoryUsed, &r.MemoryFree, &r.MemoryReserved} {
		doubt(clearOutside(m, 0, 1<<24*mebibyte), "memory")
	}
	if r.Power != nil && *r.Power == 0 {
		r.Power = nil
	}
	if r.MemoryTotal != nil && *r.MemoryTotal == 0 {
		r.MemoryTotal = nil
	}
	if total := r.MemoryTotal; total != nil {
		for _, m := range []**uint64{&r.MemoryUsed, &r.MemoryFree, &r.MemoryReserved} {
			doubt(clearOutside(m, 0, *total), "memory above its total")
		}
	} else if r.MemoryUsed != nil && r.MemoryFree != nil && *r.MemoryUsed+*r.MemoryFree == 0 {
		r.MemoryUsed, r.MemoryFree = nil, nil
	}
	return odd
}

// sortGPUs sorts GPUs by index, and marks those that share the index of another.
func sortGPUs(gpus []*GPU) {
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
		// A lost GPU keeps its index, which the driver may have reassigned.
		gpus[i].shadowed = gpus[i].Parent == "" && gpus[i-1].Parent == "" && gpus[i].Index == gpus[i-1].Index
	}
}

// stalenessWarning names the GPUs whose values are too old for any decision; empty: none.
func stalenessWarning(gpus []*GPU, now time.Time) string {
	var old []string
	for _, g := range gpus {
		if g.State == StateOK && g.Freshness(now) == Dropped {
			old = append(old, g.Ref())
		}
	}
	if len(old) == 0 {
		return ""
	}
	return fmt.Sprintf("values older than %v are not used: %s", heldFor, shorten(old))
}

// cleanThrottle drops a map that would create an unbounded number of series.
func cleanThrottle(r *Reading) {
	for reason := range r.ThrottleNs {
		if len(r.ThrottleNs) > maxReasons || cleanText(reason) != reason {
			r.ThrottleNs = nil
			return
		}
	}
}

// cleanText bounds a text, and drops control characters.
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

// clearOutside clears a value that is out of bounds, and reports whether it was.
func clearOutside[N int | uint64](v **N, low, high N) bool {
	if *v != nil && (**v < low || **v > high) {
		*v = nil
		return true
	}
	return false
}
