package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

const busyText = "服务繁忙,请稍后再试。"

// answered asks and checks who answered, at which level and why.
func (w *wire) answered(t *testing.T, body, level, reason, model string, header ...string) told {
	t.Helper()
	a := w.tell(t, stack.ChatPath, body, header...)
	if l, r, m := a.header.Get("X-Tidegate-Level"), a.header.Get("X-Tidegate-Reason"), a.parts[0].Get("model").Str; l != level || r != reason || m != model {
		t.Errorf("level %s, reason %s, model %s; expected %s, %s, %s", l, r, m, level, reason, model)
	}
	return a
}

// TestMaxLevel: an answer smaller than the caller accepts is refused, whether the
// request says so or its key.
func TestMaxLevel(t *testing.T) {
	w := newWire(t, startGateway(t, startServers(t, nil), stack.Laddered("")))
	_, answer := w.Call(t, stack.AdminKey, "POST", "/admin/v1/keys", `{"user":"ann","name":"picky","max_level":"L1"}`)
	picky, _ := stack.CreatedKey(t, answer)
	const most = "X-Tidegate-Max-Level"
	hello := chatOf("Hello", off)
	for level := range 5 {
		pinned := fmt.Sprint("L", level)
		w.Pin(t, stack.LargeModel, pinned)
		for _, c := range []struct {
			most   int
			header []string
		}{
			{0, []string{most, "L0"}}, {1, []string{most, "L1"}}, {2, []string{most, "L2"}}, {3, []string{most, "L3"}}, {4, []string{most, "L4"}},
			{1, []string{"Authorization", "Bearer " + picky}},
			{1, []string{"Authorization", "Bearer " + picky, most, "L3"}},
			{0, []string{"Authorization", "Bearer " + picky, most, "L0"}},
		} {
			for _, stream := range []string{"", `,"stream":true`} {
				body := strings.TrimSuffix(hello, "}") + stream + "}"
				if c.most >= level {
					if a := w.tell(t, stack.ChatPath, body, c.header...); a.header.Get("X-Tidegate-Level") != pinned {
						t.Errorf("pinned to %s: %v", pinned, a.header)
					}
					continue
				}
				resp := w.ask(t, "POST", stack.ChatPath, body, c.header...)
				w.refused(t, resp, 503, "overloaded", "")
				if h := resp.Header; h.Get("X-Tidegate-Level") != pinned || h.Get("X-Tidegate-Reason") != "pin" || h.Get("X-Should-Retry") != "false" {
					t.Errorf("pinned to %s for an hour: %v", pinned, h)
				}
			}
		}
	}
	for _, bad := range []string{"L5", "2", "l", "L1, L2"} {
		w.refused(t, w.ask(t, "POST", stack.ChatPath, hello, most, bad), 400, "invalid_request", "")
	}
}

// TestTiers has a promise that the servers break, so that the model stands at L1:
// the tiers shift that, but no pin.
func TestTiers(t *testing.T) {
	p := stack.Laddered("  dwell: {up_samples: 1, up: 0s}\n  signals: {ttft: {levels: [1, 10000, 20000, 30000]}}\n")
	p.Large = append(p.Large, "objectives: {ttft_p90: 1ms}")
	w := newWire(t, startGateway(t, startServers(t, nil), p))
	keys := map[string]string{}
	for _, tier := range []string{"critical", "standard", "batch"} {
		_, answer := w.Call(t, stack.AdminKey, "POST", "/admin/v1/keys", fmt.Sprintf(`{"user":"ann","name":%q,"tier":%q}`, tier, tier))
		keys[tier], _ = stack.CreatedKey(t, answer)
	}
	hello := chatOf("Hello", "")
	stack.Eventually(t, "L1 by ttft", func() bool {
		resp := w.ask(t, "POST", stack.ChatPath, chatOf("Hello", `,"stream":true`))
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.Header.Get("X-Tidegate-Level") == "L1"
	})
	as := func(tier string) []string { return []string{"Authorization", "Bearer " + keys[tier]} }
	w.answered(t, hello, "L0", "none", stack.LargeModel, as("critical")...)
	w.answered(t, hello, "L1", "ttft", stack.LargeModel, as("standard")...)
	if a := w.answered(t, hello, "L2", "ttft", stack.LargeModel, as("batch")...); gather(t, a.parts...).Reasoning[0] != "" {
		t.Error("it thinks")
	}
	w.Pin(t, stack.LargeModel, "L3")
	for tier := range keys {
		w.answered(t, hello, "L3", "pin", stack.SmallModel, as(tier)...)
	}
}

