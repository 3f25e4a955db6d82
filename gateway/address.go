package gateway

import (
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
	if both, err := netip.ParseAddrPort(text); err == nil {
		return plainAddr(both.Addr()), true
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
