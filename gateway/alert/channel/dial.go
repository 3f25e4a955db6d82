package channel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// dialer connects to public addresses, and to private ones if they are allowed.
type dialer struct {
	private  bool // whether private addresses are allowed
	tls      *tls.Config
	resolver *net.Resolver // nil for the system's
}

// connectTimeout bounds each of the connection and the TLS handshake.
const connectTimeout = 10 * time.Second

// errPrivate refuses a private address. It does not show the address: an author of URLs
// who cannot read the log should not learn what internal names resolve to.
var errPrivate = errors.New("the address is not public: refused; allow_private: true would allow it")

// DialContext resolves a name and connects. It checks the address just before the socket
// connects, so a name that resolves to another address the second time gains nothing.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: connectTimeout, Resolver: d.resolver}
	if !d.private {
		nd.Control = func(_, address string, _ syscall.RawConn) error { return checkAddress(address) }
	}
	return nd.DialContext(ctx, network, address)
}

// checkAddress refuses an address (ip:port) that is not public.
func checkAddress(address string) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address", address)
	}
	if !public(addr.Addr()) {
		return errPrivate
	}
	return nil
}

// public reports whether an address belongs to the public internet, by IANA's registries
// of special addresses (RFC 6890 and its updates). It takes an IPv4 address out of a
// mapped or NAT64 (RFC 6052) IPv6 address first.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if nat64 := netip.MustParsePrefix("64:ff9b::/96"); nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if a.Is6() && !netip.MustParsePrefix("2000::/3").Contains(a) {
		return false // loopback, unspecified, unique local, link-local, multicast and all unassigned ones
	}
	for _, special := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"168.63.129.16/32", // Azure's host, from inside a machine; other clouds' metadata is link-local or shared
		"2001::/23",        // Teredo, ORCHID, benchmarks
		"2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		if netip.MustParsePrefix(special).Contains(a) {
			return false
		}
	}
	return true
}

// client returns an HTTP client that uses no proxy of the environment, follows no redirect
// and keeps no connection. Alerts are rare, and a connection that died while idle would
// leave open whether a message arrived.
func (d *dialer) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: d.tls, TLSHandshakeTimeout: connectTimeout,
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxAnswer,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