// TestSmaller: at L3 the smaller model answers where it can, else the model's own
// servers as far as they can go, and the answer says which.
func TestSmaller(t *testing.T) {
	const context = 600
	s := startServers(t, func(o *gatewaytest.Options) {
		if o.Model == stack.SmallModel {
			o.MaxModelLen = context
		}
	})
	p := stack.Laddered("")
	p.Model = []string{"auto_tools: false"}
	w := newWire(t, startGateway(t, s, p))
	w.Pin(t, stack.LargeModel, "L3")
	hello := chatOf("Hello", "")
	up := func(n int) {
		t.Helper()
		stack.Eventually(t, fmt.Sprint(n, " servers in rotation"), func() bool { return w.InRotation(t) == n })
	}
	t.Run("short context", func(t *testing.T) {
		long := chatOf(strings.Repeat("word ", 400), `,"user":"long"`)
		w.answered(t, long, "L2", "pin", stack.LargeModel)
		w.answered(t, chatOf(strings.Repeat("word ", 400), `,"user":"long and short","max_tokens":50`), "L3", "pin", stack.SmallModel)
		w.answered(t, chatOf(strings.Repeat("word ", 200), `,"user":"bounded"`), "L3", "pin", stack.SmallModel)
		r := s.Record(t, "bounded")
		if n := gjson.GetBytes(r.Body, "max_tokens").Int(); n+int64(r.Prompt) != context {
			t.Errorf("%d tokens beside a prompt of %d in a context of %d", n, r.Prompt, context)
		}
	})
	t.Run("tools", func(t *testing.T) {
		tools := `,"tools":[` + weatherTool + `]`
		w.answered(t, chatOf(`Use get_weather for "Paris"`, tools), "L2", "pin", stack.LargeModel)
		w.answered(t, chatOf(`Use get_weather for "Paris"`, tools+`,"tool_choice":"required"`), "L3", "pin", stack.SmallModel)
	})
	t.Run("pinned itself", func(t *testing.T) {
		w.Pin(t, stack.SmallModel, "L3")
		w.answered(t, hello, "L2", "pin", stack.LargeModel)
		w.Pin(t, stack.SmallModel, "L2")
		w.answered(t, hello, "L3", "pin", stack.SmallModel)
		w.Expect(t, stack.AdminKey, "DELETE", "/admin/v1/models/"+stack.SmallModel+"/level", "", 200, "lifted")
	})
	t.Run("down", func(t *testing.T) {
		s[2:].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDead})
		up(2)
		w.answered(t, hello, "L2", "pin", stack.LargeModel)
		s.Heal(t)
		up(3)
	})
	t.Run("own servers down", func(t *testing.T) {
		w.Expect(t, stack.AdminKey, "DELETE", "/admin/v1/models/"+stack.LargeModel+"/level", "", 200, "lifted")
		s[:2].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDead})
		up(1)
		for _, stream := range []string{"", `,"stream":true`} {
			tag := "alone" + fmt.Sprint(len(stream))
			w.answered(t, chatOf("Hello", `,"user":"`+tag+`"`+stream), "L3", "no_backend", stack.SmallModel)
			r := s.Record(t, tag)
			if n := gjson.GetBytes(r.Body, "max_tokens").Int(); n != context-int64(r.Prompt) {
				t.Errorf("%d tokens beside a prompt of %d", n, r.Prompt)
			}
		}
		w.refused(t, w.ask(t, "POST", stack.ChatPath, hello, "X-Tidegate-Max-Level", "L2"), 503, "no_backend", "")
		w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf(strings.Repeat("word ", 700), "")), 503, "no_backend", "")
	})
}

