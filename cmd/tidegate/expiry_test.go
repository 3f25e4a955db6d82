package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestKeyExpiry holds that everybody who should know sees when a key expires.
func TestKeyExpiry(t *testing.T) {
	f := startGateway(t, startServers(t, nil), plan{env: map[string]string{"TIDEGATE_AUTH_EXPIRY_WARN": "10d"}})
	out, _ := command(t, exitOK, "key", "create", "--config", f.file, "--user", "ann", "--ttl", "9d")
	short := strings.TrimSpace(out)
	out, _ = command(t, exitOK, "key", "create", "--config", f.file, "--user", "bob", "--ttl", "10d2s") // warned of two seconds after
	key := strings.TrimSpace(out)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/quota/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+key)
	resp := f.do(t, q)
	var s struct {
		Key struct {
			Name, ID string
			Expires  time.Time `json:"expires_at"`
		}
	}
	if err := json.Unmarshal(resp.body, &s); err != nil || s.Key.Name != "bob" || time.Until(s.Key.Expires) < 9*24*time.Hour {
		t.Errorf("%v %s", err, resp.body)
	}
	if ends := resp.header.Get("X-Tidegate-Key-Expires"); ends != s.Key.Expires.Truncate(time.Second).Format(time.RFC3339) {
		t.Errorf("the header says %q, the status %v", ends, s.Key.Expires)
	}
	f.expect(t, adaKey, "GET", "/quota/status", "", 200, `"expires_at":null`)
	eventually(t, "the last ten days of the key", func() bool { return time.Until(s.Key.Expires) < 10*24*time.Hour })
	command(t, exitOK, "key", "set", "bob", "--config", f.file, "--tier", "batch") // a change makes the gateway look, not in the minute but soon
	eventually(t, "the key to be among those that expire soon", func() bool { return f.metric(t, "tidegate_keys_expiring") == 1 })
	if text := f.status(t); !strings.Contains(text, "the key bob (id "+s.Key.ID+") of user bob expires on") || strings.Contains(text, "the key ann ") {
		t.Errorf("the status: %s", text)
	}
	if log := f.journal.String(); !strings.Contains(log, "a key expires soon") || !strings.Contains(log, s.Key.ID) {
		t.Error("the log does not say that the key expires soon")
	}
	if status, _ := f.ask(t, short); status != 200 {
		t.Errorf("a key that was made for nine days: %d", status)
	}
}
