package gateway

import (
	"fmt"
	"strings"
	"time"

	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/nvml"
)

// warnings says what of a status is wrong, the most urgent first: first what callers
// notice, then what makes the gateway blind. Those of single backends are in details.
func (s *Status) warnings(details []string, now time.Time) (all []string) {
	warn := func(is bool, format string, args ...any) {
		if is {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	warn(!s.Ready, "not ready, so that balancers send nothing here: %s", s.WhyNotReady)
	warn(s.Store == "down", "the database of accounts does not answer: keys that were not used in the last hour are refused with 503, and revocations are not heard")
	for i := range s.Models {
		m := &s.Models[i]
		up := 0
		for _, b := range m.Backends {
			if b.Up {
				up++
			}
		}
		instead := "its requests are refused with 503 (no_backend)"
		if m.Fallback != "" {
			instead = "its fallback " + m.Fallback + " answers"
		}
		warn(up == 0, "model %s: none of its %d backends is in rotation: %s", m.Model, len(m.Backends), instead)
		for _, b := range m.Backends {
			warn(!b.Up, "model %s, backend %s: out of rotation: %s", m.Model, b.Backend, b.Why)
		}
	}
	for i := range s.Ladder.Models {
		all = append(all, levelWarnings(&s.Ladder.Models[i], now)...)
	}
	for _, source := range s.Sources {
		warn(!source.OK, "source %s of GPU readings does not answer: %s", source.Name, source.Error)
		warn(source.Warning != "", "source %s: %s", source.Name, source.Warning)
	}
	for i := range s.GPUs {
		hot := heatWarning(&s.GPUs[i])
		warn(hot != "", "%s", hot)
		for _, x := range s.GPUs[i].XIDs {
			warn(x.Fatal, "GPU %s had XID %d: it must be reset before it can be used", s.GPUs[i].GPU, x.Code)
		}
	}
	for _, a := range s.Alerts {
		fails := a.LastError != "" && (a.LastSuccess == nil || a.LastErrorAt != nil && a.LastErrorAt.After(*a.LastSuccess))
		warn(fails, "quota alerts by %s do not get out, %d are pending: %s", a.Channel, a.Pending, a.LastError)
	}
	return append(all, details...)
}

// hotMargin is from how many degrees below its slowdown a card is hot, as the alert
// TidegateGPUHot has it.
const hotMargin = 6

// heatWarning says that a card is hot, or that the driver holds its clocks down by heat or
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

// levelWarnings says that a model's answers are smaller than they should be: a smaller
// model or none from L3 on, or because somebody holds the level.
func levelWarnings(m *degrade.ModelStatus, now time.Time) (all []string) {
	since := "the start"
	if m.ChangedAt != nil {
		since = now.Sub(*m.ChangedAt).Round(time.Second).String() + " ago"
	}
	switch {
	case m.Pin != nil:
		until := "for good"
		if m.Pin.Expires != nil {
			until = "until " + m.Pin.Expires.UTC().Format(time.DateTime+" UTC")
		}
		all = append(all, fmt.Sprintf("model %s: pinned at %s by %s, %s: %s", m.Model, m.Pin.Level, m.Pin.Author, until, m.Pin.Reason))
	case m.Level == degrade.SmallerModel.String() || m.Level == degrade.Canned.String():
		all = append(all, fmt.Sprintf("model %s: at %s since %s, because of %s on backend %s", m.Model, m.Level, since, m.Reason, m.Backend))
	}
	return all
}

// namedExpiring is how many of the keys that expire soon are named in warnings.
const namedExpiring = 5

// expiryWarnings names the keys that expire soon.
func expiryWarnings(e account.Expiring) (all []string) {
	for i, k := range e.Keys {
		if i == namedExpiring {
			break
		}
		all = append(all, fmt.Sprintf("the key %s (id %s) of user %s expires on %s: rotate it, or let it live longer with tidegate key set", k.Name, k.ID, k.User, k.Expires.UTC().Format(time.RFC3339)))
	}
	if more := e.Count - len(all); more > 0 {
		all = append(all, fmt.Sprintf("%d more keys expire soon: tidegate key list", more))
	}
	return all
}

// slowWarnings says which backends are slower than their peers.
func slowWarnings(m *ModelStatus) (all []string) {
	var p pacing
	for _, b := range m.Backends {
		p.add(b.Up, number(b.Speed), number(b.TTFT))
	}
	speed, ttft := p.slow()
	for i, b := range m.Backends {
		if speed[i] {
			all = append(all, fmt.Sprintf("model %s, backend %s: slower than its peers: a stream of it has %.3g tokens a second, not half of theirs; see docs/operating.md, \"A slow server\"", m.Model, b.Backend, *b.Speed))
		}
		if ttft[i] {
			all = append(all, fmt.Sprintf("model %s, backend %s: slower than its peers: nine in ten wait up to %.3g s for the first token, three times as long as there; see docs/operating.md, \"A slow server\"", m.Model, b.Backend, *b.TTFT))
		}
	}
	return all
}

// number is a number that may not be known; 0: it is not.
func number(n *float64) float64 {
	if n == nil {
		return 0
	}
	return *n
}