// TestClamp: a limit that the prompt leaves no room for is lowered to what is left, also
// for servers that refuse it, at each level; refused is what cannot be answered at all.
func TestClamp(t *testing.T) {
	const context, small = 600, 400
	s := startServers(t, func(o *gatewaytest.Options) {
		o.Version, o.MaxModelLen = "0.23.0", context // refuses
		if o.Model == stack.SmallModel {
			o.MaxModelLen = small
		}
	})
	w := newWire(t, startGateway(t, s, stack.Laddered("")))
	left := func(tag string, context int64) {
		t.Helper()
		r := s.Record(t, tag)
		if n := gjson.GetBytes(r.Body, "max_tokens").Int(); n != context-int64(r.Prompt) {
			t.Errorf("%s: %d tokens beside a prompt of %d in a context of %d", tag, n, r.Prompt, context)
		}
	}
	const prompt = 300
	long := strings.Repeat("word ", prompt)
	for i, limit := range []string{`"max_tokens":400`, `"max_tokens":600`, `"max_tokens":6e2`, `"max_tokens":10,"max_completion_tokens":599`, `"max_tokens":500,"min_tokens":450`} {
		tag := fmt.Sprint("clamped ", i)
		w.answered(t, chatOf(long, `,"user":"`+tag+`",`+limit), "L0", "none", stack.LargeModel)
		left(tag, context)
	}
	w.answered(t, chatOf(long, `,"user":"fits","max_tokens":7`), "L0", "none", stack.LargeModel)
	if n := gjson.GetBytes(s.Record(t, "fits").Body, "max_tokens").Int(); n != 7 {
		t.Errorf("max_tokens 7 became %d", n)
	}
	for body, param := range map[string]string{
		chatOf("x", `,"max_tokens":601`):                                      "max_tokens",
		chatOf("x", `,"max_completion_tokens":601`):                           "max_completion_tokens",
		chatOf("x", `,"max_tokens":10,"max_completion_tokens":601`):           "max_completion_tokens",
		chatOf("x", `,"max_tokens":601,"max_completion_tokens":null`):         "max_tokens",
		chatOf("x", `,"max_tokens":460000000000000000000`):                    "max_tokens",
		chatOf(strings.Repeat("word ", context), ""):                          "messages",
		chatOf(strings.Repeat("word ", context), `,"max_tokens":1`):           "messages",
		chatOf(strings.Repeat("word ", context), `,"max_tokens":1,"n":2`):     "messages",
		chatOf(strings.Repeat("word ", 2*context), `,"max_tokens":600`):       "messages",
		chatOf(strings.Repeat("word ", 2*context), `,"max_tokens":100,"n":2`): "messages",
	} {
		w.refused(t, w.ask(t, "POST", stack.ChatPath, body), 400, "context_length_exceeded", param)
	}
	ids := func(n int) string { return `[` + strings.TrimSuffix(strings.Repeat("1,", n), ",") + `]` }
	completion := func(prompt, more string) string {
		return fmt.Sprintf(`{"model":%q,"prompt":%s%s}`, stack.LargeModel, prompt, more)
	}
	w.whole(t, stack.CompletionPath, completion(ids(context-1), `,"max_tokens":100,"user":"one token"`))
	left("one token", context)
	w.refused(t, w.ask(t, "POST", stack.CompletionPath, completion(ids(context), `,"max_tokens":100`)), 400, "context_length_exceeded", "prompt")
	w.refused(t, w.ask(t, "POST", stack.CompletionPath, completion(`"x"`, `,"max_tokens":601,"max_completion_tokens":1`)), 400, "context_length_exceeded", "max_tokens")
	w.Pin(t, stack.LargeModel, "L3")
	w.answered(t, chatOf(strings.Repeat("word ", 100), `,"user":"smaller","max_tokens":550`), "L3", "pin", stack.SmallModel)
	left("smaller", small)
}

