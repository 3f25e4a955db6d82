package account

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// refusals asks why keys are refused, also of a replica that has just started.
func refusals(t *testing.T, dsn string) {
	c := newClock()
	a := newReplica(t, dsn, c, nil)
	short := a.make(t, NewKey{User: "vic", TTL: "1h"})
	gone := a.make(t, NewKey{User: "vic"})
	bound := a.make(t, NewKey{User: "vic", IPs: []string{"10.0.0.0/8"}})
	if _, err := a.store.RevokeKey(t.Context(), "test", gone.Key.ID); err != nil {
		t.Fatal(err)
	}
	revoked := c.now()
	c.advance(time.Hour)
	for name, r := range map[string]*replica{"this one": a, "one that starts": newReplica(t, dsn, c, nil)} {
		for range 55 { // more than the database is asked for: made-up keys cost the others nothing
			r.check(t, "made up", NewSecret(), ErrUnknownKey)
		}
		for _, want := range []struct {
			of    CreatedKey
			state KeyState
			since time.Time
			kind  error
		}{
			{short, KeyExpired, *short.Key.Expires, ErrUnknownKey},
			{gone, KeyRevoked, revoked, ErrUnknownKey},
			{bound, KeyWrongAddress, time.Time{}, ErrIPNotAllowed},
		} {
			_, err := r.as(t, want.of.Secret)
			var got *KeyError
			if !errors.As(err, &got) || !errors.Is(err, want.kind) {
				t.Errorf("%s: %v; expected that it is %s", name, err, want.state)
				continue
			}
			if got.State != want.state || !got.Time.Equal(want.since) || got.KeyID != want.of.Key.ID || got.User != "vic" || got.Key != want.of.Key.Name {
				t.Errorf("%s: %+v; expected %s since %v", name, got, want.state, want.since)
			}
		}
		_, err := r.Identify(t.Context(), "", netip.MustParseAddr("192.0.2.7"))
		if !errors.Is(err, ErrNoKey) || !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: without a key: %v", name, err)
		}
		if _, err := r.as(t, NewSecret()); errors.As(err, new(*KeyError)) {
			t.Errorf("%s: a made-up key: %v", name, err)
		}
	}
}

// TestExpiredKeysGuessNothing keeps an address from being locked by a key that was good.
func TestExpiredKeysGuessNothing(t *testing.T) {
	c := newClock()
	r := newReplica(t, "sqlite://"+t.TempDir()+"/a.db", c, func(c *Config) { c.FailedKeys = 3 })
	m := r.make(t, NewKey{User: "vic", TTL: "1h"})
	c.advance(time.Hour)
	for range 10 {
		r.check(t, "expired", m.Secret, ErrUnknownKey)
	}
	r.check(t, "made up", "a guess that is long enough", ErrUnknownKey)
}

// unnamedKeys holds that a user's 300th unnamed key costs the database no more than the
// third, also where others hold names in between.
func unnamedKeys(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	cost := func() (name string, questions int64) {
		before := r.asked.n.Load()
		m := r.make(t, NewKey{User: "una"})
		return m.Key.Name, r.asked.n.Load() - before
	}
	for range 2 {
		cost()
	}
	name, third := cost()
	if name != "una-3" {
		t.Errorf("the third is %s", name)
	}
	for range 296 {
		cost()
	}
	r.make(t, NewKey{User: "uno", Name: "una-300"})
	if name, last := cost(); name != "una-301" || last > third {
		t.Errorf("%s cost %d questions, the third %d", name, last, third)
	}
}
