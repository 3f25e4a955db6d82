package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
)

// TestFallBack: where every server of a model fails with a 500, the fallback model
// answers, at L3, whoever accepts that.
func TestFallBack(t *testing.T) {
	s := startServers(t, nil)
	p := laddered("")
	p.model = []string{"retry: {attempts: 2, budget: 1}", "breaker: {failures: 1000}"}
	w := newWire(t, startGateway(t, s, p))
	s[:2].fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	for _, stream := range []string{"", `,"stream":true`} {
		tag := "fallen" + fmt.Sprint(len(stream))
		w.answered(t, chatOf("Hello", `,"user":"`+tag+`"`+stream), "L3", "no_backend", smallModel)
	}
	tried := len(s[0].Requests()) + len(s[1].Requests())
	if tried != 4 {
		t.Errorf("its own servers were tried %d times for two requests", tried)
	}
	w.refused(t, w.ask(t, "POST", chatPath, chatOf("Hello", ""), "X-Tidegate-Max-Level", "L2"), 502, "upstream_error", "")
	s.fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	w.refused(t, w.ask(t, "POST", chatPath, chatOf("Hello", "")), 502, "upstream_error", "")
	s.heal(t)
	w.idle(t)
}

// TestDeadCore: an engine's core dies with many whole requests in flight. Its server
// answers 500, and no caller notices: they all go to the second server, beyond the
// budget of retries.
func TestDeadCore(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 2 * time.Millisecond })
	f := startGateway(t, s, plan{model: []string{"breaker: {open: 1s}"}})
	const callers = 60
	var asking sync.WaitGroup
	for range callers {
		asking.Go(func() {
			if a := f.complete(t, adaKey, chat(largeModel, 200, "")); a.status != 200 {
				t.Errorf("a caller noticed: %d %s", a.status, a.body)
			}
		})
	}
	eventually(t, "many requests on the first server", func() bool { return s[0].Stats().Running > callers/3 })
	s[:1].fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDead})
	asking.Wait()
	for range 20 { // and nobody notices while it is dead
		if a := f.complete(t, adaKey, chat(largeModel, 2, "")); a.status != 200 {
			t.Errorf("a later caller noticed: %d %s", a.status, a.body)
		}
	}
	s.heal(t)
	eventually(t, "the server to be back", func() bool { return f.up(t) == len(s) })
	f.idle(t)
}

// TestHungBackend: a server of two hangs, although it answers its health probe. It goes out
// of rotation, no caller of a whole answer or of a stream that has not begun notices, and
// it comes back by itself when it answers again.
func TestHungBackend(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, plan{model: []string{"breaker: {stall: 500ms, open: 1s}"}})
	s[:1].fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang})
	var asking sync.WaitGroup
	for n := range 12 {
		asking.Go(func() {
			if a := f.complete(t, adaKey, chat(largeModel, 20, []string{"", `,"stream":true`}[n%2])); a.status != 200 {
				t.Errorf("a caller noticed: %d %s", a.status, a.body)
			}
		})
	}
	eventually(t, "the hung server to go out", func() bool { return f.up(t) == len(s)-1 })
	e := incident(t, "a hung backend")
	e.shows(t, f, nil)
	asking.Wait()
	if status := f.status(t); !strings.Contains(status, "it hangs: it has ") {
		t.Errorf("the status does not say why: %s", status)
	}
	e.says(t, "Restart the server; it comes back by itself")
	s.heal(t)
	e.ends(t, f)
	eventually(t, "the server to be back", func() bool { return f.up(t) == len(s) })
	f.idle(t)
}

// TestAllHang: where all servers of a model hang, the caller of a whole answer is told
// so after first_byte, however long its answer might be, and pays for no token. The
// servers stay in rotation: there is no better one.
func TestAllHang(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, plan{model: []string{"breaker: {stall: 200ms, failures: 1000}", "timeouts: {first_byte: 300ms}"}})
	for range 4 { // both have worked
		if a := f.complete(t, adaKey, chat(largeModel, 2, "")); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	made := s[0].Stats().GenerationTokens + s[1].Stats().GenerationTokens
	s.fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang})
	var asking sync.WaitGroup
	for range 6 {
		asking.Go(func() {
			a := f.complete(t, adaKey, chat(largeModel, 30000, ""))
			if a.status != 504 || !strings.Contains(string(a.body), "hangs: it has made nothing, for this request or any other, within the first_byte limit of 300ms") {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	eventually(t, "the status to say so", func() bool { return strings.Contains(f.status(t), `"without_progress"`) })
	asking.Wait()
	if up := f.up(t); up != len(s) {
		t.Errorf("%d of %d servers are in rotation", up, len(s))
	}
	if charged := f.metric(t, `tidegate_tokens_total{direction="output",model="`+largeModel+`"}`); int64(charged) != made {
		t.Errorf("%v tokens charged, %d made", charged, made)
	}
	s.heal(t)
	f.idle(t)
}

// TestMixedReleases: a caller's requests that an older release answers with a 500, and a
// newer one answers, do not take the older server from everybody. Of two servers of one
// release the one that fails is left out.
func TestMixedReleases(t *testing.T) {
	for _, c := range []struct {
		releases []string
		open     float64
	}{
		{[]string{"0.22.0", "0.23.0"}, 0},
		{[]string{"0.23.0", "0.23.0"}, 1},
	} {
		n := 0
		s := startServers(t, func(o *gatewaytest.Options) {
			o.Version = c.releases[n%len(c.releases)]
			n++
		})
		const failures = 3
		f := startGateway(t, s, plan{model: []string{"retry: {attempts: 2, budget: 1}", fmt.Sprintf("breaker: {failures: %d, open: 1h}", failures)}})
		s[:1].fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
		breaker := `tidegate_backend_breaker_state{backend="` + strings.TrimPrefix(s[0].URL, "http://") + `",model="` + largeModel + `"}`
		eventually(t, "enough failures", func() bool {
			if a := f.complete(t, adaKey, chat(largeModel, 2, "")); a.status != 200 {
				t.Errorf("a caller noticed: %d %s", a.status, a.body)
			}
			return f.metric(t, breaker) == 1 || len(s[0].Requests()) >= 2*failures
		})
		if open := f.metric(t, breaker); open != c.open {
			t.Errorf("%v: the breaker stands at %v after %d failures, want %v", c.releases, open, len(s[0].Requests()), c.open)
		}
		s.heal(t)
		f.idle(t)
	}
}
