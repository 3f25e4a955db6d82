package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tidegate/gateway/refusal"
)

// administration is the prefix of the routes of administrators, which no page of another
// origin may call.
const administration = "/admin/"

// cors answers what browsers ask before they let a page call (preflights), and tells them
// of all other answers, errors and streams too, that the page may read them.
func (g *Gateway) cors(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if origin == "" {
			h.ServeHTTP(w, r)
			return
		}
		c := &g.settings.Load().CORS
		allowed := c.allows(origin)
		if strings.HasPrefix(r.URL.Path, administration) {
			allowed = ""
		}
		head := w.Header()
		if len(c.Origins) > 0 && allowed != anyOrigin {
			head.Add("Vary", "Origin")
		}
		if allowed != "" {
			head.Set("Access-Control-Allow-Origin", allowed)
		}
		switch {
		case r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "":
			g.preflight(w, r, c, allowed != "")
		case allowed != "":
			head.Set("Access-Control-Expose-Headers", "*")
			h.ServeHTTP(w, r)
		default: // the browser keeps the answer from the page
			h.ServeHTTP(w, r)
		}
	})
}

// preflight answers a browser that asks whether a page may call. It sends no key.
func (g *Gateway) preflight(w http.ResponseWriter, r *http.Request, c *CORS, allowed bool) {
	if !allowed {
		g.answer(w, r, routeOther, func(call *call) error { return call.refusePage(c) })
		return
	}
	head := w.Header()
	head.Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
	if asked := r.Header.Get("Access-Control-Request-Headers"); isHeaderList(asked) {
		// All of them: what is read is the gateway's choice, whoever asks. "*" would not
		// do, since it does not stand for Authorization.
		head.Set("Access-Control-Allow-Headers", asked)
	}
	head.Set("Access-Control-Max-Age", strconv.Itoa(int(c.MaxAge/time.Second)))
	head.Add("Vary", "Access-Control-Request-Headers")
	if g.unread.write(w, r, func() { w.WriteHeader(http.StatusNoContent) }) {
		panic(http.ErrAbortHandler)
	}
}

// refusePage returns why a page in a browser may not call, and what an operator can do.
func (c *call) refusePage(cors *CORS) error {
	origin := refusal.Quote(c.r.Header.Get("Origin"))
	switch {
	case strings.HasPrefix(c.r.URL.Path, administration):
		return refusal.New(refusal.AccessDenied, "", "pages of other origins may not call the routes of administrators: call them from a program")
	case len(cors.Origins) == 0:
		return refusal.New(refusal.AccessDenied, "", fmt.Sprintf("pages in browsers may not call this gateway from another origin, which is %s here: the operator can allow it with server.cors.origins", origin))
	}
	return refusal.New(refusal.AccessDenied, "", fmt.Sprintf("pages of the origin %s may not call this gateway: the operator can add it to server.cors.origins", origin))
}

// maxHeaderList bounds the names of headers that a browser may ask for, in bytes.
const maxHeaderList = 4 << 10

// isHeaderList reports whether a text is names of headers with commas between.
func isHeaderList(text string) bool {
	if text == "" || len(text) > maxHeaderList {
		return false
	}
	for _, b := range []byte(text) {
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case strings.IndexByte("-_, ", b) >= 0:
		default:
			return false
		}
	}
	return true
}
