package gateway

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// adminTimeout bounds the time of a route of /admin/v1/, so that none waits for
// ever where the database hangs.
const adminTimeout = 10 * time.Second

// admin lets only administrators through to a route of /admin/v1/. What the store
// fails with, or is too slow for, is the store's failure, not a model server's.
func admin(h handler) handler {
	return func(c *call) error {
		c.writer.w.Header().Set("Cache-Control", "no-store")
		var err error
		if c.caller, err = c.settings.accounts.IdentifyAdministrator(c.r.Context(), authorization(c.r.Header), c.clientAddr()); err != nil {
			return err
		}
		c.showExpiry()
		if !c.caller.Admin {
			return refusal.New(refusal.AccessDenied, "", "this needs an administrator's key: make one with tidegate key create --admin")
		}
		if err := c.checkTexts(); err != nil {
			return err
		}
		caller := c.r.Context()
		ctx, cancel := context.WithTimeout(caller, adminTimeout)
		defer cancel()
		c.r = c.r.WithContext(ctx)
		err = h(c)
		if err == nil || errors.As(err, new(*refusal.Refusal)) || errors.As(err, new(*account.Fault)) || caller.Err() != nil {
			return err
		}
		return fmt.Errorf("%w: %w", account.ErrUnavailable, err)
	}
}

// actor returns the name of the administrator for the audit log.
func (c *call) actor() string { return c.caller.User + "/" + c.caller.Key }

// pageOf reads the part of a list that is asked for.
func (c *call) pageOf() (account.Page, error) {
	q := c.r.URL.Query()
	p := account.Page{After: q.Get("after"), Limit: defaultPage}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > account.MaxPage {
			return p, refusal.New(refusal.InvalidRequest, "limit", fmt.Sprintf("limit must be from 1 to %d", account.MaxPage))
		}
		p.Limit = n
	}
	return p, nil
}

const defaultPage = 100

// page answers with a part of a list; next is what after must be for the one that
// follows an item.
func page[T any](c *call, list func(account.Page) ([]T, bool, error), next func(T) any) error {
	p, err := c.pageOf()
	if err != nil {
		return err
	}
	items, hasMore, err := list(p)
	if err != nil {
		return err
	}
	answer := map[string]any{"object": "list", "data": items, "has_more": hasMore, "after": nil}
	if hasMore {
		answer["after"] = next(items[len(items)-1])
	}
	return c.writer.sendJSON(answer)
}

func (g *Gateway) listKeys(c *call) error {
	return page(c, func(p account.Page) ([]account.Key, bool, error) {
		return c.settings.accounts.Store().Keys(c.r.Context(), c.r.URL.Query().Get("user"), p)
	}, func(k account.Key) any { return k.ID })
}

// listAudit goes from the newest entry back; after is the last id that is known.
func (g *Gateway) listAudit(c *call) error {
	return page(c, func(p account.Page) ([]account.Entry, bool, error) {
		var beforeID int64
		if p.After != "" {
			n, err := strconv.ParseInt(p.After, 10, 64)
			if err != nil || n < 1 {
				return nil, false, refusal.New(refusal.InvalidRequest, "after", "after must be the id of an entry")
			}
			beforeID = n
		}
		return c.settings.accounts.Store().Audit(c.r.Context(), beforeID, p.Limit)
	}, func(e account.Entry) any { return strconv.FormatInt(e.ID, 10) })
}

func (g *Gateway) listOverrides(c *call) error {
	return page(c, func(p account.Page) ([]account.Override, bool, error) {
		return c.settings.accounts.Store().StoredOverrides(c.r.Context(), p)
	}, func(o account.Override) any { return o.Path() })
}

func (g *Gateway) createKey(c *call) error {
	var body account.NewKey
	if err := c.strict(&body, true); err != nil {
		return err
	}
	if err := g.checkModels(body.Models); err != nil {
		return err
	}
	made, err := c.settings.accounts.CreateKey(c.r.Context(), c.actor(), body)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(made)
}

func (g *Gateway) showKey(c *call) error {
	k, err := c.settings.accounts.Store().Key(c.r.Context(), c.r.PathValue("key"))
	if err != nil {
		return err
	}
	return c.writer.sendJSON(k)
}

func (g *Gateway) rotateKey(c *call) error {
	var body struct {
		Overlap string `json:"overlap"`
	}
	if err := c.strict(&body, false); err != nil {
		return err
	}
	overlap := account.DefaultOverlap
	if body.Overlap != "" {
		var err error
		if overlap, err = account.ParseDuration(body.Overlap); err != nil {
			return refusal.New(refusal.InvalidRequest, "overlap", "overlap: "+err.Error())
		}
	}
	made, err := c.settings.accounts.RotateKey(c.r.Context(), c.actor(), c.r.PathValue("key"), overlap)
	if err != nil {
		return err
	}
	return c.writer.sendJSON(made)
}

func (g *Gateway) revokeKey(c *call) error {
	if err := c.strict(&struct{}{}, false); err != nil {
		return err
	}
	keys, err := c.settings.accounts.Store().RevokeKey(c.r.Context(), c.actor(), c.r.PathValue("key"))
	if err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"revoked": keys})
}

func (g *Gateway) setOverride(c *call) error {
	var body account.Override
	if err := c.strict(&body, true); err != nil {
		return err
	}
	if err := body.Validate(); err != nil {
		return err
	}
	if err := g.Admission.CheckOverride(limit.Override{Rule: body.Rule, Of: body.Of, Name: body.Name, Numbers: body.Numbers()}); err != nil {
		return refusal.New(refusal.InvalidRequest, "", err.Error())
	}
	if err := c.settings.accounts.Store().SetOverride(c.r.Context(), c.actor(), body); err != nil {
		return err
	}
	return c.writer.sendJSON(body)
}

func (g *Gateway) deleteOverride(c *call) error {
	r := c.r
	if err := c.settings.accounts.Store().DeleteOverride(r.Context(), c.actor(), r.PathValue("of"), r.PathValue("name"), r.PathValue("rule")); err != nil {
		return err
	}
	return c.writer.sendJSON(map[string]any{"deleted": true})
}
