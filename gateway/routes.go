package gateway

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

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
	handle(http.MethodGet, "/v1/usage", g.aux(g.adminAnswer(g.admin.OwnUsage)))
	handle(http.MethodGet, "/quota/status", g.aux(g.quotaStatus))
	handle(http.MethodGet, "/v1/quota/status", g.aux(g.quotaStatus)) // where those look who have a base URL alone
	for _, r := range g.admin.Routes() {
		handle(r.Method, r.Pattern, g.administration(r.Handle))
	}
	for path, probe := range g.probes() {
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
			return refusal.New(refusal.MethodNotAllowed, "", refusal.Clip(c.r.URL.Path)+" does not take "+refusal.Clip(c.r.Method)+"; allowed: "+c.writer.w.Header().Get("Allow"))
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