// TestAlone: with its own servers away, a request that names no limit gets that of
// the level, and the limits of the caller reserve as much.
func TestAlone(t *testing.T) {
	s := startServers(t, nil)
	w := newWire(t, startGateway(t, s, stack.Laddered("limits: [{name: some, per: user, tokens: 1600/1h, reserve: max}]\n")))
	s[:2].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDead})
	stack.Eventually(t, "the large model's servers to be out", func() bool { return w.InRotation(t) == 1 })
	w.answered(t, chatOf("Hello", `,"user":"capped"`), "L3", "no_backend", stack.SmallModel)
	if n := gjson.GetBytes(s.Record(t, "capped").Body, "max_tokens").Int(); n != stack.LevelCap {
		t.Errorf("at most %d tokens, expected %d", n, stack.LevelCap)
	}
	w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf(strings.Repeat("word ", 200), "")), 400, "request_too_large_for_limit", "")
}

// TestExceedDegrade: who is over such a limit is given a smaller model, or nothing
// where there is none.
func TestExceedDegrade(t *testing.T) {
	w := newWire(t, startGateway(t, startServers(t, nil), stack.Laddered("limits: [{name: few, per: 'user,model', requests: 1/1h, exceed: degrade}]\n")))
	hello, small := chatOf("Hello", ""), strings.Replace(chatOf("Hello", ""), stack.LargeAlias, stack.SmallModel, 1)
	w.answered(t, hello, "L0", "none", stack.LargeModel)
	for _, stream := range []string{"", `,"stream":true`} {
		w.answered(t, chatOf("Hello", stream), "L3", "limit", stack.SmallModel)
	}
	w.answered(t, small, "L0", "none", stack.SmallModel)
	w.refused(t, w.ask(t, "POST", stack.ChatPath, small), 429, "rate_limit_exceeded", "")
	w.Pin(t, stack.SmallModel, "L3")
	w.refused(t, w.ask(t, "POST", stack.ChatPath, hello), 429, "rate_limit_exceeded", "")
}

// alive is a gateway that keeps streams alive, before slow servers.
func alive(t *testing.T) (*wire, stack.Servers) {
	t.Helper()
	s := startServers(t, func(o *gatewaytest.Options) {
		o.TTFT, o.Tokens = 600*time.Millisecond, 40
		o.KeepAlive = time.Millisecond // a break of a connection that is used again could pass for a late close
	})
	p := stack.Laddered("")
	// A refusal comes well before the first keep-alive, and several of those before an answer,
	// on a busy machine too.
	p.Server = []string{"keepalive: {after: 300ms, every: 20ms}"}
	p.Model = []string{"timeouts: {total: 3s}", "breaker: {failures: 1000}", "retry: {attempts: 2, budget: 1}"}
	w := newWire(t, startGateway(t, s, p))
	w.Pin(t, stack.LargeModel, "L1")
	return w, s
}

// TestLevelsAlive: a stream at L1 is kept alive while the server works, and then
// whole, with one id and one role, also where a first attempt failed meanwhile.
func TestLevelsAlive(t *testing.T) {
	w, s := alive(t)
	silent := func(a told) (n int) {
		for _, c := range a.parts {
			if c.Get("choices.0.delta.content").String()+c.Get("choices.0.delta.reasoning").String()+c.Get("choices.0.text").String() == "" {
				n++
			}
		}
		return n
	}
	body := chatOf("Hello", `,"stream":true,"stream_options":{"include_usage":true}`)
	a := w.answered(t, body, "L1", "pin", stack.LargeModel)
	if said := gather(t, a.parts...); silent(a) < 3 || said.Text[0] == "" || said.Reasoning[0] == "" || said.Finish[0] != "stop" {
		t.Errorf("%d keep-alives, then %+v", silent(a), said)
	}
	if a := w.tell(t, stack.CompletionPath, fmt.Sprintf(`{"model":%q,"prompt":["Once","Twice"],"stream":true}`, stack.LargeAlias)); silent(a) < 3 || len(gather(t, a.parts...).Finish) != 2 {
		t.Errorf("%d keep-alives of a completion", silent(a))
	}
	t.Run("after another attempt", func(t *testing.T) {
		s[:1].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultDieMid, AfterTokens: 5, Count: 1})
		struck := func() bool {
			for _, r := range s[0].Requests() {
				if r.Fault == gatewaytest.FaultDieMid {
					return true
				}
			}
			return false
		}
		for n := 0; !struck() && n < 10; n++ { // the servers take turns
			if a := w.answered(t, body, "L1", "pin", stack.LargeModel); silent(a) < 3 || gather(t, a.parts...).Text[0] == "" {
				t.Errorf("%d keep-alives", silent(a))
			}
		}
		if !struck() {
			t.Error("no attempt failed")
		}
	})
	for _, c := range []struct {
		kind gatewaytest.FaultKind
		code string
	}{{gatewaytest.FaultDieMid, "upstream_error"}, {gatewaytest.FaultHang, "timeout"}} {
		t.Run("then "+string(c.kind), func(t *testing.T) {
			s.Fault(t, gatewaytest.Fault{Kind: c.kind, AfterTokens: 5})
			e := w.stream(t, stack.ChatPath, body)
			if got := e.failure.Get("error.code").Str; got != c.code || e.done || e.err == nil || len(e.chunks) < 3 {
				t.Errorf("%d chunks, then %q, done %t, %v", len(e.chunks), got, e.done, e.err)
			}
		})
	}
	t.Run("at once", func(t *testing.T) {
		s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.Fault500})
		w.refused(t, w.ask(t, "POST", stack.ChatPath, body), 502, "upstream_error", "")
		w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf("x", `,"temperature":-1,"stream":true`)), 502, "upstream_error", "")
		s.Heal(t)
		w.refused(t, w.ask(t, "POST", stack.ChatPath, chatOf("x", `,"temperature":-1,"stream":true`)), 400, "invalid_request", "temperature")
	})
}

