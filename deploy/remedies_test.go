package deploy

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestRemedies causes what operating.md has remedies for that its blocks alone do not
// show, and sees each remedy work.
func TestRemedies(t *testing.T) {
	s := kit.StartServers(t, nil)
	p := stack.Config{Extra: "limits:\n  - {name: user-rate, per: user, concurrency: 16, requests: 100000/1m}\n"}
	f := kit.Start(t, s, p)
	t.Run("a flood", func(t *testing.T) { flood(t, f) })
	t.Run("a leaked key", func(t *testing.T) { leak(t, f) })
	t.Run("a slow server", func(t *testing.T) { slow(t, f, s, p) })
}

// flood: the user who floods is found by tidegate top, and kept to two places.
func flood(t *testing.T, f *stack.Gateway) {
	e := incident(t, "a flood").by("flooder", "flooder")
	key, _ := kit.Command(t, 0, "key", "create", "--user", "flooder", "--name", "flooder", "--config", f.File)
	key = strings.TrimSpace(key)
	f.Servers.Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultSlow, DelayMS: 100})
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			if a := f.Complete(t, key, stack.Chat(stack.LargeModel, 10, "")); a.Status != http.StatusOK {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	e.shows(t, f, nil)
	asking.Wait()
	e.runs(t, f, "override set user-rate")
	e.runs(t, f, "key set flooder --tier batch")
	stack.Eventually(t, "the flood to be kept to two places", func() bool {
		var mu sync.Mutex
		refused := 0
		var asking sync.WaitGroup
		for range 8 {
			asking.Go(func() {
				if a := f.Complete(t, key, stack.Chat(stack.LargeModel, 60, "")); a.Status == http.StatusTooManyRequests {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
			t.Errorf("another caller: %d %s", a.Status, a.Body)
		}
		asking.Wait()
		return refused > 0
	})
	e.runs(t, f, "override delete user-rate")
	f.Servers.Heal(t)
}

// leak: a key that has leaked is revoked by its text, and refused with its id.
func leak(t *testing.T, f *stack.Gateway) {
	e := incident(t, "a leaked key").by("cleo", "leaked")
	key, _ := kit.Command(t, 0, "key", "create", "--user", "cleo", "--name", "leaked", "--config", f.File)
	key = strings.TrimSpace(key)
	if a := f.Complete(t, key, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	e.shows(t, f, nil)
	e.says(t, "`tidegate key revoke --secret --config tidegate.yaml`")
	if out, log := kit.Pipe(t, 0, key+"\n", "key", "revoke", "--secret", "--config", f.File); !strings.Contains(out+log, "revoked") {
		t.Errorf("%s%s", out, log)
	}
	stack.Eventually(t, "the key to be refused", func() bool {
		a := f.Complete(t, key, stack.Chat(stack.LargeModel, 2, ""))
		return a.Status == http.StatusUnauthorized && strings.Contains(string(a.Body), "revoked")
	})
	out := e.runs(t, f, "usage report --by key,day")
	if !strings.Contains(out, "leaked") {
		t.Errorf("the report does not say what was used with it:\n%s", out)
	}
}

// slow: a server that is slow gets weight 0 by a reload. What it has ends, and it gets
// nothing new.
func slow(t *testing.T, f *stack.Gateway, s stack.Servers, p stack.Config) {
	e := incident(t, "slow answers")
	slowly := gatewaytest.Fault{Kind: gatewaytest.FaultSlow, DelayMS: 50}
	s[:1].Fault(t, slowly)
	var asking sync.WaitGroup
	for range 6 {
		asking.Go(func() {
			if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 40, "")); a.Status != http.StatusOK {
				t.Errorf("a caller noticed: %d %s", a.Status, a.Body)
			}
		})
	}
	stack.Eventually(t, "requests on the slow server", func() bool { return s[0].Stats().Running > 0 })
	e.shows(t, f, func() {
		var streams sync.WaitGroup
		for range 4 {
			streams.Go(func() { f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 10, `,"stream":true`)) })
		}
		streams.Wait()
	})
	e.says(t, "set `weight: 0` on the backend")
	config := p.YAML(s, filepath.Dir(f.File))
	drained := strings.Replace(config, "{url: '"+s[0].URL+"'", "{weight: 0, url: '"+s[0].URL+"'", 1)
	f.Rewrite(t, drained)
	stack.Eventually(t, "the status to say that it is drained", func() bool { return strings.Contains(f.StatusPage(t), "weight 0: it gets no new requests") })
	before := len(s[0].Requests()) + int(s[0].Stats().Running)
	for range 10 {
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	}
	asking.Wait()
	if after := len(s[0].Requests()); after > before {
		t.Errorf("%d requests at the drained server, %d before", after, before)
	}
	f.Rewrite(t, config)
	stack.Eventually(t, "it to be back", func() bool { return f.InRotation(t) == len(s) })
	s.Heal(t)
	f.Idle(t)
}
