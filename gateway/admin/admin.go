// Package admin serves the administration API under /admin/v1/ (keys, the tree of
// departments, projects and users, overrides of limits, pins of levels, the audit log)
// and the reports of usage. It knows the requests and what they change. Package gateway
// finds out who calls, and writes the answers.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"tidegate/admission"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/refusal"
)

// prefix is the path of all routes of administration.
const prefix = "/admin/v1/"

// API serves the routes. It is safe for concurrent use.
type API struct {
	Fleet     *backend.Fleet
	Admission *admission.Controller
	Ledger    *ledger.Ledger
}

// Request is a request whose caller is known and may use the route. It lives as long as
// its handler.
type Request struct {
	*http.Request
	Accounts *account.Directory
	Caller   account.Identity
	Zone     string                 // time zone of days that the request names no zone for
	Prices   ledger.Prices          // prices of reports
	ReadBody func() ([]byte, error) // reads the body once, within the bounds of the front
}

// actor returns the name of the administrator for the audit log.
func (r *Request) actor() string { return r.Caller.User + "/" + r.Caller.Key }

// Handler answers a request of administration with a value to be sent as JSON, or with a
// File.
type Handler func(*Request) (any, error)

// File is an answer that is not JSON.
type File struct {
	ContentType string
	Name        string // name under which a browser saves it
	Body        []byte
}

// Route is one route. Its pattern is the router's: ":name" stands for a segment and
// "*name" for the rest of the path.
type Route struct {
	Method, Pattern string
	Handle          Handler
}

// Routes returns the routes that an administrator's key opens.
func (a *API) Routes() []Route {
	routes := []Route{
		{http.MethodGet, "keys", listKeys},
		{http.MethodPost, "keys", a.createKey},
		{http.MethodPost, "keys/revoke", revokeSecret},
		{http.MethodGet, "keys/:key", showKey},
		{http.MethodPatch, "keys/:key", a.changeKey},
		{http.MethodPost, "keys/:key/rotate", rotateKey},
		{http.MethodPost, "keys/:key/revoke", revokeKey},
		{http.MethodGet, "overrides", listOverrides},
		{http.MethodPut, "overrides", a.setOverride},
		{http.MethodDelete, "overrides/:of/:name/:rule", deleteOverride},
		{http.MethodGet, "pins", listPins},
		{http.MethodGet, "models/*model", a.showPin},
		{http.MethodPut, "models/*model", a.setPin},
		{http.MethodDelete, "models/*model", a.liftPin},
		{http.MethodGet, "audit", listAudit},
		{http.MethodGet, "usage", a.allUsage},
		{http.MethodPost, "users/:name/revoke", revokeUser},
	}
	for _, k := range account.Kinds() {
		path := string(k) + "s"
		routes = append(routes,
			Route{http.MethodGet, path, listOwners(k)},
			Route{http.MethodPost, path, createOwner(k)},
			Route{http.MethodGet, path + "/:name", showOwner(k)},
			Route{http.MethodPatch, path + "/:name", changeOwner(k)},
			Route{http.MethodDelete, path + "/:name", deleteOwner(k)},
		)
	}
	for i := range routes {
		routes[i].Pattern = prefix + routes[i].Pattern
		routes[i].Handle = guard(routes[i].Handle)
	}
	return routes
}

// timeout bounds the time of a route, so that none waits for ever where the database
// hangs.
const timeout = 10 * time.Second

// guard lets only administrators through, and only texts that a database takes. It
// bounds the time of a handler. An error that is none of the caller's is the store's:
// the handlers ask nothing else.
func guard(handle Handler) Handler {
	return func(r *Request) (any, error) {
		if !r.Caller.Admin {
			return nil, refusal.New(refusal.AccessDenied, "", "this needs an administrator's key: make one with tidegate key create --admin")
		}
		if err := checkTexts(r.URL); err != nil {
			return nil, err
		}
		caller := r.Context()
		ctx, cancel := context.WithTimeout(caller, timeout)
		defer cancel()
		r.Request = r.WithContext(ctx)
		answer, err := handle(r)
		if err == nil || errors.As(err, new(*refusal.Refusal)) || errors.As(err, new(*account.Fault)) || caller.Err() != nil {
			return answer, err
		}
		return nil, fmt.Errorf("%w: %w", account.ErrUnavailable, err)
	}
}