// TestLevelsLeave: a caller that leaves at L1 ends the request at the server.
func TestLevelsLeave(t *testing.T) {
	w, s := alive(t)
	s.Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultSlow, DelayMS: 20})
	for _, stream := range []bool{true, false} {
		tag := fmt.Sprintf("leaves-%t", stream)
		ctx, leave := context.WithCancel(t.Context())
		var watch sync.WaitGroup
		if !stream {
			watch.Go(func() {
				stack.Eventually(t, "the request at a server", func() bool {
					return slices.ContainsFunc(s, func(r *gatewaytest.Running) bool { return r.Stats().Running > 0 })
				})
				leave()
			})
		}
		resp, err := w.Post(ctx, stack.ChatPath, chatOf("Hello", fmt.Sprintf(`,"user":%q,"stream":%t,"sim":{"tokens":1000}`, tag, stream)))
		if stream {
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
			if _, err := resp.Body.Read(make([]byte, 1)); err != nil { // a keep-alive
				t.Error(err)
			}
			leave()
			resp.Body.Close()
		} else if err == nil {
			resp.Body.Close()
			t.Error("the request was answered")
		}
		watch.Wait()
		if r := s.Record(t, tag); !r.Aborted || r.Output >= 1000 || r.Stream {
			t.Errorf("%d tokens, aborted %t, streamed %t", r.Output, r.Aborted, r.Stream)
		}
		leave()
	}
}

// TestCannedLanguage: the canned text is in the caller's language, and an error
// where the configuration says so.
func TestCannedLanguage(t *testing.T) {
	s := startServers(t, nil)
	w := newWire(t, startGateway(t, s, stack.Laddered("")))
	w.Pin(t, stack.LargeModel, "L4")
	for _, c := range []struct{ accept, body, want string }{
		{"", chatOf("Hello", ""), cannedText},
		{"", chatOf("你好，今天天气怎么样？", ""), busyText},
		{"zh-CN,zh;q=0.9,en;q=0.8", chatOf("Hello", ""), busyText},
		{"en", chatOf("你好", ""), cannedText},
		{"zh", chatOf("Hello", `,"stream":true`), busyText},
		{"", chatOf("你好", `,"stream":true,"n":2`), busyText},
	} {
		header := []string{}
		if c.accept != "" {
			header = []string{"Accept-Language", c.accept}
		}
		a := w.answered(t, c.body, "L4", "pin", cannedModel, header...)
		for _, text := range gather(t, a.parts...).Text {
			if text != c.want {
				t.Errorf("%s %s: %q", c.accept, c.body, text)
			}
		}
	}
	trip := `,"response_format":{"type":"json_object"}`
	if a := newWire(t, startGateway(t, s, stack.Laddered("  canned: {constrained_status: 200}\n"))); a != nil {
		a.Pin(t, stack.LargeModel, "L4") // who wants it has the text under refusal, where clients do not parse it
		got := a.answered(t, chatOf("Hello", trip), "L4", "pin", cannedModel)
		if m := got.parts[0].Get("choices.0.message"); m.Get("refusal").Str != cannedText || m.Get("content").Type != gjson.Null {
			t.Error(m.Raw)
		}
	}
	refusing := newWire(t, startGateway(t, s, stack.Laddered("  canned: {status: 503}\n")))
	refusing.Pin(t, stack.LargeModel, "L4")
	for _, stream := range []string{"", `,"stream":true`} {
		resp := refusing.ask(t, "POST", stack.ChatPath, chatOf("你好", stream))
		raw, _ := io.ReadAll(resp.Body)
		if e := gjson.GetBytes(raw, "error"); resp.StatusCode != 503 || e.Get("code").Str != "overloaded" || e.Get("message").Str != busyText || resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Tidegate-Level") != "L4" {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, raw)
		}
	}
}

