package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/nvml"
)

// The fleet of BenchmarkScrape.
const (
	fleetModels   = 20
	fleetBackends = 200
	fleetGPUs     = 500
)

// bigFleet is a gateway in front of a large fleet, with traffic on all series.
func bigFleet(tb testing.TB) *Gateway {
	g, _ := bare(tb, func(c *Config) { c.PerUser = 100 })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.GPUs.Run(ctx) }()
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		report := nvml.Report{Node: "n", BootID: "b", Seq: uint64(time.Now().UnixNano())}
		for i := range fleetGPUs / 4 {
			n, big := 40+i%30, uint64(100<<30+i)
			report.GPUs = append(report.GPUs, nvml.Reading{
				Index: i, UUID: fmt.Sprintf("GPU-%s-%08d-aaaa-bbbb-cccccccccccc", r.Host, i), Name: "NVIDIA H200", State: nvml.StateOK,
				Margin: &n, Temperature: &n, HBM: &n, Memory: nvml.Memory{MemoryTotal: &big, MemoryUsed: &big}, Power: &big, Utilisation: &n, Reasons: []string{},
				ThrottleNs: map[string]uint64{"sw_thermal": 1e9, "hw_thermal": 1e8, "sw_power_cap": 1e10, "hw_power_brake": 0, "sync_boost": 0},
			})
		}
		_ = json.NewEncoder(w).Encode(report)
	}))
	tb.Cleanup(func() {
		stop()
		<-ended
		node.Close()
	})
	var sources []nvml.Config
	for i := range 4 {
		c := nvml.DefaultConfig()
		c.Name, c.Agent = fmt.Sprint("node-", i), node.URL
		sources = append(sources, c)
	}
	g.GPUs.Replace(sources)
	var models []backend.ModelConfig
	for i := range fleetModels {
		m := backend.DefaultModel()
		m.Name = fmt.Sprintf("Qwen3-model-%02d", i)
		for j := range fleetBackends / fleetModels {
			n := i*fleetBackends/fleetModels + j
			m.Backends = append(m.Backends, backend.Config{URL: fmt.Sprintf("http://vllm-%03d.example:8000", n), GPUs: []string{fmt.Sprintf("node-%d/%d", n%4, n%(fleetGPUs/4))}})
		}
		models = append(models, m)
	}
	g.Fleet.Apply(models)
	g.metrics.keepRules(map[string]bool{"key": false, "project": false, "address": false, "daily": true, "monthly": true})
	useAll(g)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, gpus := g.GPUs.Status(); len(gpus) == fleetGPUs {
			return g
		}
		if time.Now().After(deadline) {
			sources, gpus := g.GPUs.Status()
			tb.Fatalf("%d GPUs are read; %+v", len(gpus), sources)
		}
	}
}

// useAll counts requests of each kind on each model.
func useAll(g *Gateway) {
	for i, m := range g.Fleet.Models() {
		for level := degrade.Full; level <= degrade.Canned; level++ {
			for _, stream := range []bool{true, false} {
				for _, route := range []string{"/v1/chat/completions", "/v1/completions"} {
					for _, status := range []int{200, 400, 429, 502, 503, 504, clientClosed} {
						c := &call{
							request: request{model: m}, plan: plan{model: m, served: m.Name, choices: 1}, route: route, began: time.Now().Add(-time.Second),
							permit: &admission.Permit{}, caller: account.Identity{User: fmt.Sprint("user-", i, "-", status), Key: "k"}, tracing: sampledTrace(),
						}
						c.request.Wish.Stream = stream
						c.outcome = outcome{
							status: status, level: level, reason: "queue", backend: "x", usage: openai.Usage{Input: 1000, Cached: 10, Output: 400, Reasoning: 300},
							overhead: time.Millisecond, firstToken: c.began.Add(100 * time.Millisecond), lastWrite: time.Now(),
						}
						for n := range 30 {
							c.began = time.Now().Add(-time.Duration(1<<n) * time.Microsecond)
							g.metrics.finished(c, time.Since(c.began))
							c.outcome.usage.Output += n * 50
							g.metrics.used(m.Name, c.caller.User, c.outcome.usage)
						}
					}
				}
			}
		}
	}
}

