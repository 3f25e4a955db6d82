package channel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// raw is a server that does as it likes with each connection.
func raw(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

// read takes one request off a connection.
func read(c net.Conn) {
	if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		io.Copy(io.Discard, r.Body)
	}
}

// sendError sends an alert and returns the error, which it requires.
func sendError(t *testing.T, ctx context.Context, ch *Channel) *Error {
	t.Helper()
	err := ch.Send(ctx, ch.Targets()[0], sample())
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	return e
}

// TestBrokenReceivers holds that each way to fail is told, and that one says whether the
// message may have arrived.
func TestBrokenReceivers(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	answers := func(answer string) func(net.Conn) {
		return func(c net.Conn) {
			read(c)
			io.WriteString(c, answer)
		}
	}
	endless := func(c net.Conn) {
		answers("HTTP/1.1 200 OK\r\n\r\n")(c)
		for more := strings.Repeat("x", 4096); ; {
			if _, err := io.WriteString(c, more); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		address string
		want    string
		unsure  bool
	}{
		"dead":              {closed.Addr().String(), "connection refused", false},
		"no name":           {"tidegate-alert.invalid:80", "the name of its server does not resolve", false},
		"hangs up":          {raw(t, read), "the connection was closed before an answer", true},
		"garbage":           {raw(t, answers("SSH-2.0-OpenSSH_9.6\r\n")), "malformed HTTP", true},
		"endless head":      {raw(t, answers("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 2*maxAnswer)+"\r\n\r\n")), "exceeded", true},
		"body that breaks":  {raw(t, answers("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"errcode\":")), "the answer broke off", true},
		"endless body":      {raw(t, endless), "not its kind of answer", true},
		"verdict, then cut": {raw(t, answers("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"errcode\":0}")), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			ch := newChannel(t, Config{Type: DingTalk, URL: "http://" + c.address + "/robot/send?access_token=tok-12345"})
			if c.want == "" {
				if err := ch.Send(t.Context(), "", sample()); err != nil {
					t.Fatal(err)
				}
				return
			}
			e := sendError(t, t.Context(), ch)
			if !strings.Contains(e.Text, c.want) || e.Unsure != c.unsure {
				t.Errorf("got %#v, want %q, unsure %v", e, c.want, c.unsure)
			}
			if strings.Contains(e.Error(), "tok-12345") || len(e.Text) > maxErrorText {
				t.Error("the text holds the token or is too long:", e)
			}
		})
	}
}

// TestSilentReceiver cancels once the request is there: it may have arrived.
func TestSilentReceiver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := raw(t, func(c net.Conn) {
		read(c)
		cancel()
		io.Copy(io.Discard, c)
	})
	e := sendError(t, ctx, newChannel(t, Config{Type: Webhook, Secret: testSecret, URL: "http://" + address}))
	if !e.Unsure || e.Status != 0 {
		t.Errorf("got %#v", e)
	}
}

// TestTimeLimit holds that a receiver that never answers costs a minute, on a clock that
// is moved and not waited for, and leaves no goroutine.
func TestTimeLimit(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"says nothing": func(c net.Conn) { read(c); io.Copy(io.Discard, c) },
		"trickles": func(c net.Conn) {
			read(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			for {
				time.Sleep(time.Second)
				if _, err := io.WriteString(c, " "); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ch := newChannel(t, Config{Type: WeCom, URL: "http://receiver.example/send?key=k"})
				var serving sync.WaitGroup
				ch.client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
					here, there := net.Pipe()
					serving.Go(func() {
						defer there.Close()
						serve(there)
					})
					return here, nil
				}
				began := time.Now()
				e := sendError(t, t.Context(), ch)
				if took := time.Since(began); took != sendTimeout || !e.Unsure || !strings.Contains(e.Text, "no answer in time") {
					t.Errorf("%#v after %s", e, took)
				}
				serving.Wait()
			})
		})
	}
}

// TestNoLeak holds that a channel keeps neither a connection nor a goroutine.
func TestNoLeak(t *testing.T) {
	before := goleak.IgnoreCurrent()
	var open atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	server.Start()
	ch := newChannel(t, Config{Type: Slack, URL: server.URL})
	for range 3 {
		if err := ch.Send(t.Context(), "", sample()); err != nil {
			t.Fatal(err)
		}
	}
	server.Close()
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
	goleak.VerifyNone(t, before)
}

// TestRedirectNotFollowed holds that the place that a redirect names hears nothing.
func TestRedirectNotFollowed(t *testing.T) {
	elsewhere, got := sink(t, 200, "ok")
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.RedirectHandler(elsewhere, status))
		e := sendError(t, t.Context(), newChannel(t, Config{Type: Webhook, Secret: testSecret, URL: server.URL}))
		if e.Status != status || !strings.Contains(e.Text, "redirect") || len(got) != 0 {
			t.Errorf("%#v, %d requests elsewhere", e, len(got))
		}
		server.Close()
	}
}

// TestNoProxy holds that the environment's proxy gets no token to see. Go reads the
// environment once in a process, so that it is not asked here.
func TestNoProxy(t *testing.T) {
	if newChannel(t, Config{Type: Slack, URL: "https://receiver.example/x"}).client.Transport.(*http.Transport).Proxy != nil {
		t.Error("the client has a proxy")
	}
}