// TestLevelsWait has one place on each server. A stream that waits for one is kept
// alive and told its level, so it is answered so, whatever the level is by then; who
// has been told nothing is answered as the level is.
func TestLevelsWait(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.Tokens = 0, 40 })
	p := stack.Laddered("")
	// A refusal comes well before the first keep-alive, and several of those before an answer,
	// on a busy machine too.
	p.Server = []string{"keepalive: {after: 300ms, every: 20ms}"}
	p.Backend = ", max_in_flight: 1"
	w := newWire(t, startGateway(t, s, p))
	for _, level := range []int{0, 1, 2} {
		name, model, _ := levelOf(level)
		w.Pin(t, stack.LargeModel, name)
		s[:2].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang, Count: 1})
		busy, leave := context.WithCancel(t.Context())
		for range 2 {
			go func() {
				if resp, err := w.Post(busy, stack.ChatPath, chatOf("Hello", "")); err == nil {
					resp.Body.Close()
				}
			}()
		}
		waiting := func(n int) {
			stack.Eventually(t, fmt.Sprint(n, " requests that wait"), func() bool {
				return w.Metric(t, fmt.Sprintf(`tidegate_queue_length{model=%q,tier="standard"}`, stack.LargeModel)) == float64(n)
			})
		}
		stack.Eventually(t, "both servers to be busy", func() bool { return strings.Count(w.StatusPage(t), `"in_flight": 1`) == 2 })
		whole := make(chan *http.Response, 1)
		stream := w.ask(t, "POST", stack.ChatPath, chatOf("Hello", `,"stream":true`)) // returns with the first keep-alive
		go func() {
			resp, err := w.Post(t.Context(), stack.ChatPath, chatOf("Hello", ""))
			if err != nil {
				t.Error(err)
			}
			whole <- resp
		}()
		waiting(2)
		w.Pin(t, stack.LargeModel, "L4")
		resp := <-whole // at once, while the servers are busy
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.Header.Get("X-Tidegate-Level") != "L4" || gjson.GetBytes(raw, "model").Str != cannedModel {
			t.Errorf("%s: who was told nothing got %v %s", name, resp.Header, raw)
		}
		waiting(1)
		leave()
		e := readEvents(t, stream.Body)
		said := gather(t, e.chunks...)
		if !e.done || stream.Header.Get("X-Tidegate-Level") != name || said.Text[0] == "" || said.Finish[0] != "stop" || (said.Reasoning[0] != "") != (level < 2) {
			t.Errorf("%s: %v, done %t, %+v", name, stream.Header, e.done, said)
		}
		for _, c := range e.chunks {
			if c.Get("model").Str != model || c.Get("id").Str != e.chunks[0].Get("id").Str {
				t.Errorf("%s: %s in a stream of %s", name, c.Raw, e.chunks[0].Raw)
			}
		}
		s.Heal(t)
	}
}

