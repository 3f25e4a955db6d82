package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/backend/exchange/exchangetest"
	"tidegate/gateway/gatewaytest"
	"tidegate/nvml"
	"tidegate/nvml/promtext"
)

func page(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func readEngine(text []byte) (e Engine, err error) {
	var scan promtext.Scanner
	err = e.read(bytes.NewReader(text), &scan)
	return e, err
}

// TestEnginePages reads pages of both generations of names and of data-parallel
// engines.
func TestEnginePages(t *testing.T) {
	for _, c := range []struct {
		file string
		want Engine
	}{
		{"vllm-0.23.txt", Engine{Engines: 1, Running: 12, Waiting: 3, KV: .4375, KVTokens: 16384 * 16, Preemptions: 7, PromptTokens: 18374652, OutputTokens: 18374652, Speed: -1, Sleep: "awake", process: 1795304839.406}},
		{"vllm-0.9.txt", Engine{Engines: 1, Running: 5, Waiting: 0, KV: .0625, KVTokens: 16384 * 16, Preemptions: 2, PromptTokens: 6, OutputTokens: 60, Speed: -1, process: 1795304839.713}},
		{"vllm-dp4.txt", Engine{Engines: 4, Running: 38, Waiting: 5, KV: .875, KVTokens: 4 * 16384 * 16, Preemptions: 3, PromptTokens: 6, OutputTokens: 60, Speed: -1, Sleep: "awake", process: 1795304839.991}},
	} {
		if e, err := readEngine(page(t, c.file)); err != nil || e != c.want {
			t.Errorf("%s: %v, %+v; want %+v", c.file, err, e, c.want)
		}
	}
}

func TestEngineLines(t *testing.T) {
	const running = "vllm:num_requests_running{engine=\"0\"} 1.0\n"
	state := func(engine int, awake, offloaded, discarded int) string {
		return fmt.Sprintf("vllm:engine_sleep_state{engine=\"%[1]d\",sleep_state=\"awake\"} %[2]d\nvllm:engine_sleep_state{engine=\"%[1]d\",sleep_state=\"weights_offloaded\"} %[3]d\nvllm:engine_sleep_state{engine=\"%[1]d\",sleep_state=\"discard_all\"} %[4]d\n", engine, awake, offloaded, discarded)
	}
	for _, c := range []struct {
		name, text string
		want       Engine
	}{
		{"only one line", running, Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"both names", running + "vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.5\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: .5, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"near names", running + "vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9\nvllm:num_requests_running_x 9\nvllm:num_preemptions_created 9\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"no numbers", running + "vllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc -1\nvllm:num_preemptions_total 1e99\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"more than full", running + "vllm:kv_cache_usage_perc 1.7\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: 1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"sizes told outright", running + "vllm:cache_config_info{block_size=\"16\",kv_cache_size_tokens=\"123456\",num_gpu_blocks=\"None\"} 1.0\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: 123456, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"sizes not told", running + "vllm:cache_config_info{block_size=\"None\",num_gpu_blocks=\"9999999999999\"} 1.0\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1}},
		{"awake", running + state(0, 1, 0, 0), Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1, Sleep: "awake"}},
		{"offloaded", running + state(0, 0, 1, 0), Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1, Sleep: "weights_offloaded"}},
		{"one of two", running + state(0, 1, 0, 0) + state(1, 0, 0, 1), Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1, Sleep: "discard_all"}},
		{"the other of two", running + state(0, 0, 1, 0) + state(1, 1, 0, 0), Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1, Sleep: "weights_offloaded"}},
		{"only told that not awake", running + "vllm:engine_sleep_state{sleep_state=\"awake\"} 0\n", Engine{Engines: 1, Running: 1, Waiting: -1, KV: -1, KVTokens: -1, Preemptions: -1, PromptTokens: -1, OutputTokens: -1, Speed: -1, Sleep: "asleep"}},
	} {
		if e, err := readEngine([]byte(c.text)); err != nil || e != c.want {
			t.Errorf("%s: %v, %+v; want %+v", c.name, err, e, c.want)
		}
	}
	for _, text := range []string{"", "python_info 1\n", "vllm:num_requests_running NaN\n"} {
		if _, err := readEngine([]byte(text)); !errors.Is(err, errNoEngine) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestSimulatedEngines reads what the stand-in of each version serves.
func TestSimulatedEngines(t *testing.T) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, c := range []struct {
		version string
		engines int
		sleep   string
	}{{"0.9.2", 1, "awake"}, {"0.11.0", 2, "awake"}, {"0.23.0", 1, "awake"}, {"0.30.0", 3, "awake"}} {
		o := gatewaytest.Default()
		o.Version, o.Engines = c.version, c.engines
		s := gatewaytest.Start(t, o)
		resp, err := client.Get(s.URL + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		var e Engine
		var scan promtext.Scanner
		err = e.read(resp.Body, &scan)
		resp.Body.Close()
		if err != nil || e.Engines != c.engines || e.Running != 0 || e.Waiting != 0 || e.KV != 0 || e.Sleep != c.sleep || e.Preemptions != 0 || e.KVTokens < 1 || e.process < 1e9 {
			t.Errorf("%s: %v, %+v", c.version, err, e)
		}
	}
}

func TestEngineNoAllocations(t *testing.T) {
	text := page(t, "vllm-0.23.txt")
	from := bytes.NewReader(text)
	var scan promtext.Scanner
	var e Engine
	if n := testing.AllocsPerRun(20, func() {
		from.Reset(text)
		if err := e.read(from, &scan); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEngine(b *testing.B) {
	for _, file := range []string{"vllm-0.23.txt", "vllm-0.9.txt"} {
		b.Run(file, func(b *testing.B) {
			text := page(b, file)
			from := bytes.NewReader(text)
			var scan promtext.Scanner
			var e Engine
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				from.Reset(text)
				if err := e.read(from, &scan); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzEngine(f *testing.F) {
	for _, file := range []string{"vllm-0.23.txt", "vllm-0.9.txt", "vllm-dp4.txt"} {
		f.Add(page(f, file))
	}
	f.Add([]byte("vllm:num_requests_running 1e15\nvllm:num_requests_running 1e15\nvllm:cache_config_info{block_size=\"999999999\",num_gpu_blocks=\"999999999\"} 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := readEngine(text)
		if err == nil && (e.Running < 0 || e.Waiting < -1 || e.Preemptions < -1 || e.KVTokens < -1 || e.KV > 1 || e.KV != e.KV || e.Engines < 1) {
			t.Errorf("%+v", e)
		}
	})
}

func metrics(running, preemptions, awake int) string {
	return fmt.Sprintf("vllm:num_requests_running{engine=\"0\"} %d\nvllm:num_preemptions_total %d\nvllm:engine_sleep_state{sleep_state=\"awake\"} %d\n", running, preemptions, awake)
}

// TestScrape: the load is read at its rhythm; preemptions count for five seconds;
// and a server that does not tell its load is asked seldom and stays in rotation.
func TestScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("/metrics", metrics(3, 10, 1))
		f, stop := running(t, w)
		defer stop()
		f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "a")})
		b := model(t, f, "Qwen3-1.7B").Backends[0]
		time.Sleep(10 * time.Second)
		if n := w.count("/metrics"); n < 36 || n > 46 {
			t.Errorf("asked %d times in 10 s", n)
		}
		e := b.Engine()
		if e == nil || e.Running != 3 || e.Preemptions != 10 || e.Preempted != 0 || e.Freshness(time.Now()) != nvml.Fresh || b.LoadError() != "" {
			t.Fatalf("%+v, %q", e, b.LoadError())
		}
		w.set("/metrics", metrics(3, 14, 1))
		time.Sleep(time.Second)
		if n := b.Engine().Preempted; n != 4 {
			t.Errorf("%d preemptions in the last 5 s", n)
		}
		time.Sleep(3 * time.Second)
		if n := b.Engine().Preempted; n != 4 {
			t.Errorf("%d preemptions in the last 5 s, 4 s later", n)
		}
		time.Sleep(2 * time.Second)
		if n := b.Engine().Preempted; n != 0 {
			t.Errorf("%d preemptions in the last 5 s, 6 s later", n)
		}
		w.set("/metrics", "status 404")
		time.Sleep(20 * time.Second)
		w.set("/metrics", metrics(3, 5000, 1))
		time.Sleep(3 * time.Second)
		if n := b.Engine().Preempted; n != 0 || b.Engine().Preemptions != 5000 {
			t.Errorf("%d preemptions in the last 5 s, of those in 20 s that nobody saw", n)
		}
		w.set("/metrics", "vllm:num_requests_running 1\n") // one that does not count them
		time.Sleep(time.Second)
		w.set("/metrics", metrics(3, 5000, 1))
		time.Sleep(time.Second)
		if n := b.Engine().Preempted; n != 0 {
			t.Errorf("%d preemptions after a count that was not known", n)
		}
		w.set("/metrics", metrics(0, 1, 1)) // it has restarted
		time.Sleep(time.Second)
		if n := b.Engine().Preempted; n != 0 {
			t.Errorf("%d preemptions after a restart", n)
		}
		for _, c := range [][2]string{
			{silent, "GET /metrics: no answer within 2s"}, {refusing, "GET /metrics: dial: connection refused"}, {"", "no vllm: metrics"}, {"status 404", "GET /metrics: status 404"},
		} {
			answer, want := c[0], c[1]
			w.set("/metrics", answer)
			time.Sleep(20 * time.Second)
			if !strings.Contains(b.LoadError(), want) || !b.Seat.InRotation() || b.Engine().Freshness(time.Now()) != nvml.Dropped {
				t.Errorf("%q: %q, in rotation %v", answer, b.LoadError(), b.Seat.InRotation())
			}
		}
		w.count("/metrics")
		time.Sleep(20 * time.Second)
		if n := w.count("/metrics"); n < 8 || n > 12 {
			t.Errorf("asked %d times in 20 s", n)
		}
		w.set("/metrics", metrics(1, 1, 1))
		time.Sleep(3 * time.Second)
		if b.LoadError() != "" || b.Engine().Freshness(time.Now()) != nvml.Fresh {
			t.Errorf("%q", b.LoadError())
		}
	})
}

// TestStarts: what is a start of an engine, and what only looks like one.
func TestStarts(t *testing.T) {
	at := func(process float64, page string) string {
		return fmt.Sprintf("process_start_time_seconds %g\n%s", process, page)
	}
	for _, c := range []struct {
		name  string
		page  string // of the server's load, at first
		play  func(w *world, b *Backend)
		start bool
	}{
		{"the server says so", at(1e9, metrics(0, 0, 1)), func(w *world, _ *Backend) { w.set("/metrics", at(1e9+5, metrics(0, 0, 1))) }, true},
		{"it has no load to tell", at(1e9, ""), func(w *world, _ *Backend) { w.set("/metrics", at(1e9+5, "")) }, true},
		{"two behind one address", at(1e9+5, metrics(0, 0, 1)), func(w *world, _ *Backend) {
			w.set("/metrics", at(1e9, metrics(0, 0, 1)))
			time.Sleep(time.Second)
			w.set("/metrics", at(1e9+5, metrics(0, 0, 1)))
		}, false},
		{"first told", metrics(0, 0, 1), func(w *world, _ *Backend) { w.set("/metrics", at(1e9, metrics(0, 0, 1))) }, false},
		{"down for long", metrics(0, 0, 1), func(w *world, _ *Backend) {
			w.set("/health", refusing)
			time.Sleep(20 * time.Second)
			w.set("/health", "")
		}, true},
		{"down for long, and yet the same", at(1e9, metrics(0, 0, 1)), func(w *world, _ *Backend) {
			w.set("/health", refusing)
			time.Sleep(20 * time.Second)
			w.set("/health", "")
		}, false},
		{"down for a moment", metrics(0, 0, 1), func(w *world, _ *Backend) {
			w.set("/health", refusing)
			time.Sleep(5 * time.Second)
			w.set("/health", "")
		}, false},
		{"a breaker", metrics(0, 0, 1), func(_ *world, b *Backend) {
			for range 100 {
				_ = b.Guard(func() error { return &exchange.BrokenError{Action: "x", Err: errors.New("x")} })
			}
			time.Sleep(time.Minute)
		}, false},
		{"asleep", metrics(0, 0, 1), func(w *world, _ *Backend) {
			w.set("/metrics", metrics(0, 0, 0))
			time.Sleep(time.Minute)
			w.set("/metrics", metrics(0, 0, 1))
		}, false},
		{"the wrong name", metrics(0, 0, 1), func(w *world, _ *Backend) {
			good := w.answers["/v1/models"]
			w.set("/v1/models", `{"data":[{"id":"Llama"}]}`)
			time.Sleep(2 * time.Minute)
			w.set("/v1/models", good)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.set("/metrics", c.page)
				w.set("/health", "status 503") // a first coming up is no start
				f, stop := running(t, w)
				defer stop()
				f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "a")})
				b := model(t, f, "Qwen3-1.7B").Backends[0]
				time.Sleep(15 * time.Second)
				w.set("/health", "")
				time.Sleep(10 * time.Second)
				if r := b.readings(time.Now()); !r.Started.IsZero() || !r.InRotation {
					t.Fatalf("at first: started %v, up %v", r.Started, r.InRotation)
				}
				c.play(w, b)
				time.Sleep(5 * time.Second)
				r := b.readings(time.Now())
				if !r.Started.IsZero() != c.start {
					t.Errorf("started %v", r.Started)
				}
				time.Sleep(time.Minute)
				if again := b.readings(time.Now()); !again.InRotation || !again.Started.Equal(r.Started) {
					t.Errorf("up %v, started %v and then %v", again.InRotation, r.Started, again.Started)
				}
			})
		})
	}
}

