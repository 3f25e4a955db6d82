package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"tidegate/gateway/account"
	"tidegate/gateway/activity"
)

// TestTopPage: refusals are those of their callers, and of strangers those without a user.
func TestTopPage(t *testing.T) {
	g, _ := bare(t, nil)
	g.Reload(Default(), account.New(account.Config{Mode: account.Keys, Keys: []account.KeyConfig{{Name: "all", KeyEnv: "B", Key: "bob's own key, which the file names", User: "bob"}}}, nil))
	front, ops := g.Handler(), g.OpsHandler(nil)
	for _, key := range []string{"bob's own key, which the file names", "nobody's key"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(`{"model":"gone","messages":[{"role":"user","content":"hi"}]}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		front.ServeHTTP(deadlines{httptest.NewRecorder()}, r)
	}
	w := httptest.NewRecorder()
	ops.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9090/top", nil))
	var top activity.Top
	if err := json.Unmarshal(w.Body.Bytes(), &top); err != nil || w.Code != http.StatusOK {
		t.Fatal(w.Code, err, w.Body)
	}
	slices.SortFunc(top.Rows, func(a, b activity.Row) int { return strings.Compare(b.User, a.User) })
	if len(top.Rows) != 2 || top.Rows[0].User != "bob" || top.Rows[0].Key != "all" || top.Rows[0].Refused != 1 || top.Rows[1].User != "" || top.Rows[1].Refused != 1 {
		t.Errorf("%+v", top.Rows)
	}
}