// TestEchoAlone asks for nothing but the prompt, as lm-evaluation-harness does to score it:
// the engine gets max_tokens 0 at every level, and the token that it makes and does not
// show is charged as it states it.
func TestEchoAlone(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.ITL = 0, 0 })
	w := newWire(t, startGateway(t, s, stack.Laddered("")))
	for level := range 4 {
		name, _, _ := levelOf(level)
		w.Pin(t, stack.LargeModel, name)
		for _, options := range []string{"", `,"stream":true,"stream_options":{"include_usage":true}`} {
			tag := strings.ReplaceAll(t.Name()+name+fmt.Sprint(len(options)), "/", "_")
			a := w.tell(t, stack.CompletionPath, fmt.Sprintf(`{"model":%q,"prompt":"one two three","max_tokens":0,"echo":true,"user":%q%s}`, stack.LargeAlias, tag, options))
			r := w.Servers.Record(t, tag)
			if text := gather(t, a.parts...).Text[0]; text != "one two three" || gjson.GetBytes(r.Body, "max_tokens").Raw != "0" {
				t.Errorf("%s%s: %q, the server was sent %s", name, options, text, r.Body)
			}
			if u := a.usage; u.Get("prompt_tokens").Int() != 3 || u.Get("completion_tokens").Int() != 1 {
				t.Errorf("%s%s: %s", name, options, u.Raw)
			}
		}
	}
	w.refused(t, w.ask(t, "POST", stack.CompletionPath, fmt.Sprintf(`{"model":%q,"prompt":"x","max_tokens":0}`, stack.LargeAlias)), 400, "invalid_request", "max_tokens")
}

// TestNamelessModel: a key that may use one model need not name it, in a body behind a
// byte order mark, with numbers and switches as text.
func TestNamelessModel(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{})
	body := "\uFEFF" + `{"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"Hi","reasoning":[{"type":"text","text":"hm"}]},{"role":"user","content":"Hello"}],"max_tokens":"5","stream":"no"}`
	f.Expect(t, stack.BobKey, "POST", stack.ChatPath, body, 200, `"model":"`+stack.SmallModel+`"`)
	f.Expect(t, stack.AdaKey, "POST", stack.ChatPath, body, 400, "model is missing: ")
}

// TestStreamsKeepDetails: what vLLM says of a whole answer beside its text is there in a
// stream too: its fingerprint, and how many tokens were reasoning and how many cached, where
// anybody knows that.
func TestStreamsKeepDetails(t *testing.T) {
	for _, version := range []string{"0.23.0", "0.30.0"} { // the latter states reasoning tokens
		s := startServers(t, func(o *gatewaytest.Options) { o.TTFT, o.ITL, o.Version = 0, 0, version })
		w := newWire(t, startGateway(t, s, stack.Laddered("")))
		for _, level := range []string{"L0", "L1"} {
			w.Pin(t, stack.LargeModel, level)
			whole := w.tell(t, stack.ChatPath, chatOf("Hello", ""))
			print := whole.parts[0].Get("system_fingerprint").Str
			for _, options := range []string{`,"stream":true`, `,"stream":true,"stream_options":{"include_usage":true}`} {
				resp := w.ask(t, "POST", stack.ChatPath, chatOf("Hello", options))
				e := readEvents(t, resp.Body)
				last := e.chunks[len(e.chunks)-1]
				if got := last.Get("system_fingerprint").Str; got != print || got == "" || !e.done {
					t.Errorf("%s %s%s: fingerprint %q, of a whole answer %q", version, level, options, got, print)
				}
				if u := last.Get("usage"); u.Exists() && (u.Get("completion_tokens_details.reasoning_tokens").Int() == 0 || u.Get("completion_tokens_details.reasoning_tokens").Int() >= u.Get("completion_tokens").Int()) {
					t.Errorf("%s %s%s: %s", version, level, options, u.Raw)
				}
			}
			if u := whole.usage; u.Get("completion_tokens_details.reasoning_tokens").Int() == 0 {
				t.Errorf("%s %s: %s", version, level, u.Raw)
			}
		}
		w.Pin(t, stack.LargeModel, "L2") // without thinking nobody has counted any
		if u := w.tell(t, stack.ChatPath, chatOf("Hello", "")).usage; u.Get("completion_tokens_details.reasoning_tokens").Int() != 0 {
			t.Errorf("%s: %s", version, u.Raw)
		}
	}
}
