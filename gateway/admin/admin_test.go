package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// TestAdminDeadline lets the store hang under an administrator's request: it ends by
// itself, as a failure of the store. Where the caller leaves before, the store has not
// failed.
func TestAdminDeadline(t *testing.T) {
	for _, c := range []struct {
		name                string
		patience, took      time.Duration
		unavailable, leaves bool
	}{
		{"patient", time.Hour, timeout, true, false},
		{"leaves", time.Second, time.Second, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				defer time.AfterFunc(c.patience, leave).Stop()
				began := time.Now()
				_, err := guard(func(r *Request) (any, error) {
					<-r.Context().Done()
					return nil, fmt.Errorf("read the accounts: %w", r.Context().Err())
				})(&Request{Request: httptest.NewRequestWithContext(ctx, http.MethodGet, "/admin/v1/keys", nil), Caller: account.Identity{Admin: true}})
				if took := time.Since(began); took != c.took || errors.Is(err, account.ErrUnavailable) != c.unavailable || errors.Is(err, context.Canceled) != c.leaves {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// TestGuard holds that an administrator's rights are asked for before anything else, that
// texts no database takes are refused, and that refusals pass as they are.
func TestGuard(t *testing.T) {
	own := refusal.New(refusal.NotFound, "", "there is none")
	for _, c := range []struct {
		name, target string
		admin        bool
		want         refusal.Code
	}{
		{"user", "/admin/v1/keys?user=%00", false, refusal.AccessDenied},
		{"NUL in the query", "/admin/v1/keys?user=%00", true, refusal.InvalidRequest},
		{"NUL in the path", "/admin/v1/keys/a%00", true, refusal.InvalidRequest},
		{"no UTF-8", "/admin/v1/keys/%ff", true, refusal.InvalidRequest},
		{"handler", "/admin/v1/keys", true, refusal.NotFound},
	} {
		_, err := guard(func(*Request) (any, error) { return nil, own })(&Request{Request: httptest.NewRequest(http.MethodGet, c.target, nil), Caller: account.Identity{Admin: c.admin}})
		if r := (*refusal.Refusal)(nil); !errors.As(err, &r) || r.Code != c.want {
			t.Errorf("%s: %v, expected %s", c.name, err, c.want)
		}
	}
}

// TestRoutes holds that no route is served twice and that each has its handler.
func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range (&API{}).Routes() {
		name := r.Method + " " + r.Pattern
		if seen[name] || r.Handle == nil {
			t.Errorf("%s: twice, or without a handler", name)
		}
		seen[name] = true
	}
}
