package gateway_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestFallBack: where every server of a model fails with a 500, the fallback model
// answers, at L3, whoever accepts that.
func TestFallBack(t *testing.T) {
	s := startServers(t, nil)
	p := stack.Laddered("")
	p.Model = []string{"retry: {attempts: 2, budget: 1}", "breaker: {failures: 1000}"}
	w := newWire(t, startGateway(t, s, p))
	s[:2].Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	for _, stream := range []string{"", `,"stream":true`} {
		tag := "fallen" + fmt.Sprint(len(stream))
		w.answered(t, chatOf("Hello", `,"user":"`+tag+`"`+stream), "L3", "no_backend", stack.SmallModel)
	}
	tried := len(s[0].Requests()) + len(s[1].Requests())
	if tried != 4 {
		t.Errorf("its own servers were tried %d times for two requests", tried)
	}
	w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf("Hello", ""), "X-Tidegate-Max-Level", "L2"), 502, "upstream_error", "")
	s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
	w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf("Hello", "")), 502, "upstream_error", "")
	s.Heal(t)
	w.Idle(t)
}

// TestDeadCore: an engine's core dies with many whole requests in flight. Its server
// answers 500, and no caller notices: they all go to the second server, beyond the
// budget of retries.
func TestDeadCore(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 2 * time.Millisecond })
	f := startGateway(t, s, stack.Config{Model: []string{"breaker: {open: 1s}"}})
	const callers = 60
	var asking sync.WaitGroup
	for range callers {
		asking.Go(func() {
			if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 200, "")); a.Status != 200 {
				t.Errorf("a caller noticed: %d %s", a.Status, a.Body)
			}
		})
	}
	stack.Eventually(t, "many requests on the first server", func() bool { return s[0].Stats().Running > callers/3 })
	s[:1].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDead})
	asking.Wait()
	for range 20 { // and nobody notices while it is dead
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != 200 {
			t.Errorf("a later caller noticed: %d %s", a.Status, a.Body)
		}
	}
	s.Heal(t)
	stack.Eventually(t, "the server to be back", func() bool { return f.InRotation(t) == len(s) })
	f.Idle(t)
}

// TestAllHang: where all servers of a model hang, the caller of a whole answer is told
// so after first_byte, however long its answer might be, and pays for no token. The
// servers stay in rotation: there is no better one.
func TestAllHang(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{Model: []string{"breaker: {stall: 200ms, failures: 1000}", "timeouts: {first_byte: 300ms}"}})
	for range 4 { // both have worked
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	made := s[0].Stats().GenerationTokens + s[1].Stats().GenerationTokens
	s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang})
	var asking sync.WaitGroup
	for range 6 {
		asking.Go(func() {
			a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 30000, ""))
			if a.Status != 504 || !strings.Contains(string(a.Body), "hangs: it has made nothing, for this request or any other, within the first_byte limit of 300ms") {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	stack.Eventually(t, "the status to say so", func() bool { return strings.Contains(f.StatusPage(t), `"without_progress"`) })
	asking.Wait()
	if up := f.InRotation(t); up != len(s) {
		t.Errorf("%d of %d servers are in rotation", up, len(s))
	}
	if charged := f.Metric(t, `tidegate_tokens_total{direction="output",model="`+stack.LargeModel+`"}`); int64(charged) != made {
		t.Errorf("%v tokens charged, %d made", charged, made)
	}
	s.Heal(t)
	f.Idle(t)
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
		f := startGateway(t, s, stack.Config{Model: []string{"retry: {attempts: 2, budget: 1}", fmt.Sprintf("breaker: {failures: %d, open: 1h}", failures)}})
		s[:1].Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
		breaker := `tidegate_backend_breaker_state{backend="` + strings.TrimPrefix(s[0].URL, "http://") + `",model="` + stack.LargeModel + `"}`
		stack.Eventually(t, "enough failures", func() bool {
			if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != 200 {
				t.Errorf("a caller noticed: %d %s", a.Status, a.Body)
			}
			return f.Metric(t, breaker) == 1 || len(s[0].Requests()) >= 2*failures
		})
		if open := f.Metric(t, breaker); open != c.open {
			t.Errorf("%v: the breaker stands at %v after %d failures, want %v", c.releases, open, len(s[0].Requests()), c.open)
		}
		s.Heal(t)
		f.Idle(t)
	}
}
