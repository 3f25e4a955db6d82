package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// identify finds out who calls.
func (c *call) identify() (err error) {
	c.caller, err = c.settings.accounts.Identify(c.r.Context(), authorization(c.r.Header), c.clientAddr())
	c.showExpiry()
	return err
}

// showExpiry sets the header that names when the caller's key expires, where it does.
func (c *call) showExpiry() {
	if ends := c.caller.ExpiresText(); ends != "" {
		c.writer.header("X-Tidegate-Key-Expires", ends)
	}
}

// authorization returns the caller's credentials in the form of the Authorization header.
// Where that has no Bearer key, because it is missing, empty or meant for a proxy, the key
// is in x-api-key, as Anthropic's clients send it. Of two keys the one of Authorization
// counts: a client whose key for a gateway was set sends an old one beside it.
func authorization(h http.Header) string {
	header := h.Get("Authorization")
	if header == "" || bearerKey(header) == "" {
		if key := strings.TrimSpace(h.Get("X-Api-Key")); key != "" {
			return "Bearer " + key
		}
	}
	return header
}

// bearerKey returns the key in an Authorization header; empty: there is none.
func bearerKey(authorization string) string {
	scheme, key, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

// keyRefused returns the refusal of a caller whose key is not good. What is said of a key that the gateway
// knows is said to whoever has its whole text, so it helps nobody to guess one.
func (f *facts) keyRefused(err error) *refusal.Refusal {
	var known *account.KeyError
	switch {
	case errors.As(err, &known):
		return f.knownKeyRefused(known)
	case errors.Is(err, account.ErrNoKey):
		return refusal.New(refusal.InvalidAPIKey, "", keyless(f.header)+": send the header Authorization: Bearer KEY (or x-api-key: KEY) with a key of this gateway")
	}
	message := "the API key is not known here: check that it is whole, and that it is a key of this gateway"
	if f.header.Get("X-Api-Key") != "" && bearerKey(f.header.Get("Authorization")) != "" {
		message += "; the key in Authorization was looked at, since it goes before the one in x-api-key"
	}
	return refusal.New(refusal.InvalidAPIKey, "", message)
}

func (f *facts) knownKeyRefused(known *account.KeyError) *refusal.Refusal {
	key := "the API key " + known.Key
	if known.KeyID != "" {
		key += " (id " + known.KeyID + ")"
	}
	date := known.Time.UTC().Format(time.RFC3339)
	switch known.State {
	case account.KeyWrongAddress:
		return refusal.New(refusal.AccessDenied, "", fmt.Sprintf("%s may not be used from your address %v: use it from the networks that it is bound to, or have that changed", key, f.addr))
	case account.KeyExpired:
		return refusal.New(refusal.InvalidAPIKey, "", key+" expired on "+date+": ask an administrator for a new one")
	case account.KeyDisabled:
		return refusal.New(refusal.InvalidAPIKey, "", key+" is of a user, project or department that is disabled since "+date+": ask an administrator")
	}
	return refusal.New(refusal.InvalidAPIKey, "", fmt.Sprintf("%s is %s since %s: ask an administrator for a new one", key, known.State, date))
}

// keyless returns why the headers of a request have no key, in words.
func keyless(h http.Header) string {
	values, sent := h["Authorization"]
	switch {
	case authorization(h) != "" && bearerKey(authorization(h)) != "":
		return "the API key that was sent is longer than any key can be"
	case !sent:
		return "no API key was sent"
	case strings.EqualFold(strings.TrimSpace(values[0]), "Bearer"), strings.TrimSpace(values[0]) == "":
		return "the header Authorization was sent without a key, perhaps because the variable that should hold it is empty"
	}
	return "the header Authorization does not begin with Bearer"
}
