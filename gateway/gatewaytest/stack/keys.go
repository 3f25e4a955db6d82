package stack

import (
	"encoding/json"
	"testing"
	"time"
)

// CreatedKey returns the text and the id of the key in an answer of the administration
// API.
func CreatedKey(t *testing.T, answer string) (secret, id string) {
	t.Helper()
	var m struct {
		Secret string
		Key    struct{ ID string }
	}
	if err := json.Unmarshal([]byte(answer), &m); err != nil || m.Secret == "" {
		t.Fatalf("%v: %s", err, answer)
	}
	return m.Secret, m.Key.ID
}

// CheckRevocation measures how long a key that one gateway revoked works on another. It
// fails the test if that is longer than Patience.
func CheckRevocation(t *testing.T, a, b *Gateway, admin string) {
	t.Helper()
	var worst time.Duration
	for i := range 3 {
		key, id := CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys", `{"user":"ann"}`, 200, `"user":"ann"`))
		if status, text := b.Ask(t, key); status != 200 {
			t.Fatalf("on the other gateway: %d %s", status, text)
		}
		began := time.Now()
		a.Expect(t, admin, "POST", "/admin/v1/keys/"+id+"/revoke", "", 200, `"status":"revoked"`)
		if status, _ := a.Ask(t, key); status != 401 {
			t.Errorf("on the gateway that revoked it: %d", status)
		}
		Eventually(t, "the other gateway to refuse the key", func() bool {
			status, _ := b.Call(t, key, "GET", "/v1/models", "")
			return status == 401
		})
		worst = max(worst, time.Since(began))
		if i == 0 {
			b.Expect(t, key, "GET", "/v1/models", "", 401, id+") is revoked since 2")
		}
	}
	t.Logf("REVOKED after at most %v on the other gateway, of 3 tries; the bound is 2s", worst.Round(time.Millisecond))
}
