package ops

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// A page in an operator's browser can point a name of its own at the address of the ops
// listener, and then read what it answers, since to the browser both are the same place
// (DNS rebinding). Such a name is one that its maker could register. So the listener
// answers only where it is asked for by its address, or by a name that nobody can
// register, or that the configuration names.

// ownHosts lets only requests through whose Host is one of the ops listener's own.
func (s *Server) ownHosts(h http.Handler) http.Handler {
	machine, err := os.Hostname()
	if err != nil {
		machine = ""
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostName(r.Host)
		if !unregistrable(host) && !strings.EqualFold(host, machine) && !slices.ContainsFunc(s.Hosts(), func(name string) bool { return name == "*" || strings.EqualFold(name, host) }) {
			http.Error(w, fmt.Sprintf("the ops listener does not answer as %.200q, which a page in a browser could have chosen: use its address, or add the name to server.ops_hosts", host), http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// hostName returns the host of a Host header, without port, brackets and the dot at the
// end.
func hostName(header string) string {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ".")
}

// unregistrable reports whether a host is an address, or a name that is given only
// inside of a machine, a cluster or a network: one of a single label, or of a domain
// that is kept for private use (RFC 6761, RFC 6762, RFC 8375, ICANN's .internal, and
// Kubernetes' .svc and cluster.local). None at all, in HTTP/1.0, is no browser's.
func unregistrable(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") {
		return true
	}
	host = strings.ToLower(host)
	return slices.ContainsFunc([]string{".localhost", ".local", ".internal", ".home.arpa", ".svc", ".test"}, func(domain string) bool { return strings.HasSuffix(host, domain) })
}
