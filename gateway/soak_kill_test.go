package gateway_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/database"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// entry is a record of the ledger.
type entry struct{ input, output int64 }

// entries are the ledger's records, by their id.
func entries(t *testing.T, dsn string) map[string]entry {
	t.Helper()
	db, err := database.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), "SELECT id, input, output FROM usage_records")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]entry{}
	for rows.Next() {
		var id string
		var e entry
		if err := rows.Scan(&id, &e.input, &e.output); err != nil {
			t.Fatal(err)
		}
		all[id] = e
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestSoakKill kills gateways under load, again and again. Whatever a caller got to
// its end stands in the ledger once and to the token; what a kill cut stands there as
// far as the gateway had seen it; slots come back; quotas come to stand at no less
// than the ledger.
func TestSoakKill(t *testing.T) {
	t.Parallel()
	redis := redistest.Single(t)
	dsn := databasetest.Postgres(t)
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.ITL = 10*time.Millisecond, 2*time.Millisecond })
	const slots = 200
	p := stack.Config{DSN: dsn, Extra: fmt.Sprintf("redis: {addrs: ['%s'], timeout: 2s}\nlimits:\n  - {name: slots, per: user, concurrency: %d}\n"+
		"quotas:\n  - {name: monthly, per: user, tokens: 1000000000, every: month}\n", redis.Addr, slots)}
	c := &crowd{client: stack.NewClient(t), callers: 40, longest: 100 * time.Millisecond, request: func(_ int, rng *rand.Rand) (string, string) {
		stream := ""
		if rng.IntN(2) == 0 {
			stream = `,"stream":true`
		}
		return stack.AdaKey, stack.Chat(stack.LargeModel, 10+rng.IntN(90), stream)
	}}
	for range 2 {
		c.replicas = append(c.replicas, startReplica(t, s, p, c.client))
	}
	rounds := length(3, 20)
	var killed time.Time
	c.during(t, func() {
		for round := range rounds {
			elapse(t, length(600*time.Millisecond, 2*time.Second)+rand.N(400*time.Millisecond))
			victim := c.replicas[round%2]
			victim.Kill()
			killed = time.Now()
			victim.Start(t)
		}
		elapse(t, 500*time.Millisecond)
	})
	for _, r := range c.replicas {
		stack.Eventually(t, "all to be in the database", func() bool {
			status := r.StatusPage(t)
			return strings.Contains(status, `"backlog_bytes": 0`) && strings.Contains(status, `"buffer_bytes": 0`) && strings.Contains(status, `"running": 0`)
		})
	}
	ledger := entries(t, dsn)
	sum, cutTokens := c.compare(t, passages(t, s), ledger, rounds)
	var report stack.Tokens
	o := outage{crowd: c, servers: s}
	if report = o.usedBy(t, stack.AdaKey); report.Input+report.Output != sum || report.Requests != int64(len(ledger)) {
		t.Errorf("the report says %+v, the records %d in %d", report, sum, len(ledger))
	}
	c.slotsReturn(t, killed, slots, sum, cutTokens)
}

// compare holds the ledger against the engines' books, and returns the sum of the one
// and what of the other was cut.
func (c *crowd) compare(t *testing.T, produced map[string]passage, ledger map[string]entry, kills int) (sum, cutTokens int64) {
	t.Helper()
	all := c.seen()
	var cut, cutKnown, missing int64
	lost := map[int64]int{} // requests that were cut, by the tokens that the ledger lacks of them
	whole := map[string]bool{}
	for _, a := range all {
		if !a.whole {
			continue
		}
		whole[a.id] = true
		e, ok := ledger[a.id]
		if !ok {
			missing++
			continue
		}
		if got := e.input + e.output; got != produced[a.id].tokens {
			t.Errorf("%s: the ledger says %d tokens, the engine %d", a.id, got, produced[a.id].tokens)
		}
	}
	if missing > 0 {
		t.Errorf("%d answers that their callers have as a whole are not in the ledger", missing)
	}
	for id, p := range produced {
		if whole[id] {
			continue
		}
		cut++
		cutTokens += p.tokens
		e, ok := ledger[id]
		if !ok {
			t.Errorf("%s was cut and is not in the ledger", id)
			continue
		}
		got := e.input + e.output
		if p.stream && got > p.tokens { // of others it is an estimate
			t.Errorf("%s was cut: the ledger says %d tokens, the engine %d", id, got, p.tokens)
		}
		cutKnown += got
		lost[p.tokens-got]++
	}
	for id, e := range ledger {
		sum += e.input + e.output
		// A kill just before the request is sent leaves its prompt.
		if _, ok := produced[id]; !ok && e.output > 0 {
			t.Errorf("%s: the ledger says %+v, no engine has seen it", id, e)
		}
	}
	t.Logf("%d kills: %d whole answers, all in the ledger but %d; of %d requests that were cut the engines say %d tokens and the ledger %d, by what it lacks of each: %v; %s",
		kills, len(whole), missing, cut, cutTokens, cutKnown, lost, tally(all))
	if len(whole) < 20*kills || cut < int64(kills) {
		t.Errorf("%d whole answers and %d cut ones: the test does not test it", len(whole), cut)
	}
	return sum, cutTokens
}

// slotsReturn looks for the slots of gateways that were killed, and for quotas.
func (c *crowd) slotsReturn(t *testing.T, killed time.Time, slots, used, cut int64) {
	const lease = 30 * time.Second
	var now stack.LimitStatus
	free := func() (free int64, reset time.Duration) {
		c.replicas[0].Limits(t, stack.AdaKey, "/quota/status", &now)
		i := slices.IndexFunc(now.Rates, func(r struct {
			Name, Metric     string
			Limit, Remaining int64
			ResetMs          int64 `json:"reset_ms"`
		}) bool {
			return r.Metric == "concurrency"
		})
		return now.Rates[i].Remaining, time.Duration(now.Rates[i].ResetMs) * time.Millisecond
	}
	left, reset := free()
	if end := time.Now().Add(reset); end.After(killed.Add(lease + time.Second)) {
		t.Errorf("the last slot ends %v after the kill", end.Sub(killed))
	}
	t.Logf("%v after the last kill %d of %d slots are free, the last one in %v", time.Since(killed).Round(time.Millisecond), left, slots, reset)
	if atLength() {
		stack.Eventually(t, "all slots to be free", func() bool {
			left, _ := free()
			return left == slots
		})
		took := time.Since(killed)
		t.Logf("all slots are free %v after the last kill", took.Round(100*time.Millisecond))
		if took > lease+time.Second {
			t.Errorf("that is too long")
		}
		elapse(t, 12*time.Second) // until a heartbeat has settled what died
		// What the gateways that were killed could not settle is made good from the
		// ledger when the new ones have known Redis for a minute.
		stack.Eventually(t, "the quota to have all that the ledger has", func() bool {
			free()
			return *now.Used >= used
		})
		t.Logf("the quota stands at %d; the ledger says %d; %d were cut", *now.Used, used, cut)
		if *now.Used > used+cut {
			t.Errorf("the quota stands at %d: more than all engines have done", *now.Used)
		}
	}
	if *now.Used < used {
		t.Errorf("the quota stands at %d; the ledger says %d", *now.Used, used)
	}
}
