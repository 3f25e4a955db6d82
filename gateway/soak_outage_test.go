package gateway_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// outage is two gateways, a crowd that asks them, and what they stand on.
type outage struct {
	*crowd
	servers stack.Servers
	redis   *redistest.Server
	store   *databasetest.Server
	plan    func(failure string) stack.Config
	window  time.Duration
	tokens  int64
	ann     string // a key of the store, in use
	cold    string // another one, not in use
}

const soakSlots = 8 // of the concurrency rule

// TestSoakOutage stops Redis under load, and then PostgreSQL. Limits hold as their
// rules say, keys in use go on, and in the end every request is counted once.
func TestSoakOutage(t *testing.T) {
	t.Parallel()
	o := &outage{servers: startServers(t, nil), redis: redistest.Single(t), store: databasetest.StartServer(t), window: 2 * time.Second}
	o.tokens = 4000
	dsn := o.store.Database(t)
	o.plan = func(failure string) stack.Config {
		return stack.Config{DSN: dsn, Extra: fmt.Sprintf("redis: {addrs: ['%s']}\nlimits:\n"+
			"  - {name: rate, per: user, tokens: %d/%v, reserve: max, on_store_failure: %s}\n"+
			"  - {name: slots, per: user, concurrency: %d}\n"+
			"quotas:\n  - {name: monthly, per: user, tokens: 1000000000, every: month}\n", o.redis.Addr, o.tokens, o.window, failure, soakSlots)}
	}
	o.crowd = &crowd{client: stack.NewClient(t), callers: 24, longest: 200 * time.Millisecond}
	for range 2 {
		o.replicas = append(o.replicas, startReplica(t, o.servers, o.plan("local"), o.client))
	}
	file := o.replicas[0].File
	out, _ := kit.Command(t, 0, "key", "create", "--config", file, "--user", "ann")
	o.ann = strings.TrimSpace(out)
	out, _ = kit.Command(t, 0, "key", "create", "--config", file, "--user", "ann", "--name", "cold")
	o.cold = strings.TrimSpace(out)
	o.request = func(_ int, rng *rand.Rand) (string, string) {
		stream := ""
		if rng.IntN(2) == 0 {
			stream = `,"stream":true`
		}
		return o.ann, stack.Chat(stack.LargeModel, 10+rng.IntN(31), `,"max_tokens":48`+stream)
	}
	t.Run("redis", o.withoutRedis)
	if !t.Failed() {
		t.Run("postgres", o.withoutStore)
	}
	o.compare(t)
}

// withoutRedis stops Redis under load and looks at each phase.
func (o *outage) withoutRedis(t *testing.T) {
	t.Cleanup(o.redis.Resume)
	var stopped, alone time.Time
	var closed, open, back span // of the change to each mode
	all := o.during(t, func() {
		elapse(t, length(2*time.Second, 70*time.Second)) // the shares of a fleet are known after two epochs of 25 s
		o.redis.Pause()
		stopped = time.Now()
		for _, r := range o.replicas {
			stack.Eventually(t, "a gateway to find out", func() bool { return strings.Contains(r.StatusPage(t), `"alone": true`) })
		}
		alone = time.Now()
		elapse(t, length(2*time.Second, 5*time.Minute))
		closed = o.reconfigure(t, "closed")
		elapse(t, length(time.Second, 5*time.Second))
		open = o.reconfigure(t, "open")
		elapse(t, length(500*time.Millisecond, 5*time.Second))
		back = o.reconfigure(t, "local")
		o.redis.Resume()
		for _, r := range o.replicas {
			stack.Eventually(t, "the counts to be handed in", func() bool {
				status := r.StatusPage(t)
				return strings.Contains(status, `"alone": false`) && strings.Contains(status, `"waiting": 0,`)
			})
		}
		elapse(t, length(time.Second, 15*time.Second))
	})
	ok := func(a asked) bool { return a.status == 200 }
	no := func(a asked) bool { return a.status == 429 }
	var first time.Time
	for _, a := range all {
		if first.IsZero() || a.sent.Before(first) {
			first = a.sent
		}
	}
	for _, phase := range []struct {
		name     string
		from, to time.Time
	}{
		{"before", first, stopped.Add(-100 * time.Millisecond)}, {"first failures", stopped, alone}, {"alone", alone, closed.from},
		{"closed", closed.to, open.from}, {"open", open.to, back.from}, {"back", back.to, time.Now()},
	} {
		asked := between(all, phase.from, phase.to)
		t.Logf("%-14s %8v: %s; 200: %s; 429: %s", phase.name, phase.to.Sub(phase.from).Round(10*time.Millisecond), tally(asked), spread(asked, ok), spread(asked, no))
		for _, a := range asked {
			switch {
			case phase.name == "closed" && a.status == http.StatusTooManyRequests && a.sent.Sub(phase.from) < time.Second: // a refusal stands for so long
			case phase.name == "closed" && a.status != http.StatusServiceUnavailable,
				phase.name == "open" && a.status != http.StatusOK && a.code != "rate_limit_exceeded", // slots stay local
				phase.name != "closed" && a.status == http.StatusServiceUnavailable && a.sent.Add(a.took).Before(phase.to):
				t.Fatalf("%s: status %d %s, %v in", phase.name, a.status, a.code, a.sent.Sub(phase.from))
			}
		}
	}
	var held []passage // outside of the phase that lets all pass
	for _, p := range passages(t, o.servers) {
		if p.to.Before(open.from) || p.from.After(back.to.Add(o.window)) {
			held = append(held, p)
		}
	}
	highest := most(held, o.window, func(p passage) int64 { return p.tokens })
	inFlight := int64(soakSlots * 48)
	t.Logf("at most %d tokens of %d passed in any %v, in which up to %d were in flight", highest, o.tokens, o.window, inFlight)
	if highest > o.tokens+inFlight {
		t.Errorf("%d tokens passed within %v; the limit is %d, and up to %d were in flight", highest, o.window, o.tokens, inFlight)
	}
}

