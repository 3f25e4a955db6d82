package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"tidegate/gateway/refusal"
)

// refusedFor returns the code of a refusal; empty: err is none.
func refusedFor(err error) refusal.Code {
	var r *refusal.Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// TestBudget takes from a budget what is there, for each caller and for all together.
func TestBudget(t *testing.T) {
	b := &budget{}
	b.configure(BodyBudget{Total: 100, PerCaller: 60})
	ada, bob, eve := holding{budget: b, caller: "ada"}, holding{budget: b, caller: "bob"}, holding{budget: b, caller: "bob"}
	for i, step := range []struct {
		who   *holding
		bytes int64
		ok    bool
	}{
		{&ada, 61, false}, {&ada, 60, true}, {&ada, 60, true}, {&bob, 41, false}, {&bob, 40, true}, {&eve, 1, false},
		{&ada, 10, true}, {&eve, 20, true}, {&eve, 21, false}, {&bob, 0, true}, {&eve, 60, true},
	} {
		err := step.who.resize(step.bytes)
		if (err == nil) != step.ok || err != nil && refusedFor(err) != refusal.Overloaded {
			t.Errorf("step %d: %v", i, err)
		}
	}
	b.configure(BodyBudget{Total: 10, PerCaller: 10}) // a reload may ask for less than is held
	if err := eve.resize(59); err != nil {
		t.Errorf("to hold fewer bytes was refused: %v", err)
	}
	if err := ada.resize(11); refusedFor(err) != refusal.Overloaded {
		t.Errorf("got %v", err)
	}
	for range 2 {
		ada.release()
		bob.release()
		eve.release()
	}
	if b.used != 0 || len(b.byCaller) != 0 {
		t.Errorf("%d bytes are still held, %v", b.used, b.byCaller)
	}
}

// TestBudgetReturns checks that whatever becomes of a request, its bytes come back
// once: good answers, refusals of every kind, bodies that end too early.
func TestBudgetReturns(t *testing.T) {
	g, _ := bare(t, func(c *Config) {
		c.MaxBody, c.BodyBudget = 64<<10, BodyBudget{Total: 256 << 10, PerCaller: 256 << 10}
	})
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	bodies := []string{
		`{}`, `{"prompt":"` + strings.Repeat("a ", 20_000) + `"}`, `{"prompt":"` + strings.Repeat("b", 70_000) + `"}`, `{"prompt":`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}]}`, `{"model":"nobody"}`, `{"model":"m","prompt":"x"` + strings.Repeat(" ", 60_000) + `}`,
	}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 50 {
				path := []string{"/tokenize", "/v1/chat/completions", "/v1/completions"}[random.IntN(3)]
				body := bodies[random.IntN(len(bodies))]
				r, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Content-Type", "application/json")
				if random.IntN(4) == 0 {
					r.ContentLength = -1
				}
				if random.IntN(4) == 0 {
					r.ContentLength, r.Body = int64(len(body)), io.NopCloser(strings.NewReader(body[:len(body)/2]))
				}
				if resp, err := server.Client().Do(r); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body) // what it says is another test's
					resp.Body.Close()
				}
			}
		})
	}
	all.Wait()
	server.Close() // waits for the handlers
	g.bodies.mu.Lock()
	defer g.bodies.mu.Unlock()
	if g.bodies.used != 0 || len(g.bodies.byCaller) != 0 {
		t.Errorf("%d bytes are still held, %v", g.bodies.used, g.bodies.byCaller)
	}
}

// TestAnnouncedLengthCostsNothing checks that a buffer grows with what has come, not
// with what a caller says will.
func TestAnnouncedLengthCostsNothing(t *testing.T) {
	g, _ := bare(t, nil)
	for _, announced := range []int64{8 << 20, -1} {
		held := int64(0)
		come := 0
		r := httptest.NewRequest(http.MethodPost, "/tokenize", nil)
		r.Header.Set("Content-Type", "application/json")
		r.ContentLength = announced
		c := g.newCall(deadlines{httptest.NewRecorder()}, r, "/tokenize")
		c.caller.User = "ada"
		r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
			g.bodies.mu.Lock()
			held = g.bodies.used
			g.bodies.mu.Unlock()
			if most := int64(max(4*come, firstBuffer)); held > most {
				t.Fatalf("after %d of %d bytes %d are held", come, announced, held)
			}
			if come >= 1<<20 {
				return 0, io.ErrUnexpectedEOF
			}
			n := min(len(p), 1000)
			come += n
			return n, nil
		}))
		if _, err := c.readBody(); refusedFor(err) != refusal.InvalidRequest {
			t.Errorf("got %v", err)
		}
		c.bodies.release()
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestTokenizeAnswer checks the answer that is made piece by piece.
func TestTokenizeAnswer(t *testing.T) {
	for _, n := range []int{0, 1, 3, 100_000} {
		ids := make([]uint32, n)
		for i := range ids {
			ids[i] = uint32(i * i % 151_937)
		}
		for _, context := range []int{0, 40_960} {
			w := httptest.NewRecorder()
			c := &call{writer: answerWriter{w: w}}
			if err := c.replyTokens(ids, context); err != nil {
				t.Fatal(err)
			}
			var got struct {
				Count   int             `json:"count"`
				Context int             `json:"max_model_len"`
				Strings json.RawMessage `json:"token_strs"`
				Tokens  []uint32        `json:"tokens"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if got.Count != n || got.Context != context || string(got.Strings) != "null" || fmt.Sprint(got.Tokens) != fmt.Sprint(ids) {
				t.Errorf("%d ids: got %d, %d and %s", n, got.Count, got.Context, got.Strings)
			}
			if length := w.Header().Get("Content-Length"); length != fmt.Sprint(w.Body.Len()) {
				t.Errorf("%d ids: %s bytes were announced and %d came", n, length, w.Body.Len())
			}
		}
	}
}

// TestBudgetFollowsMaxBody: a configuration that only sets a large max_body is valid.
func TestBudgetFollowsMaxBody(t *testing.T) {
	for maxBody, want := range map[Size]BodyBudget{
		8 << 20: {Total: 256 << 20, PerCaller: 64 << 20}, 128 << 20: {Total: 256 << 20, PerCaller: 128 << 20}, 1 << 30: {Total: 1 << 30, PerCaller: 1 << 30},
	} {
		c := Default()
		c.MaxBody = maxBody
		if err := c.Validate(); err != nil || c.BodyBudget.resolve(maxBody) != want {
			t.Errorf("max_body %v: %+v, %v", maxBody, c.BodyBudget.resolve(maxBody), err)
		}
	}
}
