package admin

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
func (r *Request) readOwner(k account.Kind, create bool) (b ownerBody, parent *string, err error) {
	if err := r.decode(&b, true); err != nil {
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
			return b, nil, refusal.New(refusal.InvalidRequest, f.name, "unknown field "+refusal.Quote(f.name))
		}
	}
	if parent = b.Project; k == account.ProjectKind {
		parent = b.Department
	}
	return b, parent, nil
}

func listOwners(k account.Kind) Handler {
	return func(r *Request) (any, error) {
		return page(r, func(p account.Page) ([]account.Owner, bool, error) {
			return r.Accounts.Store().Owners(r.Context(), k, r.URL.Query().Get(string(k.Parent())), p)
		}, func(o account.Owner) any { return o.Name })
	}
}

func createOwner(k account.Kind) Handler {
	return func(r *Request) (any, error) {
		b, parent, err := r.readOwner(k, true)
		if err != nil {
			return nil, err
		}
		return r.Accounts.Store().CreateOwner(r.Context(), r.actor(), k, text(b.Name), text(parent))
	}
}

// text returns the value of a member; empty where it is left out.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func showOwner(k account.Kind) Handler {
	return func(r *Request) (any, error) {
		return r.Accounts.Store().Owner(r.Context(), k, r.PathValue("name"))
	}
}

// changeOwner moves, disables or enables.
func changeOwner(k account.Kind) Handler {
	return func(r *Request) (any, error) {
		b, parent, err := r.readOwner(k, false)
		if err != nil {
			return nil, err
		}
		return r.Accounts.Store().ChangeOwner(r.Context(), r.actor(), k, r.PathValue("name"), account.OwnerChange{Parent: parent, Disabled: b.Disabled})
	}
}

func deleteOwner(k account.Kind) Handler {
	return func(r *Request) (any, error) {
		keys, err := r.Accounts.Store().DeleteOwner(r.Context(), r.actor(), k, r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return map[string]any{"deleted": true, "revoked": listed(keys)}, nil
	}
}

// listed is a list that JSON shows as such where it is empty.
func listed(keys []account.Key) []account.Key {
	if keys == nil {
		return []account.Key{}
	}
	return keys
}

// revokeUser ends all keys of a user.
func revokeUser(r *Request) (any, error) {
	if err := r.decode(&struct{}{}, false); err != nil {
		return nil, err
	}
	keys, err := r.Accounts.Store().RevokeUser(r.Context(), r.actor(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"revoked": listed(keys)}, nil
}
