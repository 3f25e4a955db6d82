package gateway

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
)

// quotaStatus reports the caller's own limits: GET /quota/status.
func (g *Gateway) quotaStatus(c *call) error {
	if name := c.r.URL.Query().Get("model"); name != "" {
		m, err := g.pickModel(c, name)
		if err != nil {
			return err
		}
		c.request.model = m
	}
	worst := g.hottest(c)
	s, err := g.Admission.Status(c.r.Context(), limit.Request{Subjects: c.limitSubjects(), Tier: string(c.caller.Tier), Level: int(worst.level), Reason: worst.Reason})
	if err != nil {
		return err
	}
	out := struct {
		Used      *int64     `json:"used,omitempty"` // of the tightest quota
		Limit     *int64     `json:"limit,omitempty"`
		Remaining *int64     `json:"remaining,omitempty"`
		ResetsAt  *time.Time `json:"resets_at,omitempty"`
		Pressure  *pressed   `json:"pressure,omitempty"` // by which limits may have shrunk
		Key       *ownKey    `json:"key,omitempty"`
		limit.Status
	}{Status: s, Key: c.ownKey()}
	if worst.level > degrade.Full {
		out.Pressure = &worst
	}
	if t, ok := s.Tightest(); ok {
		out.Used, out.Limit, out.Remaining, out.ResetsAt = &t.Used, &t.Limit, &t.Remaining, &t.ResetsAt
	}
	return c.writer.sendJSON(out)
}

// ownKey is the caller's key.
type ownKey struct {
	Name    string     `json:"name"`
	ID      string     `json:"id,omitempty"` // of a key of the store
	Expires *time.Time `json:"expires_at"`   // null: never
}

// ownKey returns what the caller may know of its key; nil: it has none.
func (c *call) ownKey() *ownKey {
	if c.caller.Key == account.Open && c.caller.KeyID == "" {
		return nil
	}
	k := &ownKey{Name: c.caller.Key, ID: c.caller.KeyID}
	if !c.caller.Expires.IsZero() {
		k.Expires = &c.caller.Expires
	}
	return k
}

// pressed is a model under pressure.
type pressed struct {
	Model  string `json:"model"`
	Level  string `json:"level"`
	Reason string `json:"reason"`
	level  degrade.Level
}

// hottest returns the model that the caller named, or of those that it may use the one
// at the highest level for it: the limits that it sees are those for this one.
func (g *Gateway) hottest(c *call) (worst pressed) {
	for _, m := range g.Fleet.Models() {
		if c.request.model != nil && c.request.model != m || !c.mayUse(m) {
			continue
		}
		if level, reason := m.Pool.TierLevel(string(c.caller.Tier)); worst.Model == "" || level > worst.level {
			worst = pressed{m.Name, level.String(), reason, level}
		}
	}
	return worst
}
