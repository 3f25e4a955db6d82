package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// opened is an answer of which some has come.
type opened struct {
	*http.Response
	lines *bufio.Reader
}

// open asks for a long answer; of a stream it returns when the first tokens have come.
func (f *front) open(t *testing.T, key, body string, stream bool) chan *opened {
	t.Helper()
	got := make(chan *opened, 1)
	ask := func() {
		defer close(got)
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		q.Header.Set("Authorization", "Bearer "+key)
		q.Header.Set("Content-Type", "application/json")
		resp, err := f.Client.Do(q)
		if err != nil {
			t.Error(err)
			return
		}
		o := &opened{resp, bufio.NewReader(resp.Body)}
		for stream {
			line, err := o.lines.ReadString('\n')
			if err != nil {
				t.Errorf("before the first token: %v", err)
				return
			}
			if strings.Contains(line, `"content":"`) && !strings.Contains(line, `"content":""`) || strings.Contains(line, `"reasoning":"`) {
				break
			}
		}
		got <- o
	}
	if stream {
		ask()
	} else {
		go ask()
	}
	return got
}

// TestRevokedStreams ends what a key has under way, on the gateway that did not revoke
// it: a stream with an event that says why, an answer in one piece with 401, and both
// are charged.
func TestRevokedStreams(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.ITL = 20 * time.Millisecond })
	p := stack.Config{DSN: "sqlite://" + t.TempDir() + "/t.db"}
	a, b := startGateway(t, s, p), startGateway(t, s, p)
	out, _ := command(t, exitOK, "key", "create", "--config", a.File, "--user", "root", "--admin")
	admin := strings.TrimSpace(out)
	body := func(tag string, stream bool) string {
		return fmt.Sprintf(`{"model":%q,"stream":%v,"messages":[{"role":"user","content":%q}],"sim":{"tokens":30000}}`, stack.SmallModel, stream, tag)
	}
	key, id := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys", `{"user":"ann"}`, 200, ""))
	stream := <-b.open(t, key, body("the-stream", true), true)
	whole := b.open(t, key, body("the-whole", false), false)
	stack.Eventually(t, "both requests to be on a server", func() bool {
		return strings.Contains(b.StatusPage(t), `"running": 2`)
	})
	began := time.Now()
	a.Expect(t, admin, "POST", "/admin/v1/keys/"+id+"/revoke", "", 200, "revoked")
	rest, _ := io.ReadAll(stream.lines) // the cut is an error
	took := time.Since(began)
	stream.Body.Close()
	events := strings.Split(strings.TrimSpace(string(rest)), "\n\n")
	last := events[len(events)-1]
	var event struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(last, "data: ")), &event); err != nil || event.Error.Code != "invalid_api_key" || !strings.Contains(event.Error.Message, "revoked") || !strings.Contains(event.Error.Message, id) {
		t.Errorf("the last event: %s", last)
	}
	if strings.Contains(string(rest), "[DONE]") {
		t.Error("the stream ends as if it were whole")
	}
	w := <-whole
	if w == nil {
		t.Fatal("no answer")
	}
	text, err := io.ReadAll(w.lines)
	w.Body.Close()
	if err != nil || w.StatusCode != 401 || !strings.Contains(string(text), "revoked") {
		t.Errorf("the answer in one piece: %d %s, %v", w.StatusCode, text, err)
	}
	t.Logf("REVOKED streams ended %v after the revocation on another gateway; the bound is 5s", took.Round(time.Millisecond))
	for _, tag := range []string{"the-stream", "the-whole"} {
		if r := s.Record(t, tag); !r.Aborted {
			t.Errorf("%s goes on at the server", tag)
		}
	}
	var usage struct {
		Data []struct {
			Requests int64 `json:"requests"`
			Output   int64 `json:"output_tokens"`
		}
	}
	stack.Eventually(t, "both to be charged", func() bool {
		_, text := b.Call(t, admin, "GET", "/admin/v1/usage?user=ann", "")
		if err := json.Unmarshal([]byte(text), &usage); err != nil {
			t.Fatal(text)
		}
		return len(usage.Data) == 1 && usage.Data[0].Requests == 2
	})
	if usage.Data[0].Output == 0 {
		t.Errorf("nothing is charged: %+v", usage)
	}
	if log := b.Log.String(); !strings.Contains(log, `"key_state":"revoked"`) {
		t.Error("the log does not say that the key was revoked")
	}
}