// span is from when something begins until it has ended.
type span struct{ from, to time.Time }

// reconfigure gives all gateways another on_store_failure.
func (o *outage) reconfigure(t *testing.T, failure string) (took span) {
	t.Helper()
	took.from = time.Now()
	counts := make([]int, len(o.replicas))
	for i, r := range o.replicas {
		counts[i] = strings.Count(r.Log.Text(), "configuration reloaded")
		r.Configure(t, o.plan(failure))
		if err := r.Process.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range o.replicas {
		stack.Eventually(t, "a gateway to reload", func() bool { return strings.Count(r.Log.Text(), "configuration reloaded") > counts[i] })
	}
	took.to = time.Now()
	return took
}

// withoutStore stops PostgreSQL under load.
func (o *outage) withoutStore(t *testing.T) {
	t.Cleanup(func() { o.store.Resume(t) })
	made := "tg-" + strings.Repeat("A", 43)
	var from, to time.Time
	asking := len(o.seen())
	all := o.during(t, func() {
		elapse(t, length(500*time.Millisecond, 10*time.Second))
		o.store.Pause(t)
		from = time.Now()
		for i, r := range o.replicas {
			for what, key := range map[string]string{"a key that is not in memory": o.cold, "a made-up key": made} {
				if i == 0 && key == made {
					continue // it waits for two seconds, as the other one does
				}
				began := time.Now()
				status, text := r.Call(t, key, "GET", "/v1/models", "")
				t.Logf("replica %d, %s: %d after %v", i, what, status, time.Since(began).Round(time.Millisecond))
				if status != http.StatusServiceUnavailable || !strings.Contains(text, "store_unavailable") {
					t.Errorf("%s: %d %s", what, status, text)
				}
			}
		}
		elapse(t, length(time.Second, 5*time.Minute))
		if status, text := o.replicas[0].Call(t, o.cold, "GET", "/v1/models", ""); status != http.StatusServiceUnavailable {
			t.Errorf("%d %s", status, text)
		}
		to = time.Now()
		o.store.Resume(t)
		elapse(t, length(500*time.Millisecond, 10*time.Second))
	})
	meanwhile := between(all[asking:], from, to)
	t.Logf("%v without PostgreSQL: %s; 200: %s", to.Sub(from).Round(time.Second), tally(meanwhile), spread(meanwhile, func(a asked) bool { return a.status == 200 }))
	for _, a := range all[asking:] {
		if a.status != 200 && a.status != 429 {
			t.Errorf("a key in use: status %d %s, %v after PostgreSQL stopped", a.status, a.code, a.sent.Sub(from))
			break
		}
	}
	stack.Eventually(t, "the other key to work again", func() bool {
		status, _ := o.replicas[1].Call(t, o.cold, "GET", "/v1/models", "")
		return status == 200
	})
	stack.Eventually(t, "the made-up key to be unknown", func() bool {
		status, _ := o.replicas[1].Call(t, made, "GET", "/v1/models", "")
		return status == 401
	})
}

// compare waits until report and quota say what the engines' books say.
func (o *outage) compare(t *testing.T) {
	began := time.Now()
	var want, got stack.Tokens
	var quota int64
	stack.Eventually(t, "the books to agree", func() bool {
		want, _ = o.servers.Delivered()
		got = o.usedBy(t, o.ann)
		var now stack.LimitStatus
		o.replicas[0].Limits(t, o.ann, "/quota/status", &now)
		quota = *now.Used
		agree := got.Requests == want.Requests && got.Input == want.Input && got.Output == want.Output && quota == want.Input+want.Output
		if !agree && time.Since(began) > stack.Patience-time.Second {
			t.Errorf("engines: %+v\nreport: %+v\nquota: %d", want, got, quota)
		}
		return agree
	})
	t.Logf("%v after the end the engines, the report and the quota all say %d requests, %d tokens", time.Since(began).Round(10*time.Millisecond), want.Requests, quota)
}

// usedBy asks a gateway what a key's user has used.
func (o *outage) usedBy(t *testing.T, key string) (sum stack.Tokens) {
	t.Helper()
	a := o.replicas[0].Get(t, key, "/v1/usage?group_by=model")
	var report struct {
		Data []struct {
			Requests int64 `json:"requests"`
			Input    int64 `json:"input_tokens"`
			Output   int64 `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal(a.Body, &report); err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	for _, r := range report.Data {
		sum.Requests, sum.Input, sum.Output = sum.Requests+r.Requests, sum.Input+r.Input, sum.Output+r.Output
	}
	return sum
}
