package gateway_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// halfUsed is two gateways with one Redis, callers who use half of their limits, and
// one who takes all that he gets.
type halfUsed struct {
	*crowd
	servers stack.Servers
	redis   *redistest.Server
	paced   map[string]func(k int, away bool) int // by user, which gateway gets the request
	keys    map[string]string                     // by user

	mu    sync.Mutex
	away  bool
	calls map[string][]asked // by user
}

const (
	halfRequests = 120 // in a minute
	halfTokens   = 12_000
	halfPace     = time.Second // between two requests: half of both
)

// TestSoakHalfUsed takes Redis away from two gateways, at different times after their
// start and again and again, and empties it. It shows that a caller who uses half of a
// limit is not refused, however its requests are spread, and what one who floods both
// gateways gets. In its short form it only shows that both go on.
func TestSoakHalfUsed(t *testing.T) {
	t.Parallel()
	type step struct {
		at time.Duration
		do func(*halfUsed)
	}
	kill := func(h *halfUsed) { h.gone(true); h.redis.Kill() }
	start := func(h *halfUsed) { h.redis.Start(); h.gone(false) }
	pause := func(h *halfUsed) { h.gone(true); h.redis.Pause() }
	resume := func(h *halfUsed) { h.redis.Resume(); h.gone(false) }
	flush := func(h *halfUsed) { _ = h.redis.Client().FlushAll(t.Context()).Err() } // it would be seen
	flapping := func(away, back func(*halfUsed)) (steps []step) {
		for s := 20; s < 140; s += 40 {
			steps = append(steps, step{time.Duration(s) * time.Second, away}, step{time.Duration(s+20) * time.Second, back})
		}
		return steps
	}
	tests := map[string][]step{
		"killed after 10 s":  {{10 * time.Second, kill}, {100 * time.Second, start}, {120 * time.Second, nil}},
		"killed after 70 s":  {{70 * time.Second, kill}, {120 * time.Second, start}, {140 * time.Second, nil}},
		"killed after 100 s": {{100 * time.Second, kill}, {140 * time.Second, start}, {150 * time.Second, nil}},
		"killed and started": append(flapping(kill, start), step{150 * time.Second, nil}),
		"stopped":            append(flapping(pause, resume), step{150 * time.Second, nil}),
		"emptied":            {{30 * time.Second, flush}, {65 * time.Second, flush}, {66 * time.Second, flush}, {120 * time.Second, nil}},
	}
	if !atLength() {
		tests = map[string][]step{"shortly": {{time.Second, kill}, {3 * time.Second, start}, {4 * time.Second, flush}, {5 * time.Second, nil}}}
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startHalfUsed(t)
			t.Cleanup(h.redis.Resume)
			began := time.Now()
			all := h.during(t, func() {
				ended := make(chan struct{})
				var callers sync.WaitGroup
				for user, pick := range h.paced {
					callers.Go(func() { h.pace(user, pick, ended) })
				}
				for _, s := range steps {
					elapse(t, time.Until(began.Add(s.at)))
					if s.do != nil {
						s.do(h)
					}
				}
				close(ended)
				callers.Wait()
			})
			h.compare(t, all)
		})
	}
}

func startHalfUsed(t *testing.T) *halfUsed {
	t.Helper()
	h := &halfUsed{
		servers: startServers(t, nil), redis: redistest.Single(t), calls: map[string][]asked{}, keys: map[string]string{},
		paced: map[string]func(int, bool) int{
			"even":      func(k int, _ bool) int { return k % 2 },
			"nineoften": func(k int, _ bool) int { return numberOf(k%10 == 0) },
			"oneonly":   func(int, bool) int { return 0 },
			"moved":     func(_ int, away bool) int { return numberOf(away) },
		},
	}
	p := stack.Config{DSN: databasetest.SQLite(t), Extra: fmt.Sprintf("redis: {addrs: ['%s']}\nlimits:\n"+
		"  - {name: rate, per: user, requests: %d/1m, tokens: %d/1m}\n  - {name: slots, per: user, concurrency: 8}\n"+
		"quotas:\n  - {name: daily, per: user, tokens: 50000, every: day}\n", h.redis.Addr, halfRequests, halfTokens)}
	h.crowd = &crowd{client: stack.NewClient(t), callers: 4, longest: 100 * time.Millisecond}
	for range 2 {
		h.replicas = append(h.replicas, startReplica(t, h.servers, p, h.client))
	}
	for _, r := range h.replicas { // one that believes to be alone may give out all
		stack.Eventually(t, "each gateway to know of the other", func() bool {
			return gjson.Get(r.front.StatusPage(t), "limits.redis.replicas").Int() == 2
		})
	}
	for _, user := range []string{"even", "nineoften", "oneonly", "moved", "flood"} {
		out, _ := kit.Command(t, 0, "key", "create", "--config", h.replicas[0].File, "--user", user)
		h.keys[user] = strings.TrimSpace(out)
	}
	h.request = func(int, *rand.Rand) (string, string) {
		return h.keys["flood"], stack.Chat(stack.LargeModel, 60, `,"max_tokens":60`)
	}
	return h
}

func numberOf(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (h *halfUsed) gone(away bool) {
	h.mu.Lock()
	h.away = away
	h.mu.Unlock()
}

// pace asks at half of every limit until the end.
func (h *halfUsed) pace(user string, pick func(int, bool) int, ended chan struct{}) {
	tick := time.NewTicker(halfPace)
	defer tick.Stop()
	for k := 0; ; k++ {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		h.mu.Lock()
		to := pick(k, h.away)
		h.mu.Unlock()
		one := &crowd{client: h.client, replicas: h.replicas[to : to+1], request: func(int, *rand.Rand) (string, string) {
			return h.keys[user], stack.Chat(stack.LargeModel, 80, `,"max_tokens":80`)
		}}
		a := one.one(0, nil)
		h.mu.Lock()
		h.calls[user] = append(h.calls[user], a)
		h.mu.Unlock()
	}
}

// compare looks at what each caller got.
func (h *halfUsed) compare(t *testing.T, all []asked) {
	t.Helper()
	for user, calls := range h.calls {
		t.Logf("%-9s %s", user, tally(calls))
		for _, a := range calls {
			if a.status != http.StatusOK {
				t.Errorf("%s: status %d %s for half of the limits", user, a.status, a.code)
			}
		}
	}
	passages := passages(t, h.servers)
	var flood []passage
	for _, a := range all {
		if p, ok := passages[a.id]; ok && a.status == http.StatusOK {
			flood = append(flood, p)
		}
	}
	var first time.Time
	tens := map[int]int{} // by tens of seconds since the first
	for i := range flood {
		if i == 0 || flood[i].to.Before(first) {
			first = flood[i].to
		}
	}
	for i := range flood {
		tens[int(flood[i].to.Sub(first)/(10*time.Second))]++
	}
	t.Logf("flood     by tens of seconds: %v", tens)
	requests := most(flood, time.Minute, func(passage) int64 { return 1 })
	tokens := most(flood, time.Minute, func(p passage) int64 { return p.tokens })
	t.Logf("flood     %s; at most %d of %d requests and %d of %d tokens in any minute", tally(all), requests, halfRequests, tokens, halfTokens)
	if requests > halfRequests+int64(len(h.replicas)) { // one small request beyond each share
		t.Errorf("%d requests passed within a minute", requests)
	}
}
