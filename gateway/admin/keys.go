package admin

import (
	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

func listKeys(r *Request) (any, error) {
	return page(r, func(p account.Page) ([]account.Key, bool, error) {
		return r.Accounts.Store().Keys(r.Context(), r.URL.Query().Get("user"), p)
	}, func(k account.Key) any { return k.ID })
}

func (a *API) createKey(r *Request) (any, error) {
	var body account.NewKey
	if err := r.decode(&body, true); err != nil {
		return nil, err
	}
	if err := a.checkModels(body.Models); err != nil {
		return nil, err
	}
	return r.Accounts.CreateKey(r.Context(), r.actor(), body)
}

func showKey(r *Request) (any, error) {
	return r.Accounts.Store().Key(r.Context(), r.PathValue("key"))
}

func rotateKey(r *Request) (any, error) {
	var body struct {
		Overlap string `json:"overlap"`
	}
	if err := r.decode(&body, false); err != nil {
		return nil, err
	}
	overlap := account.DefaultOverlap
	if body.Overlap != "" {
		var err error
		if overlap, err = account.ParseDuration(body.Overlap); err != nil {
			return nil, refusal.New(refusal.InvalidRequest, "overlap", "overlap: "+err.Error())
		}
	}
	return r.Accounts.RotateKey(r.Context(), r.actor(), r.PathValue("key"), overlap)
}

func revokeKey(r *Request) (any, error) {
	if err := r.decode(&struct{}{}, false); err != nil {
		return nil, err
	}
	keys, err := r.Accounts.Store().RevokeKey(r.Context(), r.actor(), r.PathValue("key"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"revoked": keys}, nil
}

// changeKey changes what a key may do, for how long, or its name.
func (a *API) changeKey(r *Request) (any, error) {
	var body account.KeyChange
	if err := r.decode(&body, true); err != nil {
		return nil, err
	}
	if body.Models != nil {
		if err := a.checkModels(*body.Models); err != nil {
			return nil, err
		}
	}
	return r.Accounts.ChangeKey(r.Context(), r.actor(), r.PathValue("key"), body)
}

// checkModels refuses models that the configuration does not have.
func (a *API) checkModels(models []string) error {
	return account.CheckModels(models, a.Fleet.Names())
}

// revokeSecret ends the key whose text somebody has found. The text is neither
// answered nor logged.
func revokeSecret(r *Request) (any, error) {
	var body struct {
		Secret string `json:"secret"`
	}
	if err := r.decode(&body, true); err != nil {
		return nil, err
	}
	keys, err := r.Accounts.RevokeSecret(r.Context(), r.actor(), body.Secret)
	if err != nil {
		return nil, err
	}
	return map[string]any{"revoked": listed(keys)}, nil
}
