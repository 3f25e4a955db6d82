package nvml

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/nvml/poll"

	"github.com/prometheus/client_golang/prometheus"
)

// patience bounds every wait of these tests; it is for loaded machines.
const patience = poll.Patience

// TestTake: what the numbers of reports and the boots of an agent mean.
func TestTake(t *testing.T) {
	began := time.Now()
	restarts := 0
	a := newAgent(&Config{}, "http://a", func() { restarts++ })
	for i, c := range []struct {
		boot     string
		seq      uint64
		ageMs    int64
		after    time.Duration // since the first report
		want     time.Duration // when it was measured, likewise
		err      string
		restarts int
	}{
		{"x", 10, 100, 0, -100 * time.Millisecond, "", 0},
		{"x", 11, 200, time.Second, 800 * time.Millisecond, "", 0},
		{"x", 11, 200, 2 * time.Second, 800 * time.Millisecond, "", 0}, // kept by something between
		{"x", 11, 5000, 3 * time.Second, -2 * time.Second, "", 0},      // the agent says older
		{"x", 11, 0, 4 * time.Second, -2 * time.Second, "", 0},
		{"x", 9, 0, 5 * time.Second, 0, "report 9 came after report 11", 0},
		{"x", 12, 0, 6 * time.Second, 6 * time.Second, "", 0},
		{"y", 1, 0, 7 * time.Second, 7 * time.Second, "", 1}, // restarted: its numbers begin anew
		{"y", 2, 0, 8 * time.Second, 8 * time.Second, "", 1},
		{"", 3, 0, 9 * time.Second, 0, "no boot_id", 1},
	} {
		s, err := a.convert(&Report{BootID: c.boot, Seq: c.seq, GPUs: []Reading{{UUID: "GPU-a", AgeMs: c.ageMs}}}, began.Add(c.after))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || s != nil {
				t.Errorf("%d: %v", i, err)
			}
			continue
		}
		if err != nil || s.gpus[0].MeasuredAt.Sub(began) != c.want || restarts != c.restarts {
			t.Errorf("%d: %v, measured at %v, %d restarts", i, err, s.gpus[0].MeasuredAt.Sub(began), restarts)
		}
	}
	s, err := a.convert(&Report{BootID: "y", Seq: 5, Node: "n", Error: "no driver"}, began)
	if err == nil || err.Error() != "the agent says: no driver" || s == nil || s.node != "n" {
		t.Errorf("%v, %+v", err, s)
	}
}

// TestTakeSweeps: an agent numbers its reports when it is asked, so that two of them
// may tell the same sweep, after different times on their way and with ages in whole
// milliseconds. It is one sample all the same.
func TestTakeSweeps(t *testing.T) {
	began := time.Now()
	a := newAgent(&Config{}, "http://a", func() {})
	seq := uint64(0)
	take := func(sweep uint64, ageMs int64, after time.Duration) time.Duration {
		t.Helper()
		seq++
		s, err := a.convert(&Report{BootID: "b", Seq: seq, GPUs: []Reading{{UUID: "g", Sweep: sweep, AgeMs: ageMs}}}, began.Add(after))
		if err != nil {
			t.Fatal(err)
		}
		return s.gpus[0].MeasuredAt.Sub(began)
	}
	first := take(1, 40, 40*time.Millisecond+700*time.Microsecond)
	for _, again := range []time.Duration{200 * time.Microsecond, 300 * time.Millisecond, -400 * time.Millisecond} {
		if at := take(1, 940, 940*time.Millisecond+again); at != first {
			t.Errorf("the sweep of %v came again and is of %v", first, at)
		}
	}
	if at := take(2, 10, 1010*time.Millisecond); at != time.Second {
		t.Errorf("the next sweep is of %v", at)
	}
}

// fakeAgent answers /v1/readings as an agent does.
type fakeAgent struct {
	boot  string
	token string
	seq   atomic.Uint64
	gpus  int
}

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path != "/v1/readings" {
		http.NotFound(w, q)
		return
	}
	if f.token != "" && q.Header.Get("Authorization") != "Bearer "+f.token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	json.NewEncoder(w).Encode(f.report())
}

func (f *fakeAgent) report() *Report {
	r := &Report{Node: "node", BootID: f.boot, Seq: f.seq.Add(1), Driver: "580.95"}
	for i := range f.gpus {
		r.GPUs = append(r.GPUs, Reading{
			Index: i, UUID: fmt.Sprintf("GPU-%s-%d", f.boot, i), Name: "NVIDIA H200", State: StateOK, AgeMs: 40, Margin: of(35), Temperature: of(52), HBM: of(41),
			Memory: Memory{MemoryTotal: of(uint64(150754820096)), MemoryUsed: of(uint64(138694205440)), MemoryFree: of(uint64(11416371200)), MemoryReserved: of(uint64(644243456))},
			Power:  of(uint64(627000)), PowerLimit: of(uint64(700000)), Utilisation: of(98), Reasons: []string{"sw_power_cap"},
			ThrottleNs:     map[string]uint64{"sw_power_cap": 918273645, "sw_thermal": 0, "hw_thermal": 0, "hw_power_brake": 0},
			ECCUncorrected: of(uint64(0)), RowsPending: of(false), LatencyUs: 812, Sweep: r.Seq,
		})
	}
	return r
}

