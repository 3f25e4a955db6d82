package account

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tidegate/gateway/database/databasetest"
)

// TestGuessing tries keys from one address: from some number on none is looked at,
// in the file, the store or the database, but those that are in use.
func TestGuessing(t *testing.T) {
	c, random := newClock(), NewSecret()
	r := newReplica(t, databasetest.SQLite(t), c, func(a *Config) {
		a.FailedKeys = 30
		a.Keys, a.AdminKey = validConfig().Keys, random
	})
	used, fresh := r.make(t, NewKey{User: "ann"}).Secret, r.make(t, NewKey{User: "bob"}).Secret
	guesser, other := netip.MustParseAddr("2001:db8:0:1::7"), netip.MustParseAddr("2001:db8:0:2::7")
	as := func(from netip.Addr, key string) error {
		_, err := r.Identify(t.Context(), "Bearer "+key, from)
		return err
	}
	if err := as(guesser, annKey); err != nil { // of the file
		t.Fatal(err)
	}
	if err := as(guesser, used); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		from := netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x", i+1)) // all of one caller
		if err := as(from, fmt.Sprint("a guess that is long enough ", i)); !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	asked := r.asked.n.Load()
	var locked *GuessingError
	for _, key := range []string{NewSecret(), "a guess that is long enough", bobKey} { // the last is good, which must not show
		if err := as(guesser, key); !errors.As(err, &locked) || locked.RetryAfter <= 0 || locked.RetryAfter > 2*time.Second {
			t.Errorf("%.12s...: %v", key, err)
		}
	}
	if n := r.asked.n.Load(); n != asked {
		t.Errorf("%d questions to the database", n-asked)
	}
	for name, key := range map[string]string{"of the file, in use": annKey, "of the store, in use": used, "of the store": fresh, "of the file, random": random} {
		if err := as(guesser, key); err != nil {
			t.Errorf("a key %s: %v", name, err)
		}
	}
	if err := as(guesser, ""); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("no key: %v", err)
	}
	if err := as(other, bobKey); err != nil {
		t.Errorf("another network: %v", err)
	}
	c.advance(2 * time.Second) // one more may be tried
	if err := as(guesser, "a guess that is long enough"); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("after a wait: %v", err)
	}
	if err := as(guesser, bobKey); !errors.As(err, &locked) {
		t.Errorf("after one more guess: %v", err)
	}
	New(r.config, r.store) // a reload forgets nothing
	if err := as(guesser, bobKey); !errors.As(err, &locked) {
		t.Errorf("after a reload: %v", err)
	}
}

// TestGuessesAreBounded counts more addresses and keys than are remembered.
func TestGuessesAreBounded(t *testing.T) {
	g := newGuessLimiter()
	g.configure(1)
	now := time.Now()
	for i := range 2 * max(limitedAddrs, trustedKeys) {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		g.recordFailure(addr, now)
		g.trust(addr, hash{})
	}
	if g.byAddr.Len() > limitedAddrs || g.trusted.Len() > trustedKeys {
		t.Errorf("%d addresses, %d keys", g.byAddr.Len(), g.trusted.Len())
	}
}

// TestAnonymous: in open mode an IPv6 caller is its /64, and zones are no callers.
func TestAnonymous(t *testing.T) {
	d := New(Config{Mode: Open}, nil)
	for from, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "2001:db8:1:2:ffff::": "2001:db8:1:2::/64",
		"fe80::1%eth0": "fe80::/64", "fe80::2%eth1": "fe80::/64",
	} {
		if id, err := d.Identify(t.Context(), "Bearer any", netip.MustParseAddr(from)); err != nil || id.User != want {
			t.Errorf("%s is %q, expected %q: %v", from, id.User, want, err)
		}
	}
}

// TestGuessingInOpenMode: any text is a key there and guesses nothing, but who tries
// keys for administration is bounded as elsewhere.
func TestGuessingInOpenMode(t *testing.T) {
	c := newClock()
	r := newReplica(t, databasetest.SQLite(t), c, func(a *Config) {
		a.Mode, a.FailedKeys, a.AdminKey = Open, 30, "the key of the administrator"
	})
	guesser, other := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
	admin := func(from netip.Addr, key string) (Identity, error) {
		return r.IdentifyAdministrator(t.Context(), "Bearer "+key, from)
	}
	for range 100 {
		if id, err := r.Identify(t.Context(), "Bearer EMPTY", guesser); err != nil || id.Key != Open {
			t.Fatalf("%+v, %v", id, err)
		}
	}
	if id, err := r.Identify(t.Context(), "Bearer the key of the administrator", other); err != nil || id.Admin {
		t.Errorf("can be guessed where nothing is counted: %+v, %v", id, err)
	}
	for i := range 30 {
		if id, err := admin(guesser, fmt.Sprint("a guess that is long enough ", i)); err != nil || id.Admin {
			t.Fatalf("guess %d: %+v, %v", i, id, err)
		}
	}
	var locked *GuessingError
	if _, err := admin(guesser, "the key of the administrator"); !errors.As(err, &locked) {
		t.Errorf("a good key after 30 guesses: %v", err)
	}
	if id, err := admin(other, "the key of the administrator"); err != nil || !id.Admin {
		t.Errorf("another address: %+v, %v", id, err)
	}
	if id, err := r.Identify(t.Context(), "Bearer EMPTY", guesser); err != nil || id.Key != Open {
		t.Errorf("who may not guess is refused all: %+v, %v", id, err)
	}
	for range 30 {
		_, _ = r.Identify(t.Context(), "Bearer "+NewSecret(), other)
	}
	asked := r.asked.n.Load()
	for range 10 {
		if id, err := r.Identify(t.Context(), "Bearer "+NewSecret(), other); err != nil || id.Key != Open {
			t.Errorf("%+v, %v", id, err)
		}
	}
	if n := r.asked.n.Load(); n != asked {
		t.Errorf("%d questions to the database", n-asked)
	}
}
