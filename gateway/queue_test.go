package gateway_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestReloadWhileWaiting changes the servers of a model while requests wait for them:
// all are answered.
func TestReloadWhileWaiting(t *testing.T) {
	for name, edit := range map[string]func(s stack.Servers, yaml string) string{
		"another server": func(s stack.Servers, yaml string) string {
			return strings.Replace(yaml, "    backends:\n", fmt.Sprintf("    backends:\n      - {url: '%s'}\n", s[1].URL), 1)
		},
		"more room": func(_ stack.Servers, yaml string) string {
			return strings.Replace(yaml, "max_in_flight: 1", "max_in_flight: 8", 1)
		},
		"another breaker": func(_ stack.Servers, yaml string) string {
			return strings.Replace(yaml, "failures: 7", "failures: 8", 1)
		},
		"another objective": func(_ stack.Servers, yaml string) string {
			return strings.Replace(yaml, "ttft_p90: 9s", "ttft_p90: 8s", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 10 * time.Millisecond })
			p := stack.Config{Large: []string{"breaker: {failures: 7}", "objectives: {ttft_p90: 9s}"}, Extra: "queue: {max_wait: 60s}\n"}
			f := startGateway(t, s, p)
			one := strings.Replace(p.YAML(s, filepath.Dir(f.File)), fmt.Sprintf("      - {url: '%s', gpus: []}\n", s[1].URL), "", 1)
			one = strings.Replace(one, fmt.Sprintf("{url: '%s', gpus: []}", s[0].URL), fmt.Sprintf("{url: '%s', max_in_flight: 1}", s[0].URL), 1)
			f.Rewrite(t, one)
			stack.Eventually(t, "one server", func() bool { return len(f.told(t).Models[0].Backends) == 1 && f.InRotation(t) == 2 })
			var load sync.WaitGroup
			for range 6 {
				load.Go(func() { f.streamWhole(t, 100) })
			}
			stack.Eventually(t, "a queue", func() bool { return f.told(t).Models[0].Queued["standard"] >= 4 })
			f.Rewrite(t, edit(s, one))
			load.Wait()
			f.Idle(t)
		})
	}
}