func TestPublic(t *testing.T) {
	for address, want := range map[string]bool{
		"1.1.1.1": true, "8.8.8.8": true, "100.63.255.255": true, "172.32.0.1": true, "2606:4700::1111": true, "2400:3200::1": true,
		"64:ff9b::808:808": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "127.8.9.1": false, "0.0.0.0": false, "10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false,
		"224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false, "198.18.0.1": false,
		"::1": false, "::": false, "fe80::1%eth0": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b::7f00:1": false,
		"64:ff9b:1::1": false, "2002:7f00:1::": false, "2001:0:1::1": false, "2001:db8::1": false, "::7f00:1": false, "fec0::1": false,
	} {
		if got := public(netip.MustParseAddr(address)); got != want {
			t.Errorf("public(%s) = %v", address, got)
		}
	}
}

// TestPrivateRefused holds that what is at a private address hears nothing, however the
// URL names it.
func TestPrivateRefused(t *testing.T) {
	heard := atomic.Int32{}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ConnState = func(net.Conn, http.ConnState) { heard.Add(1) }
	server.StartTLS()
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		ch := newChannel(t, Config{Type: Webhook, Secret: testSecret, URL: "https://" + host + ":" + port + "/x"})
		ch.dialer.private = false
		ch.client = ch.dialer.client()
		e := sendError(t, t.Context(), ch)
		if !strings.Contains(e.Text, "not public") || e.Unsure {
			t.Errorf("%s: %#v", host, e)
		}
		if strings.Contains(e.Text, "127.0.0.1") {
			t.Errorf("%s: the error says what the name resolves to: %s", host, e.Text)
		}
	}
	if heard.Load() != 0 {
		t.Error("a private address was connected to")
	}
}

// nameServer answers questions for addresses with one after the other, the last again
// and again.
func nameServer(t *testing.T, answers ...[4]byte) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		packet := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(packet)
			if err != nil {
				return
			}
			end := 12 + bytes.IndexByte(packet[12:n], 0) + 5 // header; name, type and class of the question
			reply := append([]byte{packet[0], packet[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, packet[12:end]...)
			if packet[end-3] == 1 { // A
				reply[7] = 1
				reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				reply = append(reply, answers[0][:]...)
				if len(answers) > 1 {
					answers = answers[1:]
				}
			}
			server.WriteTo(reply, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// TestRebinding holds that the address that is connected to is judged: a name that is
// public when one asks and private when one connects gains nothing.
func TestRebinding(t *testing.T) {
	base, got := sink(t, 200, "ok")
	u, _ := url.Parse(base)
	const name = "rebinding.example."
	resolver := nameServer(t, [4]byte{93, 184, 216, 34}, [4]byte{127, 0, 0, 1})
	first, err := resolver.LookupNetIP(t.Context(), "ip4", name)
	if err != nil || len(first) != 1 || !public(first[0]) {
		t.Fatal("the first answer must be a public address:", first, err)
	}
	ch := newChannel(t, Config{Type: Slack, URL: "http://" + name + ":" + u.Port()})
	ch.dialer.resolver = resolver
	ch.client = ch.dialer.client()
	if err := ch.Send(t.Context(), "", sample()); err != nil || len(got) != 1 {
		t.Fatal("where it is allowed, the second answer is connected to:", err)
	}
	ch.dialer.private = false
	if e := sendError(t, t.Context(), ch); e.Text != errPrivate.Error() || len(got) != 1 {
		t.Errorf("%#v, %d requests", e, len(got))
	}
}

// TestNoSecretInErrors holds that neither the client's errors nor a vendor that repeats
// what it was sent bring a token into a log.
func TestNoSecretInErrors(t *testing.T) {
	const token, secret = "T0p5ecretT0ken", "S1gn1ngSecretS1gn"
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, r.URL.String()+" "+r.URL.Path+" "+r.URL.Query().Get("key")+" "+r.URL.Query().Get("access_token")+" "+secret)
	}))
	defer echo.Close()
	hang := raw(t, read)
	for _, base := range []string{echo.URL, "http://" + hang, "http://tidegate-alert.invalid", "https://" + hang, "http://127.0.0.1:1"} {
		for _, path := range []string{"/robot/send?access_token=" + token, "/services/T00/B00/" + token, "/x?key=a%2Bb%2Fc%3D" + token} {
			e := sendError(t, t.Context(), newChannel(t, Config{Type: Feishu, Secret: secret, URL: base + path}))
			if strings.Contains(e.Error(), token) || strings.Contains(e.Error(), secret) || strings.Contains(e.Error(), "Post \"") {
				t.Errorf("%s%s: %s", base, path, e)
			}
		}
	}
}

// TestAuthority holds that a receiver's certificate is checked, by the authority given.
func TestAuthority(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	e := sendError(t, t.Context(), newChannel(t, Config{Type: Slack, URL: server.URL}))
	if !strings.Contains(e.Text, "certificate") || e.Unsure {
		t.Errorf("%#v", e)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, certificatePEM(server.Certificate().Raw), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newChannel(t, Config{Type: Slack, URL: server.URL, CAFile: file}).Send(t.Context(), "", sample()); err != nil {
		t.Error(err)
	}
}
