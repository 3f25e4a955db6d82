package gateway

import (
	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// ownerBody holds the members of a department, project or user, beside its name in
// the path.
type ownerBody struct {
	Name       *string `json:"name"`
	Project    *string `json:"project"`    // of a user
	Department *string `json:"department"` // of a project
	Disabled   *bool   `json:"disabled"`
}

// readOwner reads the body of a route of a kind of owners. Of a new one the name is
// said, of another whether it is disabled; of both what it belongs to.
func (c *call) readOwner(k account.Kind, create bool) (b ownerBody, parent *string, err error) {
	if err := c.strict(&b, true); err != nil {
		return b, nil, err
	}
	for _, f := range []struct {
		name          string
		sent, fitting bool
	}{
		{"name", b.Name != nil, create}, {"disabled", b.Disabled != nil, !create},
		{"project", b.Project != nil, k == account.UserKind}, {"department", b.Department != nil, k == account.ProjectKind},
	} {
		if f.sent && !f.fitting {
			return b, nil, refusal.New(refusal.InvalidRequest, f.name, "unknown field "+quote(f.name))
		}
	}
	if parent = b.Project; k == account.ProjectKind {
		parent = b.Department
	}
	return b, parent, nil
}

func (g *Gateway) listOwners(k account.Kind) handler {
	return func(c *call) error {
		return page(c, func(p account.Page) ([]account.Owner, bool, error) {
			return c.settings.accounts.Store().Owners(c.r.Context(), k, c.r.URL.Query().Get(string(k.Above())), p)
		}, func(o account.Owner) any { return o.Name })
	}
}

func (g *Gateway) createOwner(k account.Kind) handler {
	return func(c *call) error {
		b, parent, err := c.readOwner(k, true)
		if err != nil {
			return err
		}
		o, err := c.settings.accounts.Store().CreateOwner(c.r.Context(), c.actor(), k, text(b.Name), text(parent))
		if err != nil {
			return err
		}
		return c.writer.sendJSON(o)
	}
}

// text returns the value of a member; empty where it is left out.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (g *Gateway) showOwner(k account.Kind) handler {
	return func(c *call) error {
		o, err := c.settings.accounts.Store().Owner(c.r.Context(), k, c.r.PathValue("name"))
		if err != nil {
			return err
		}
		return c.writer.sendJSON(o)
	}
}

// changeOwner moves, disables or enables.
func (g *Gateway) changeOwner(k account.Kind) handler {
	return func(c *call) error {
		b, parent, err := c.readOwner(k, false)
		if err != nil {
			return err
		}
		o, err := c.settings.accounts.Store().ChangeOwner(c.r.Context(), c.actor(), k, c.r.PathValue("name"), account.OwnerChange{Parent: parent, Disabled: b.Disabled})
		if err != nil {
			return err
		}
		return c.writer.sendJSON(o)
	}
}

func (g *Gateway) deleteOwner(k account.Kind) handler {
	return func(c *call) error {
		keys, err := c.settings.accounts.Store().DeleteOwner(c.r.Context(), c.actor(), k, c.r.PathValue("name"))
		if err != nil {
			return err
		}
		return c.writer.sendJSON(map[string]any{"deleted": true, "revoked": listed(keys)})
	}
}

// listed is a list that JSON shows as such where it is empty.
func listed(keys []account.Key) []account.Key {
	if keys == nil {
		return []account.Key{}
	}
	return keys
}

// changeKey changes what a key may do, for how long, or its name.
func (g *Gateway) changeKey(c *call) error {
	var body account.KeyChange
	if err := c.strict(&body, true); err != nil {
		return err
	}
	if body.Models != nil {
		if err := g.checkModels(*body.Models); err != nil {
			return err
		}
	}
	k, err := c.settings.accounts.ChangeKey(c.r.Context(), c.actor(), c.r.PathValue("key"), body)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(k)
}

// checkModels refuses models that the configuration does not have.
func (g *Gateway) checkModels(models []string) error {
	var known []string
	for _, m := range g.Fleet.Models() {
		known = append(append(known, m.Name), m.Aliases...)
	}
	return account.CheckModels(models, known)
}

// revokeUser ends all keys of a user.
func (g *Gateway) revokeUser(c *call) error {
	if err := c.strict(&struct{}{}, false); err != nil {
		return err
	}
	keys, err := c.settings.accounts.Store().RevokeUser(c.r.Context(), c.actor(), c.r.PathValue("name"))
	if err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"revoked": listed(keys)})
}

// revokeSecret ends the key whose text somebody has found. The text is neither
// answered nor logged.
func (g *Gateway) revokeSecret(c *call) error {
	var body struct {
		Secret string `json:"secret"`
	}
	if err := c.strict(&body, true); err != nil {
		return err
	}
	keys, err := c.settings.accounts.RevokeSecret(c.r.Context(), c.actor(), body.Secret)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"revoked": listed(keys)})
}
