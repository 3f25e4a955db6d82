package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// mixed is one of many kinds of request; leave says after how many events its
// caller leaves, 0: never.
func mixed(i int, rng *rand.Rand) (path, body string, leave int) {
	words := strings.Repeat("tide gate 潮汐 闸门 ", 1+rng.IntN(30))
	tokens := 20 + rng.IntN(60)
	extra := ""
	stream := i%2 == 0
	switch {
	case i%5 == 0: // 200 of 1,000, all of them streams below
		stream, leave, tokens = true, 1+rng.IntN(10), 400
	case i%7 == 1:
		extra = `,"n":3`
	case i%7 == 2:
		extra = `,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}],"tool_choice":"required"`
	case i%7 == 3:
		extra = `,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}}}`
	case i%7 == 4:
		extra = `,"logprobs":true,"top_logprobs":2`
	}
	if i%3 == 0 {
		extra += `,"enable_thinking":false`
	}
	if stream {
		extra += `,"stream":true`
	}
	if i%4 == 0 && stream {
		extra += `,"stream_options":{"include_usage":true}`
	}
	model := stack.LargeModel
	if i%6 == 0 {
		model = stack.SmallModel
	}
	if i%11 == 10 {
		return "/v1/completions", fmt.Sprintf(`{"model":%q,"prompt":[%q,"two"],"max_tokens":%d,"stream":%v}`, model, words, tokens, stream), leave
	}
	return "/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":%q}],"sim":{"tokens":%d}%s}`,
		model, words+fmt.Sprint(i%50), tokens, extra), leave
}

// TestCountsAreTheEngines sends 1,000 mixed requests, 200 of which are streams
// that their callers leave, and compares the gateway's sums with the engines'.
func TestCountsAreTheEngines(t *testing.T) {
	requests := 1000
	if testing.Short() {
		requests = 200
	}
	s := startServers(t, func(o *gatewaytest.Options) {
		o.Version, o.PromptTokensDetails = "0.30.0", true // an engine that counts reasoning and cached tokens itself
		o.TTFT, o.ITL = 2*time.Millisecond, time.Millisecond
	})
	f := startGateway(t, s, stack.Config{})
	var (
		workers sync.WaitGroup
		next    = make(chan int)
		left    int
		mu      sync.Mutex
	)
	for w := range 16 {
		workers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range next {
				gone, err := f.one(t.Context(), i, rng)
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				}
				if gone {
					mu.Lock()
					left++
					mu.Unlock()
				}
			}
		})
	}
	for i := range requests {
		next <- i
	}
	close(next)
	workers.Wait()

	var want, got stack.Tokens
	var aborted int
	stack.Eventually(t, "all requests to be settled", func() bool {
		want, aborted = s.Delivered()
		got = f.Usage(t)
		return want.Requests == int64(requests) && got.Requests == int64(requests)
	})
	// Of a stream that was cut the engine states no reasoning tokens; the gateway
	// counts those it saw.
	want.Reasoning, got.Reasoning = 0, 0
	if aborted < left && got.Cached < want.Cached {
		// On a busy machine an engine finishes before it notices that the caller has
		// left, and ends without the usage that would say how much was cached.
		t.Logf("cached %d, the engines say %d", got.Cached, want.Cached)
		want.Cached = got.Cached
	}
	if got != want {
		t.Errorf("counted %+v, the engines say %+v", got, want)
	}
	if left != requests/5 || aborted < left/4 {
		t.Errorf("%d callers left, the engines saw %d: the test does not test it", left, aborted)
	}
	t.Logf("%d requests, %d left by their callers, %d aborts seen: input %d, cached %d, output %d; difference 0",
		requests, left, aborted, got.Input, got.Cached, got.Output)
}

// one sends one mixed request and reads its answer, or a part of it.
func (f *front) one(ctx context.Context, i int, rng *rand.Rand) (gone bool, err error) {
	path, body, leave := mixed(i, rng)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := f.Post(ctx, path, body)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return false, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if leave == 0 {
		text, err := io.ReadAll(resp.Body)
		if err == nil && strings.Contains(body, `"stream":true`) && !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
			err = fmt.Errorf("the stream ended without [DONE]: %.300s", text)
		}
		return false, err
	}
	lines := bufio.NewScanner(resp.Body)
	for seen := 0; seen < leave && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "data: ") {
			seen++
		}
	}
	return true, lines.Err()
}

// TestReasoningIsCounted compares reasoning tokens where every answer is whole,
// with an engine that states them and with one that leaves it to the gateway.
func TestReasoningIsCounted(t *testing.T) {
	for _, version := range []string{"0.30.0", "0.23.0"} {
		t.Run(version, func(t *testing.T) {
			s := startServers(t, func(o *gatewaytest.Options) { o.Version, o.ITL = version, 0 })
			f := startGateway(t, s, stack.Config{})
			for i := range 20 {
				body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"Why %d?"}],"stream":%v,"sim":{"tokens":60,"thinking_tokens":%d}}`,
					stack.LargeModel, i, i%2 == 0, 5+i)
				resp, err := f.Post(t.Context(), "/v1/chat/completions", body)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			var want, got stack.Tokens
			stack.Eventually(t, "all requests to be settled", func() bool {
				want, _ = s.Delivered()
				got = f.Usage(t)
				return want.Requests == 20 && got.Requests == 20
			})
			if got.Output != want.Output || version == "0.30.0" && got.Reasoning != want.Reasoning {
				t.Errorf("counted %+v, the engines say %+v", got, want)
			}
			// Chunks that come merged blur where reasoning ends, by a token or two each.
			if diff := got.Reasoning - want.Reasoning; diff < -40 || diff > 40 {
				t.Errorf("counted %d reasoning tokens, the engines say %d", got.Reasoning, want.Reasoning)
			}
			t.Logf("reasoning: counted %d, the engines say %d", got.Reasoning, want.Reasoning)
		})
	}
}