// TestAgentOverTheWire asks agents of all kinds on real sockets.
func TestAgentOverTheWire(t *testing.T) {
	plain := httptest.NewServer(&fakeAgent{boot: "plain", token: "secret", gpus: 2})
	defer plain.Close()
	secure := httptest.NewTLSServer(&fakeAgent{boot: "secure", gpus: 1})
	defer secure.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &http.Server{Handler: &fakeAgent{boot: "local", gpus: 1}}
	go local.Serve(l)
	defer local.Close()
	moved := httptest.NewServer(http.RedirectHandler(plain.URL+"/v1/readings", http.StatusFound))
	defer moved.Close()
	for _, c := range []struct {
		name string
		c    Config
		gpus int
		err  string
	}{
		{"plain", Config{Agent: plain.URL + "/", Token: "secret"}, 2, ""},
		{"wrong token", Config{Agent: plain.URL, Token: "guess"}, 0, "status 401: the token is wrong"},
		{"TLS", Config{Agent: secure.URL, CAFile: ca}, 1, ""},
		{"unknown authority", Config{Agent: secure.URL}, 0, "certificate"},
		{"socket", Config{Agent: "unix://" + socket}, 1, ""},
		{"no socket", Config{Agent: "unix://" + socket + "x"}, 0, "no such file"},
		{"elsewhere", Config{Agent: plain.URL + "/x"}, 0, "status 404"},
		{"moved", Config{Agent: moved.URL, Token: "secret"}, 0, "status 302"},
		{"nobody", Config{Agent: "http://127.0.0.1:1"}, 0, "connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAgent(&c.c, c.c.Agent, func() {})
			defer a.close()
			for range 2 {
				s, err := a.read(t.Context(), time.Now().Add(patience))
				if c.err != "" {
					if err == nil || !strings.Contains(err.Error(), c.err) {
						t.Fatalf("%v; want %s", err, c.err)
					}
					continue
				}
				if err != nil || len(s.gpus) != c.gpus || *s.gpus[0].Margin != 35 || s.node != "node" || s.driver != "580.95" {
					t.Fatalf("%v, %+v", err, s)
				}
			}
		})
	}
}

