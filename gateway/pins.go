package gateway

import (
	"strings"

	"tidegate/gateway/account"
)

// pinned are the names under which the pin may stand that a path of
// /admin/v1/models/NAME/level is about: the own name of the model that NAME means,
// and NAME as it is, since the model of a pin may have left the configuration.
// known returns an error unless the configuration has the model. Names may have slashes, as they
// are or as %2F.
func (g *Gateway) pinned(c *call) (names []string, known bool, err error) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(c.r.URL.Path, "/admin/v1/models/"), "/level")
	if !ok {
		return nil, false, nothingAt(c.r.Method, c.r.URL.Path, "the level of a model is at /admin/v1/models/NAME/level")
	}
	m, known := g.Fleet.Model(name)
	if !known {
		return []string{name}, false, nil
	}
	return []string{m.Name, name}, true, nil
}

// listPins lists what the store holds, not what this replica has taken over: so a
// change is seen at once, whichever replica answers.
func (g *Gateway) listPins(c *call) error {
	pins, err := c.settings.accounts.Store().StoredPins(c.r.Context())
	if err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"object": "list", "data": pins, "has_more": false, "after": nil})
}

func (g *Gateway) showPin(c *call) error {
	names, _, err := g.pinned(c)
	if err != nil {
		return err
	}
	pins, err := c.settings.accounts.Store().StoredPins(c.r.Context())
	if err != nil {
		return err
	}
	p, ok := account.PinOf(pins, names...)
	if !ok {
		return account.NoPin(names[0])
	}
	return c.writer.sendJSON(p)
}

func (g *Gateway) setPin(c *call) error {
	names, known, err := g.pinned(c)
	if err != nil {
		return err
	}
	if !known {
		return g.unknownModel(c, names[0])
	}
	body := account.NewPin{Model: names[0]}
	if err := c.strict(&body, true); err != nil {
		return err
	}
	p, err := c.settings.accounts.Store().SetPin(c.r.Context(), c.actor(), body)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(p)
}

func (g *Gateway) liftPin(c *call) error {
	names, _, err := g.pinned(c)
	if err != nil {
		return err
	}
	p, err := c.settings.accounts.Store().LiftPin(c.r.Context(), c.actor(), names...)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"lifted": p})
}
