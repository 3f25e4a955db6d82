package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/activity"
	"tidegate/gateway/gatewaytest/stack"
)

// TestTop: who streams now is seen with its key, model and tokens a second, and who was
// refused with its refusals.
func TestTop(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{})
	resp, err := f.Post(t.Context(), stack.ChatPath, `{"model":"qwen3","stream":true,"max_tokens":4000,"messages":[{"role":"user","content":"Hello"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go io.Copy(io.Discard, resp.Body) // until the test ends
	f.Complete(t, "nobody's key", `{"model":"qwen3","messages":[{"role":"user","content":"Hello"}]}`)
	top := func(args ...string) string {
		var out, complaints bytes.Buffer
		if code := run(t.Context(), append([]string{"top", "--ops", f.Ops}, args...), noEnv, &out, &complaints); code != exitOK {
			t.Fatal(complaints.String())
		}
		return out.String()
	}
	var all struct {
		By   []string
		Rows []struct {
			User, Key, Model string
			Refused          int
			Output           float64 `json:"output_tokens_per_second"`
		}
	}
	stack.Eventually(t, "tokens a second", func() bool {
		if err := json.Unmarshal([]byte(top("--json")), &all); err != nil {
			t.Fatal(err)
		}
		return len(all.Rows) == 2 && all.Rows[0].Output > 0
	})
	if r := all.Rows; r[0].User != "ada" || r[0].Key != "ada" || r[0].Model != "Qwen3-1.7B" || r[1].User != "" || r[1].Refused != 1 || len(all.By) != 3 {
		t.Errorf("%+v", all)
	}
	text := top("--by", "model,user") // no terminal: it prints once
	for _, want := range []string{"MODEL", "USER", "OUT TOKENS/S", "Qwen3-1.7B  ada", "(no good key)"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
}

// hostileTop answers GET /top with names that no terminal must take for orders.
func hostileTop(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		page := activity.Top{Time: time.Now()}
		for i := range 30 {
			page.Rows = append(page.Rows, activity.Row{User: fmt.Sprintf("u%d\x1b[2J\x1b]0;owned\a\u202e", i), Key: strings.Repeat("k", 1000), Model: "m\nm", Output: float64(100 - i), Running: 1})
		}
		_ = json.NewEncoder(w).Encode(page)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// TestTopOfHostileNames: names are escaped, lines and tables are bounded, and gateways are
// summed up.
func TestTopOfHostileNames(t *testing.T) {
	var out, complaints bytes.Buffer
	a, b := hostileTop(t), hostileTop(t)
	if code := run(t.Context(), []string{"top", "--ops", a, "--ops", b}, noEnv, &out, &complaints); code != exitOK {
		t.Fatal(complaints.String())
	}
	text := out.String()
	if strings.ContainsAny(text, "\x1b\a\u202e") || !strings.Contains(text, `u0\u001b[2J`) || !strings.Contains(text, `m\u000am`) {
		t.Errorf("%q", text)
	}
	for _, want := range []string{"60 running", "... and 10 more (--rows 0 prints all)", " 200 "} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines != 24 {
		t.Errorf("%d lines", lines)
	}
}

// TestTopWatches: on a terminal the page is drawn anew at each tick, a gateway that goes
// away is said, and the end of the context ends it.
func TestTopWatches(t *testing.T) {
	var out bytes.Buffer
	screen := &terminal{out: &out}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(activity.Top{Time: time.Now(), Rows: []activity.Row{{User: "ada", Output: 7}}})
	}))
	defer server.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ticks, ended := make(chan time.Time), make(chan error, 1)
	p := &process{stdout: screen}
	f := &topFlags{ops: []string{server.URL}, names: []string{"user"}, rows: 20}
	go func() { ended <- p.watch(ctx, f, screen, ticks) }()
	ticks <- time.Time{} // the first page is there, and the second is asked for
	ticks <- time.Time{}
	server.Close()
	ticks <- time.Time{}
	ticks <- time.Time{}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if text := out.String(); strings.Count(text, "\x1b[H\x1b[2J") < 4 || !strings.Contains(text, "ada") || !strings.Contains(text, "no gateway answers at") {
		t.Errorf("%q", text)
	}
	if screen.interactive() {
		t.Error("a buffer is taken for a terminal")
	}
}

func TestTopRefuses(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
	defer other.Close()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--by", "user,address"}, exitUsage, "expected some of department, project, user, key, model"},
		{[]string{"--by", "user,user"}, exitUsage, "each once"},
		{[]string{"--every", "1ms"}, exitUsage, "at least 100ms"},
		{[]string{"--ops", "localhost:9090"}, exitUsage, "expected a URL"},
		{[]string{"--ops", "http://127.0.0.1:1"}, exitFailed, "no gateway answers at"},
		{[]string{"--ops", other.URL}, exitFailed, "the answer is no gateway's"},
	} {
		var out, complaints bytes.Buffer
		if code := run(t.Context(), append([]string{"top"}, c.args...), noEnv, &out, &complaints); code != c.code || !strings.Contains(complaints.String(), c.want) {
			t.Errorf("%v: code %d, %s", c.args, code, &complaints)
		}
	}
}
