package gateway_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestSoakLimit holds two gateways on one Redis under 200 callers, who ask for much
// more than the limits allow. In no window may more pass than the limit. Redis has a
// second to answer, so that a busy machine is not taken for an outage: a gateway that
// is left alone while another is not has its share beside what Redis lets in.
func TestSoakLimit(t *testing.T) {
	window, windows := length(2*time.Second, time.Minute), 3
	requests, tokens := int64(40*window.Seconds()), int64(1000*window.Seconds())
	redis := redistest.Single(t)
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.ITL = time.Millisecond, 0 })
	dsn := databasetest.SQLite(t)
	p := stack.Config{DSN: dsn, Extra: fmt.Sprintf("redis: {addrs: ['%s'], timeout: 1s}\nlimits:\n"+
		"  - {name: by-tokens, per: user, tokens: %d/%v, reserve: max}\n  - {name: by-requests, per: user, requests: %d/%v}\n",
		redis.Addr, tokens, window, requests, window)}
	client := stack.NewClient(t)
	c := &crowd{client: client, callers: 200, longest: 400 * time.Millisecond, request: func(n int, rng *rand.Rand) (string, string) {
		if n%2 == 0 { // the tokens bind her
			return stack.AdaKey, stack.Chat(stack.LargeModel, 20+rng.IntN(41), `,"max_tokens":64,"user":"ada"`)
		}
		return stack.BobKey, stack.Chat(stack.SmallModel, 5, `,"max_tokens":8,"user":"bob"`) // the requests bind him
	}}
	for range 2 {
		c.replicas = append(c.replicas, startReplica(t, s, p, client))
	}
	var began, ended time.Time
	all := c.during(t, func() {
		began = time.Now()
		elapse(t, time.Duration(windows)*window+window/2)
		ended = time.Now()
	})
	key := map[string]string{}
	for _, a := range all {
		if a.status == http.StatusOK {
			key[a.id] = a.key
		}
	}
	passed := map[string][]passage{}
	for id, one := range passages(t, s) {
		passed[key[id]] = append(passed[key[id]], one)
	}
	if n := len(passed[""]); n > 0 {
		t.Errorf("the engines worked for %d requests that were not answered", n)
	}
	spans := ended.Sub(began).Seconds() / window.Seconds()
	for who, one := range map[string]struct {
		key   string
		limit int64
		cost  func(passage) int64
	}{
		"tokens":   {stack.AdaKey, tokens, func(p passage) int64 { return p.tokens }},
		"requests": {stack.BobKey, requests, func(passage) int64 { return 1 }},
	} {
		mine := passed[one.key]
		highest, sum := most(mine, window, one.cost), int64(0)
		for _, p := range mine {
			sum += one.cost(p)
		}
		if highest > one.limit {
			t.Errorf("%d %s passed within %v; the limit is %d", highest, who, window, one.limit)
		}
		use := float64(sum) / (float64(one.limit) * spans)
		if use < 0.6 {
			t.Errorf("only %.2f of the limit of %s was used: the test does not test it", use, who)
		}
		t.Logf("%s: at most %d of %d in any %v, %.2f of the limit used over %.1f windows", who, highest, one.limit, window, use, spans)
	}
	t.Logf("answers %s; refusals: %s; answers of 200: %s", tally(all),
		spread(all, func(a asked) bool { return a.status == 429 }), spread(all, func(a asked) bool { return a.status == 200 }))
	for _, a := range all {
		if a.status != 200 && a.status != 429 {
			t.Errorf("status %d %s", a.status, a.code)
			break
		}
	}
	for i, r := range c.replicas {
		if n := strings.Count(r.Log.Text(), "Redis does not answer"); n > 0 {
			t.Errorf("replica %d went alone %d times", i, n)
		}
	}
}
