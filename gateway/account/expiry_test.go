package account

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// expiring holds which keys are named before they expire, and that each is logged once.
func expiring(t *testing.T, dsn string) {
	c := newClock()
	r := newReplica(t, dsn, c, func(c *Config) { c.AllowUnexpiring = true })
	var log bytes.Buffer
	r.store.hooks.Log = slog.New(slog.NewTextHandler(&log, nil))
	r.Enforce()
	named := func() (ids []string) {
		t.Helper()
		if err := r.store.checkExpiry(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, k := range r.store.Expiring().Keys {
			if strings.HasPrefix(k.User, "exp") {
				ids = append(ids, k.Name)
			}
		}
		return ids
	}
	off := r.make(t, NewKey{User: "exp-off", TTL: "72h"})
	for _, n := range []NewKey{
		{User: "exp-later", TTL: "30d"}, {User: "exp-short", TTL: "1h"}, {User: "exp-never", TTL: "never"}, {User: "exp-soon", TTL: "73h"},
		{User: "exp-first", TTL: "72h"}, {User: "exp-rotated", TTL: "72h"}, {User: "exp-revoked", TTL: "72h"},
	} {
		r.make(t, n)
	}
	if got := named(); len(got) > 0 {
		t.Errorf("three days before: %q", got)
	}
	if _, err := r.store.RevokeKey(t.Context(), "test", "exp-revoked"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RotateKey(t.Context(), "test", "exp-rotated", 100*time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ChangeKey(t.Context(), "test", "exp-rotated", KeyChange{TTL: ptr("30d")}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.ChangeOwner(t.Context(), "test", UserKind, off.Key.User, OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	c.advance(30 * time.Hour)
	for range 2 {
		c.advance(expiryInterval)
		if got := named(); !slices.Equal(got, []string{"exp-first", "exp-soon"}) {
			t.Errorf("two days before: %q", got)
		}
	}
	if n := strings.Count(log.String(), "expires soon"); strings.Count(log.String(), "user=exp-first") != 1 || strings.Count(log.String(), "user=exp-soon") != 1 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
	if _, err := r.ChangeKey(t.Context(), "test", "exp-first", KeyChange{TTL: ptr("30d")}); err != nil {
		t.Fatal(err)
	}
	if got := named(); len(got) != 2 {
		t.Errorf("a moment later: %q", got)
	}
	c.advance(minExpiryInterval)
	if got := named(); !slices.Equal(got, []string{"exp-soon"}) {
		t.Errorf("after a change: %q", got)
	}
	c.advance(48 * time.Hour)
	if got := named(); len(got) > 0 {
		t.Errorf("after the end: %q", got)
	}
}
