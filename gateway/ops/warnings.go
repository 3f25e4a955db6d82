package ops

import (
	"fmt"
	"strings"
	"time"

	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/nvml"
)

// warnings returns what is wrong in a status, the most urgent first: first what callers
// notice, then what makes the gateway blind. Those of single backends are in details.
func (s *Status) warnings(details []string, now time.Time) (warnings []string) {
	warn := func(member bool, format string, args ...any) {
		if member {
			warnings = append(warnings, fmt.Sprintf(format, args...))
		}
	}
	warn(!s.Ready, "not ready, so that balancers send nothing here: %s", s.WhyNotReady)
	warn(s.Store == "down", "the database of accounts does not answer: keys that were not used in the last hour are refused with 503, and revocations are not heard")
	for i := range s.Models {
		m := &s.Models[i]
		usable := 0
		for _, b := range m.Backends {
			if b.InRotation {
				usable++
			}
		}
		instead := "its requests are refused with 503 (no_backend)"
		if m.Fallback != "" {
			instead = "its fallback " + m.Fallback + " answers"
		}
		warn(usable == 0, "model %s: none of its %d backends is in rotation: %s", m.Model, len(m.Backends), instead)
		for _, b := range m.Backends {
			warn(!b.InRotation, "model %s, backend %s: out of rotation: %s", m.Model, b.Backend, b.Reason)
		}
	}
	for i := range s.Ladder.Models {
		warnings = append(warnings, levelWarnings(&s.Ladder.Models[i], now)...)
	}
	for _, source := range s.Sources {
		warn(!source.OK, "source %s of GPU readings does not answer: %s", source.Name, source.Error)
		warn(source.Warning != "", "source %s: %s", source.Name, source.Warning)
	}
	for i := range s.GPUs {
		hot := heatWarning(&s.GPUs[i])
		warn(hot != "", "%s", hot)
		for _, x := range s.GPUs[i].XIDs {
			warn(x.Fatal && x.Code != 0, "GPU %s had XID %d: it must be reset before it can be used", s.GPUs[i].GPU, x.Code)
		}
	}
	for _, a := range s.Alerts {
		fails := a.LastError != "" && (a.LastSuccess == nil || a.LastErrorAt != nil && a.LastErrorAt.After(*a.LastSuccess))
		warn(fails, "quota alerts by %s do not get out, %d are pending: %s", a.Channel, a.Pending, a.LastError)
	}
	return append(warnings, details...)
}

// hotMargin is from how many degrees below its slowdown a card is hot, as the alert
// TidegateGPUHot has it.
const hotMargin = 6

// heatWarning returns a warning where a card is hot, or the driver holds its clocks down by heat or
// for the power supply; empty: neither, or its readings are too old to say.
func heatWarning(g *nvml.GPUStatus) string {
	if g.Freshness == nvml.Dropped.String() {
		return ""
	}
	var state []string
	if g.Margin != nil && *g.Margin < hotMargin {
		state = append(state, fmt.Sprintf("is hot: %d degrees are left to its slowdown", *g.Margin))
	}
	var held []string
	for _, reason := range g.Reasons {
		if reason == "sw_thermal" || reason == "hw_thermal" || reason == "hw_power_brake" {
			held = append(held, reason)
		}
	}
	if len(held) > 0 {
		state = append(state, "has its clocks held down by "+strings.Join(held, ", "))
	}
	if len(state) == 0 {
		return ""
	}
	return fmt.Sprintf("GPU %s %s; see docs/operating.md, \"A GPU is hot or throttled\"", g.GPU, strings.Join(state, " and "))
}

// levelWarnings returns the warnings of models whose answers are smaller than they should be: a smaller
// model or none from L3 on, or because somebody holds the level.
func levelWarnings(m *degrade.ModelStatus, now time.Time) (warnings []string) {
	start := "the start"
	if m.ChangedAt != nil {
		start = now.Sub(*m.ChangedAt).Round(time.Second).String() + " ago"
	}
	switch {
	case m.Pin != nil:
		end := "for good"
		if m.Pin.Expires != nil {
			end = "until " + m.Pin.Expires.UTC().Format(time.DateTime+" UTC")
		}
		warnings = append(warnings, fmt.Sprintf("model %s: pinned at %s by %s, %s: %s", m.Model, m.Pin.Level, m.Pin.Author, end, m.Pin.Reason))
	case m.Level == degrade.SmallerModel.String() || m.Level == degrade.Canned.String():
		warnings = append(warnings, fmt.Sprintf("model %s: at %s since %s, because of %s on backend %s", m.Model, m.Level, start, m.Reason, m.Backend))
	}
	return warnings
}

// namedExpiring is the number of keys that expire soon which a warning names.
const namedExpiring = 5

// expiryWarnings names the keys that expire soon.
func expiryWarnings(e account.Expiring) (warnings []string) {
	for i, k := range e.Keys {
		if i == namedExpiring {
			break
		}
		warnings = append(warnings, fmt.Sprintf("the key %s (id %s) of user %s expires on %s: rotate it, or let it live longer with tidegate key set", k.Name, k.ID, k.User, k.Expires.UTC().Format(time.RFC3339)))
	}
	if omitted := e.Count - len(warnings); omitted > 0 {
		warnings = append(warnings, fmt.Sprintf("%d more keys expire soon: tidegate key list", omitted))
	}
	return warnings
}

// slowWarnings returns the warnings of backends that are slower than their peers.
func slowWarnings(m *ModelStatus) (warnings []string) {
	var p pacing
	for _, b := range m.Backends {
		p.add(b.InRotation, number(b.Speed), number(b.TTFT))
	}
	speed, ttft := p.slow()
	for i, b := range m.Backends {
		if speed[i] {
			warnings = append(warnings, fmt.Sprintf("model %s, backend %s: slower than its peers: a stream of it has %.3g tokens a second, not half of theirs; see docs/operating.md, \"A slow server\"", m.Model, b.Backend, *b.Speed))
		}
		if ttft[i] {
			warnings = append(warnings, fmt.Sprintf("model %s, backend %s: slower than its peers: nine in ten wait up to %.3g s for the first token, three times as long as there; see docs/operating.md, \"A slow server\"", m.Model, b.Backend, *b.TTFT))
		}
	}
	return warnings
}

// number is a number that may not be known; 0: it is not.
func number(n *float64) float64 {
	if n == nil {
		return 0
	}
	return *n
}