// raw answers every connection with what write writes.
func raw(t *testing.T, write func(nc net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			serving.Go(func() {
				defer nc.Close()
				if _, err := http.ReadRequest(bufio.NewReader(nc)); err == nil {
					write(nc)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, nc := range open {
			nc.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return "http://" + l.Addr().String()
}

// TestClosedMeanwhile: a server that closes after each answer without saying so is
// asked over a new connection.
func TestClosedMeanwhile(t *testing.T) {
	f := &fakeAgent{boot: "x", gpus: 1}
	closed := make(chan bool, 10)
	url := raw(t, func(nc net.Conn) {
		body, _ := json.Marshal(f.report())
		fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		nc.Close()
		closed <- true
	})
	a := newAgent(&Config{}, url, func() {})
	defer a.close()
	for i := range 3 {
		if _, err := a.read(t.Context(), time.Now().Add(patience)); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		<-closed
	}
}

// TestStopsAtOnce: a question that is open does not delay the end.
func TestStopsAtOnce(t *testing.T) {
	asked, release := make(chan bool, 1), make(chan bool)
	url := raw(t, func(net.Conn) { asked <- true; <-release })
	defer close(release)
	a := newAgent(&Config{}, url, func() {})
	defer a.close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.read(ctx, time.Now().Add(2*patience))
		done <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("an answer")
		}
	case <-time.After(patience):
		t.Error("the question outlives its context")
	}
}

// TestBadAgents: nothing that an agent may do harms the monitor, and each says in
// the status what is wrong. A good one beside them is read all the while.
func TestBadAgents(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	good := httptest.NewServer(&fakeAgent{boot: "good", gpus: 1})
	defer good.Close()
	silent := make(chan struct{})
	defer close(silent)
	hang := func(net.Conn) { <-silent }
	endless := func(nc net.Conn) {
		io.WriteString(nc, head+"Content-Length: 1073741824\r\n\r\n{\"node\":\"")
		block := []byte(strings.Repeat("x", 64<<10))
		for {
			if _, err := nc.Write(block); err != nil {
				return
			}
		}
	}
	bad := []struct {
		name, url, want string
	}{
		{"dead", "http://127.0.0.1:1", "connection refused"},
		{"hangs", raw(t, hang), "no whole answer in time"},
		{"half", raw(t, func(nc net.Conn) { io.WriteString(nc, head+"Content-Length: 100\r\n\r\n{\"node\":"); <-silent }), "no whole answer in time"},
		{"cut", raw(t, func(nc net.Conn) { io.WriteString(nc, head+"Content-Length: 100\r\n\r\n{\"node\":") }), "EOF"},
		{"garbage", raw(t, func(nc net.Conn) { io.WriteString(nc, "\x00\xff\x00\r\n\r\n") }), "malformed HTTP"},
		{"no JSON", raw(t, func(nc net.Conn) { io.WriteString(nc, head+"Content-Length: 6\r\n\r\n<html>") }), "no report"},
		{"other JSON", raw(t, func(nc net.Conn) { io.WriteString(nc, head+"Content-Length: 14\r\n\r\n{\"gpus\":\"all\"}") }), "no report"},
		{"empty JSON", raw(t, func(nc net.Conn) { io.WriteString(nc, head+"Content-Length: 2\r\n\r\n{}") }), "no boot_id"},
		{"1 GiB", raw(t, endless), "longer than"},
		{"closes", raw(t, func(net.Conn) {}), "EOF"},
	}
	m := newMonitor()
	configs := []Config{{Name: "good", Agent: good.URL, Every: 100 * time.Millisecond}}
	for i, b := range bad {
		configs = append(configs, Config{Name: fmt.Sprintf("bad%d", i), Agent: b.url, Every: 100 * time.Millisecond})
	}
	m.Replace(configs)
	v := m.Watch("good/0")
	stop := start(t, m)
	defer stop()
	poll.Await(t, "a reading of the good one", func() bool { return v.Load() != nil })
	for i, b := range bad {
		poll.Await(t, b.name+" to be told", func() bool {
			sources, _ := m.Status()
			s := sources[i+1]
			if s.Failures > 0 && !strings.Contains(s.Error, b.want) && !strings.Contains(s.Error, "no whole answer in time") {
				t.Fatalf("%s: %q; want %q", b.name, s.Error, b.want)
			}
			return strings.Contains(s.Error, b.want) && s.HeardMs == nil && !s.OK
		})
	}
	seen := v.Load()
	poll.Await(t, "another reading of the good one", func() bool { return v.Load() != seen })
	_, gpus := m.Status()
	if len(gpus) != 1 {
		t.Errorf("%+v", gpus)
	}
}

// TestAgentRestarts: readings go on through a restart, which is counted.
func TestAgentRestarts(t *testing.T) {
	var now atomic.Pointer[fakeAgent]
	now.Store(&fakeAgent{boot: "first", gpus: 1})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { now.Load().ServeHTTP(w, q) }))
	defer server.Close()
	m := newMonitor()
	m.Replace([]Config{{Name: "a", Agent: server.URL, Every: 100 * time.Millisecond}})
	v := m.Watch("a/0")
	stop := start(t, m)
	defer stop()
	uuid := func() string {
		if g := v.Load(); g != nil {
			return g.UUID
		}
		return ""
	}
	poll.Await(t, "the first boot", func() bool { return uuid() == "GPU-first-0" })
	now.Store(&fakeAgent{boot: "second", gpus: 1})
	poll.Await(t, "the second boot", func() bool { return uuid() == "GPU-second-0" })
	if s, _ := m.Status(); s[0].Restarts != 1 || !s[0].OK {
		t.Errorf("%+v", s)
	}
}

func FuzzReport(f *testing.F) {
	for _, r := range []*Report{(&fakeAgent{boot: "x", gpus: 2}).report(), {}, {BootID: "x", Error: "no driver"}} {
		raw, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"boot_id":"x","gpus":[{"uuid":"\u0000","age_ms":-1,"xids":[{}],"throttle_ns":{"":1}},null]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r Report
		known := json.Unmarshal(raw, &r) == nil
		read, err := readReport(raw, texts{})
		if known && err != nil && strings.TrimSpace(string(raw)) != "null" {
			t.Error(err)
		}
		if err != nil {
			return
		}
		a := newAgent(&Config{}, "http://a", func() {})
		s, _ := a.convert(read, time.Now())
		if s == nil {
			return
		}
		checkSample(t, s)
	})
}

// checkSample holds what clean promises of any sample.
func checkSample(t *testing.T, s *sample) {
	m := newMonitor()
	seen := map[string]bool{}
	gpus, _ := clean(s.gpus, "s")
	for _, g := range gpus {
		if g.UUID == "" || seen[g.UUID] || len(g.UUID) > maxText || g.Margin != nil && (*g.Margin < -100 || *g.Margin > 200) || g.MeasuredAt.After(time.Now()) {
			t.Errorf("%+v", g)
		}
		seen[g.UUID] = true
	}
	m.Replace([]Config{{Name: "s", Agent: "http://a", Every: time.Second}})
	m.publish(m.feeds[0], &sample{gpus: gpus})
	reg := prometheus.Gatherers{m}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}