// TestOwners changes, moves, disables and deletes over the API of one gateway and looks
// at another.
func TestOwners(t *testing.T) {
	s := startServers(t, nil)
	p := stack.Config{DSN: "sqlite://" + t.TempDir() + "/t.db", Extra: "limits:\n  - {name: user-rate, per: user, requests: 1000/1m}\n"}
	a, b := startGateway(t, s, p), startGateway(t, s, p)
	out, _ := command(t, exitOK, "key", "create", "--config", a.File, "--user", "root", "--admin")
	admin := strings.TrimSpace(out)
	do := func(method, path, body string, status int, want string) string {
		t.Helper()
		return a.Expect(t, admin, method, "/admin/v1/"+path, body, status, want)
	}
	key, _ := stack.CreatedKey(t, do("POST", "keys", fmt.Sprintf(`{"user":"ann","project":"apollo","department":"space","models":[%q]}`, stack.SmallModel), 200, ""))
	until := func(what string, status int, want string) {
		t.Helper()
		began := time.Now()
		stack.Eventually(t, what, func() bool {
			got, text := b.Ask(t, key)
			return got == status && strings.Contains(text, want)
		})
		t.Logf("FOLLOWED %s after %v on the other gateway; the bound is 2s", what, time.Since(began).Round(time.Millisecond))
	}
	until("the new key to be good", 200, "")
	do("PATCH", "users/ann", `{"disabled":true}`, 200, `"disabled_at":"2`)
	until("the disabled user's key to be refused", 401, "disabled")
	do("GET", "keys/ann", "", 200, `"status":"disabled"`)
	do("PATCH", "users/ann", `{"disabled":false}`, 200, `"disabled_at":null`)
	until("the key to be good again", 200, "")
	do("PATCH", "keys/ann", fmt.Sprintf(`{"models":[%q],"tier":"batch"}`, stack.LargeModel), 200, `"tier":"batch"`)
	until("the key's models to have changed", 403, "model_not_allowed")
	do("PATCH", "keys/ann", `{"models":[],"ips":["10.0.0.0/8"]}`, 200, "")
	until("the key's addresses to have changed", 403, "access_denied")
	do("PATCH", "keys/ann", `{"ips":[],"ttl":"30d","name":"ann-ci"}`, 200, `"name":"ann-ci"`)
	until("the key to be good from everywhere", 200, "")
	do("POST", "projects", `{"name":"gemini","department":"space"}`, 200, "")
	do("PATCH", "users/ann", `{"project":"gemini"}`, 200, `"project":"gemini"`)
	do("DELETE", "projects/gemini", "", 409, "move or delete them first")
	do("DELETE", "projects/apollo", "", 200, "true")
	do("DELETE", "departments/space", "", 409, "gemini")
	do("PATCH", "projects/gemini", `{"department":"default"}`, 200, `"department":"default"`)
	do("DELETE", "departments/space", "", 200, "true")
	do("GET", "users/ann", "", 200, `"department":"default"`)
	do("DELETE", "users/ann", "", 200, `"name":"ann-ci"`)
	until("the deleted user's key to be refused", 401, "revoked")
	do("GET", "users/ann", "", 404, "was deleted")
	do("POST", "users", `{"name":"ann","project":"gemini"}`, 200, `"name":"ann#2"`)
	key, _ = stack.CreatedKey(t, do("POST", "keys", `{"user":"ann"}`, 200, `"user":"ann#2"`))
	until("the second ann's key to be good", 200, "")
	b.Expect(t, key, "GET", "/v1/usage", "", 200, `"user":"ann#2"`)
	do("POST", "users/ann/revoke", "", 200, `"user":"ann#2"`)
	until("the second ann's key to be refused", 401, "revoked")
	lost, _ := stack.CreatedKey(t, do("POST", "keys", `{"user":"bea"}`, 200, ""))
	do("POST", "keys/revoke", fmt.Sprintf(`{"secret":%q}`, lost), 200, `"name":"bea"`)
	for body, want := range map[string]string{
		fmt.Sprintf(`{"secret":%q}`, lost): "revoked already", `{"secret":"hunter2"}`: "is not a key", `{"Secret":"x"}`: "write it secret",
	} {
		if _, text := a.Call(t, admin, "POST", "/admin/v1/keys/revoke", body); !strings.Contains(text, want) || strings.Contains(text, lost) || strings.Contains(text, "hunter2") {
			t.Errorf("%s", text)
		}
	}
	for _, refused := range []struct{ method, path, body, want string }{
		{"PATCH", "users/ann", `{}`, "there is no change"},
		{"PATCH", "users/ann", `{"department":"default"}`, "unknown field"},
		{"PATCH", "departments/default", `{"project":"x"}`, "unknown field"},
		{"POST", "departments", `{"name":"x","disabled":true}`, "unknown field"},
		{"PATCH", "keys/bea", `{"user":"x"}`, "unknown field"},
		{"POST", "keys", `{"user":"cal","models":["none"]}`, "the configuration has no model \\\"none\\\"; it has " + stack.LargeModel},
		{"PATCH", "keys/root", `{"models":["none"]}`, "has no model"},
	} {
		do(refused.method, refused.path, refused.body, 400, refused.want)
	}
	if log := a.Log.String() + b.Log.String(); strings.Contains(log, lost) || strings.Contains(log, "hunter2") {
		t.Error("the log has the text of a key")
	}
	audit := do("GET", "audit?limit=1000", "", 200, "")
	for _, what := range []string{"user.update", "user.delete", "project.update", "project.delete", "department.delete", "key.update", "key.revoke"} {
		if !strings.Contains(audit, `"what":"`+what+`"`) {
			t.Errorf("%s is not audited", what)
		}
	}
}
