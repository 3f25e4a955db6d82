package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// keyed is a gateway that asks for keys, with a user's and an administrator's.
func keyed(t *testing.T) http.Handler {
	t.Helper()
	g, _ := bare(t, nil)
	g.Reload(Default(), account.New(account.Config{Mode: account.Keys, AdminKey: rootKey, Keys: []account.KeyConfig{{User: "ada", KeyEnv: "A", Key: adaKey}}}, nil))
	return g.Handler()
}

const (
	adaKey  = "ada's own key, which the file names"
	rootKey = "the administrators' key, of the file"
)

// TestKeyHeaders sends keys in both headers, and what is no key.
func TestKeyHeaders(t *testing.T) {
	h := keyed(t)
	for name, c := range map[string]struct {
		headers []string
		status  int
		want    []string
	}{
		"good":                              {[]string{"Authorization", "Bearer " + adaKey}, 200, nil},
		"small letters":                     {[]string{"Authorization", "bearer  " + adaKey}, 200, nil},
		"nothing":                           {nil, 401, []string{"no API key was sent", "Authorization: Bearer KEY", "x-api-key"}},
		"Bearer alone":                      {[]string{"Authorization", "Bearer "}, 401, []string{"without a key", "variable"}},
		"empty":                             {[]string{"Authorization", ""}, 401, []string{"without a key"}},
		"no scheme":                         {[]string{"Authorization", "tg-abc"}, 401, []string{"does not begin with Bearer"}},
		"Basic":                             {[]string{"Authorization", "Basic YTpi"}, 401, []string{"does not begin with Bearer"}},
		"too long":                          {[]string{"Authorization", "Bearer " + strings.Repeat("k", 600)}, 401, []string{"longer than any key"}},
		"unknown":                           {[]string{"Authorization", "Bearer nobody"}, 401, []string{"not known here"}},
		"almost":                            {[]string{"Authorization", "Bearer " + adaKey[1:]}, 401, []string{"not known here"}},
		"x-api-key":                         {[]string{"X-Api-Key", adaKey}, 200, nil},
		"x-api-key too long":                {[]string{"X-Api-Key", strings.Repeat("k", 600)}, 401, []string{"longer than any key"}},
		"x-api-key unknown":                 {[]string{"X-Api-Key", "nobody"}, 401, []string{"not known here"}},
		"x-api-key empty":                   {[]string{"X-Api-Key", " "}, 401, []string{"no API key was sent"}},
		"x-api-key empty, Bearer good":      {[]string{"X-Api-Key", "", "Authorization", "Bearer " + adaKey}, 200, nil},
		"x-api-key good, Bearer empty":      {[]string{"X-Api-Key", adaKey, "Authorization", "Bearer "}, 200, nil},
		"x-api-key good, Basic for a proxy": {[]string{"X-Api-Key", adaKey, "Authorization", "Basic YTpi"}, 200, nil},
		"x-api-key old, Bearer good":        {[]string{"X-Api-Key", "sk-ant-old", "Authorization", "Bearer " + adaKey}, 200, nil},
		"x-api-key good, Bearer unknown":    {[]string{"X-Api-Key", adaKey, "Authorization", "Bearer dummy"}, 401, []string{"not known here", "goes before the one in x-api-key"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := ask(t, h, "GET", "/v1/models", c.headers...)
			if w.Code != c.status {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			for _, want := range c.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s\nexpected %s", w.Body, want)
				}
			}
			if got := w.Header().Get("Www-Authenticate"); (got == "Bearer") != (w.Code == 401) {
				t.Errorf("WWW-Authenticate: %q", got)
			}
		})
	}
	for key, status := range map[string]int{adaKey: 403, "nobody": 401, "": 401} {
		if w := ask(t, h, "GET", "/admin/v1/keys", "X-Api-Key", key); w.Code != status {
			t.Errorf("a route of administrators with %q: %d %s, expected %d", key, w.Code, w.Body, status)
		}
	}
	// The way there is open: what is asked for is wrong.
	if w := ask(t, h, "GET", "/admin/v1/usage?format=xml", "X-Api-Key", rootKey); w.Code != 400 {
		t.Errorf("the administrators' key in x-api-key: %d %s", w.Code, w.Body)
	}
}

// TestKeyRefused checks what is said to who shows the whole text of a key that is no good.
func TestKeyRefused(t *testing.T) {
	g, _ := bare(t, nil)
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
	for state, want := range map[account.KeyState]struct {
		code refusal.Code
		text string
	}{
		account.KeyExpired:      {refusal.InvalidAPIKey, "the API key laptop (id 01ABC) expired on 2026-01-02T03:04:05Z"},
		account.KeyRevoked:      {refusal.InvalidAPIKey, "the API key laptop (id 01ABC) is revoked since 2026-01-02T03:04:05Z"},
		account.KeyDisabled:     {refusal.InvalidAPIKey, "the API key laptop (id 01ABC) is of a user, project or department that is disabled since 2026-01-02T03:04:05Z"},
		account.KeyWrongAddress: {refusal.AccessDenied, "the API key laptop (id 01ABC) may not be used from your address 192.0.2.1"},
	} {
		err := fmt.Errorf("identify: %w", &account.KeyError{State: state, Time: since, Key: "laptop", KeyID: "01ABC", User: "ann"})
		got := explain(err, (&call{r: r, settings: g.settings.Load()}).facts())
		if got.Code != want.code || !strings.Contains(got.Message, want.text) {
			t.Errorf("%s: %+v, expected %s", state, got, want.text)
		}
	}
}

// TestNameOfKeyInOpenMode checks that a known key in x-api-key names its user.
func TestNameOfKeyInOpenMode(t *testing.T) {
	g, _ := bare(t, nil)
	g.Reload(Default(), account.New(account.Config{Mode: account.Open, Keys: []account.KeyConfig{{User: "ada", KeyEnv: "A", Key: adaKey}}}, nil))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("X-Api-Key", adaKey)
	c := g.newCall(httptest.NewRecorder(), r, "/")
	if err := c.identify(); err != nil || c.caller.User != "ada" {
		t.Errorf("%+v, %v", c.caller, err)
	}
}
