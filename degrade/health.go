package degrade

import (
	"fmt"
	"time"

	"tidegate/nvml"
)

// health holds a card's faults. The zero value has none: the card may be used.
type health struct {
	lostAt   time.Time // time at which it was first seen lost; zero while it is not
	brokenAt time.Time // time of its last fatal XID; zero where it had none since its reset
	xid      uint64    // code of that XID
	reason   string    // reason not to use the GPU; empty where it may be used
	code     uint64    // XID that reason names; 0 where it names a lost GPU
}

// step returns the health after a look at the card; g is nil where no source reports it. A
// lost GPU may be used when it is back, which only a reset can bring about. After a fatal XID
// a GPU may be used when it was lost and is back, or when an engine was started after the
// XID, which a GPU that needs a reset would not have allowed. A source that no longer reports
// the XID proves nothing, since an agent forgets all errors when it restarts. A source that
// has died is not believed for ever. The engine was last seen to have been restarted at
// started; zero where it never was.
func (h health) step(g *nvml.GPU, ref string, started, now time.Time) health {
	silent := g == nil
	if g != nil {
		readAt := g.MeasuredAt.Add(time.Duration(g.AgeMs) * time.Millisecond)
		silent = nvml.FreshnessAtAge(now.Sub(readAt)) == nvml.Dropped
		switch lost := g.State == nvml.StateLost; {
		case lost && h.lostAt.IsZero():
			h.lostAt = now
		case !lost && !h.lostAt.IsZero():
			h.lostAt, h.brokenAt = time.Time{}, time.Time{}
		}
		for _, x := range g.XIDs {
			if t := readAt.Add(-time.Duration(x.AgeMs) * time.Millisecond); x.Fatal && x.Code != 0 && t.After(h.brokenAt) {
				h.brokenAt, h.xid = t, x.Code
			}
		}
	}
	switch {
	case !h.lostAt.IsZero() && !(silent && started.After(h.lostAt)):
		h.explain(ref, 0)
	case !h.brokenAt.IsZero() && !started.After(h.brokenAt):
		h.explain(ref, h.xid)
	default:
		h.reason = ""
	}
	return h
}

// explain sets the reason in words, which are made once. Code 0 is a lost GPU.
func (h *health) explain(ref string, code uint64) {
	switch {
	case h.reason != "" && h.code == code:
	case code == 0:
		h.reason = "GPU " + ref + " is lost"
	default:
		h.reason = fmt.Sprintf("GPU %s needs a reset after XID %d", ref, code)
	}
	h.code = code
}
