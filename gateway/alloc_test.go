package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/gateway/backend"
	"tidegate/gateway/gatewaytest/bench"
)

// moreAllocations is how many allocations a request may make beyond those of the bare
// proxy of package bench, with everything on: a log line, metrics, series of users, limits,
// a quota, the ledger and a tracer that keeps no trace of it. Time differs from run to
// run; allocations do not, and grow with it.
const moreAllocations = 30

// TestAllocations holds what a request costs beside the bare proxy.
func TestAllocations(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates, too")
	}
	l := listen(t)
	mock := bench.DefaultBehaviour()
	mock.TTFT, mock.Delay = 0, 0
	go bench.NewMock(mock).Serve(l) //nolint:errcheck // it ends with the listener
	server := &url.URL{Scheme: "http", Host: l.Addr().String()}

	proxy := bench.NewBare(server)
	without := allocations(t, proxy)
	with := allocations(t, everything(t, server).Handler())
	t.Logf("%.0f allocations, of the bare proxy %.0f", with, without)
	if with > without+moreAllocations {
		t.Errorf("%.0f allocations a request, %.0f more than the bare proxy; expected %d more at most", with, with-without, moreAllocations)
	}
}

// everything is a gateway with all that costs a request something turned on.
func everything(t *testing.T, server *url.URL) *Gateway {
	g, _ := bare(t, func(c *Config) { c.PerUser = 10 })
	g.Log = slog.New(slog.NewJSONHandler(discard{}, nil))
	g.Tracer = untraced(t)
	plenty := limit.Rate{Count: 1e9, Window: time.Minute}
	set, err := limit.Compile([]limit.Rule{
		{Name: "user", Scope: "user", Bounds: limit.Bounds{Requests: plenty, Tokens: plenty, Concurrency: 1000}},
	}, []limit.QuotaRule{{Name: "day", Scope: "user", Tokens: 1e12, Every: "day"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.Admission = admission.New(limit.New(set, limit.Options{Store: limit.NewMemory(time.Now)}), admission.DefaultQueue())
	m := modelOf(bench.DefaultBehaviour().Model, server.String())
	m.Backends[0].MaxInFlight, m.Scrape, m.Probe = 1000, 2*time.Second, time.Minute
	g.Fleet.Apply([]backend.ModelConfig{m})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Fleet.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	up := time.NewTicker(time.Millisecond)
	defer up.Stop()
	for !g.Fleet.Ready() {
		select {
		case <-up.C:
		case <-t.Context().Done():
		}
	}
	return g
}

// kept is a listener that closes what it has accepted.
type kept struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// listen is such a listener of this test.
func listen(t *testing.T) *kept {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{Listener: l}
	t.Cleanup(func() {
		l.Close()
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, c := range k.conns {
			c.Close()
		}
	})
	return k
}

func (k *kept) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.conns = append(k.conns, c)
	}
	return c, err
}

// discard takes a log's lines.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// allocations is how many a request makes in the whole process.
func allocations(t *testing.T, h http.Handler) float64 {
	t.Helper()
	front := httptest.NewServer(h)
	defer front.Close()
	target, err := bench.ParseTarget(front.URL + "/v1/chat/completions")
	if err != nil {
		t.Fatal(err)
	}
	client := bench.NewConn(target, bench.Patience)
	defer client.Close()
	request := target.Request(http.MethodPost, bench.ChatBody(bench.DefaultBehaviour().Model, 500, false, 0))
	return testing.AllocsPerRun(500, func() {
		if answer, err := client.Do(request, nil); err != nil || answer.Status != http.StatusOK {
			t.Fatalf("%v: %d %s", err, answer.Status, answer.Sample)
		}
	})
}
