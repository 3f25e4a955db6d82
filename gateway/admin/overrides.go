package admin

import (
	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

func listOverrides(r *Request) (any, error) {
	return page(r, func(p account.Page) ([]account.Override, bool, error) {
		return r.Accounts.Store().StoredOverrides(r.Context(), p)
	}, func(o account.Override) any { return o.Path() })
}

func (a *API) setOverride(r *Request) (any, error) {
	var body account.Override
	if err := r.decode(&body, true); err != nil {
		return nil, err
	}
	if err := body.Validate(); err != nil {
		return nil, err
	}
	if err := a.Admission.CheckOverride(limit.Override{Rule: body.Rule, Scope: body.Scope, Name: body.Name, Numbers: body.Numbers()}); err != nil {
		return nil, refusal.New(refusal.InvalidRequest, "", err.Error())
	}
	if err := r.Accounts.Store().SetOverride(r.Context(), r.actor(), body); err != nil {
		return nil, err
	}
	return body, nil
}

func deleteOverride(r *Request) (any, error) {
	if err := r.Accounts.Store().DeleteOverride(r.Context(), r.actor(), r.PathValue("of"), r.PathValue("name"), r.PathValue("rule")); err != nil {
		return nil, err
	}
	return map[string]any{"deleted": true}, nil
}
