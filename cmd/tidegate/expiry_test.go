package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// TestKeyExpiry holds that everybody who should know sees when a key expires.
func TestKeyExpiry(t *testing.T) {
	f := startGateway(t, startServers(t, nil), stack.Config{Env: map[string]string{"TIDEGATE_AUTH_EXPIRY_WARN": "10d"}})
	out, _ := command(t, exitOK, "key", "create", "--config", f.File, "--user", "ann", "--ttl", "9d")
	short := strings.TrimSpace(out)
	out, _ = command(t, exitOK, "key", "create", "--config", f.File, "--user", "bob", "--ttl", "10d2s") // warned of two seconds after
	key := strings.TrimSpace(out)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+"/quota/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+key)
	resp := f.Do(t, q)
	var s struct {
		Key struct {
			Name, ID string
			Expires  time.Time `json:"expires_at"`
		}
	}
	if err := json.Unmarshal(resp.Body, &s); err != nil || s.Key.Name != "bob" || time.Until(s.Key.Expires) < 9*24*time.Hour {
		t.Errorf("%v %s", err, resp.Body)
	}
	if ends := resp.Header.Get("X-Tidegate-Key-Expires"); ends != s.Key.Expires.Truncate(time.Second).Format(time.RFC3339) {
		t.Errorf("the header says %q, the status %v", ends, s.Key.Expires)
	}
	f.Expect(t, stack.AdaKey, "GET", "/quota/status", "", 200, `"expires_at":null`)
	stack.Eventually(t, "the last ten days of the key", func() bool { return time.Until(s.Key.Expires) < 10*24*time.Hour })
	command(t, exitOK, "key", "set", "bob", "--config", f.File, "--tier", "batch") // a change makes the gateway look, not in the minute but soon
	stack.Eventually(t, "the key to be among those that expire soon", func() bool { return f.Metric(t, "tidegate_keys_expiring") == 1 })
	if text := f.StatusPage(t); !strings.Contains(text, "the key bob (id "+s.Key.ID+") of user bob expires on") || strings.Contains(text, "the key ann ") {
		t.Errorf("the status: %s", text)
	}
	if log := f.Log.String(); !strings.Contains(log, "a key expires soon") || !strings.Contains(log, s.Key.ID) {
		t.Error("the log does not say that the key expires soon")
	}
	if status, _ := f.Ask(t, short); status != 200 {
		t.Errorf("a key that was made for nine days: %d", status)
	}
}
