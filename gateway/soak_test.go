package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// The soaks show that limits, accounts and the ledger hold in the whole: real
// gateway processes, a real Redis and a real PostgreSQL, simulated vLLM servers.
// They run in a short form of some seconds each; TIDEGATE_SOAK=full makes them as
// long as is promised, about 25 minutes together.
func atLength() bool { return os.Getenv("TIDEGATE_SOAK") == "full" }

// length is one of two lengths.
func length[T any](short, full T) T {
	if atLength() {
		return full
	}
	return short
}

// asked is one request as its caller saw it.
type asked struct {
	key    string
	sent   time.Time
	took   time.Duration
	status int           // 0: there was no answer
	id     string        // that the gateway gave it
	code   string        // of an error
	after  time.Duration // to wait, if the gateway said so
	whole  bool          // the answer came to its end
}

// crowd is callers who ask again and again until the context ends.
type crowd struct {
	client   *http.Client
	replicas []*replica
	callers  int
	request  func(caller int, rng *rand.Rand) (key, body string)
	longest  time.Duration // that they wait between two requests after a refusal

	mu  sync.Mutex
	all []asked
}

// run asks until ctx ends; what is asked then is let go to its end.
func (c *crowd) run(ctx context.Context) {
	var callers sync.WaitGroup
	for n := range c.callers {
		callers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 7))
			for ctx.Err() == nil {
				a := c.one(n, rng)
				c.mu.Lock()
				c.all = append(c.all, a)
				c.mu.Unlock()
				if a.status == http.StatusOK {
					continue
				}
				wait := min(max(a.after, 20*time.Millisecond), c.longest)
				select {
				case <-ctx.Done():
				case <-time.After(wait/2 + rand.N(wait)):
				}
			}
		})
	}
	callers.Wait()
}

// during runs the crowd while f does, and returns what it saw.
func (c *crowd) during(t *testing.T, f func()) []asked {
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run(ctx)
	}()
	defer func() {
		stop()
		<-ended
	}()
	f()
	stop()
	<-ended
	return c.seen()
}

func (c *crowd) seen() []asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// one asks the caller's own gateway, or, while that is away, another one.
func (c *crowd) one(n int, rng *rand.Rand) (a asked) {
	var body string
	a.key, body = c.request(n, rng)
	var url *string
	for i := range c.replicas {
		if url = c.replicas[(n+i)%len(c.replicas)].Live.Load(); url != nil {
			break
		}
	}
	a.sent = time.Now()
	defer func() { a.took = time.Since(a.sent) }()
	if url == nil {
		return a
	}
	req, err := http.NewRequest(http.MethodPost, *url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return a
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.key)
	resp, err := c.client.Do(req)
	if err != nil {
		return a
	}
	defer resp.Body.Close()
	a.status, a.id = resp.StatusCode, resp.Header.Get("X-Request-Id")
	ms, _ := strconv.Atoi(resp.Header.Get("Retry-After-Ms"))
	a.after = time.Duration(ms) * time.Millisecond
	text, err := io.ReadAll(resp.Body)
	stream := strings.Contains(body, `"stream":true`)
	a.whole = err == nil && a.status == http.StatusOK && (!stream || strings.HasSuffix(string(text), "data: [DONE]\n\n"))
	if a.status != http.StatusOK {
		a.code = stack.Reply{Body: text}.Code()
	}
	return a
}

// passage is a request that an engine has worked on: it was let in between two
// moments, the one that its id names and the one when it reached the engine.
type passage struct {
	from, to time.Time
	tokens   int64
	whole    bool
	stream   bool
}

// passages are those of all engines, by the gateway's request id.
func passages(t *testing.T, s stack.Servers) map[string]passage {
	t.Helper()
	all := map[string]passage{}
	for _, server := range s {
		for _, r := range server.Requests() {
			id, _, ok := strings.Cut(r.ID, "-")
			if !ok || len(id) != 32 {
				t.Fatalf("the engine saw a request with the id %q", r.ID)
			}
			ms, err := strconv.ParseInt(id[:12], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := all[id]; twice {
				t.Errorf("the engines saw the request %s twice", id)
			}
			all[id] = passage{from: time.UnixMilli(ms), to: r.Arrived, tokens: int64(r.Prompt + r.Output), whole: !r.Aborted, stream: r.Stream}
		}
	}
	return all
}

// most is the highest sum of costs that passed within any window, for certain.
func most(all []passage, window time.Duration, cost func(passage) int64) (highest int64) {
	slices.SortFunc(all, func(a, b passage) int { return a.from.Compare(b.from) })
	for i := range all {
		end, sum := all[i].from.Add(window), int64(0)
		for j := i; j < len(all) && all[j].from.Before(end); j++ {
			if all[j].to.Before(end) {
				sum += cost(all[j])
			}
		}
		highest = max(highest, sum)
	}
	return highest
}

// spread is some of a distribution, in words.
func spread(all []asked, which func(asked) bool) string {
	var took []time.Duration
	for _, a := range all {
		if which(a) {
			took = append(took, a.took)
		}
	}
	if len(took) == 0 {
		return "none"
	}
	slices.Sort(took)
	at := func(part float64) time.Duration {
		return took[int(part*float64(len(took)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("n %d, p50 %v, p99 %v, max %v", len(took), at(0.5), at(0.99), at(1))
}

// tally counts answers by status and code.
func tally(all []asked) string {
	counts := map[string]int{}
	for _, a := range all {
		counts[strings.TrimSpace(fmt.Sprint(a.status, " ", a.code))]++
	}
	text, _ := json.Marshal(counts) // in the order of the names
	return string(text)
}

// between takes what was sent in a span of time.
func between(all []asked, from, to time.Time) []asked {
	return slices.DeleteFunc(slices.Clone(all), func(a asked) bool { return a.sent.Before(from) || !a.sent.Before(to) })
}

// elapse lets time pass: it is what a soak is made of.
func elapse(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
