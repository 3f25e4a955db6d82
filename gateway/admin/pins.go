package admin

import (
	"strings"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// pinned returns the names under which the pin may be stored that a path of
// /admin/v1/models/NAME/level means: the own name of the model that NAME means, and NAME
// as it is, since the model of a pin may have left the configuration. known reports
// whether the configuration has the model. Names may have slashes, as they are or as %2F.
func (a *API) pinned(r *Request) (names []string, known bool, err error) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/admin/v1/models/"), "/level")
	if !ok {
		return nil, false, refusal.NothingAt(r.Method, r.URL.Path, "the level of a model is at /admin/v1/models/NAME/level")
	}
	m, known := a.Fleet.Model(name)
	if !known {
		return []string{name}, false, nil
	}
	return []string{m.Name, name}, true, nil
}

// listPins lists what the store holds, not what this replica has taken over: so a
// change is seen at once, whichever replica answers.
func listPins(r *Request) (any, error) {
	pins, err := r.Accounts.Store().StoredPins(r.Context())
	if err != nil {
		return nil, err
	}
	return map[string]any{"object": "list", "data": pins, "has_more": false, "after": nil}, nil
}

func (a *API) showPin(r *Request) (any, error) {
	names, _, err := a.pinned(r)
	if err != nil {
		return nil, err
	}
	pins, err := r.Accounts.Store().StoredPins(r.Context())
	if err != nil {
		return nil, err
	}
	p, ok := account.FindPin(pins, names...)
	if !ok {
		return nil, account.NotPinned(names[0])
	}
	return p, nil
}

func (a *API) setPin(r *Request) (any, error) {
	names, known, err := a.pinned(r)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, refusal.UnknownModel(names[0], a.Fleet.Names())
	}
	body := account.NewPin{Model: names[0]}
	if err := r.decode(&body, true); err != nil {
		return nil, err
	}
	return r.Accounts.Store().SetPin(r.Context(), r.actor(), body)
}

func (a *API) liftPin(r *Request) (any, error) {
	names, _, err := a.pinned(r)
	if err != nil {
		return nil, err
	}
	p, err := r.Accounts.Store().LiftPin(r.Context(), r.actor(), names...)
	if err != nil {
		return nil, err
	}
	return map[string]any{"lifted": p}, nil
}
