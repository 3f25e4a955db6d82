package gateway

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// routeOther is the route of requests that match none.
const routeOther = "other"

// Handler is the front: what callers reach. Every other path is refused; the
// servers' own operational routes are never reachable through it.
func (g *Gateway) Handler() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	// Not gin.Default: its Recovery would swallow the panic that cuts a broken stream.
	e := gin.New()
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.UseRawPath = true
	handle := func(method, pattern string, h handler) {
		serve := func(c *gin.Context) {
			for _, p := range c.Params {
				c.Request.SetPathValue(p.Key, p.Value)
			}
			g.answer(c.Writer, c.Request, pattern, h)
		}
		e.Handle(method, pattern, serve)
		if method == http.MethodGet { // net/http sends the head alone
			e.Handle(http.MethodHead, pattern, serve)
		}
	}
	for _, d := range g.doors {
		handle(http.MethodPost, d.Pattern, func(c *call) error {
			c.door = d
			return g.generate(c)
		})
	}
	handle(http.MethodGet, "/v1/models", g.aux(g.models))
	handle(http.MethodGet, "/v1/models/*id", g.aux(g.model))
	handle(http.MethodPost, "/tokenize", g.aux(g.tokenize))
	handle(http.MethodGet, "/v1/usage", g.aux(g.ownUsage))
	handle(http.MethodGet, "/quota/status", g.aux(g.quotaStatus))
	handle(http.MethodGet, "/v1/quota/status", g.aux(g.quotaStatus)) // where those look who have a base URL alone
	g.adminRoutes(handle)
	for path, probe := range map[string]http.HandlerFunc{"/health": g.health, "/healthz": g.healthz, "/readyz": g.readyz} {
		e.GET(path, gin.WrapF(probe))
		e.HEAD(path, gin.WrapF(probe))
	}
	known := newPaths()
	for _, r := range e.Routes() {
		known.add(r.Method, r.Path)
	}
	e.NoRoute(func(c *gin.Context) {
		g.answer(c.Writer, c.Request, routeOther, func(c *call) error {
			return known.refuse(c.r.Method, c.r.URL.Path)
		})
	})
	e.NoMethod(func(c *gin.Context) {
		g.answer(c.Writer, c.Request, routeOther, func(c *call) error {
			return refusal.New(refusal.MethodNotAllowed, "", clipPath(c.r.URL.Path)+" does not take "+clipPath(c.r.Method)+"; allowed: "+c.writer.w.Header().Get("Allow"))
		})
	})
	return withDeadlines(g.cors(withoutSlash(e)), g.writeTimeout)
}

// withoutSlash serves a path that ends in slashes as the one without them. A slash that
// is escaped belongs to a name.
func withoutSlash(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u := r.URL; len(u.Path) > 1 && strings.HasSuffix(u.Path, "/") && (u.RawPath == "" || strings.HasSuffix(u.RawPath, "/")) {
			u.Path, u.RawPath = cmp.Or(strings.TrimRight(u.Path, "/"), "/"), strings.TrimRight(u.RawPath, "/")
		}
		h.ServeHTTP(w, r)
	})
}

// adminRoutes registers the routes that an administrator's key opens.
func (g *Gateway) adminRoutes(handle func(method, pattern string, h handler)) {
	for _, r := range []struct {
		method, path string
		h            handler
	}{
		{http.MethodGet, "keys", g.listKeys},
		{http.MethodPost, "keys", g.createKey},
		{http.MethodPost, "keys/revoke", g.revokeSecret},
		{http.MethodGet, "keys/:key", g.showKey},
		{http.MethodPatch, "keys/:key", g.changeKey},
		{http.MethodPost, "keys/:key/rotate", g.rotateKey},
		{http.MethodPost, "keys/:key/revoke", g.revokeKey},
		{http.MethodGet, "overrides", g.listOverrides},
		{http.MethodPut, "overrides", g.setOverride},
		{http.MethodDelete, "overrides/:of/:name/:rule", g.deleteOverride},
		{http.MethodGet, "pins", g.listPins},
		{http.MethodGet, "models/*model", g.showPin},
		{http.MethodPut, "models/*model", g.setPin},
		{http.MethodDelete, "models/*model", g.liftPin},
		{http.MethodGet, "audit", g.listAudit},
		{http.MethodGet, "usage", g.allUsage},
	} {
		handle(r.method, "/admin/v1/"+r.path, admin(r.h))
	}
	for _, k := range account.Kinds() {
		path := "/admin/v1/" + string(k) + "s"
		handle(http.MethodGet, path, admin(g.listOwners(k)))
		handle(http.MethodPost, path, admin(g.createOwner(k)))
		handle(http.MethodGet, path+"/:name", admin(g.showOwner(k)))
		handle(http.MethodPatch, path+"/:name", admin(g.changeOwner(k)))
		handle(http.MethodDelete, path+"/:name", admin(g.deleteOwner(k)))
	}
	handle(http.MethodPost, "/admin/v1/users/:name/revoke", admin(g.revokeUser))
}

// maxPath bounds what is quoted of a path or a method, in bytes.
const maxPath = 200

func clipPath(p string) string {
	if len(p) > maxPath {
		return p[:maxPath] + "…"
	}
	return p
}
