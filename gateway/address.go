package gateway

import (
	"net/http"
	"net/netip"
	"strings"
)

// nodeAddr reads an address as proxies write it into X-Forwarded-For: bare, in brackets,
// or with a port (Azure's write 203.0.113.8:51234). ok is false for anything else, such
// as "unknown" or a name.
func nodeAddr(text string) (addr netip.Addr, ok bool) {
	text = strings.Trim(text, " \t\"") // some quote what has brackets, as in RFC 7239, 6
	addr, err := netip.ParseAddr(text)
	if err == nil {
		return plainAddr(addr), true
	}
	if withPort, err := netip.ParseAddrPort(text); err == nil {
		return plainAddr(withPort.Addr()), true
	}
	if len(text) > 2 && text[0] == '[' && text[len(text)-1] == ']' {
		addr, err = netip.ParseAddr(text[1 : len(text)-1])
		return plainAddr(addr), err == nil && addr.Is6()
	}
	return netip.Addr{}, false
}

// plainAddr returns an address without what is not the caller's: a zone is of this
// machine, and IPv4 in IPv6 is how a listener shows it.
func plainAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// clientAddr returns the caller's address: the last one that is no trusted proxy. It is
// invalid where the peer has none.
func clientAddr(r *http.Request, proxies []netip.Prefix) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := plainAddr(peer.Addr())
	if !contains(proxies, addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && contains(proxies, addr); i-- {
		if strings.TrimSpace(hops[i]) == "" {
			continue // an empty element of a list says nothing (RFC 9110, 5.6.1.2)
		}
		next, ok := nodeAddr(hops[i])
		if !ok {
			break
		}
		addr = next
	}
	return addr
}

// contains reports whether an address is in one of several networks.
func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