// TestScrapesAreApart: a server whose page never comes delays no other's, and its
// own pages never overlap.
func TestScrapesAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("/metrics", metrics(1, 0, 1))
		w.set("slow/metrics", silent)
		f, stop := running(t, w)
		defer stop()
		f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "slow", "a")})
		slow, a := model(t, f, "Qwen3-1.7B").Backends[0], model(t, f, "Qwen3-1.7B").Backends[1]
		time.Sleep(time.Second)
		w.count("/metrics")
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if age := a.Engine().Age(time.Now()); age > 300*time.Millisecond {
				t.Fatalf("aged %v", age)
			}
		}
		asked := w.count("slow/metrics")
		if slow.Engine() != nil || asked > 6 {
			t.Errorf("%+v, asked %d times in 10 s while each takes 2 s", slow.Engine(), asked)
		}
	})
}

// TestAsleep: an engine that sleeps is healthy and yet out of rotation, at once,
// and back when it wakes.
func TestAsleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set("/metrics", metrics(0, 0, 1))
		f, stop := running(t, w)
		defer stop()
		f.Apply([]ModelConfig{modelOf("Qwen3-1.7B", "a")})
		b := model(t, f, "Qwen3-1.7B").Backends[0]
		want := func(when string, up bool, why string) {
			t.Helper()
			synctest.Wait()
			if b.Seat.InRotation() != up || b.OutReason() != why {
				t.Errorf("%s: in rotation %v, %q", when, b.Seat.InRotation(), b.OutReason())
			}
		}
		time.Sleep(10 * time.Second)
		want("awake", true, "")
		w.set("/metrics", metrics(0, 0, 0))
		time.Sleep(300 * time.Millisecond)
		want("asleep", false, "the engine is asleep (asleep)")
		time.Sleep(10 * time.Second)
		want("still asleep", false, "the engine is asleep (asleep)")
		w.set("/metrics", metrics(0, 0, 1))
		time.Sleep(300 * time.Millisecond)
		want("woken", true, "")
		w.set("/metrics", metrics(0, 0, 0))
		time.Sleep(time.Second)
		w.set("/metrics", "status 404")
		time.Sleep(time.Minute)
		want("silent", false, "the engine is asleep (asleep)")
		w.set("/health", "status 503")
		time.Sleep(20 * time.Second)
		want("down", false, "GET /health: status 503")
		w.set("/health", "")
		time.Sleep(20 * time.Second)
		want("restarted", true, "")
	})
}

