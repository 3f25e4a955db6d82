package backend

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/backend/exchange/exchangetest"
)

func TestRequestOnTheWire(t *testing.T) {
	got := make(chan string, 1)
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		var b strings.Builder
		for !strings.HasSuffix(b.String(), `{"a":1}`) {
			c, err := p.ReadByte()
			if err != nil {
				break
			}
			b.WriteByte(c)
		}
		got <- b.String()
		p.Say(exchangetest.OK)
	})
	for _, c := range []struct {
		config Config
		stream bool
		want   string
	}{
		{Config{}, false, "POST /v1/completions HTTP/1.1\r\nHost: ADDR\r\nUser-Agent: agent/1\r\nContent-Type: application/json\r\nX-Request-Id: id-1\r\nContent-Length: 7\r\n\r\n"},
		{Config{}, true, "POST /v1/completions HTTP/1.1\r\nHost: ADDR\r\nUser-Agent: agent/1\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nX-Request-Id: id-1\r\nContent-Length: 7\r\n\r\n"},
		{Config{URL: "/a%20b/", APIKey: "k"}, false, "POST /a%20b/v1/completions HTTP/1.1\r\nHost: ADDR\r\nUser-Agent: agent/1\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\nX-Request-Id: id-1\r\nContent-Length: 7\r\n\r\n"},
	} {
		c.config.URL = "http://" + s.Addr + c.config.URL
		b := New(c.config, "agent/1")
		q := post()
		q.Stream = c.stream
		if body, err := send(b, q); err != nil || body != "ok" {
			t.Errorf("%q, %v", body, err)
		}
		if want := strings.ReplaceAll(c.want, "ADDR", s.Addr) + `{"a":1}`; <-got != want {
			t.Errorf("want %q", want)
		}
		b.Close()
	}
}

func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	b := backendOf(t, addr)
	_, err = send(b, post())
	if !Retryable(err) || Outcome(err) != "broken" {
		t.Errorf("%v", err)
	}
	if b.Seat.InRotation() || b.OutReason() != "connection refused" || len(b.probeRequests) != 1 {
		t.Errorf("in rotation %v (%s), %d probes asked for", b.Seat.InRotation(), b.OutReason(), len(b.probeRequests))
	}
}

// TestTrustsTheSystem: with no root of its own, a backend trusts no server that nobody
// vouches for.
func TestTrustsTheSystem(t *testing.T) {
	server, _ := exchangetest.TLSPair(t)
	s := exchangetest.Serve(t, server, exchangetest.Answering(exchangetest.OK))
	b := New(Config{URL: "https://" + s.Addr}, "test")
	t.Cleanup(b.Close)
	_, err := send(b, post())
	if unknown := new(tls.CertificateVerificationError); !errors.As(err, &unknown) || !Retryable(err) {
		t.Errorf("%v", err)
	}
	u, _ := url.Parse("https://gpu-a")
	if e := (&Config{APIKey: "k"}).exchange(u, "agent"); e.Address != "gpu-a:443" || e.TLS.ServerName != "gpu-a" || e.TLS.MinVersion != tls.VersionTLS12 {
		t.Errorf("%+v", e)
	}
}

// TestQueuedSinceOfAHungEngine: an engine that hangs while requests wait in it reports for
// ever that they do; its reports count until its last sign of work.
func TestQueuedSinceOfAHungEngine(t *testing.T) {
	began := time.Unix(1000, 0)
	b := &Backend{progress: progress{base: began}}
	o := observer{b}
	if !o.QueuedSince().IsZero() {
		t.Error("before the first report")
	}
	for s := range 4 {
		queued := began.Add(time.Duration(s) * time.Second)
		b.queuedAt.Store(&queued)
		if o.QueuedSince() != queued {
			t.Errorf("second %d: %v", s, o.QueuedSince())
		}
	}
	b.progress.sign(began.Add(5 * time.Second))
	for s := 6; s < 60; s++ { // the page of its metrics stands still
		queued := began.Add(time.Duration(s) * time.Second)
		b.queuedAt.Store(&queued)
	}
	if o.QueuedSince() != began.Add(5*time.Second) {
		t.Errorf("%v", o.QueuedSince())
	}
}