// BenchmarkScrape is one scrape of a large fleet by Prometheus, compressed as it asks
// for it, in both formats. All of it is to stay below 50 ms.
func BenchmarkScrape(b *testing.B) {
	g := bigFleet(b)
	server := httptest.NewServer(g.OpsHandler(nil))
	b.Cleanup(server.Close)
	transport := &http.Transport{DisableCompression: true}
	b.Cleanup(transport.CloseIdleConnections)
	for name, accept := range map[string]string{
		"text":        "text/plain;version=0.0.4",
		"openmetrics": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
		"protobuf":    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var sent, lines int
			for b.Loop() {
				q, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, server.URL+"/metrics", nil)
				q.Header.Set("Accept", accept)
				q.Header.Set("Accept-Encoding", "gzip")
				resp, err := transport.RoundTrip(q)
				if err != nil {
					b.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Encoding") != "gzip" {
					b.Fatal(resp.Status, resp.Header, err)
				}
				sent = len(body)
				if lines == 0 {
					b.StopTimer()
					lines = gunzipped(b, body)
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(sent), "B/page")
			b.ReportMetric(float64(lines), "B/plain")
		})
	}
	b.Logf("%d series", series(b, g.gatherers()))
}

// TestOddScrapes: whatever a scraper asks for, and however many ask, it is given a
// whole page that its format knows to be one; a page that cannot be made whole is cut.
func TestOddScrapes(t *testing.T) {
	g, reg := bare(t, nil)
	server := httptest.NewServer(g.OpsHandler(nil))
	t.Cleanup(server.Close)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	get := func(method, accept, encoding string) (*http.Response, []byte, error) {
		q, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/metrics", nil)
		if err != nil {
			return nil, nil, err
		}
		q.Header["Accept"], q.Header["Accept-Encoding"] = []string{accept}, []string{encoding}
		resp, err := transport.RoundTrip(q)
		if err != nil {
			return nil, nil, err
		}
		defer resp.Body.Close()
		in := io.Reader(resp.Body)
		if resp.Header.Get("Content-Encoding") == "gzip" && method != http.MethodHead {
			if in, err = gzip.NewReader(in); err != nil {
				return resp, nil, err
			}
		}
		body, err := io.ReadAll(in)
		return resp, body, err
	}
	want := len(gathered(t, reg))
	var all sync.WaitGroup
	for _, accept := range []string{
		"", "*/*", "junk", "application/json", "text/html,*/*;q=0.8", ";;q=,", "text/plain;version=9", "application/openmetrics-text;version=1.0.0",
		"application/openmetrics-text;version=2.0.0", "text/plain;version=1.0.0;escaping=allow-utf-8", "application/openmetrics-text;version=1.0.0;escaping=dots",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=values",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
	} {
		for _, encoding := range []string{"", "gzip", "identity", "gzip;q=0", "*;q=0", ",;=,gzip", "br, zstd"} {
			all.Go(func() {
				resp, body, err := get(http.MethodGet, accept, encoding)
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%q, %q: %v %v", accept, encoding, resp, err)
					return
				}
				format := expfmt.ResponseFormat(resp.Header)
				switch format.FormatType() {
				case expfmt.TypeTextPlain, expfmt.TypeProtoDelim:
				default:
					if !strings.HasSuffix(string(body), "\n# EOF\n") && !strings.Contains(accept, "encoding=text") {
						t.Errorf("%q, %q: no page of %s", accept, encoding, resp.Header.Get("Content-Type"))
					}
					return // the library cannot read it
				}
				families, n := expfmt.NewDecoder(bytes.NewReader(body), format), 0
				for {
					var f dto.MetricFamily
					if err := families.Decode(&f); err != nil {
						break
					}
					n += len(f.GetMetric())
				}
				if n < want {
					t.Errorf("%q, %q: %d series of %d, as %s", accept, encoding, n, want, resp.Header.Get("Content-Type"))
				}
			})
		}
	}
	all.Wait()
	if resp, body, err := get(http.MethodHead, "", "gzip"); err != nil || resp.StatusCode != http.StatusOK || len(body) != 0 {
		t.Errorf("HEAD: %v %d bytes %v", resp, len(body), err)
	}
	g.Gatherers = append(g.Gatherers, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errPanic }))
	for _, encoding := range []string{"", "gzip"} {
		if _, body, err := get(http.MethodGet, "", encoding); err == nil {
			t.Errorf("%q: half a page of %d bytes looks whole", encoding, len(body))
		}
	}
}

func gunzipped(tb testing.TB, body []byte) int {
	zipped, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	n, err := io.Copy(io.Discard, zipped)
	if err != nil {
		tb.Fatal(err)
	}
	return int(n)
}

// series counts what a registry holds.
func series(tb testing.TB, reg prometheus.Gatherer) (n int) {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		n += len(f.GetMetric())
	}
	return n
}