// TestGPUsOfBackends: which GPUs a backend runs on can change under it.
func TestGPUsOfBackends(t *testing.T) {
	f := fleetOver(newWorld())
	m := modelOf("m", "a", "b")
	m.Backends[0].GPUs = []string{"s/0", "GPU-x"}
	f.Apply([]ModelConfig{m})
	a, b := model(t, f, "m").Backends[0], model(t, f, "m").Backends[1]
	refs := func(b *Backend) (out []string) {
		for _, v := range b.GPUs() {
			out = append(out, v.Ref)
		}
		return out
	}
	if fmt.Sprint(refs(a), refs(b)) != "[s/0 GPU-x] []" || a.GPUs()[0] != f.gpus.Watch("s/0") {
		t.Error(refs(a), refs(b))
	}
	m.Backends[0].GPUs, m.Backends[1].GPUs = nil, []string{"s/0"}
	f.Apply([]ModelConfig{m})
	if now := model(t, f, "m").Backends; now[0] != a || now[1] != b || fmt.Sprint(refs(a), refs(b)) != "[] [s/0]" {
		t.Error(refs(a), refs(b))
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		version string
		want    Capabilities
		minor   int
	}{
		{"", Capabilities{}, -1},
		{"nightly", Capabilities{}, -1},
		{"-1.2", Capabilities{}, -1},
		{"0.1.dev1234+g1a2b3c", Capabilities{}, -1},
		{"0.1.7", Capabilities{Known: true}, 1},
		{"0.9.2", Capabilities{Known: true}, 9},
		{"0.12.0", Capabilities{Known: true, StructuredOutputs: true}, 12},
		{"v0.16.1rc1", Capabilities{Known: true, StructuredOutputs: true, UniqueIDs: true, OnlyReasoning: true}, 16},
		{"0.23.0.dev12+gabc", Capabilities{Known: true, StructuredOutputs: true, UniqueIDs: true, OnlyReasoning: true, ThinkingBudget: true, ReasoningEffort: true}, 22},
		{"0.23.1.dev12+gabc", Capabilities{Known: true, StructuredOutputs: true, UniqueIDs: true, OnlyReasoning: true, ThinkingBudget: true, ReasoningEffort: true, CachedTokens: true}, 23},
		{"0.32.0+cu129", Capabilities{true, true, true, true, true, true, true, true, true, 0}, 32},
		{"1.0", Capabilities{true, true, true, true, true, true, true, true, true, 0}, math.MaxInt32},
	} {
		got := capabilitiesOf(c.version)
		if got.Minor() != c.minor {
			t.Errorf("%q: minor release %d, want %d", c.version, got.Minor(), c.minor)
		}
		if got.minor = 0; got != c.want {
			t.Errorf("%q: %+v", c.version, got)
		}
	}
}

