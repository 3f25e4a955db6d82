package gateway

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"tidegate/gateway/openai"
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
	on := func(method, pattern string, h handler) {
		e.Handle(method, pattern, func(c *gin.Context) {
			for _, p := range c.Params {
				c.Request.SetPathValue(p.Key, p.Value)
			}
			g.answer(c.Writer, c.Request, pattern, h)
		})
	}
	generate := func(pattern string, kind openai.Route) {
		on(http.MethodPost, pattern, func(c *call) error {
			c.kind = kind
			return g.generate(c)
		})
	}
	generate("/v1/chat/completions", openai.Chat)
	generate("/v1/completions", openai.Completions)
	on(http.MethodGet, "/v1/models", g.aux(g.models))
	on(http.MethodGet, "/v1/models/*id", g.aux(g.model))
	on(http.MethodPost, "/tokenize", g.aux(g.tokenize))
	on(http.MethodGet, "/v1/usage", g.aux(g.ownUsage))
	on(http.MethodGet, "/quota/status", g.aux(g.quotaStatus))
	g.adminRoutes(on)
	e.GET("/healthz", gin.WrapF(g.healthz))
	e.GET("/readyz", gin.WrapF(g.readyz))
	e.NoRoute(func(c *gin.Context) {
		g.answer(c.Writer, c.Request, routeOther, func(c *call) error {
			return c.unknownURL()
		})
	})
	e.NoMethod(func(c *gin.Context) {
		g.answer(c.Writer, c.Request, routeOther, func(c *call) error {
			return refuse(codeMethodNotAllowed, "", clipPath(c.r.URL.Path)+" does not take "+c.r.Method+"; allowed: "+c.w.Header().Get("Allow"))
		})
	})
	return g.bounded(e)
}

// adminRoutes are what an administrator's key opens.
func (g *Gateway) adminRoutes(on func(method, pattern string, h handler)) {
	for _, r := range []struct {
		method, path string
		h            handler
	}{
		{http.MethodGet, "departments", g.listDepartments},
		{http.MethodPost, "departments", g.createDepartment},
		{http.MethodGet, "projects", g.listProjects},
		{http.MethodPost, "projects", g.createProject},
		{http.MethodGet, "users", g.listUsers},
		{http.MethodPost, "users", g.createUser},
		{http.MethodGet, "keys", g.listKeys},
		{http.MethodPost, "keys", g.createKey},
		{http.MethodGet, "keys/:key", g.showKey},
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
		on(r.method, "/admin/v1/"+r.path, admin(r.h))
	}
}

func (c *call) unknownURL() error {
	return refuse(codeUnknownURL, "", "there is nothing at "+c.r.Method+" "+clipPath(c.r.URL.Path)+": see the list of routes in the documentation")
}

// maxPath bounds what is quoted of a path, in bytes.
const maxPath = 200

func clipPath(p string) string {
	if len(p) > maxPath {
		return p[:maxPath] + "…"
	}
	return p
}
