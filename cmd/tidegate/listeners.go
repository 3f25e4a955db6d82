package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// listeners are the addresses of the daemon, and the certificate of the callers' one.
type listeners struct {
	front net.Listener // for callers
	ops   net.Listener // for operators; nil: none
	cert  atomic.Pointer[tls.Certificate]
}

// listen listens on the address of a setting, which a flag sets too.
func listen(key, flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		host, _, _ := net.SplitHostPort(address)
		return nil, fmt.Errorf("%s: another process listens on %s: stop it, or choose another address with %s, such as %s %s for a free port, which the log names", key, address, flag, flag, net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// Bounds of what one connection may hold.
const (
	maxHeader   = 64 << 10 // bytes of a request's head
	maxStreams  = 100      // HTTP/2 requests at a time; RFC 9113 advises no fewer
	idleTimeout = 2 * time.Minute
)

// frontServer returns the server for callers: HTTP/1.1 and HTTP/2, the latter with TLS or
// in clear text by prior knowledge.
func (d *daemon) frontServer() (*server, error) {
	s := d.config.Server
	alive, cut := context.WithCancel(context.Background())
	h := &http.Server{
		Handler: d.gateway.Handler(), ReadHeaderTimeout: s.HeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return alive },
		ErrorLog:    slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		Protocols:   new(http.Protocols),
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	out := &server{name: "listener", http: h, cut: cut, listen: func(h *http.Server) error { return h.Serve(d.gateway.Listener(d.front)) }}
	if s.TLS.CertFile == "" {
		return out, nil
	}
	if err := d.readCertificate(); err != nil {
		return nil, err
	}
	authorities, err := loadClientCAs(s.TLS)
	if err != nil {
		return nil, err
	}
	h.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.cert.Load(), nil },
	}
	if authorities != nil {
		h.TLSConfig.ClientCAs, h.TLSConfig.ClientAuth = authorities, tls.RequireAndVerifyClientCert
	}
	out.listen = func(h *http.Server) error { return h.ServeTLS(d.gateway.Listener(d.front), "", "") }
	return out, nil
}

// readCertificate reads the certificate of the listener, if it has one, for the connections
// from now on.
func (d *daemon) readCertificate() error {
	s := d.config.Server.TLS
	if s.CertFile == "" {
		return nil
	}
	cert, err := loadCertificate(s)
	if err != nil {
		return err
	}
	d.cert.Store(cert)
	return nil
}

// opsServer returns the server for operators.
func (d *daemon) opsServer() *server {
	h := &http.Server{
		Handler: d.gateway.OpsHandler(d.status), ReadHeaderTimeout: d.config.Server.HeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
	}
	return &server{
		name: "ops listener", http: h, cut: func() {},
		listen: func(h *http.Server) error { return h.Serve(d.gateway.Listener(d.ops)) },
	}
}