func TestScrapeOfARealSocket(t *testing.T) {
	text := page(t, "vllm-0.23.txt")
	s := exchangetest.Serve(t, nil, func(p *exchangetest.Peer) {
		for q := p.Request(); q != nil; q = p.Request() {
			switch q.Header.Get("Authorization") {
			case "Bearer k":
				p.Say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
			default:
				// for ever
				p.Say("HTTP/1.1 200 OK\r\n\r\n")
				for p.Say("vllm:x " + strings.Repeat("1", 1000) + "\n") {
				}
				return
			}
		}
	})
	for _, c := range []struct{ key, want string }{{"k", ""}, {"", "GET /metrics: the page is too long"}} {
		client := ProbeClient()
		b := New(Config{URL: "http://" + s.Addr, APIKey: c.key}, "agent")
		sc := newScraper(&prober{b: b, client: client, log: quiet(), scrape: time.Second})
		err := sc.scrape(context.Background())
		if c.want == "" && (err != nil || b.Engine().Running != 12) || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%q: %v", c.key, err)
		}
		client.CloseIdleConnections()
	}
}

// TestHeld: a reading that tells of requests which wait, or were preempted just now,
// holds the idle limit, and no other does.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{URL: "http://gpu-a:8000"}, "agent")
		s := newScraper(&prober{b: b, log: quiet(), scrape: time.Second})
		for _, c := range []struct {
			waiting, preemptions int // negative waiting: nothing is told
			held                 bool
		}{
			{0, 0, false}, {1, 0, true}, {0, 0, false}, {0, 1, true}, {0, 1, true}, {-1, 0, false}, {2, 1, true}, {0, 1, false},
		} {
			time.Sleep(2 * time.Second) // 5 s make a preemption old
			text := fmt.Sprintf("vllm:num_requests_running 1\nvllm:num_requests_waiting %d\nvllm:num_preemptions_total %d\n", c.waiting, c.preemptions)
			if c.waiting < 0 {
				text = ""
			}
			s.get = func(context.Context) (*http.Response, error) {
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(text))}, nil
			}
			if err := s.scrape(t.Context()); (err != nil) != (c.waiting < 0) {
				t.Fatal(err)
			}
			if at := b.queuedAt.Load(); (at != nil && at.Equal(time.Now())) != c.held {
				t.Errorf("%+v: held at %v", c, at)
			}
		}
	})
}
